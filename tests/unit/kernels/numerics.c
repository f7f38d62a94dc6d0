/* Activations rounded to bf16, and fast numerics: the bits of a product whose input was rounded before. */
#include "base/half.h"
#include "tests/unit/kernels/quantised.h"

#define K        512u
#define ROWS_MAX 70u
#define PIECES   4u

static const uint32_t row_counts[] = {1, 3, 8, 17, 40, ROWS_MAX};

/* One linear of several forms. */
struct problem {
    struct k_matrix_view pieces[PIECES];
    struct fake *fakes[PIECES];
    void *data[PIECES];
    bool rounds[PIECES]; /* whether the piece multiplies rounded activations */
    uint32_t n, outputs;
};
static void add_quantised(struct problem *p, struct fake_kind kind, uint32_t rows, bool rounds) {
    p->fakes[p->n] = fake_make(p->n + 1, kind, rows, K);
    p->pieces[p->n] = (struct k_matrix_view){.quant = &p->fakes[p->n]->q, .rows = rows};
    p->rounds[p->n++] = rounds;
    p->outputs += rows;
}
static void add_dense(struct problem *p, enum k_dtype dtype, uint32_t rows, bool rounds) {
    float *w = random_floats(p->n + 1, (size_t)rows * K, 1.0f);
    for (uint32_t i = 0; i < rows * K && dtype != K_F32; i++) {
        const uint16_t half = dtype == K_BF16 ? bf16_of(w[i]) : f16_of(w[i]);
        memcpy((uint16_t *)w + i, &half, sizeof half);
    }
    p->data[p->n] = w;
    p->pieces[p->n] = (struct k_matrix_view){.data = w, .row_stride = K, .rows = rows, .dtype = dtype};
    p->rounds[p->n++] = rounds;
    p->outputs += rows;
}
static void problem_free(struct problem *p) {
    for (uint32_t i = 0; i < p->n; i++) {
        fake_free(p->fakes[i]);
        free(p->data[i]);
    }
}

static bool open_as(struct world *w, const char *isa, enum k_activations activations, bool fast) {
    return world_open_in(w, &shape_1, &pool_1, context_as(isa, 2, activations, fast), NULL);
}
static void product(struct world *w, const struct problem *p, uint32_t rows, const float *x, float *y) {
    struct k_linear *l = linear_of(w, p->pieces, p->n, K, 8, NULL);
    rows_only(w, rows);
    project(w, l, K, x, y);
    k_linear_free(l);
}

/* x, and odd values in its first rows: what is no number, too large for bf16, a tie, subnormal. */
static float *odd_input(void) {
    float *x = random_floats(9, (size_t)ROWS_MAX * K, 2.0f);
    const uint32_t tie = 0x3f808000u, nan = 0x7f800001u;
    memcpy(&x[0], &tie, sizeof tie);
    memcpy(&x[K + 5], &nan, sizeof nan);
    x[2 * K + 7] = 3.4e38f;
    x[3 * K + 9] = -INFINITY;
    for (uint32_t k = 0; k < K; k++)
        x[4 * K + k] *= 1e-40f;
    return x;
}
/* got (of `as`) has the bits of a product without rounding: of `rounded` in pieces that round, else of x. */
static void assert_rounded_before(const struct problem *p, const char *isa, enum k_activations activations,
        bool fast, enum k_activations plain) {
    float *x = odd_input(), *rounded = malloc((size_t)ROWS_MAX * K * sizeof *x);
    float *y[3];
    struct world as, exact;
    for (uint32_t i = 0; i < ROWS_MAX * K; i++)
        rounded[i] = float_of_bf16(bf16_of(x[i]));
    for (uint32_t i = 0; i < 3; i++)
        y[i] = random_floats(0, (size_t)ROWS_MAX * p->outputs, 1.0f);
    if (open_as(&as, isa, activations, fast) && open_as(&exact, isa, plain, false)) {
        const bool cpu = on_cpu(&as);
        for (size_t n = 0; n < sizeof row_counts / sizeof *row_counts; n++) {
            product(&as, p, row_counts[n], x, y[0]);
            product(&exact, p, row_counts[n], x, y[1]);
            product(&exact, p, row_counts[n], rounded, y[2]);
            for (uint32_t r = 0; r < row_counts[n]; r++) {
                uint32_t at = r * p->outputs;
                for (uint32_t i = 0; i < p->n; at += p->pieces[i++].rows) {
                    const bool rounds = p->rounds[i] && !(fast && cpu);
                    for (uint32_t o = at; o < at + p->pieces[i].rows; o++) {
                        const float want = y[rounds ? 2 : 1][o];
                        if (memcmp(&y[0][o], &want, sizeof want) != 0 && !(isnan(y[0][o]) && isnan(want)))
                            fail_msg("%u rows, row %u, piece %u, output %u: %.9g, expected %.9g",
                                    row_counts[n], r, i, o - at, (double)y[0][o], (double)want);
                    }
                }
            }
        }
        world_close(&exact);
    }
    world_close(&as);
    for (uint32_t i = 0; i < 3; i++)
        free(y[i]);
    free(x);
    free(rounded);
}

/* INT4 and INT8 of every cut, and beside them what keeps its fp32 activations. */
static void test_bf16_activations(void **state) {
    (void)state;
    struct problem p = {0};
    add_quantised(&p, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 64, false, false}, 130, true);
    add_dense(&p, K_BF16, 40, false);
    add_quantised(&p, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F16, 32, true, false}, 33, true);
    add_quantised(&p, (struct fake_kind){QUANT_INT4, QUANT_SCALE_F32, 48, true, true}, 17, true);
    for (uint32_t i = 0; i < N_KERNELS; i++)
        assert_rounded_before(&p, all_kernels[i], K_ACTIVATIONS_BF16, /* fast= */ false, K_ACTIVATIONS_FLOAT);
    problem_free(&p);
}

/* A GPU rounds for BF16 and FP8, a CPU for nothing. */
static void test_fast_numerics(void **state) {
    (void)state;
    struct problem p = {0};
    add_dense(&p, K_BF16, 140, true);
    add_dense(&p, K_F16, 20, false);
    add_quantised(&p, (struct fake_kind){QUANT_FP8, QUANT_SCALE_BF16, 64, false, false}, 33, true);
    add_quantised(&p, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 64, false, false}, 17, false);
    for (uint32_t i = 0; i < N_KERNELS; i++)
        assert_rounded_before(&p, all_kernels[i], K_ACTIVATIONS_INT8, /* fast= */ true, K_ACTIVATIONS_INT8);
    problem_free(&p);
}

/* The norm comes first: what is rounded is what it gives, which a product with ones on the diagonal shows. */
static void test_a_norm_comes_first(void **state) {
    enum { ROWS = 5 };
    float *ones = calloc((size_t)K * K, sizeof *ones), *x = random_floats(4, ROWS * K, 3.0f),
          *norm = random_floats(5, K, 1.0f), *normed = random_floats(0, ROWS * K, 1.0f);
    float want[ROWS * 21], got[ROWS * 21];
    struct problem p = {0};
    struct world as, exact;
    (void)state;
    for (uint32_t k = 0; k < K; k++)
        ones[(size_t)k * K + k] = 1;
    add_quantised(&p, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F32, 128, false, false}, 21, true);
    const struct k_matrix_view diagonal = {.data = ones, .row_stride = K, .rows = K, .dtype = K_F32};
    assert_true(open_as(&as, NULL, K_ACTIVATIONS_BF16, false));
    assert_true(open_as(&exact, NULL, K_ACTIVATIONS_FLOAT, false));
    struct k_linear *d = linear_of(&exact, &diagonal, 1, K, 8, NULL),
                    *l = linear_of(&as, p.pieces, 1, K, 8, NULL);
    rows_only(&exact, ROWS);
    rows_only(&as, ROWS);
    norm_project(&exact, d, K, x, norm, normed);
    norm_project(&as, l, K, x, norm, got);
    for (uint32_t i = 0; i < ROWS * K; i++)
        normed[i] = float_of_bf16(bf16_of(normed[i]));
    product(&exact, &p, ROWS, normed, want);
    assert_same_floats(got, want, ROWS * 21, "after a norm");
    k_linear_free(d);
    k_linear_free(l);
    world_close(&as);
    world_close(&exact);
    problem_free(&p);
    free(ones);
    free(x);
    free(norm);
    free(normed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_bf16_activations),
            cmocka_unit_test(test_fast_numerics),
            cmocka_unit_test(test_a_norm_comes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
