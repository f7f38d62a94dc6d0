/* timing.h - what the benchmarks of kernels/cuda share: the end where a call fails, the middle of some measurements,
 * and the card's own roof, a plain copy. Included by the programs of this folder. */
#pragma once

#include "base/clock.h"
#include "base/error.h"

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 7

static inline void must(int r, const struct error *e) {
    if (r < 0) {
        fprintf(stderr, "%s\n", e->text);
        exit(1);
    }
}
static inline int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Of x[ROUNDS], which it sorts. */
static inline double median(double *x) {
    qsort(x, ROUNDS, sizeof *x, by_size);
    return x[ROUNDS / 2];
}

/* Bytes per second of a copy on the device, read and written both counted. */
static inline double copy_rate(void) {
    const size_t bytes = 1ull << 30;
    void *from, *to;
    double seconds[ROUNDS];
    if (cudaMalloc(&from, bytes) != cudaSuccess || cudaMalloc(&to, bytes) != cudaSuccess)
        exit(1);
    for (int i = -1; i < ROUNDS; i++) {
        const uint64_t t = clock_ns();
        for (int k = 0; k < 10; k++)
            cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, NULL);
        cudaStreamSynchronize(NULL);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / 10;
    }
    cudaFree(from);
    cudaFree(to);
    return 2.0 * (double)bytes / median(seconds);
}
