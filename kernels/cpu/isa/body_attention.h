/* body_attention.h - attention of a few queries over the pages of one kv head, for one instruction set.
 *
 * Per leaf of 256 positions counted from 0 and per query:
 *
 *   s_j = (q . k_j) / sqrt(D)    in the order of s_dot()
 *   m   = max s_j
 *   p_j = e^(s_j - m)
 *   l   = sum p_j                lane j % 16 takes p_j; then the tree over lanes
 *   o   = sum p_j v_j            one chain, j ascending
 *
 * Pages of INT8 have other products: body_attention_codes.h.
 *
 * Leaves are combined in index order: M' = max(M, m), L' = L e^(M-M') + l e^(m-M'), O alike. Queries share the loads of
 * K and V; a query never adds a position that it does not see. */
#pragma once

#define VALUE_COLUMNS (2 * LANES_TILE_STRIPS) /* x 4 queries: accumulators in flight */
#define KEY_TILE      16u

#include "kernels/cpu/isa/body_attention_codes.h"
#include "kernels/cpu/isa/body_math.h"

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

/* acc[query][key] += q k over 16 columns, m of them there */
ALWAYS_INLINE void score_columns(const float *const *q, const float *k, uint32_t d, uint32_t c, uint32_t m,
        const uint32_t nq, v16 *acc) {
    v16 kc[4];
    UNROLL for (uint32_t j = 0; j < 4; j++) kc[j] = v_load_m(k + j * d + c, m);
    UNROLL for (uint32_t i = 0; i < nq; i++) {
        v16 qc = v_load_m(q[i] + c, m);
        UNROLL for (uint32_t j = 0; j < 4; j++) acc[i * 4 + j] = v_fma(qc, kc[j], acc[i * 4 + j]);
    }
}

/* s[query][key] = q . k for nq queries x 4 keys */
ALWAYS_INLINE void scores_4(
        const float *const *q, const float *k, uint32_t d, const uint32_t nq, float scale, float *s) {
    v16 acc[16];
    uint32_t c = 0;
    UNROLL for (uint32_t i = 0; i < nq * 4; i++) acc[i] = v_set1(0.0f);
    for (; c + 16 <= d; c += 16)
        score_columns(q, k, d, c, 16, nq, acc);
    if (c < d)
        score_columns(q, k, d, c, d - c, nq, acc);
    if (nq == 4) {
        v16 sums = v_mul(v_sum16(acc, 4), v_set1(scale));
        UNROLL for (uint32_t i = 0; i < 4; i++) v_store_4(s + i * ATTENTION_LEAF, sums, i);
        return;
    }
    UNROLL for (uint32_t i = 0; i < nq * 4; i++) s[i / 4 * ATTENTION_LEAF + i % 4] = v_sum(acc[i]) * scale;
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
    v16 maxima = v_set1(max);
    uint32_t j16 = low;
    for (; j16 + 16 <= high; j16 += 16)
        maxima = v_max(v_load(s + j16), maxima);
    max = v_highest(maxima);
    for (; j16 < high; j16++)
        max = s[j16] > max ? s[j16] : max;
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

/* o[query] += sum_j p[query][j] v[j], j in [from, to) ascending, for nc vectors of columns; m lanes of a lone one */
ALWAYS_INLINE void value_columns(const float *p, const float *v, uint32_t d, uint32_t from, uint32_t to,
        const uint32_t nq, const uint32_t nc, uint32_t m, float *o) {
    v16 acc[4 * VALUE_COLUMNS];
    UNROLL for (uint32_t i = 0; i < nq * nc; i++) acc[i] =
            v_load_m(o + i / nc * HEAD_DIM_MAX + i % nc * 16, nc > 1 ? 16 : m);
    for (uint32_t j = from; j < to; j++) {
        v16 vj[VALUE_COLUMNS];
        UNROLL for (uint32_t c = 0; c < nc; c++) vj[c] = v_load_m(v + j * d + c * 16, nc > 1 ? 16 : m);
        UNROLL for (uint32_t i = 0; i < nq; i++) {
            v16 pj = v_set1(p[i * ATTENTION_LEAF + j]);
            UNROLL for (uint32_t c = 0; c < nc; c++) acc[i * nc + c] = v_fma(pj, vj[c], acc[i * nc + c]);
        }
    }
    UNROLL for (uint32_t i = 0; i < nq * nc; i++)
            v_store_m(o + i / nc * HEAD_DIM_MAX + i % nc * 16, acc[i], nc > 1 ? 16 : m);
}
ALWAYS_INLINE void values(
        const float *p, const float *v, uint32_t d, uint32_t from, uint32_t to, const uint32_t nq, float *o) {
    uint32_t c = 0;
    for (; c + VALUE_COLUMNS * 16 <= d; c += VALUE_COLUMNS * 16)
        value_columns(p, v + c, d, from, to, nq, VALUE_COLUMNS, 16, o + c);
    for (; c < d; c += 16)
        value_columns(p, v + c, d, from, to, nq, 1, d - c < 16 ? d - c : 16, o + c);
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
                values(p[i] + j, v, d, from, KEY_TILE, 4, oi);
                i += 4;
            } else {
                uint32_t to = t->last[i] - leaf - j + 1;
                values(p[i] + j, v, d, from, to < KEY_TILE ? to : KEY_TILE, 1, oi);
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

/* One leaf for every query that sees some of it: max[i], sum[i] and o[i][HEAD_DIM_MAX]. */
static void attention_leaf(const struct attention_task *t, uint32_t leaf, float *max, float *sum, float *o) {
    _Alignas(64) float tile[KEY_TILE * HEAD_DIM_MAX], s[QUERIES_MAX][ATTENTION_LEAF];
    uint32_t low = t->first > leaf ? t->first - leaf : 0;
    if (t->dtype == K_INT8)
        leaf_code_scores(t, leaf, s);
    else
        leaf_scores(t, leaf, tile, s);
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->last[i] < leaf)
            continue;
        uint32_t high = t->last[i] - leaf + 1;
        leaf_softmax(s[i], low, high < ATTENTION_LEAF ? high : ATTENTION_LEAF, &max[i], &sum[i]);
    }
    if (t->dtype == K_INT8)
        leaf_code_values(t, leaf, low, (const float(*)[ATTENTION_LEAF])s, o);
    else
        leaf_values(t, leaf, t->first, tile, (const float(*)[ATTENTION_LEAF])s, o);
}

static void divide(float *x, float by, uint32_t n) {
    for (uint32_t c = 0; c < n; c += 16) {
        uint32_t m = n - c < 16 ? n - c : 16;
        v_store_m(x + c, v_div(v_load_m(x + c, m), v_set1(by)), m);
    }
}

static void attention(const struct attention_task *t) {
    _Alignas(64) float o[QUERIES_MAX * HEAD_DIM_MAX];
    float max[QUERIES_MAX], sum[QUERIES_MAX], leaf_max[QUERIES_MAX], leaf_sum[QUERIES_MAX];
    for (uint32_t leaf = 0; leaf <= t->longest; leaf += ATTENTION_LEAF) {
        attention_leaf(t, leaf, leaf_max, leaf_sum, o);
        for (uint32_t i = 0; i < t->n; i++)
            if (t->last[i] >= leaf)
                leaf_combine(o + (uint64_t)i * HEAD_DIM_MAX, leaf_max[i], leaf_sum[i], t->head_dim, leaf == 0,
                        &max[i], &sum[i], t->out[i]);
    }
    for (uint32_t i = 0; i < t->n; i++)
        divide(t->out[i], sum[i], t->head_dim);
}

/* What attention() does with the leaves of a query, once they lie in parts[n][2 + D]: max, sum, o. */
static void attention_merge(const float *parts, uint32_t n, uint32_t head_dim, float *out) {
    float max = 0, sum = 0;
    for (uint32_t l = 0; l < n; l++) {
        const float *part = parts + (uint64_t)l * (head_dim + 2);
        leaf_combine(part + 2, part[0], part[1], head_dim, l == 0, &max, &sum, out);
    }
    divide(out, sum, head_dim);
}
