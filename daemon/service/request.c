/* request.c - see request.h. */
#include "daemon/service/request.h"

#include "base/utf8.h"
#include "daemon/service/message.h"
#include "daemon/service/refusal.h"
#include "daemon/service/restrict.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

typedef Shardd__V1__GenerateRequest Request;
typedef Shardd__V1__SamplingParams Sampling;
typedef Shardd__V1__StoppingParams Stopping;
typedef Shardd__V1__OutputOptions Output;

/* A logit with this bias is at the end of fp32's range: its probability is 0 at any temperature, and no other
 * changes. */
#define BANNED ENGINE_BIAS_BANNED

#define NAME_SHOWN_MAX 100u /* bytes of an unknown model's name that the refusal quotes */

int request_check_model(const struct model *m, ProtobufCBinaryData name, struct rpc_status *s) {
    if (model_has_name(m, (const char *)name.data, name.len))
        return 0;
    if (message_check_utf8(name, "model", s) < 0)
        return -1;
    return refuse(s, REFUSAL_UNKNOWN_MODEL,
            "model '%.*s' is not served here; '%s' is (leave model empty for it)",
            (int)utf8_cut((const char *)name.data, name.len, NAME_SHOWN_MAX), (const char *)name.data,
            m->names[0]);
}

int request_check_id(ProtobufCBinaryData id, struct rpc_status *s) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
    if (id.len > REQUEST_ID_BYTES_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "request_id has %zu bytes; give at most %u", id.len,
                REQUEST_ID_BYTES_MAX);
    for (size_t i = 0; i < id.len; i++)
        if (!memchr(allowed, id.data[i], sizeof(allowed) - 1))
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "request_id has byte 0x%02x at offset %zu; use letters, digits and . _ : - only",
                    id.data[i], i);
    return 0;
}

static int take_id(ProtobufCBinaryData id, char ret[REQUEST_ID_BYTES_MAX + 1], struct rpc_status *s) {
    if (request_check_id(id, s) < 0)
        return -1;
    if (id.len > 0) {
        memcpy(ret, id.data, id.len);
        ret[id.len] = '\0';
        return 0;
    }
    uint64_t random[2];
    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        return refuse(s, REFUSAL_INTERNAL, "no random bytes for a request_id; give one");
    snprintf(ret, REQUEST_ID_BYTES_MAX + 1, "gen-%016llx%016llx", (unsigned long long)random[0],
            (unsigned long long)random[1]);
    return 0;
}

/* --- sampling --- */

/* The float fields have one shape: a case, a value, a range. `above` excludes the low end. */
static const struct range {
    const char *name;
    size_t present, value; /* offsets in Sampling */
    size_t target;         /* offset in struct engine_sampling */
    float low, high;
    bool above;
} ranges[] = {
#define FIELD(name)                                                                                          \
#name, offsetof(Sampling, _##name##_case), offsetof(Sampling, name),                                     \
            offsetof(struct engine_sampling, name)
        {FIELD(temperature), 0, 100, false},
        {FIELD(top_p), 0, 1, true},
        {FIELD(min_p), 0, 1, false},
        {FIELD(repetition_penalty), 0, 10, true},
        {FIELD(presence_penalty), -2, 2, false},
        {FIELD(frequency_penalty), -2, 2, false},
#undef FIELD
};

static int take_ranges(const Sampling *p, struct engine_sampling *ret, struct rpc_status *s) {
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        const struct range *r = &ranges[i];
        int present;
        float v;
        memcpy(&present, (const char *)p + r->present, sizeof(present));
        if (!present)
            continue;
        memcpy(&v, (const char *)p + r->value, sizeof(v));
        /* Written so that NaN is refused. */
        if (!(v <= r->high && (r->above ? v > r->low : v >= r->low)))
            return refuse(s, REFUSAL_INVALID_FIELD, "sampling.%s is %g; give %s%g to %g", r->name, (double)v,
                    r->above ? "above " : "", (double)r->low, (double)r->high);
        memcpy((char *)ret + r->target, &v, sizeof(v));
    }
    return 0;
}

static int take_seed(const Sampling *p, uint64_t fallback, uint64_t *ret, struct rpc_status *s) {
    if (p && p->_seed_case)
        *ret = p->seed;
    else if (fallback)
        *ret = fallback;
    else if (getrandom(ret, sizeof(*ret), 0) != sizeof(*ret))
        return refuse(s, REFUSAL_INTERNAL, "no random bytes for a seed; give sampling.seed");
    return 0;
}

struct bias {
    uint32_t id;
    float value;
    bool banned;
};

static int compare_bias(const void *a, const void *b) {
    uint32_t x = ((const struct bias *)a)->id, y = ((const struct bias *)b)->id;
    return x < y ? -1 : x > y;
}

/* Both lists, as they came. */
static int collect_biases(const Sampling *p, uint32_t vocab_size, struct bias *list, struct rpc_status *s) {
    size_t n = 0;
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        list[n++] = (struct bias){.id = p->logit_bias[i]->key, .value = p->logit_bias[i]->value};
        if (!(p->logit_bias[i]->value >= -100 && p->logit_bias[i]->value <= 100))
            return refuse(s, REFUSAL_INVALID_FIELD, "sampling.logit_bias of token %u is %g; give -100 to 100",
                    p->logit_bias[i]->key, (double)p->logit_bias[i]->value);
    }
    for (size_t i = 0; i < p->n_banned_token_ids; i++)
        list[n++] = (struct bias){.id = p->banned_token_ids[i], .value = BANNED, .banned = true};
    for (size_t i = 0; i < n; i++)
        if (list[i].id >= vocab_size)
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "sampling.%s names token %u; the ids of this model go from 0 to %u",
                    list[i].banned ? "banned_token_ids" : "logit_bias", list[i].id, vocab_size - 1);
    return 0;
}

static int take_biases(const Sampling *p, uint32_t vocab_size, struct plan *plan, struct rpc_status *s) {
    struct bias list[LOGIT_BIAS_MAX];
    size_t all = p->n_logit_bias + p->n_banned_token_ids;
    uint32_t n = 0, n_banned = 0;
    if (all > LOGIT_BIAS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "sampling.logit_bias has %zu entries and sampling.banned_token_ids %zu; give at most %u together",
                p->n_logit_bias, p->n_banned_token_ids, LOGIT_BIAS_MAX);
    if (collect_biases(p, vocab_size, list, s) < 0)
        return -1;
    qsort(list, all, sizeof(list[0]), compare_bias);
    for (size_t i = 0; i < all; i++) {
        bool again = i > 0 && list[i].id == list[i - 1].id;
        if (again && list[i].banned && list[i - 1].banned)
            continue;
        if (again)
            return refuse(s, REFUSAL_CONFLICT, "sampling.logit_bias%s token %u twice; give one value",
                    list[i].banned != list[i - 1].banned ? " and banned_token_ids name" : " names",
                    list[i].id);
        plan->bias_ids[n] = list[i].id;
        plan->bias[n++] = list[i].value;
        n_banned += list[i].banned;
    }
    if (n_banned == vocab_size)
        return refuse(s, REFUSAL_INVALID_FIELD, "sampling.banned_token_ids leaves no token; name fewer");
    if (n_banned > 0 && plan->engine.sampling.repetition_penalty < BANNING_PENALTY_LEAST)
        return refuse(s, REFUSAL_CONFLICT,
                "sampling.repetition_penalty is %g, which would bring back what banned_token_ids names; give at "
                "least %g",
                (double)plan->engine.sampling.repetition_penalty, (double)BANNING_PENALTY_LEAST);
    plan->engine.bias_ids = plan->bias_ids;
    plan->engine.bias = plan->bias;
    plan->engine.n_bias = n;
    return 0;
}

static int take_sampling(
        const Sampling *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    const struct sampling_defaults *d = &x->model->generation.sampling;
    struct engine_sampling *e = &plan->engine.sampling;
    *e = (struct engine_sampling){.temperature = d->temperature,
            .top_k = d->top_k,
            .top_p = d->top_p,
            .min_p = d->min_p,
            .repetition_penalty = d->repetition_penalty};
    if (take_seed(p, x->seed, &e->seed, s) < 0)
        return -1;
    if (!p)
        return 0;
    if (p->_top_k_case)
        e->top_k = p->top_k;
    if (take_ranges(p, e, s) < 0 || take_biases(p, x->vocab_size, plan, s) < 0)
        return -1;
    return restrict_check(p, x, s);
}

/* --- stopping --- */

static int take_stop_ids(
        const Stopping *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    uint32_t n = 0;
    const struct generation_config *g = &x->model->generation;
    for (uint32_t i = 0; i < g->n_stop_ids && !(p && p->ignore_eos); i++)
        if (g->stop_ids[i] < x->vocab_size)
            plan->stop_ids[n++] = g->stop_ids[i];
    size_t more = p ? p->n_stop_token_ids : 0;
    if (more > STOP_IDS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "stopping.stop_token_ids has %zu entries; give at most %u",
                more, STOP_IDS_MAX);
    for (size_t i = 0; i < more; i++) {
        if (p->stop_token_ids[i] >= x->vocab_size)
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "stopping.stop_token_ids[%zu] is %u; the ids of this model go from 0 to %u", i,
                    p->stop_token_ids[i], x->vocab_size - 1);
        plan->stop_ids[n++] = p->stop_token_ids[i];
    }
    plan->engine.stop_ids = plan->stop_ids;
    plan->engine.n_stop_ids = n;
    return 0;
}

static int take_stop_strings(const Stopping *p, struct plan *plan, struct rpc_status *s) {
    if (p->n_stop > STOP_STRINGS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "stopping.stop has %zu strings; give at most %u", p->n_stop,
                STOP_STRINGS_MAX);
    for (size_t i = 0; i < p->n_stop; i++) {
        char field[48];
        snprintf(field, sizeof(field), "stopping.stop[%zu]", i);
        if (p->stop[i].len < 1 || p->stop[i].len > STOP_STRING_BYTES_MAX)
            return refuse(s, REFUSAL_INVALID_FIELD, "%s has %zu bytes; give 1 to %u", field, p->stop[i].len,
                    STOP_STRING_BYTES_MAX);
        if (message_check_utf8(p->stop[i], field, s) < 0)
            return -1;
    }
    plan->stop_strings = p->stop;
    plan->n_stop_strings = p->n_stop;
    return 0;
}

static int take_stopping(
        const Stopping *p, const struct request_context *x, struct plan *plan, struct rpc_status *s) {
    if (take_stop_ids(p, x, plan, s) < 0)
        return -1;
    if (!p)
        return 0;
    if (p->_max_tokens_case && (p->max_tokens < 1 || p->max_tokens > NEW_TOKENS_MAX))
        return refuse(s, REFUSAL_INVALID_FIELD, "stopping.max_tokens is %u; give 1 to %u, or leave it unset",
                p->max_tokens, NEW_TOKENS_MAX);
    plan->engine.max_tokens = p->_max_tokens_case ? p->max_tokens : 0;
    plan->engine.min_tokens = p->min_tokens;
    plan->include_stop = p->include_stop;
    plan->stop_in_reasoning = p->stop_in_reasoning;
    return take_stop_strings(p, plan, s);
}

/* --- output, and the whole --- */

static int take_prompt_output(const Output *p, bool chat, struct plan *plan, struct rpc_status *s) {
    if (p->_prompt_logprobs_case && p->prompt_logprobs > TOP_LOGPROBS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "output.prompt_logprobs is %u; give at most %u",
                p->prompt_logprobs, TOP_LOGPROBS_MAX);
    if (p->echo && p->skip_text)
        return refuse(s, REFUSAL_CONFLICT,
                "output.echo is about text, and output.skip_text makes none; unset one, or set prompt_token_ids");
    if (p->echo && chat && !p->raw)
        return refuse(s, REFUSAL_CONFLICT,
                "output.echo gives the prompt of a chat as plain text; set output.raw too, or unset it");
    plan->want_prompt_logprobs = p->_prompt_logprobs_case != 0;
    plan->prompt_top_logprobs = plan->want_prompt_logprobs ? p->prompt_logprobs : 0;
    plan->echo = p->echo;
    return 0;
}

static int take_output(const Output *p, bool chat, struct plan *plan, struct rpc_status *s) {
    if (!p)
        return 0;
    if (p->top_logprobs > TOP_LOGPROBS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "output.top_logprobs is %u; give at most %u", p->top_logprobs,
                TOP_LOGPROBS_MAX);
    if (p->top_logprobs > 0 && !p->logprobs)
        return refuse(s, REFUSAL_CONFLICT, "output.top_logprobs needs output.logprobs; set both");
    if (p->skip_text && plan->n_stop_strings > 0)
        return refuse(s, REFUSAL_CONFLICT,
                "stopping.stop is looked for in text, and output.skip_text makes none; unset one");
    if (p->skip_text && p->show_special)
        return refuse(s, REFUSAL_CONFLICT,
                "output.show_special is about text, and output.skip_text makes none; unset one");
    plan->engine.logprobs = plan->want_logprobs = p->logprobs;
    plan->engine.top_logprobs = p->top_logprobs;
    plan->want_ids = p->token_ids;
    plan->want_prompt_ids = p->prompt_token_ids;
    plan->raw = p->raw;
    plan->skip_text = p->skip_text;
    plan->show_special = p->show_special;
    return take_prompt_output(p, chat, plan, s);
}

int request_check_options(
        const Request *q, const struct request_context *x, struct plan *ret, struct rpc_status *s) {
    if (request_check_model(x->model, q->model, s) < 0 ||
            take_id(q->request_id, ret->engine.request_id, s) < 0)
        return -1;
    if (q->parse_special && q->input_case != SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT)
        return refuse(s, REFUSAL_CONFLICT, "parse_special is for text input only; unset it");
    if (q->priority < -100 || q->priority > 100)
        return refuse(s, REFUSAL_INVALID_FIELD, "priority is %d; give -100 to 100", q->priority);
    ret->engine.priority = q->priority;
    if (q->cache_salt.len > CACHE_SALT_BYTES_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "cache_salt has %zu bytes; give at most %u",
                q->cache_salt.len, CACHE_SALT_BYTES_MAX);
    if (message_check_utf8(q->cache_salt, "cache_salt", s) < 0)
        return -1;
    ret->engine.cache_salt = q->cache_salt.data;
    ret->engine.n_cache_salt = (uint32_t)q->cache_salt.len;
    ret->engine.queue_ms = q->queue_timeout_ms;
    if (q->n > ANSWERS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "n is %u; give 1 to %u answers", q->n, ANSWERS_MAX);
    ret->n_answers = q->n > 0 ? q->n : 1;
    if (take_sampling(q->sampling, x, ret, s) < 0 || take_stopping(q->stopping, x, ret, s) < 0)
        return -1;
    return take_output(q->output, q->input_case == SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT, ret, s);
}

static int take_prompt(
        const Request *q, const struct request_context *x, struct prompt *ret, struct rpc_status *s) {
    switch (q->input_case) {
    case SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT:
        return prompt_from_text(x->model, q->text, q->parse_special, x->max_model_len, ret, s);
    case SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS:
        return prompt_from_ids(q->token_ids->ids, q->token_ids->n_ids, x->vocab_size, ret, s);
    case SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT:
        return prompt_from_chat(x->model, q->chat, x->max_model_len, ret, s);
    default:
        return refuse(
                s, REFUSAL_MISSING_INPUT, "the request has no input; set one of text, token_ids or chat");
    }
}

/* The prompt and the answer share the model's length. */
static int fit(struct engine_request *e, size_t n_prompt, uint32_t length, struct rpc_status *s) {
    if (n_prompt >= length)
        return refuse(s, REFUSAL_CONTEXT_TOO_LONG,
                "the prompt has %zu tokens and the model takes %u, prompt and answer together; "
                "shorten the prompt",
                n_prompt, length);
    uint32_t room = length - (uint32_t)n_prompt;
    if (e->max_tokens > room)
        return refuse(s, REFUSAL_CONTEXT_TOO_LONG,
                "the prompt has %zu tokens and stopping.max_tokens is %u, but the model takes %u "
                "together; lower max_tokens "
                "to %u or shorten the prompt",
                n_prompt, e->max_tokens, length, room);
    if (e->max_tokens == 0)
        e->max_tokens = room < NEW_TOKENS_MAX ? room : NEW_TOKENS_MAX;
    if (e->min_tokens > e->max_tokens)
        return refuse(s, REFUSAL_CONFLICT,
                "stopping.min_tokens is %u, more than max_tokens or the room that the prompt "
                "leaves, %u; lower it",
                e->min_tokens, e->max_tokens);
    return 0;
}

int request_check(const Request *q, const struct request_context *x, struct plan *ret, struct rpc_status *s) {
    *ret = (struct plan){0};
    if (request_check_options(q, x, ret, s) < 0 || take_prompt(q, x, &ret->prompt, s) < 0)
        return -1;
    if (ret->prompt.n == 0)
        refuse(s, REFUSAL_MISSING_INPUT, "the prompt has no tokens; give some text");
    if (ret->prompt.n == 0 || fit(&ret->engine, ret->prompt.n, x->max_model_len, s) < 0 ||
            restrict_take(q->sampling, x, ret, s) < 0) {
        plan_done(ret);
        return -1;
    }
    ret->engine.prompt_ids = ret->prompt.ids;
    ret->engine.n_prompt = (uint32_t)ret->prompt.n;
    ret->engine.shared_end = ret->prompt.shared_end;
    ret->engine.turn_end = ret->prompt.turn_end;
    ret->engine.n_message_ends = ret->prompt.n_message_ends;
    memcpy(ret->engine.message_ends, ret->prompt.message_ends, sizeof(ret->engine.message_ends));
    return 0;
}

void plan_done(struct plan *p) {
    free(p->mask);
    free(p->bad_words);
    prompt_done(&p->prompt);
}
