/* comm_ways.c - which way the sums of a group go: every way is tried when the ranks meet, with a limit, and measured.
 *
 * Called by comm.c, by all ranks together: what one of them finds, all do. Our kernels need inboxes in memory of the
 * devices or, where a device cannot reach another, of the host; few rows and logits always go through them. NCCL is
 * looked for where it was asked for, or where sums of prompts would go through memory of the host: between devices that
 * reach each other our kernels are faster at every size. A thread watches NCCL, whose kernels know no deadline. */
#include "kernels/cuda/comm_internal.h"

#include "base/clock.h"
#include "kernels/cuda/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TRIAL_SECONDS 4u /* of a wait for a rank; it has just answered */
#define JOIN_SECONDS  60u
#define WATCH_NS      20000000

#define PAIRS_TEXT 1200u

#define TRIAL_ROUNDS  4u /* both parities, again */
#define TRIAL_COLUMNS 1020u
#define SPEED_COLUMNS 5120u
#define SPEED_ROWS    1024u  /* 20 MB */
#define SPEED_SUMS    64u    /* of 20 KB in a graph; 4 of 20 MB */
#define SLOW_SECONDS  300e-6 /* no link between devices: ranks that take turns on one, or an emulated one */

/* What is tried with: a stream of its own, whose faults are not a step's. */
struct trial {
    struct k_stream *s;
    struct k_plan *d_plan;
    float *d_part, *d_x;
    float x[RANKS_MAX * TRIAL_COLUMNS];
};

/* --- right or wrong --- */

static int trial_begin(struct k_comm *m, struct trial *t, size_t floats, struct error *e) {
    *t = (struct trial){.d_plan = k_alloc(m->context, sizeof *t->d_plan),
            .d_part = k_alloc(m->context, floats * sizeof(float)),
            .d_x = k_alloc(m->context, floats * sizeof(float))};
    if (!t->d_plan || !t->d_part || !t->d_x)
        return error_set(
                e, -ENOMEM, "device %d: no memory to try how ranks reach each other", m->context->device);
    return k_stream_create(m->context, &t->s, e);
}
static void trial_end(struct k_comm *m, struct trial *t) {
    k_stream_free(t->s);
    k_free(m->context, t->d_plan);
    k_free(m->context, t->d_part);
    k_free(m->context, t->d_x);
}
static int rows_are(struct trial *t, uint32_t rows, struct error *e) {
    const struct k_plan plan = {.n_rows = rows};
    k_upload(t->s, t->d_plan, &plan, sizeof plan);
    return k_stream_wait(t->s, 0, e);
}

static float pattern(uint32_t rank, uint32_t round, uint32_t i) { /* sums of eight are exact */
    return (float)((rank * 131071 + round * 8191 + i * 7) % 1000003);
}
static int send_pattern(struct k_comm *m, struct trial *t, uint32_t round, struct error *e) {
    float part[TRIAL_COLUMNS];
    for (uint32_t i = 0; i < TRIAL_COLUMNS; i++)
        part[i] = pattern(m->rank, round, i);
    memset(t->x, 0, sizeof t->x);
    k_upload(t->s, t->d_part, part, sizeof part);
    k_upload(t->s, t->d_x, t->x, sizeof t->x);
    return k_stream_wait(t->s, 0, e); /* part is read when this returns */
}
/* What a rank wrote is not here. */
static int lost(struct k_comm *m, uint32_t rank, struct error *e) {
    atomic_fetch_or(&m->region->seats[m->rank].lost, 1u << rank);
    return error_set(e, -EIO, "device %d did not find what device %d wrote", m->context->device,
            m->region->seats[rank].device);
}
/* A wait in vain is for somebody's words, too. */
static void look_who_was_late(struct k_comm *m, const struct trial *t) {
    const struct device_fault *f = t->s ? t->s->found.told : NULL;
    struct seat *own = &m->region->seats[m->rank];
    if (f && f->kind == DEVICE_FAULT_EXCHANGE && f->a == EXCHANGE_LATE && f->c < m->tp)
        atomic_fetch_or(&own->lost, 1u << f->c);
}
/* What everybody has sent, side by side. */
static int try_words(struct k_comm *m, struct trial *t, uint32_t round, struct error *e) {
    struct exchange_gather_args a = {.view = m->view,
            .d_plan = t->d_plan,
            .d_part = t->d_part,
            .d_all = t->d_x,
            .rows = 1,
            .columns = m->tp * TRIAL_COLUMNS,
            .n_most = TRIAL_COLUMNS};
    for (uint32_t r = 0; r < m->tp; r++) {
        a.first[r] = r * TRIAL_COLUMNS;
        a.n[r] = TRIAL_COLUMNS;
    }
    a.view.fault = t->s->found;
    CUDA_QUEUED(t->s, queue_exchange_gather(t->s->stream, &a));
    k_download(t->s, t->x, t->d_x, m->tp * TRIAL_COLUMNS * sizeof(float));
    const int rc = k_stream_wait(t->s, 0, e);
    for (uint32_t i = 0; i < m->tp * TRIAL_COLUMNS && rc == 0; i++)
        if (t->x[i] != pattern(i / TRIAL_COLUMNS, round, i % TRIAL_COLUMNS))
            return lost(m, i / TRIAL_COLUMNS, e);
    return rc;
}
static int check_sum(struct k_comm *m, struct trial *t, uint32_t round, struct error *e) {
    k_download(t->s, t->x, t->d_x, TRIAL_COLUMNS * sizeof(float));
    const int rc = k_stream_wait(t->s, 0, e);
    for (uint32_t i = 0; i < TRIAL_COLUMNS && rc == 0; i++) {
        float sum = 0;
        for (uint32_t r = 0; r < m->tp; r++)
            sum += pattern(r, round, i);
        if (t->x[i] != sum)
            return error_set(e, -EIO, "device %d found a wrong sum", m->context->device);
    }
    return rc;
}
static int try_large(struct k_comm *m, struct trial *t, uint32_t round, struct error *e) {
    struct exchange_add_args a = {.view = m->view,
            .d_plan = t->d_plan,
            .d_part = t->d_part,
            .d_x = t->d_x,
            .rows = 1,
            .columns = TRIAL_COLUMNS};
    a.view.fault = t->s->found;
    CUDA_QUEUED(t->s, queue_exchange_large(t->s->stream, &a));
    return check_sum(m, t, round, e);
}
static int try_nccl(struct k_comm *m, struct trial *t, uint32_t round, struct error *e) {
    comm_queue_sum(t->s, m, t->d_plan, t->d_part, t->d_x, 1, TRIAL_COLUMNS);
    return check_sum(m, t, round, e);
}

typedef int (*try_fn)(struct k_comm *m, struct trial *t, uint32_t round, struct error *e);
/* 0, or what went wrong here. A later try finds nothing of one that failed. */
static int try_rounds(struct k_comm *m, try_fn first, try_fn second, struct error *e) {
    struct trial *t = calloc(1, sizeof *t);
    const uint64_t deadline_ns = m->view.deadline_ns;
    if (!t)
        return error_set(e, -ENOMEM, "no memory to try how ranks reach each other");
    m->view.deadline_ns = TRIAL_SECONDS * UINT64_C(1000000000);
    int rc = trial_begin(m, t, RANKS_MAX * TRIAL_COLUMNS, e);
    rc = rc ? rc : rows_are(t, 1, e);
    const int here = comm_wait_round(m, e);
    rc = here ? here : rc;
    for (uint32_t round = 0; round < TRIAL_ROUNDS && rc == 0; round++) {
        rc = send_pattern(m, t, round, e);
        rc = rc ? rc : first(m, t, round, e);
        rc = rc || !second ? rc : send_pattern(m, t, round, e);
        rc = rc || !second ? rc : second(m, t, round, e);
    }
    if (rc)
        look_who_was_late(m, t);
    trial_end(m, t);
    free(t);
    m->view.deadline_ns = deadline_ns;
    return rc;
}
/* Of the inboxes as they are: 1, 0 and why not in *e, or negative. */
static int try_inboxes(struct k_comm *m, enum stage stage, struct error *e) {
    struct error found = {0};
    const int rc = try_rounds(m, try_words, try_large, &found);
    const int all = comm_ask_all(m, stage, rc == 0, found.text, e);
    if (all != 0)
        return all;
    CUDA_TRY(m->context, cudaMemsetAsync(m->view.d_epochs, 0, EPOCHS_BYTES, m->context->stream), e);
    CUDA_TRY(m->context, cudaStreamSynchronize(m->context->stream), e);
    return 0;
}

/* --- NCCL --- */

static void *watch_main(void *arg) {
    struct k_comm *m = arg;
    const struct timespec pause = {.tv_nsec = WATCH_NS};
    while (!atomic_load(&m->watch_ends)) {
        if (nccl_failed(m->nccl))
            atomic_store(&m->region->aborted, 1);
        if (atomic_load(&m->region->aborted)) {
            nccl_abort(m->nccl);
            return NULL;
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}
static int join(struct k_comm *m, struct error *e) {
    struct error own = {0};
    int rc = nccl_open(&m->nccl, &own);
    int all = comm_ask_all(m, STAGE_LIBRARY, rc == 0, own.text, e);
    if (all != 1)
        return all;
    rc = m->rank == 0 ? nccl_new_id(m->nccl, m->region->nccl_id, &own) : 0;
    all = comm_ask_all(m, STAGE_ID, rc == 0, own.text, e);
    if (all != 1)
        return all;
    m->d_sums = k_alloc(m->context, NCCL_FLOATS * sizeof(float));
    rc = !m->d_sums ? error_set(&own, -ENOMEM, "device %d: no memory for sums of NCCL", m->context->device)
                    : nccl_join(m->nccl, m->region->nccl_id, m->tp, m->rank, &m->region->aborted,
                              JOIN_SECONDS * UINT64_C(1000000000), &own);
    return comm_ask_all(m, STAGE_JOINED, rc == 0, own.text, e);
}
/* 1, 0 and why not in *e, or negative. */
static int start_nccl(struct k_comm *m, struct error *e) {
    const uint64_t least = m->nccl_least;
    struct error own = {0};
    int all = join(m, e);
    if (all == 1) {
        m->watching = pthread_create(&m->watch, NULL, watch_main, m) == 0;
        m->nccl_least = 0;
        const int rc = !m->watching ? error_set(&own, -EAGAIN, "no thread to watch NCCL")
                                    : try_rounds(m, try_nccl, NULL, &own);
        all = comm_ask_all(m, STAGE_SUMMED, rc == 0, own.text, e);
        m->nccl_least = least;
    }
    if (all != 1)
        comm_ways_done(m);
    return all;
}
void comm_ways_done(struct k_comm *m) {
    atomic_store(&m->watch_ends, true);
    if (m->watching)
        pthread_join(m->watch, NULL);
    m->watching = false;
    m->nccl = nccl_close(m->nccl);
    k_free(m->context, m->d_sums);
    m->d_sums = NULL;
}

/* --- speed --- */

struct speed {
    double small, large; /* seconds of a sum of 20 KB, and of 20 MB; large 0: not measured */
};
static int seconds_of(
        struct k_comm *m, struct trial *t, uint32_t rows, uint32_t sums, double *ret, struct error *e) {
    struct k_graph *g = NULL;
    int rc = rows_are(t, rows, e);
    rc = rc ? rc : k_capture_begin(t->s, e);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < sums; i++)
        comm_queue_sum(t->s, m, t->d_plan, t->d_part, t->d_x, rows, SPEED_COLUMNS);
    rc = k_capture_end(t->s, &g, e);
    rc = rc ? rc : comm_wait_round(m, e);
    for (uint32_t i = 0; i < 2 && rc == 0; i++) { /* the second is measured */
        const uint64_t begin = clock_ns();
        k_graph_launch(t->s, g);
        rc = k_stream_wait(t->s, 0, e);
        *ret = (double)(clock_ns() - begin) * 1e-9 / sums;
    }
    k_graph_free(g);
    return rc;
}
/* Whether sums are so fast that many of them may be measured: the same for all ranks. */
static int fast_enough(struct k_comm *m, struct trial *t, struct error *e) {
    double once = 0;
    const int rc = seconds_of(m, t, 1, 1, &once, e);
    return rc < 0 ? rc : comm_ask_all(m, STAGE_MEASURED, once < SLOW_SECONDS, "", e);
}
static int measure_both(
        struct k_comm *m, struct trial *t, struct speed *own, struct speed *nccl, struct error *e) {
    const uint64_t least = m->nccl_least;
    m->nccl_least = UINT64_MAX;
    int rc = fast_enough(m, t, e);
    const bool fast = rc == 1;
    rc = rc < 0 ? rc : 0;
    for (int way = 0; way < 2 && rc == 0 && fast; way++) {
        struct speed *to = way ? nccl : own;
        if (way && !m->nccl)
            break;
        m->nccl_least = way ? 0 : UINT64_MAX;
        rc = seconds_of(m, t, 1, SPEED_SUMS, &to->small, e);
        rc = rc ? rc : seconds_of(m, t, SPEED_ROWS, SPEED_SUMS / 16, &to->large, e);
    }
    m->nccl_least = least;
    return rc;
}
static int measure(struct k_comm *m, struct speed *own, struct speed *nccl, struct error *e) {
    struct trial *t = calloc(1, sizeof *t);
    if (!t)
        return error_set(e, -ENOMEM, "no memory to measure how ranks reach each other");
    struct error own_error = {0};
    const bool room = trial_begin(m, t, (size_t)SPEED_ROWS * SPEED_COLUMNS, &own_error) == 0;
    int rc = comm_ask_all(m, STAGE_ROOM, room, own_error.text, e); /* if there is none, nothing is measured */
    rc = rc == 1 ? measure_both(m, t, own, nccl, e) : rc;
    trial_end(m, t);
    free(t);
    return rc;
}
static void say(struct k_comm *m, const char *way, const struct speed *s) {
    const double bytes = (double)SPEED_ROWS * SPEED_COLUMNS * sizeof(float);
    const size_t n = strlen(m->text);
    if (s->large > 0)
        snprintf(m->text + n, sizeof m->text - n, "%s: 20 KB in %.1f us, 20 MB in %.0f us (%.0f GB/s)", way,
                s->small * 1e6, s->large * 1e6, bytes / s->large * 1e-9);
    else
        snprintf(m->text + n, sizeof m->text - n, "%s", way);
}

/* --- all together --- */

/* Which sums go by the library; rank 0 says it, since clocks differ. */
static int choose(struct k_comm *m, const struct speed *own, const struct speed *nccl, struct error *e) {
    if (m->rank == 0)
        atomic_store(&m->region->nccl_large, nccl->large > 0 && nccl->large < own->large);
    const int rc = comm_ask_all(m, STAGE_CHOSEN, true, "", e);
    if (rc < 0 || m->context->all_reduce != K_ALL_REDUCE_AUTO || !m->nccl)
        return rc < 0 ? rc : 0;
    m->nccl_least = atomic_load(&m->region->nccl_large) ? COMM_LARGE_LEAST : UINT64_MAX;
    if (m->nccl_least == UINT64_MAX)
        comm_ways_done(m);
    return 0;
}
static void tell_pairs(struct k_comm *m) {
    char text[PAIRS_TEXT];
    comm_say_pairs(m, text, sizeof text);
    if (text[0])
        snprintf(m->text + strlen(m->text), sizeof m->text - strlen(m->text), "; %s", text);
}
/* The inboxes that work: *device says where they lie, *e why not in memory of the devices. */
static int find_inboxes(struct k_comm *m, bool *device, struct error *why, struct error *e) {
    char pairs[PAIRS_TEXT];
    int all = *device ? try_inboxes(m, STAGE_TRIED, why) : 0;
    *device = all == 1;
    if (all < 0) {
        *e = *why;
        return all;
    }
    if (!*device && m->context->all_reduce == K_ALL_REDUCE_ONESHOT) {
        comm_say_pairs(m, pairs, sizeof pairs);
        return error_set(e, -ENOTSUP, "--all-reduce oneshot cannot be: %s; %s", why->text, pairs);
    }
    all = *device ? 1 : comm_stage(m, e);
    if (all == 0)
        all = try_inboxes(m, STAGE_STAGED, e);
    return all == 0 ? error_set(e, -EIO, "ranks do not reach each other through memory of the host") : all;
}
int comm_try_ways(struct k_comm *m, bool device, const char *why_not, struct error *e) {
    const enum k_all_reduce asked = m->context->all_reduce;
    struct speed own = {0}, nccl = {0};
    struct error why = {0}, why_nccl = {0};
    error_set(&why, -ENOTSUP, "%s", why_not);
    int rc = find_inboxes(m, &device, &why, e);
    if (rc < 0)
        return rc;
    rc = asked == K_ALL_REDUCE_NCCL || (asked == K_ALL_REDUCE_AUTO && !device) ? start_nccl(m, &why_nccl) : 1;
    if (rc < 0 || (rc == 0 && asked == K_ALL_REDUCE_NCCL)) {
        *e = why_nccl;
        return error_prefix(e, rc < 0 ? rc : -ENOTSUP, "--all-reduce nccl");
    }
    rc = measure(m, &own, &nccl, e);
    rc = rc < 0 || !device ? rc : comm_measure_pairs(m, e);
    if (rc < 0)
        return rc;
    const bool ipc = device && m->inboxes.way == INBOX_IPC;
    say(m,
            ipc      ? "ranks write into each other's memory, by CUDA IPC"
            : device ? "ranks write into each other's memory"
                     : "ranks meet in memory of the host",
            &own);
    if (!device || ipc)
        snprintf(m->text + strlen(m->text), sizeof m->text - strlen(m->text), " (%s)",
                ipc ? m->inboxes.why_ipc : why.text);
    if (m->nccl)
        snprintf(m->text + strlen(m->text), sizeof m->text - strlen(m->text), "; ");
    if (m->nccl)
        say(m, nccl_describe(m->nccl), &nccl);
    const bool tried = m->nccl != NULL;
    rc = choose(m, &own, &nccl, e);
    if (rc == 0 && tried)
        snprintf(m->text + strlen(m->text), sizeof m->text - strlen(m->text), ", which adds %s",
                !m->nccl        ? "nothing"
                : m->nccl_least ? "prompts"
                                : "all");
    if (rc == 0 && m->rank == 0)
        tell_pairs(m);
    return rc;
}
