/* body_quantise.h - numbers that share a scale become integers, for one instruction set.
 *
 * The scale is max|x| / steps, and no number where an x is none; an integer is x / scale to nearest even, within
 * +-steps, and 0 where the scale is not above 0. */
#pragma once

#include "kernels/cpu/isa/body_math.h"

static float scale_of(const float *x, uint32_t n, float steps) {
    v16i high = vi_set1(0);
    uint32_t lanes[16], h = 0;
    for (uint32_t i = 0; i < n; i += 16)
        high = vi_max(high, vi_and(v_bits(v_load_m(x + i, n - i)), vi_set1(0x7fffffff)));
    v_store((float *)lanes, v_of_bits(high));
    for (uint32_t i = 0; i < 16; i++)
        h = lanes[i] > h ? lanes[i] : h;
    float highest_x;
    memcpy(&highest_x, &h, sizeof h);
    return h >= 0x7f800000u ? (float)NAN : highest_x / steps;
}
static v16i integers_of(v16 x, v16 scale, float steps) {
    const v16 magic = v_set1(ROUND_MAGIC);
    const v16 v = v_min(v_set1(steps), v_max(v_set1(-steps), v_div(x, scale)));
    return vi_sub(v_bits(v_add(v, magic)), v_bits(magic));
}

/* A run of activations, or a head's row of K or V. */
static void quantise_run(const float *x, uint32_t n, int8_t *codes, float *scale) {
    *scale = scale_of(x, n, CODE_STEPS);
    if (!(*scale > 0)) {
        memset(codes, 0, n);
        return;
    }
    for (uint32_t i = 0; i < n; i += 16)
        vi_store_bytes(codes + i, integers_of(v_load_m(x + i, n - i), v_set1(*scale), CODE_STEPS), n - i);
}

/* The same with 16 bits; returns the scale. */
static float quantise_words(const float *x, uint32_t n, int16_t *words) {
    const float scale = scale_of(x, n, WORD_STEPS);
    memset(words, 0, n * sizeof *words);
    for (uint32_t i = 0; i < n && scale > 0; i += 16) {
        int32_t lanes[16];
        const v16i all = integers_of(v_load_m(x + i, n - i), v_set1(scale), WORD_STEPS);
        v_store((float *)lanes, v_of_bits(all));
        for (uint32_t k = 0; k < 16 && i + k < n; k++)
            words[i + k] = (int16_t)lanes[k];
    }
    return scale;
}
