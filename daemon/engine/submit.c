/* submit.c - checks a request completely, in the thread that submits it, and hands it to the engine thread. */
#include "daemon/engine/queue.h"
#include "daemon/engine/registry.h"
#include "daemon/engine/sequence.h"
#include "daemon/engine/state.h"
#include "daemon/engine/wake.h"

#include "base/mask.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

static int check_sampling(const struct engine_sampling *s, struct error *e) {
    /* Written so that a NaN fails every one of them. */
    if (!(s->temperature >= 0 && isfinite(s->temperature)))
        return error_set(e, -EINVAL, "temperature must be 0 or more");
    if (!(s->top_p > 0 && s->top_p <= 1))
        return error_set(e, -EINVAL, "top_p must be above 0 and at most 1");
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return error_set(e, -EINVAL, "min_p must be between 0 and 1");
    if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty)))
        return error_set(e, -EINVAL, "repetition_penalty must be above 0");
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return error_set(e, -EINVAL, "presence_penalty and frequency_penalty must be numbers");
    return 0;
}

static int check_ids(const struct engine_request *q, const struct limits *l, struct error *e) {
    for (uint32_t i = 0; i < q->n_prompt; i++) {
        if (q->prompt_ids[i] >= l->vocab_size)
            return error_set(e, -EINVAL, "prompt id %u at index %u is not below the vocabulary size of %u",
                    q->prompt_ids[i], i, l->vocab_size);
    }
    for (uint32_t i = 0; i < q->n_bias; i++) {
        if (q->bias_ids[i] >= l->vocab_size || !isfinite(q->bias[i]))
            return error_set(e, -EINVAL, "logit_bias of id %u: the id must be below %u and the bias a number",
                    q->bias_ids[i], l->vocab_size);
    }
    for (uint32_t at = 0; at < q->n_bad_words; at += 1 + q->bad_words[at]) {
        uint32_t n = q->bad_words[at], left = q->n_bad_words - at - 1;
        if (n == 0 || n > left)
            return error_set(e, -EINVAL, "a bad word of %u ids, of which %u are there", n, left);
        for (uint32_t i = 0; i < n; i++)
            if (q->bad_words[at + 1 + i] >= l->vocab_size)
                return error_set(e, -EINVAL, "id %u of a bad word is not below the vocabulary size of %u",
                        q->bad_words[at + 1 + i], l->vocab_size);
    }
    if (q->mask != NULL && q->n_mask_words != mask_words(l->vocab_size))
        return error_set(e, -EINVAL, "a mask of %u words, the vocabulary of %u has %u", q->n_mask_words,
                l->vocab_size, mask_words(l->vocab_size));
    return 0;
}

static int check_lengths(const struct engine_request *q, const struct limits *l, struct error *e) {
    if (q->n_prompt == 0)
        return error_set(e, -EINVAL, "the prompt is empty: send at least one token");
    if (q->max_tokens == 0 || q->max_tokens > NEW_TOKENS_MAX)
        return error_set(e, -EINVAL, "max_tokens must be between 1 and %u", NEW_TOKENS_MAX);
    if (q->min_tokens > q->max_tokens)
        return error_set(e, -EINVAL, "min_tokens %u is over max_tokens %u", q->min_tokens, q->max_tokens);
    if (q->n_bias > LOGIT_BIAS_MAX)
        return error_set(e, -EINVAL, "%u logit biases, at most %u are possible", q->n_bias, LOGIT_BIAS_MAX);
    if (q->n_stop_ids > STEP_SUPPRESS_MAX)
        return error_set(
                e, -EINVAL, "%u stop ids, at most %u are possible", q->n_stop_ids, STEP_SUPPRESS_MAX);
    if (q->top_logprobs > TOP_LOGPROBS_MAX || (q->top_logprobs > 0 && !q->logprobs))
        return error_set(e, -EINVAL, "top_logprobs is at most %u and needs logprobs", TOP_LOGPROBS_MAX);
    if (q->prompt_top_logprobs > TOP_LOGPROBS_MAX || (q->prompt_top_logprobs > 0 && !q->prompt_logprobs))
        return error_set(
                e, -EINVAL, "prompt_top_logprobs is at most %u and needs prompt_logprobs", TOP_LOGPROBS_MAX);
    if (q->n_bad_words > 2 * BAD_WORD_IDS_MAX)
        return error_set(e, -EINVAL, "bad words of %u ids and lengths, at most %u are possible",
                q->n_bad_words, 2 * BAD_WORD_IDS_MAX);
    if (q->n_cache_salt > CACHE_SALT_BYTES_MAX)
        return error_set(e, -EINVAL, "a cache salt of %u bytes, at most %u are possible", q->n_cache_salt,
                CACHE_SALT_BYTES_MAX);
    uint32_t total;
    if (__builtin_add_overflow(q->n_prompt, q->max_tokens, &total) || total > l->max_model_len)
        return error_set(e, -E2BIG,
                "%u prompt tokens and %u to generate do not fit the context of %u: shorten the "
                "prompt or lower max_tokens",
                q->n_prompt, q->max_tokens, l->max_model_len);
    /* The last token is never computed, only sent. */
    struct pools p = {.n_mtp = l->has_mtp ? 1 : 0, .pages_per_slot = l->pages_per_slot};
    uint32_t pages = pools_pages_for(&p, total - 1);
    if (pages > l->pages)
        return error_set(e, -E2BIG,
                "%u prompt tokens and %u to generate need %u cache pages and the workers have %u: "
                "shorten the prompt or lower max_tokens",
                q->n_prompt, q->max_tokens, pages, l->pages);
    return 0;
}

static int check_state(struct engine *g, struct limits *ret, struct error *e) {
    pthread_mutex_lock(&g->registry_lock);
    *ret = g->limits;
    enum engine_state state = g->public_state;
    pthread_mutex_unlock(&g->registry_lock);
    if (state == STATE_FAILED)
        return error_set(
                e, -ESHUTDOWN, "the workers cannot serve this model any more: the service must be restarted");
    if (ret->max_model_len == 0)
        return error_set(e, -EAGAIN, "the model is still loading: try again later");
    return 0;
}

/* Of two moments, either of which may be 0: never. */
static uint64_t earlier(uint64_t a, uint64_t b) {
    return a == 0 || (b > 0 && b < a) ? b : a;
}

int engine_submit(
        struct engine *g, const struct engine_request *q, struct engine_stream **ret, struct error *e) {
    struct limits limits;
    int r = check_state(g, &limits, e);
    if (r == 0)
        r = check_sampling(&q->sampling, e);
    if (r == 0)
        r = check_lengths(q, &limits, e);
    if (r == 0)
        r = check_ids(q, &limits, e);
    const uint32_t n_answers = q->lead != NULL ? 0 : q->n_answers > 1 ? q->n_answers : 1;
    const uint64_t most = (uint64_t)g->o.max_num_seqs + g->o.max_queue;
    if (r == 0 && n_answers > most)
        r = error_set(e, -EINVAL,
                "n is %u and this server takes %llu requests at a time: ask for fewer answers", n_answers,
                (unsigned long long)most);
    if (r < 0)
        return r;
    struct engine_stream *s = stream_create(q);
    bool lookup = limits.drafts_max > 0 && g->o.speculative_tokens > 0 &&
                  (g->o.drafters & ENGINE_DRAFTS_OF_LOOKUP) != 0;
    struct sequence *sequence = s == NULL ? NULL : sequence_create(q, s, limits.vocab_size, lookup);
    if (sequence == NULL) {
        free(s);
        return error_set(e, -EAGAIN, "no memory for another request: try again later");
    }
    s->sequence = sequence;
    sequence->lead = q->lead;
    if (q->lead != NULL)
        stream_ref(q->lead);
    else
        sequence->start_by_ns = queue_start_by(&g->o, s->received_ns, q->queue_ms);
    sequence->due_ns = earlier(sequence->deadline_ns, sequence->start_by_ns);
    r = registry_add(g, s, n_answers, e);
    if (r < 0) {
        engine_stream_unref(q->lead);
        sequence_free(sequence);
        free(s);
        return r;
    }
    engine_wake(g);
    *ret = s;
    return 0;
}
