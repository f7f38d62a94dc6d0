/* terms.cuh - what the kernels of terms of bf16 share: a slot of a strip times some rows, in the one order that every
 * kernel adds up in.
 *
 * A weight is exact in one bf16 (BF16; FP8, INT4 and INT8 without their scale), two (F16) or three (F32), and so is x
 * in three; every product of two of them is exact, and those whose places add up to more than 2 are left out: they
 * are below 2^-24 of the whole. What is rounded are sums. The order, which is the same for every row count and grid:
 *
 *   chain   of the k of a slot (dense) or of a segment (quantised): first the products of places that add up to 2,
 *           then 1, then 0, each over k ascending, so that what is small was added before the sum is large
 *   leaf    + chain (dense), or fma(chain, scale, leaf), and with minimums fma(-sum of x, minimum, leaf)
 *   tree    over leaves, as everywhere
 *
 * How a tensor core adds the 16 products of a step is its own: bits are promised per architecture. An output is within
 * 2^-20 of its sum of |w x| of the exact one (with minimums: of (|w + minimum| + |minimum|) |x|); the CPU's, whose leaf
 * rounds at every k, within leaf columns * 2^-24.
 *
 * Activations that were rounded to bf16 are one term; the rest of the order is the same, and so are the bits of x that
 * is a bf16 in three.
 *
 * A slot is 2 KB of a strip's codes (INT4: 1 KB): 32, 64 or 128 k. An Input has Input::X terms of x and gives the B
 * fragments of a pair of steps of the slot: load(n, term, pair), of the n-th eight rows. Input::UNROLL: how often
 * the loop over terms is unrolled: TERMS times is faster where registers are left. */
#pragma once

#include "kernels/cuda/product.cuh"

#define ONE_PAIR 0x3f803f80u

template <int FORM> struct weight {
    static constexpr bool DENSE = FORM >= FORM_BF16, CODES = FORM <= FORM_INT8,
                          TAKES_BF16 = FORM <= FORM_BF16; /* form_takes_bf16() */
    static constexpr int PLACES = FORM == FORM_F16 ? 2 : FORM == FORM_F32 ? 3 : 1;
    static constexpr uint32_t PAIRS = FORM == FORM_F32 ? 1 : DENSE ? 2 : 4; /* of steps of 16 k, of a slot */
    static constexpr uint32_t BYTES = FORM == FORM_INT4 ? 1024 : 2048;      /* of a slot of a strip */
    static constexpr uint32_t MIDDLE = FORM == FORM_INT4 ? 8 : 128;         /* the zero of who has none */
};
template <int FORM> static __host__ __device__ __forceinline__ uint32_t slots_of_leaf(const struct panel &w) {
    return (w.leaf_columns + weight<FORM>::PAIRS * 32 - 1) / (weight<FORM>::PAIRS * 32);
}
/* Bytes of scales and zeros behind a strip's codes in a slot. */
template <int FORM, bool ANY>
static __host__ __device__ __forceinline__ uint32_t aux_of_slot(const struct panel &w) {
    return ANY || weight<FORM>::DENSE ? 0 : aux_bytes(w);
}

/* --- weights as A fragments --- */

static __device__ __forceinline__ uint32_t upper_halves(float low, float high) {
    return bits_of_float(low) >> 16 | (bits_of_float(high) & 0xffff0000u);
}
/* The place-th 8 bits of x's fraction. */
static __device__ __forceinline__ float term_of(float x, uint32_t place) {
    for (; place > 0; place--)
        x = x - float_of_bits(bits_of_float(x) & 0xffff0000u);
    return x;
}
static __device__ __forceinline__ uint32_t e4m3_pair(uint32_t v) { /* in the upper bytes of the halves */
    return bf16_pair_fma((v & 0x7f007f00u) >> 4 | (v & 0x80008000u), 0x7b807b80u, 0x80008000u); /* 2^120 */
}
/* Bytes of a word, code ^ 128: the b-th and the one two further on, less the zero. */
static __device__ __forceinline__ uint32_t int8_pair(uint32_t word, uint32_t b, float zero) {
    const uint32_t codes = (word ^ 0x80808080u) >> (8 * b);
    return upper_halves(float_of_bits(0x4b000000u | (codes & 255u)) - zero,
            float_of_bits(0x4b000000u | (codes >> 16 & 255u)) - zero);
}
static __device__ __forceinline__ uint32_t int4_pair(uint32_t word, uint32_t shift, uint32_t zeros) {
    return bf16_pair_fma(((word >> shift) & 0x000f000fu) ^ 0x43084308u, ONE_PAIR, zeros);
}

/* What is taken off the codes of rows g and g + 8. */
struct zero_pair {
    float plain[2];      /* INT8: 2^23 + zero */
    uint32_t negated[2]; /* INT4: a pair of -(128 + zero) */
};
static __device__ __forceinline__ void zero_set(struct zero_pair &z, uint32_t r, uint32_t zero) {
    z.plain[r] = 8388608.0f + (float)zero;
    z.negated[r] = (bits_of_float(-128.0f - (float)zero) >> 16) * 0x00010001u;
}

/* The two steps of a pair of steps, of the weights' place-th term; codes: this lane's, of the slot of a strip. */
template <int FORM>
static __device__ __forceinline__ void fragments(
        const uint8_t *codes, uint32_t pair, uint32_t place, const struct zero_pair &z, uint32_t (*a)[4]) {
    if constexpr (FORM == FORM_INT4) {
        const uint2 w = *(const uint2 *)(codes + pair / 2 * 512 + pair % 2 * 8);
#pragma unroll
        for (uint32_t s = 0; s < 2; s++) {
            a[s][0] = int4_pair(w.x, 4 * s, z.negated[0]);
            a[s][1] = int4_pair(w.y, 4 * s, z.negated[1]);
            a[s][2] = int4_pair(w.x, 4 * s + 8, z.negated[0]);
            a[s][3] = int4_pair(w.y, 4 * s + 8, z.negated[1]);
        }
    } else if constexpr (FORM == FORM_INT8) {
        const uint4 w = *(const uint4 *)(codes + pair * 512);
#pragma unroll
        for (uint32_t s = 0; s < 2; s++) {
            a[s][0] = int8_pair(s ? w.z : w.x, 0, z.plain[0]);
            a[s][1] = int8_pair(s ? w.w : w.y, 0, z.plain[1]);
            a[s][2] = int8_pair(s ? w.z : w.x, 1, z.plain[0]);
            a[s][3] = int8_pair(s ? w.w : w.y, 1, z.plain[1]);
        }
    } else if constexpr (FORM == FORM_FP8) {
        const uint4 w = *(const uint4 *)(codes + pair * 512);
#pragma unroll
        for (uint32_t s = 0; s < 2; s++) {
            a[s][0] = e4m3_pair((s ? w.z : w.x) << 8);
            a[s][1] = e4m3_pair(s ? w.z : w.x);
            a[s][2] = e4m3_pair((s ? w.w : w.y) << 8);
            a[s][3] = e4m3_pair(s ? w.w : w.y);
        }
    } else if constexpr (FORM == FORM_F32) {
#pragma unroll
        for (uint32_t h = 0; h < 4; h++) {
            const float4 w = *(const float4 *)(codes + (pair * 4 + h) * 512);
            a[h / 2][h % 2 * 2] = upper_halves(term_of(w.x, place), term_of(w.y, place));
            a[h / 2][h % 2 * 2 + 1] = upper_halves(term_of(w.z, place), term_of(w.w, place));
        }
    } else {
#pragma unroll
        for (uint32_t s = 0; s < 2; s++) {
            const uint4 w = *(const uint4 *)(codes + (pair * 2 + s) * 512);
            const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (uint32_t r = 0; r < 4; r++)
                a[s][r] = FORM == FORM_BF16
                                  ? words[r]
                                  : upper_halves(term_of(float_of_f16((uint16_t)words[r]), place),
                                            term_of(float_of_f16((uint16_t)(words[r] >> 16)), place));
        }
    }
}

/* Which k of a run a segment has, where it may begin and end anywhere. */
struct k_range {
    uint32_t from, to;
};
template <bool CODE_ORDER>
static __device__ __forceinline__ uint32_t half_within(
        struct k_range r, uint32_t pair, uint32_t s, uint32_t b) {
    const uint32_t i = threadIdx.x % 4,
                   low = CODE_ORDER ? pair * 32 + 8 * i + 4 * s + b : pair * 32 + 16 * s + 8 * b + 2 * i,
                   high = low + (CODE_ORDER ? 2 : 1);
    return (low >= r.from && low < r.to ? 0xffffu : 0u) | (high >= r.from && high < r.to ? 0xffff0000u : 0u);
}
template <bool CODE_ORDER>
static __device__ __forceinline__ void input_cut(uint4 &x, struct k_range r, uint32_t pair) {
    if (r.from <= pair * 32 && pair * 32 + 32 <= r.to)
        return;
    x.x &= half_within<CODE_ORDER>(r, pair, 0, 0);
    x.y &= half_within<CODE_ORDER>(r, pair, 0, 1);
    x.z &= half_within<CODE_ORDER>(r, pair, 1, 0);
    x.w &= half_within<CODE_ORDER>(r, pair, 1, 1);
}

/* --- chains --- */

template <int STRIPS, int TILES> struct sums { float of[STRIPS][TILES][4]; };

/* The chain of pairs first .. end - 1 of a slot. OF_X: of ones instead of weights, which is the sum of x. */
template <int FORM, bool ANY, bool OF_X, class Input, int STRIPS, int TILES>
static __device__ __forceinline__ void chain_add(sums<STRIPS, TILES> &acc, const uint8_t *codes,
        uint32_t strip_bytes, const struct zero_pair *zeros, const Input &in, uint32_t first, uint32_t end,
        struct k_range range) {
#pragma unroll Input::UNROLL
    for (int places = TERMS - 1; places >= 0; places--) {
#pragma unroll
        for (uint32_t pair = 0; pair < weight<FORM>::PAIRS; pair++) {
#pragma unroll
            for (int place = 0; place < weight<FORM>::PLACES && place <= places; place++) {
                if (pair < first || pair >= end || places - place >= Input::X)
                    continue;
                uint4 x[TILES];
#pragma unroll
                for (uint32_t n = 0; n < TILES; n++) {
                    x[n] = in.load(n, places - place, pair);
                    if (ANY)
                        input_cut<weight<FORM>::CODES>(x[n], range, pair);
                }
#pragma unroll
                for (uint32_t m = 0; m < STRIPS; m++) {
                    uint32_t a[2][4] = {{ONE_PAIR, ONE_PAIR, ONE_PAIR, ONE_PAIR},
                            {ONE_PAIR, ONE_PAIR, ONE_PAIR, ONE_PAIR}};
                    if (!OF_X)
                        fragments<FORM>(codes + m * strip_bytes, pair, place, zeros[m], a);
#pragma unroll
                    for (uint32_t n = 0; n < TILES; n++) {
                        mma_bf16(acc.of[m][n], a[0], x[n].x, x[n].y, acc.of[m][n]);
                        mma_bf16(acc.of[m][n], a[1], x[n].z, x[n].w, acc.of[m][n]);
                    }
                }
            }
        }
    }
}

/* --- a slot --- */

/* Of a segment: the scale of each strip's rows g and g + 8, and what is taken off their codes. */
template <int STRIPS> struct segment_of {
    float scale[STRIPS][2];
    struct zero_pair zeros[STRIPS];
};

template <int STRIPS, int TILES>
static __device__ __forceinline__ void chain_fold(
        const sums<STRIPS, TILES> &acc, const segment_of<STRIPS> &w, sums<STRIPS, TILES> &leaf) {
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++)
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++)
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                leaf.of[m][n][e] = fmaf(acc.of[m][n][e], w.scale[m][e >> 1], leaf.of[m][n][e]);
}

template <int FORM, class Input, int STRIPS, int TILES>
static __device__ __forceinline__ void slot_dense(
        const uint8_t *codes, const Input &in, sums<STRIPS, TILES> &leaf) {
    const struct zero_pair none[STRIPS] = {};
    sums<STRIPS, TILES> acc = {};
    chain_add<FORM, false, false>(
            acc, codes, weight<FORM>::BYTES, none, in, 0, weight<FORM>::PAIRS, k_range{});
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++)
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++)
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                leaf.of[m][n][e] = leaf.of[m][n][e] + acc.of[m][n][e];
}

/* A run in equal segments; scales and zeros are in the slot, behind each strip's codes. SEGMENTS: how many, 0: as many
 * as the panel says. */
template <int FORM, int SEGMENTS, class Input, int STRIPS, int TILES>
static __device__ __forceinline__ void slot_evenly(
        const struct panel &w, const uint8_t *codes, const Input &in, sums<STRIPS, TILES> &leaf) {
    const uint32_t segments = SEGMENTS ? SEGMENTS : w.segments, lane = threadIdx.x % 32, pairs = 4 / segments,
                   strip_bytes = weight<FORM>::BYTES + aux_bytes(w),
                   pair_bytes = w.scale == QUANT_SCALE_F32 ? 8 : 4;
    for (uint32_t segment = 0; segment < segments; segment++) {
        segment_of<STRIPS> of;
#pragma unroll
        for (uint32_t m = 0; m < STRIPS; m++) {
            const uint8_t *aux = codes - lane * 16 + m * strip_bytes + weight<FORM>::BYTES;
            pair_load(aux + (segment * 8 + lane / 4) * pair_bytes, w.scale, of.scale[m]);
            const uint8_t *zeros = aux + scale_bytes(w) + (segment * 8 + lane / 4) * 2;
#pragma unroll
            for (uint32_t r = 0; r < 2 && weight<FORM>::CODES; r++)
                zero_set(of.zeros[m], r, w.zeros ? zeros[r] : weight<FORM>::MIDDLE);
        }
        sums<STRIPS, TILES> acc = {};
        chain_add<FORM, false, false>(
                acc, codes, strip_bytes, of.zeros, in, segment * pairs, (segment + 1) * pairs, k_range{});
        chain_fold(acc, of, leaf);
    }
}
/* Of dense weights, or in equal segments. A kernel that knows that a run is one of them unpacks
 * it once for all terms. */
template <int FORM, class Input, int STRIPS, int TILES>
static __device__ __forceinline__ void slot_of(
        const struct panel &w, const uint8_t *codes, const Input &in, sums<STRIPS, TILES> &leaf) {
    if constexpr (weight<FORM>::DENSE)
        slot_dense<FORM>(codes, in, leaf);
    else if (w.segments == 1)
        slot_evenly<FORM, 1>(w, codes, in, leaf);
    else
        slot_evenly<FORM, 0>(w, codes, in, leaf);
}
