/* body_rows.h - norms, activations, convolution and rope over single rows, for one instruction set. */
#pragma once

#include "kernels/cpu/isa/body_math.h"

/* The sum of x^2 of a norm: up to NORM_SHORT elements s_dot(). More are NORM_CHAINS chains, vector i of 16 adding to
 * accumulator i % 16; then the tree over accumulators, ((0+1)+(2+3))+..., and that over lanes. Four accumulators at a
 * time: what an instruction set has registers for. */
static float norm_square(const float *x, uint32_t n) {
    v16 sums[4];
    if (n <= NORM_SHORT)
        return s_dot(x, x, n);
    for (uint32_t four = 0; four < 4; four++) {
        v16 acc[4];
        UNROLL for (uint32_t a = 0; a < 4; a++) acc[a] = v_set1(0.0f);
        uint32_t i = four * 64;
        for (; i + 64 <= n; i += NORM_CHAINS) {
            UNROLL for (uint32_t a = 0; a < 4; a++) {
                const v16 v = v_load(x + i + a * 16);
                acc[a] = v_fma(v, v, acc[a]);
            }
        }
        for (uint32_t a = 0; a < 4 && i + a * 16 < n; a++) {
            const v16 v = v_load_m(x + i + a * 16, n - i - a * 16);
            acc[a] = v_fma(v, v, acc[a]);
        }
        sums[four] = v_add(v_add(acc[0], acc[1]), v_add(acc[2], acc[3]));
    }
    return v_sum(v_add(v_add(sums[0], sums[1]), v_add(sums[2], sums[3])));
}

/* y = x / sqrt(mean(x^2) + eps) * w */
static void norm_row(const float *x, const float *w, float eps, uint32_t n, float *y) {
    v16 scale = v_set1(1.0f / sqrtf(norm_square(x, n) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v_store_m(y + i, v_mul(v_mul(v_load_m(x + i, m), scale), v_load_m(w + i, m)), m);
    }
}

/* y = silu(g) * u */
static void silu_mul(const float *g, const float *u, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v_store_m(y + i, v_mul(v_silu(v_load_m(g + i, m)), v_load_m(u + i, m)), m);
    }
}

/* y *= sigmoid(gate) */
static void sigmoid_mul(const float *gate, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v_store_m(y + i, v_mul(v_load_m(y + i, m), v_sigmoid(v_load_m(gate + i, m))), m);
    }
}

static void conv_row(const float *const *x, const float *taps, uint32_t taps_stride, uint32_t n_taps,
        uint32_t channels, float *y) {
    for (uint32_t c = 0; c < channels; c += 16) {
        uint32_t m = channels - c < 16 ? channels - c : 16;
        v16 acc = v_set1(0.0f);
        for (uint32_t j = 0; j < n_taps; j++)
            acc = v_fma(v_load_m(taps + (uint64_t)j * taps_stride + c, m), v_load_m(x[j] + c, m), acc);
        v_store_m(y + c, v_silu(acc), m);
    }
}

/* x = x / sqrt(sum(x^2) + 1e-6) * scale */
static void l2_row(float *x, uint32_t n, float scale) {
    v16 inverse = v_set1(1.0f / sqrtf(s_dot(x, x, n) + 1e-6f)), vs = v_set1(scale);
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v_store_m(x + i, v_mul(v_mul(v_load_m(x + i, m), inverse), vs), m);
    }
}

static void gdn_gates(const float *a, const float *b, const float *a_log, const float *dt_bias, uint32_t n,
        float *g, float *beta) {
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v16 rate = v_exp(v_load_m(a_log + i, m));
        v16 soft = v_softplus(v_add(v_load_m(a + i, m), v_load_m(dt_bias + i, m)));
        v_store_m(g + i, v_sub(v_set1(0.0f), v_mul(rate, soft)), m);
        v_store_m(beta + i, v_sigmoid(v_load_m(b + i, m)), m);
    }
}

/* y = x / sqrt(mean(x^2) + eps) * w * silu(z) */
static void gated_norm(const float *x, const float *w, const float *z, float eps, uint32_t n, float *y) {
    v16 scale = v_set1(1.0f / sqrtf(s_dot(x, x, n) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v16 t = v_mul(v_mul(v_load_m(x + i, m), scale), v_load_m(w + i, m));
        v_store_m(y + i, v_mul(t, v_silu(v_load_m(z + i, m))), m);
    }
}

/* Pairs (i, i + half): cos_sin holds half cosines, then half sines. */
static void rope(float *x, const float *cos_sin, uint32_t half) {
    for (uint32_t i = 0; i < half; i += 16) {
        uint32_t m = half - i < 16 ? half - i : 16;
        v16 c = v_load_m(cos_sin + i, m), s = v_load_m(cos_sin + half + i, m);
        v16 a = v_load_m(x + i, m), b = v_load_m(x + half + i, m);
        v_store_m(x + i, v_nfma(b, s, v_mul(a, c)), m);
        v_store_m(x + half + i, v_fma(a, s, v_mul(b, c)), m);
    }
}
