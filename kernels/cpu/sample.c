/* sample.c - one token from one row of logits.
 *
 * Called by head.c, on any thread; touches nothing but its arguments. Linear in the vocabulary: a cut (top k, top p) is
 * found by counting on the bits of the logits, so nothing is sorted. The order of steps is in kernels.h. */
#include "kernels/cpu/sample.h"
#include "kernels/shared/cuts.h"

#include "base/mask.h"

#include <math.h>
#include <string.h>

/* --- logprobs --- */

/* ln sum e^x: one sum per vocabulary segment, the segments as a binary tree. */
static float log_sum_exp(const struct isa *isa, const float *x, uint32_t n, float top) {
    const uint32_t segment = k_vocab_segment(n);
    float sum[VOCAB_SEGMENTS];
    for (uint32_t i = 0; i < VOCAB_SEGMENTS; i++) {
        uint32_t first = i * segment < n ? i * segment : n, left = n - first;
        sum[i] = isa->sum_exp(x + first, left < segment ? left : segment, top);
    }
    for (uint32_t step = 1; step < VOCAB_SEGMENTS; step *= 2)
        for (uint32_t i = 0; i < VOCAB_SEGMENTS; i += 2 * step)
            sum[i] += sum[i + step];
    return top + isa->log_one(sum[0]);
}

/* The n highest, highest first, equal ones by id. Scanning upwards keeps lower ids by itself. */
static void find_top(const float *x, uint32_t n_x, uint32_t n, struct k_result *r) {
    float *best = r->top_logprobs;
    uint32_t found = 0;
    for (uint32_t id = 0; id < n_x && n; id++) {
        if (found == n && x[id] <= best[n - 1])
            continue;
        uint32_t at = found < n ? found++ : n - 1;
        for (; at > 0 && x[id] > best[at - 1]; at--) {
            best[at] = best[at - 1];
            r->top_ids[at] = r->top_ids[at - 1];
        }
        best[at] = x[id];
        r->top_ids[at] = id;
    }
    r->n_top = found;
}

/* --- changes to logits --- */

static float penalised(const struct k_sampling *p, float x, uint16_t count) {
    return count ? count_penalise(x, count, p->repetition_penalty, p->presence_penalty, p->frequency_penalty)
                 : x;
}
static uint32_t times_drafted(const struct sample_task *t, uint32_t id) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_drafts; i++)
        n += t->drafts[i] == id;
    return n;
}
/* As if the drafts had been counted; the counts are the other rows', too. */
static void penalise(const struct sample_task *t, float *x) {
    const struct k_sampling *p = t->sampling;
    float drafted[DRAFT_MAX];
    if (!sampling_penalises(p))
        return;
    for (uint32_t i = 0; i < t->n_drafts; i++) {
        uint16_t count = t->counts[t->drafts[i]];
        for (uint32_t n = times_drafted(t, t->drafts[i]); n > 0; n--)
            count = count_once_more(count, /* generated= */ true);
        drafted[i] = penalised(p, x[t->drafts[i]], count);
    }
    for (uint32_t id = 0; id < t->vocab; id++)
        x[id] = penalised(p, x[id], t->counts[id]);
    for (uint32_t i = 0; i < t->n_drafts; i++)
        x[t->drafts[i]] = drafted[i];
}
static void change_logits(const struct sample_task *t, float *x) {
    const struct k_sampling *p = t->sampling;
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias_ids[i] < t->vocab)
            x[p->bias_ids[i]] = logit_bounded(x[p->bias_ids[i]] + p->bias[i]);
    penalise(t, x);
    const uint32_t n_suppress = sampling_suppresses(p, t->sample_index) ? p->n_suppress : 0;
    for (uint32_t i = 0; i < n_suppress; i++)
        if (p->suppress[i] < t->vocab)
            x[p->suppress[i]] = -INFINITY;
    for (uint32_t id = 0; t->mask && id < t->vocab; id++)
        x[id] = mask_has(t->mask, id) ? x[id] : -INFINITY;
}

/* --- cuts --- */

#define CHUNK 256u

struct cut { /* the ids that may still be chosen */
    const struct isa *isa;
    float *x;            /* highest is 0; -inf = out */
    const uint32_t *ids; /* of x[i]; NULL: i itself */
    uint32_t n;
    bool by_mass; /* an id weighs e^x in fixed point; otherwise 1 */
};
struct bins {
    uint64_t mass[CUT_BINS];
    uint32_t n[CUT_BINS];
};

/* Weights of the ids whose order agrees with prefix above `shift + bits`, in bins of the `bits` below it. */
static uint64_t fill_bins(
        const struct cut *c, uint32_t prefix, uint32_t shift, uint32_t bits, struct bins *b) {
    float e[CHUNK];
    uint64_t total = 0;
    memset(b, 0, sizeof *b);
    for (uint32_t i = 0; i < c->n; i += CHUNK) {
        uint32_t m = c->n - i < CHUNK ? c->n - i : CHUNK;
        if (c->by_mass)
            c->isa->exp_minus(c->x + i, m, 0.0f, e);
        for (uint32_t j = 0; j < m; j++) {
            uint32_t order = order_of_float(c->x[i + j]);
            if ((uint64_t)order >> (shift + bits) != prefix)
                continue;
            uint64_t mass = c->by_mass ? mass_of(e[j]) : 1;
            uint32_t bin = order >> shift & ((1u << bits) - 1);
            b->mass[bin] += mass;
            b->n[bin]++;
            total += mass;
        }
    }
    return total;
}

/* Keeps the smallest set of highest x (equal ones: lowest ids) that weighs at least `target`, or all if it
 * all weighs less; the rest is -inf. */
static void keep_heaviest(const struct cut *c, uint64_t target) {
    struct bins b;
    uint32_t prefix = 0, last = 0;
    for (uint32_t level = 0; level < CUT_LEVELS; level++) {
        uint64_t total = fill_bins(c, prefix, cut_shift(level), cut_width(level), &b);
        if (level == 0 && target > total)
            target = total;
        uint32_t bin = (1u << cut_width(level)) - 1;
        for (; bin > 0 && b.mass[bin] < target; bin--)
            target -= b.mass[bin];
        prefix = prefix << cut_width(level) | bin;
        last = bin;
    }
    uint32_t equal = equals_wanted(target, b.mass[last], b.n[last]);
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t order = order_of_float(c->x[i]);
        if (order < prefix || (order == prefix && equal == 0))
            c->x[i] = -INFINITY;
        else if (order == prefix)
            equal--;
    }
}

/* The cuts below first gather the few ids that can survive, so that the exact work is on hundreds, not on the
 * whole vocabulary. Where they are too many, it is on all: the result is the same. */
#define GATHER_MAX 4096u
struct gathered {
    float x[GATHER_MAX];
    uint32_t ids[GATHER_MAX];
};

/* Goes on with the ids whose x is at least `low`. False, and nothing changed, when there are too many. */
static bool gather(struct cut *c, float low, struct gathered *g) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i += CHUNK) {
        uint32_t m = c->n - i < CHUNK ? c->n - i : CHUNK;
        bool finite;
        if (c->isa->highest(c->x + i, m, &finite) < low)
            continue;
        for (uint32_t j = i; j < i + m; j++) {
            if (c->x[j] < low)
                continue;
            if (n == GATHER_MAX)
                return false;
            g->x[n] = c->x[j];
            g->ids[n++] = j;
        }
    }
    c->x = g->x;
    c->ids = g->ids;
    c->n = n;
    return true;
}

/* A value that at least k elements reach: the k-th highest of the maxima of chunks. -inf if there are too few. */
static float reached_by(const struct cut *c, uint32_t k) {
    float maxima[GATHER_MAX], low = 0;
    uint32_t n = 0;
    bool finite;
    for (uint32_t i = 0; i < c->n && n < GATHER_MAX; i += CHUNK) {
        maxima[n] = c->isa->highest(c->x + i, c->n - i < CHUNK ? c->n - i : CHUNK, &finite);
        n += maxima[n] != -INFINITY;
    }
    if (k > n)
        return -INFINITY;
    const struct cut m = {.isa = c->isa, .x = maxima, .n = n};
    keep_heaviest(&m, k);
    for (uint32_t i = 0; i < n; i++)
        low = maxima[i] != -INFINITY && maxima[i] < low ? maxima[i] : low;
    return low;
}

static void keep_top_k(struct cut *c, uint32_t k, struct gathered *g) {
    float low = reached_by(c, k);
    if (low != -INFINITY)
        gather(c, low, g);
    c->by_mass = false;
    keep_heaviest(c, k);
}

static uint64_t mass_of_all(const struct cut *c) {
    float e[CHUNK];
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->n; i += CHUNK) {
        uint32_t m = c->n - i < CHUNK ? c->n - i : CHUNK;
        c->isa->exp_minus(c->x + i, m, 0.0f, e);
        for (uint32_t j = 0; j < m; j++)
            total += mass_of(e[j]);
    }
    return total;
}

static void keep_top_p(struct cut *c, float top_p, struct gathered *g) {
    const uint64_t target = mass_wanted(top_p, mass_of_all(c));
    static const float lows[] = {-3, -7, -12}; /* of a highest of 0: most distributions end in one of them */
    for (size_t i = 0; i < sizeof lows / sizeof *lows && !c->ids; i++) {
        struct cut few = *c;
        if (!gather(&few, lows[i], g))
            break;
        if (mass_of_all(&few) >= target)
            *c = few;
    }
    c->by_mass = true;
    keep_heaviest(c, target);
}

static void keep_min_p(const struct cut *c, float min_p) {
    float e[CHUNK];
    for (uint32_t i = 0; i < c->n; i += CHUNK) {
        uint32_t m = c->n - i < CHUNK ? c->n - i : CHUNK;
        c->isa->exp_minus(c->x + i, m, 0.0f, e);
        for (uint32_t j = 0; j < m; j++)
            c->x[i + j] = e[j] < min_p ? -INFINITY : c->x[i + j];
    }
}

/* --- the token --- */

static enum k_result_status choose(const struct sample_task *t, float *x, uint32_t *ret_id) {
    const struct k_sampling *p = t->sampling;
    struct cut c = {.isa = t->isa, .x = x, .n = t->vocab};
    struct gathered g;
    bool finite;
    const float top = t->isa->highest(x, t->vocab, &finite) + 0.0f; /* whichever zero is found first */
    if (top == -INFINITY)
        return K_RESULT_NO_TOKEN;
    if (p->temperature == 0) {
        *ret_id = t->isa->argmax(x, t->vocab);
        return K_RESULT_OK;
    }
    for (uint32_t id = 0; id < t->vocab; id++) /* from the highest: a tiny temperature cannot overflow */
        x[id] = (x[id] - top) / p->temperature;
    if (sampling_cuts_k(p, t->vocab))
        keep_top_k(&c, p->top_k, &g);
    if (p->top_p < 1.0f)
        keep_top_p(&c, p->top_p, &g);
    if (p->min_p > 0)
        keep_min_p(&c, p->min_p);
    const struct gumbel_key key = gumbel_key_of(p->seed, t->sample_index, t->position);
    *ret_id = t->isa->gumbel_argmax(c.x, c.ids, c.n, key);
    return K_RESULT_OK;
}

/* What is reported of the distribution as the model gave it; returns ln sum e^raw. */
static float report(const struct isa *isa, const float *raw, uint32_t vocab, float top, uint32_t top_logprobs,
        struct k_result *r) {
    const float lse = log_sum_exp(isa, raw, vocab, top);
    find_top(raw, vocab, top_logprobs < TOP_LOGPROBS_MAX ? top_logprobs : TOP_LOGPROBS_MAX, r);
    for (uint32_t i = 0; i < r->n_top; i++)
        r->top_logprobs[i] -= lse;
    return lse;
}

void score_row(const struct score_task *t, const float *raw, struct k_result *ret) {
    bool finite;
    const float top = t->isa->highest(raw, t->vocab, &finite);
    *ret = (struct k_result){.status = finite ? K_RESULT_OK : K_RESULT_NOT_FINITE};
    if (!finite)
        return;
    ret->id = t->id;
    if (t->top_logprobs != UINT32_MAX)
        ret->logprob = raw[t->id] - report(t->isa, raw, t->vocab, top, t->top_logprobs, ret);
}

void sample_row(const struct sample_task *t, const float *raw, float *work, struct k_result *ret) {
    struct k_result r = {0};
    float lse = 0;
    bool finite;
    float top = t->isa->highest(raw, t->vocab, &finite);
    *ret = (struct k_result){.status = K_RESULT_NOT_FINITE};
    if (!finite)
        return;
    if (t->top_logprobs != UINT32_MAX)
        lse = report(t->isa, raw, t->vocab, top, t->top_logprobs, &r);
    if (t->sampling->temperature == 0 && !t->mask && !sampling_changes(t->sampling, t->sample_index)) {
        r.id = t->isa->argmax(raw, t->vocab);
    } else {
        memcpy(work, raw, t->vocab * sizeof *work);
        change_logits(t, work);
        r.status = choose(t, work, &r.id);
    }
    if (r.status != K_RESULT_OK)
        r = (struct k_result){.status = r.status};
    else if (t->top_logprobs != UINT32_MAX)
        r.logprob = raw[r.id] - lse;
    *ret = r;
}
