/* integers.h - numbers that share a scale become integers: the rule of INT8 in kernels.h, for kernels that apply it a
 * thread a number. kernels/cpu does the same over 16 lanes (isa/body_quantise.h). */
#pragma once

#include "kernels/shared/elementary.h"

/* max|x| / steps, and no number where an x is none; highest: the largest of the bits of all |x|. */
K_INLINE float integers_scale(uint32_t highest, float steps) {
    return highest >= 0x7f800000u ? float_of_bits(0x7fc00000u) : float_of_bits(highest) / steps;
}
/* x / scale to nearest even, within +-steps; 0 where the scale is not above 0. */
K_INLINE int32_t integer_of(float x, float scale, float steps) {
    if (!(scale > 0.0f))
        return 0;
    float q = x / scale;
    q = -steps > q ? -steps : q;
    q = steps < q ? steps : q;
    return (int32_t)(bits_of_float(q + ROUND_MAGIC) - bits_of_float(ROUND_MAGIC));
}
/* A word of 16 bits within +-WORD_STEPS is 256 high + low, both signed bytes. */
K_INLINE int32_t word_high(int32_t word) {
    return (word + 128) >> 8;
}
K_INLINE int32_t word_low(int32_t word) {
    return word - 256 * word_high(word);
}
