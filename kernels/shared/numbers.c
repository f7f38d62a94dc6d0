/* numbers.c - see numbers.h. */
#include "kernels/shared/numbers.h"

void convert_row(enum k_dtype dtype, const void *from, uint32_t n, float *to) {
    const uint8_t *p = from;
    if (dtype == K_F32) {
        memcpy(to, from, (size_t)n * 4);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + (size_t)i * 2, 2);
        to[i] = dtype == K_BF16 ? float_of_bf16(h) : float_of_f16(h);
    }
}

void round_row_f16(uint32_t n, float *x) {
    for (uint32_t i = 0; i < n; i++)
        x[i] = float_of_f16(f16_of(x[i]));
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
