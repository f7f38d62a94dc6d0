/* attention_heads.cuh - what becomes of a head of a row before attention: the norm of q and k, and rope. A warp has the
 * head.
 *
 *   bits     as kernels/cpu has them: the norm's sum is 16 chains of every 16th element, then a tree */
#pragma once

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/shared/trigonometry.h"

#define CHAINS 16u
static_assert(HEAD_DIM_MAX <= NORM_SHORT, "a head's norm has 16 chains");

/* cos[half], sin[half] of a row, in shared memory, by a warp. Frequency i takes the position of height if i % 3 == 1,
 * of width if i % 3 == 2, of time otherwise, as far as each section (a third of the frequencies, the remainder to
 * time, then height) goes. */
static __device__ void rope_angles(const struct attention_args &a, uint32_t row, float *cos_sin_row) {
    const uint32_t half = a.pool.shape.rotary_dim / 2, height = (half + 1) / 3, width = half / 3;
    const uint32_t *d_pos = a.batch.d_row_rope + (uint64_t)row * 3;
    for (uint32_t i = threadIdx.x % 32; i < half; i += 32) {
        const uint32_t axis = i % 3 == 1 && i < 3 * height ? 1 : i % 3 == 2 && i < 3 * width ? 2 : 0;
        cos_sin((float)(load_read_only(d_pos + axis) + a.shift) * load_read_only(a.pool.d_inv_freq + i),
                &cos_sin_row[i], &cos_sin_row[half + i]);
    }
}

/* A head of a row, of up to DIM columns, as a warp reads it; 0 behind the last column. */
template <uint32_t DIM> struct row_head {
    float chain[DIM / CHAINS];      /* columns of the lane's chain; lanes l and l + 16 are the same chain */
    float x[DIM / 32], w[DIM / 32]; /* columns lane, lane + 32, ..; their norm weights */
};
template <uint32_t DIM>
static __device__ __forceinline__ void head_load(
        struct row_head<DIM> *r, const float *d_x, const float *d_norm, uint32_t d) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t k = 0; k < DIM / CHAINS; k++) {
        const uint32_t c = lane % CHAINS + k * CHAINS;
        r->chain[k] = c < d ? load_read_only(d_x + c) : 0.0f;
    }
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++) {
        const uint32_t c = lane + k * 32;
        r->x[k] = c < d ? load_read_only(d_x + c) : 0.0f;
        r->w[k] = c < d ? load_read_only(d_norm + c) : 0.0f;
    }
}
/* x = norm(x). The zeros behind the last column leave the sum of squares as it is. */
template <uint32_t DIM>
static __device__ __forceinline__ void head_norm(struct row_head<DIM> *r, uint32_t d, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < DIM / CHAINS; k++)
        sum = fmaf(r->chain[k], r->chain[k], sum);
    for (int n = CHAINS / 2; n > 0; n /= 2)
        sum = sum + __shfl_xor_sync(ALL_LANES, sum, n);
    const float scale = 1.0f / sqrtf(sum / (float)d + eps);
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++)
        r->x[k] = r->x[k] * scale * r->w[k];
}
/* Column c of rope(x), where x is the head's row and own its column c: pairs (i, i + half), the rest as it is. */
static __device__ __forceinline__ float rope_of(
        const float *x, float own, uint32_t c, uint32_t half, const float *cos_sin_row) {
    if (c < half)
        return fmaf(-x[c + half], cos_sin_row[half + c], own * cos_sin_row[c]);
    if (c < 2 * half)
        return fmaf(x[c - half], cos_sin_row[c], own * cos_sin_row[c - half]);
    return own;
}

/* K of a kv head in a page; V lies behind it. */
static __device__ __forceinline__ uint8_t *page_head(
        const struct attention_args &a, uint32_t page, uint32_t head) {
    return a.pool.d_kv + ((uint64_t)a.layer * a.pool.pages + page) * a.pool.layout.page_bytes +
           head * a.pool.layout.page_head_bytes;
}
