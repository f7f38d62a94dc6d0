/* sequence.c - the life of one sequence: made by submit, admitted to a slot, put back, ended. */
#include "daemon/engine/sequence.h"

#include "daemon/engine/poke.h"
#include "daemon/engine/queue.h"
#include "daemon/engine/registry.h"
#include "daemon/engine/reuse.h"
#include "daemon/engine/timing.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void copy_masks(const struct engine_request *q, struct sequence *s, uint32_t *room) {
    s->n_bad_words = q->n_bad_words;
    s->bad_words = room;
    if (q->n_bad_words > 0)
        memcpy(s->bad_words, q->bad_words, q->n_bad_words * sizeof(uint32_t));
    if (q->mask == NULL)
        return;
    s->mask = room + q->n_bad_words;
    memcpy(s->mask, q->mask, q->n_mask_words * sizeof(uint32_t));
}

/* One block of memory for everything, taken by the submitting thread: the engine thread allocates nothing a
 * step. */
struct sequence *sequence_create(
        const struct engine_request *q, struct engine_stream *stream, uint32_t vocab, bool lookup) {
    size_t n_tokens = (size_t)q->n_prompt + q->max_tokens;
    size_t salt_words = q->n_cache_salt > 0 ? PAGE_TOKENS : 0;
    size_t mask_words = q->mask != NULL ? q->n_mask_words : 0;
    size_t words =
            n_tokens + q->n_stop_ids + 2 * (size_t)q->n_bias + salt_words + mask_words + q->n_bad_words;
    struct sequence *s = malloc(sizeof(*s) + words * sizeof(uint32_t));
    if (s == NULL)
        return NULL;
    *s = (struct sequence){
            .stream = stream,
            .deadline_ns = q->deadline_ns,
            .priority = q->priority,
            .sampling = q->sampling,
            .n_prompt = q->n_prompt,
            .n_tokens = q->n_prompt,
            .max_tokens = q->max_tokens,
            .min_tokens = q->min_tokens,
            .n_bias = q->n_bias,
            .top_logprobs = q->logprobs ? q->top_logprobs : 0,
            .logprobs = q->logprobs,
            .scores = q->prompt_logprobs && q->n_prompt > 1,
            .score_top = q->prompt_top_logprobs,
            .shared_end = q->shared_end,
            .turn_end = q->turn_end,
            .n_message_ends = q->n_message_ends,
            .restore = PREFIX_NONE,
            .waiting_at = HEAP_NONE,
            .deadline_at = HEAP_NONE,
    };
    memcpy(s->message_ends, q->message_ends, sizeof(s->message_ends));
    s->tokens = (uint32_t *)(void *)(s + 1);
    s->stop_ids = s->tokens + n_tokens;
    s->bias_ids = s->stop_ids + q->n_stop_ids;
    s->bias = (float *)(void *)(s->bias_ids + q->n_bias);
    if (salt_words > 0) { /* told from no salt, and from one that only begins like it, by its length */
        s->salt = s->bias_ids + 2 * (size_t)q->n_bias;
        memset(s->salt, 0, salt_words * sizeof(uint32_t));
        s->salt[0] = q->n_cache_salt;
        memcpy(s->salt + 1, q->cache_salt, q->n_cache_salt);
    }
    copy_masks(q, s, s->bias_ids + 2 * (size_t)q->n_bias + salt_words);
    memcpy(s->tokens, q->prompt_ids, q->n_prompt * sizeof(uint32_t));
    for (uint32_t i = 0; i < q->n_stop_ids; i++) {
        if (q->stop_ids[i] < vocab) /* others can never be sampled */
            s->stop_ids[s->n_stop_ids++] = q->stop_ids[i];
    }
    if (q->n_bias > 0) {
        memcpy(s->bias_ids, q->bias_ids, q->n_bias * sizeof(uint32_t));
        memcpy(s->bias, q->bias, q->n_bias * sizeof(float));
    }
    drafting_init(&s->drafting);
    if (lookup && lookup_init(&s->lookup, q->n_prompt, q->max_tokens) < 0)
        return sequence_free(s);
    return s;
}

struct sequence *sequence_free(struct sequence *s) {
    lookup_done(&s->lookup);
    free(s);
    return NULL;
}

static void not_set_back(struct engine *g, struct sequence *s) {
    g->n_set_back -= s->set_back;
    s->set_back = false;
}

void sequence_admit(struct engine *g, struct sequence *s, uint32_t slot) {
    assert(slot > 0 && s->slot == 0 && g->n_running < SEQS_MAX);
    sequence_enter(s, SEQUENCE_RUNNING);
    heap_remove(&g->waiting, s);
    not_set_back(g, s);
    s->slot = slot;
    s->opened = false;
    s->planned = s->drafts_left = 0;
    s->prefill_end = s->n_tokens;
    s->samples = s->n_tokens - s->n_prompt;
    s->stalled_since_ns = 0;
    uint32_t at = g->n_running++;
    for (; at > 0 && sequence_before(s, g->running[at - 1]); at--)
        g->running[at] = g->running[at - 1];
    g->running[at] = s;
}

static void leave_running(struct engine *g, struct sequence *s, bool keep_state) {
    uint32_t at = 0;
    while (g->running[at] != s)
        at++;
    assert(at < g->n_running);
    g->n_running--;
    memmove(&g->running[at], &g->running[at + 1], (g->n_running - at) * sizeof(g->running[0]));
    reuse_leave(g, s, keep_state);
    s->slot = 0;
}

void sequence_to_waiting(struct engine *g, struct sequence *s) {
    assert(s->in_flight == 0);
    sequence_enter(s, SEQUENCE_WAITING);
    leave_running(g, s, /* keep_state= */ true);
    heap_push(&g->waiting, s);
}

void sequence_set_back(struct engine *g, struct sequence *s) {
    sequence_enter(s, SEQUENCE_PREEMPTING);
    s->set_back = true;
    g->n_set_back++;
    g->now.preemptions_total++;
}

void sequence_read_on(struct engine *g, struct sequence *s) {
    heap_remove(&g->waiting, s);
    not_set_back(g, s);
    s->stalled_since_ns = 0;
    heap_push(&g->waiting, s);
}

void sequence_cleared(struct engine *g, struct sequence *s) {
    if (s->suspect) {
        s->suspect = s->killed_alone = false;
        g->n_suspects--;
    }
    if (g->quarantine == s)
        g->quarantine = NULL;
}

static void drop(struct engine *g, struct sequence *s) {
    assert(s->in_flight == 0 && s->state == SEQUENCE_ENDING);
    heap_remove(&g->waiting, s);
    not_set_back(g, s);
    queue_unhold(g, s);
    g->look_at_held = true;
    if (s->slot != 0)
        leave_running(g, s, s->answered);
    sequence_cleared(g, s);
    s->stream->sequence = NULL;
    engine_stream_unref(s->stream);
    engine_stream_unref(s->lead);
    if (g->o.drafter.ended != NULL)
        g->o.drafter.ended(g->o.drafter.user, s->number);
    sequence_free(s);
}

void sequence_finish(struct engine *g, struct sequence *s, enum engine_finish finish, const char *error) {
    if (s->state != SEQUENCE_ENDING) {
        sequence_enter(s, SEQUENCE_ENDING);
        heap_remove(&g->deadlines, s);
        queue_left(g, s);
        registry_remove(g, s->stream);
        s->answered = finish == ENGINE_FINISH_STOP_ID || finish == ENGINE_FINISH_LENGTH;
        timing_ended(g, s, finish, s->n_tokens - s->n_prompt - s->unseen);
        stream_end(s->stream, finish, error);
        poke_later(g, &s->stream->poke);
    }
    if (s->in_flight == 0)
        drop(g, s);
}

void sequence_retired(struct engine *g, struct sequence *s) {
    assert(s->in_flight > 0);
    if (--s->in_flight > 0)
        return;
    if (s->state == SEQUENCE_ENDING) {
        drop(g, s);
        return;
    }
    if (s == g->quarantine && s->planned >= s->prefill_end && s->samples >= s->trial_end)
        sequence_cleared(g, s); /* its replay and some tokens more are done: it was not this one */
    if (s->state == SEQUENCE_PREEMPTING)
        sequence_to_waiting(g, s);
}

void sequence_uprooted(struct engine *g, struct sequence *s) {
    s->in_flight = 0;
    s->opened = false;
    s->slot = 0;
    reuse_forget(s);
    if (s->planned > s->computed_before)
        s->computed_before = s->planned;
    s->planned = s->scoring = 0;
    if (s->state == SEQUENCE_ENDING) {
        drop(g, s);
        return;
    }
    sequence_enter(s, SEQUENCE_WAITING);
    heap_push(&g->waiting, s);
}
