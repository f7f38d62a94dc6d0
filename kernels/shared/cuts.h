/* cuts.h - what a top-k or top-p cut counts: the order of logits as integers, an id's mass in fixed point, and the bins
 * that a cut is narrowed down in. Sums of integers have no order, so every backend finds the same cut.
 *
 * A cut keeps the smallest set of highest logits, equal ones by id, that weighs at least a target: an id weighs 1 (top
 * k) or e^x (top p), x counted from the highest. It is found in CUT_LEVELS rounds, each of which fixes the next bits of
 * the order of the lowest logit that stays. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/elementary.h"

#define CUT_LEVELS 3u
#define CUT_BINS   2048u   /* of one level, at most */
#define MASS_ONE   0x1p40f /* fixed point: 2^18 ids of probability 1 stay below 2^64 */

K_INLINE uint32_t cut_shift(uint32_t level) {
    return level == 0 ? 21 : level == 1 ? 10 : 0;
}
K_INLINE uint32_t cut_width(uint32_t level) {
    return level == 2 ? 10 : 11;
}

/* Unsigned integers in the order of the floats; -0 is below 0. */
K_INLINE uint32_t order_of_float(float x) {
    const uint32_t b = bits_of_float(x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
K_INLINE float float_of_order(uint32_t order) {
    return float_of_bits(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/* The weight of an id whose e^x is e. */
K_INLINE uint64_t mass_of(float e) {
    return (uint64_t)(int64_t)(e * MASS_ONE);
}
/* What must stay of `total`: at least 1, so the highest id always does. */
K_INLINE uint64_t mass_wanted(float top_p, uint64_t total) {
    const double wanted = (double)top_p * (double)total;
    uint64_t target = (uint64_t)wanted;
    target += (double)target < wanted;
    return target + (target == 0);
}
/* How many ids of `mass` together, all of the same mass, are needed for `target`. */
K_INLINE uint32_t equals_wanted(uint64_t target, uint64_t mass, uint32_t n) {
    const uint64_t each = n ? mass / n : 1;
    return each ? (uint32_t)((target + each - 1) / each) : n;
}

/* What a slot's parameters ask for, at a sample index. */
K_INLINE bool sampling_penalises(const struct k_sampling *p) {
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}
K_INLINE bool sampling_suppresses(const struct k_sampling *p, uint32_t sample_index) {
    return p->n_suppress > 0 && sample_index < p->min_tokens;
}
K_INLINE bool sampling_changes(const struct k_sampling *p, uint32_t sample_index) {
    return p->n_bias > 0 || sampling_penalises(p) || sampling_suppresses(p, sample_index);
}
K_INLINE bool sampling_cuts_k(const struct k_sampling *p, uint32_t vocab) {
    return p->top_k > 0 && p->top_k < vocab;
}
