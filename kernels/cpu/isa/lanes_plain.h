/* lanes_plain.h - sixteen lanes in plain C: the statement of what every lane operation means.
 *
 * A "vector" is always 16 floats, on every instruction set, so that code written over lanes adds in one order
 * everywhere. Included by isa_plain.c only, before the body_*.h files; lanes_avx2.h and lanes_avx512.h offer
 * the same names. fmaf() is correctly rounded by the standard, hence equal to the instruction. */
#pragma once

#include "base/half.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES_NAME         "plain"
#define LANES_SMALL_CHAINS 1 /* no registers to fill: keep the code small */
#define LANES_TILE_ROWS    1
#define LANES_TILE_STRIPS  1
#define LANES_CODES_ROWS   1
#define LANES_CODES_STRIPS 1

typedef struct {
    float f[16];
} v16;
typedef struct {
    uint32_t u[16];
} v16i;

#ifdef LANES_FEW /* sanitizer builds: instrument each loop once, not wherever it is used */
#define LANE_FUNCTION static __attribute__((noinline, unused))
#else
#define LANE_FUNCTION static inline
#endif

#define EACH_LANE(expression)                                                                                \
    do {                                                                                                     \
        for (int i = 0; i < 16; i++)                                                                         \
            expression;                                                                                      \
    } while (0)

LANE_FUNCTION v16 v_load(const float *p) {
    v16 r;
    memcpy(r.f, p, sizeof r.f);
    return r;
}
LANE_FUNCTION void v_store(float *p, v16 a) {
    memcpy(p, a.f, sizeof a.f);
}
/* The first n lanes, n <= 16; the others are +0. */
LANE_FUNCTION v16 v_load_n(const float *p, uint32_t n) {
    v16 r = {{0}};
    memcpy(r.f, p, n * sizeof *p);
    return r;
}
LANE_FUNCTION void v_store_n(float *p, v16 a, uint32_t n) {
    memcpy(p, a.f, n * sizeof *p);
}
LANE_FUNCTION v16 v_set1(float x) {
    v16 r;
    EACH_LANE(r.f[i] = x);
    return r;
}
LANE_FUNCTION v16 v_add(v16 a, v16 b) {
    EACH_LANE(a.f[i] += b.f[i]);
    return a;
}
LANE_FUNCTION v16 v_sub(v16 a, v16 b) {
    EACH_LANE(a.f[i] -= b.f[i]);
    return a;
}
LANE_FUNCTION v16 v_mul(v16 a, v16 b) {
    EACH_LANE(a.f[i] *= b.f[i]);
    return a;
}
LANE_FUNCTION v16 v_div(v16 a, v16 b) {
    EACH_LANE(a.f[i] /= b.f[i]);
    return a;
}
/* a * b + c, rounded once */
LANE_FUNCTION v16 v_fma(v16 a, v16 b, v16 c) {
    EACH_LANE(c.f[i] = fmaf(a.f[i], b.f[i], c.f[i]));
    return c;
}
/* c - a * b, rounded once */
LANE_FUNCTION v16 v_nfma(v16 a, v16 b, v16 c) {
    EACH_LANE(c.f[i] = fmaf(-a.f[i], b.f[i], c.f[i]));
    return c;
}
/* a > b ? a : b, so a NaN in b stays */
LANE_FUNCTION v16 v_max(v16 a, v16 b) {
    EACH_LANE(b.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i]);
    return b;
}
LANE_FUNCTION v16 v_min(v16 a, v16 b) {
    EACH_LANE(b.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i]);
    return b;
}
/* a > b ? x : y */
LANE_FUNCTION v16 v_select_gt(v16 a, v16 b, v16 x, v16 y) {
    EACH_LANE(y.f[i] = a.f[i] > b.f[i] ? x.f[i] : y.f[i]);
    return y;
}
/* The one tree over lanes: l + (l+8), then + (l+4), + (l+2), + (l+1). */
LANE_FUNCTION float v_sum(v16 a) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            a.f[i] += a.f[i + n];
    return a.f[0];
}
/* Lane 4 i + j of the result is v_sum(a[i * stride + j]). */
LANE_FUNCTION v16 v_sum16(const v16 *a, uint32_t stride) {
    v16 r;
    for (uint32_t i = 0; i < 16; i++)
        r.f[i] = v_sum(a[i / 4 * stride + i % 4]);
    return r;
}
LANE_FUNCTION void v_store_4(float *p, v16 a, uint32_t quarter) {
    memcpy(p, a.f + quarter * 4, 4 * sizeof *p);
}
LANE_FUNCTION float v_highest(v16 a) {
    float m = a.f[0];
    for (int i = 1; i < 16; i++)
        m = a.f[i] > m ? a.f[i] : m;
    return m;
}

LANE_FUNCTION v16i v_bits(v16 a) {
    v16i r;
    memcpy(r.u, a.f, sizeof r.u);
    return r;
}
LANE_FUNCTION v16 v_of_bits(v16i a) {
    v16 r;
    memcpy(r.f, a.u, sizeof r.f);
    return r;
}
LANE_FUNCTION v16i vi_set1(uint32_t x) {
    v16i r;
    EACH_LANE(r.u[i] = x);
    return r;
}
LANE_FUNCTION v16i vi_count(uint32_t first) {
    v16i r;
    EACH_LANE(r.u[i] = first + (uint32_t)i);
    return r;
}
LANE_FUNCTION v16i vi_add(v16i a, v16i b) {
    EACH_LANE(a.u[i] += b.u[i]);
    return a;
}
LANE_FUNCTION v16i vi_sub(v16i a, v16i b) {
    EACH_LANE(a.u[i] -= b.u[i]);
    return a;
}
LANE_FUNCTION v16i vi_mul(v16i a, v16i b) {
    EACH_LANE(a.u[i] *= b.u[i]);
    return a;
}
LANE_FUNCTION v16i vi_and(v16i a, v16i b) {
    EACH_LANE(a.u[i] &= b.u[i]);
    return a;
}
LANE_FUNCTION v16i vi_xor(v16i a, v16i b) {
    EACH_LANE(a.u[i] ^= b.u[i]);
    return a;
}
LANE_FUNCTION v16i vi_shift_left(v16i a, int n) {
    EACH_LANE(a.u[i] <<= n);
    return a;
}
LANE_FUNCTION v16i vi_shift_right(v16i a, int n) {
    EACH_LANE(a.u[i] >>= n);
    return a;
}
/* arithmetic: the sign bit moves in */
LANE_FUNCTION v16i vi_shift_sign(v16i a, int n) {
    EACH_LANE(a.u[i] = (uint32_t)((int32_t)a.u[i] >> n));
    return a;
}
/* signed integers to float, nearest even */
LANE_FUNCTION v16 v_of_int(v16i a) {
    v16 r;
    EACH_LANE(r.f[i] = (float)(int32_t)a.u[i]);
    return r;
}

LANE_FUNCTION v16 v_load_bf16(const uint16_t *p) {
    v16i r;
    EACH_LANE(r.u[i] = (uint32_t)p[i] << 16);
    return v_of_bits(r);
}
/* Exact, subnormals included: the half's bits are moved into a float and multiplied by 2^112. */
LANE_FUNCTION v16 v_load_f16(const uint16_t *p) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t sign = (uint32_t)(p[i] & 0x8000u) << 16, rest = (uint32_t)(p[i] & 0x7fffu) << 13;
        float f;
        memcpy(&f, &rest, sizeof f);
        f *= 0x1p112f;
        memcpy(&rest, &f, sizeof f);
        if ((p[i] & 0x7c00u) == 0x7c00u) /* infinity and NaN keep all exponent bits */
            rest |= 0x7f800000u;
        rest |= sign;
        memcpy(&r.f[i], &rest, sizeof rest);
    }
    return r;
}

/* To nearest even, as f16_of(). */
LANE_FUNCTION void v_store_f16(uint16_t *p, v16 a) {
    EACH_LANE(p[i] = f16_of(a.f[i]));
}

/* 64 bytes; 16 bytes, each one lane. */
LANE_FUNCTION v16i vi_load(const uint8_t *p) {
    v16i r;
    memcpy(r.u, p, sizeof r.u);
    return r;
}
LANE_FUNCTION v16i vi_load_bytes(const uint8_t *p) {
    v16i r;
    EACH_LANE(r.u[i] = p[i]);
    return r;
}
/* The low bytes of the first n lanes; of all when n is more. */
LANE_FUNCTION void vi_store_bytes(int8_t *p, v16i a, uint32_t n) {
    for (uint32_t i = 0; i < n && i < 16; i++)
        p[i] = (int8_t)(uint8_t)a.u[i];
}
/* Integers of 16 bits are 32 to a vector, a lane two of them, the first in the low half: 32 codes; 16 codes of x and y,
 * lane i x[i] and y[i]. */
LANE_FUNCTION v16i vi_load_words(const int8_t *p) {
    v16i r;
    EACH_LANE(r.u[i] = (uint16_t)p[2 * i] | (uint32_t)(uint16_t)p[2 * i + 1] << 16);
    return r;
}
LANE_FUNCTION v16i vi_load_pairs(const int8_t *x, const int8_t *y) {
    v16i r;
    EACH_LANE(r.u[i] = (uint16_t)x[i] | (uint32_t)(uint16_t)y[i] << 16);
    return r;
}
/* acc + the sum of a lane's two products */
LANE_FUNCTION v16i vi_dot2(v16i acc, v16i x, v16i y) {
    EACH_LANE(acc.u[i] += (uint32_t)((int32_t)(int16_t)x.u[i] * (int16_t)y.u[i] +
                                     ((int32_t)x.u[i] >> 16) * ((int32_t)y.u[i] >> 16)));
    return acc;
}
LANE_FUNCTION int32_t vi_sum(v16i a) {
    uint32_t sum = 0;
    EACH_LANE(sum += a.u[i]);
    return (int32_t)sum;
}
/* Lane i of the result is vi_sum(a[i]). */
LANE_FUNCTION v16i vi_sum16(const v16i *a) {
    v16i r;
    EACH_LANE(r.u[i] = (uint32_t)vi_sum(a[i]));
    return r;
}
/* as signed numbers */
LANE_FUNCTION v16i vi_max(v16i a, v16i b) {
    EACH_LANE(a.u[i] = (int32_t)a.u[i] > (int32_t)b.u[i] ? a.u[i] : b.u[i]);
    return a;
}
/* acc + the sum over a lane's four bytes of code (0..255) * x (-127..127); x is the same in all lanes */
LANE_FUNCTION v16i vi_dot4(v16i acc, v16i codes, int32_t x) {
    const uint32_t u = (uint32_t)x;
    const int32_t x0 = (int8_t)u, x1 = (int8_t)(u >> 8), x2 = (int8_t)(u >> 16), x3 = (int8_t)(u >> 24);
    for (int i = 0; i < 16; i++) {
        const uint32_t c = codes.u[i];
        acc.u[i] += (uint32_t)((int32_t)(c & 255) * x0 + (int32_t)(c >> 8 & 255) * x1 +
                               (int32_t)(c >> 16 & 255) * x2 + (int32_t)(c >> 24) * x3);
    }
    return acc;
}
/* the same where every code is below 16 */
LANE_FUNCTION v16i vi_dot4_nibbles(v16i acc, v16i codes, int32_t x) {
    return vi_dot4(acc, codes, x);
}
/* acc + 16 times the high nibbles' products: what VNNI gets without shifting. */
LANE_FUNCTION v16i vi_dot4_high(v16i acc, v16i codes, int32_t x) {
    return vi_dot4(acc, vi_and(codes, vi_set1(0xf0f0f0f0)), x);
}
