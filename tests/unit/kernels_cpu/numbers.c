/* Our own exp, log, cosines and number formats: accuracy, and equal bits on every instruction set. */
#include "tests/unit/kernels/fixture.h"

#include "kernels/cpu/internal.h"

static const struct isa *const tables[] = {&isa_plain, &isa_avx2, &isa_avx512};

static bool runs_here(int i) {
    struct k_context *c = context(all_isas[i], 1);
    k_context_free(c);
    return c != NULL;
}

static double ulps(float got, double exact) {
    float near = (float)exact;
    double step = fabs((double)nextafterf(near, INFINITY) - near);
    return fabs((double)got - exact) / step;
}

static void test_exp(void **state) {
    enum { N = 40000 };
    float *x = random_floats(1, N, 100.0f), *y = random_floats(1, N, 1.0f),
          *first = random_floats(1, N, 1.0f);
    (void)state;
    x[0] = 0, x[1] = -INFINITY, x[2] = INFINITY, x[3] = NAN, x[4] = -103.5f, x[5] = 88.7f, x[6] = 88.8f,
    x[7] = -0.0f;
    for (int i = 0; i < N_ISAS; i++) {
        if (!runs_here(i))
            continue;
        tables[i]->exp_minus(x, N, 0.0f, y);
        assert_true(isnan(y[3]));
        y[3] = 0; /* a NaN's sign is nobody's promise */
        if (i == 0)
            memcpy(first, y, N * sizeof *y);
        assert_memory_equal(y, first, N * sizeof *y);
    }
    assert_true(y[0] == 1 && y[7] == 1 && y[1] == 0 && isinf(y[2]) && isinf(y[6]));
    for (int j = 8; j < N; j++)
        if (x[j] > -87 && x[j] < 88)
            assert_true(ulps(y[j], exp((double)x[j])) < 1.5);
    for (int j = 8; j < N; j++) /* below the normal numbers: within two of the smallest steps */
        if (x[j] <= -87)
            assert_true(fabs((double)y[j] - exp((double)x[j])) < 3e-45);
    free(x), free(y), free(first);
}

static void test_log(void **state) {
    struct rng r = {7};
    (void)state;
    for (int j = 0; j < 20000; j++) {
        float x = j < 10000 ? expf(rng_float(&r, 80.0f)) : 1.0f + rng_float(&r, 0.3f), y[N_ISAS];
        for (int i = 0; i < N_ISAS; i++)
            y[i] = runs_here(i) ? tables[i]->log_one(x) : y[0];
        assert_memory_equal(&y[0], &y[1], sizeof *y);
        assert_memory_equal(&y[0], &y[2], sizeof *y);
        assert_true(fabs(y[0] - log((double)x)) <= 1.2e-7 * (fabs(log((double)x)) + 1e-3));
    }
}

/* kernels.h, in the plainest words. */
static float norm_square_by_the_rule(const float *x, uint32_t n) {
    const uint32_t chains = n <= 512 ? 16 : 256;
    float sum[256] = {0};
    for (uint32_t k = 0; k < n; k++)
        sum[k % chains] = fmaf(x[k], x[k], sum[k % chains]);
    for (uint32_t d = 16; d < chains; d *= 2)
        for (uint32_t c = 0; c < chains; c += c % 16 == 15 ? 2 * d - 15 : 1)
            sum[c] += sum[c + d];
    for (uint32_t d = 8; d > 0; d /= 2)
        for (uint32_t l = 0; l < d; l++)
            sum[l] += sum[l + d];
    return sum[0];
}
static void test_norms(void **state) {
    static const uint32_t sizes[] = {
            1, 15, 16, 100, 256, 511, 512, 513, 528, 575, 767, 768, 769, 1000, 1024, 1279, 5120, 5121, 5199};
    float *x = random_floats(1, 5200, 3.0f), *w = random_floats(2, 5200, 1.0f), y[5200];
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint32_t n = sizes[s];
        const float scale = 1.0f / sqrtf(norm_square_by_the_rule(x, n) / (float)n + 1e-6f);
        for (int i = 0; i < N_ISAS; i++) {
            if (!runs_here(i))
                continue;
            tables[i]->norm_row(x, w, 1e-6f, n, y);
            for (uint32_t k = 0; k < n; k++)
                if (y[k] != x[k] * scale * w[k])
                    fail_msg("%s: element %u of %u: %.9g", all_isas[i], k, n, (double)y[k]);
        }
    }
    free(x), free(w);
}

static void test_gates(void **state) {
    enum { N = 4000 };
    float *a = random_floats(1, N, 40.0f), *b = random_floats(2, N, 30.0f), *bias = random_floats(3, N, 2.0f);
    float *a_log = random_floats(4, N, 3.0f), *g = random_floats(5, N, 1.0f),
          *beta = random_floats(6, N, 1.0f);
    float *first = random_floats(7, N, 1.0f);
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        if (!runs_here(i))
            continue;
        tables[i]->gdn_gates(a, b, a_log, bias, N, g, beta);
        if (i == 0)
            memcpy(first, g, N * sizeof *g);
        assert_memory_equal(g, first, N * sizeof *g);
        for (int j = 0; j < N; j++) {
            double s = (float)(a[j] + bias[j]), soft = s > 20 ? s : log1p(exp(s)),
                   want = -exp((double)a_log[j]) * soft;
            assert_true(fabs(g[j] - want) <= 4e-7 * fabs(want));
            assert_true(fabs(beta[j] - 1 / (1 + exp(-(double)b[j]))) < 2e-7);
        }
    }
    free(a), free(b), free(bias), free(a_log), free(g), free(beta), free(first);
}

static void test_cosines_at_long_range(void **state) {
    struct rng r = {3};
    float c, s;
    (void)state;
    for (int j = 0; j < 200000; j++) {
        float angle = j < 100000 ? (float)(rng_u32(&r) % 1048576) : rng_float(&r, 8.0f);
        cos_sin(angle, &c, &s);
        assert_true(fabs(c - cos((double)angle)) < 6e-8 && fabs(s - sin((double)angle)) < 6e-8);
    }
}

static void test_frequencies(void **state) {
    static const double bases[] = {1e4, 1e6, 1e7, 0.3, 1.0};
    (void)state;
    for (size_t b = 0; b < sizeof bases / sizeof *bases; b++)
        for (int i = 0; i < 64; i++)
            assert_true(fabs(power(bases[b], i / 64.0) / pow(bases[b], i / 64.0) - 1) < 1e-13);
}

static void test_formats(void **state) {
    struct rng r = {11};
    (void)state;
    assert_int_equal(bf16_of(NAN) & 0x7fff, 0x7fc0);
    assert_int_equal(bf16_of(3.4e38f), 0x7f80);
    assert_int_equal(f16_of(65519.0f), 0x7bff);
    assert_int_equal(f16_of(65520.0f), 0x7c00);
    assert_int_equal(f16_of(0x1p-25f), 0);
    assert_int_equal(f16_of(0x1.8p-25f), 1);
    for (uint32_t h = 0; h < 65536; h++) { /* exact both ways */
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        float x = float_of_f16((uint16_t)h), y;
        convert_row(K_F16, &(uint16_t){(uint16_t)h}, 1, &y);
        assert_true(nan ? isnan(x) && isnan(y) : x == y);
        if (!nan)
            assert_int_equal(f16_of(x), h);
    }
    for (int j = 0; j < 10000; j++) {
        float x = rng_float(&r, 70000.0f), down = float_of_f16(f16_of(x));
        if (fabsf(x) < 65504)
            assert_true(fabsf(down - x) <= fabsf(x) * 0x1p-11f);
        assert_int_equal(bf16_of(x), to_bf16(x));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_exp),
            cmocka_unit_test(test_log),
            cmocka_unit_test(test_norms),
            cmocka_unit_test(test_gates),
            cmocka_unit_test(test_cosines_at_long_range),
            cmocka_unit_test(test_frequencies),
            cmocka_unit_test(test_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
