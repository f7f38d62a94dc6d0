/* eval.c - compares two models' distributions of the next token while the vocabulary passes in bands: no
 * more than one band of logits is ever in memory. Called by layers.c. */
#include "tp/quantize/parts.h"

#include <math.h>

void quantize_token_init(struct quantize_token *t, uint32_t target) {
    *t = (struct quantize_token){
            .max = {-INFINITY, -INFINITY}, .best_logit = {-INFINITY, -INFINITY}, .target = target};
}

static void add_row(struct quantize_token *t, const float *original, const float *other, uint32_t first,
        uint32_t columns) {
    const float *logits[2] = {original, other};
    for (int k = 0; k < 2; k++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < columns; i++)
            if (logits[k][i] > logits[k][best])
                best = i;
        if (logits[k][best] > t->best_logit[k]) {
            t->best_logit[k] = logits[k][best];
            t->best[k] = first + best;
        }
        if ((double)t->best_logit[k] > t->max[k]) { /* what was summed is put on the new scale */
            double scale = exp(t->max[k] - (double)t->best_logit[k]);
            t->sum[k] *= scale;
            if (k == 0)
                t->cross *= scale;
            t->max[k] = (double)t->best_logit[k];
        }
        if (t->target - first < columns)
            t->target_logit[k] = logits[k][t->target - first];
    }
    for (uint32_t i = 0; i < columns; i++) {
        double p = (double)expf(original[i] - (float)t->max[0]);
        t->sum[0] += p;
        t->cross += p * ((double)original[i] - (double)other[i]);
        t->sum[1] += (double)expf(other[i] - (float)t->max[1]);
    }
}

struct band {
    struct quantize_token *t;
    const float *original, *other;
    uint32_t first, columns;
};

static void add_task(void *arg, uint32_t i) {
    const struct band *b = arg;
    size_t at = (size_t)i * b->columns;
    add_row(&b->t[i], b->original + at, b->other + at, b->first, b->columns);
}

void quantize_tokens_add(struct quantize_token *t, const float *original, const float *other, uint32_t n,
        uint32_t first, uint32_t columns, uint32_t threads) {
    struct band b = {t, original, other, first, columns};
    quantize_parallel(threads, n, add_task, &b);
}

double quantize_token_kl(const struct quantize_token *t) {
    double kl = t->cross / t->sum[0] - (t->max[0] + log(t->sum[0])) + (t->max[1] + log(t->sum[1]));
    return kl > 0 ? kl : 0; /* rounding may leave it below */
}

double quantize_token_nll(const struct quantize_token *t, int which) {
    return t->max[which] + log(t->sum[which]) - (double)t->target_logit[which];
}
