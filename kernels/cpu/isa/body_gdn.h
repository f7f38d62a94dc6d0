/* body_gdn.h - the block form of the gated delta rule, for one instruction set.
 *
 * Positions are cut into blocks of C = 16 counted from 0. With S0 the state before the block, G_i the running sum of g
 * inside it and rows i of the block:
 *
 *   Delta_i = beta_i (v_i - e^G_i S0^T k_i - sum_{j<i} e^(G_i - G_j) (k_i . k_j) Delta_j)
 *   o_i     = e^G_i S0^T q_i + sum_{j<=i} e^(G_i - G_j) (q_i . k_j) Delta_j
 *   S0'     = e^G_15 S0 + sum_i (e^(G_15 - G_i) k_i) Delta_i^T
 *
 * A row reads S0 and earlier rows only, so any split of a sequence into steps gives the same bits. Each sum is one
 * chain with its index ascending; dot products over dk are s_dot(). S0 may be kept as fp16: S0' is then rounded when
 * all of its sum is there, and widened exactly when it is read. */
#pragma once

#include "kernels/cpu/isa/body_math.h"

/* Vectors of columns at once, with two accumulators each; a state of 128 columns is then read as one stream. */
#if LANES_TILE_ROWS == 12
#define GDN_CHUNKS 8
#else
#define GDN_CHUNKS (2 * LANES_TILE_STRIPS)
#endif

#define STATE_AHEAD 2048u /* floats that are fetched ahead of their use */

/* 16 numbers of a state from number `at` on, m of them there; beyond the last, memory may be another's. */
ALWAYS_INLINE v16 state_load(const void *s, uint64_t at, uint32_t m, const bool f16) {
    uint16_t some[16] = {0};
    if (!f16)
        return v_load_m((const float *)s + at, m);
    if (m >= 16)
        return v_load_f16((const uint16_t *)s + at);
    memcpy(some, (const uint16_t *)s + at, m * sizeof *some);
    return v_load_f16(some);
}
ALWAYS_INLINE void state_store(void *s, uint64_t at, v16 x, uint32_t m, const bool f16) {
    uint16_t some[16];
    if (!f16) {
        v_store_m((float *)s + at, x, m);
    } else if (m >= 16) {
        v_store_f16((uint16_t *)s + at, x);
    } else {
        v_store_f16(some, x);
        memcpy((uint16_t *)s + at, some, m * sizeof *some);
    }
}

/* a[v] = sum_k s[k][v] x[k] and b[v] = sum_k s[k][v] y[k], k ascending; s from number `first` on */
ALWAYS_INLINE void state_chunk(const void *s, uint32_t first, const bool f16, const float *x, const float *y,
        uint32_t dk, uint32_t dv, const uint32_t nc, uint32_t m, float *a, float *b) {
    v16 sa[GDN_CHUNKS], sb[GDN_CHUNKS];
    UNROLL for (uint32_t c = 0; c < nc; c++) sa[c] = sb[c] = v_set1(0.0f);
    for (uint32_t k = 0; k < dk; k++) {
        v16 xk = v_set1(x[k]), yk = v_set1(y[k]);
        UNROLL for (uint32_t c = 0; c < nc; c++) {
            const uint64_t at = (uint64_t)k * dv + first + c * 16;
            __builtin_prefetch(
                    (const uint8_t *)s + (at + STATE_AHEAD) * (f16 ? 2 : 4)); /* into the next head's */
            v16 sk = state_load(s, at, nc > 1 ? 16 : m, f16);
            sa[c] = v_fma(sk, xk, sa[c]);
            sb[c] = v_fma(sk, yk, sb[c]);
        }
    }
    UNROLL for (uint32_t c = 0; c < nc; c++) {
        v_store_m(a + c * 16, sa[c], nc > 1 ? 16 : m);
        v_store_m(b + c * 16, sb[c], nc > 1 ? 16 : m);
    }
}
ALWAYS_INLINE void state_times_as(const void *s, const bool f16, const float *x, const float *y, uint32_t dk,
        uint32_t dv, float *a, float *b) {
    uint32_t v = 0;
    for (; v + GDN_CHUNKS * 16 <= dv; v += GDN_CHUNKS * 16)
        state_chunk(s, v, f16, x, y, dk, dv, GDN_CHUNKS, 16, a + v, b + v);
    for (; v < dv; v += 16)
        state_chunk(s, v, f16, x, y, dk, dv, 1, dv - v < 16 ? dv - v : 16, a + v, b + v);
}
static void state_times(
        const float *s, const float *x, const float *y, uint32_t dk, uint32_t dv, float *a, float *b) {
    state_times_as(s, /* f16= */ false, x, y, dk, dv, a, b);
}
static void state_times_f16(
        const uint16_t *s, const float *x, const float *y, uint32_t dk, uint32_t dv, float *a, float *b) {
    state_times_as(s, /* f16= */ true, x, y, dk, dv, a, b);
}

/* What row i of the block needs beside the columns it works on: kk[j < i], qk[j <= i], e^G_i, beta_i. */
struct gdn_row {
    const float *k_s, *q_s, *v, *kk, *qk;
    float *delta, *out;
    float e_g, beta;
    uint32_t i;
};

/* Delta and o of a row for nc vectors of columns from c; m lanes of a lone one */
ALWAYS_INLINE void gdn_columns(
        const struct gdn_task *t, const struct gdn_row *r, uint32_t c, const uint32_t nc, uint32_t m) {
    v16 d[GDN_CHUNKS], o[GDN_CHUNKS];
    UNROLL for (uint32_t n = 0; n < nc; n++) {
        const uint32_t at = c + n * 16;
        d[n] = v_nfma(v_set1(r->e_g), v_load_m(r->k_s + at, m), v_load_m(r->v + at, m));
        o[n] = v_mul(v_set1(r->e_g), v_load_m(r->q_s + at, m));
    }
    for (uint32_t j = 0; j < r->i; j++) {
        const float *from = t->delta[j] + c;
        v16 kk = v_set1(r->kk[j]), qk = v_set1(r->qk[j]);
        UNROLL for (uint32_t n = 0; n < nc; n++) {
            v16 dj = v_load_m(from + n * 16, m);
            d[n] = v_nfma(kk, dj, d[n]);
            o[n] = v_fma(qk, dj, o[n]);
        }
    }
    UNROLL for (uint32_t n = 0; n < nc; n++) {
        d[n] = v_mul(v_set1(r->beta), d[n]);
        v_store_m(r->delta + c + n * 16, d[n], m);
        v_store_m(r->out + c + n * 16, v_fma(v_set1(r->qk[r->i]), d[n], o[n]), m);
    }
}
static void gdn_combine(const struct gdn_task *t, const struct gdn_row *r) {
    uint32_t c = 0;
    for (; c + GDN_CHUNKS * 16 <= t->dv; c += GDN_CHUNKS * 16)
        gdn_columns(t, r, c, GDN_CHUNKS, 16);
    for (; c < t->dv; c += 16)
        gdn_columns(t, r, c, 1, t->dv - c < 16 ? t->dv - c : 16);
}

static void gdn_rows(const struct gdn_task *t) {
    float k_s[GDN_DIM_MAX], q_s[GDN_DIM_MAX], kk[GDN_BLOCK], qk[GDN_BLOCK], decay[GDN_BLOCK] = {0};
    for (uint32_t j = 0; j < t->first; j++)
        decay[j] = *t->decay[j];
    for (uint32_t r = 0; r < t->n_rows; r++) {
        const uint32_t i = t->first + r;
        const float *k = t->k[i], *q = t->q + (uint64_t)r * t->row_stride;
        float g = t->g[(uint64_t)r * t->gate_stride];
        decay[i] = i == 0 ? g : decay[i - 1] + g;
        *t->decay[i] = decay[i];
        if (t->f16)
            state_times_f16(t->s0, k, q, t->dk, t->dv, k_s, q_s);
        else
            state_times(t->s0, k, q, t->dk, t->dv, k_s, q_s);
        float fade[GDN_BLOCK];
        v_store(fade, v_exp(v_sub(v_set1(decay[i]), v_load(decay))));
        for (uint32_t j = 0; j <= i; j++) {
            kk[j] = fade[j] * s_dot(k, t->k[j], t->dk);
            qk[j] = fade[j] * s_dot(q, t->k[j], t->dk);
        }
        const struct gdn_row row = {.k_s = k_s,
                .q_s = q_s,
                .v = t->v + (uint64_t)r * t->row_stride,
                .kk = kk,
                .qk = qk,
                .delta = t->delta[i],
                .out = t->out + (uint64_t)r * t->out_stride,
                .e_g = s_exp(decay[i]),
                .beta = t->beta[(uint64_t)r * t->gate_stride],
                .i = i};
        gdn_combine(t, &row);
    }
}

/* A row of S0, from number `at` on: e_g row + sum_j w[j] Delta_j, columns c ..; delta is [n_rows][dv] */
struct fold_row {
    void *s;
    uint64_t at;
    const float *delta, *w;
    v16 e_g;
    uint32_t dv, n_rows;
};
ALWAYS_INLINE void fold_columns(
        const struct fold_row *r, uint32_t c, const uint32_t nc, uint32_t m, const bool f16) {
    v16 sum[GDN_CHUNKS];
    UNROLL for (uint32_t n = 0; n < nc; n++) sum[n] =
            v_mul(r->e_g, state_load(r->s, r->at + c + n * 16, m, f16));
    for (uint32_t j = 0; j < r->n_rows; j++) {
        const float *from = r->delta + (uint64_t)j * r->dv + c;
        v16 wj = v_set1(r->w[j]);
        UNROLL for (uint32_t n = 0; n < nc; n++) sum[n] = v_fma(wj, v_load_m(from + n * 16, m), sum[n]);
    }
    UNROLL for (uint32_t n = 0; n < nc; n++) state_store(r->s, r->at + c + n * 16, sum[n], m, f16);
}
ALWAYS_INLINE void fold_row_as(const struct fold_row *r, const bool f16) {
    uint32_t c = 0;
    for (; c + GDN_CHUNKS * 16 <= r->dv; c += GDN_CHUNKS * 16)
        fold_columns(r, c, GDN_CHUNKS, 16, f16);
    for (; c < r->dv; c += 16)
        fold_columns(r, c, 1, r->dv - c < 16 ? r->dv - c : 16, f16);
}
static void fold_row(const struct fold_row *r) {
    fold_row_as(r, /* f16= */ false);
}
static void fold_row_f16(const struct fold_row *r) {
    fold_row_as(r, /* f16= */ true);
}

/* The block's rows are brought together first: in the ring they lie a power of two apart, which a cache takes badly. */
static void gdn_fold(const struct gdn_task *t, uint32_t n, void *s) {
    float decay[GDN_BLOCK] = {0}, fade[GDN_BLOCK], w[GDN_DIM_MAX][GDN_BLOCK], delta[GDN_BLOCK * GDN_DIM_MAX];
    for (uint32_t j = 0; j < n; j++) {
        decay[j] = *t->decay[j];
        memcpy(delta + j * t->dv, t->delta[j], t->dv * sizeof *delta);
    }
    v_store(fade, v_exp(v_sub(v_set1(decay[n - 1]), v_load(decay))));
    v16 e_g = v_set1(s_exp(decay[n - 1]));
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t k = 0; k < t->dk; k++)
            w[k][j] = fade[j] * t->k[j][k];
    for (uint32_t k = 0; k < t->dk; k++) {
        const struct fold_row r = {s, (uint64_t)k * t->dv, delta, w[k], e_g, t->dv, n};
        if (t->f16)
            fold_row_f16(&r);
        else
            fold_row(&r);
    }
}
