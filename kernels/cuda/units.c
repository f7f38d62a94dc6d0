/* units.c - see units.h.
 *
 * Two streams of their own, one for each direction of the bus. Who waits for whom:
 *
 *   the stream    before it writes a stage: until what left from there has arrived. Before it reads one: until it came
 *   down          before a stage leaves: until the stream has written it, which waited for all that came before
 *   up            before a unit comes: until the stream is done with the stage, and what was there has left; until the
 *                 host's unit was written
 *
 * A stage whose unit is asked for again is used as it is: what several sequences go on from comes once.
 *
 * The host's memory is there from the beginning and is pinned by a thread, piece by piece, while others are served
 * already; a unit that is wanted earlier pins its own pieces. What cannot be pinned is copied as it is, which is slower
 * and holds up the thread that asks. */
#include "kernels/cuda/units.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PIECE_BYTES (16ull << 20)  /* pinned at once, and copied at once */
#define HUGE_BYTES  (2ull << 20)   /* fewer pages are pinned faster */
#define PAUSE_NS    (1000 * 1000l) /* between pieces: who queues a step wants the driver, too */

enum piece { PIECE_UNTOUCHED, PIECE_PINNED, PIECE_REFUSED };

struct stage {
    uint8_t *d_memory;
    /* The stream has passed what used it last; it has left for the host; it came from there. */
    cudaEvent_t used, left, came;
    uint32_t unit; /* that it holds; UINT32_MAX = none */
    uint64_t turn; /* when it was used last */
    bool leaving;  /* of the use that is being queued: a snapshot */
};

struct units {
    struct k_context *context;
    uint64_t unit_bytes;
    uint32_t n;
    struct stage stages[UNIT_STAGES];
    struct stage *open; /* between units_write() or units_read() and units_end() */
    uint64_t turns;
    cudaStream_t down, up;
    cudaEvent_t last_left; /* of a stage: what was queued last; NULL = nothing yet */
    bool *written;         /* [n] by `down`, which the host has not waited for since */

    uint8_t *memory; /* [n][unit_bytes] of the host */
    uint64_t mapped_bytes;
    pthread_t pinner;
    pthread_mutex_t lock; /* of what follows */
    bool pinning, stop;
    uint32_t n_pieces;
    uint8_t *pieces; /* enum piece */
};

/* --- memory of the host --- */

static uint64_t piece_bytes(const struct units *u, uint32_t piece) {
    const uint64_t left = u->mapped_bytes - piece * PIECE_BYTES;
    return left < PIECE_BYTES ? left : PIECE_BYTES;
}
/* False: it is time to stop. */
static bool pin_piece(struct units *u, uint32_t piece) {
    pthread_mutex_lock(&u->lock);
    const bool go_on = !u->stop;
    if (go_on && u->pieces[piece] == PIECE_UNTOUCHED) {
        const cudaError_t r = cudaHostRegister(
                u->memory + piece * PIECE_BYTES, piece_bytes(u, piece), cudaHostRegisterPortable);
        u->pieces[piece] = r == cudaSuccess ? PIECE_PINNED : PIECE_REFUSED;
        if (r != cudaSuccess)
            cudaGetLastError(); /* it is not the next call's */
    }
    pthread_mutex_unlock(&u->lock);
    return go_on;
}
static void *pin_all(void *argument) {
    struct units *u = argument;
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    if (context_enter(u->context, NULL) < 0)
        return NULL;
    for (uint32_t i = 0; i < u->n_pieces && pin_piece(u, i); i++)
        nanosleep(&pause, NULL);
    return NULL;
}

/* A process that is forked meanwhile gets none of it: what is pinned must stay where it is. */
static int map_memory(struct units *u, struct error *e) {
    u->mapped_bytes = (u->n * u->unit_bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    u->n_pieces = (uint32_t)((u->mapped_bytes + PIECE_BYTES - 1) / PIECE_BYTES);
    u->memory = mmap(NULL, u->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u->pieces = calloc(u->n_pieces, sizeof *u->pieces);
    if (u->memory == MAP_FAILED || !u->pieces) {
        u->memory = u->memory == MAP_FAILED ? NULL : u->memory;
        return error_set(e, -ENOMEM, "no memory of the host for %u states of sequences", u->n);
    }
    madvise(u->memory, u->mapped_bytes, MADV_HUGEPAGE);
    madvise(u->memory, u->mapped_bytes, MADV_DONTFORK);
    u->pinning = pthread_create(&u->pinner, NULL, pin_all, u) == 0; /* otherwise units pin their own pieces */
    return 0;
}
static void unmap_memory(struct units *u) {
    pthread_mutex_lock(&u->lock);
    u->stop = true;
    pthread_mutex_unlock(&u->lock);
    if (u->pinning)
        pthread_join(u->pinner, NULL);
    for (uint32_t i = 0; u->pieces && i < u->n_pieces; i++)
        if (u->pieces[i] == PIECE_PINNED)
            cudaHostUnregister(u->memory + i * PIECE_BYTES);
    if (u->memory)
        munmap(u->memory, u->mapped_bytes);
    free(u->pieces);
}

/* --- creation --- */

static int make_stages(struct units *u, struct error *e) {
    struct k_context *c = u->context;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    CUDA_TRY(c, cudaStreamCreateWithFlags(&u->down, cudaStreamNonBlocking), e);
    CUDA_TRY(c, cudaStreamCreateWithFlags(&u->up, cudaStreamNonBlocking), e);
    for (struct stage *g = u->stages; g < u->stages + UNIT_STAGES; g++) {
        g->unit = UINT32_MAX;
        g->d_memory = k_alloc(c, u->unit_bytes);
        if (!g->d_memory)
            return error_set(
                    e, -ENOMEM, "device %d: no memory to move states of sequences through", c->device);
        CUDA_TRY(c, cudaEventCreateWithFlags(&g->used, cudaEventDisableTiming), e);
        CUDA_TRY(c, cudaEventCreateWithFlags(&g->left, cudaEventDisableTiming), e);
        CUDA_TRY(c, cudaEventCreateWithFlags(&g->came, cudaEventDisableTiming), e);
    }
    return 0;
}

int units_create(struct k_context *c, uint32_t n, uint64_t unit_bytes, struct units **ret, struct error *e) {
    uint64_t bytes;
    struct units *u = calloc(1, sizeof *u);
    if (!u || __builtin_mul_overflow(n, unit_bytes, &bytes) || bytes > UINT64_MAX / 2) {
        free(u);
        return error_set(e, -ENOMEM, "no memory for %u states of sequences", n);
    }
    u->context = c;
    u->n = n;
    u->unit_bytes = unit_bytes;
    pthread_mutex_init(&u->lock, NULL);
    u->written = calloc(n, sizeof *u->written);
    int r = u->written ? make_stages(u, e) : error_set(e, -ENOMEM, "no memory for %u states of sequences", n);
    if (r == 0)
        r = map_memory(u, e);
    if (r < 0)
        units_free(u);
    else
        *ret = u;
    return r;
}

struct units *units_free(struct units *u) {
    if (!u)
        return NULL;
    context_enter(u->context, NULL);
    if (u->down)
        cudaStreamSynchronize(u->down); /* it writes to the host's memory */
    if (u->up)
        cudaStreamSynchronize(u->up);
    unmap_memory(u);
    for (struct stage *g = u->stages; g < u->stages + UNIT_STAGES; g++) {
        const cudaEvent_t events[] = {g->used, g->left, g->came};
        for (size_t i = 0; i < sizeof events / sizeof *events; i++)
            if (events[i])
                cudaEventDestroy(events[i]);
        k_free(u->context, g->d_memory);
    }
    if (u->down)
        cudaStreamDestroy(u->down);
    if (u->up)
        cudaStreamDestroy(u->up);
    pthread_mutex_destroy(&u->lock);
    free(u->written);
    free(u);
    return NULL;
}

/* --- moving --- */

static struct stage *stage_with(struct units *u, uint32_t unit) {
    for (struct stage *g = u->stages; g < u->stages + UNIT_STAGES; g++)
        if (g->unit == unit)
            return g;
    return NULL;
}
static struct stage *stage_oldest(struct units *u) {
    struct stage *oldest = u->stages;
    for (struct stage *g = u->stages + 1; g < u->stages + UNIT_STAGES; g++)
        oldest = g->turn < oldest->turn ? g : oldest;
    return oldest;
}

/* The pieces of a unit, each a copy of its own, as they were pinned each by itself. */
static bool queue_copies(struct units *u, struct k_stream *s, const struct stage *g, bool down) {
    const uint64_t first = g->unit * u->unit_bytes, end = first + u->unit_bytes;
    for (uint64_t at = first, n; at < end; at += n) {
        n = PIECE_BYTES - at % PIECE_BYTES;
        n = n < end - at ? n : end - at;
        pin_piece(u, (uint32_t)(at / PIECE_BYTES));
        uint8_t *d_part = g->d_memory + (at - first), *part = u->memory + at;
        if (!CUDA_QUEUED(s, down ? cudaMemcpyAsync(part, d_part, n, cudaMemcpyDeviceToHost, u->down)
                                 : cudaMemcpyAsync(d_part, part, n, cudaMemcpyHostToDevice, u->up)))
            return false;
    }
    return true;
}

uint8_t *units_write(struct units *u, struct k_stream *s, uint32_t unit) {
    struct stage *g = stage_with(u, unit);
    if (!g)
        g = stage_oldest(u);
    u->open = g;
    g->unit = unit;
    g->turn = ++u->turns;
    g->leaving = true;
    return CUDA_QUEUED(s, cudaStreamWaitEvent(s->stream, g->left, 0)) ? g->d_memory : NULL;
}

/* The host's unit, to a stage that nobody uses any more. */
static bool fetch(struct units *u, struct k_stream *s, struct stage *g) {
    if (!CUDA_QUEUED(s, cudaStreamWaitEvent(u->up, g->used, 0)) ||
            !CUDA_QUEUED(s, cudaStreamWaitEvent(u->up, g->left, 0)) ||
            (u->written[g->unit] && !CUDA_QUEUED(s, cudaStreamWaitEvent(u->up, u->last_left, 0))) ||
            !queue_copies(u, s, g, /* down= */ false) || !CUDA_QUEUED(s, cudaEventRecord(g->came, u->up)))
        return false;
    return CUDA_QUEUED(s, cudaStreamWaitEvent(s->stream, g->came, 0));
}
uint8_t *units_read(struct units *u, struct k_stream *s, uint32_t unit) {
    struct stage *g = stage_with(u, unit);
    const bool there = g != NULL;
    if (!there)
        g = stage_oldest(u);
    u->open = g;
    g->unit = unit;
    g->turn = ++u->turns;
    g->leaving = false;
    return there || fetch(u, s, g) ? g->d_memory : NULL;
}

void units_end(struct units *u, struct k_stream *s) {
    struct stage *g = u->open;
    if (!CUDA_QUEUED(s, cudaEventRecord(g->used, s->stream)) || !g->leaving)
        return;
    if (!CUDA_QUEUED(s, cudaStreamWaitEvent(u->down, g->used, 0)) ||
            !queue_copies(u, s, g, /* down= */ true) || !CUDA_QUEUED(s, cudaEventRecord(g->left, u->down)))
        return;
    u->last_left = g->left;
    u->written[g->unit] = true;
}

/* A stage that holds it is forgotten. */
uint8_t *units_host(struct units *u, uint32_t unit) {
    struct stage *g = stage_with(u, unit);
    if (u->written[unit] && (context_enter(u->context, NULL) < 0 ||
                                    cudaEventSynchronize(g ? g->left : u->last_left) != cudaSuccess))
        return NULL;
    u->written[unit] = false;
    if (g)
        g->unit = UINT32_MAX;
    return u->memory + unit * u->unit_bytes;
}
