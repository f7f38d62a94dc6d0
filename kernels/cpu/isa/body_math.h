/* body_math.h - exp, log and what is made of them, over 16 lanes, one operation order for every instruction set.
 *
 * Included once per instruction set after a lanes_*.h. libm is not used: its results depend on the machine. A single
 * number is computed as a vector of equal lanes. The coefficients are those of kernels/shared/elementary.h, whose
 * scalar functions are these lane by lane. */
#pragma once

#include "kernels/shared/elementary.h"

/* e^x. Below -104 it is 0, above 89 infinity; NaN stays. */
static inline v16 v_exp(v16 x) {
    const v16 magic = v_set1(ROUND_MAGIC);
    x = v_min(v_set1(EXP_HIGHEST), v_max(v_set1(EXP_LOWEST), x));
    v16 shifted = v_fma(x, v_set1(EXP_LOG2_E), magic);
    v16i n = vi_sub(v_bits(shifted), v_bits(magic));
    v16 k = v_sub(shifted, magic);
    v16 r = v_nfma(k, v_set1(LN2_HIGH), x);
    r = v_nfma(k, v_set1(LN2_LOW), r);
    v16 p = v_set1(EXP_C5);
    p = v_fma(p, r, v_set1(EXP_C4));
    p = v_fma(p, r, v_set1(EXP_C3));
    p = v_fma(p, r, v_set1(EXP_C2));
    p = v_fma(p, r, v_set1(EXP_C1));
    p = v_fma(v_mul(p, r), r, r);
    p = v_add(p, v_set1(1.0f));
    /* 2^n in two factors, so that subnormal and infinite results come out right */
    v16i half = vi_shift_sign(n, 1), rest = vi_sub(n, half), bias = vi_set1(127);
    p = v_mul(p, v_of_bits(vi_shift_left(vi_add(half, bias), 23)));
    return v_mul(p, v_of_bits(vi_shift_left(vi_add(rest, bias), 23)));
}

/* ln x for normal x > 0. */
static inline v16 v_log(v16 x) {
    const v16i root_half = vi_set1(LOG_ROOT_HALF);
    v16i i = vi_sub(v_bits(x), root_half);
    v16 e = v_of_int(vi_shift_sign(i, 23));
    v16 m = v_of_bits(vi_add(vi_and(i, vi_set1(0x7fffffu)), root_half));
    v16 f = v_sub(m, v_set1(1.0f));
    v16 p = v_set1(LOG_C11);
    p = v_fma(p, f, v_set1(LOG_C10));
    p = v_fma(p, f, v_set1(LOG_C9));
    p = v_fma(p, f, v_set1(LOG_C8));
    p = v_fma(p, f, v_set1(LOG_C7));
    p = v_fma(p, f, v_set1(LOG_C6));
    p = v_fma(p, f, v_set1(LOG_C5));
    p = v_fma(p, f, v_set1(LOG_C4));
    p = v_fma(p, f, v_set1(LOG_C3));
    v16 f2 = v_mul(f, f);
    v16 low = v_fma(v_mul(p, f), f2, v_mul(e, v_set1(LN2_LOW)));
    low = v_nfma(v_set1(0.5f), f2, low);
    return v_fma(e, v_set1(LN2_HIGH), v_add(f, low));
}

/* ln(1 + x) for x > -1, accurate near 0: what 1 + x rounded away comes back as a correction. */
static inline v16 v_log1p(v16 x) {
    const v16 one = v_set1(1.0f);
    v16 u = v_add(one, x);
    return v_add(v_log(u), v_div(v_sub(x, v_sub(u, one)), u));
}

static inline v16 v_sigmoid(v16 x) {
    const v16 one = v_set1(1.0f);
    return v_div(one, v_add(one, v_exp(v_sub(v_set1(0.0f), x))));
}
static inline v16 v_silu(v16 x) {
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_set1(0.0f), x))));
}
/* ln(1 + e^x); x itself above SOFTPLUS_LIMIT */
static inline v16 v_softplus(v16 x) {
    const v16 limit = v_set1(SOFTPLUS_LIMIT);
    return v_select_gt(x, limit, x, v_log1p(v_exp(v_min(limit, x))));
}

static inline float s_exp(float x) {
    float t[16];
    v_store(t, v_exp(v_set1(x)));
    return t[0];
}

/* sum of a[i] * b[i]: lane l takes elements l, l + 16, ...; then the tree over lanes. */
static inline float s_dot(const float *a, const float *b, uint32_t n) {
    v16 acc = v_set1(0.0f);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        acc = v_fma(v_load(a + i), v_load(b + i), acc);
    if (i < n)
        acc = v_fma(v_load_n(a + i, n - i), v_load_n(b + i, n - i), acc);
    return v_sum(acc);
}

/* ((0+1)+(2+3))+((4+5)+(6+7)) over leaves, or the part of it that this rank holds; `stride` vectors per leaf. */
static inline v16 leaf_tree(const v16 *leaf, uint32_t leaves, uint32_t stride) {
    if (leaves == 1)
        return leaf[0];
    uint32_t half = leaves / 2;
    return v_add(leaf_tree(leaf, half, stride), leaf_tree(leaf + (uint64_t)half * stride, half, stride));
}
