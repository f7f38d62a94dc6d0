/* matrix.c - quantises rows of a matrix: group by group, or column by column with error feedback.
 *
 * Rows are independent of each other and are shared among threads in bands. With a factored hessian (stats.c)
 * the error of a column is spread over the columns after it, so that the product with typical inputs changes least;
 * groups stay in order, and a group's scale is chosen when its first column is reached, from what the weights have
 * become by then. */
#include "tp/quantize/parts.h"

#include "base/half.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BAND  32u  /* rows per task */
#define BLOCK 128u /* columns whose errors are spread at once: the largest group */

/* --- readers --- */

void quantize_read_row(const struct tensor *t, uint64_t row, float *ret) {
    uint64_t n = t->dims[1];
    if (t->dtype == TENSOR_F32) {
        memcpy(ret, (const float *)t->data + row * n, n * sizeof(float));
        return;
    }
    const uint16_t *from = (const uint16_t *)t->data + row * n;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        if (t->dtype == TENSOR_BF16)
            memcpy(&ret[i], &bits, sizeof(bits));
        else
            ret[i] = float_of_f16(from[i]);
    }
}

void quantize_forget(const void *data, uint64_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + bytes) / page * page;
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED); /* refused: the pages stay a while longer */
}

static void read_codes(const struct quant_matrix *view, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quantize_matrix *q = view->file;
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(ret + (size_t)r * n_columns, q->codes + (size_t)(row + r) * view->columns + column, n_columns);
}

static void read_groups(
        const struct quant_matrix *view, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct quantize_matrix *q = view->file;
    size_t at = (size_t)row * quant_groups(view) + first;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct quant_group){.scale = q->scales[at + i], .zero = q->zeros[at + i]};
}

void quantize_matrix_values(const struct quantize_matrix *q, uint32_t first, uint32_t n, float *ret) {
    uint32_t columns = q->view.columns, groups = quant_groups(&q->view);
    for (uint32_t r = 0; r < n; r++) {
        const uint8_t *codes = q->codes + (size_t)(first + r) * columns;
        for (uint32_t g = 0; g < groups; g++) {
            size_t group = (size_t)(first + r) * groups + g;
            struct quantize_params p = {q->scales[group], q->zeros[group]};
            for (uint32_t i = g * q->view.group; i < (g + 1) * q->view.group; i++)
                ret[(size_t)r * columns + i] = quantize_value(codes[i], p);
        }
    }
}

/* --- a band of rows --- */

struct job {
    struct quantize_matrix *q;
    const struct tensor *t;
    const struct quantize_scheme *scheme;
    const struct quantize_stats *stats;
    uint32_t first; /* row of t */
    const volatile int *stop;
    atomic_int status;
    double (*sums)[4]; /* [bands] error, total, weighted error, weighted total */
};

struct band {
    uint32_t first, n; /* rows of q */
    float *w;          /* [BAND][columns]: the weights, changed by feedback */
    float *original;   /* [BAND][columns] */
    float *errors;     /* [BAND][BLOCK] */
};

static bool read_band(const struct job *j, const struct band *b) {
    uint32_t columns = j->q->view.columns;
    for (uint32_t r = 0; r < b->n; r++) {
        float *row = b->original + (size_t)r * columns;
        quantize_read_row(j->t, (uint64_t)j->first + b->first + r, row);
        for (uint32_t i = 0; i < columns; i++)
            if (!isfinite(row[i]))
                return false;
    }
    memcpy(b->w, b->original, (size_t)b->n * columns * sizeof(float));
    return true;
}

static struct quantize_params choose(const struct job *j, const struct band *b, uint32_t r, uint32_t column) {
    struct quantize_matrix *q = j->q;
    uint32_t g = j->scheme->group;
    struct quantize_params p = quantize_search(b->w + (size_t)r * q->view.columns + column,
            j->stats ? j->stats->importance + column : NULL, g, j->scheme);
    size_t at = (size_t)(b->first + r) * quant_groups(&q->view) + column / g;
    q->scales[at] = p.scale;
    q->zeros[at] = p.zero;
    return p;
}

static void round_nearest(const struct job *j, const struct band *b) {
    uint32_t columns = j->q->view.columns, g = j->scheme->group;
    for (uint32_t r = 0; r < b->n; r++) {
        const float *w = b->w + (size_t)r * columns;
        uint8_t *codes = j->q->codes + (size_t)(b->first + r) * columns;
        for (uint32_t c = 0; c < columns; c += g) {
            struct quantize_params p = choose(j, b, r, c);
            for (uint32_t i = c; i < c + g; i++)
                codes[i] = quantize_code(w[i], p, j->scheme->bits);
        }
    }
}

/* One column of one row: its code, and its error spread over the rest of the block. */
static void feed_column(const struct job *j, const struct band *b, uint32_t r, uint32_t column, uint32_t end,
        struct quantize_params p) {
    uint32_t columns = j->q->view.columns;
    float *w = b->w + (size_t)r * columns;
    const float *u = j->stats->hessian + (size_t)column * columns;
    uint8_t code = quantize_code(w[column], p, j->scheme->bits);
    float error = (w[column] - quantize_value(code, p)) / u[column];
    j->q->codes[(size_t)(b->first + r) * columns + column] = code;
    b->errors[r * BLOCK + column % BLOCK] = error;
    for (uint32_t i = column + 1; i < end; i++)
        w[i] -= error * u[i];
}

static void feed_back(const struct job *j, const struct band *b) {
    uint32_t columns = j->q->view.columns;
    for (uint32_t begin = 0; begin < columns; begin += BLOCK) {
        uint32_t end = begin + BLOCK < columns ? begin + BLOCK : columns;
        for (uint32_t r = 0; r < b->n; r++) {
            struct quantize_params p = {0};
            for (uint32_t c = begin; c < end; c++) {
                if (c % j->scheme->group == 0)
                    p = choose(j, b, r, c);
                feed_column(j, b, r, c, end, p);
            }
        }
        quantize_multiply(b->w + end, columns, b->errors, BLOCK, 1,
                j->stats->hessian + (size_t)begin * columns + end, columns, b->n, columns - end, end - begin,
                -1.0f);
    }
}

static void measure(const struct job *j, const struct band *b, double sums[4]) {
    const struct quantize_matrix *q = j->q;
    uint32_t columns = q->view.columns;
    quantize_matrix_values(q, b->first, b->n, b->w);
    for (uint32_t r = 0; r < b->n; r++) {
        const float *original = b->original + (size_t)r * columns, *value = b->w + (size_t)r * columns;
        for (uint32_t i = 0; i < columns; i++) {
            double w = original[i], miss = w - (double)value[i], weight = j->stats ? j->stats->squares[i] : 0;
            sums[0] += miss * miss;
            sums[1] += w * w;
            sums[2] += weight * miss * miss;
            sums[3] += weight * w * w;
        }
    }
}

static void do_band(void *arg, uint32_t task) {
    struct job *j = arg;
    uint32_t columns = j->q->view.columns, rows = j->q->view.rows;
    struct band b = {.first = task * BAND, .n = rows - task * BAND < BAND ? rows - task * BAND : BAND};
    if (j->stop && *j->stop)
        atomic_store(&j->status, -ECANCELED);
    if (atomic_load(&j->status))
        return;
    size_t size = (size_t)BAND * columns;
    float *memory = malloc((2 * size + BAND * BLOCK) * sizeof(float));
    b.w = memory;
    b.original = memory + size;
    b.errors = memory + 2 * size;
    if (!memory) {
        atomic_store(&j->status, -ENOMEM);
    } else if (!read_band(j, &b)) {
        atomic_store(&j->status, -EBADMSG);
    } else {
        if (j->stats && j->stats->factored)
            feed_back(j, &b);
        else
            round_nearest(j, &b);
        measure(j, &b, j->sums[task]);
    }
    free(memory);
}

/* --- the matrix --- */

static struct quantize_matrix *matrix_new(
        const struct tensor *t, uint32_t rows, const struct quantize_scheme *s) {
    struct quantize_matrix *q = calloc(1, sizeof(*q));
    if (!q)
        return NULL;
    q->view = (struct quant_matrix){.format = s->bits == 4 ? QUANT_INT4 : QUANT_INT8,
            .scale = s->scale == TENSOR_BF16  ? QUANT_SCALE_BF16
                     : s->scale == TENSOR_F16 ? QUANT_SCALE_F16
                                              : QUANT_SCALE_F32,
            .rows = rows,
            .columns = (uint32_t)t->dims[1],
            .group = s->group,
            .zeros = s->asymmetric,
            .codes = read_codes,
            .groups = read_groups,
            .file = q};
    q->bits = s->bits;
    q->scale_dtype = s->scale;
    size_t groups = (size_t)rows * quant_groups(&q->view);
    q->codes = malloc((size_t)rows * q->view.columns);
    q->scales = malloc(groups * sizeof(q->scales[0]));
    q->zeros = malloc(groups);
    if (!q->codes || !q->scales || !q->zeros)
        return quantize_matrix_free(q);
    return q;
}

struct quantize_matrix *quantize_matrix_free(struct quantize_matrix *q) {
    if (!q)
        return NULL;
    free(q->codes);
    free(q->scales);
    free(q->zeros);
    free(q);
    return NULL;
}

int quantize_matrix_make(const struct tensor *t, uint32_t first, uint32_t n, const struct quantize_scheme *s,
        const struct quantize_stats *stats, uint32_t threads, const volatile int *stop,
        struct quantize_matrix **ret, struct error *e) {
    uint32_t bands = (n + BAND - 1) / BAND;
    struct quantize_matrix *q = matrix_new(t, n, s);
    double(*sums)[4] = calloc(bands, sizeof(*sums));
    struct job j = {.q = q, .t = t, .scheme = s, .stats = stats, .first = first, .stop = stop, .sums = sums};
    if (q && sums)
        quantize_parallel(threads, bands, do_band, &j);
    int r = q && sums ? atomic_load(&j.status) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < bands; i++) {
        q->error += sums[i][0];
        q->total += sums[i][1];
        q->weighted_error += sums[i][2];
        q->weighted_total += sums[i][3];
    }
    free(sums);
    if (r == 0) {
        *ret = q;
        return 0;
    }
    quantize_matrix_free(q);
    if (r == -EBADMSG)
        return error_set(e, r, "%s: %s: a weight is infinite or not a number", t->file, t->name);
    if (r == -ECANCELED)
        return error_set(e, r, "interrupted");
    return error_set(e, r, "%s: %s: out of memory", t->file, t->name);
}
