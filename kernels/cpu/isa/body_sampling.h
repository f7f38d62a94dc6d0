/* body_sampling.h - passes over one row of logits, for one instruction set. */
#pragma once

#include "kernels/cpu/isa/body_math.h"

#define SCAN_CHAINS 4u /* so that no comparison waits for the one before */

static float highest(const float *x, uint32_t n, bool *ret_finite) {
    /* x - x is 0 for a finite x and NaN otherwise; a NaN stays in the sum. */
    v16 max[SCAN_CHAINS], odd[SCAN_CHAINS];
    uint32_t i = 0;
    UNROLL for (uint32_t c = 0; c < SCAN_CHAINS; c++) {
        max[c] = v_set1(-INFINITY);
        odd[c] = v_set1(0.0f);
    }
    for (; i + 16 * SCAN_CHAINS <= n; i += 16 * SCAN_CHAINS) {
        UNROLL for (uint32_t c = 0; c < SCAN_CHAINS; c++) {
            v16 v = v_load(x + i + 16 * c);
            max[c] = v_max(v, max[c]);
            odd[c] = v_add(odd[c], v_sub(v, v));
        }
    }
    UNROLL for (uint32_t c = 1; c < SCAN_CHAINS; c++) {
        max[0] = v_max(max[c], max[0]);
        odd[0] = v_add(odd[0], odd[c]);
    }
    float top = v_highest(max[0]), rest = v_sum(odd[0]);
    for (; i < n; i++) {
        top = x[i] > top ? x[i] : top;
        rest += x[i] - x[i];
    }
    *ret_finite = rest == 0.0f;
    return top;
}

/* sum of e^(x - highest): lane l takes elements l, l + 16, ...; then the tree over lanes. */
static float sum_exp(const float *x, uint32_t n, float top) {
    v16 sum = v_set1(0.0f), vt = v_set1(top);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum = v_add(sum, v_exp(v_sub(v_load(x + i), vt)));
    if (i < n) {
        float t[16];
        v_store(t, v_exp(v_sub(v_load_n(x + i, n - i), vt)));
        sum = v_add(sum, v_load_n(t, n - i));
    }
    return v_sum(sum);
}

static void exp_minus(const float *x, uint32_t n, float top, float *y) {
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        v_store_m(y + i, v_exp(v_sub(v_load_m(x + i, m), v_set1(top))), m);
    }
}

static float log_one(float x) {
    float t[16];
    v_store(t, v_log(v_set1(x)));
    return t[0];
}

/* gumbel_noise() of 16 ids. */
static inline v16 gumbel(v16i id, struct gumbel_key key) {
    v16i h = vi_xor(vi_mul(id, vi_set1(GUMBEL_M0)), vi_set1(key.a));
    h = vi_mul(vi_xor(h, vi_shift_right(h, GUMBEL_S1)), vi_set1(GUMBEL_M1));
    h = vi_add(vi_xor(h, vi_shift_right(h, GUMBEL_S2)), vi_set1(key.b));
    h = vi_mul(vi_xor(h, vi_shift_right(h, GUMBEL_S3)), vi_set1(GUMBEL_M3));
    h = vi_mul(vi_xor(h, vi_shift_right(h, GUMBEL_S4)), vi_set1(GUMBEL_M4));
    h = vi_xor(h, vi_shift_right(h, GUMBEL_S5));
    v16 v = v_mul(v_add(v_of_int(vi_shift_right(h, 1)), v_set1(0.5f)), v_set1(0x1p-31f));
    v = v_min(v_set1(GUMBEL_V_MAX), v);
    const v16 zero = v_set1(0.0f);
    v16 e = v_sub(zero, v_log1p(v_sub(zero, v)));
    return v_sub(zero, v_log(e));
}

/* The best values and ids of all lanes of some chains become one: the highest value, then the lowest id. */
static uint32_t best_lane(const v16 *value, const v16 *id_bits) {
    float v[16 * SCAN_CHAINS], id[16 * SCAN_CHAINS];
    uint32_t ids[16 * SCAN_CHAINS], at = 0;
    for (uint32_t c = 0; c < SCAN_CHAINS; c++) {
        v_store(v + 16 * c, value[c]);
        v_store(id + 16 * c, id_bits[c]);
    }
    memcpy(ids, id, sizeof ids);
    for (uint32_t i = 1; i < 16 * SCAN_CHAINS; i++)
        if (v[i] > v[at] || (v[i] == v[at] && ids[i] < ids[at]))
            at = i;
    return ids[at];
}

/* 16 values from i on, of which m are there, against a chain's best. */
ALWAYS_INLINE void argmax_step(const float *x, const uint32_t *ids, uint32_t i, uint32_t m, const bool noisy,
        struct gumbel_key key, v16 *best, v16 *best_id) {
    float t[16], t_ids[16] = {0};
    const float *from = x + i;
    if (m < 16) {
        for (uint32_t j = 0; j < 16; j++)
            t[j] = j < m ? from[j] : -INFINITY;
        from = t;
    }
    v16 v = v_load(from);
    v16i id = vi_count(i);
    if (ids) {
        memcpy(t_ids, ids + i, m * sizeof *ids);
        id = v_bits(v_load(t_ids));
    }
    if (noisy)
        v = v_add(v, gumbel(id, key));
    *best_id = v_select_gt(v, *best, v_of_bits(id), *best_id);
    *best = v_select_gt(v, *best, v, *best);
}

/* The first index of the highest x; with noise, the id of the highest x + noise: ids[i], or i if ids is NULL. */
ALWAYS_INLINE uint32_t argmax_of(
        const float *x, const uint32_t *ids, uint32_t n, const bool noisy, struct gumbel_key key) {
    v16 best[SCAN_CHAINS], best_id[SCAN_CHAINS];
    uint32_t i = 0;
    for (uint32_t c = 0; c < SCAN_CHAINS; c++) {
        best[c] = v_set1(-INFINITY);
        best_id[c] = v_of_bits(vi_set1(ids ? ids[0] : 0));
    }
    for (; i + 16 * SCAN_CHAINS <= n; i += 16 * SCAN_CHAINS) {
        UNROLL for (uint32_t c = 0; c < SCAN_CHAINS; c++)
                argmax_step(x, ids, i + 16 * c, 16, noisy, key, &best[c], &best_id[c]);
    }
    for (; i < n; i += 16)
        argmax_step(x, ids, i, n - i < 16 ? n - i : 16, noisy, key, &best[0], &best_id[0]);
    return best_lane(best, best_id);
}
static uint32_t argmax(const float *x, uint32_t n) {
    return argmax_of(x, NULL, n, false, (struct gumbel_key){0, 0});
}
static uint32_t gumbel_argmax(const float *x, const uint32_t *ids, uint32_t n, struct gumbel_key key) {
    return ids ? argmax_of(x, ids, n, true, key) : argmax_of(x, NULL, n, true, key);
}
