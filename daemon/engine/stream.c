/* stream.c - the bounded ring of tokens between the engine thread and one reader.
 *
 * One pushes, one takes; no locks. Who is told when: the engine publishes the tail and then looks at the
 * head, the reader publishes the head and then looks at the tail, both sequentially consistent. So if the
 * ring was empty for the engine it pokes, and if it was not, the reader sees the token in its second look: no
 * token is left behind unseen. */
#include "daemon/engine/stream.h"

#include "daemon/engine/state.h"

#include "base/clock.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct engine_stream *stream_create(const struct engine_request *request) {
    struct engine_stream *s = aligned_alloc(64, (sizeof(*s) + 63) & ~(size_t)63);
    if (s == NULL)
        return NULL;
    memset(s, 0, offsetof(struct engine_stream, ring)); /* the ring is written before it is read */
    s->refs = 2;                                        /* the engine's and the caller's */
    s->poke = request->poke;
    s->user = request->user;
    s->sibling = request->lead != NULL;
    s->received_ns = clock_ns();
    memcpy(s->request_id, request->request_id, sizeof(s->request_id));
    s->request_id[REQUEST_ID_BYTES_MAX] = 0;
    memcpy(s->caller, request->caller, sizeof(s->caller));
    s->caller[ENGINE_CALLER_BYTES - 1] = 0;
    return s;
}

void stream_ref(struct engine_stream *s) {
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

struct engine_stream *engine_stream_unref(struct engine_stream *s) {
    if (s != NULL && atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) == 1)
        free(s);
    return NULL;
}

uint32_t stream_free_places(const struct engine_stream *s) {
    uint64_t used = atomic_load_explicit(&s->tail, memory_order_relaxed) -
                    atomic_load_explicit(&s->head, memory_order_acquire);
    return STREAM_RING_TOKENS - (uint32_t)used;
}

bool stream_push(struct engine_stream *s, const struct step_sample *sample, uint32_t top, bool of_prompt) {
    uint64_t tail = atomic_load_explicit(&s->tail, memory_order_relaxed);
    assert(stream_free_places(s) > 0);
    struct engine_token *t = &s->ring[tail % STREAM_RING_TOKENS];
    t->id = sample->id;
    t->of_prompt = of_prompt;
    t->logprob = sample->logprob;
    t->n_top = sample->n_top < top ? sample->n_top : top;
    memcpy(t->top_ids, sample->top_ids, t->n_top * sizeof(t->top_ids[0]));
    memcpy(t->top_logprobs, sample->top_logprobs, t->n_top * sizeof(t->top_logprobs[0]));
    if (!of_prompt && atomic_load_explicit(&s->first_token_ns, memory_order_relaxed) == 0)
        atomic_store_explicit(&s->first_token_ns, clock_ns(), memory_order_relaxed);
    atomic_store(&s->tail, tail + 1);
    return atomic_load(&s->head) == tail;
}

void stream_end(struct engine_stream *s, enum engine_finish finish, const char *error) {
    assert(finish != ENGINE_RUNNING && atomic_load(&s->finish) == ENGINE_RUNNING);
    size_t n = error == NULL ? 0 : strnlen(error, sizeof(s->error) - 1);
    if (n > 0)
        memcpy(s->error, error, n);
    s->error[n] = 0;
    atomic_store_explicit(&s->finish, finish, memory_order_release);
}

static void copy_token(struct engine_token *to, const struct engine_token *from) {
    to->id = from->id;
    to->of_prompt = from->of_prompt;
    to->logprob = from->logprob;
    to->n_top = from->n_top;
    memcpy(to->top_ids, from->top_ids, from->n_top * sizeof(to->top_ids[0]));
    memcpy(to->top_logprobs, from->top_logprobs, from->n_top * sizeof(to->top_logprobs[0]));
}

uint32_t engine_stream_take(
        struct engine_stream *s, struct engine_token *tokens, uint32_t max, enum engine_finish *ret_finish) {
    uint32_t n = 0;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    /* The end is read before the tail: no token is pushed after it, so the tail that follows is the last. */
    enum engine_finish finish = atomic_load_explicit(&s->finish, memory_order_acquire);
    uint64_t tail = atomic_load(&s->tail);
    while (n < max && head != tail) {
        copy_token(&tokens[n++], &s->ring[head++ % STREAM_RING_TOKENS]);
        if (head == tail || n == max) {
            atomic_store(&s->head, head);
            tail = atomic_load(&s->tail);
        }
    }
    if (ret_finish != NULL)
        *ret_finish = head == tail ? finish : ENGINE_RUNNING;
    return n;
}

void *engine_stream_user(const struct engine_stream *s) {
    return s->user;
}

const char *engine_stream_error(const struct engine_stream *s) {
    return atomic_load_explicit(&s->finish, memory_order_acquire) == ENGINE_RUNNING ? "" : s->error;
}

uint32_t engine_stream_cached_tokens(const struct engine_stream *s) {
    return atomic_load_explicit(&s->cached_tokens, memory_order_relaxed);
}

void engine_stream_timing(const struct engine_stream *s, struct engine_timing *ret) {
    ret->received_ns = atomic_load_explicit(&s->received_ns, memory_order_relaxed);
    ret->first_step_ns = atomic_load_explicit(&s->first_step_ns, memory_order_relaxed);
    ret->first_token_ns = atomic_load_explicit(&s->first_token_ns, memory_order_relaxed);
}
