/* quantised.h - made-up quantised matrices, and products with them in the plainest words of kernels.h. Included by the
 * tests of quantised linears. */
#pragma once

#include "tests/unit/kernels/fixture.h"

struct fake {
    struct quant_matrix q;
    uint8_t *codes;             /* [rows][columns] */
    struct quant_group *groups; /* [rows][groups] */
};

static void fake_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint8_t *ret) {
    const struct fake *f = q->file;
    assert_in_range(n_rows, 1, QUANT_ROWS_MAX);
    assert_true(row + n_rows <= q->rows && column + n <= q->columns);
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(ret + (size_t)r * n, f->codes + (size_t)(row + r) * q->columns + column, n);
}
static void fake_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct fake *f = q->file;
    assert_true(row < q->rows && first + n <= quant_groups(q));
    memcpy(ret, f->groups + (size_t)row * quant_groups(q) + first, n * sizeof *ret);
}

struct fake_kind {
    enum quant_format format;
    enum quant_scale scale;
    uint32_t group; /* 0 = all columns */
    bool zeros, minimums;
};

static inline float scale_value(struct rng *r, enum quant_scale scale) {
    float x = fabsf(rng_float(r, 0.05f)) + 0.001f;
    if (scale == QUANT_SCALE_BF16)
        return of_bf16(to_bf16(x));
    return scale == QUANT_SCALE_F16 ? (float)(1 + rng_u32(r) % 1000) / 32768
                                    : x; /* few bits: exact in half */
}
static inline struct fake *fake_make(uint64_t seed, struct fake_kind kind, uint32_t rows, uint32_t columns) {
    struct fake *f = calloc(1, sizeof *f);
    struct rng r = {seed * 31 + 7};
    f->q = (struct quant_matrix){.format = kind.format,
            .scale = kind.scale,
            .rows = rows,
            .columns = columns,
            .group = kind.group && kind.group < columns ? kind.group : columns,
            .zeros = kind.zeros,
            .minimums = kind.minimums,
            .codes = fake_codes,
            .groups = fake_groups,
            .label = "made up",
            .file = f};
    f->codes = malloc((size_t)rows * columns);
    f->groups = calloc((size_t)rows * quant_groups(&f->q), sizeof *f->groups);
    for (size_t i = 0; i < (size_t)rows * columns; i++) {
        f->codes[i] = (uint8_t)(rng_u32(&r) >> 8);
        if (kind.format == QUANT_INT4)
            f->codes[i] &= 15;
        if (kind.format == QUANT_FP8 && (f->codes[i] & 0x7f) == 0x7f)
            f->codes[i] = 0x80;
    }
    for (size_t i = 0; i < (size_t)rows * quant_groups(&f->q); i++) {
        const uint32_t zeros = kind.format == QUANT_INT4 ? 16 : 256;
        f->groups[i] = (struct quant_group){.scale = scale_value(&r, kind.scale),
                .minimum = kind.minimums ? rng_float(&r, 0.3f) : 0,
                .zero = (uint8_t)(kind.zeros ? rng_u32(&r) % zeros : zeros / 2)};
    }
    return f;
}
static inline void fake_free(struct fake *f) {
    if (!f)
        return;
    free(f->codes);
    free(f->groups);
    free((void *)f->q.order);
    free(f);
}

static inline double e4m3(uint8_t q) {
    const int exponent = q >> 3 & 15, mantissa = q & 7;
    const double x = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return q & 0x80 ? -x : x;
}
static inline const struct quant_group *fake_group(const struct fake *f, uint32_t row, uint32_t k) {
    return &f->groups[(size_t)row * quant_groups(&f->q) + k / f->q.group];
}
/* the value of an element in real arithmetic */
static inline double fake_value(const struct fake *f, uint32_t row, uint32_t k) {
    const struct quant_group *g = fake_group(f, row, k);
    const uint8_t q = f->codes[(size_t)row * f->q.columns + k];
    if (f->q.format == QUANT_FP8)
        return (double)g->scale * e4m3(q);
    return (double)g->scale * ((int)q - g->zero) - (double)g->minimum;
}

/* The same of an output of all columns; a minimum is a term of its own. */
static inline struct sum fake_sum(const struct fake *f, uint32_t row, const float *x) {
    struct sum s = {0};
    for (uint32_t k = 0; k < f->q.columns; k++) {
        const double w = fake_value(f, row, k), minimum = (double)fake_group(f, row, k)->minimum;
        s.exact += w * x[k];
        s.size += (fabs(w + minimum) + fabs(minimum)) * fabs(x[k]);
    }
    return s;
}

/* --- the rules --- */

static inline float tree(const float *leaf, uint32_t n) {
    return n == 1 ? leaf[0] : tree(leaf, n / 2) + tree(leaf + n / 2, n / 2);
}

/* One leaf with fp32 activations: x[k] belongs to column first + k. */
static inline float float_leaf(
        const struct fake *f, uint32_t row, uint32_t first, uint32_t n, const float *x) {
    float sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        const struct quant_group *g = fake_group(f, row, first + k);
        const uint8_t q = f->codes[(size_t)row * f->q.columns + first + k];
        float w = f->q.format == QUANT_FP8 ? g->scale * (float)e4m3(q) : g->scale * (float)((int)q - g->zero);
        if (f->q.minimums)
            w -= g->minimum;
        sum = fmaf(w, x[k], sum);
    }
    return sum;
}

static inline float run_scale(const float *x, uint32_t n) {
    float high = 0;
    for (uint32_t k = 0; k < n; k++)
        high = fabsf(x[k]) > high ? fabsf(x[k]) : high;
    return high / 127.0f;
}
/* The same with INT8 activations. */
static inline float codes_leaf_sum(
        const struct fake *f, uint32_t row, uint32_t first, uint32_t n, const float *x) {
    float leaf = 0;
    for (uint32_t k = 0; k < n;) {
        const struct quant_group *g = fake_group(f, row, first + k);
        const uint32_t run = k / 128 * 128, run_n = n - run < 128 ? n - run : 128;
        const float scale = run_scale(x + run, run_n);
        int32_t dot = 0, sum = 0;
        do {
            const int32_t code = scale > 0 ? (int32_t)nearbyintf(x[k] / scale) : 0;
            dot += ((int32_t)f->codes[(size_t)row * f->q.columns + first + k] - g->zero) * code;
            sum += code;
            k++;
        } while (k < n && k < run + run_n && (first + k) % f->q.group != 0);
        leaf = fmaf((float)dot, g->scale * scale, leaf);
        if (f->q.minimums)
            leaf = fmaf((float)sum, -g->minimum * scale, leaf);
    }
    return leaf;
}

/* Output `row` of columns first .. first + columns - 1 in `leaves` leaves. */
static inline float fake_product(const struct fake *f, bool floats, uint32_t row, uint32_t first,
        uint32_t columns, uint32_t leaves, const float *x) {
    float sums[8];
    const uint32_t n = columns / leaves;
    for (uint32_t l = 0; l < leaves; l++)
        sums[l] = floats || f->q.format == QUANT_FP8 ? float_leaf(f, row, first + l * n, n, x + l * n)
                                                     : codes_leaf_sum(f, row, first + l * n, n, x + l * n);
    return tree(sums, leaves);
}

/* --- worlds for products --- */

static const struct k_shape shape_1 = {.tp = 1,
        .hidden_size = 64,
        .vocab_size = 64,
        .vocab_rows = 64,
        .rms_eps = 1e-6f,
        .rope_theta = 1e4,
        .intermediate_size = 4096};
static const struct k_pool_options pool_1 = {.slots = 2, .pages = 1, .pages_per_slot = 1};

static inline bool kernels_open(struct world *w, uint32_t i, uint32_t threads, bool floats) {
    return world_open_with(w, &shape_1, &pool_1, all_kernels[i], threads, floats, NULL);
}
/* n rows of some more that operations may expect: a GPU has kernels for few and for many. */
static inline void rows_only(struct world *w, uint32_t n) {
    step_new(w);
    step_prompt(w, 1, 0, n, 1);
    k_batch_bounds(w->b, &(struct k_bounds){.rows = n + 3, .entries = 2, .context = n + 1});
    step_begin_now(w);
}

static inline struct k_linear *linear_of(struct world *w, const struct k_matrix_view *views, uint32_t n,
        uint32_t columns, uint32_t leaves, const uint32_t *order) {
    struct k_linear *l = NULL;
    const struct k_linear_spec spec = {.pieces = views,
            .n_pieces = n,
            .columns = columns,
            .leaves = leaves,
            .order = order,
            .name = "test"};
    OK(k_linear_pack(w->c, &spec, &l, e));
    return l;
}
