/* body_widen.h - quantised weights as fp32, for one instruction set: what FP8 always is multiplied as, and INT4
 * and INT8 when the activations stay fp32. A weight is scale * (code - zero), rounded, minus its minimum, rounded. */
#pragma once

#include "kernels/cpu/isa/body_math.h"

static inline v16 segment_scales(const struct form *f, const uint8_t *block, uint32_t segment) {
    const uint8_t *at = block + f->scales_at;
    if (f->scale == QUANT_SCALE_F32)
        return v_load((const float *)at + segment * 16);
    if (f->scale == QUANT_SCALE_BF16)
        return v_load_bf16((const uint16_t *)at + segment * 16);
    return v_load_f16((const uint16_t *)at + segment * 16);
}
static inline v16i segment_zeros(const struct form *f, const uint8_t *block, uint32_t segment) {
    if (f->zeros)
        return vi_load_bytes(block + f->zeros_at + segment * 16);
    return vi_set1(f->kind == KIND_INT4 ? 8 : 128);
}
static inline v16 segment_minimums(const struct form *f, const uint8_t *block, uint32_t segment) {
    return v_load((const float *)(block + f->minimums_at) + segment * 16);
}
static inline uint32_t segment_bytes(uint32_t kind, uint32_t n) {
    return kind == KIND_INT4 ? (n + 7) / 8 * 64 : kind == KIND_INT8 ? (n + 3) / 4 * 64 : n * 16;
}

/* Exact: the byte's exponent and mantissa are moved into a float and multiplied by 2^120. */
static inline v16 v_of_e4m3(v16i q) {
    v16 x = v_mul(v_of_bits(vi_shift_left(vi_and(q, vi_set1(0x7f)), 20)), v_set1(0x1p120f));
    return v_of_bits(vi_xor(v_bits(x), vi_shift_left(vi_and(q, vi_set1(0x80)), 24)));
}

#define WIDEN_ONE(shift, mask, k)                                                                            \
    do {                                                                                                     \
        v16 w_ = v_mul(scale, v_of_int(vi_sub(vi_and(vi_shift_right(c, shift), mask), zero)));               \
        v_store(to + (k)*16, f->minimums ? v_sub(w_, minimum) : w_);                                         \
    } while (0)

/* n k of one segment to [k][16]; up to the next multiple of 8 is written. */
static void widen_segment(const struct form *f, const uint8_t *block, const uint8_t *codes, uint32_t segment,
        uint32_t n, float *to) {
    const v16 scale = segment_scales(f, block, segment);
    if (f->kind == KIND_FP8) {
        for (uint32_t k = 0; k < n; k++)
            v_store(to + k * 16, v_mul(scale, v_of_e4m3(vi_load_bytes(codes + k * 16))));
        return;
    }
    const v16i zero = segment_zeros(f, block, segment);
    const v16 minimum = f->minimums ? segment_minimums(f, block, segment) : v_set1(0.0f);
    if (f->kind == KIND_INT4) {
        const v16i nibble = vi_set1(15);
        for (uint32_t k = 0; k < n; k += 8, codes += 64) {
            const v16i c = vi_load(codes);
            WIDEN_ONE(0, nibble, k);
            WIDEN_ONE(8, nibble, k + 1);
            WIDEN_ONE(16, nibble, k + 2);
            WIDEN_ONE(24, nibble, k + 3);
            WIDEN_ONE(4, nibble, k + 4);
            WIDEN_ONE(12, nibble, k + 5);
            WIDEN_ONE(20, nibble, k + 6);
            WIDEN_ONE(28, nibble, k + 7);
        }
        return;
    }
    const v16i byte = vi_set1(255);
    for (uint32_t k = 0; k < n; k += 4, codes += 64) {
        const v16i c = vi_load(codes);
        WIDEN_ONE(0, byte, k);
        WIDEN_ONE(8, byte, k + 1);
        WIDEN_ONE(16, byte, k + 2);
        WIDEN_ONE(24, byte, k + 3);
    }
}
