/* elementary.h - exp, log and what is made of them: the coefficients, and the order in which they are applied.
 *
 * libm is not used: its results depend on the machine. kernels/cpu does the same over 16 lanes (isa/body_math.h, whose
 * operations these are one by one); a .cu file calls these. Errors against exact results: exp and log1p about 1 ulp;
 * coefficients are Chebyshev fits on the reduced range. */
#pragma once

#include "kernels/shared/portable.h"

#include <math.h>

#define ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
#define LN2_HIGH    0.693115234375f
#define LN2_LOW     3.19461849453094e-5f

#define EXP_LOWEST  (-104.0f) /* below it e^x is 0 */
#define EXP_HIGHEST 89.0f     /* above it infinity */
#define EXP_LOG2_E  1.44269504f
#define EXP_C5      0.00139262508315f /* of r^5 */
#define EXP_C4      0.00836323288368f
#define EXP_C3      0.041666554213f
#define EXP_C2      0.166665766661f
#define EXP_C1      0.5f

#define LOG_ROOT_HALF 0x3f3504f3u /* bits of sqrt(1/2): the mantissa is taken from [sqrt(1/2), sqrt 2) */
#define LOG_C11       0.0697161147145f
#define LOG_C10       (-0.114797338466f)
#define LOG_C9        0.116854199235f
#define LOG_C8        (-0.124256873315f)
#define LOG_C7        0.142490576457f
#define LOG_C6        (-0.166678023195f)
#define LOG_C5        0.200007157489f
#define LOG_C4        (-0.24999996958f)
#define LOG_C3        0.3333333118f

#define SOFTPLUS_LIMIT 20.0f

/* e^x; NaN stays */
K_INLINE float f32_exp(float x) {
    x = EXP_LOWEST > x ? EXP_LOWEST : x;
    x = EXP_HIGHEST < x ? EXP_HIGHEST : x;
    const float shifted = fmaf(x, EXP_LOG2_E, ROUND_MAGIC);
    const int32_t n = (int32_t)(bits_of_float(shifted) - bits_of_float(ROUND_MAGIC));
    const float k = shifted - ROUND_MAGIC;
    float r = fmaf(-k, LN2_HIGH, x);
    r = fmaf(-k, LN2_LOW, r);
    float p = EXP_C5;
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, EXP_C1);
    p = fmaf(p * r, r, r);
    p = p + 1.0f;
    /* 2^n in two factors, so that subnormal and infinite results come out right */
    const int32_t half = n >> 1, rest = n - half;
    p = p * float_of_bits((uint32_t)(half + 127) << 23);
    return p * float_of_bits((uint32_t)(rest + 127) << 23);
}

/* ln x for normal x > 0 */
K_INLINE float f32_log(float x) {
    const uint32_t i = bits_of_float(x) - LOG_ROOT_HALF;
    const float e = (float)((int32_t)i >> 23);
    const float f = float_of_bits((i & 0x7fffffu) + LOG_ROOT_HALF) - 1.0f;
    float p = LOG_C11;
    p = fmaf(p, f, LOG_C10);
    p = fmaf(p, f, LOG_C9);
    p = fmaf(p, f, LOG_C8);
    p = fmaf(p, f, LOG_C7);
    p = fmaf(p, f, LOG_C6);
    p = fmaf(p, f, LOG_C5);
    p = fmaf(p, f, LOG_C4);
    p = fmaf(p, f, LOG_C3);
    const float f2 = f * f;
    float low = fmaf(p * f, f2, e * LN2_LOW);
    low = fmaf(-0.5f, f2, low);
    return fmaf(e, LN2_HIGH, f + low);
}

/* ln(1 + x) for x > -1, accurate near 0: what 1 + x rounded away comes back as a correction */
K_INLINE float f32_log1p(float x) {
    const float u = 1.0f + x;
    return f32_log(u) + (x - (u - 1.0f)) / u;
}

K_INLINE float f32_sigmoid(float x) {
    return 1.0f / (1.0f + f32_exp(0.0f - x));
}
K_INLINE float f32_silu(float x) {
    return x / (1.0f + f32_exp(0.0f - x));
}
/* ln(1 + e^x); x itself above SOFTPLUS_LIMIT */
K_INLINE float f32_softplus(float x) {
    const float least = SOFTPLUS_LIMIT < x ? SOFTPLUS_LIMIT : x;
    return x > SOFTPLUS_LIMIT ? x : f32_log1p(f32_exp(least));
}
