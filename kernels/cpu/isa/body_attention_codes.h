/* body_attention_codes.h - q . k and p v of a leaf over pages of INT8, for one instruction set. All else of a leaf is
 * body_attention.h's.
 *
 *   q -> integers of 16 bits, in units of max|q| / 32512
 *   s_j = (q . k_j) * (unit / sqrt(D) * scale of k_j)         q . k_j an exact integer
 *   y_j = p_j * scale of v_j -> integers of 16 bits, in units of the leaf's max y / 32512
 *   o   = (sum y_j v_j) * unit                                the sum an exact integer
 *
 * An integer stays below 32512 * 127 * HEAD_DIM_MAX < 2^31, so it may be summed in any order: pairs of products at a
 * time. What a query does not see is 0 in y, whatever lies in the page. */
#pragma once

#include "kernels/cpu/isa/body_quantise.h"

#define CODES_TILE 16u /* positions whose codes are widened at once */
#define WORDS      32u /* integers of 16 bits of a vector */
_Static_assert(HEAD_DIM_MAX % WORDS == 0 && PAGE_TOKENS % CODES_TILE == 0, "tiles are whole");
_Static_assert((uint64_t)WORD_STEPS *(uint64_t)CODE_STEPS *HEAD_DIM_MAX < UINT64_C(1) << 31, "q . k fits");
_Static_assert(ATTENTION_LEAF <= HEAD_DIM_MAX, "p v fits");

/* Codes of rows j0 .. of K (which = 0) or V (1); what lies up to 31 bytes behind them may be read. */
static const int8_t *codes_at(const struct attention_task *t, uint32_t j0, uint32_t which) {
    return (const int8_t *)t->pages + t->table[j0 / PAGE_TOKENS] * t->page_stride +
           ((uint64_t)which * PAGE_TOKENS + j0 % PAGE_TOKENS) * t->head_dim;
}
static const float *scales_at(const struct attention_task *t, uint32_t j0, uint32_t which) {
    const uint8_t *page = t->pages + t->table[j0 / PAGE_TOKENS] * t->page_stride;
    return (const float *)(page + page_scales_at(t->head_dim)) + which * PAGE_TOKENS + j0 % PAGE_TOKENS;
}
/* Asks for what lies a tile behind these n codes: processors do not look ahead beyond 4 KB by themselves. */
ALWAYS_INLINE void codes_ahead(const int8_t *codes, uint32_t n, uint32_t d) {
    for (uint32_t c = 0; c < n; c += 64)
        __builtin_prefetch(codes + CODES_TILE * d + c);
}
static void words_store(int16_t *to, v16i x) {
    v_store((float *)to, v_of_bits(x));
}
static v16i words_load(const int16_t *from) {
    return vi_load((const uint8_t *)from);
}

/* --- q . k --- */

struct code_queries { /* of a task; columns behind the last are 0 */
    _Alignas(64) int16_t words[QUERIES_MAX][HEAD_DIM_MAX];
    float unit[QUERIES_MAX]; /* with 1 / sqrt(D) */
};
static void code_queries_make(const struct attention_task *t, struct code_queries *q) {
    const uint32_t d = t->head_dim, whole = (d + WORDS - 1) / WORDS * WORDS;
    const float scale = 1.0f / sqrtf((float)d);
    for (uint32_t i = 0; i < t->n; i++) {
        q->unit[i] = quantise_words(t->q[i], d, q->words[i]) * scale;
        memset(q->words[i] + d, 0, (whole - d) * sizeof **q->words);
    }
}

/* s[query][key] = q . k, nq queries x 4 keys of a tile [16][HEAD_DIM_MAX] */
ALWAYS_INLINE void code_scores_4(
        const int16_t (*q)[HEAD_DIM_MAX], const int16_t *k, uint32_t d, const uint32_t nq, float *s) {
    v16i acc[16];
    UNROLL for (uint32_t i = 0; i < nq * 4; i++) acc[i] = vi_set1(0);
    for (uint32_t c = 0; c < d; c += WORDS) {
        v16i kc[4];
        UNROLL for (uint32_t j = 0; j < 4; j++) kc[j] = words_load(k + j * HEAD_DIM_MAX + c);
        UNROLL for (uint32_t i = 0; i < nq; i++) {
            const v16i qc = words_load(q[i] + c);
            UNROLL for (uint32_t j = 0; j < 4; j++) acc[i * 4 + j] = vi_dot2(acc[i * 4 + j], qc, kc[j]);
        }
    }
    if (nq == 4) {
        const v16 sums = v_of_int(vi_sum16(acc));
        UNROLL for (uint32_t i = 0; i < 4; i++) v_store_4(s + i * ATTENTION_LEAF, sums, i);
        return;
    }
    UNROLL for (uint32_t i = 0; i < nq * 4; i++) s[i / 4 * ATTENTION_LEAF + i % 4] = (float)vi_sum(acc[i]);
}
/* The same for all queries and the tile at j, scaled. */
static void code_scores_tile(const struct attention_task *t, const struct code_queries *q, uint32_t j0,
        uint32_t j, const int16_t *tile, float (*s)[ATTENTION_LEAF]) {
    for (uint32_t jj = 0; jj < CODES_TILE; jj += 4) {
        const int16_t *k = tile + jj * HEAD_DIM_MAX;
        uint32_t i = 0;
        for (; i + 4 <= t->n; i += 4)
            code_scores_4(q->words + i, k, t->head_dim, 4, &s[i][j + jj]);
        for (; i < t->n; i++)
            code_scores_4(q->words + i, k, t->head_dim, 1, &s[i][j + jj]);
    }
    const v16 scales = v_load(scales_at(t, j0, 0));
    for (uint32_t i = 0; i < t->n; i++)
        v_store(&s[i][j], v_mul(v_load(&s[i][j]), v_mul(v_set1(q->unit[i]), scales)));
}
static void leaf_code_scores(const struct attention_task *t, uint32_t leaf, float (*s)[ATTENTION_LEAF]) {
    _Alignas(64) int16_t tile[CODES_TILE * HEAD_DIM_MAX];
    struct code_queries q;
    code_queries_make(t, &q);
    for (uint32_t j = 0; j < ATTENTION_LEAF && leaf + j <= t->longest; j += CODES_TILE) {
        const int8_t *k = codes_at(t, leaf + j, 0);
        for (uint32_t r = 0; r < CODES_TILE; r++, k += t->head_dim) {
            codes_ahead(k, t->head_dim, t->head_dim);
            for (uint32_t c = 0; c < t->head_dim; c += WORDS)
                words_store(tile + r * HEAD_DIM_MAX + c, vi_load_words(k + c));
        }
        code_scores_tile(t, &q, leaf + j, j, tile, s);
    }
}

/* --- p v --- */

/* n[query][column] += sum over a tile's pairs of positions, for nc vectors of columns */
ALWAYS_INLINE void code_value_columns(
        const int16_t *y, const int16_t *tile, const uint32_t nq, const uint32_t nc, int32_t *n) {
    v16i acc[4 * VALUE_COLUMNS];
    UNROLL for (uint32_t i = 0; i < nq * nc; i++) acc[i] =
            vi_load((const uint8_t *)(n + i / nc * HEAD_DIM_MAX + i % nc * 16));
    for (uint32_t j = 0; j < CODES_TILE / 2; j++) {
        v16i v[VALUE_COLUMNS];
        UNROLL for (uint32_t c = 0; c < nc; c++) v[c] = words_load(tile + j * 2 * HEAD_DIM_MAX + c * WORDS);
        UNROLL for (uint32_t i = 0; i < nq; i++) {
            uint32_t pair;
            memcpy(&pair, y + i * ATTENTION_LEAF + j * 2, sizeof pair);
            UNROLL for (uint32_t c = 0; c < nc; c++) acc[i * nc + c] =
                    vi_dot2(acc[i * nc + c], v[c], vi_set1(pair));
        }
    }
    UNROLL for (uint32_t i = 0; i < nq * nc; i++)
            v_store((float *)(n + i / nc * HEAD_DIM_MAX + i % nc * 16), v_of_bits(acc[i]));
}
ALWAYS_INLINE void code_values(
        const int16_t *y, const int16_t *tile, uint32_t d, const uint32_t nq, int32_t *n) {
    uint32_t c = 0;
    for (; c + VALUE_COLUMNS * 16 <= d; c += VALUE_COLUMNS * 16)
        code_value_columns(y, tile + 2 * c, nq, VALUE_COLUMNS, n + c);
    for (; c < d; c += 16)
        code_value_columns(y, tile + 2 * c, nq, 1, n + c);
}

/* y[query][position of the leaf] from p; 0 where the query sees nothing. */
static void leaf_weights(const struct attention_task *t, uint32_t leaf, uint32_t low,
        const float (*p)[ATTENTION_LEAF], int16_t (*y)[ATTENTION_LEAF], float *unit) {
    float scales[ATTENTION_LEAF], x[ATTENTION_LEAF];
    for (uint32_t j = 0; j < ATTENTION_LEAF && leaf + j <= t->longest; j += PAGE_TOKENS)
        memcpy(scales + j, scales_at(t, leaf + j, 1), PAGE_TOKENS * sizeof *scales);
    for (uint32_t i = 0; i < t->n; i++) {
        const uint32_t seen = t->last[i] < leaf ? 0 : t->last[i] - leaf + 1,
                       high = seen < ATTENTION_LEAF ? seen : ATTENTION_LEAF;
        memset(x, 0, sizeof x);
        for (uint32_t j = low; j < high; j++)
            x[j] = p[i][j] * scales[j];
        unit[i] = quantise_words(x, ATTENTION_LEAF, y[i]);
    }
}
static void leaf_code_values(const struct attention_task *t, uint32_t leaf, uint32_t low,
        const float (*p)[ATTENTION_LEAF], float *o) {
    _Alignas(64) int16_t tile[CODES_TILE * HEAD_DIM_MAX], y[QUERIES_MAX][ATTENTION_LEAF];
    _Alignas(64) int32_t n[QUERIES_MAX * HEAD_DIM_MAX];
    const uint32_t d = t->head_dim;
    float unit[QUERIES_MAX];
    leaf_weights(t, leaf, low, p, y, unit);
    memset(n, 0, (uint64_t)t->n * HEAD_DIM_MAX * sizeof *n);
    for (uint32_t j = 0; j < ATTENTION_LEAF && leaf + j <= t->longest; j += CODES_TILE) {
        const int8_t *v = codes_at(t, leaf + j, 1);
        for (uint32_t r = 0; r < CODES_TILE; r += 2, v += 2 * d) {
            codes_ahead(v, 2 * d, d);
            for (uint32_t c = 0; c < d; c += 16)
                words_store(tile + r * HEAD_DIM_MAX + 2 * c, vi_load_pairs(v + c, v + d + c));
        }
        uint32_t i = 0;
        for (; i + 4 <= t->n; i += 4)
            code_values(y[i] + j, tile, d, 4, n + (uint64_t)i * HEAD_DIM_MAX);
        for (; i < t->n; i++)
            code_values(y[i] + j, tile, d, 1, n + (uint64_t)i * HEAD_DIM_MAX);
    }
    for (uint32_t i = 0; i < t->n; i++)
        for (uint32_t c = 0; c < d; c += 16) {
            const uint64_t at = (uint64_t)i * HEAD_DIM_MAX + c;
            v_store(o + at, v_mul(v_of_int(vi_load((const uint8_t *)(n + at))), v_set1(unit[i])));
        }
}
