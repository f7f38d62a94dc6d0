/* bits_test.h - six sequences that use every sampling parameter, and the rule they are tested against: equal
 * tokens and exactly equal log probabilities, however they are computed. */
#pragma once

#include "model_test.h"

#define SEQUENCES 6u
#define TOKENS    24u

struct work { /* one way of running the six sequences, and what came out */
    struct offline_sequence s[SEQUENCES];
    struct step_sample samples[SEQUENCES][TOKENS];
};

static const uint32_t bits_bias_ids[] = {3, 77, 400};
static const float bits_bias[] = {1.5f, -2.0f, 0.75f};

static inline void work_init(struct work *w, const struct checkpoint *g, const uint32_t suppress[2]) {
    static const uint32_t lengths[SEQUENCES] = {65, 63, 3, 64, 1, 200};
    *w = (struct work){0};
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        struct offline_sequence *s = &w->s[i];
        s->prompt = golden_ids(g, lengths[i]);
        s->n_prompt = lengths[i];
        s->max_tokens = TOKENS;
        s->stop_id = STEP_NONE;
        s->sampling = offline_greedy();
        s->sampling.seed = 10 + i;
        s->sampling.temperature = i == 0 ? 0.0f : 0.6f + 0.1f * (float)i;
        s->logprobs = true;
        s->top_logprobs = i;
        s->samples = w->samples[i];
    }
    w->s[2].sampling.top_k = 50;
    w->s[2].sampling.top_p = 0.9f;
    w->s[3].sampling.min_p = 0.02f;
    w->s[3].sampling.repetition_penalty = 1.2f;
    w->s[3].sampling.presence_penalty = 0.5f;
    w->s[3].sampling.frequency_penalty = 0.3f;
    w->s[4].sampling.n_bias = 3;
    w->s[4].bias_ids = bits_bias_ids;
    w->s[4].bias = bits_bias;
    w->s[4].sampling.n_suppress = 2;
    w->s[4].suppress = suppress;
    w->s[4].sampling.min_tokens = 10;
    w->s[5].sampling.top_p = 0.95f;
}

static inline void work_run(struct work *w, struct offline *o) {
    struct error e = {0};
    must(offline_run(o, w->s, SEQUENCES, &e), &e);
}

static inline void same_sample(
        const struct step_sample *a, const struct step_sample *b, const char *how, uint32_t i, uint32_t k) {
    if (a->id != b->id)
        fail_msg("%s: sequence %u, token %u: id %u, expected %u", how, i, k, a->id, b->id);
    if (memcmp(&a->logprob, &b->logprob, sizeof(float)) != 0)
        fail_msg("%s: sequence %u, token %u: logprob %.9g, expected %.9g", how, i, k, (double)a->logprob,
                (double)b->logprob);
    if (a->n_top != b->n_top || memcmp(a->top_ids, b->top_ids, a->n_top * sizeof(uint32_t)) != 0 ||
            memcmp(a->top_logprobs, b->top_logprobs, a->n_top * sizeof(float)) != 0)
        fail_msg("%s: sequence %u, token %u: other top logprobs", how, i, k);
}

static inline void same_work(const struct work *a, const struct work *expected, const char *how) {
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t k = 0; k < TOKENS; k++)
            same_sample(&a->samples[i][k], &expected->samples[i][k], how, i, k);
}

/* As it is served: KV in BF16. */
static inline struct rank_options bits_options(uint32_t tp) {
    struct rank_options o = test_options(NULL, tp);
    o.kv_dtype = RANK_KV_AUTO;
    return o;
}
