/* Quantised linears: the bits of the rule on every instruction set, for every format and way to split the work. */
#include "tests/unit/kernels/quantised.h"

#define ROWS_MAX 61u
static const uint32_t row_counts[] = {1, 2, 3, 4, 5, 12, 13, 25, 49, ROWS_MAX};

/* y of one fake in a linear of its own, on every kernel, with 1, 3 and 7 threads, and any number of rows. */
static void every_way(const struct fake *f, uint32_t leaves, bool floats, uint32_t n_counts) {
    const uint32_t k = f->q.columns, rows = f->q.rows, most = row_counts[n_counts - 1];
    float *x = random_floats(k, (size_t)most * k, 2.0f), *y = random_floats(0, (size_t)most * rows, 1.0f);
    float *expected = random_floats(0, (size_t)most * rows, 1.0f),
          *fewer = random_floats(0, (size_t)most * rows, 1.0f);
    struct sum *sums = malloc((size_t)most * rows * sizeof *sums);
    const struct k_matrix_view view = {.quant = &f->q, .rows = rows};
    for (uint32_t r = 0; r < most; r++) {
        for (uint32_t o = 0; o < rows; o++) {
            expected[r * rows + o] = fake_product(f, floats, o, 0, k, leaves, x + (size_t)r * k);
            sums[r * rows + o] = fake_sum(f, o, x + (size_t)r * k);
        }
    }
    for (uint32_t i = 0; i < N_KERNELS * 3; i++) {
        static const uint32_t threads[] = {1, 3, 7};
        struct world w;
        if (!kernels_open(&w, i / 3, threads[i % 3], floats))
            continue;
        if (i % 3 && !on_cpu(&w)) { /* threads are the CPU's */
            world_close(&w);
            continue;
        }
        struct k_linear *l = linear_of(&w, &view, 1, k, leaves, NULL);
        for (uint32_t n = 0; n < n_counts; n++) {
            memset(y, 0xff, (size_t)most * rows * sizeof *y);
            rows_only(&w, row_counts[n]);
            project(&w, l, k, x, y);
            const size_t all = (size_t)row_counts[n] * rows,
                         before = n ? (size_t)row_counts[n - 1] * rows : 0;
            assert_product(&w, floats || f->q.format == QUANT_FP8, k / leaves, y, expected, sums, all,
                    all_kernels[i / 3]);
            assert_same_floats(y, fewer, before, "with fewer rows");
            memcpy(fewer, y, all * sizeof *y);
        }
        k_linear_free(l);
        world_close(&w);
    }
    free(x);
    free(y);
    free(expected);
    free(sums);
    free(fewer);
}

static const struct shape_case {
    uint32_t rows, columns, leaves;
    struct fake_kind kind;
} cases[] = {
        {16, 1024, 8, {QUANT_INT4, QUANT_SCALE_BF16, 128, false, false}},
        {40, 384, 8, {QUANT_INT4, QUANT_SCALE_F16, 128, true, false}},    /* leaves of 48, groups of 128 */
        {17, 3584, 8, {QUANT_INT4, QUANT_SCALE_BF16, 128, false, false}}, /* leaves of 448: seven segments */
        {33, 512, 8, {QUANT_INT4, QUANT_SCALE_F32, 16, true, true}},
        {7, 512, 4, {QUANT_INT4, QUANT_SCALE_BF16, 32, false, true}},
        {20, 768, 2, {QUANT_INT4, QUANT_SCALE_F16, 64, true, false}},
        {1, 300, 1, {QUANT_INT4, QUANT_SCALE_F32, 0, true, false}},
        {19, 72, 8, {QUANT_INT4, QUANT_SCALE_BF16, 16, true, true}}, /* leaves of 9 */
        {50, 1024, 8, {QUANT_INT8, QUANT_SCALE_F16, 128, false, false}},
        {18, 3584, 8, {QUANT_INT8, QUANT_SCALE_F32, 0, false, false}},
        {31, 416, 8, {QUANT_INT8, QUANT_SCALE_BF16, 32, true, true}}, /* leaves of 52 */
        {16, 88, 8, {QUANT_INT8, QUANT_SCALE_F16, 16, false, true}},  /* leaves of 11 */
        {64, 144, 8, {QUANT_INT8, QUANT_SCALE_F32, 64, true, false}}, /* the last group has 16 */
        {20, 1024, 8, {QUANT_FP8, QUANT_SCALE_BF16, 128, false, false}},
        {33, 272, 8, {QUANT_FP8, QUANT_SCALE_F32, 128, false, false}},
        {5, 40, 4, {QUANT_FP8, QUANT_SCALE_F16, 16, false, false}},
};
#define N_CASES (sizeof cases / sizeof *cases)

static void test_every_way_gives_the_rules_bits(void **state) {
    (void)state;
    for (size_t t = 0; t < N_CASES; t++) {
        struct fake *f = fake_make(t, cases[t].kind, cases[t].rows, cases[t].columns);
        every_way(f, cases[t].leaves, false, sizeof row_counts / sizeof *row_counts);
        fake_free(f);
    }
}
static void test_float_activations_follow_the_dense_rule(void **state) {
    (void)state;
    for (size_t t = 0; t < N_CASES; t++) {
        struct fake *f = fake_make(t + 50, cases[t].kind, cases[t].rows, cases[t].columns);
        if (f->q.format != QUANT_FP8)
            every_way(f, cases[t].leaves, true, 8);
        fake_free(f);
    }
}

static void test_random_ragged_shapes(void **state) {
    struct rng r = {2024};
    (void)state;
    for (uint32_t t = 0; t < 40; t++) {
        static const uint32_t groups[] = {16, 32, 48, 64, 128, 256, 0};
        const uint32_t leaves = 1u << rng_u32(&r) % 4, columns = leaves * (1 + rng_u32(&r) % 210);
        const enum quant_format format = (enum quant_format)(rng_u32(&r) % 3);
        const struct fake_kind kind = {format, (enum quant_scale)(rng_u32(&r) % 3), groups[rng_u32(&r) % 7],
                format != QUANT_FP8 && rng_u32(&r) % 2, format != QUANT_FP8 && rng_u32(&r) % 2};
        struct fake *f = fake_make(t, kind, 1 + rng_u32(&r) % 70, columns);
        every_way(f, leaves, rng_u32(&r) % 4 == 0, 6);
        fake_free(f);
    }
}

/* Against real arithmetic: what rounding activations to 127 steps of their run's highest may cost, and little more. */
static void test_close_to_the_matrix_in_double(void **state) {
    (void)state;
    for (size_t t = 0; t < N_CASES; t++) {
        const uint32_t k = cases[t].columns, leaf = k / cases[t].leaves;
        struct fake *f = fake_make(t, cases[t].kind, cases[t].rows, k);
        float *x = random_floats(t, k, 3.0f), *y = random_floats(0, cases[t].rows, 1.0f);
        const struct k_matrix_view view = {.quant = &f->q, .rows = f->q.rows};
        for (int floats = 0; floats < 2; floats++) {
            struct world w;
            assert_true(kernels_open(&w, 0, 2, floats));
            struct k_linear *l = linear_of(&w, &view, 1, k, cases[t].leaves, NULL);
            rows_only(&w, 1);
            project(&w, l, k, x, y);
            for (uint32_t o = 0; o < f->q.rows; o++) {
                double sum = 0, size = 0, rounding = 0;
                for (uint32_t i = 0; i < k; i++) {
                    const uint32_t run = i / leaf * leaf + i % leaf / 128 * 128, end = i / leaf * leaf + leaf;
                    const double v = fake_value(f, o, i);
                    sum += v * x[i];
                    size += fabs(v * x[i]);
                    rounding += fabs(v) * run_scale(x + run, end - run < 128 ? end - run : 128) / 2;
                }
                if (floats || f->q.format == QUANT_FP8)
                    rounding = 0;
                if (fabs(y[o] - sum) > rounding * 1.001 + size * 2e-5)
                    fail_msg("case %zu, output %u: %.9g, expected %.9g", t, o, (double)y[o], sum);
            }
            k_linear_free(l);
            world_close(&w);
        }
        free(x);
        free(y);
        fake_free(f);
    }
}

static void test_zero_and_broken_activations(void **state) {
    struct fake *f = fake_make(3, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 32, true, true}, 20, 256);
    const struct k_matrix_view view = {.quant = &f->q, .rows = 20};
    (void)state;
    for (uint32_t i = 0; i < N_KERNELS; i++) {
        struct world w;
        float x[4 * 256] = {0}, y[4 * 20];
        if (!kernels_open(&w, i, 2, false))
            continue;
        struct k_linear *l = linear_of(&w, &view, 1, 256, 8, NULL);
        x[256 + 3] = NAN;
        x[512 + 200] = -INFINITY;
        x[768 + 9] = 1e-44f; /* 127 steps of this are zero */
        rows_only(&w, 4);
        project(&w, l, 256, x, y);
        for (uint32_t o = 0; o < 20; o++) {
            assert_true(y[o] == 0 && y[60 + o] == 0);
            assert_true(isnan(y[20 + o]) && isnan(y[40 + o]));
        }
        k_linear_free(l);
        world_close(&w);
    }
    fake_free(f);
}

/* A row-parallel linear on 2, 4 and 8 ranks: each its leaves, the top of the tree in rank order. */
static void test_leaves_of_ranks_make_the_whole(void **state) {
    (void)state;
    for (size_t t = 0; t < N_CASES; t++) {
        const struct shape_case *c = &cases[t];
        if (c->leaves != 8)
            continue;
        struct fake *f = fake_make(t, c->kind, c->rows, c->columns);
        float *x = random_floats(t, (size_t)5 * c->columns, 1.0f),
              *whole = random_floats(0, 5 * c->rows, 1.0f);
        struct world w;
        assert_true(kernels_open(&w, 2, 2, t % 2) || kernels_open(&w, 0, 2, t % 2));
        struct k_matrix_view view = {.quant = &f->q, .rows = c->rows};
        struct k_linear *l = linear_of(&w, &view, 1, c->columns, 8, NULL);
        rows_only(&w, 5);
        project(&w, l, c->columns, x, whole);
        k_linear_free(l);
        for (uint32_t tp = 2; tp <= 8; tp *= 2) {
            const uint32_t part_columns = c->columns / tp;
            float *part = random_floats(0, (size_t)8 * 5 * c->rows, 1.0f),
                  *mine = random_floats(0, (size_t)5 * part_columns, 1.0f);
            for (uint32_t rank = 0; rank < tp; rank++) {
                view.first_column = rank * part_columns;
                for (uint32_t r = 0; r < 5; r++)
                    memcpy(mine + r * part_columns, x + r * c->columns + view.first_column,
                            part_columns * sizeof *x);
                l = linear_of(&w, &view, 1, part_columns, 8 / tp, NULL);
                project_partial(&w, l, part_columns, mine, part + (size_t)rank * 5 * c->rows);
                k_linear_free(l);
            }
            for (uint32_t i = 0; i < 5 * c->rows; i++) {
                float ranks[8];
                for (uint32_t rank = 0; rank < tp; rank++)
                    ranks[rank] = part[(size_t)rank * 5 * c->rows + i];
                part[i] = tree(ranks, tp);
            }
            assert_same_floats(part, whole, 5 * c->rows, "ranks");
            free(part);
            free(mine);
        }
        world_close(&w);
        free(x);
        free(whole);
        fake_free(f);
    }
}

/* --- several pieces --- */

static void test_pieces_of_all_formats_in_one_linear(void **state) {
    enum { K = 384, R = 20, DENSE = 24 };
    struct fake *f[4] = {
            fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 128, false, false}, 37, K),
            fake_make(2, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F16, 32, true, false}, 16, K),
            fake_make(3, (struct fake_kind){QUANT_FP8, QUANT_SCALE_F32, 128, false, false}, 9, K),
            fake_make(4, (struct fake_kind){QUANT_INT4, QUANT_SCALE_F32, 32, true, true}, 50, K)};
    float *dense = random_floats(9, DENSE * K, 1.0f), *x = random_floats(1, R * K, 1.0f);
    const struct k_matrix_view views[] = {{.quant = &f[0]->q, .rows = 37},
            {.data = dense, .row_stride = K, .rows = DENSE, .dtype = K_F32}, {.quant = &f[1]->q, .rows = 16},
            {.quant = &f[2]->q, .rows = 9}, {.quant = &f[3]->q, .rows = 50}};
    enum { ALL = 37 + DENSE + 16 + 9 + 50 };
    float *y = random_floats(0, R * ALL, 1.0f), *alone = random_floats(0, R * 64, 1.0f);
    (void)state;
    for (uint32_t i = 0; i < N_KERNELS * 2; i++) {
        struct world w;
        if (!kernels_open(&w, i / 2, 1 + i % 3, i % 2))
            continue;
        struct k_linear *l = linear_of(&w, views, 5, K, 8, NULL);
        assert_int_equal(k_linear_rows(l), ALL);
        for (uint32_t n = 1; n <= R; n += 6) {
            rows_only(&w, n);
            project(&w, l, K, x, y);
            for (uint32_t p = 0, at = 0; p < 5; at += views[p++].rows) {
                struct k_linear *one = linear_of(&w, &views[p], 1, K, 8, NULL);
                project(&w, one, K, x, alone);
                for (uint32_t r = 0; r < n; r++)
                    assert_same_floats(
                            y + r * ALL + at, alone + r * views[p].rows, views[p].rows, "a piece alone");
                k_linear_free(one);
            }
            OK(k_stream_wait(w.s, 0, e));
        }
        k_linear_free(l);
        world_close(&w);
    }
    for (int i = 0; i < 4; i++)
        fake_free(f[i]);
    free(dense);
    free(x);
    free(y);
    free(alone);
}

static void gate_up(const struct k_matrix_view *views, uint32_t k, uint32_t rows) {
    enum { R = 30 };
    float *x = random_floats(1, R * k, 2.0f), *norm = random_floats(2, k, 1.0f),
          *y = random_floats(0, R * rows, 1.0f), *both = random_floats(0, R * 2 * rows, 1.0f);
    double fused[128];
    for (uint32_t i = 0; i < N_KERNELS * 2; i++) {
        struct world w;
        if (!kernels_open(&w, i / 2, 1 + i % 3, i % 2))
            continue;
        struct k_linear *l = linear_of(&w, views, 2, k, 8, NULL);
        for (uint32_t n = 1; n <= R; n = n < 4 ? n + 1 : n + 13) {
            rows_only(&w, n);
            norm_project(&w, l, k, x, norm, both);
            norm_gate_up(&w, l, k, x, norm, y);
            OK(k_stream_wait(w.s, 0, e));
            for (uint32_t r = 0; r < n; r++) {
                const float *g = both + (size_t)r * 2 * rows;
                for (uint32_t o = 0; o < rows; o++)
                    fused[o] = (double)g[o] / (1 + exp(-(double)g[o])) * g[rows + o];
                assert_near(y + r * rows, fused, rows, 1e-6, "gate and up");
            }
        }
        k_linear_free(l);
        world_close(&w);
    }
    free(x);
    free(norm);
    free(y);
    free(both);
}
static void test_gate_and_up_of_different_formats(void **state) {
    enum { K = 128, I = 83 };
    struct fake *a = fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 32, false, false}, I, K),
                *b = fake_make(2, (struct fake_kind){QUANT_INT8, QUANT_SCALE_BF16, 0, false, false}, I, K),
                *c = fake_make(3, (struct fake_kind){QUANT_FP8, QUANT_SCALE_BF16, 128, false, false}, I, K);
    float *dense = random_floats(9, I * K, 1.0f);
    const struct k_matrix_view d = {.data = dense, .row_stride = K, .rows = I, .dtype = K_F32},
                               va = {.quant = &a->q, .rows = I}, vb = {.quant = &b->q, .rows = I},
                               vc = {.quant = &c->q, .rows = I};
    const struct k_matrix_view pairs[][2] = {{va, va}, {va, vb}, {d, va}, {vb, d}, {vc, va}, {vc, vc}};
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        gate_up(pairs[i], K, I);
    fake_free(a);
    fake_free(b);
    fake_free(c);
    free(dense);
}

/* --- orders --- */

static uint32_t *shuffled(uint64_t seed, uint32_t n) {
    struct rng r = {seed};
    uint32_t *order = malloc(n * sizeof *order);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = rng_u32(&r) % (i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    return order;
}

static void test_an_order_gathers_the_input(void **state) {
    enum { K = 256, R = 17, A = 21, B = 30 };
    uint32_t *order = shuffled(5, K);
    struct fake *f = fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 64, true, false}, A, K);
    float *dense = random_floats(2, B * K, 1.0f), *x = random_floats(3, R * K, 1.0f),
          *gathered = random_floats(0, R * K, 1.0f), *moved = random_floats(0, B * K, 1.0f);
    float y[R * (A + B)], expected[R * (A + B)];
    f->q.order = memcpy(malloc(K * sizeof *order), order, K * sizeof *order);
    for (uint32_t k = 0; k < K; k++) {
        for (uint32_t r = 0; r < R; r++)
            gathered[r * K + k] = x[r * K + order[k]];
        for (uint32_t r = 0; r < B; r++)
            moved[r * K + k] = dense[r * K + order[k]];
    }
    const struct k_matrix_view views[] = {
            {.quant = &f->q, .rows = A}, {.data = dense, .row_stride = K, .rows = B, .dtype = K_F32}};
    const struct k_matrix_view by_hand[] = {
            {.quant = &f->q, .rows = A}, {.data = moved, .row_stride = K, .rows = B, .dtype = K_F32}};
    (void)state;
    for (uint32_t i = 0; i < N_KERNELS * 2; i++) {
        struct world w;
        if (!kernels_open(&w, i / 2, 1 + i % 2, i % 2))
            continue;
        struct k_linear *l = linear_of(&w, views, 2, K, 8, order), *m = linear_of(&w, by_hand, 2, K, 8, NULL);
        for (uint32_t n = 1; n <= R; n += 4) {
            rows_only(&w, n);
            project(&w, l, K, x, y);
            project(&w, m, K, gathered, expected);
            assert_same_floats(y, expected, n * (A + B), "an order");
        }
        k_linear_free(l);
        k_linear_free(m);
        world_close(&w);
    }
    free(order);
    free(dense);
    free(x);
    free(gathered);
    free(moved);
    fake_free(f);
}

/* y = norm(x), by the operation that does only that. */
static void norm_rows(const float *x, const float *norm, uint32_t rows, uint32_t columns, float *y) {
    const struct k_shape shape = {.tp = 1,
            .hidden_size = columns,
            .vocab_size = 64,
            .vocab_rows = 64,
            .rms_eps = 1e-6f,
            .rope_theta = 1e4};
    struct world w;
    assert_true(world_open(&w, &shape, &pool_1, NULL, 1, NULL));
    rows_only(&w, rows);
    float *to = room(&w, (size_t)rows * columns);
    k_final_norm(w.s, w.p, w.b, dev(&w, x, (size_t)rows * columns), dev(&w, norm, columns), 1e-6f, to,
            /* keep= */ true);
    fetch(&w, y, to, (size_t)rows * columns * sizeof *y);
    world_close(&w);
}

/* With a norm: the norm's weights belong to the input, not to the positions. */
static void test_an_order_comes_after_the_norm(void **state) {
    enum { K = 128, A = 16 };
    uint32_t *order = shuffled(6, K);
    struct fake *f = fake_make(1, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F32, 32, false, false}, A, K);
    float *x = random_floats(3, 5 * K, 1.0f), *norm = random_floats(4, K, 1.0f), all[5 * K], normed[5 * K],
          y[5 * A], expected[5 * A];
    const struct k_matrix_view plain = {.quant = &f->q, .rows = A};
    struct world w;
    (void)state;
    assert_true(kernels_open(&w, 0, 2, false));
    struct k_linear *m = linear_of(&w, &plain, 1, K, 8, NULL);
    f->q.order = memcpy(malloc(K * sizeof *order), order, K * sizeof *order);
    struct k_linear *l = linear_of(&w, &plain, 1, K, 8, order);
    norm_rows(x, norm, 5, K, all);
    for (uint32_t i = 0; i < 5 * K; i++)
        normed[i] = all[i / K * K + order[i % K]];
    for (uint32_t n = 1; n <= 5; n += 2) {
        rows_only(&w, n);
        norm_project(&w, l, K, x, norm, y);
        project(&w, m, K, normed, expected);
        assert_same_floats(y, expected, n * A, "norm, then order");
    }
    k_linear_free(l);
    k_linear_free(m);
    world_close(&w);
    free(order);
    free(x);
    free(norm);
    fake_free(f);
}

static void test_rows_in_another_order(void **state) {
    enum { K = 128, ALL = 60, A = 35 };
    uint32_t *rows = shuffled(7, ALL);
    struct fake *f = fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_F16, 32, true, true}, ALL, K);
    float *dense = random_floats(9, ALL * K, 1.0f), *x = random_floats(3, K, 1.0f), y[2 * A];
    const struct k_matrix_view views[] = {{.quant = &f->q, .rows = A, .row_order = rows},
            {.data = dense, .row_stride = K, .rows = A, .dtype = K_F32, .row_order = rows}};
    const struct k_matrix_view whole[] = {
            {.quant = &f->q, .rows = ALL}, {.data = dense, .row_stride = K, .rows = ALL, .dtype = K_F32}};
    float expected[2 * ALL];
    struct world w;
    (void)state;
    assert_true(kernels_open(&w, 0, 2, false));
    struct k_linear *l = linear_of(&w, views, 2, K, 8, NULL), *m = linear_of(&w, whole, 2, K, 8, NULL);
    rows_only(&w, 1);
    project(&w, l, K, x, y);
    project(&w, m, K, x, expected);
    for (uint32_t o = 0; o < A; o++) {
        assert_same_floats(&y[o], &expected[rows[o]], 1, "a quantised row");
        assert_same_floats(&y[A + o], &expected[ALL + rows[o]], 1, "a dense row");
    }
    k_linear_free(l);
    k_linear_free(m);
    world_close(&w);
    free(rows);
    free(dense);
    free(x);
    fake_free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_every_way_gives_the_rules_bits),
            cmocka_unit_test(test_float_activations_follow_the_dense_rule),
            cmocka_unit_test(test_random_ragged_shapes),
            cmocka_unit_test(test_close_to_the_matrix_in_double),
            cmocka_unit_test(test_zero_and_broken_activations),
            cmocka_unit_test(test_leaves_of_ranks_make_the_whole),
            cmocka_unit_test(test_pieces_of_all_formats_in_one_linear),
            cmocka_unit_test(test_gate_and_up_of_different_formats),
            cmocka_unit_test(test_an_order_gathers_the_input),
            cmocka_unit_test(test_an_order_comes_after_the_norm),
            cmocka_unit_test(test_rows_in_another_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
