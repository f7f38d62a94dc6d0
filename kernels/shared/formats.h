/* formats.h - BF16 and F16 to and from fp32, and cosines: plain arithmetic, free of libm. */
#pragma once

#include "kernels/shared/portable.h"

K_INLINE uint16_t bf16_of(float x) { /* nearest even */
    const uint32_t b = bits_of_float(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) /* NaN: rounding could make it infinite */
        return (uint16_t)(b >> 16 | 0x40u);
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}
K_INLINE float float_of_bf16(uint16_t h) {
    return float_of_bits((uint32_t)h << 16);
}

K_INLINE uint16_t f16_of(float x) { /* nearest even */
    uint32_t b = bits_of_float(x);
    const uint32_t sign = b >> 16 & 0x8000u;
    b &= 0x7fffffffu;
    if (b > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (b >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (b < 0x38800000u) /* below 2^-14: adding 0.5 leaves the subnormal half in the low bits, rounded */
        return (uint16_t)(sign | (bits_of_float(float_of_bits(b) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((b - 0x38000000u + 0xfffu + (b >> 13 & 1u)) >> 13));
}
/* Exact, subnormals included: the half's bits are moved into a float and multiplied by 2^112. */
K_INLINE float float_of_f16(uint16_t h) {
    uint32_t b = bits_of_float(float_of_bits((uint32_t)(h & 0x7fffu) << 13) * 0x1p112f);
    if ((h & 0x7c00u) == 0x7c00u) /* infinity and NaN keep all exponent bits */
        b |= 0x7f800000u;
    return float_of_bits(b | (uint32_t)(h & 0x8000u) << 16);
}

/* Taylor series on [-pi/4, pi/4]; the first term left out is below 1e-17. */
K_INLINE double sin_small(double x) {
    const double c[7] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800.0,
            -1.0 / 1307674368000.0};
    double x2 = x * x, p = 0;
    for (int i = 6; i >= 0; i--)
        p = (p + c[i]) * x2;
    return x + x * p;
}
K_INLINE double cos_small(double x) {
    const double c[8] = {-1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600,
            -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
    double x2 = x * x, p = 0;
    for (int i = 7; i >= 0; i--)
        p = (p + c[i]) * x2;
    return 1.0 + p;
}

/* |angle| < 2^20; correct to fp32 rounding. pi/2 is in two parts: the first has 33 bits, so that n times it is exact
 * for n < 2^20. */
K_INLINE void cos_sin(float angle, float *ret_cos, float *ret_sin) {
    const double x = angle, n = x * 0.63661977236758134308; /* 2 / pi */
    const int64_t quarter = (int64_t)(n + (n < 0 ? -0.5 : 0.5));
    double r = x - (double)quarter * 0x1.921fb54400000p+0;
    r = r - (double)quarter * 0x1.0b4611a626331p-34;
    const double s = sin_small(r), c = cos_small(r);
    const double cosine = quarter & 1 ? -s : c, sine = quarter & 1 ? c : s;
    *ret_cos = (float)(quarter & 2 ? -cosine : cosine);
    *ret_sin = (float)(quarter & 2 ? -sine : sine);
}
