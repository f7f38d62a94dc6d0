/* stats.c - what is learnt of a linear's input while calibration sequences pass: the mean square of every
 * column, and where memory allows all products of two columns. Also the threads that quantize's parts use. */
#include "tp/quantize/parts.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 256u
#define BAND        64u

/* Added to the diagonal, as a part of its mean: keeps the factor away from directions that calibration never saw. */
#define DAMP 0.01

struct work {
    void (*fn)(void *arg, uint32_t i);
    void *arg;
    uint32_t n;
    atomic_uint next;
};

static void *work_main(void *argument) {
    struct work *w = argument;
    for (;;) {
        uint32_t i = atomic_fetch_add(&w->next, 1);
        if (i >= w->n)
            return NULL;
        w->fn(w->arg, i);
    }
}

void quantize_parallel(uint32_t threads, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg) {
    struct work w = {.fn = fn, .arg = arg, .n = n};
    pthread_t helpers[THREADS_MAX];
    uint32_t started = 0, wanted = threads < n ? threads : n;
    /* Without a helper the caller does it all: slower, not wrong. */
    while (started + 1 < wanted && started < THREADS_MAX &&
            pthread_create(&helpers[started], NULL, work_main, &w) == 0)
        started++;
    work_main(&w);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
}

int quantize_stats_init(struct quantize_stats *s, uint32_t columns, bool hessian, struct error *e) {
    *s = (struct quantize_stats){.columns = columns};
    s->squares = calloc(columns, sizeof(s->squares[0]));
    s->importance = calloc(columns, sizeof(s->importance[0]));
    if (hessian)
        s->hessian = calloc((size_t)columns * columns, sizeof(s->hessian[0]));
    if (!s->squares || !s->importance || (hessian && !s->hessian)) {
        quantize_stats_done(s);
        return error_set(e, -ENOMEM, "out of memory for the statistics of %u inputs", columns);
    }
    return 0;
}

void quantize_stats_done(struct quantize_stats *s) {
    free(s->squares);
    free(s->importance);
    free(s->hessian);
    *s = (struct quantize_stats){0};
}

struct add {
    struct quantize_stats *s;
    const float *x;
    uint32_t rows;
};

/* Rows of the hessian from the diagonal on. */
static void add_band(void *arg, uint32_t task) {
    const struct add *a = arg;
    uint32_t k = a->s->columns, begin = task * BAND, end = begin + BAND < k ? begin + BAND : k;
    quantize_multiply(a->s->hessian + (size_t)begin * k + begin, k, a->x + begin, 1, k, a->x + begin, k,
            end - begin, k - begin, a->rows, 1.0f);
}

void quantize_stats_add(struct quantize_stats *s, const float *x, uint32_t rows, uint32_t threads) {
    struct add a = {s, x, rows};
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < s->columns; i++) {
            float v = x[(size_t)r * s->columns + i];
            s->squares[i] += (double)(v * v);
        }
    s->rows += rows;
    if (s->hessian)
        quantize_parallel(threads, (s->columns + BAND - 1) / BAND, add_band, &a);
}

void quantize_stats_prepare(struct quantize_stats *s, uint32_t threads) {
    double mean = 0;
    uint32_t n = s->columns;
    for (uint32_t i = 0; i < n; i++)
        mean += s->squares[i] / n;
    if (mean <= 0)
        mean = 1; /* nothing ever came through: all columns count the same */
    for (uint32_t i = 0; i < n; i++)
        s->importance[i] = (float)(s->squares[i] / mean + DAMP);
    if (!s->hessian)
        return;
    for (size_t i = 0; i < (size_t)n * n; i++)
        s->hessian[i] = (float)(s->hessian[i] / mean);
    for (uint32_t i = 0; i < n; i++)
        s->hessian[(size_t)i * n + i] += (float)DAMP;
    s->factored = quantize_inverse_factor(s->hessian, n, threads) == 0;
    if (!s->factored) {
        free(s->hessian);
        s->hessian = NULL;
        return;
    }
    /* What a column's error costs once the columns after it have made up for what they can. */
    for (uint32_t i = 0; i < n; i++) {
        float u = s->hessian[(size_t)i * n + i];
        s->importance[i] = 1.0f / (u * u);
    }
}
