/* comm.c - ranks of one host meet in shared memory: a barrier, and areas that each rank writes and all read.
 *
 * Used by k_reduce_residual() here and by head.c. The region is the same bytes in every rank, as threads of
 * one process or in several. There are two sets of areas in turn, so that an exchange needs one barrier: a
 * rank that writes a set again has passed the barrier of the exchange between, which every rank enters after
 * it has read. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define AREA_FLOATS_MAX (256u << 10) /* 1 MiB: longer sums go in pieces */
#define SPINS           2000u
#define WAIT_NS         100000000u /* a sleeping rank looks at the abort flag this often */

struct region {
    atomic_uint config; /* what the ranks must agree on; 0 = fresh */
    atomic_uint aborted, arrived, generation;
    struct {
        atomic_uint first, rows;
    } vocab[RANKS_MAX];
    struct k_result results[HEAD_ROWS];
};
struct k_comm {
    struct region *region; /* NULL at tp 1 */
    float *areas;          /* [2][tp][area_floats] */
    uint64_t area_floats;
    uint32_t tp, rank, set;
};

static uint64_t area_floats(const struct k_shape *h, uint32_t rows_max) {
    uint64_t rows = (uint64_t)rows_max * h->hidden_size;
    uint64_t n = rows < AREA_FLOATS_MAX ? rows : AREA_FLOATS_MAX;
    return ((n > h->vocab_size ? n : h->vocab_size) + 15) & ~UINT64_C(15);
}
size_t k_comm_region_bytes(const struct k_shape *shape, uint32_t rows_max) {
    if (shape->tp == 1)
        return 0;
    return align64(sizeof(struct region)) +
           2 * (uint64_t)shape->tp * area_floats(shape, rows_max) * sizeof(float);
}

int k_comm_create(struct k_context *c, const struct k_shape *shape, uint32_t rows_max, void *region,
        size_t region_bytes, struct k_comm **ret, struct error *e) {
    const uint32_t tp = shape->tp;
    struct k_comm *m;
    (void)c;
    if ((tp != 1 && tp != 2 && tp != 4 && tp != 8) || shape->rank >= tp)
        return error_set(
                e, -EINVAL, "rank %u of %u; tensor parallel sizes are 1, 2, 4 and 8", shape->rank, tp);
    if (tp > 1 && (!region || region_bytes < k_comm_region_bytes(shape, rows_max)))
        return error_set(e, -EINVAL, "the shared region of the ranks has %zu bytes and %zu are needed",
                region_bytes, k_comm_region_bytes(shape, rows_max));
    m = calloc(1, sizeof *m);
    if (!m)
        return error_set(e, -ENOMEM, "no memory for a communicator");
    *m = (struct k_comm){.tp = tp, .rank = shape->rank};
    if (tp > 1) {
        m->region = region;
        m->area_floats = area_floats(shape, rows_max);
        m->areas = (float *)((uint8_t *)region + align64(sizeof(struct region)));
        uint32_t mine = tp ^ shape->hidden_size * 0x9e3779b1u ^ shape->vocab_size * 0x85ebca6bu ^
                        rows_max * 0xc2b2ae35u;
        uint32_t found = 0;
        mine |= 1;
        if (!atomic_compare_exchange_strong(&m->region->config, &found, mine) && found != mine) {
            free(m);
            return error_set(
                    e, -EINVAL, "rank %u was started for another model or size than its peers", shape->rank);
        }
        atomic_store(&m->region->vocab[m->rank].first, shape->vocab_first);
        atomic_store(&m->region->vocab[m->rank].rows, shape->vocab_rows);
    }
    *ret = m;
    return 0;
}
int k_comm_meet(struct k_comm *m, struct error *e) {
    (void)m; /* the region is the way, and who comes first waits in the first barrier */
    (void)e;
    return 0;
}
const char *k_comm_describe(const struct k_comm *m) {
    return m->tp == 1 ? "" : "ranks meet in shared memory";
}
struct k_comm *k_comm_free(struct k_comm *m) {
    free(m);
    return NULL;
}

void k_comm_abort(struct k_comm *m) {
    if (!m->region)
        return;
    atomic_store(&m->region->aborted, 1);
    atomic_fetch_add(&m->region->generation, 1); /* so that nobody falls asleep on the old value */
    futex_wake_all(&m->region->generation, /* shared= */ true);
}

static bool meet(struct region *g, uint32_t tp) {
    uint32_t seen = atomic_load(&g->generation);
    if (atomic_load(&g->aborted))
        return false;
    if (atomic_fetch_add(&g->arrived, 1) + 1 == tp) {
        atomic_store(&g->arrived, 0);
        atomic_fetch_add(&g->generation, 1);
        futex_wake_all(&g->generation, /* shared= */ true);
        return true;
    }
    for (uint32_t i = 0; i < SPINS && atomic_load_explicit(&g->generation, memory_order_acquire) == seen; i++)
        spin_pause();
    while (atomic_load(&g->generation) == seen)
        futex_wait(&g->generation, seen, WAIT_NS, /* shared= */ true);
    return !atomic_load(&g->aborted);
}
bool comm_barrier(struct k_stream *s, struct k_comm *m) {
    if (m->tp == 1 || meet(m->region, m->tp))
        return true;
    stream_fault(s, -ECANCELED, "the group of ranks was stopped while rank %u took part in a step", m->rank);
    return false;
}

void comm_flip(struct k_comm *m) {
    m->set ^= 1;
}
float *comm_area(const struct k_comm *m, uint32_t rank) {
    return m->areas + ((uint64_t)m->set * m->tp + rank) * m->area_floats;
}
uint64_t comm_area_floats(const struct k_comm *m) {
    return m->area_floats;
}
struct k_result *comm_results(const struct k_comm *m) {
    return m->region->results;
}
void comm_vocab(const struct k_comm *m, uint32_t rank, uint32_t *ret_first, uint32_t *ret_rows) {
    *ret_first = atomic_load(&m->region->vocab[rank].first);
    *ret_rows = atomic_load(&m->region->vocab[rank].rows);
}

/* --- reduce --- */

struct reduce_args {
    struct k_comm *m;
    const struct k_batch *b;
    const float *part;
    float *x;
    uint32_t hidden_size;
};

/* x += the top of the tree over ranks: (0+1), ((0+1)+(2+3)), ... */
static void add_ranks(const float *const *from, uint32_t tp, uint64_t n, float *x) {
    for (uint64_t i = 0; i < n; i++) {
        float sum[RANKS_MAX];
        for (uint32_t r = 0; r < tp; r++)
            sum[r] = from[r][i];
        for (uint32_t step = 1; step < tp; step *= 2)
            for (uint32_t r = 0; r < tp; r += 2 * step)
                sum[r] += sum[r + step];
        x[i] += sum[0];
    }
}
static void run_reduce(struct k_stream *s, const void *args) {
    const struct reduce_args *a = args;
    struct k_comm *m = a->m;
    const uint64_t all = (uint64_t)a->b->plan.n_rows * a->hidden_size;
    if (m->tp == 1) {
        for (uint64_t i = 0; i < all; i++)
            a->x[i] += a->part[i];
        return;
    }
    for (uint64_t at = 0; at < all; at += m->area_floats) {
        const uint64_t n = all - at < m->area_floats ? all - at : m->area_floats;
        const float *from[RANKS_MAX];
        comm_flip(m);
        memcpy(comm_area(m, m->rank), a->part + at, n * sizeof(float));
        if (!comm_barrier(s, m))
            return;
        for (uint32_t r = 0; r < m->tp; r++)
            from[r] = comm_area(m, r);
        add_ranks(from, m->tp, n, a->x + at);
    }
}
void k_reduce_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part,
        float *x, uint32_t hidden_size) {
    struct reduce_args a = {m, b, part, x, hidden_size};
    stream_submit(s, run_reduce, &a, sizeof a);
}
void k_project_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *w, const float *in, float *part, float *x) {
    k_project_partial(s, b, w, in, part);
    k_reduce_residual(s, m, b, part, x, k_linear_rows(w));
}
