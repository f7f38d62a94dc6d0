/* half.h - the 16-bit floats of checkpoints, bf16 and IEEE half, to and from fp32. Plain integer arithmetic, the same
 * bits on every machine; header only, so that loops over rows become vector code.
 *
 * To 16 bits: to nearest, ties to even; too large becomes infinite; a NaN stays one. To fp32: exact, and a NaN keeps
 * its payload. */
#pragma once

#include "base/portable.h"

#include <stdint.h>
#include <string.h>

PORTABLE_INLINE float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}
PORTABLE_INLINE uint32_t bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

PORTABLE_INLINE float float_of_bf16(uint16_t h) {
    return float_of_bits((uint32_t)h << 16);
}
PORTABLE_INLINE uint16_t bf16_of(float x) {
    uint32_t b = bits_of_float(x), rounded = (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
    /* Rounding could make a NaN infinite. */
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : rounded);
}

/* A shift puts the exponent 112 too low; the product repairs it, subnormals included. */
PORTABLE_INLINE float float_of_f16(uint16_t h) {
    float f = float_of_bits((uint32_t)(h & 0x7fffu) << 13) * 0x1p112f;
    uint32_t b = bits_of_float(f);
    b |= (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
    return float_of_bits(b | (uint32_t)(h & 0x8000u) << 16);
}
/* Without branches: the normal and the subnormal form are both computed. Below 2^-14, adding 0.5 leaves the subnormal
 * half, rounded, in the low bits. */
PORTABLE_INLINE uint16_t f16_of(float x) {
    const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u, b = bits & 0x7fffffffu;
    const uint32_t small = bits_of_float(float_of_bits(b) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (b - 0x38000000u + 0xfffu + (b >> 13 & 1u)) >> 13;
    uint32_t h = b < 0x38800000u ? small : normal;
    h = b >= 0x477ff000u ? 0x7c00u : h; /* 65520 and more round to infinity */
    h = b > 0x7f800000u ? 0x7e00u : h;
    return (uint16_t)(sign | h);
}
