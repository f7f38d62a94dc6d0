/* rounding.cuh - how a warp brings one run of a row into the form of a product, INT8 or terms of bf16, normalised and
 * reordered before where a linear wants it: for quantise.cu, which does it for all rows, and own_row.cuh, where a
 * product does it for itself.
 *
 * The rule is kernels.h's, operation by operation kernels/cpu/isa/body_rows.h and body_codes.h. */
#pragma once

#include "kernels/cuda/product.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/constants.h"
#include "kernels/shared/elementary.h"

/* Four k of a run as they come from memory: x, and the norm's weights. */
struct run_values {
    float x[4], norm[4];
};
static __device__ __forceinline__ void run_load(
        const struct input &in, const float *d_x, uint32_t run, struct run_values &v) {
    const uint32_t leaf = run / in.runs, k = run % in.runs * ACTIVATION_RUN + threadIdx.x % 32 * 4,
                   at = leaf * in.leaf_columns + k;
    if (!in.d_order && in.columns % 4 == 0 && in.leaf_columns % 4 == 0 && k < in.leaf_columns) {
        *(float4 *)v.x = *(const float4 *)(d_x + at);
        if (in.d_norm)
            *(float4 *)v.norm = load_read_only((const float4 *)(in.d_norm + at));
        return;
    }
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const bool there = k + e < in.leaf_columns;
        const uint32_t from = there && in.d_order ? load_read_only(in.d_order + at + e) : at + e;
        v.x[e] = there ? d_x[from] : 0.0f;
        v.norm[e] = there && in.d_norm ? load_read_only(in.d_norm + from) : 0.0f;
    }
}

/* Normalised, as it enters the product. */
static __device__ __forceinline__ void run_norm(struct run_values &v, float scale) {
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        v.x[e] = v.x[e] * scale * v.norm[e];
}

/* x / scale, whose inverse is given: exact after two steps, as a division is made, since nothing of it leaves the
 * normal numbers here; and no code has to be held down to 127, since no x is above 127 scale. */
#define SCALE_LEAST 8.3e-25f /* 2^-80 */
#define SCALE_MOST  1.2e+24f /* 2^80 */
static __device__ __forceinline__ float divided_by(float x, float scale, float inverse) {
    float q = x * inverse;
    q = fmaf(fmaf(-q, scale, x), inverse, q);
    return fmaf(fmaf(-q, scale, x), inverse, q);
}
static __device__ __forceinline__ uint32_t code_of(float q, uint32_t e) {
    return ((bits_of_float(q + ROUND_MAGIC) - bits_of_float(ROUND_MAGIC)) & 255u) << (8 * e);
}
/* Four codes, the first in the low byte; highest: bits of the largest |x| of the run. */
static __device__ __forceinline__ uint32_t codes_of(const float *x, uint32_t highest, float *ret_scale) {
    const float scale = highest >= 0x7f800000u ? float_of_bits(0x7fc00000u) : float_of_bits(highest) / 127.0f;
    uint32_t codes = 0;
    *ret_scale = scale;
    if (scale > SCALE_LEAST && scale < SCALE_MOST) {
        const float inverse = 1.0f / scale;
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            codes |= code_of(divided_by(x[e], scale, inverse), e);
        return codes;
    }
    if (!(scale > 0.0f))
        return 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        float q = x[e] / scale;
        q = -127.0f > q ? -127.0f : q;
        q = 127.0f < q ? 127.0f : q;
        codes |= code_of(q, e);
    }
    return codes;
}
/* Those of a whole run, by a warp of which lane l has k 4l .. 4l + 3. */
static __device__ __forceinline__ uint32_t run_codes_of(const float *x, float *ret_scale) {
    uint32_t highest = 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t size = bits_of_float(x[e]) & 0x7fffffffu;
        highest = size > highest ? size : highest;
    }
    return codes_of(x, __reduce_max_sync(0xffffffffu, highest), ret_scale);
}
/* Where a lane's four codes lie in the 64 bytes of its half of the run, in the fragments of mma_s8(): k = 64h + 32s +
 * 8i + 4b is half h, step s of it, lane i of the row's four, register b. */
static __device__ __forceinline__ uint32_t code_place(uint32_t lane) {
    return lane / 2 % 4 * 16 + lane / 8 % 2 * 8 + lane % 2 * 4;
}

/* A run of a row as INT8: where products of many read it. */
static __device__ __forceinline__ void run_codes_put(
        const struct activations &to, const float *x, uint32_t row, uint32_t run) {
    const uint32_t lane = threadIdx.x % 32;
    float scale;
    const uint32_t codes = run_codes_of(x, &scale);
    uint8_t *d_tile = to.d_codes + ((uint64_t)run * to.row_tiles + row / 8) * 1024;
    *(uint32_t *)(d_tile + lane / 16 * 512 + row % 8 * 64 + code_place(lane)) = codes;
    if (lane == 0)
        to.d_scales[(uint64_t)run * to.row_tiles * 8 + row] = scale;
}

/* Takes the upper 8 bits of x's fraction off as a bf16, in the upper half of the result; what is no number stays
 * none. */
static __device__ __forceinline__ uint32_t term_off(float *x) {
    const uint32_t bits = bits_of_float(*x), term = bits & 0xffff0000u, size = bits & 0x7fffffffu;
    *x = size < 0x7f800000u ? *x - float_of_bits(term) : 0.0f;
    return size > 0x7f800000u ? term | 0x00400000u : term;
}
/* The n terms of a run, or one that is rounded, from values that are used up: of the 32 k of lane / 8, in the 64 bytes
 * at `place`, terms `stride` apart. */
static __device__ __forceinline__ void run_terms_put(
        uint8_t *place, uint32_t stride, uint32_t n, enum terms_order order, struct run_values &v) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t term = 0; term < TERMS && term < n; term++, place += stride) {
        uint32_t t[4];
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            t[e] = n == 1 ? (uint32_t)bf16_of(v.x[e]) << 16 : term_off(&v.x[e]);
        if (order == TERMS_CODES) { /* k = 32 .. + 8i + 4s */
            uint2 both;
            both.x = t[0] >> 16 | t[2];
            both.y = t[1] >> 16 | t[3];
            *(uint2 *)(place + lane / 2 % 4 * 16 + lane % 2 * 8) = both;
        } else { /* k = 32 .. + 16s + 8b + 2i, i and i + 1 */
            uint8_t *pair = place + lane % 2 * 32 + lane / 4 % 2 * 8 + lane / 2 % 2 * 4;
            *(uint32_t *)pair = t[0] >> 16 | t[1];
            *(uint32_t *)(pair + 16) = t[2] >> 16 | t[3];
        }
    }
}
/* A run of a row as terms: where products of many read it. */
static __device__ __forceinline__ void run_terms_put(
        const struct terms &to, enum terms_order order, struct run_values &v, uint32_t row, uint32_t run) {
    uint8_t *d_tile = to.d_terms + ((uint64_t)run * to.row_tiles + row / 8) * (to.n * TERM_BYTES);
    run_terms_put(d_tile + threadIdx.x % 32 / 8 * 512 + row % 8 * 64, TERM_BYTES, to.n, order, v);
}
