/* ring.c - the memfd that a coordinator and its ranks share.
 *
 *   [shared words, 4 KiB][plan ring, 16 MiB][completion ring of rank 0, 1 MiB][of rank 1]...
 *
 * The layout follows from the number of ranks alone, so there is no size in shared memory that a peer could
 * change under us. Both kinds of ring hold frames: 64 bytes of head, then the bytes, rounded up to 64; a
 * frame never wraps, a pad frame fills the end instead. head and tail count bytes since the start and only
 * grow. Each side keeps its own position privately, publishes it, and takes the other's as a claim to check.
 *
 * Waiting is an event count: who has news for a side adds one to the side's wake word; a side sleeps only
 * while the word is what it was when its last wait returned, so nothing that happened since then is missed. */
#include "proto/step/ring.h"

#include "base/clock.h"
#include "base/futex.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RING_MAGIC       0x676e697254534853ull /* "SHSTring" */
#define RING_VERSION     1u
#define WORDS_BYTES      4096u
#define PLAN_BYTES       (16u << 20)
#define COMPLETION_BYTES (4u << 20)
#define FRAME_BYTES      64u
#define SPINS            200u /* of a pause instruction: about 10 us, then sleeping costs less than it delays */

/* A ring that holds a pad of almost one largest frame and one more of them never blocks an empty reader's
 * writer. */
_Static_assert(
        PLAN_BYTES >= 2 * (STEP_RECORD_MAX + FRAME_BYTES), "the largest record always fits an empty ring");
_Static_assert(
        COMPLETION_BYTES >= 2 * (STEP_COMPLETION_MAX + 2 * FRAME_BYTES), "so does the largest completion");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics work between processes");

enum frame_kind { FRAME_DATA = 1, FRAME_PAD = 2 };
struct frame {
    uint32_t kind, bytes;
};

struct shared_rank { /* one cache line for each that writes */
    _Alignas(64) _Atomic uint64_t plan_tail;
    _Atomic uint64_t completion_head;
    _Atomic uint32_t completion_blocked; /* the rank found its completion ring full */
    _Alignas(64) _Atomic uint64_t completion_tail;
    _Alignas(64) _Atomic uint64_t step;
    _Atomic uint64_t operation; /* layer in the upper half */
    _Atomic uint64_t changes;
    _Atomic uint32_t busy;
};

struct shared {
    uint64_t magic;
    uint32_t version, n_ranks;
    uint64_t group_epoch, coord_epoch;
    _Alignas(64) _Atomic uint64_t plan_head;
    _Alignas(64) _Atomic uint32_t ranks_wake;
    _Atomic uint32_t ranks_sleeping;
    _Alignas(64) _Atomic uint32_t coordinator_wake;
    _Atomic uint32_t coordinator_sleeping;
    _Atomic uint32_t plan_blocked; /* the coordinator found the plan ring full */
    struct shared_rank ranks[RANKS_MAX];
};
_Static_assert(sizeof(struct shared) <= WORDS_BYTES, "the words fit before the rings");

struct step_ring {
    struct shared *shared;
    uint8_t *plans;                  /* [PLAN_BYTES] */
    uint8_t *completions[RANKS_MAX]; /* [COMPLETION_BYTES] each */
    size_t bytes;                    /* of the mapping */
    uint32_t rank, n_ranks;
    uint64_t group_epoch, coord_epoch;
    uint32_t seen;       /* wake word when the last wait returned */
    uint64_t plan_at;    /* coordinator: head; rank: tail */
    uint64_t plan_next;  /* reserved: head after commit; held: tail after release */
    uint64_t plan_place; /* reserved: offset of the record */
    bool plan_held;      /* coordinator: reserved; rank: a record is out */
    uint32_t plan_bytes; /* of what is reserved or held */
    uint64_t completion_at[RANKS_MAX], completion_next[RANKS_MAX];
    bool completion_held[RANKS_MAX];
    uint64_t progress_changes;
    uint8_t *copy; /* rank: [STEP_RECORD_MAX]; coordinator: [n_ranks][STEP_COMPLETION_MAX] */
    size_t copy_bytes;
};

static uint64_t round_up(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

static size_t ring_bytes(uint32_t n_ranks) {
    return WORDS_BYTES + (size_t)PLAN_BYTES + (size_t)n_ranks * COMPLETION_BYTES;
}

int step_ring_create(
        uint32_t n_ranks, uint64_t group_epoch, uint64_t coord_epoch, int *ret_fd, struct error *e) {
    int r, fd = -1;
    struct shared *s = MAP_FAILED;

    if (n_ranks == 0 || n_ranks > RANKS_MAX)
        return error_set(e, -EINVAL, "a step ring for %u ranks: 1 to %u are possible", n_ranks, RANKS_MAX);
    fd = memfd_create("shardd-step-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return error_set(e, -errno, "cannot create the step ring: %s", strerror(errno));
    if (ftruncate(fd, (off_t)ring_bytes(n_ranks)) < 0) {
        r = error_set(e, -errno, "cannot size the step ring to %zu bytes: %s", ring_bytes(n_ranks),
                strerror(errno));
        goto fail;
    }
    s = mmap(NULL, WORDS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED) {
        r = error_set(e, -errno, "cannot map the step ring: %s", strerror(errno));
        goto fail;
    }
    s->magic = RING_MAGIC;
    s->version = RING_VERSION;
    s->n_ranks = n_ranks;
    s->group_epoch = group_epoch;
    s->coord_epoch = coord_epoch;
    munmap(s, WORDS_BYTES);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) {
        r = error_set(e, -errno, "cannot seal the step ring: %s", strerror(errno));
        goto fail;
    }
    *ret_fd = fd;
    return 0;
fail:
    close(fd);
    return r;
}

/* Size and seals first: without the seals a peer could shrink the file under our mapping (SIGBUS). */
static int check_file(int fd, size_t *ret_bytes, struct error *e) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_set(e, -errno, "the step ring's file descriptor is of no use: %s", strerror(errno));
    int seals = fcntl(fd, F_GET_SEALS);
    if (!S_ISREG(st.st_mode) || seals < 0 ||
            (seals & (F_SEAL_GROW | F_SEAL_SHRINK)) != (F_SEAL_GROW | F_SEAL_SHRINK))
        return error_set(e, -EBADMSG, "the file passed as step ring is not a sealed memfd");
    if (st.st_size < (off_t)ring_bytes(1) || st.st_size > (off_t)ring_bytes(RANKS_MAX))
        return error_set(e, -EBADMSG, "a step ring of %lld bytes, expected %zu to %zu", (long long)st.st_size,
                ring_bytes(1), ring_bytes(RANKS_MAX));
    *ret_bytes = (size_t)st.st_size;
    return 0;
}

static int check_words(const struct step_ring *r, struct error *e) {
    const struct shared *s = r->shared;
    if (s->magic != RING_MAGIC)
        return error_set(e, -EBADMSG, "the file passed as step ring is none");
    if (s->version != RING_VERSION)
        return error_set(e, -EBADMSG,
                "step ring version %u, this build has %u: install the same version everywhere", s->version,
                RING_VERSION);
    if (r->n_ranks == 0 || r->n_ranks > RANKS_MAX || ring_bytes(r->n_ranks) != r->bytes)
        return error_set(
                e, -EBADMSG, "a step ring of %zu bytes says that it has %u ranks", r->bytes, r->n_ranks);
    if (r->rank >= r->n_ranks && r->rank < STEP_RING_OBSERVER)
        return error_set(e, -EINVAL, "rank %u cannot join a step ring of %u ranks", r->rank, r->n_ranks);
    return 0;
}

static int map_copies(struct step_ring *r, struct error *e) {
    if (r->rank == STEP_RING_OBSERVER)
        return 0;
    r->copy_bytes = STEP_RECORD_MAX;
    if (r->rank == STEP_RING_COORDINATOR)
        r->copy_bytes = r->n_ranks * round_up(STEP_COMPLETION_MAX, 64);
    /* Mapped, not malloc'ed: page-aligned, and pages that are never used cost nothing. */
    void *p = mmap(NULL, r->copy_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return error_set(e, -errno, "no memory for a step record: %s", strerror(errno));
    r->copy = p;
    return 0;
}

int step_ring_attach(int fd, uint32_t rank, struct step_ring **ret, struct error *e) {
    size_t bytes = 0;
    int err = check_file(fd, &bytes, e);
    if (err < 0)
        return err;
    struct step_ring *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return error_set(e, -ENOMEM, "no memory for a step ring");
    r->rank = rank;
    r->bytes = bytes;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        err = error_set(e, -errno, "cannot map the step ring: %s", strerror(errno));
        goto fail;
    }
    r->shared = p;
    r->n_ranks = r->shared->n_ranks; /* read once; checked and used from here */
    r->group_epoch = r->shared->group_epoch;
    r->coord_epoch = r->shared->coord_epoch;
    err = check_words(r, e);
    if (err < 0)
        goto fail;
    err = map_copies(r, e);
    if (err < 0)
        goto fail;
    r->plans = (uint8_t *)p + WORDS_BYTES;
    for (uint32_t i = 0; i < r->n_ranks; i++)
        r->completions[i] = r->plans + PLAN_BYTES + (size_t)i * COMPLETION_BYTES;
    *ret = r;
    return 0;
fail:
    step_ring_free(r);
    return err;
}

struct step_ring *step_ring_free(struct step_ring *r) {
    if (r == NULL)
        return NULL;
    if (r->copy != NULL)
        munmap(r->copy, r->copy_bytes);
    if (r->shared != NULL)
        munmap(r->shared, r->bytes);
    free(r);
    return NULL;
}

uint32_t step_ring_ranks(const struct step_ring *r) {
    return r->n_ranks;
}

uint64_t step_ring_group_epoch(const struct step_ring *r) {
    return r->group_epoch;
}

uint64_t step_ring_coord_epoch(const struct step_ring *r) {
    return r->coord_epoch;
}

/* --- frames in a ring --- */

/* Room for a frame of `bytes`: its offset and the head after it. A pad frame is written when it would wrap. */
static int frame_put(uint8_t *ring, uint64_t capacity, uint64_t head, uint64_t tail, uint32_t bytes,
        uint64_t *ret_at, uint64_t *ret_next) {
    if (head - tail > capacity)
        return -EBADMSG;
    uint64_t at = head % capacity, need = FRAME_BYTES + round_up(bytes, FRAME_BYTES), pad = 0;
    if (at + need > capacity)
        pad = capacity - at;
    if (capacity - (head - tail) < pad + need)
        return -EAGAIN;
    if (pad > 0) {
        struct frame f = {.kind = FRAME_PAD, .bytes = (uint32_t)(pad - FRAME_BYTES)};
        memcpy(ring + at, &f, sizeof(f));
        at = 0;
    }
    struct frame f = {.kind = FRAME_DATA, .bytes = bytes};
    memcpy(ring + at, &f, sizeof(f));
    *ret_at = at + FRAME_BYTES;
    *ret_next = head + pad + need;
    return 0;
}

/* The next frame: its bytes copied to `copy` (limit bytes), and the tail after it. */
static int frame_get(const uint8_t *ring, uint64_t capacity, uint64_t head, uint64_t tail, void *copy,
        uint32_t limit, uint32_t *ret_bytes, uint64_t *ret_next) {
    if (head == tail)
        return -EAGAIN;
    for (unsigned i = 0; i < 2; i++) { /* at most one pad before the data */
        struct frame f;
        uint64_t at = tail % capacity, there = head - tail;
        if (there > capacity || there < FRAME_BYTES || tail % FRAME_BYTES != 0)
            return -EBADMSG;
        memcpy(&f, ring + at, sizeof(f));
        uint64_t need = FRAME_BYTES + round_up(f.bytes, FRAME_BYTES);
        if (need > there || at + need > capacity)
            return -EBADMSG;
        if (f.kind == FRAME_PAD) {
            tail += need;
            continue;
        }
        if (f.kind != FRAME_DATA || f.bytes > limit)
            return -EBADMSG;
        memcpy(copy, ring + at + FRAME_BYTES, f.bytes);
        *ret_bytes = f.bytes;
        *ret_next = tail + need;
        return 0;
    }
    return -EBADMSG;
}

/* --- waiting --- */

static void wake(_Atomic uint32_t *word, _Atomic uint32_t *sleeping) {
    atomic_fetch_add(word, 1);
    /* Sequentially consistent on both sides: either we see the sleeper or the sleeper sees the new word. */
    if (atomic_load(sleeping) > 0)
        futex_wake_all(word, /* shared= */ true);
}

static void wake_ranks(struct step_ring *r) {
    wake(&r->shared->ranks_wake, &r->shared->ranks_sleeping);
}

void step_ring_kick(struct step_ring *r) {
    wake(&r->shared->coordinator_wake, &r->shared->coordinator_sleeping);
}

void step_ring_kick_all(struct step_ring *r) {
    wake_ranks(r);
    step_ring_kick(r);
}

int step_ring_wait(struct step_ring *r, uint64_t timeout_ns) {
    bool coordinator = r->rank == STEP_RING_COORDINATOR;
    _Atomic uint32_t *word = coordinator ? &r->shared->coordinator_wake : &r->shared->ranks_wake;
    _Atomic uint32_t *sleeping = coordinator ? &r->shared->coordinator_sleeping : &r->shared->ranks_sleeping;

    for (unsigned i = 0; i < SPINS && timeout_ns > 0 && atomic_load(word) == r->seen; i++)
        spin_pause();
    if (timeout_ns > 0 && atomic_load(word) == r->seen) {
        const uint64_t until_ns = clock_ns() + timeout_ns;
        atomic_fetch_add(sleeping, 1);
        /* Returns at once when the word has moved. An interruption only makes the caller look once more; a wake that
         * was meant for the wait before does not, nor does it put the end off. */
        while (futex_wait_until(word, r->seen, until_ns, /* shared= */ true) == 0 &&
                atomic_load(word) == r->seen)
            continue;
        atomic_fetch_sub(sleeping, 1);
    }
    uint32_t now = atomic_load(word);
    bool news = now != r->seen;
    r->seen = now;
    return news ? 0 : -ETIMEDOUT;
}

/* --- plans --- */

static int slowest_tail(struct step_ring *r, uint64_t *ret) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < r->n_ranks; i++) {
        /* Sequentially consistent: it must not be looked at before plan_blocked is seen to be set. */
        uint64_t behind = r->plan_at - atomic_load(&r->shared->ranks[i].plan_tail);
        if (behind > PLAN_BYTES)
            return -EBADMSG;
        if (behind > most)
            most = behind;
    }
    *ret = r->plan_at - most;
    return 0;
}

int step_ring_reserve(struct step_ring *r, uint32_t bytes, void **ret_record) {
    uint64_t tail, at;
    if (r->rank != STEP_RING_COORDINATOR)
        return -EINVAL;
    if (bytes > STEP_RECORD_MAX)
        return -EMSGSIZE;
    int err = slowest_tail(r, &tail);
    if (err == 0)
        err = frame_put(r->plans, PLAN_BYTES, r->plan_at, tail, bytes, &at, &r->plan_next);
    if (err == -EAGAIN) {
        /* Ask to be woken, then look again: a rank may have released in between. */
        atomic_store(&r->shared->plan_blocked, 1);
        err = slowest_tail(r, &tail);
        if (err == 0)
            err = frame_put(r->plans, PLAN_BYTES, r->plan_at, tail, bytes, &at, &r->plan_next);
    }
    if (err < 0)
        return err;
    r->plan_held = true;
    r->plan_bytes = bytes;
    r->plan_place = at;
    *ret_record = r->plans + at;
    return 0;
}

void step_ring_commit(struct step_ring *r, uint32_t bytes) {
    assert(r->rank == STEP_RING_COORDINATOR && r->plan_held && bytes <= r->plan_bytes);
    if (bytes < r->plan_bytes) { /* less than was reserved: the frame shrinks, and so does its end */
        struct frame f = {.kind = FRAME_DATA, .bytes = bytes};
        memcpy(r->plans + r->plan_place - FRAME_BYTES, &f, sizeof(f));
        r->plan_next -= round_up(r->plan_bytes, FRAME_BYTES) - round_up(bytes, FRAME_BYTES);
    }
    r->plan_at = r->plan_next;
    r->plan_held = false;
    /* The one store that makes the record exist, for all ranks at once. */
    atomic_store_explicit(&r->shared->plan_head, r->plan_at, memory_order_release);
    wake_ranks(r);
}

int step_ring_next(struct step_ring *r, const void **ret_record, uint32_t *ret_bytes) {
    if (r->rank >= r->n_ranks)
        return -EINVAL;
    if (!r->plan_held) {
        uint64_t head = atomic_load_explicit(&r->shared->plan_head, memory_order_acquire);
        int err = frame_get(r->plans, PLAN_BYTES, head, r->plan_at, r->copy, STEP_RECORD_MAX, &r->plan_bytes,
                &r->plan_next);
        if (err < 0)
            return err;
        r->plan_held = true;
    }
    *ret_record = r->copy;
    *ret_bytes = r->plan_bytes;
    return 0;
}

void step_ring_release(struct step_ring *r) {
    assert(r->rank < r->n_ranks && r->plan_held);
    r->plan_at = r->plan_next;
    r->plan_held = false;
    atomic_store(&r->shared->ranks[r->rank].plan_tail, r->plan_at);
    if (atomic_load(&r->shared->plan_blocked) != 0) {
        atomic_store(&r->shared->plan_blocked, 0);
        step_ring_kick(r);
    }
}

/* --- completions --- */

int step_ring_complete(
        struct step_ring *r, const struct step_completion *c, const void *body, uint32_t body_bytes) {
    uint32_t bytes;
    uint64_t at, next;
    if (r->rank >= r->n_ranks)
        return -EINVAL;
    if (__builtin_add_overflow((uint32_t)sizeof(*c), body_bytes, &bytes) || bytes > STEP_COMPLETION_MAX)
        return -EMSGSIZE;
    struct shared_rank *mine = &r->shared->ranks[r->rank];
    uint64_t head = r->completion_at[r->rank];
    int err = frame_put(r->completions[r->rank], COMPLETION_BYTES, head, atomic_load(&mine->completion_tail),
            bytes, &at, &next);
    if (err == -EAGAIN) {
        atomic_store(&mine->completion_blocked, 1);
        err = frame_put(r->completions[r->rank], COMPLETION_BYTES, head, atomic_load(&mine->completion_tail),
                bytes, &at, &next);
    }
    if (err < 0)
        return err;
    struct step_completion header = *c;
    header.magic = STEP_COMPLETION_MAGIC;
    header.protocol = STEP_PROTOCOL;
    header.bytes = bytes;
    header.rank = r->rank;
    header.group_epoch = r->group_epoch;
    header.coord_epoch = r->coord_epoch;
    memcpy(r->completions[r->rank] + at, &header, sizeof(header));
    if (body_bytes > 0)
        memcpy(r->completions[r->rank] + at + sizeof(header), body, body_bytes);
    r->completion_at[r->rank] = next;
    atomic_store_explicit(&mine->completion_head, next, memory_order_release);
    step_ring_kick(r);
    return 0;
}

int step_ring_completion(
        struct step_ring *r, uint32_t rank, const struct step_completion **ret, const void **ret_body) {
    if (r->rank != STEP_RING_COORDINATOR || rank >= r->n_ranks)
        return -EINVAL;
    uint8_t *copy = r->copy + rank * round_up(STEP_COMPLETION_MAX, 64);
    if (!r->completion_held[rank]) {
        uint32_t bytes;
        uint64_t head = atomic_load_explicit(&r->shared->ranks[rank].completion_head, memory_order_acquire);
        int err = frame_get(r->completions[rank], COMPLETION_BYTES, head, r->completion_at[rank], copy,
                STEP_COMPLETION_MAX, &bytes, &r->completion_next[rank]);
        if (err < 0)
            return err;
        if (step_completion_check(copy, bytes, NULL) < 0 || ((struct step_completion *)copy)->rank != rank)
            return -EBADMSG;
        r->completion_held[rank] = true;
    }
    *ret = (const struct step_completion *)copy;
    *ret_body = copy + sizeof(struct step_completion);
    return 0;
}

void step_ring_completion_release(struct step_ring *r, uint32_t rank) {
    assert(r->rank == STEP_RING_COORDINATOR && rank < r->n_ranks && r->completion_held[rank]);
    struct shared_rank *peer = &r->shared->ranks[rank];
    r->completion_at[rank] = r->completion_next[rank];
    r->completion_held[rank] = false;
    atomic_store(&peer->completion_tail, r->completion_at[rank]);
    if (atomic_load(&peer->completion_blocked) != 0) {
        atomic_store(&peer->completion_blocked, 0);
        wake_ranks(r);
    }
}

/* --- progress --- */

void step_ring_progress(struct step_ring *r, uint64_t step, uint32_t layer, uint32_t operation, bool busy) {
    if (r->rank >= r->n_ranks)
        return;
    struct shared_rank *mine = &r->shared->ranks[r->rank];
    atomic_store_explicit(&mine->step, step, memory_order_relaxed);
    atomic_store_explicit(&mine->operation, (uint64_t)layer << 32 | operation, memory_order_relaxed);
    atomic_store_explicit(&mine->busy, busy, memory_order_relaxed);
    atomic_store_explicit(&mine->changes, ++r->progress_changes, memory_order_release);
}

void step_ring_progress_read(const struct step_ring *r, uint32_t rank, struct step_progress *ret) {
    *ret = (struct step_progress){0};
    if (rank >= r->n_ranks)
        return;
    struct shared_rank *peer = &r->shared->ranks[rank];
    ret->changes = atomic_load_explicit(&peer->changes, memory_order_acquire);
    ret->step = atomic_load_explicit(&peer->step, memory_order_relaxed);
    uint64_t operation = atomic_load_explicit(&peer->operation, memory_order_relaxed);
    ret->layer = (uint32_t)(operation >> 32);
    ret->operation = (uint32_t)operation;
    ret->busy = atomic_load_explicit(&peer->busy, memory_order_relaxed) != 0;
}
