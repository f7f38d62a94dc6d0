/* Exchanges by themselves, without what a group is made of. What a rank tells a slow one: nobody gets two exchanges
 * ahead of a rank that still reads, whatever the exchanges are, and a rank that waits in vain says for whom. Sums of
 * many elements, of two, four and eight ranks.
 *
 * For slow ranks the test plays the other rank: it writes into the inbox of the one that runs, or does not, and looks
 * at what that one has written into its own. Kernels run when the test says so, one after another, in the emulation.
 * For sums each rank is a process. */
#include "kernels/cuda/exchange.h"
#include "tests/unit/kernels/processes.h"
#include "tests/unit/kernels_cuda/sides.h"

enum { COLUMNS = 4, ROWS = 3, WORDS = EXCHANGE_FLOATS / 2 };

struct emulation {
    __typeof__(&cudaStreamCreateWithFlags) stream_create;
    __typeof__(&cudaStreamSynchronize) stream_synchronise;
    __typeof__(&queue_exchange_add) add;
    __typeof__(&queue_exchange_large) large;
    __typeof__(&queue_exchange_gather) gather;
};
static struct emulation emu;
static cudaStream_t stream;

struct word { /* as it lies in an inbox */
    float x;
    uint32_t epoch_x;
    float y;
    uint32_t epoch_y;
};
/* One rank and its peer's inbox. */
struct pair {
    struct word *inboxes[2];
    uint32_t epochs[EXCHANGE_BLOCKS], large_epochs[EXCHANGE_LARGE_BLOCKS], poisoned, aborted, claimed;
    struct device_fault told;
    struct k_plan plan;
    _Alignas(16) float part[ROWS * COLUMNS], x[ROWS * COLUMNS];
    struct exchange_view view;
};

static int open_emulation(void **state) {
    void *so = dlopen(CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    (void)state;
    if (!so)
        fail_msg("%s", dlerror());
    *(void **)&emu.stream_create = dlsym(so, "cudaStreamCreateWithFlags");
    *(void **)&emu.stream_synchronise = dlsym(so, "cudaStreamSynchronize");
    *(void **)&emu.add = dlsym(so, "queue_exchange_add");
    *(void **)&emu.large = dlsym(so, "queue_exchange_large");
    *(void **)&emu.gather = dlsym(so, "queue_exchange_gather");
    assert_true(emu.stream_create && emu.stream_synchronise && emu.add && emu.large && emu.gather);
    return emu.stream_create(&stream, 0);
}

static struct pair *pair_new(uint32_t rank) {
    struct pair *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    memset(p, 0, sizeof *p);
    p->plan.n_rows = ROWS;
    p->view = (struct exchange_view){.d_epochs = p->epochs,
            .d_large_epochs = p->large_epochs,
            .d_poisoned = &p->poisoned,
            .aborted = &p->aborted,
            .fault = {.d_claimed = &p->claimed, .told = &p->told},
            .deadline_ns = 1,
            .rank = rank,
            .tp = 2};
    for (uint32_t r = 0; r < 2; r++)
        p->view.inbox[r] = p->inboxes[r] = calloc(1, EXCHANGE_INBOX(2));
    return p;
}
static void pair_free(struct pair *p) {
    free(p->inboxes[0]), free(p->inboxes[1]);
    free(p);
}
static struct word *words(struct pair *p, uint32_t inbox_of, uint32_t from, uint32_t epoch) {
    return p->inboxes[inbox_of] + ((epoch & 1) * 2 + from) * (size_t)WORDS;
}
/* The peer says its part of an exchange. */
static void peer_says(struct pair *p, uint32_t epoch, uint32_t n, float value) {
    struct word *w = words(p, p->view.rank, 1 - p->view.rank, epoch);
    for (uint32_t i = 0; i < n; i++)
        w[i] = (struct word){value, epoch, value, epoch};
}
/* What has come to the peer: so many words of this exchange. */
static uint32_t peer_finds(struct pair *p, uint32_t epoch) {
    const struct word *w = words(p, 1 - p->view.rank, p->view.rank, epoch);
    uint32_t n = 0;
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++)
        n += w[i].epoch_x == epoch && w[i].epoch_y == epoch;
    return n;
}
static void exchange(struct pair *p, __typeof__(&queue_exchange_add) queue, uint32_t first_row) {
    const struct exchange_add_args a = {.view = p->view,
            .d_plan = &p->plan,
            .d_part = p->part,
            .d_x = p->x,
            .first_row = first_row,
            .rows = ROWS,
            .columns = COLUMNS};
    assert_int_equal(queue(stream, &a), cudaSuccess);
    assert_int_equal(emu.stream_synchronise(stream), cudaSuccess);
}
static void add(struct pair *p, uint32_t first_row) {
    exchange(p, emu.add, first_row);
}
static void large(struct pair *p, uint32_t first_row) {
    exchange(p, emu.large, first_row);
}
/* Columns of the two ranks side by side. */
static void gather(struct pair *p, uint32_t own, uint32_t other) {
    const uint32_t n[2] = {p->view.rank ? other : own, p->view.rank ? own : other};
    const struct exchange_gather_args a = {.view = p->view,
            .d_plan = &p->plan,
            .d_part = p->part,
            .d_all = p->x,
            .rows = ROWS,
            .columns = own + other,
            .first = {0, n[0]},
            .n = {n[0], n[1]},
            .n_most = own > other ? own : other};
    assert_int_equal(emu.gather(stream, &a), cudaSuccess);
    assert_int_equal(emu.stream_synchronise(stream), cudaSuccess);
}
static void assert_late(const struct pair *p, uint32_t epoch) {
    assert_int_equal(p->told.kind, DEVICE_FAULT_EXCHANGE);
    assert_int_equal(p->told.a, EXCHANGE_LATE);
    assert_int_equal(p->told.b, p->view.rank);
    assert_int_equal(p->told.c, 1 - p->view.rank);
    assert_int_equal(p->told.d, epoch);
    assert_int_equal(p->poisoned, 1);
}
static void assert_epochs(const struct pair *p, uint32_t epoch) {
    for (uint32_t k = 0; k < EXCHANGE_BLOCKS; k++)
        assert_int_equal(p->epochs[k], epoch);
}

static void test_an_empty_exchange_is_none(void **state) {
    (void)state;
    for (uint32_t rank = 0; rank < 2; rank++) {
        struct pair *p = pair_new(rank);
        for (uint32_t i = 0; i < ROWS * COLUMNS; i++)
            p->part[i] = 2;
        peer_says(p, 1, ROWS * COLUMNS / 2, 10);
        add(p, 0);
        assert_epochs(p, 1);
        for (uint32_t i = 0; i < ROWS * COLUMNS; i++)
            assert_true(p->x[i] == 12);
        for (int i = 0; i < 3; i++)
            add(p, ROWS + (uint32_t)i); /* rows that the plan does not have */
        assert_epochs(p, 1);
        /* The peer still reads the first, and has not begun the second: nothing of the third may come to it. */
        add(p, 0);
        assert_late(p, 2);
        assert_int_equal(peer_finds(p, 1), ROWS * COLUMNS / 2);
        assert_true(peer_finds(p, 2) > 0); /* of those threads that began before one had given up */
        pair_free(p);
    }
}
static void test_exchanges_of_fewer_rows_wait_too(void **state) {
    (void)state;
    struct pair *p = pair_new(0);
    for (uint32_t epoch = 1; epoch < 9; epoch++) {
        p->plan.n_rows = 1 + epoch % ROWS;
        peer_says(p, epoch, p->plan.n_rows * COLUMNS / 2, 1);
        add(p, 0);
        assert_epochs(p, epoch);
        assert_int_equal(p->poisoned, 0);
    }
    p->plan.n_rows = 1;
    add(p, 0);
    assert_late(p, 9);
    pair_free(p);
}
static void test_a_rank_without_columns_says_so_and_is_waited_for(void **state) {
    struct pair *p = pair_new(0);
    (void)state;
    peer_says(p, 1, 1, 0);
    gather(p, COLUMNS, 0);
    assert_epochs(p, 1);
    assert_int_equal(p->poisoned, 0);
    gather(p, COLUMNS, 0); /* the peer, which has no columns, has not come yet */
    assert_late(p, 2);
    pair_free(p);

    p = pair_new(1);
    peer_says(p, 1, ROWS * COLUMNS / 2, 5);
    gather(p, 0, COLUMNS);
    assert_int_equal(p->poisoned, 0);
    assert_int_equal(peer_finds(p, 1), 1);
    for (uint32_t i = 0; i < ROWS * COLUMNS; i++)
        assert_true(p->x[i] == 5);
    pair_free(p);
}
static void test_nothing_begins_after_one_has_failed(void **state) {
    struct pair *p = pair_new(0);
    (void)state;
    p->aborted = 1;
    add(p, 0);
    assert_int_equal(p->told.a, EXCHANGE_ABORTED);
    const uint32_t epoch = p->epochs[0], found = peer_finds(p, 1) + peer_finds(p, 2);
    peer_says(p, epoch + 1, ROWS * COLUMNS / 2, 1);
    p->aborted = 0;
    add(p, 0);
    gather(p, 1, 1);
    assert_int_equal(p->epochs[0], epoch);
    assert_int_equal(peer_finds(p, 1) + peer_finds(p, 2), found);
    pair_free(p);
}

/* --- large sums, by processes --- */

enum { WIDE = 20, RUNS = 6, LARGE_ROWS = 2000, MOST = LARGE_ROWS * WIDE };
/* Of the plan and of the bound; the last in words, between large ones. Chunks are 1024 floats or more. */
static const struct {
    uint32_t rows, bound;
    bool words;
} runs[RUNS] = {{1, 1, false}, {LARGE_ROWS, LARGE_ROWS, false}, {300, LARGE_ROWS, false}, {7, 9, true},
        {0, 50, false}, {1027, LARGE_ROWS, false}};

static float part_of(uint32_t rank, uint32_t run, uint32_t i) {
    struct rng r = {(uint64_t)i * 64 + run * 8 + rank};
    return ((float)(rng_u32(&r) >> 8) - 8388608.0f) * (rng_u32(&r) % 2 ? 1e-3f : 7.0f);
}
/* The tree over ranks. */
static float sum_of(uint32_t tp, uint32_t run, uint32_t i) {
    float sum[RANKS_MAX];
    for (uint32_t r = 0; r < tp; r++)
        sum[r] = part_of(r, run, i);
    for (uint32_t d = 1; d < tp; d *= 2)
        for (uint32_t r = 0; r < tp; r += 2 * d)
            sum[r] = sum[r] + sum[r + d];
    return sum[0];
}
/* The status of a rank's process: 0, or which run went wrong. */
static int rank_main(uint32_t tp, uint32_t rank, uint8_t *inboxes) {
    struct pair *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    memset(p, 0, sizeof *p);
    float *part = aligned_alloc(64, MOST * sizeof *part), *x = aligned_alloc(64, MOST * sizeof *x);
    p->view = (struct exchange_view){.d_epochs = p->epochs,
            .d_large_epochs = p->large_epochs,
            .d_poisoned = &p->poisoned,
            .aborted = &p->aborted,
            .fault = {.d_claimed = &p->claimed, .told = &p->told},
            .deadline_ns = 60 * UINT64_C(1000000000),
            .rank = rank,
            .tp = tp};
    for (uint32_t r = 0; r < tp; r++)
        p->view.inbox[r] = inboxes + r * EXCHANGE_INBOX(tp);
    for (uint32_t run = 0; run < RUNS; run++) {
        const uint32_t n = runs[run].rows * WIDE, bound = runs[run].bound;
        p->plan.n_rows = runs[run].rows;
        for (uint32_t i = 0; i < MOST; i++) {
            part[i] = part_of(rank, run, i);
            x[i] = 0.5f;
        }
        for (uint32_t first = 0; first < bound; first += bound / 2 + 1) { /* in two pieces */
            const struct exchange_add_args a = {.view = p->view,
                    .d_plan = &p->plan,
                    .d_part = part,
                    .d_x = x,
                    .first_row = first,
                    .rows = bound - first < bound / 2 + 1 ? bound - first : bound / 2 + 1,
                    .columns = WIDE};
            if ((runs[run].words ? emu.add : emu.large)(stream, &a) != cudaSuccess)
                return (int)run + 1;
        }
        if (emu.stream_synchronise(stream) != cudaSuccess || p->poisoned)
            return (int)run + 1;
        for (uint32_t i = 0; i < MOST; i++)
            if (x[i] != (i < n ? 0.5f + sum_of(tp, run, i) : 0.5f))
                return (int)run + 1;
    }
    return 0;
}
struct large_group {
    uint32_t tp;
    uint8_t *inboxes;
};
static int large_rank(void *group, uint32_t rank) {
    const struct large_group *g = group;
    return rank_main(g->tp, rank, g->inboxes);
}
static void test_large_sums_are_the_tree_over_ranks(void **state) {
    (void)state;
    for (uint32_t tp = 2; tp <= RANKS_MAX; tp *= 2) {
        const size_t bytes = tp * EXCHANGE_INBOX(tp);
        struct large_group g = {tp, shared_memory(bytes)};
        processes_run_well(tp, large_rank, &g);
        munmap(g.inboxes, bytes);
    }
}
static void test_a_large_one_waits_and_says_for_whom(void **state) {
    struct pair *p = pair_new(1);
    (void)state;
    large(p, ROWS); /* rows that the plan does not have */
    for (uint32_t k = 0; k < EXCHANGE_LARGE_BLOCKS; k++)
        assert_int_equal(p->large_epochs[k], 0);
    large(p, 0);
    assert_late(p, 1);
    assert_true(memcmp(p->inboxes[0] + (EXCHANGE_WORDS(2) + EXCHANGE_LARGE(2) + EXCHANGE_SIGNAL_BYTES) /
                                               sizeof(struct word),
                        p->part, sizeof p->part) == 0);
    pair_free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_an_empty_exchange_is_none),
            cmocka_unit_test(test_exchanges_of_fewer_rows_wait_too),
            cmocka_unit_test(test_a_rank_without_columns_says_so_and_is_waited_for),
            cmocka_unit_test(test_nothing_begins_after_one_has_failed),
            cmocka_unit_test(test_a_large_one_waits_and_says_for_whom),
            cmocka_unit_test(test_large_sums_are_the_tree_over_ranks),
    };
    return cmocka_run_group_tests(tests, open_emulation, NULL);
}
