/* body_attention.h - attention of a few queries over the pages of one kv head, for one instruction set.
 *
 * Per leaf of 256 positions counted from 0 and per query: scores s_j = (q . k_j) / sqrt(D) with s_dot()'s
 * order; m = max s_j; p_j = e^(s_j - m); l = sum p_j with lane j % 16 taking p_j and the tree over lanes; o =
 * sum p_j v_j, one chain, j ascending. Leaves are combined in index order: M' = max(M, m), L = L e^(M-M') + l
 * e^(m-M'), O alike. Queries share the loads of K and V; a query never adds a position that it does not see.
 */
#pragma once

#include "kernels/cpu/body_math.h"

#define KEY_TILE 16u
_Static_assert(PAGE_TOKENS % KEY_TILE == 0, "a key tile lies in one page");

/* Rows j0 .. j0+15 of K (which = 0) or V (1) as fp32 [16][D]; converted into tile if the pages are BF16. */
static const float *key_tile(const struct attention_task *t, uint32_t j0, uint32_t which, float *tile) {
    const uint64_t d = t->head_dim, size = k_dtype_bytes(t->dtype);
    const uint8_t *at = t->pages + t->table[j0 / PAGE_TOKENS] * t->page_stride +
                        ((uint64_t)which * PAGE_TOKENS + j0 % PAGE_TOKENS) * d * size;
    if (t->dtype == K_F32)
        return (const float *)at;
    uint64_t n = KEY_TILE * d; /* a multiple of 16 */
    for (uint64_t i = 0; i < n; i += 16)
        v_store(tile + i, v_load_bf16((const uint16_t *)at + i));
    return tile;
}

/* s[query][key] = q . k for nq queries x 4 keys */
ALWAYS_INLINE void scores_4(
        const float *const *q, const float *k, uint32_t d, const uint32_t nq, float scale, float *s) {
    v16 acc[16];
    UNROLL for (uint32_t i = 0; i < nq * 4; i++) acc[i] = v_set1(0.0f);
    for (uint32_t c = 0; c < d; c += 16) {
        uint32_t m = d - c < 16 ? d - c : 16;
        v16 kc[4];
        UNROLL for (uint32_t j = 0; j < 4; j++) kc[j] = v_load_m(k + j * d + c, m);
        UNROLL for (uint32_t i = 0; i < nq; i++) {
            v16 qc = v_load_m(q[i] + c, m);
            UNROLL for (uint32_t j = 0; j < 4; j++) acc[i * 4 + j] = v_fma(qc, kc[j], acc[i * 4 + j]);
        }
    }
    UNROLL for (uint32_t i = 0; i < nq; i++) {
        UNROLL for (uint32_t j = 0; j < 4; j++) s[i * ATTENTION_LEAF + j] = v_sum(acc[i * 4 + j]) * scale;
    }
}

static void leaf_scores(
        const struct attention_task *t, uint32_t leaf, float *tile, float (*s)[ATTENTION_LEAF]) {
    const uint32_t d = t->head_dim;
    const float scale = 1.0f / sqrtf((float)d);
    for (uint32_t j = 0; j < ATTENTION_LEAF && leaf + j <= t->longest; j += KEY_TILE) {
        const float *k = key_tile(t, leaf + j, 0, tile);
        for (uint32_t jj = 0; jj < KEY_TILE; jj += 4) {
            uint32_t i = 0;
            for (; i + 4 <= t->n; i += 4)
                scores_4(t->q + i, k + jj * d, d, 4, scale, &s[i][j + jj]);
            for (; i < t->n; i++)
                scores_4(t->q + i, k + jj * d, d, 1, scale, &s[i][j + jj]);
        }
    }
}

/* Positions [low, high) of s become e^(s - max), the rest of their last sixteen 0; returns max and sum. */
static void leaf_softmax(float *s, uint32_t low, uint32_t high, float *ret_max, float *ret_sum) {
    float max = s[low];
    for (uint32_t j = low; j < high; j++)
        max = s[j] > max ? s[j] : max;
    uint32_t end = (high + 15) & ~15u;
    for (uint32_t j = 0; j < low; j++)
        s[j] = max;
    for (uint32_t j = high; j < end; j++)
        s[j] = max;
    for (uint32_t j = 0; j < end; j += 16)
        v_store(s + j, v_exp(v_sub(v_load(s + j), v_set1(max))));
    memset(s, 0, low * sizeof *s);
    memset(s + high, 0, (end - high) * sizeof *s);
    v16 sum = v_set1(0.0f);
    for (uint32_t j = 0; j < end; j += 16)
        sum = v_add(sum, v_load(s + j));
    *ret_max = max;
    *ret_sum = v_sum(sum);
}

/* o[query] += sum_j p[query][j] v[j], j in [from, to) ascending */
ALWAYS_INLINE void values(const float (*p)[ATTENTION_LEAF], const float *v, uint32_t d, uint32_t from,
        uint32_t to, uint32_t j0, const uint32_t nq, float *o, uint32_t o_stride) {
    for (uint32_t c = 0; c < d; c += 16) {
        uint32_t m = d - c < 16 ? d - c : 16;
        v16 acc[4];
        UNROLL for (uint32_t i = 0; i < nq; i++) acc[i] = v_load_m(o + i * o_stride + c, m);
        for (uint32_t j = from; j < to; j++) {
            v16 vj = v_load_m(v + j * d + c, m);
            UNROLL for (uint32_t i = 0; i < nq; i++) acc[i] = v_fma(v_set1(p[i][j0 + j]), vj, acc[i]);
        }
        UNROLL for (uint32_t i = 0; i < nq; i++) v_store_m(o + i * o_stride + c, acc[i], m);
    }
}

/* o[n][HEAD_DIM_MAX] = sum_j p_j v_j over this leaf. */
static void leaf_values(const struct attention_task *t, uint32_t leaf, uint32_t first, float *tile,
        const float (*p)[ATTENTION_LEAF], float *o) {
    const uint32_t d = t->head_dim;
    memset(o, 0, (uint64_t)t->n * HEAD_DIM_MAX * sizeof *o);
    for (uint32_t j = 0; j < ATTENTION_LEAF && leaf + j <= t->longest; j += KEY_TILE) {
        const float *v = key_tile(t, leaf + j, 1, tile);
        uint32_t from = first > leaf + j ? first - leaf - j : 0;
        for (uint32_t i = 0; i < t->n;) {
            if (t->last[i] < leaf + j) { /* sees nothing of this tile */
                i++;
                continue;
            }
            float *oi = o + (uint64_t)i * HEAD_DIM_MAX;
            if (i + 4 <= t->n &&
                    t->last[i] >= leaf + j + KEY_TILE - 1) { /* ascending: the next three see it all too */
                values(p + i, v, d, from, KEY_TILE, j, 4, oi, HEAD_DIM_MAX);
                i += 4;
            } else {
                uint32_t to = t->last[i] - leaf - j + 1;
                values(p + i, v, d, from, to < KEY_TILE ? to : KEY_TILE, j, 1, oi, HEAD_DIM_MAX);
                i++;
            }
        }
    }
}

/* (M, L, out) takes in the leaf (m, l, o). */
static void leaf_combine(
        const float *o, float m, float l, uint32_t d, bool is_first, float *max, float *sum, float *out) {
    if (is_first) {
        memcpy(out, o, d * sizeof *o);
        *max = m;
        *sum = l;
        return;
    }
    float top = m > *max ? m : *max;
    float a = s_exp(*max - top), b = s_exp(m - top);
    *max = top;
    *sum = *sum * a + l * b;
    for (uint32_t c = 0; c < d; c += 16) {
        uint32_t n = d - c < 16 ? d - c : 16;
        v16 kept = v_mul(v_load_m(out + c, n), v_set1(a));
        v_store_m(out + c, v_fma(v_load_m(o + c, n), v_set1(b), kept), n);
    }
}

static void attention(const struct attention_task *t) {
    _Alignas(64) float tile[KEY_TILE * HEAD_DIM_MAX], s[QUERIES_MAX][ATTENTION_LEAF],
            o[QUERIES_MAX * HEAD_DIM_MAX];
    float max[QUERIES_MAX], sum[QUERIES_MAX], m, l;
    for (uint32_t leaf = 0; leaf <= t->longest; leaf += ATTENTION_LEAF) {
        float leaf_max[QUERIES_MAX], leaf_sum[QUERIES_MAX];
        uint32_t low = t->first > leaf ? t->first - leaf : 0;
        leaf_scores(t, leaf, tile, s);
        for (uint32_t i = 0; i < t->n; i++) {
            if (t->last[i] < leaf)
                continue;
            uint32_t high = t->last[i] - leaf + 1;
            leaf_softmax(s[i], low, high < ATTENTION_LEAF ? high : ATTENTION_LEAF, &m, &l);
            leaf_max[i] = m;
            leaf_sum[i] = l;
        }
        leaf_values(t, leaf, t->first, tile, s, o);
        for (uint32_t i = 0; i < t->n; i++) {
            if (t->last[i] >= leaf)
                leaf_combine(o + (uint64_t)i * HEAD_DIM_MAX, leaf_max[i], leaf_sum[i], t->head_dim, leaf == 0,
                        &max[i], &sum[i], t->out[i]);
        }
    }
    for (uint32_t i = 0; i < t->n; i++) {
        for (uint32_t c = 0; c < t->head_dim; c += 16) {
            uint32_t n = t->head_dim - c < 16 ? t->head_dim - c : 16;
            v_store_m(t->out[i] + c, v_div(v_load_m(t->out[i] + c, n), v_set1(sum[i])), n);
        }
    }
}
