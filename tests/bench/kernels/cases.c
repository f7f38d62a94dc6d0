/* Time of every case of tests/kernels/cases.c, against a plain copy on the same device.
 *
 * Usage: bench-kernels-cases [threads [isa|best [device]]]. A line per size: microseconds (median of rounds), what it
 * has to move per second, and that as a part of what k_download() of a large block moves. Copies of the inputs are used
 * in turn so that caches do not help. */
#include "tests/kernels/cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS     9
#define COPIES_MAX 32u
#define TOGETHER   (192ull << 20) /* bytes that a round moves, if COPIES_MAX lets it */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x) {
    qsort(x, ROUNDS, sizeof *x, by_size);
    return x[ROUNDS / 2];
}

/* Bytes per second of a copy, read and written both counted. */
static double copy_rate(struct k_context *c, struct k_stream *s) {
    const size_t bytes = 64u << 20;
    void *from = k_alloc(c, bytes), *to = k_alloc(c, bytes);
    double seconds[ROUNDS];
    for (int i = -1; i < ROUNDS; i++) { /* the first touches the pages */
        const double t = now();
        k_download(s, to, from, bytes);
        k_stream_wait(s, 0, NULL);
        if (i >= 0)
            seconds[i] = now() - t;
    }
    k_free(c, from), k_free(c, to);
    return 2.0 * (double)bytes / median(seconds);
}

static int time_size(const struct kernel_case *k, const struct case_size *size, struct k_context *c,
        struct k_stream *s, double copy, struct error *e) {
    static struct case_run runs[COPIES_MAX];
    double seconds[ROUNDS];
    uint32_t n = 0;
    uint64_t bytes = 0;
    int rc = 0;
    do {
        rc = case_open(&runs[n], k, size, c, s, e);
        if (rc == 0)
            bytes += k->bytes(&runs[n++]);
    } while (rc == 0 && n < COPIES_MAX && bytes < TOGETHER);
    for (int i = -1; rc == 0 && i < ROUNDS; i++) {
        const double t = now();
        for (uint32_t j = 0; j < n; j++)
            case_queue(&runs[j]);
        rc = k_stream_wait(s, 0, e);
        if (i >= 0)
            seconds[i] = (now() - t) / n;
    }
    if (rc == 0) {
        const double t = median(seconds), rate = (double)bytes / n / t;
        printf("%-20s %4u rows, %5u to %5u at %5u: %9.1f us %7.2f GB/s %4.0f %%\n", k->name, size->rows,
                size->columns, size->outputs, size->position, t * 1e6, rate * 1e-9, 100 * rate / copy);
    }
    while (n > 0)
        case_close(&runs[--n]);
    return rc;
}

int main(int argc, char **argv) {
    const struct k_context_options o = {.threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0,
            .isa = argc > 2 && strcmp(argv[2], "best") != 0 ? argv[2] : NULL,
            .device = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0};
    struct k_context *c = NULL;
    struct k_stream *s = NULL;
    struct error e = {0};
    int rc = k_context_create(&o, &c, &e);
    if (rc == 0)
        rc = k_stream_create(c, &s, &e);
    if (rc == 0) {
        const double copy = copy_rate(c, s);
        printf("%s: a copy moves %.2f GB/s\n", k_context_describe(c), copy * 1e-9);
        for (uint32_t k = 0; k < n_kernel_cases && rc == 0; k++)
            for (uint32_t i = 0; i < 3 && kernel_cases[k].timed[i].rows && rc == 0; i++)
                rc = time_size(&kernel_cases[k], &kernel_cases[k].timed[i], c, s, copy, &e);
    }
    if (rc < 0)
        fprintf(stderr, "%s\n", e.text);
    k_stream_free(s);
    k_context_free(c);
    return rc < 0;
}
