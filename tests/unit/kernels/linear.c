/* Linear products: packing, the bit rule, every way to split the work. */
#include "tests/unit/kernels/fixture.h"

struct piece {
    uint32_t rows;
    enum k_dtype dtype;
};

/* A matrix of several pieces in a checkpoint's layout, and its values as doubles. */
struct matrix {
    struct k_matrix_view views[8];
    void *data[8];
    double *w; /* [rows][columns] */
    uint32_t n, rows, columns;
};

static uint16_t f16_bits(float x) { /* x is a multiple of 1/512 in (-2, 2): exact in half precision */
    uint32_t b;
    memcpy(&b, &x, 4);
    if ((b & 0x7fffffff) == 0)
        return (uint16_t)(b >> 16);
    return (uint16_t)((b >> 16 & 0x8000) | (((b & 0x7fffffff) - 0x38000000) >> 13));
}

static void matrix_make(
        struct matrix *m, uint64_t seed, const struct piece *pieces, uint32_t n, uint32_t columns) {
    struct rng r = {seed};
    memset(m, 0, sizeof *m);
    m->n = n;
    m->columns = columns;
    for (uint32_t i = 0; i < n; i++)
        m->rows += pieces[i].rows;
    m->w = calloc((size_t)m->rows * columns, sizeof *m->w);
    double *w = m->w;
    for (uint32_t i = 0; i < n; i++) {
        size_t size = k_dtype_bytes(pieces[i].dtype), count = (size_t)pieces[i].rows * columns;
        uint8_t *to = m->data[i] = malloc(count * size);
        for (size_t j = 0; j < count; j++) {
            float x = rng_float(&r, 1.0f);
            uint16_t half = to_bf16(x);
            if (pieces[i].dtype == K_BF16) {
                x = of_bf16(half);
            } else if (pieces[i].dtype == K_F16) {
                x = (float)((int)(x * 512)) / 512;
                half = f16_bits(x);
            }
            memcpy(to + j * size, size == 4 ? (void *)&x : (void *)&half, size);
            *w++ = x;
        }
        m->views[i] = (struct k_matrix_view){
                .data = to, .row_stride = columns, .rows = pieces[i].rows, .dtype = pieces[i].dtype};
    }
}
static void matrix_free(struct matrix *m) {
    for (uint32_t i = 0; i < m->n; i++)
        free(m->data[i]);
    free(m->w);
}

static const struct k_shape shape_1 = {.tp = 1,
        .hidden_size = 64,
        .vocab_size = 64,
        .vocab_rows = 64,
        .rms_eps = 1e-6f,
        .rope_theta = 1e4,
        .intermediate_size = 4096};
static const struct k_pool_options pool_1 = {.slots = 2, .pages = 1, .pages_per_slot = 1};

/* n rows of some more that operations may expect: a GPU has kernels for few and for many. */
static void rows_only(struct world *w, uint32_t n) {
    step_new(w);
    if (n)
        step_prompt(w, 1, 0, n, 1);
    k_batch_bounds(w->b, &(struct k_bounds){.rows = n + 3, .entries = 2, .context = n + 1});
    step_begin_now(w);
}

static struct k_linear *packed(struct world *w, const struct matrix *m, uint32_t leaves) {
    struct k_linear *l = NULL;
    struct k_linear_spec spec = {
            .pieces = m->views, .n_pieces = m->n, .columns = m->columns, .leaves = leaves, .name = "test"};
    OK(k_linear_pack(w->c, &spec, &l, e));
    assert_int_equal(k_linear_rows(l), m->rows);
    return l;
}

/* The rule, in the plainest words. */
static float by_the_rule(const double *w, const float *x, uint32_t columns, uint32_t leaves) {
    float sum[8] = {0};
    for (uint32_t l = 0; l < leaves; l++)
        for (uint32_t k = l * (columns / leaves); k < (l + 1) * (columns / leaves); k++)
            sum[l] = fmaf((float)w[k], x[k], sum[l]);
    for (uint32_t step = 1; step < leaves; step *= 2)
        for (uint32_t l = 0; l < leaves; l += 2 * step)
            sum[l] += sum[l + step];
    return sum[0];
}

static struct sum sum_of(const double *w, const float *x, uint32_t columns) {
    struct sum s = {0};
    for (uint32_t k = 0; k < columns; k++) {
        s.exact += w[k] * x[k];
        s.size += fabs(w[k] * x[k]);
    }
    return s;
}

static void test_every_way_gives_the_rules_bits(void **state) {
    static const struct {
        uint32_t n, columns, leaves;
        struct piece pieces[4];
    } cases[] = {
            {1, 64, 8, {{16, K_BF16}}},
            {1, 1024, 8, {{200, K_BF16}}},
            {4, 80, 8, {{33, K_BF16}, {7, K_F32}, {48, K_F16}, {1, K_BF16}}},
            {2, 96, 4, {{40, K_F32}, {3, K_F32}}},
            {2, 136, 2, {{130, K_F16}, {20, K_BF16}}},
            {1, 300, 1, {{300, K_BF16}}},
    };
    static const uint32_t row_counts[] = {1, 2, 3, 4, 5, 11, 12, 13, 25, 61, 100};
    (void)state;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        struct matrix m;
        matrix_make(&m, t + 1, cases[t].pieces, cases[t].n, cases[t].columns);
        float *x = random_floats(t, (size_t)100 * m.columns, 2.0f),
              *y = random_floats(0, (size_t)100 * m.rows, 1.0f);
        float *expected = random_floats(0, (size_t)100 * m.rows, 1.0f),
              *fewer = random_floats(0, (size_t)100 * m.rows, 1.0f);
        struct sum *sums = malloc((size_t)100 * m.rows * sizeof *sums);
        for (uint32_t r = 0; r < 100; r++) {
            for (uint32_t o = 0; o < m.rows; o++) {
                const double *row = m.w + (size_t)o * m.columns;
                const float *in = x + (size_t)r * m.columns;
                expected[r * m.rows + o] = by_the_rule(row, in, m.columns, cases[t].leaves);
                sums[r * m.rows + o] = sum_of(row, in, m.columns);
            }
        }
        for (uint32_t i = 0; i < N_ISAS * 3; i++) {
            struct world w;
            if (!world_open(&w, &shape_1, &pool_1, all_isas[i / 3], i % 3 + 1, NULL))
                continue;
            if (i % 3 && !on_cpu(&w)) { /* threads are the CPU's */
                world_close(&w);
                continue;
            }
            struct k_linear *l = packed(&w, &m, cases[t].leaves);
            for (size_t n = 0; n < sizeof row_counts / sizeof *row_counts; n++) {
                memset(y, 0xff, (size_t)100 * m.rows * sizeof *y);
                rows_only(&w, row_counts[n]);
                project(&w, l, m.columns, x, y);
                const size_t all = (size_t)row_counts[n] * m.rows,
                             before = n ? (size_t)row_counts[n - 1] * m.rows : 0;
                assert_product(
                        &w, true, m.columns / cases[t].leaves, y, expected, sums, all, all_isas[i / 3]);
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
        matrix_free(&m);
    }
}

static void norm_and_gate_up(enum k_dtype gate, enum k_dtype up) {
    enum { K = 72, I = 50, R = 9 };
    const struct piece pieces[] = {{I, gate}, {I, up}};
    struct matrix m;
    matrix_make(&m, 5, pieces, 2, K);
    float *x = random_floats(1, R * K, 3.0f), *norm = random_floats(2, K, 1.5f), y[R * 2 * I],
          first[R * 2 * I];
    double expected[R * 2 * I], fused[R * I];
    for (uint32_t r = 0; r < R; r++) {
        double square = 0;
        for (uint32_t k = 0; k < K; k++)
            square += (double)x[r * K + k] * x[r * K + k];
        for (uint32_t o = 0; o < 2 * I; o++) {
            double sum = 0;
            for (uint32_t k = 0; k < K; k++)
                sum += m.w[o * K + k] * x[r * K + k] / sqrt(square / K + 1e-6) * norm[k];
            expected[r * 2 * I + o] = sum;
        }
        for (uint32_t o = 0; o < I; o++) {
            double g = expected[r * 2 * I + o];
            fused[r * I + o] = g / (1 + exp(-g)) * expected[r * 2 * I + I + o];
        }
    }
    for (uint32_t i = 0; i < N_ISAS * 2; i++) {
        struct world w;
        if (!world_open(&w, &shape_1, &pool_1, all_isas[i / 2], i % 2 + 1, NULL))
            continue;
        struct k_linear *l = packed(&w, &m, 8);
        rows_only(&w, R);
        norm_project(&w, l, K, x, norm, y);
        assert_near(y, expected, R * 2 * I, 3e-6, "norm_project");
        norm_gate_up(&w, l, K, x, norm, y);
        assert_near(y, fused, R * I, 3e-5, "gate_up");
        if (i == 0)
            memcpy(first, y, R * I * sizeof *y);
        assert_same_floats(y, first, R * I, "gate_up on every instruction set");
        for (uint32_t r = 0; r < R; r++) { /* one by one */
            rows_only(&w, 1);
            norm_gate_up(&w, l, K, x + r * K, norm, y);
            assert_same_floats(y, first + r * I, I, "gate_up of a row alone");
        }
        k_linear_free(l);
        world_close(&w);
    }
    free(x);
    free(norm);
    matrix_free(&m);
}

static void test_norm_and_gate_up_against_double(void **state) {
    (void)state;
    norm_and_gate_up(K_BF16, K_BF16);
    norm_and_gate_up(K_F32, K_F32);
    norm_and_gate_up(K_BF16, K_F32);
    norm_and_gate_up(K_F16, K_BF16);
}

static void test_row_stride_and_column_offset(void **state) {
    enum { K = 128, ROWS = 24 };
    static const struct piece pieces[] = {{ROWS, K_BF16}};
    struct matrix m;
    struct world w;
    (void)state;
    matrix_make(&m, 9, pieces, 1, K);
    assert_true(world_open(&w, &shape_1, &pool_1, NULL, 1, NULL));
    float *x = random_floats(3, K, 1.0f), whole[ROWS], part[2][ROWS];
    struct k_linear *l = packed(&w, &m, 8);
    rows_only(&w, 1);
    project(&w, l, K, x, whole);
    k_linear_free(l);
    for (uint32_t rank = 0; rank < 2; rank++) { /* row-parallel at tp 2: half the columns, half the leaves */
        struct k_matrix_view v = m.views[0];
        v.data = (const uint8_t *)v.data + rank * (K / 2) * 2;
        struct k_linear_spec spec = {
                .pieces = &v, .n_pieces = 1, .columns = K / 2, .leaves = 4, .name = "half"};
        OK(k_linear_pack(w.c, &spec, &l, e));
        project_partial(&w, l, K / 2, x + rank * (K / 2), part[rank]);
        k_linear_free(l);
    }
    for (uint32_t o = 0; o < ROWS; o++)
        part[0][o] += part[1][o];
    assert_same_floats(part[0], whole, ROWS, "two ranks");
    free(x);
    world_close(&w);
    matrix_free(&m);
}

static void test_bad_specs_are_refused_by_name(void **state) {
    struct world w;
    struct error e;
    struct k_linear *l = NULL;
    float data[64] = {0};
    struct k_matrix_view v = {.data = data, .row_stride = 8, .rows = 8, .dtype = K_F32};
    (void)state;
    assert_true(world_open(&w, &shape_1, &pool_1, NULL, 1, NULL));
    const struct k_linear_spec bad[] = {
            {.pieces = &v, .n_pieces = 1, .columns = 12, .leaves = 8, .name = "mlp.down"},
            {.pieces = &v, .n_pieces = 0, .columns = 8, .leaves = 8, .name = "mlp.down"},
            {.pieces = &v, .n_pieces = 9, .columns = 8, .leaves = 8, .name = "mlp.down"},
            {.pieces = &v, .n_pieces = 1, .columns = 8, .leaves = 3, .name = "mlp.down"},
            {.pieces = &v, .n_pieces = 1, .columns = 0, .leaves = 1, .name = "mlp.down"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(k_linear_pack(w.c, &bad[i], &l, &e), -EINVAL);
        assert_non_null(strstr(e.text, "mlp.down"));
    }
    assert_null(l);
    world_close(&w);
}

static void test_dummy_weights_are_seeded_and_bounded(void **state) {
    struct world w;
    static const enum k_dtype dtypes[] = {K_F32, K_BF16, K_F16};
    (void)state;
    assert_true(world_open(&w, &shape_1, &pool_1, NULL, 2, NULL));
    for (int d = 0; d < 3; d++) {
        struct k_matrix_view v = {.data = NULL, .row_stride = 64, .rows = 40, .dtype = dtypes[d]};
        struct k_linear_spec spec = {
                .pieces = &v, .n_pieces = 1, .columns = 64, .leaves = 8, .name = "dummy"};
        float x[64] = {0}, y[3][40], high = 0;
        for (uint64_t seed = 0; seed < 3; seed++) {
            struct k_linear *l = NULL;
            OK(k_linear_dummy(w.c, &spec, seed / 2, 0.5f, &l, e));
            rows_only(&w, 1);
            for (uint32_t k = 0; k < 64; k++) {
                memset(x, 0, sizeof x);
                x[k] = 1;
                project(&w, l, 64, x, y[seed]);
                for (uint32_t o = 0; o < 40; o++)
                    high = fabsf(y[seed][o]) > high ? fabsf(y[seed][o]) : high;
            }
            k_linear_free(l);
        }
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        assert_memory_not_equal(y[0], y[2], sizeof y[0]);
        assert_true(high > 0.49f && high <= 0.5f);
    }
    world_close(&w);
}

/* Threads that wait read ahead in the next linear: that changes no bit, and a linear may go at once after its use. */
static void test_linears_in_a_chain(void **state) {
    enum { K = 128, ROWS = 16 * 37, HALF = 16 * 9 + 5, N = 3 };
    static const uint32_t rows[N][2] = {{ROWS, 0}, {HALF, HALF}, {7, 0}};
    float *x = random_floats(1, K, 1.0f), *norm = random_floats(2, K, 1.0f), y[2][N][ROWS];
    (void)state;
    for (int chained = 0; chained < 2; chained++) {
        struct world w;
        struct k_linear *l[N];
        assert_true(world_open(&w, &shape_1, &pool_1, NULL, 3, NULL));
        for (uint32_t i = 0; i < N; i++) {
            const struct k_matrix_view v[2] = {
                    {.rows = rows[i][0], .dtype = K_BF16}, {.rows = rows[i][1], .dtype = K_BF16}};
            const struct k_linear_spec spec = {
                    .pieces = v, .n_pieces = rows[i][1] ? 2 : 1, .columns = K, .leaves = 8, .name = "chain"};
            OK(k_linear_dummy(w.c, &spec, i, 0.5f, &l[i], e));
        }
        for (uint32_t i = 0; i < N && chained; i++)
            k_linear_then(l[i], l[(i + 1) % N], NULL, rows[i][1] > 0);
        float *d_x = dev(&w, x, K), *d_norm = dev(&w, norm, K), *d_y[N];
        for (uint32_t i = 0; i < N; i++)
            d_y[i] = room(&w, rows[i][0]);
        rows_only(&w, 1);
        for (uint32_t step = 0; step < 50; step++) {
            for (uint32_t i = 0; i < N; i++) {
                if (rows[i][1])
                    k_norm_gate_up(w.s, w.b, d_x, d_norm, 1e-6f, l[i], d_y[i]);
                else
                    k_project(w.s, w.b, d_x, l[i], d_y[i]);
            }
        }
        for (uint32_t i = 0; i < N; i++) {
            fetch(&w, y[chained][i], d_y[i], rows[i][0] * sizeof(float));
            k_linear_free(l[i]);
        }
        world_close(&w);
    }
    for (uint32_t i = 0; i < N; i++)
        assert_same_floats(y[1][i], y[0][i], rows[i][0], "a chain");
    free(x);
    free(norm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_linears_in_a_chain),
            cmocka_unit_test(test_every_way_gives_the_rules_bits),
            cmocka_unit_test(test_norm_and_gate_up_against_double),
            cmocka_unit_test(test_row_stride_and_column_offset),
            cmocka_unit_test(test_bad_specs_are_refused_by_name),
            cmocka_unit_test(test_dummy_weights_are_seeded_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
