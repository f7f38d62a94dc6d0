/* algebra.c - matrix products and a Cholesky factor for error feedback, in fp32.
 *
 * Called by stats.c and matrix.c. Every element is a sum in ascending order of p, multiplied and
 * added apart, so neither tiles nor threads nor the width of vectors show in the bits. */
#include "tp/quantize/parts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TILE_ROWS    4u
#define TILE_COLUMNS 32u /* two vectors of 16 */
#define PANEL_ROWS   64u
#define DEPTH        256u /* products of a panel: it and a tile's columns fit in the second cache */
#define BLOCK        64u  /* columns of the factor at a time */
#define BAND         64u  /* rows or columns per task */

typedef float lanes_f __attribute__((vector_size(64)));

struct product {
    float *c;
    const float *a, *b;
    size_t ldc, a_row, a_column, ldb;
    uint32_t m, n, k;
    float sign;
};

/* Parts of A and B side by side, as a tile wants them: rows of a matrix whose width is a power of two fight for the
 * same lines of the cache. */
struct panels {
    float a[PANEL_ROWS / TILE_ROWS][DEPTH][TILE_ROWS];
    float b[DEPTH][TILE_COLUMNS];
};

static inline __attribute__((always_inline)) void tile(
        float *c, size_t ldc, const float (*a)[TILE_ROWS], const float (*b)[TILE_COLUMNS], uint32_t depth) {
    lanes_f sum[TILE_ROWS][2];
    for (uint32_t r = 0; r < TILE_ROWS; r++)
        memcpy(sum[r], c + r * ldc, sizeof(sum[r]));
    for (uint32_t q = 0; q < depth; q++) {
        lanes_f row[2];
        memcpy(row, b[q], sizeof(row));
        for (uint32_t r = 0; r < TILE_ROWS; r++) {
            sum[r][0] += row[0] * a[q][r];
            sum[r][1] += row[1] * a[q][r];
        }
    }
    for (uint32_t r = 0; r < TILE_ROWS; r++)
        memcpy(c + r * ldc, sum[r], sizeof(sum[r]));
}

/* Products p0..p0+depth-1 for some elements that fill no tile. */
static inline __attribute__((always_inline)) void edge(const struct product *p, uint32_t i, uint32_t i_end,
        uint32_t j_begin, uint32_t j_end, uint32_t p0, uint32_t depth) {
    for (; i < i_end; i++)
        for (uint32_t q = p0; q < p0 + depth; q++) {
            float a = p->sign * p->a[i * p->a_row + q * p->a_column];
            for (uint32_t j = j_begin; j < j_end; j++)
                p->c[i * p->ldc + j] += p->b[q * p->ldb + j] * a;
        }
}

static inline __attribute__((always_inline)) void multiply_panel(const struct product *p,
        struct panels *panels, uint32_t i0, uint32_t rows, uint32_t p0, uint32_t depth) {
    uint32_t columns = p->n / TILE_COLUMNS * TILE_COLUMNS;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t q = 0; q < depth; q++)
            panels->a[i / TILE_ROWS][q][i % TILE_ROWS] =
                    p->sign * p->a[(i0 + i) * p->a_row + (p0 + q) * p->a_column];
    for (uint32_t j = 0; j < columns; j += TILE_COLUMNS) {
        for (uint32_t q = 0; q < depth; q++)
            memcpy(panels->b[q], p->b + (p0 + q) * p->ldb + j, sizeof(panels->b[q]));
        for (uint32_t i = 0; i < rows; i += TILE_ROWS)
            tile(p->c + (i0 + i) * p->ldc + j, p->ldc, panels->a[i / TILE_ROWS], panels->b, depth);
    }
}

static inline __attribute__((always_inline)) void multiply(const struct product *p) {
    struct panels panels;
    uint32_t rows = p->m / TILE_ROWS * TILE_ROWS, columns = p->n / TILE_COLUMNS * TILE_COLUMNS;
    for (uint32_t p0 = 0; p0 < p->k; p0 += DEPTH) {
        uint32_t depth = p->k - p0 < DEPTH ? p->k - p0 : DEPTH;
        for (uint32_t i = 0; i < rows; i += PANEL_ROWS)
            multiply_panel(p, &panels, i, rows - i < PANEL_ROWS ? rows - i : PANEL_ROWS, p0, depth);
        edge(p, 0, rows, columns, p->n, p0, depth);
        edge(p, rows, p->m, 0, p->n, p0, depth);
    }
}

static void multiply_plain(const struct product *p) {
    multiply(p);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void multiply_avx2(const struct product *p) {
    multiply(p);
}

__attribute__((target("avx512f,avx512dq"))) static void multiply_avx512(const struct product *p) {
    multiply(p);
}
#endif

void quantize_multiply(float *c, size_t ldc, const float *a, size_t a_row, size_t a_column, const float *b,
        size_t ldb, uint32_t m, uint32_t n, uint32_t k, float sign) {
    const struct product p = {c, a, b, ldc, a_row, a_column, ldb, m, n, k, sign};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        multiply_avx512(&p);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        multiply_avx2(&p);
        return;
    }
#endif
    multiply_plain(&p);
}

/* --- the factor --- */

struct factor {
    float *l;                     /* [n][n] */
    uint32_t n, at, size;         /* the block: columns [at, at + size) */
    float *panel;                 /* transposed panel [BLOCK][n], or rows [BLOCK][n] of the inverse */
    float inverse[BLOCK * BLOCK]; /* of the diagonal block */
};

static float *element(const struct factor *f, uint32_t row, uint32_t column) {
    return f->l + (size_t)row * f->n + column;
}

static int factor_diagonal(struct factor *f) {
    for (uint32_t j = 0; j < f->size; j++) {
        float *lj = element(f, f->at + j, f->at);
        float d = lj[j];
        for (uint32_t p = 0; p < j; p++)
            d -= lj[p] * lj[p];
        if (!(d > 0) || !isfinite(d))
            return -EDOM;
        lj[j] = sqrtf(d);
        for (uint32_t i = j + 1; i < f->size; i++) {
            float *li = element(f, f->at + i, f->at);
            float x = li[j];
            for (uint32_t p = 0; p < j; p++)
                x -= li[p] * lj[p];
            li[j] = x / lj[j];
        }
    }
    return 0;
}

/* inverse = the diagonal block's inverse, lower triangular. */
static void invert_diagonal(struct factor *f) {
    memset(f->inverse, 0, sizeof(f->inverse));
    for (uint32_t j = 0; j < f->size; j++) {
        f->inverse[j * BLOCK + j] = 1.0f / *element(f, f->at + j, f->at + j);
        for (uint32_t i = j + 1; i < f->size; i++) {
            const float *li = element(f, f->at + i, f->at);
            float x = 0;
            for (uint32_t p = j; p < i; p++)
                x -= li[p] * f->inverse[p * BLOCK + j];
            f->inverse[i * BLOCK + j] = x / li[i];
        }
    }
}

/* Rows below the block: L[i] = A[i] inverse^T. */
static void panel_rows(void *arg, uint32_t task) {
    struct factor *f = arg;
    uint32_t begin = f->at + f->size + task * BAND, end = begin + BAND < f->n ? begin + BAND : f->n;
    for (uint32_t i = begin; i < end; i++) {
        float *row = element(f, i, f->at), out[BLOCK];
        for (uint32_t j = 0; j < f->size; j++) {
            float x = 0;
            for (uint32_t p = 0; p <= j; p++)
                x += row[p] * f->inverse[j * BLOCK + p];
            out[j] = x;
        }
        for (uint32_t j = 0; j < f->size; j++) {
            row[j] = out[j];
            f->panel[(size_t)j * f->n + i] = out[j];
        }
    }
}

/* Rows below the block, columns right of it up to the diagonal: A -= L L^T. */
static void trailing_rows(void *arg, uint32_t task) {
    struct factor *f = arg;
    uint32_t first = f->at + f->size, begin = first + task * BAND;
    uint32_t end = begin + BAND < f->n ? begin + BAND : f->n;
    quantize_multiply(element(f, begin, first), f->n, element(f, begin, f->at), f->n, 1, f->panel + first,
            f->n, end - begin, end - first, f->size, -1.0f);
}

static int factor_lower(struct factor *f, uint32_t threads) {
    for (f->at = 0; f->at < f->n; f->at += BLOCK) {
        f->size = f->n - f->at < BLOCK ? f->n - f->at : BLOCK;
        int r = factor_diagonal(f);
        if (r < 0)
            return r;
        invert_diagonal(f);
        uint32_t tasks = (f->n - f->at - f->size + BAND - 1) / BAND;
        quantize_parallel(threads, tasks, panel_rows, f);
        quantize_parallel(threads, tasks, trailing_rows, f);
    }
    return 0;
}

/* Rows of the block, some columns left of it: Y = -inverse (L Y). */
static void inverse_columns(void *arg, uint32_t task) {
    struct factor *f = arg;
    uint32_t begin = task * BAND, end = begin + BAND < f->at ? begin + BAND : f->at, n = end - begin;
    float *sum = f->panel + begin;
    for (uint32_t i = 0; i < f->size; i++)
        memset(sum + (size_t)i * f->n, 0, n * sizeof(float));
    quantize_multiply(sum, f->n, element(f, f->at, begin), f->n, 1, element(f, begin, begin), f->n, f->size,
            n, f->at - begin, 1.0f);
}

static void inverse_store(void *arg, uint32_t task) {
    struct factor *f = arg;
    uint32_t begin = task * BAND, end = begin + BAND < f->at ? begin + BAND : f->at, n = end - begin;
    for (uint32_t i = 0; i < f->size; i++)
        memset(element(f, f->at + i, begin), 0, n * sizeof(float));
    quantize_multiply(element(f, f->at, begin), f->n, f->inverse, BLOCK, 1, f->panel + begin, f->n, f->size,
            n, f->size, -1.0f);
}

/* In place; what lies above the diagonal is 0 before and after. */
static void invert_lower(struct factor *f, uint32_t threads) {
    for (f->at = 0; f->at < f->n; f->at += BLOCK) {
        f->size = f->n - f->at < BLOCK ? f->n - f->at : BLOCK;
        invert_diagonal(f);
        uint32_t tasks = (f->at + BAND - 1) / BAND;
        quantize_parallel(threads, tasks, inverse_columns, f);
        quantize_parallel(threads, tasks, inverse_store, f);
        for (uint32_t i = 0; i < f->size; i++)
            memcpy(element(f, f->at + i, f->at), f->inverse + i * BLOCK, f->size * sizeof(float));
    }
}

static void reverse(float *x, size_t n) {
    for (size_t i = 0; i < n / 2; i++) {
        float t = x[i];
        x[i] = x[n - 1 - i];
        x[n - 1 - i] = t;
    }
}

/* Read backwards, the upper triangle of h is the lower triangle of h with rows and columns reversed: h' = L L^T.
 * Then inverse(h') = L^-T L^-1, and read backwards again L^-1 is upper: that is U. */
int quantize_inverse_factor(float *h, uint32_t n, uint32_t threads) {
    struct factor *f = malloc(sizeof(*f));
    float *panel = malloc((size_t)BLOCK * n * sizeof(float));
    int r = -ENOMEM;
    if (f && panel) {
        f->l = h;
        f->n = n;
        f->panel = panel;
        reverse(h, (size_t)n * n);
        r = factor_lower(f, threads);
        for (uint32_t i = 0; i < n; i++) /* the trailing products also wrote above the diagonal */
            memset(element(f, i, i) + 1, 0, (n - i - 1) * sizeof(float));
        if (r == 0)
            invert_lower(f, threads);
        reverse(h, (size_t)n * n);
    }
    free(panel);
    free(f);
    return r;
}
