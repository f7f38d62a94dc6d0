/* comm.c - the group of ranks that share a model: how they meet, and what they exchange.
 *
 * Called by tp/ at the start of a rank, and by the collective operations of product.c and head.c.
 * A rank is a thread or a process of this host, with a device of its own or one that it shares. They meet in the region
 * that tp/ maps into all of them, in stages: what a rank says is in its seat there, and all go on together. Where
 * inboxes lie is comm_inbox.c's, which of the ways works comm_ways.c's, what is sent exchange.h's. */
#include "kernels/cuda/comm_internal.h"

#include "base/clock.h"
#include "kernels/cuda/internal.h"
#include "kernels/shared/pool_layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEET_SECONDS  600u /* until the last rank has loaded */
#define MEET_PAUSE_NS 100000
/* Of a wait for a rank in a step: longer than whoever watches the group has patience. */
#define DEADLINE_SECONDS 30u

size_t k_comm_region_bytes(const struct k_shape *shape, uint32_t rows_max) {
    (void)rows_max; /* longer sums go in pieces */
    return shape->tp == 1 ? 0 : COMM_STAGED_AT + shape->tp * EXCHANGE_INBOX(shape->tp);
}

/* --- meeting --- */

/* What a rank has come to: at a stage, or in a round where stage is STAGES. */
static uint32_t come_to(const struct seat *s, enum stage stage) {
    return atomic_load(stage < STAGES ? &s->answers[stage] : &s->round);
}
/* Until every rank has come to `least` there, or beyond it. */
static int wait_for(const struct k_comm *m, enum stage stage, uint32_t least, struct error *e) {
    const uint64_t begin = clock_ns();
    const struct timespec pause = {.tv_nsec = MEET_PAUSE_NS};
    for (uint32_t r = 0; r < m->tp; r++)
        while (come_to(&m->region->seats[r], stage) < least) {
            if (atomic_load(&m->region->aborted))
                return error_set(
                        e, -ECANCELED, "rank %u: the group was stopped while its ranks met", m->rank);
            if (clock_ns() - begin > MEET_SECONDS * UINT64_C(1000000000))
                return error_set(e, -ETIMEDOUT, "rank %u waited %u s for the other ranks of the group",
                        m->rank, MEET_SECONDS);
            nanosleep(&pause, NULL);
        }
    return 0;
}
int comm_wait_round(struct k_comm *m, struct error *e) {
    atomic_store(&m->region->seats[m->rank].round, ++m->round);
    return wait_for(m, STAGES, m->round, e);
}
int comm_ask_all(struct k_comm *m, enum stage stage, bool yes, const char *why, struct error *e) {
    struct seat *own = &m->region->seats[m->rank];
    if (!yes)
        snprintf(own->why, sizeof own->why, "%s", why);
    atomic_store(&own->answers[stage], yes ? ANSWER_YES : ANSWER_NO);
    const int rc = wait_for(m, stage, ANSWER_YES, e);
    for (uint32_t r = 0; r < m->tp && rc == 0; r++)
        if (atomic_load(&m->region->seats[r].answers[stage]) == ANSWER_NO) {
            error_set(e, -EIO, "%s", m->region->seats[r].why);
            return 0;
        }
    return rc < 0 ? rc : 1;
}

static void take_seat(struct k_comm *m, const struct k_shape *shape) {
    struct seat *own = &m->region->seats[m->rank];
    own->pid = getpid();
    own->device = m->context->device;
    k_device_place((uint32_t)own->device, own->place, sizeof own->place);
    own->vocab_first = shape->vocab_first;
    own->vocab_rows = shape->vocab_rows;
    atomic_store(&own->answers[STAGE_SEATED], ANSWER_YES);
}
static int find_others(struct k_comm *m, struct error *e) {
    void *d_region;
    int all = wait_for(m, STAGE_SEATED, ANSWER_YES, e);
    if (all < 0)
        return all;
    CUDA_TRY(m->context, cudaHostGetDevicePointer(&d_region, m->region, 0), e);
    m->view.aborted = (const uint32_t *)((uint8_t *)d_region + offsetof(struct region, aborted));
    all = comm_reach_devices(m, e);
    return all < 0 ? all : comm_try_ways(m, all == 1, all == 1 ? "" : e->text, e);
}

/* --- making one --- */

static int check_group(
        const struct k_shape *shape, const void *region, size_t region_bytes, struct error *e) {
    const uint32_t tp = shape->tp;
    if ((tp != 1 && tp != 2 && tp != 4 && tp != 8) || shape->rank >= tp)
        return error_set(
                e, -EINVAL, "rank %u of %u; tensor parallel sizes are 1, 2, 4 and 8", shape->rank, tp);
    if (tp > 1 && (!region || region_bytes < k_comm_region_bytes(shape, 0)))
        return error_set(e, -EINVAL, "the shared region of the ranks has %zu bytes and %zu are needed",
                region_bytes, k_comm_region_bytes(shape, 0));
    return 0;
}
static int agree(const struct k_comm *m, const struct k_shape *shape, uint32_t rows_max, struct error *e) {
    uint32_t mine = shape->tp ^ shape->hidden_size * 0x9e3779b1u ^ shape->vocab_size * 0x85ebca6bu ^
                    rows_max * 0xc2b2ae35u;
    uint32_t found = 0;
    mine |= 1;
    if (!atomic_compare_exchange_strong(&m->region->config, &found, mine) && found != mine)
        return error_set(
                e, -EINVAL, "rank %u was started for another model or size than its peers", shape->rank);
    return 0;
}
static int join(struct k_comm *m, const struct k_shape *shape, struct error *e) {
    struct k_context *c = m->context;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    r = comm_pin_region(m, sizeof(struct region), e);
    if (r < 0)
        return r;
    m->view.d_epochs = k_alloc(c, EPOCHS_BYTES);
    if (!m->view.d_epochs)
        return error_set(e, -ENOMEM, "no memory for a communicator on device %d", c->device);
    m->view.d_large_epochs = m->view.d_epochs + EXCHANGE_BLOCKS;
    m->view.d_poisoned = m->view.d_large_epochs + EXCHANGE_LARGE_BLOCKS;
    m->view.rank = m->rank;
    m->view.tp = m->tp;
    m->view.deadline_ns = DEADLINE_SECONDS * UINT64_C(1000000000);
    take_seat(m, shape);
    return 0;
}
int k_comm_create(struct k_context *c, const struct k_shape *shape, uint32_t rows_max, void *region,
        size_t region_bytes, struct k_comm **ret, struct error *e) {
    struct k_comm *m;
    int r = check_group(shape, region, region_bytes, e);
    if (r < 0)
        return r;
    m = calloc(1, sizeof *m);
    if (!m)
        return error_set(e, -ENOMEM, "no memory for a communicator");
    *m = (struct k_comm){.context = c,
            .tp = shape->tp,
            .rank = shape->rank,
            .eps = shape->rms_eps,
            .nccl_least = c->all_reduce == K_ALL_REDUCE_NCCL ? 0 : UINT64_MAX};
    if (shape->tp > 1) {
        m->region = region;
        r = agree(m, shape, rows_max, e);
        if (r == 0)
            r = join(m, shape, e);
    }
    if (r < 0) {
        k_comm_free(m);
        return r;
    }
    *ret = m;
    return 0;
}
int k_comm_meet(struct k_comm *m, struct error *e) {
    int r = m->tp == 1 || m->met ? 0 : context_enter(m->context, e);
    if (r < 0 || m->tp == 1 || m->met)
        return r;
    r = find_others(m, e);
    for (uint32_t i = 0; i < m->tp && r == 0; i++) {
        m->vocab_first[i] = m->region->seats[i].vocab_first;
        m->vocab_rows[i] = m->region->seats[i].vocab_rows;
        if (m->vocab_rows[i] > m->vocab_most)
            m->vocab_most = m->vocab_rows[i];
    }
    m->met = r == 0;
    return r;
}
const char *k_comm_describe(const struct k_comm *m) {
    return m->text;
}
struct k_comm *k_comm_free(struct k_comm *m) {
    if (m && m->region && context_enter(m->context, NULL) == 0) {
        comm_ways_done(m);
        k_free(m->context, m->view.d_epochs); /* waits for the device, which unmapping does not */
        comm_leave_devices(m);
        if (m->pinned)
            cudaHostUnregister(m->region);
    }
    free(m);
    return NULL;
}
void k_comm_abort(struct k_comm *m) {
    if (m->region)
        atomic_store(&m->region->aborted, 1);
}

/* --- exchanges --- */

bool comm_alone(const struct k_comm *m) {
    return m->tp == 1;
}
static uint32_t rows_at_once(uint32_t columns) {
    return EXCHANGE_FLOATS / columns;
}
/* Of `rows` rows in pieces as large as each other. */
static uint32_t rows_of_piece(uint32_t rows, uint32_t columns) {
    const uint32_t most = EXCHANGE_LARGE_FLOATS / columns, pieces = (rows + most - 1) / most;
    return (rows + pieces - 1) / pieces;
}
static bool meet(struct k_stream *s, struct k_comm *m) {
    struct error e;
    if (k_comm_meet(m, &e) == 0)
        return true;
    stream_refused(s, &e);
    return false;
}
/* By the library: summed, or gathered and then added in the order of the tree, a piece at a time. */
static bool queue_nccl_sum(
        struct k_stream *s, struct k_comm *m, const struct exchange_add_args *add, uint32_t rows) {
    const bool sums = m->tp == 2 || m->context->fast;
    const uint32_t most = NCCL_FLOATS / (sums ? 1 : m->tp) / add->columns;
    struct error e;
    struct exchange_sums_args a = {.add = *add, .d_sums = m->d_sums, .n = sums ? 1 : m->tp};
    for (uint32_t first = 0; first < rows; first += most) {
        a.add.first_row = first;
        a.add.rows = rows - first < most ? rows - first : most;
        const float *part = add->d_part + (uint64_t)first * add->columns;
        const size_t n = (size_t)a.add.rows * add->columns;
        const int r = sums ? nccl_sum(m->nccl, s->stream, part, m->d_sums, n, &e)
                           : nccl_gather(m->nccl, s->stream, part, m->d_sums, n, &e);
        if (r < 0) {
            stream_refused(s, &e);
            return false;
        }
        if (!CUDA_QUEUED(s, queue_exchange_sums(s->stream, &a)))
            return false;
    }
    return true;
}
/* A word goes to every other rank, 8 bytes an element each; of more than two ranks a chunk goes in two steps, but 6 to
 * 7 bytes an element in all. */
static bool faster_in_chunks(const struct k_comm *m, uint64_t floats) {
    return m->tp > 2 ? floats * (m->tp - 1) >= 2 * COMM_LARGE_LEAST : floats >= COMM_LARGE_LEAST;
}
bool comm_queue_sum(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, const float *part,
        float *x, uint32_t rows, uint32_t columns) {
    struct exchange_add_args a = {
            .view = m->view, .d_plan = d_plan, .d_part = part, .d_x = x, .columns = columns};
    const uint64_t floats = (uint64_t)rows * columns;
    const bool fours = columns % 4 == 0 && ((uintptr_t)part | (uintptr_t)x) % 16 == 0,
               large = fours && faster_in_chunks(m, floats);
    const uint32_t most = large ? rows_of_piece(rows, columns) : rows_at_once(columns);
    a.view.fault = s->found;
    if (floats >= m->nccl_least && fours)
        return queue_nccl_sum(s, m, &a, rows);
    for (; a.first_row < rows; a.first_row += most) {
        a.rows = rows - a.first_row < most ? rows - a.first_row : most;
        if (!CUDA_QUEUED(s, large ? queue_exchange_large(s->stream, &a) : queue_exchange_add(s->stream, &a)))
            return false;
    }
    return true;
}
void comm_add(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part, float *x,
        uint32_t columns) {
    if (meet(s, m))
        comm_queue_sum(s, m, b->view.d_plan, part, x, b->bounds.rows, columns);
}
bool comm_by_words(const struct k_comm *m, uint64_t floats) {
    return floats < m->nccl_least && (m->tp == 2 || !faster_in_chunks(m, floats));
}
float comm_eps(const struct k_comm *m) {
    return m->eps;
}
bool comm_push(struct k_stream *s, struct k_comm *m, struct push_view *ret) {
    const uint64_t set = EXCHANGE_FLOATS / 2 * (uint64_t)EXCHANGE_WORD_BYTES;
    if (!meet(s, m))
        return false;
    *ret = (struct push_view){.d_epoch = m->view.d_epochs, .d_poisoned = m->view.d_poisoned};
    for (uint32_t r = 0; r < m->tp; r++) {
        uint8_t *d_words = (uint8_t *)m->view.inbox[r] + m->rank * set;
        if (r == m->rank)
            continue;
        ret->words[ret->n][0] = d_words;
        ret->words[ret->n++][1] = d_words + m->tp * set;
    }
    return true;
}
void comm_add_made(struct k_stream *s, struct k_comm *m, const struct comm_add *add, const struct input *in,
        const struct made *made) {
    if (!meet(s, m))
        return;
    struct exchange_rows_args a = {.view = m->view,
            .in = *in,
            .d_part = add->part,
            .d_x = add->x,
            .rows = add->b->bounds.rows,
            .pushed = add->pushed,
            .codes = made->codes,
            .terms = made->terms,
            .order = made->order};
    a.view.fault = s->found;
    if (CUDA_QUEUED(s, queue_exchange_rows(s->stream, &a)))
        s->made = *made;
}
static void queue_gather(
        struct k_stream *s, const struct k_comm *m, struct exchange_gather_args *a, uint32_t rows) {
    const uint32_t most = rows_at_once(a->n_most);
    a->view = m->view;
    a->view.fault = s->found;
    for (; a->first_row < rows; a->first_row += most) {
        a->rows = rows - a->first_row < most ? rows - a->first_row : most;
        if (!CUDA_QUEUED(s, queue_exchange_gather(s->stream, a)))
            return;
    }
}
void comm_gather_vocab(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, uint32_t rows,
        const float *part, float *all, uint32_t columns) {
    if (!meet(s, m))
        return;
    struct exchange_gather_args a = {
            .d_plan = d_plan, .d_part = part, .d_all = all, .columns = columns, .n_most = m->vocab_most};
    memcpy(a.first, m->vocab_first, sizeof a.first);
    memcpy(a.n, m->vocab_rows, sizeof a.n);
    queue_gather(s, m, &a, rows);
}
void comm_gather_shares(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, uint32_t rows,
        const float *part, float *all, uint32_t columns) {
    if (!meet(s, m))
        return;
    struct exchange_gather_args a = {
            .d_plan = d_plan, .d_part = part, .d_all = all, .columns = columns, .n_most = columns / m->tp};
    for (uint32_t r = 0; r < m->tp; r++) {
        a.first[r] = r * a.n_most;
        a.n[r] = a.n_most;
    }
    queue_gather(s, m, &a, rows);
}
