/* answers.c - see answers.h. */
#include "daemon/service/answers.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>

int answers_new(const struct plan *p, struct answers **ret) {
    struct answers *a = calloc(1, sizeof(*a) + p->n_answers * sizeof(a->of[0]));
    if (!a)
        return -ENOMEM;
    shardd__v1__usage__init(&a->sum);
    for (; a->n < p->n_answers; a->n++) {
        int r = generation_new(p, &a->of[a->n]);
        if (r < 0) {
            answers_free(a);
            return r;
        }
        a->of[a->n]->answer = a->n;
    }
    *ret = a;
    return 0;
}

struct answers *answers_free(struct answers *a) {
    for (uint32_t i = 0; a && i < a->n; i++)
        generation_free(a->of[i]);
    free(a);
    return NULL;
}

void answers_cancel(struct answers *a, struct engine *engine) {
    for (uint32_t i = 0; i < a->n; i++)
        if (!a->of[i]->done && a->of[i]->stream)
            engine_cancel(engine, a->of[i]->stream);
}

int answers_submit(struct answers *a, struct engine *engine, struct plan *p, struct error *e) {
    uint64_t seed = p->engine.sampling.seed;
    a->received_ns = clock_ns();
    p->engine.n_answers = a->n;
    int r = 0;
    for (uint32_t i = 0; i < a->n && r == 0; i++) {
        p->engine.sampling.seed = seed + i;
        p->engine.lead = i > 0 ? a->of[0]->stream : NULL;
        p->engine.prompt_logprobs = i == 0 && p->want_prompt_logprobs;
        p->engine.prompt_top_logprobs = i == 0 ? p->prompt_top_logprobs : 0;
        r = engine_submit(engine, &p->engine, &a->of[i]->stream, e);
    }
    p->engine.sampling.seed = seed;
    if (r < 0)
        answers_cancel(a, engine);
    return r;
}

static double since_ms(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

static double sooner(double a, double b, bool first) {
    return first || b < a ? b : a;
}

void answers_done(struct answers *a, struct generation *g, Shardd__V1__Usage *ret) {
    struct engine_timing t = {0};
    bool first = a->n_done == 0;
    engine_stream_timing(g->stream, &t);
    ret->prompt_tokens = g->prompt_tokens;
    ret->completion_tokens = (uint32_t)g->n_tokens;
    ret->reasoning_tokens = g->reasoning_tokens;
    ret->cached_tokens = engine_stream_cached_tokens(g->stream);
    ret->queue_ms = since_ms(a->received_ns, t.first_step_ns);
    ret->first_token_ms = since_ms(a->received_ns, t.first_token_ns);
    ret->total_ms = since_ms(a->received_ns, clock_ns());
    a->sum.prompt_tokens = ret->prompt_tokens;
    a->sum.completion_tokens += ret->completion_tokens;
    a->sum.reasoning_tokens += ret->reasoning_tokens;
    if (first || ret->cached_tokens < a->sum.cached_tokens) /* what none of them computed */
        a->sum.cached_tokens = ret->cached_tokens;
    a->sum.queue_ms = sooner(a->sum.queue_ms, ret->queue_ms, first);
    a->sum.first_token_ms = sooner(a->sum.first_token_ms, ret->first_token_ms, first);
    a->sum.total_ms = ret->total_ms;
    a->n_done++;
}
