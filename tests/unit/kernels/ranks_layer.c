/* A layer's chain of products on several ranks: what an exchange leaves for the product after it gives the bits of one
 * rank, whatever forms that product takes and however many rows a step has. */
#include "tests/unit/kernels/processes.h"
#include "tests/unit/kernels/quantised.h"

/* I: a leaf of down is three strips, or one. IN: of the large part of `in`, and SMALL of the small one. */
enum { H_MOST = 1120, K = 192, I_MOST = 384, I_LEAST = 128 };
enum { IN = 96, SMALL = 32, ROWS_MOST = 66, STEPS = 2 };
static const uint32_t row_counts[] = {1, 2, 9, 14, 61, ROWS_MOST};
#define COUNTS (sizeof row_counts / sizeof *row_counts)

enum forms { INT4, INT4_AND_BF16, INT4_AND_FP8, BF16, FORMS };
struct group {
    uint32_t tp, h, i;
    enum forms in; /* of the linear after the layer; the others are INT4, or all BF16 */
    void *region;
    struct fake *out, *gate_up, *down, *large, *fp8; /* [H][K], [2I][H], [H][I], [IN][H], [SMALL][H] */
    float *out_16, *gate_up_16, *down_16, *large_16, *small_16; /* the same as floats for BF16 */
    float *norms, *mid, *x;                                     /* [2][H], [ROWS_MOST][K], [ROWS_MOST][H] */
};
struct member {
    struct group *g;
    uint32_t rank, nodes; /* of a graph of the layer of the smallest step */
    float x[COUNTS][ROWS_MOST * H_MOST], y[COUNTS][ROWS_MOST * (IN + SMALL)];
};

/* Rows and columns of a whole matrix that a rank has. */
static struct k_matrix_view part_of(
        const struct fake *q, const float *floats, uint32_t stride, uint32_t first_row, uint32_t rows) {
    return q ? (struct k_matrix_view){.quant = &q->q, .first_row = first_row, .rows = rows}
             : (struct k_matrix_view){.data = floats + (size_t)first_row * stride,
                       .row_stride = stride,
                       .rows = rows,
                       .dtype = K_F32};
}
static struct k_linear *row_parallel(struct world *w, const struct member *m, const struct fake *q,
        const float *floats, uint32_t columns) {
    const uint32_t own = columns / m->g->tp;
    struct k_matrix_view v = part_of(q, floats, columns, 0, m->g->h);
    if (q)
        v.first_column = m->rank * own;
    else
        v.data = (const float *)v.data + m->rank * own;
    return linear_of(w, &v, 1, own, 8 / m->g->tp, NULL);
}
static struct k_linear *gate_up_of(struct world *w, const struct member *m) {
    const struct group *g = m->g;
    const uint32_t own = g->i / g->tp;
    const struct fake *q = g->in == BF16 ? NULL : g->gate_up;
    const struct k_matrix_view v[] = {part_of(q, g->gate_up_16, g->h, m->rank * own, own),
            part_of(q, g->gate_up_16, g->h, g->i + m->rank * own, own)};
    return linear_of(w, v, 2, g->h, 8, NULL);
}
static struct k_linear *in_of(struct world *w, const struct member *m) {
    const struct group *g = m->g;
    const uint32_t own = IN / g->tp, small = SMALL / g->tp;
    const struct k_matrix_view v[] = {
            part_of(g->in == BF16 ? NULL : g->large, g->large_16, g->h, m->rank * own, own),
            part_of(g->in == INT4_AND_FP8 ? g->fp8 : NULL, g->small_16, g->h, m->rank * small, small)};
    return linear_of(w, v, g->in == INT4 ? 1 : 2, g->h, 8, NULL);
}

struct layer {
    struct k_linear *out, *gate_up, *down, *in;
    float *d_norms[2], *d_mid, *d_x, *d_part, *d_between, *d_y;
};
static void queue_layer(struct world *w, const struct layer *l) {
    k_project_residual(w->s, w->m, w->b, l->out, l->d_mid, l->d_part, l->d_x);
    k_norm_gate_up(w->s, w->b, l->d_x, l->d_norms[0], w->shape.rms_eps, l->gate_up, l->d_between);
    k_project_residual(w->s, w->m, w->b, l->down, l->d_between, l->d_part, l->d_x);
    k_norm_project(w->s, w->b, l->d_x, l->d_norms[1], w->shape.rms_eps, l->in, l->d_y);
}
static void layer_make(struct world *w, const struct member *m, struct layer *l) {
    const struct group *g = m->g;
    const bool floats = g->in == BF16;
    *l = (struct layer){.out = row_parallel(w, m, floats ? NULL : g->out, g->out_16, K),
            .gate_up = gate_up_of(w, m),
            .down = row_parallel(w, m, floats ? NULL : g->down, g->down_16, g->i),
            .in = in_of(w, m),
            .d_norms = {dev(w, g->norms, g->h), dev(w, g->norms + g->h, g->h)},
            .d_part = room(w, ROWS_MOST * g->h),
            .d_between = room(w, ROWS_MOST * I_MOST),
            .d_y = room(w, ROWS_MOST * (IN + SMALL))};
    k_linear_then(l->out, l->gate_up, l->d_norms[0], false);
    k_linear_then(l->gate_up, l->down, NULL, true);
    k_linear_then(l->down, l->in, l->d_norms[1], false);
}
/* The step's rows of mid that are this rank's. */
static float *mid_of(struct world *w, const struct member *m) {
    const uint32_t own = K / m->g->tp;
    float *own_mid = calloc(ROWS_MOST * own, sizeof *own_mid);
    for (uint32_t r = 0; r < ROWS_MOST; r++)
        memcpy(own_mid + r * own, m->g->mid + r * K + m->rank * own, own * sizeof *own_mid);
    float *d_mid = dev(w, own_mid, ROWS_MOST * own);
    free(own_mid);
    return d_mid;
}
static void count_nodes(struct world *w, struct member *m, const struct layer *l) {
    struct k_graph *g = NULL;
    OK(k_capture_begin(w->s, e));
    queue_layer(w, l);
    OK(k_capture_end(w->s, &g, e));
    m->nodes = k_runs_behind(w->c) ? k_graph_nodes(g) : 0;
    k_graph_free(g);
}
/* One of its own, as far as there are so many. */
static void take_device(uint32_t rank) {
    struct k_platform p;
    char device[16];
    OK(k_devices(&p, NULL, 0, e));
    snprintf(device, sizeof device, "%u", rank % p.n_devices);
    setenv("SHARDD_TEST_DEVICE", device, /* overwrite= */ 0);
}
static void member_main(struct member *m) {
    const struct group *g = m->g;
    const struct k_shape shape = {.tp = g->tp,
            .rank = m->rank,
            .hidden_size = g->h,
            .vocab_size = 64,
            .vocab_rows = 64 / g->tp,
            .rms_eps = 1e-5f,
            .rope_theta = 1e4,
            .intermediate_size = g->i / g->tp};
    struct world *w = calloc(1, sizeof *w);
    struct layer l;
    take_device(m->rank);
    assert_true(world_open(w, &shape, &pool_1, NULL, 1, g->region));
    layer_make(w, m, &l);
    l.d_mid = mid_of(w, m);
    for (uint32_t i = 0; i < COUNTS; i++) {
        rows_only(w, row_counts[i]);
        if (i == 1) /* more rows than one: none of these products makes its row itself */
            k_batch_bounds(w->b, &(struct k_bounds){.rows = 2, .entries = 2, .context = 8});
        if (row_counts[i] == 1) /* as it is in a bucket of its own */
            k_batch_bounds(w->b, &(struct k_bounds){.rows = 1, .entries = 2, .context = 8});
        l.d_x = dev(w, g->x, ROWS_MOST * g->h);
        if (i == 1)
            count_nodes(w, m, &l);
        for (uint32_t step = 0; step < STEPS; step++)
            queue_layer(w, &l);
        k_download(w->s, m->x[i], l.d_x, (size_t)row_counts[i] * g->h * sizeof(float));
        k_download(w->s, m->y[i], l.d_y, (size_t)row_counts[i] * k_linear_rows(l.in) * sizeof(float));
        OK(k_stream_wait(w->s, 0, e));
    }
    k_linear_free(l.out), k_linear_free(l.gate_up), k_linear_free(l.down), k_linear_free(l.in);
    world_close(w);
    free(w);
}

static int member_of(void *members, uint32_t rank) {
    member_main((struct member *)members + rank);
    return 0;
}
static struct member *run_group(struct group *g) {
    const struct k_shape shape = {.tp = g->tp, .hidden_size = g->h, .vocab_size = 64};
    const size_t bytes = k_comm_region_bytes(&shape, 1024) + 64;
    struct member *m = shared_memory(g->tp * sizeof *m);
    g->region = shared_memory(bytes);
    for (uint32_t r = 0; r < g->tp; r++) {
        m[r].g = g;
        m[r].rank = r;
    }
    processes_run_well(g->tp, member_of, m);
    munmap(g->region, bytes);
    return m;
}

static float *bf16_floats(uint64_t seed, size_t n) {
    float *x = random_floats(seed, n, 0.2f);
    for (size_t i = 0; i < n; i++)
        x[i] = of_bf16(to_bf16(x[i]));
    return x;
}
static struct group group_of(enum forms in, uint32_t h, uint32_t i) {
    const struct fake_kind int4 = {QUANT_INT4, QUANT_SCALE_BF16, 128, false, false},
                           whole = {QUANT_INT4, QUANT_SCALE_BF16, 0, false, false},
                           fp8 = {QUANT_FP8, QUANT_SCALE_F32, 128, false, false};
    return (struct group){.tp = 1,
            .h = h,
            .i = i,
            .in = in,
            .out = fake_make(1, int4, h, K),
            .gate_up = fake_make(2, h == H_MOST ? whole : int4, 2 * i, h),
            .down = fake_make(3, int4, h, i),
            .large = fake_make(4, int4, IN, h),
            .fp8 = fake_make(5, fp8, SMALL, h),
            .out_16 = bf16_floats(1, (size_t)h * K),
            .gate_up_16 = bf16_floats(2, (size_t)2 * i * h),
            .down_16 = bf16_floats(3, (size_t)h * i),
            .large_16 = bf16_floats(4, (size_t)IN * h),
            .small_16 = bf16_floats(5, (size_t)SMALL * h),
            .norms = random_floats(6, 2 * h, 1),
            .mid = random_floats(7, ROWS_MOST * K, 1),
            .x = random_floats(8, ROWS_MOST * h, 1)};
}
static void group_free(struct group *g) {
    fake_free(g->out), fake_free(g->gate_up), fake_free(g->down), fake_free(g->large), fake_free(g->fp8);
    free(g->out_16), free(g->gate_up_16), free(g->down_16), free(g->large_16), free(g->small_16);
    free(g->norms), free(g->mid), free(g->x);
}

/* Rank r's outputs of `in` in a row of all, whose pieces are cut one by one. */
static void same_outputs(const struct member *m, const struct member *alone, uint32_t i, uint32_t row) {
    const uint32_t tp = m->g->tp, small = m->g->in == INT4 ? 0 : SMALL, own = (IN + small) / tp;
    const float *all = alone->y[i] + (size_t)row * (IN + small), *mine = m->y[i] + (size_t)row * own;
    assert_same_floats(mine, all + m->rank * (IN / tp), IN / tp, "outputs");
    assert_same_floats(mine + IN / tp, all + IN + m->rank * (small / tp), small / tp, "outputs in floats");
}
static void layers_give_the_bits_of_one(enum forms in, uint32_t h, uint32_t i_size) {
    struct group g = group_of(in, h, i_size);
    struct member *alone = run_group(&g);
    struct group two = g;
    two.tp = 2;
    struct member *m = run_group(&two);
    for (uint32_t r = 0; r < two.tp; r++) {
        for (uint32_t i = 0; i < COUNTS; i++) {
            assert_same_floats(m[r].x[i], alone->x[i], row_counts[i] * h, "residual");
            for (uint32_t row = 0; row < row_counts[i]; row++)
                same_outputs(&m[r], alone, i, row);
        }
        /* what rounds out's input, out, exchange, gate and up, down, exchange, in */
        if (h == H_MOST && m[r].nodes)
            assert_int_equal(m[r].nodes, 7);
    }
    munmap(alone, sizeof *alone);
    munmap(m, two.tp * sizeof *m);
    group_free(&g);
}
static void test_int4(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4, H_MOST, I_MOST);
}
static void test_short_leaves(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4, 160, I_MOST);
}
static void test_a_small_part_of_bf16(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4_AND_BF16, 160, I_MOST);
}
static void test_a_small_part_of_fp8(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4_AND_FP8, 160, I_MOST);
}
static void test_bf16(void **state) {
    (void)state;
    layers_give_the_bits_of_one(BF16, 160, I_MOST);
}
/* One whose gate and up leave runs of a strip each: what is done first may not lie over what others still read. */
static void test_runs_of_a_strip(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4, H_MOST, I_LEAST);
}
/* Leaves that no thread takes four columns of at once. */
static void test_rows_that_no_exchange_leaves(void **state) {
    (void)state;
    layers_give_the_bits_of_one(INT4_AND_BF16, 8 * 18, I_MOST);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_int4),
            cmocka_unit_test(test_runs_of_a_strip),
            cmocka_unit_test(test_short_leaves),
            cmocka_unit_test(test_a_small_part_of_bf16),
            cmocka_unit_test(test_a_small_part_of_fp8),
            cmocka_unit_test(test_bf16),
            cmocka_unit_test(test_rows_that_no_exchange_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
