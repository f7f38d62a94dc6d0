/* norm.cuh - the scale of an RMS norm: one row, one block.
 *
 * The sum is kernels.h's and operation by operation norm_square() of kernels/cpu/isa/body_rows.h: a thread is a chain
 * of every NORM_CHAINS-th element (20 fma for 5120), 16 threads are one accumulator of 16 lanes; then the tree over
 * accumulators and that over lanes, which every warp adds for itself. Reads 4 bytes an element. */
#pragma once

#include "kernels/shared/constants.h"
#include "kernels/shared/portable.h"

#include <cuda_runtime.h>
#include <math.h>

#define NORM_THREADS NORM_CHAINS /* of the block */
#define NORM_BATCH   20u         /* elements of a thread that are loaded before the first is used */

/* Elements of this thread's chain, from `first` on; those that are not there are 0. */
struct norm_batch {
    float x[NORM_BATCH];
};
static __device__ __forceinline__ uint32_t norm_chains(uint32_t n) {
    return n > NORM_SHORT ? NORM_CHAINS : 16;
}
static __device__ __forceinline__ void norm_ask(
        const float *d_x, uint32_t n, uint32_t first, struct norm_batch &b) {
    const uint32_t chains = norm_chains(n), left = threadIdx.x < chains && first < n ? n - first : 0;
#pragma unroll
    for (uint32_t i = 0; i < NORM_BATCH; i++)
        b.x[i] = i * chains < left ? d_x[first + i * chains] : 0.0f;
}
/* This thread's chain of d_x[n]; b: its first batch. */
static __device__ __forceinline__ float norm_chain(const float *d_x, uint32_t n, struct norm_batch &b) {
    float acc = 0.0f;
    for (uint32_t first = threadIdx.x;;) {
#pragma unroll
        for (uint32_t i = 0; i < NORM_BATCH; i++)
            acc = fmaf(b.x[i], b.x[i], acc);
        first += NORM_BATCH * norm_chains(n);
        if (first >= n)
            return acc;
        norm_ask(d_x, n, first, b);
    }
}
/* 1 / sqrt(mean(x^2) + eps) from all chains, in every thread; all of the block call it. shared: [NORM_CHAINS], to be
 * used again after a barrier. */
static __device__ __forceinline__ float norm_of_chains(float acc, uint32_t n, float eps, float *shared) {
    const uint32_t lane = threadIdx.x % 32;
    shared[threadIdx.x] = acc;
    __syncthreads();
    const float *all =
            shared + lane / 16 * (NORM_CHAINS / 2) + lane % 16; /* half of the accumulators, of one lane */
    float sum = ((all[0] + all[16]) + (all[32] + all[48])) + ((all[64] + all[80]) + (all[96] + all[112]));
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, d);
    return 1.0f / sqrtf(sum / (float)n + eps);
}
/* All of it, of d_x[n]. */
static __device__ __forceinline__ float norm_scale(const float *d_x, uint32_t n, float eps, float *shared) {
    struct norm_batch b;
    norm_ask(d_x, n, threadIdx.x, b);
    return norm_of_chains(norm_chain(d_x, n, b), n, eps, shared);
}
