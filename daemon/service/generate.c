/* generate.c - Generate: a checked request into the engine, tokens out as chunks.
 *
 * A call has a struct answers with a struct generation for each answer, used by the call's worker only. The engine
 * pokes the worker; what waits in the ring of an answer then goes out as one message, and answers take turns. Text goes
 * through three filters, each of which may hold back what is not certain yet: whole characters (detokenizer), reasoning
 * and tool calls (output parser), and stop strings in what the parser calls the answer. */
#include "daemon/service/answers.h"
#include "daemon/service/chunk.h"
#include "daemon/service/message.h"
#include "daemon/service/methods.h"
#include "daemon/service/refusal.h"
#include "daemon/service/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(ENGINE_CALLER_BYTES >= RPC_CALLER_BYTES, "a caller's name is never cut");

/* --- the start --- */

static int refuse_submit(struct engine *engine, const struct engine_request *q, int code,
        const struct error *e, struct rpc_status *s) {
    enum refusal why = code == -EAGAIN      ? REFUSAL_QUEUE_FULL
                       : code == -ESHUTDOWN ? REFUSAL_DRAINING
                       : code == -EEXIST    ? REFUSAL_DUPLICATE_ID
                       : code == -E2BIG     ? REFUSAL_CONTEXT_TOO_LONG
                       : code == -EINVAL    ? REFUSAL_INVALID_FIELD
                                            : REFUSAL_INTERNAL;
    refuse(s, why, "%s", e->text);
    if (code == -EAGAIN)
        s->retry_after_ms = engine_retry_ms(engine, q->n_answers * q->n_prompt);
    return -1;
}

/* What the request is measured against; refused while there is no model to measure with. */
static int find_context(const struct service *s, const struct rpc_server *server, struct request_context *ret,
        struct rpc_status *status) {
    struct engine_stats stats;
    engine_stats(s->options.engine, &stats);
    if (strcmp(stats.state, "draining") == 0 || rpc_server_draining(server))
        return refuse(status, REFUSAL_DRAINING, "the server is shutting down; try another one or later");
    uint32_t length = service_context_tokens(&stats);
    if (strcmp(stats.state, "loading") == 0 || length == 0 || stats.vocab_size == 0)
        return refuse(status, REFUSAL_LOADING, "the model is being loaded; try again in a few seconds");
    *ret = (struct request_context){.model = s->options.model,
            .max_model_len = length,
            .vocab_size = stats.vocab_size,
            .seed = s->options.seed};
    return 0;
}

/* The sampling values as used. */
static void report_sampling(const struct plan *p, Shardd__V1__SamplingParams *ret) {
    const struct engine_sampling *e = &p->engine.sampling;
    shardd__v1__sampling_params__init(ret);
#define REPORT(name, CASE)                                                                                   \
    ret->_##name##_case = SHARDD__V1__SAMPLING_PARAMS__##CASE;                                               \
    ret->name = e->name
    REPORT(temperature, _TEMPERATURE_TEMPERATURE);
    REPORT(top_k, _TOP_K_TOP_K);
    REPORT(top_p, _TOP_P_TOP_P);
    REPORT(min_p, _MIN_P_MIN_P);
    REPORT(repetition_penalty, _REPETITION_PENALTY_REPETITION_PENALTY);
    REPORT(presence_penalty, _PRESENCE_PENALTY_PRESENCE_PENALTY);
    REPORT(frequency_penalty, _FREQUENCY_PENALTY_FREQUENCY_PENALTY);
    REPORT(seed, _SEED_SEED);
#undef REPORT
}

static void send_started(
        struct rpc_call *c, struct answers *a, const Shardd__V1__GenerateRequest *q, const struct plan *p) {
    const struct service *s = rpc_call_user(c);
    Shardd__V1__GenerateChunk chunk = SHARDD__V1__GENERATE_CHUNK__INIT;
    Shardd__V1__GenerateStarted started = SHARDD__V1__GENERATE_STARTED__INIT;
    Shardd__V1__SamplingParams sampling;
    report_sampling(p, &sampling);
    if (q->sampling) { /* as it came */
        sampling.n_logit_bias = q->sampling->n_logit_bias;
        sampling.logit_bias = q->sampling->logit_bias;
        sampling.n_banned_token_ids = q->sampling->n_banned_token_ids;
        sampling.banned_token_ids = q->sampling->banned_token_ids;
        sampling.n_allowed_token_ids = q->sampling->n_allowed_token_ids;
        sampling.allowed_token_ids = q->sampling->allowed_token_ids;
        sampling.n_bad_words = q->sampling->n_bad_words;
        sampling.bad_words = q->sampling->bad_words;
    }
    started.request_id = message_string(p->engine.request_id);
    started.model = q->model.len ? q->model : message_string(s->options.model->names[0]);
    started.prompt_tokens = p->engine.n_prompt;
    started.sampling = &sampling;
    started.max_tokens = p->engine.max_tokens;
    if (p->want_prompt_ids) {
        started.n_prompt_token_ids = p->prompt.n;
        started.prompt_token_ids = p->prompt.ids;
    }
    chunk.started = &started;
    a->next_index = 1;
    message_send(c, &chunk.base);
}

static int start(
        struct rpc_call *c, const Shardd__V1__GenerateRequest *q, struct plan *p, struct rpc_status *status) {
    struct service *s = rpc_call_user(c);
    struct answers *a = NULL;
    struct error e = {0};
    if (answers_new(p, &a) < 0)
        return refuse(status, REFUSAL_INTERNAL, "no memory for a stream");
    p->engine.deadline_ns = rpc_call_deadline_ns(c);
    rpc_call_caller(c, p->engine.caller, sizeof(p->engine.caller));
    p->engine.poke = (struct engine_poke){.fn = rpc_worker_poke, .user = rpc_call_worker(c)};
    int r = answers_submit(a, s->options.engine, p, &e);
    if (r < 0) {
        answers_free(a);
        return refuse_submit(s->options.engine, &p->engine, r, &e, status);
    }
    rpc_call_set_state(c, a);
    send_started(c, a, q, p);
    return 0;
}

void generate_on_call(struct rpc_call *c) {
    struct arena arena;
    struct rpc_status status;
    struct request_context x;
    struct plan plan;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const Shardd__V1__GenerateRequest *q = (const Shardd__V1__GenerateRequest *)message_of_call(
            &shardd__v1__generate_request__descriptor, c, &arena, &status);
    int r = q ? find_context(rpc_call_user(c), rpc_call_server(c), &x, &status) : -1;
    if (r == 0)
        r = request_check(q, &x, &plan, &status);
    if (r == 0) {
        r = start(c, q, &plan, &status);
        plan_done(&plan);
    }
    if (r < 0)
        method_refuse(c, &status);
    arena_done(&arena);
}

/* --- the stream --- */

static int finish_reason(const struct generation *g, enum engine_finish finish) {
    if (g->stop_index < 0 && finish == ENGINE_FINISH_LENGTH)
        return SHARDD__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    if (g->stop_index < 0 && finish == ENGINE_FINISH_ABORTED)
        return SHARDD__V1__FINISH_REASON__FINISH_REASON_ABORTED;
    if (g->parser && output_parser_tool_calls(g->parser) > 0)
        return SHARDD__V1__FINISH_REASON__FINISH_REASON_TOOL_CALLS;
    return SHARDD__V1__FINISH_REASON__FINISH_REASON_STOP;
}

static void refuse_late(const struct generation *g, struct rpc_status *s) {
    struct engine_timing t = {0};
    engine_stream_timing(g->stream, &t);
    if (t.first_step_ns == 0)
        refuse(s, REFUSAL_DEADLINE,
                "the deadline passed while the request waited in the queue; allow more time, or try another server");
    else
        refuse(s, REFUSAL_DEADLINE,
                "the deadline passed after %llu tokens; allow more time or ask for fewer tokens",
                (unsigned long long)g->n_tokens);
}

/* Streams that end without a finish chunk: the status says it all. Returns false for those that end well. */
static bool ends_badly(
        struct rpc_call *c, const struct generation *g, enum engine_finish finish, struct rpc_status *s) {
    const struct service *service = rpc_call_user(c);
    if (g->stop_index >= 0)
        return false;
    switch (finish) {
    case ENGINE_FINISH_DEADLINE:
        refuse_late(g, s);
        return true;
    case ENGINE_FINISH_QUEUE_TIME:
        refuse(s, REFUSAL_QUEUE_TIME,
                "the request waited in the queue for as long as it may (queue_timeout_ms, or --max-queue-time of the "
                "server); try again later or another server");
        s->retry_after_ms = engine_retry_ms(service->options.engine, g->prompt_tokens);
        return true;
    case ENGINE_FINISH_FAULT:
        refuse(s, REFUSAL_FAULT, "%s", engine_stream_error(g->stream));
        return true;
    case ENGINE_FINISH_NO_TOKEN:
        refuse(s, REFUSAL_INVALID_FIELD,
                "no token of this model may come now: stopping.min_tokens takes out the stop ids, and sampling what "
                "allowed_token_ids, banned_token_ids and bad_words say; leave more tokens");
        return true;
    case ENGINE_FINISH_CANCELLED:
        refuse(s, REFUSAL_CANCELLED, "the request was cancelled");
        return true;
    case ENGINE_FINISH_ABORTED:
        if (!rpc_server_draining(rpc_call_server(c)))
            return false;
        refuse(s, REFUSAL_DRAINING, "the server shut down after %llu tokens; send the request again",
                (unsigned long long)g->n_tokens);
        return true;
    default:
        return false;
    }
}

static void number_chunk(struct service *s, struct answers *a, struct generation *g, struct chunk *chunk) {
    chunk->message.index = a->next_index++;
    chunk->message.answer = g->answer;
    chunk->message.first_token_index = g->n_sent;
    chunk->message.n_tokens = (uint32_t)(g->n_tokens - g->n_sent);
    atomic_fetch_add(&s->sent_tokens_total, chunk->message.n_tokens);
    g->n_sent = g->n_tokens;
}

/* An answer's last chunk, and with the last answer's the stream's end. */
static void finish_answer(struct rpc_call *c, struct answers *a, struct generation *g, struct chunk *chunk,
        enum engine_finish finish) {
    Shardd__V1__Finish f = SHARDD__V1__FINISH__INIT;
    Shardd__V1__Usage u = SHARDD__V1__USAGE__INIT;
    f.reason = finish_reason(g, finish);
    if (g->stop_index >= 0) {
        f._stop_string_case = SHARDD__V1__FINISH___STOP_STRING_STOP_STRING;
        f.stop_string = message_text(g->stop_strings[g->stop_index].data, g->stop_strings[g->stop_index].n);
    } else if (finish == ENGINE_FINISH_STOP_ID) {
        f._stop_token_id_case = SHARDD__V1__FINISH___STOP_TOKEN_ID_STOP_TOKEN_ID;
        f.stop_token_id = g->last_id;
    }
    answers_done(a, g, &u);
    f.usage = &u;
    chunk->message.finish = &f;
    a->ended = a->n_done == a->n;
    if (a->ended && a->n > 1)
        chunk->message.total = &a->sum;
    number_chunk(rpc_call_user(c), a, g, chunk);
    if (a->ended)
        message_reply(c, &chunk->message.base);
    else
        message_send(c, &chunk->message.base);
    chunk->message.finish = NULL; /* it was on this stack */
}

/* What the call ends with, whatever the other answers were at. */
static void give_up(struct rpc_call *c, struct answers *a) {
    const struct service *s = rpc_call_user(c);
    a->ended = true;
    answers_cancel(a, s->options.engine);
}

static void end_answer(struct rpc_call *c, struct answers *a, struct generation *g, struct chunk *chunk,
        enum engine_finish finish) {
    struct service *s = rpc_call_user(c);
    struct rpc_status status;
    g->done = true;
    if (g->stop_index >= 0 && finish == ENGINE_RUNNING)
        engine_finish(s->options.engine, g->stream, (uint32_t)g->n_tokens);
    if (finish == ENGINE_FINISH_SLOW && g->stop_index < 0) {
        give_up(c, a);
        rpc_call_cancel(c, RPC_RESOURCE_EXHAUSTED, "the reader is too slow: read the stream as it comes");
        return;
    }
    /* An Abort may have come when some answers were not submitted yet. */
    if (finish == ENGINE_FINISH_ABORTED && !a->aborted) {
        a->aborted = true;
        answers_cancel(a, s->options.engine);
    }
    if (finish == ENGINE_FINISH_CANCELLED && a->aborted)
        finish = ENGINE_FINISH_ABORTED;
    if (!ends_badly(c, g, finish, &status)) {
        finish_answer(c, a, g, chunk, finish);
        return;
    }
    give_up(c, a);
    if (chunk_has_content(chunk)) { /* nothing that was generated is lost */
        number_chunk(s, a, g, chunk);
        message_prepare(c, &chunk->message.base);
    }
    method_refuse(c, &status);
}

/* Takes all that waits. Returns < 0 when memory ran out. */
static int take_tokens(
        struct service *s, struct generation *g, struct chunk *chunk, enum engine_finish *ret) {
    struct engine_token tokens[STREAM_RING_TOKENS];
    enum engine_finish finish = ENGINE_RUNNING;
    uint32_t n;
    do {
        n = engine_stream_take(g->stream, tokens, STREAM_RING_TOKENS, &finish);
        for (uint32_t i = 0; i < n && g->stop_index < 0; i++) {
            int r = generation_add(g, s->options.model->tokenizer, &tokens[i], chunk);
            if (r < 0)
                return r;
        }
    } while (n == STREAM_RING_TOKENS && g->stop_index < 0);
    *ret = finish;
    if (finish == ENGINE_RUNNING && g->stop_index < 0)
        return 0;
    return generation_end(g, /* end_of_turn= */ finish == ENGINE_FINISH_STOP_ID && g->stop_index < 0, chunk);
}

/* All that one answer has to say now, as one message at most. */
static void speak(struct rpc_call *c, struct answers *a, struct generation *g) {
    struct service *s = rpc_call_user(c);
    struct arena arena;
    struct chunk chunk;
    enum engine_finish finish = ENGINE_RUNNING;
    char first[4096];
    arena_init(&arena, ARENA_BYTES_MAX, first, sizeof(first));
    chunk_init(&chunk, &arena);
    int r = generation_echoes(g) ? generation_echo(g, s->options.model->tokenizer, &chunk) : 0;
    if (r == 0 && !generation_echoes(g))
        r = take_tokens(s, g, &chunk, &finish);
    if (r < 0) {
        struct rpc_status status;
        refuse(&status, REFUSAL_INTERNAL, "no memory for the answer; send the request again");
        give_up(c, a);
        method_refuse(c, &status);
    } else if (finish != ENGINE_RUNNING || g->stop_index >= 0) {
        end_answer(c, a, g, &chunk, finish);
    } else if (chunk_has_content(&chunk) || (g->skip_text && g->n_tokens > g->n_sent)) {
        number_chunk(s, a, g, &chunk);
        message_send(c, &chunk.message.base);
        atomic_fetch_add(&s->chunks_total, 1);
    }
    arena_done(&arena);
}

/* A message that was sent ends the round; when it is through there is another one. */
void generate_on_wake(struct rpc_call *c) {
    struct answers *a = rpc_call_state(c);
    for (uint32_t i = 0; a && i < a->n && !a->ended && rpc_call_can_send(c); i++) {
        struct generation *g = a->of[a->turn];
        a->turn = (a->turn + 1) % a->n;
        if (!g->done)
            speak(c, a, g);
    }
}

void generate_on_close(struct rpc_call *c) {
    struct service *s = rpc_call_user(c);
    struct answers *a = rpc_call_state(c);
    if (!a)
        return;
    if (!a->ended) { /* the client cancelled, hung up or its deadline passed */
        answers_cancel(a, s->options.engine);
        atomic_fetch_add(&s->cancelled_total, 1);
    }
    answers_free(a);
}
