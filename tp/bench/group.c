/* group.c - see group.h. */
#include "tp/bench/group.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define WAIT_NS 200000000ull /* then it is looked whether the ranks are still there */

/* --- start and stop --- */

static int start_ranks(const struct rank_options *options, struct group *g, struct error *e) {
    struct rank_options o = *options;
    int r = rank_comm_bytes(options, &g->comm_bytes, e);
    if (r == 0 && g->comm_bytes) {
        g->comm = mmap(NULL, g->comm_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (g->comm == MAP_FAILED) {
            g->comm = NULL;
            r = error_set(e, -errno, "cannot map %zu bytes for the ranks to exchange data", g->comm_bytes);
        }
    }
    o.comm_region = g->comm;
    o.comm_bytes = g->comm_bytes;
    for (uint32_t i = 0; i < g->tp && r == 0; i++) {
        o.rank = i;
        r = worker_rank_start(&g->ranks[i], &o, g->event_fd, e);
        g->n_started = i + 1;
    }
    return r;
}

/* The first rank that failed by itself, or else one that another's failure stopped; NULL = all are well. */
static const struct worker_rank *failed_rank(const struct group *g) {
    const struct worker_rank *found = NULL;
    for (uint32_t i = 0; i < g->n_started; i++) {
        const struct worker_rank *w = &g->ranks[i];
        if (atomic_load(&w->state) != WORKER_RANK_FAILED)
            continue;
        if (!found || found->e.code == -ECANCELED)
            found = w;
    }
    return found;
}

static uint32_t n_failed(const struct group *g) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n_started; i++)
        n += atomic_load(&g->ranks[i].state) == WORKER_RANK_FAILED;
    return n;
}

/* One that was stopped says so before the one that failed by itself has cleaned up: its sentence is waited for. */
static int check_ranks(const struct group *g, struct error *e) {
    const struct worker_rank *bad = failed_rank(g);
    if (!bad || (bad->e.code == -ECANCELED && n_failed(g) < g->n_started))
        return 0;
    *e = bad->e;
    return bad->e.code;
}

static int wait_loaded(const struct group *g, struct error *e) {
    for (;;) {
        uint32_t ready = 0;
        uint64_t changes;
        for (uint32_t i = 0; i < g->tp; i++)
            ready += atomic_load(&g->ranks[i].state) == WORKER_RANK_READY;
        int r = check_ranks(g, e);
        if (r < 0 || ready == g->tp)
            return r;
        if (read(g->event_fd, &changes, sizeof(changes)) < 0 && errno != EINTR)
            return error_set(e, -errno, "eventfd: %s", strerror(errno));
    }
}

static int open_ring(struct group *g, struct error *e) {
    int fd, r = step_ring_create(g->tp, 1, 1, &fd, e);
    if (r < 0)
        return r;
    r = step_ring_attach(fd, STEP_RING_COORDINATOR, &g->ring, e);
    for (uint32_t i = 0; i < g->tp && r == 0; i++) {
        struct step_ring *ring = NULL;
        r = step_ring_attach(fd, i, &ring, e);
        if (r == 0)
            worker_rank_channel(&g->ranks[i], ring);
    }
    close(fd);
    return r;
}

/* --- records --- */

static void begin(struct group *g, enum step_type type) {
    assert(g->in_flight < GROUP_IN_FLIGHT);
    step_begin(g->writer, type, step_ring_group_epoch(g->ring), step_ring_coord_epoch(g->ring), g->step);
}

struct step_writer *group_plan(struct group *g) {
    g->step++;
    begin(g, STEP_TYPE_PLAN);
    return g->writer;
}

int group_send(struct group *g, struct error *e) {
    void *record;
    uint32_t bytes = step_writer_size(g->writer);
    int r = step_ring_reserve(g->ring, bytes, &record);
    if (r == 0)
        r = step_end(g->writer, record, bytes);
    if (r < 0)
        return error_set(e, r, "a plan of %u bytes does not fit: fewer sequences, or a smaller depth", bytes);
    step_ring_commit(g->ring, bytes);
    g->in_flight++;
    return 0;
}

/* The next completion of a rank, waiting for it. */
static int wait_completion(struct group *g, uint32_t rank, const struct step_completion **ret,
        const void **ret_body, struct error *e) {
    for (;;) {
        int r = step_ring_completion(g->ring, rank, ret, ret_body);
        if (r == 0)
            return 0;
        if (r != -EAGAIN)
            return error_set(e, r, "rank %u wrote nonsense into the ring", rank);
        r = check_ranks(g, e);
        if (r < 0)
            return r;
        step_ring_wait(g->ring, WAIT_NS);
    }
}

/* Samples without a token would mean that the rest measures nothing. */
static int read_outcomes(
        struct group *g, const struct step_completion *c, const void *body, struct error *e) {
    const struct step_outcome *o = body;
    for (uint32_t i = 0; i < c->n_outcomes; i++, o = step_outcome_next(o)) {
        if (o->status != STEP_SAMPLE_OK)
            return error_set(
                    e, -EBADMSG, "slot %u: a logit is not a finite number; the weights are damaged", o->slot);
        g->accepted += o->n_accepted;
    }
    return 0;
}

int group_take(struct group *g, uint64_t *ret_compute_ns, struct error *e) {
    uint64_t checksum = 0;
    assert(g->in_flight > 0);
    for (uint32_t i = 0; i < g->tp; i++) {
        const struct step_completion *c;
        const void *body;
        int r = wait_completion(g, i, &c, &body, e);
        if (r < 0)
            return r;
        if (c->status != STEP_STATUS_OK)
            return error_set(e, -EIO, "rank %u: %.*s", i, (int)c->n_outcomes, (const char *)body);
        if (i == 0) {
            checksum = c->checksum;
            if (ret_compute_ns)
                *ret_compute_ns = c->compute_ns;
            r = c->type == STEP_TYPE_PLAN ? read_outcomes(g, c, body, e) : 0;
        } else if (c->type == STEP_TYPE_PLAN && c->checksum != checksum)
            r = error_set(e, -EIO, "rank %u sampled other ids than rank 0", i);
        step_ring_completion_release(g->ring, i);
        if (r < 0)
            return r;
    }
    g->in_flight--;
    return 0;
}

/* Every rank answers with what it can do; all of them can do the least of each. */
static int reset(struct group *g, struct error *e) {
    struct step_geometry *all = &g->geometry;
    begin(g, STEP_TYPE_RESET);
    int r = group_send(g, e);
    for (uint32_t i = 0; i < g->tp && r == 0; i++) {
        const struct step_completion *c;
        const void *body;
        struct step_geometry one;
        r = wait_completion(g, i, &c, &body, e);
        if (r < 0)
            break;
        if (c->status != STEP_STATUS_OK) {
            r = error_set(e, -EIO, "rank %u: %.*s", i, (int)c->n_outcomes, (const char *)body);
            break;
        }
        memcpy(&one, body, sizeof(one));
        if (i == 0)
            *all = one;
        all->slots = one.slots < all->slots ? one.slots : all->slots;
        all->pages = one.pages < all->pages ? one.pages : all->pages;
        if (one.max_model_len < all->max_model_len) {
            all->max_model_len = one.max_model_len;
            all->pages_per_slot = one.pages_per_slot;
        }
        step_ring_completion_release(g->ring, i);
    }
    g->in_flight--;
    return r;
}

int group_start(const struct rank_options *options, struct group *g, struct error *e) {
    *g = (struct group){.tp = options->tp, .event_fd = eventfd(0, EFD_CLOEXEC)};
    if (g->event_fd < 0)
        return error_set(e, -errno, "cannot make an eventfd: %s", strerror(errno));
    g->writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    if (!g->writer)
        return error_set(e, -ENOMEM, "out of memory for plans");
    int r = start_ranks(options, g, e);
    if (r == 0)
        r = wait_loaded(g, e);
    if (r == 0)
        r = open_ring(g, e);
    return r == 0 ? reset(g, e) : r;
}

void group_stop(struct group *g) {
    for (uint32_t i = 0; i < g->n_started; i++) {
        worker_rank_stop(&g->ranks[i]);
        if (failed_rank(g))
            worker_rank_abort(&g->ranks[i]);
    }
    for (uint32_t i = 0; i < g->n_started; i++)
        worker_rank_done(&g->ranks[i]);
    step_ring_free(g->ring);
    free(g->writer);
    if (g->comm)
        munmap(g->comm, g->comm_bytes);
    if (g->event_fd >= 0)
        close(g->event_fd);
    *g = (struct group){.event_fd = -1};
}

const struct rank *group_rank(const struct group *g, uint32_t rank) {
    return g->ranks[rank].rank;
}
