/* divergence.h - how far one set of logits is from another: for tests and benches that compare forms of a model. */
#pragma once

#include <math.h>
#include <stdint.h>

/* Of the first of several that are as high. */
static inline uint32_t logits_likeliest(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}
/* log of the sum of e^x */
static inline double logits_log_sum(const float *x, uint32_t n) {
    const double highest = x[logits_likeliest(x, n)];
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(x[i] - highest);
    return highest + log(sum);
}
/* KL(p || q) of their distributions, in nats. */
static inline double logits_divergence(const float *p, const float *q, uint32_t n) {
    const double p_all = logits_log_sum(p, n), q_all = logits_log_sum(q, n);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(p[i] - p_all) * ((p[i] - p_all) - (q[i] - q_all));
    return sum > 0 ? sum : 0;
}
