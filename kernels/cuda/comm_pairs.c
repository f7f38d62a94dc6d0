/* comm_pairs.c - a group's pairs of ranks for the log: what lies between their devices, how fast a copy from one to the
 * other is, and which of them lose what is written.
 *
 * Called by comm_ways.c when ranks have found their way, by all of them together. Nothing is decided by it: who has a
 * slow or a broken pair reads here which, and what it usually comes from. */
#include "kernels/cuda/comm_internal.h"

#include "base/clock.h"
#include "base/nvml.h"
#include "kernels/cuda/internal.h"
#include "kernels/cuda/links.h"

#define COPY_LEAST  ((size_t)256 << 10)
#define COPY_MOST   ((size_t)16 << 20)
#define COPY_NS     400000 /* of one that is long enough to say something */
#define SPEED_LEAST 100u   /* MB/s; no link is so slow: devices are emulated */
#define PAIRS_MAX   (RANKS_MAX * (RANKS_MAX - 1) / 2)
_Static_assert(COPY_MOST <= EXCHANGE_LARGE_FLOATS * 4ull, "a copy fits in a parity's values");

/* Values of large sums: who reads there has been told by a signal that they are new, so what is left is nobody's. */
static uint8_t *values_of(const struct k_comm *m, uint32_t rank) {
    return (uint8_t *)m->view.inbox[rank] + EXCHANGE_WORDS(m->tp) + EXCHANGE_SIGNAL_BYTES;
}
static int copy(struct k_comm *m, uint32_t to, size_t bytes, struct error *e) {
    CUDA_TRY(m->context,
            cudaMemcpyAsync(values_of(m, to), values_of(m, m->rank), bytes, cudaMemcpyDeviceToDevice,
                    m->context->stream),
            e);
    CUDA_TRY(m->context, cudaStreamSynchronize(m->context->stream), e);
    return 0;
}
/* Copies of more and more bytes, until one takes so long that its beginning and end do not count. */
static int measure_to(struct k_comm *m, uint32_t to, struct error *e) {
    size_t bytes = COPY_LEAST;
    uint64_t ns = 0;
    int rc = copy(m, to, bytes, e);
    while (rc == 0) {
        const uint64_t begin = clock_ns();
        rc = copy(m, to, bytes, e);
        ns = clock_ns() - begin;
        if (ns >= COPY_NS || bytes == COPY_MOST)
            break;
        bytes *= 4;
    }
    const uint32_t mb_s = (uint32_t)(bytes * UINT64_C(1000) / (ns + 1));
    if (rc == 0 && mb_s >= SPEED_LEAST)
        atomic_store(&m->region->seats[m->rank].mb_s[to], mb_s);
    return rc;
}
static int measure_from_here(struct k_comm *m, struct error *e) {
    int rc = 0;
    for (uint32_t to = 0; to < m->tp && rc == 0; to++)
        if (m->region->seats[to].device != m->context->device)
            rc = measure_to(m, to, e);
    return rc;
}
int comm_measure_pairs(struct k_comm *m, struct error *e) {
    int rc = comm_wait_round(m, e), own = 0;
    for (uint32_t r = 0; r < m->tp && rc == 0; r++) {
        own = r == m->rank ? measure_from_here(m, e) : own;
        rc = comm_wait_round(m, e);
    }
    return rc < 0 ? rc : own;
}

static uint32_t slower(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
static enum pair_state state_of(const struct seat *seats, uint32_t a, uint32_t b) {
    const uint32_t lost = atomic_load(&seats[a].lost) >> b | atomic_load(&seats[b].lost) >> a,
                   unreached = atomic_load(&seats[a].unreached) >> b | atomic_load(&seats[b].unreached) >> a;
    return lost & 1 ? PAIR_LOSES : unreached & 1 ? PAIR_OUT_OF_REACH : PAIR_WELL;
}
void comm_say_pairs(const struct k_comm *m, char *text, size_t size) {
    struct link_pair pairs[PAIRS_MAX];
    const struct seat *seats = m->region->seats;
    struct nvml nvml;
    uint32_t n = 0;
    nvml_look(NULL, &nvml);
    for (uint32_t a = 0; a < m->tp; a++)
        for (uint32_t b = a + 1; b < m->tp; b++) {
            struct link_pair *p = &pairs[n];
            if (seats[a].device == seats[b].device)
                continue;
            *p = (struct link_pair){.a = a,
                    .b = b,
                    .mb_s = slower(atomic_load(&seats[a].mb_s[b]), atomic_load(&seats[b].mb_s[a])),
                    .state = state_of(seats, a, b)};
            link_look("", &nvml, seats[a].place, seats[b].place, &p->link);
            n++;
        }
    nvml_done(&nvml);
    links_text(pairs, n, text, size);
}
