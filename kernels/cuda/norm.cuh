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

/* 1 / sqrt(mean(x^2) + eps) of d_x[n], in every thread; all of the block call it. shared: [NORM_CHAINS], to be used
 * again after a barrier. */
static __device__ float norm_scale(const float *d_x, uint32_t n, float eps, float *shared) {
    const uint32_t lane = threadIdx.x % 32, chains = n > NORM_SHORT ? NORM_CHAINS : 16;
    float acc = 0.0f;
    for (uint32_t first = threadIdx.x; threadIdx.x < chains && first < n; first += NORM_BATCH * chains) {
        float x[NORM_BATCH];
#pragma unroll
        for (uint32_t i = 0; i < NORM_BATCH; i++)
            x[i] = first + i * chains < n ? d_x[first + i * chains] : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < NORM_BATCH; i++)
            acc = fmaf(x[i], x[i], acc);
    }
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
