/* product.cuh - what the kernels of a product share: a run of 128 k of one strip times some rows, out of shared memory.
 *
 * m16n8k32: the 16 rows of a strip are the matrix' rows, 8 activation rows its columns; TILES is how many eights of
 * them a warp has. Lane l has g = l / 4 and i = l % 4, of accumulators rows g and g + 8, columns 2i and 2i + 1.
 *
 * Accumulators begin at 0x4B400000, whose bits stay the float 12582912 + n while |n| < 2^22 = 4194304. The largest
 * are INT4's 16 n with |code - zero| <= 15: 15 * 127 * 128 * 16 = 3901440, and INT8's 255 * 127 * 128 = 4145280. */
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/constants.h"
#include "kernels/shared/portable.h"

#define MAGIC 0x4b400000
#define ONES  0x01010101u

/* How a run is cut into segments: that many equal ones, with zeros or without; CUT_ANY: by segment_end(), and scales,
 * zeros and minimums are read where they lie and not through a ring. Each is a kernel of its own: what is known when it
 * is compiled costs a third of a run's instructions less. */
enum cut {
    CUT_ANY = 0,
    CUT_1 = 1,
    CUT_2 = 2,
    CUT_4 = 4,
    CUT_SEGMENTS = 7, /* a mask */
    CUT_ZEROS = 8,    /* a flag */
    CUT_1_ZEROS = CUT_1 | CUT_ZEROS,
    CUT_2_ZEROS = CUT_2 | CUT_ZEROS,
    CUT_4_ZEROS = CUT_4 | CUT_ZEROS,
};
static inline enum cut cut_of(const struct panel &w) {
    uint32_t cut = w.segments; /* SEGMENTS_ANY is 0 */
    if (cut && w.zeros)
        cut |= CUT_ZEROS;
    return (enum cut)cut;
}

template <int BITS> struct codes_of_run { static constexpr uint32_t BYTES = BITS == 4 ? 1024 : 2048; };

/* Bytes of scales and zeros of one run of one strip in the ring, scales first. */
static __host__ __device__ __forceinline__ uint32_t scale_bytes(const struct panel &w) {
    return w.segments * STRIP_ROWS * (w.scale == QUANT_SCALE_F32 ? 4 : 2);
}
static __host__ __device__ __forceinline__ uint32_t aux_bytes(const struct panel &w) {
    return scale_bytes(w) + (w.zeros ? w.segments * STRIP_ROWS : 0);
}

/* A panel's codes, as far as a kernel can be told to read them once. */
static inline struct read_once panel_once(
        const struct panel &w, size_t run_bytes, const struct device_size *d) {
    const size_t bytes = (size_t)w.leaves * w.strips * w.runs * run_bytes;
    return {w.d_codes, bytes < d->once_most ? bytes : d->once_most};
}

/* --- activations --- */

/* What a warp has of the activations of a run: rows 8n + g of the fragments, scales of the columns 2i and 2i + 1. */
template <int TILES> struct run_input {
    uint4 codes[TILES][2];
    float scales[TILES][2];
};
template <int TILES>
static __device__ __forceinline__ void input_step(
        const run_input<TILES> &in, uint32_t n, uint32_t step, uint32_t *b) {
    const uint4 &q = in.codes[n][step / 2];
    b[0] = step & 1 ? q.z : q.x;
    b[1] = step & 1 ? q.w : q.y;
}

/* --- weights --- */

/* This lane's codes of a run, in loads of 16 bytes: half a warp's are all banks once. */
template <int BITS> struct run_codes { uint4 p[BITS == 4 ? 2 : 4]; };
template <int BITS>
static __device__ __forceinline__ void codes_load(run_codes<BITS> &c, const uint8_t *lane_codes) {
#pragma unroll
    for (uint32_t i = 0; i < (BITS == 4 ? 2 : 4); i++)
        c.p[i] = *(const uint4 *)(lane_codes + i * 512);
}
/* The A fragment of a step of 32 k: INT4 as 16 (code - 8), INT8 as code - 128. */
template <int BITS>
static __device__ __forceinline__ void codes_step(const run_codes<BITS> &c, uint32_t step, uint32_t *a) {
    if constexpr (BITS == 4) {
        const uint4 &w = c.p[step / 2];
        const uint32_t low = step & 1 ? w.z : w.x, high = step & 1 ? w.w : w.y;
        a[0] = low << 4 & 0xf0f0f0f0u;
        a[1] = high << 4 & 0xf0f0f0f0u;
        a[2] = low & 0xf0f0f0f0u;
        a[3] = high & 0xf0f0f0f0u;
    } else {
        const uint4 &w = c.p[step];
        a[0] = w.x;
        a[1] = w.y;
        a[2] = w.z;
        a[3] = w.w;
    }
}

static __device__ __forceinline__ void pair_load(const uint8_t *scales, uint32_t kind, float *ret) {
    if (kind == QUANT_SCALE_F32) {
        const float2 v = *(const float2 *)scales;
        ret[0] = v.x;
        ret[1] = v.y;
        return;
    }
    const uint32_t v = *(const uint32_t *)scales;
    ret[0] = kind == QUANT_SCALE_BF16 ? float_of_bits(v << 16) : float_of_f16((uint16_t)v);
    ret[1] = kind == QUANT_SCALE_BF16 ? float_of_bits(v & 0xffff0000u) : float_of_f16((uint16_t)(v >> 16));
}

/* What a segment's sums are worth: of rows g and g + 8. */
struct segment_scale {
    float scale[2], minimum[2];
    int32_t zero[2]; /* in units of the accumulator, less what the fragment has taken off */
};
template <int BITS> static __device__ __forceinline__ int32_t zero_of(uint8_t zero) {
    return BITS == 4 ? ((int32_t)zero - 8) * 16 : (int32_t)zero - 128;
}
template <int BITS> static __device__ __forceinline__ float number(int32_t accumulator) {
    const float f = float_of_bits((uint32_t)accumulator);
    return BITS == 4 ? fmaf(f, 0.0625f, -786432.0f) : f - 12582912.0f;
}

/* --- a segment, a run --- */

/* The sums of a segment of one strip on the way, and sums of x itself, of the same columns, where they are needed. */
template <int TILES> struct segment_sums { int32_t acc[TILES][4], x[TILES][4]; };
template <int TILES> static __device__ __forceinline__ void sums_begin(segment_sums<TILES> &s) {
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            s.acc[n][e] = MAGIC;
            s.x[n][e] = 0;
        }
    }
}
/* with_x: also adds up x, as the product with a matrix of ones. */
template <int TILES>
static __device__ __forceinline__ void sums_add(
        segment_sums<TILES> &s, uint32_t n, const uint32_t *a, const uint32_t *b, bool with_x) {
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
    mma_s8(s.acc[n], a, b[0], b[1], s.acc[n]);
    if (with_x)
        mma_s8(s.x[n], ones, b[0], b[1], s.x[n]);
}
template <int BITS, int TILES>
static __device__ __forceinline__ void sums_fold(const segment_sums<TILES> &s, const struct segment_scale &w,
        const run_input<TILES> &in, bool with_x, bool minimums, float (*leaf)[4]) {
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            const float x_scale = in.scales[n][e & 1];
            const int32_t acc = with_x ? s.acc[n][e] - w.zero[e >> 1] * s.x[n][e] : s.acc[n][e];
            leaf[n][e] = fmaf(number<BITS>(acc), w.scale[e >> 1] * x_scale, leaf[n][e]);
            if (minimums)
                leaf[n][e] = fmaf(-(float)s.x[n][e], w.minimum[e >> 1] * x_scale, leaf[n][e]);
        }
    }
}

/* All but CUT_ANY: a run's codes, and its scales and zeros behind each other, are in shared memory. */
template <int BITS, enum cut CUT, int TILES>
static __device__ __forceinline__ void run_evenly(const struct panel &w, const uint8_t *run_codes_at,
        const uint8_t *aux, const run_input<TILES> &in, float (*leaf)[4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, pair_bytes = w.scale == QUANT_SCALE_F32 ? 8 : 4;
    constexpr uint32_t segments = CUT & CUT_SEGMENTS;
    constexpr bool zeros = (CUT & CUT_ZEROS) != 0;
    const uint8_t *scales = aux + g * pair_bytes;
    const uint8_t *zero_pairs = aux + scale_bytes(w) + g * 2;
    run_codes<BITS> codes;
    segment_sums<TILES> sums;
    codes_load(codes, run_codes_at + lane * 16);
    sums_begin(sums);
#pragma unroll
    for (uint32_t step = 0; step < 4; step++) {
        uint32_t a[4], b[2];
        codes_step(codes, step, a);
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++) {
            input_step(in, n, step, b);
            sums_add(sums, n, a, b, zeros);
        }
        if ((step + 1) * segments % 4)
            continue;
        struct segment_scale of = {};
        pair_load(scales, w.scale, of.scale);
        scales += 8 * pair_bytes;
        if (zeros) {
            of.zero[0] = zero_of<BITS>(zero_pairs[0]);
            of.zero[1] = zero_of<BITS>(zero_pairs[1]);
            zero_pairs += STRIP_ROWS;
        }
        sums_fold<BITS, TILES>(sums, of, in, zeros, /* minimums= */ false, leaf);
        sums_begin(sums);
    }
}

/* --- the leaves of a unit meet --- */

/* [warp][row][strip of the unit][16], a warp's part at `stride` floats. */
template <int STRIPS, int TILES>
static __device__ __forceinline__ void leaves_put(float *to, uint32_t rows, const float (*leaf)[TILES][4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++) {
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t row = n * 8 + 2 * i + (e & 1);
                if (row < rows)
                    to[row * (STRIPS * 16) + m * 16 + g + (e >> 1) * 8] = leaf[m][n][e];
            }
        }
    }
}
/* ((0+1)+(2+3))+((4+5)+(6+7)), or the part of it that the rank has. */
static __device__ __forceinline__ float leaves_tree(const float *v, uint32_t stride, uint32_t leaves) {
    float sums[8];
#pragma unroll
    for (uint32_t l = 0; l < 8; l++)
        sums[l] = l < leaves ? v[l * stride] : 0.0f;
#pragma unroll
    for (uint32_t d = 1; d < 8; d *= 2) {
#pragma unroll
        for (uint32_t l = 0; l < 8; l += 2 * d)
            sums[l] = d < leaves ? sums[l] + sums[l + d] : sums[l];
    }
    return sums[0];
}
