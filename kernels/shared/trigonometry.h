/* trigonometry.h - sine and cosine for rotary positions: plain arithmetic, free of libm, the same on every machine. */
#pragma once

#include "kernels/shared/portable.h"

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
