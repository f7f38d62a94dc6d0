/* restrict.c - see restrict.h.
 *
 * A word is banned as it begins a text and as it goes on after a space, since those are different tokens; the same
 * letters made of other tokens are not found. */
#include "daemon/service/restrict.h"

#include "base/mask.h"
#include "daemon/service/message.h"
#include "daemon/service/refusal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef Shardd__V1__SamplingParams Sampling;

#define NORMAL_FORM_GROWTH                                                                                   \
    3u /* of UTF-8 in normal form C, at most (UAX 15); no byte makes more than one token */

int restrict_check(const Sampling *p, const struct request_context *x, struct rpc_status *s) {
    if (p->n_allowed_token_ids > x->vocab_size)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "sampling.allowed_token_ids has %zu entries; this model has %u ids, name each once",
                p->n_allowed_token_ids, x->vocab_size);
    for (size_t i = 0; i < p->n_allowed_token_ids; i++)
        if (p->allowed_token_ids[i] >= x->vocab_size)
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "sampling.allowed_token_ids names token %u; the ids of this model go from 0 to %u",
                    p->allowed_token_ids[i], x->vocab_size - 1);
    if (p->n_bad_words > BAD_WORDS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "sampling.bad_words has %zu strings; give at most %u",
                p->n_bad_words, BAD_WORDS_MAX);
    for (size_t i = 0; i < p->n_bad_words; i++) {
        char field[48];
        snprintf(field, sizeof(field), "sampling.bad_words[%zu]", i);
        if (p->bad_words[i].len < 1 || p->bad_words[i].len > BAD_WORD_BYTES_MAX)
            return refuse(s, REFUSAL_INVALID_FIELD, "%s has %zu bytes; give 1 to %u", field,
                    p->bad_words[i].len, BAD_WORD_BYTES_MAX);
        if (message_check_utf8(p->bad_words[i], field, s) < 0)
            return -1;
    }
    return 0;
}

/* --- bad words --- */

static int ban(struct plan *plan, uint32_t id, struct rpc_status *s) {
    uint32_t at = 0, n = plan->engine.n_bias;
    while (at < n && plan->bias_ids[at] < id)
        at++;
    if (at < n && plan->bias_ids[at] == id) { /* whatever bias it had */
        plan->bias[at] = ENGINE_BIAS_BANNED;
        return 0;
    }
    if (n == LOGIT_BIAS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "sampling.logit_bias, banned_token_ids and those of bad_words that are one token are more than %u "
                "together; give fewer",
                LOGIT_BIAS_MAX);
    memmove(&plan->bias_ids[at + 1], &plan->bias_ids[at], (n - at) * sizeof(plan->bias_ids[0]));
    memmove(&plan->bias[at + 1], &plan->bias[at], (n - at) * sizeof(plan->bias[0]));
    plan->bias_ids[at] = id;
    plan->bias[at] = ENGINE_BIAS_BANNED;
    plan->engine.bias_ids = plan->bias_ids;
    plan->engine.bias = plan->bias;
    plan->engine.n_bias = n + 1;
    return 0;
}

static int add_ids(struct plan *plan, const uint32_t *ids, size_t n, uint32_t *n_ids, struct rpc_status *s) {
    if (n == 1)
        return ban(plan, ids[0], s);
    if (n > BAD_WORD_IDS_MAX - *n_ids)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "sampling.bad_words are more than %u tokens, each word with a space before it and without; give fewer",
                BAD_WORD_IDS_MAX);
    *n_ids += (uint32_t)n;
    plan->bad_words[plan->engine.n_bad_words++] = (uint32_t)n;
    memcpy(plan->bad_words + plan->engine.n_bad_words, ids, n * sizeof(ids[0]));
    plan->engine.n_bad_words += (uint32_t)n;
    return 0;
}

static int add_text(const struct request_context *x, struct plan *plan, const char *text, size_t bytes,
        uint32_t *n_ids, struct rpc_status *s) {
    struct error e = {0};
    uint32_t *ids = NULL;
    size_t n = 0;
    if (tokenizer_encode(x->model->tokenizer, text, bytes, /* parse_special= */ false,
                NORMAL_FORM_GROWTH * (BAD_WORD_BYTES_MAX + 1), &ids, &n, &e) < 0)
        return refuse(
                s, REFUSAL_INTERNAL, "the tokenizer failed on a string of sampling.bad_words: %s", e.text);
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++)
        if (ids[i] >= x->vocab_size) /* can never be sampled */
            n = 0;
    if (n > 0)
        r = add_ids(plan, ids, n, n_ids, s);
    free(ids);
    return r;
}

static int take_words(
        const Sampling *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    uint32_t n_ids = 0;
    if (p->n_bad_words == 0)
        return 0;
    plan->bad_words = malloc(2 * BAD_WORD_IDS_MAX * sizeof(uint32_t));
    if (plan->bad_words == NULL)
        return refuse(s, REFUSAL_INTERNAL, "no memory for sampling.bad_words; send the request again");
    plan->engine.bad_words = plan->bad_words;
    for (size_t i = 0; i < p->n_bad_words; i++) {
        char spaced[BAD_WORD_BYTES_MAX + 1] = " ";
        const char *text = (const char *)p->bad_words[i].data;
        size_t n = p->bad_words[i].len, skip = 0;
        while (skip < n && text[skip] == ' ')
            skip++;
        skip = skip == n ? 0 : skip; /* spaces alone are meant as they are */
        memcpy(spaced + 1, text + skip, n - skip);
        if (add_text(x, plan, text + skip, n - skip, &n_ids, s) < 0 ||
                add_text(x, plan, spaced, n - skip + 1, &n_ids, s) < 0)
            return -1;
    }
    return 0;
}

/* --- allowed ids --- */

static int take_allowed(
        const Sampling *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    if (p->n_allowed_token_ids == 0)
        return 0;
    uint32_t words = mask_words(x->vocab_size), left = 0;
    plan->mask = calloc(words, sizeof(uint32_t));
    if (plan->mask == NULL)
        return refuse(
                s, REFUSAL_INTERNAL, "no memory for sampling.allowed_token_ids; send the request again");
    for (size_t i = 0; i < p->n_allowed_token_ids; i++)
        mask_add(plan->mask, p->allowed_token_ids[i]);
    for (uint32_t i = 0; i < plan->engine.n_bias; i++)
        if (plan->bias[i] <= ENGINE_BIAS_BANNED)
            mask_remove(plan->mask, plan->bias_ids[i]);
    for (uint32_t i = 0; i < words; i++)
        left += plan->mask[i] != 0;
    if (left == 0)
        return refuse(s, REFUSAL_CONFLICT,
                "sampling.allowed_token_ids leaves no token: banned_token_ids or bad_words name all of them");
    plan->engine.mask = plan->mask;
    plan->engine.n_mask_words = words;
    return 0;
}

int restrict_take(
        const Sampling *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    uint32_t n_banned = 0;
    if (p == NULL)
        return 0;
    if (take_words(p, x, plan, s) < 0)
        return -1;
    for (uint32_t i = 0; i < plan->engine.n_bias; i++)
        n_banned += plan->bias[i] <= ENGINE_BIAS_BANNED;
    if (n_banned == x->vocab_size)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "sampling.banned_token_ids and bad_words leave no token; name fewer");
    if (n_banned > 0 && plan->engine.sampling.repetition_penalty < BANNING_PENALTY_LEAST)
        return refuse(s, REFUSAL_CONFLICT,
                "sampling.repetition_penalty is %g, which would bring back what banned_token_ids and bad_words name; "
                "give at least %g",
                (double)plan->engine.sampling.repetition_penalty, (double)BANNING_PENALTY_LEAST);
    return take_allowed(p, x, plan, s);
}
