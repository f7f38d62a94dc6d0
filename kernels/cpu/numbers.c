/* numbers.c - conversions between number formats, and cosines: plain arithmetic, the same on every machine.
 *
 * Compiled for the baseline instruction set and free of libm, whose results differ between processors. */
#include "kernels/cpu/numbers.h"

#include <string.h>

static float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static uint32_t bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

uint16_t bf16_of(float x) {
    uint32_t b = bits_of_float(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) /* NaN: rounding could make it infinite */
        return (uint16_t)(b >> 16 | 0x40u);
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}

uint16_t f16_of(float x) {
    uint32_t b = bits_of_float(x), sign = b >> 16 & 0x8000u;
    b &= 0x7fffffffu;
    if (b > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (b >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (b < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the subnormal half in the low bits, rounded */
        float f = float_of_bits(b) + 0.5f;
        return (uint16_t)(sign | (bits_of_float(f) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((b - 0x38000000u + 0xfffu + (b >> 13 & 1u)) >> 13));
}

float float_of_f16(uint16_t h) {
    float f = float_of_bits((uint32_t)(h & 0x7fffu) << 13) * 0x1p112f;
    uint32_t b = bits_of_float(f);
    if ((h & 0x7c00u) == 0x7c00u)
        b |= 0x7f800000u;
    return float_of_bits(b | (uint32_t)(h & 0x8000u) << 16);
}

void convert_row(enum k_dtype dtype, const void *from, uint32_t n, float *to) {
    const uint8_t *p = from;
    if (dtype == K_F32) {
        memcpy(to, from, (size_t)n * 4);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + (size_t)i * 2, 2);
        to[i] = dtype == K_BF16 ? float_of_bits((uint32_t)h << 16) : float_of_f16(h);
    }
}

/* Taylor series on [-pi/4, pi/4]; the first term left out is below 1e-17. */
static double sin_small(double x) {
    static const double c[] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
            1.0 / 6227020800.0, -1.0 / 1307674368000.0};
    double x2 = x * x, p = 0;
    for (int i = 6; i >= 0; i--)
        p = (p + c[i]) * x2;
    return x + x * p;
}
static double cos_small(double x) {
    static const double c[] = {-1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600,
            -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
    double x2 = x * x, p = 0;
    for (int i = 7; i >= 0; i--)
        p = (p + c[i]) * x2;
    return 1.0 + p;
}

/* pi/2 in two parts: the first has 33 bits, so that n times it is exact for n < 2^20. */
void cos_sin(float angle, float *ret_cos, float *ret_sin) {
    double x = angle;
    double n = x * 0.63661977236758134308; /* 2 / pi */
    int64_t quarter = (int64_t)(n + (n < 0 ? -0.5 : 0.5));
    double r = x - (double)quarter * 0x1.921fb54400000p+0;
    r = r - (double)quarter * 0x1.0b4611a626331p-34;
    double s = sin_small(r), c = cos_small(r);
    switch (quarter & 3) {
    case 0:
        *ret_cos = (float)c, *ret_sin = (float)s;
        break;
    case 1:
        *ret_cos = (float)-s, *ret_sin = (float)c;
        break;
    case 2:
        *ret_cos = (float)-c, *ret_sin = (float)-s;
        break;
    default:
        *ret_cos = (float)s, *ret_sin = (float)-c;
        break;
    }
}

/* base^x for base > 0, by ln and e^x as series. */
double power(double base, double x) {
    const double ln2 = 0.693147180559945309417;
    int64_t e = 0;
    for (; base > 1.5; e++)
        base *= 0.5;
    for (; base < 0.75; e--)
        base *= 2.0;
    double t = (base - 1) / (base + 1), t2 = t * t, ln = 0; /* ln b = 2 atanh t, |t| <= 1/5 */
    for (int i = 39; i >= 1; i -= 2)
        ln = ln * t2 + 1.0 / i;
    double y = x * (2 * t * ln + (double)e * ln2);
    double n = y / ln2;
    int64_t k = (int64_t)(n + (n < 0 ? -0.5 : 0.5));
    double r = y - (double)k * ln2, p = 1;
    for (int i = 20; i >= 1; i--)
        p = 1 + p * r / i;
    for (; k > 0; k--)
        p *= 2;
    for (; k < 0; k++)
        p *= 0.5;
    return p;
}
