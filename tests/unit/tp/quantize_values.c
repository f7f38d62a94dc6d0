/* quantize_values.c - the arithmetic of quantize: groups are never worse than plain rounding, the factor is what it
 * says, error feedback makes outputs better, and packed matrices come back through the reader as they were meant. */
#include "tp/quantize/parts.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t state = 1;

static float uniform(void) { /* -1..1 */
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

static float normal(void) { /* near enough: the sum of twelve */
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += uniform();
    return sum * 0.5f;
}

static double group_error(
        const float *w, const float *h, uint32_t n, struct quantize_params p, uint32_t bits) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double miss = (double)w[i] - (double)quantize_value(quantize_code(w[i], p, bits), p);
        sum += (h ? (double)h[i] : 1.0) * miss * miss;
    }
    return sum;
}

/* What others do: the largest weight at the end of the scale. */
static struct quantize_params plain(const float *w, uint32_t n, const struct quantize_scheme *s, float top) {
    float low = 0, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    if (!s->asymmetric)
        return (struct quantize_params){
                quantize_round_scale(fmaxf(-low, high) / top, s->scale), (uint8_t)(1u << (s->bits - 1))};
    float codes = (float)((1u << s->bits) - 1), scale = (high - low) / codes;
    return (struct quantize_params){
            quantize_round_scale(scale, s->scale), (uint8_t)quantize_whole(-low / scale)};
}

static void check_search(uint32_t bits, bool asymmetric, enum tensor_dtype scale, uint32_t n, bool weighted) {
    const struct quantize_scheme s = {.bits = bits, .group = n, .asymmetric = asymmetric, .scale = scale};
    float w[128], h[128], top = (float)(1u << (bits - 1));
    double ours = 0, theirs = 0;
    for (int round = 0; round < 200; round++) {
        for (uint32_t i = 0; i < n; i++) {
            w[i] = normal() * 0.05f + (asymmetric ? 0.03f : 0);
            h[i] = expf(2 * normal());
        }
        if (round % 4 == 0)
            w[round % n] *= 8; /* an outlier */
        const float *importance = weighted ? h : NULL;
        double found = group_error(w, importance, n, quantize_search(w, importance, n, &s), bits);
        for (int k = 0; k < (asymmetric ? 1 : 3); k++) {
            float ends[] = {top - 1, top - 0.5f, top};
            double other = group_error(w, importance, n, plain(w, n, &s, ends[k]), bits);
            assert_true(found <= other * (1 + 1e-4));
            theirs += k == 0 ? other : 0;
        }
        ours += found;
    }
    if (bits == 4) /* and usually well below */
        assert_true(ours < 0.95 * theirs);
}

static void test_search_beats_rounding(void **unused) {
    (void)unused;
    static const enum tensor_dtype scales[] = {TENSOR_BF16, TENSOR_F16, TENSOR_F32};
    for (uint32_t bits = 4; bits <= 8; bits += 4)
        for (int asymmetric = 0; asymmetric < 2; asymmetric++)
            for (uint32_t n = 32; n <= 128; n *= 2)
                for (int k = 0; k < 3; k++)
                    check_search(bits, asymmetric, scales[k], n, k != 1);
}

static void test_odd_groups(void **unused) {
    (void)unused;
    struct quantize_scheme s = {.bits = 4, .group = 32, .scale = TENSOR_BF16};
    float w[32] = {0};
    struct quantize_params p = quantize_search(w, NULL, 32, &s);
    assert_int_equal(quantize_code(0, p, 4), 8);
    assert_true(quantize_value(8, p) == 0 && p.scale > 0);
    w[3] = 1e-38f; /* so small that its scale is not normal */
    s.scale = TENSOR_F16;
    p = quantize_search(w, NULL, 32, &s);
    assert_true(p.scale >= 0x1p-14f);
    for (uint32_t i = 0; i < 32; i++)
        w[i] = 0.5f; /* all alike, one side of zero */
    s.asymmetric = true;
    p = quantize_search(w, NULL, 32, &s);
    assert_true(fabsf(quantize_value(quantize_code(0.5f, p, 4), p) - 0.5f) < 0.002f);
    w[7] = 1e30f;
    s.scale = TENSOR_BF16;
    s.asymmetric = false;
    p = quantize_search(w, NULL, 32, &s);
    assert_true(
            isfinite(p.scale) && fabsf(quantize_value(quantize_code(1e30f, p, 4), p) / 1e30f - 1) < 0.01f);
}

static void test_scales_are_rounded(void **unused) {
    (void)unused;
    uint32_t bits;
    float x = quantize_round_scale(0.01f, TENSOR_BF16);
    memcpy(&bits, &x, sizeof(bits));
    assert_int_equal(bits & 0xffff, 0);
    assert_true(fabsf(x - 0.01f) < 0.01f / 256);
    x = quantize_round_scale(0.01f, TENSOR_F16);
    memcpy(&bits, &x, sizeof(bits));
    assert_int_equal(bits & 0x1fff, 0);
    assert_true(fabsf(x - 0.01f) < 0.01f / 2048);
    assert_true(quantize_round_scale(1e6f, TENSOR_F16) == 65504.0f);
    assert_true(quantize_round_scale(0.01f, TENSOR_F32) == 0.01f);
}

/* A product of odd sizes against the sum written out. */
static void test_product(void **unused) {
    (void)unused;
    enum { M = 39, N = 75, K = 301 };
    float *a = malloc(sizeof(float) * M * K), *b = malloc(sizeof(float) * K * N),
          *c = malloc(sizeof(float) * M * N);
    for (int i = 0; i < M * K; i++)
        a[i] = uniform();
    for (int i = 0; i < K * N; i++)
        b[i] = uniform();
    for (int transposed = 0; transposed < 2; transposed++) {
        for (int i = 0; i < M * N; i++)
            c[i] = 1;
        quantize_multiply(c, N, a, transposed ? 1 : K, transposed ? M : 1, b, N, M, N, K, -1.0f);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 1;
                for (int p = 0; p < K; p++)
                    sum -= (double)a[transposed ? p * M + i : i * K + p] * (double)b[p * N + j];
                assert_true(fabs(sum - (double)c[i * N + j]) < 1e-4);
            }
    }
    free(a);
    free(b);
    free(c);
}

/* U^T U h = 1 for a positive definite h; -EDOM for another. */
static void test_factor(void **unused) {
    (void)unused;
    static const uint32_t sizes[] = {1, 7, 64, 65, 200};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint32_t n = sizes[s];
        float *h = calloc((size_t)n * n, sizeof(float)), *u = calloc((size_t)n * n, sizeof(float));
        for (uint32_t k = 0; k < 2 * n; k++) { /* a sum of x x^T, and a little more on the diagonal */
            float x[200];
            for (uint32_t i = 0; i < n; i++)
                x[i] = uniform();
            for (uint32_t i = 0; i < n; i++)
                for (uint32_t j = 0; j < n; j++)
                    h[i * n + j] += x[i] * x[j] / (float)n + (i == j ? 0.01f : 0);
        }
        for (uint32_t i = 0; i < n; i++) /* only the upper triangle is read */
            memcpy(u + (size_t)i * n + i, h + (size_t)i * n + i, (n - i) * sizeof(float));
        assert_int_equal(quantize_inverse_factor(u, n, 2), 0);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < n; j++) {
                double sum = 0; /* (U^T U h)[i][j] */
                for (uint32_t p = 0; p <= i; p++)
                    for (uint32_t q = p; q < n; q++)
                        sum += (double)u[p * n + i] * (double)u[p * n + q] * (double)h[q * n + j];
                assert_true(fabs(sum - (i == j)) < 2e-3);
                if (j < i)
                    assert_true(u[i * n + j] == 0);
            }
        free(h);
        free(u);
    }
    float bad[4] = {1, 2, 0, 1};
    assert_true(quantize_inverse_factor(bad, 2, 1) < 0);
}

/* --- matrices --- */

enum { ROWS = 70, COLUMNS = 160, INPUTS = 400 };

struct matrix_case {
    float *w, *x; /* [ROWS][COLUMNS], [INPUTS][COLUMNS]: inputs that go together in twos and differ in size */
    struct tensor t;
};

static void make_case(struct matrix_case *c) {
    c->w = malloc(sizeof(float) * ROWS * COLUMNS);
    c->x = malloc(sizeof(float) * INPUTS * COLUMNS);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        c->w[i] = normal() * 0.02f;
    for (int r = 0; r < INPUTS; r++)
        for (int i = 0; i < COLUMNS; i++) {
            float before = i ? c->x[r * COLUMNS + i - 1] : 0;
            c->x[r * COLUMNS + i] = 0.8f * before + normal() * (i % 10 == 0 ? 3.0f : 0.5f);
        }
    c->t = (struct tensor){.name = "w.weight",
            .file = "f",
            .dtype = TENSOR_F32,
            .n_dims = 2,
            .dims = {ROWS, COLUMNS},
            .data = c->w,
            .bytes = sizeof(float) * ROWS * COLUMNS};
}

static void free_case(struct matrix_case *c) {
    free(c->w);
    free(c->x);
}

/* |X (W - Q)^T|^2 */
static double output_error(const struct matrix_case *c, const struct quantize_matrix *q) {
    float *v = malloc(sizeof(float) * ROWS * COLUMNS);
    double sum = 0;
    quantize_matrix_values(q, 0, ROWS, v);
    for (int r = 0; r < INPUTS; r++)
        for (int o = 0; o < ROWS; o++) {
            double y = 0;
            for (int i = 0; i < COLUMNS; i++)
                y += (double)c->x[r * COLUMNS + i] *
                     ((double)c->w[o * COLUMNS + i] - (double)v[o * COLUMNS + i]);
            sum += y * y;
        }
    free(v);
    return sum;
}

static struct quantize_matrix *make(const struct matrix_case *c, const struct quantize_scheme *s, int level) {
    struct quantize_stats stats = {0};
    struct quantize_matrix *q = NULL;
    struct error e = {0};
    if (level > 0) {
        assert_int_equal(quantize_stats_init(&stats, COLUMNS, level == 2, &e), 0);
        quantize_stats_add(&stats, c->x, INPUTS / 2, 2); /* in two parts */
        quantize_stats_add(&stats, c->x + INPUTS / 2 * COLUMNS, INPUTS - INPUTS / 2, 2);
        quantize_stats_prepare(&stats, 2);
        assert_int_equal(stats.factored, level == 2);
    }
    assert_int_equal(quantize_matrix_make(&c->t, 0, ROWS, s, level ? &stats : NULL, 2, NULL, &q, &e), 0);
    quantize_stats_done(&stats);
    return q;
}

/* Knowing the inputs' sizes helps, knowing their products helps more. */
static void test_calibration_helps(void **unused) {
    (void)unused;
    struct matrix_case c;
    make_case(&c);
    for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
        const struct quantize_scheme s = {
                .bits = 4, .group = 32, .asymmetric = asymmetric, .scale = TENSOR_BF16};
        double errors[3];
        for (int level = 0; level < 3; level++) {
            struct quantize_matrix *q = make(&c, &s, level);
            errors[level] = output_error(&c, q);
            assert_true(q->error > 0 && q->error < 0.03 * q->total);
            assert_true(level == 0 ? q->weighted_error == 0 : q->weighted_error > 0);
            quantize_matrix_free(q);
        }
        assert_true(errors[1] < 0.97 * errors[0]);
        assert_true(errors[2] < 0.6 * errors[0]);
    }
    free_case(&c);
}

/* The view's readers, the values and a matrix made in two parts agree. */
static void test_readers(void **unused) {
    (void)unused;
    struct matrix_case c;
    make_case(&c);
    const struct quantize_scheme s = {.bits = 8, .group = 32, .asymmetric = true, .scale = TENSOR_F16};
    struct quantize_matrix *q = make(&c, &s, 0), *part = NULL;
    struct error e = {0};
    float values[3 * COLUMNS];
    uint8_t codes[2 * 40];
    struct quant_group groups[2];
    quantize_matrix_values(q, 64, 3, values);
    q->view.codes(&q->view, 65, 2, 50, 40, codes);
    q->view.groups(&q->view, 65, 1, 2, groups);
    for (int i = 50; i < 90; i++) {
        const struct quant_group *g = &groups[i / 32 - 1];
        if (i < 96)
            assert_true(values[COLUMNS + i] == g->scale * (float)((int)codes[i - 50] - (int)g->zero));
    }
    assert_int_equal(quantize_matrix_make(&c.t, 64, 6, &s, NULL, 1, NULL, &part, &e), 0);
    assert_memory_equal(part->codes, q->codes + 64 * COLUMNS, 6 * COLUMNS);
    assert_memory_equal(part->scales, q->scales + 64 * 5, 6 * 5 * sizeof(float));
    quantize_matrix_free(part);
    quantize_matrix_free(q);

    c.w[5 * COLUMNS + 7] = NAN;
    assert_int_equal(quantize_matrix_make(&c.t, 0, ROWS, &s, NULL, 2, NULL, &q, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "w.weight: a weight is infinite or not a number"));
    volatile int stop = 1;
    assert_int_equal(quantize_matrix_make(&c.t, 0, ROWS, &s, NULL, 2, &stop, &q, &e), -ECANCELED);
    free_case(&c);
}

/* KL of two known distributions, in bands of any size. */
static void test_kl(void **unused) {
    (void)unused;
    float p[50], q[50];
    double zp = 0, zq = 0, kl = 0;
    for (int i = 0; i < 50; i++) {
        p[i] = 4 * uniform();
        q[i] = p[i] + 0.5f * uniform() - (i == 20 ? 3.0f : 0);
        zp += exp((double)p[i]);
        zq += exp((double)q[i]);
    }
    for (int i = 0; i < 50; i++)
        kl += exp((double)p[i]) / zp * ((double)p[i] - log(zp) - (double)q[i] + log(zq));
    for (uint32_t band = 1; band <= 50; band += 7) {
        struct quantize_token t;
        quantize_token_init(&t, 31);
        for (uint32_t at = 0; at < 50; at += band)
            quantize_tokens_add(&t, p + at, q + at, 1, at, 50 - at < band ? 50 - at : band, 1);
        assert_true(fabs(quantize_token_kl(&t) - kl) < 1e-5);
        assert_true(fabs(quantize_token_nll(&t, 0) - (log(zp) - (double)p[31])) < 1e-5);
        assert_true(fabs(quantize_token_nll(&t, 1) - (log(zq) - (double)q[31])) < 1e-5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_search_beats_rounding),
            cmocka_unit_test(test_odd_groups),
            cmocka_unit_test(test_scales_are_rounded),
            cmocka_unit_test(test_product),
            cmocka_unit_test(test_factor),
            cmocka_unit_test(test_calibration_helps),
            cmocka_unit_test(test_readers),
            cmocka_unit_test(test_kl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
