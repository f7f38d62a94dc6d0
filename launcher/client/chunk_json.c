/* chunk_json.c - see chunk_json.h. Only fields that are set are written, as protobuf's own JSON does. */
#include "launcher/client/chunk_json.h"

#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"

json_t *json_of_bytes(ProtobufCBinaryData b) {
    const char *text = (const char *)b.data;
    if (utf8_valid(text, b.len, NULL))
        return json_stringn(text ? text : "", b.len);
    char *clean = malloc(b.len * 3 + 1); /* each bad byte becomes three */
    size_t n = 0;
    if (!clean)
        return NULL;
    for (size_t i = 0; i < b.len;) {
        size_t whole = utf8_sequence(text + i, b.len - i);
        memcpy(clean + n, whole ? text + i : REPLACEMENT, whole ? whole : 3);
        n += whole ? whole : 3;
        i += whole ? whole : 1;
    }
    json_t *s = json_stringn(clean, n);
    free(clean);
    return s;
}

json_t *json_of_ids(const uint32_t *ids, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static void put_number(json_t *o, const char *name, double value) {
    json_object_set_new(o, name, json_real(value));
}

static void put_count(json_t *o, const char *name, uint64_t value) {
    json_object_set_new(o, name, json_integer((json_int_t)value));
}

json_t *json_of_sampling(const Shardd__V1__SamplingParams *s) {
    json_t *o = json_object();
    if (s->_temperature_case)
        put_number(o, "temperature", s->temperature);
    if (s->_top_k_case)
        put_count(o, "top_k", s->top_k);
    if (s->_top_p_case)
        put_number(o, "top_p", s->top_p);
    if (s->_min_p_case)
        put_number(o, "min_p", s->min_p);
    if (s->_repetition_penalty_case)
        put_number(o, "repetition_penalty", s->repetition_penalty);
    if (s->_presence_penalty_case)
        put_number(o, "presence_penalty", s->presence_penalty);
    if (s->_frequency_penalty_case)
        put_number(o, "frequency_penalty", s->frequency_penalty);
    if (s->_seed_case) { /* 64 bits do not fit every reader's numbers */
        char text[24];
        snprintf(text, sizeof(text), "%llu", (unsigned long long)s->seed);
        json_object_set_new(o, "seed", json_string(text));
    }
    return o;
}

static json_t *json_of_started(const Shardd__V1__GenerateStarted *s) {
    json_t *o = json_object();
    json_object_set_new(o, "request_id", json_of_bytes(s->request_id));
    json_object_set_new(o, "model", json_of_bytes(s->model));
    put_count(o, "prompt_tokens", s->prompt_tokens);
    put_count(o, "max_tokens", s->max_tokens);
    if (s->sampling)
        json_object_set_new(o, "sampling", json_of_sampling(s->sampling));
    return o;
}

static json_t *json_of_delta(const Shardd__V1__Delta *d) {
    json_t *o = json_object(), *call;
    switch (d->delta_case) {
    case SHARDD__V1__DELTA__DELTA_TEXT:
        json_object_set_new(o, "text", json_of_bytes(d->text));
        break;
    case SHARDD__V1__DELTA__DELTA_REASONING:
        json_object_set_new(o, "reasoning", json_of_bytes(d->reasoning));
        break;
    case SHARDD__V1__DELTA__DELTA_TOOL_CALL:
        call = json_object();
        put_count(call, "index", d->tool_call->index);
        if (d->tool_call->id.len)
            json_object_set_new(call, "id", json_of_bytes(d->tool_call->id));
        if (d->tool_call->name.len)
            json_object_set_new(call, "name", json_of_bytes(d->tool_call->name));
        json_object_set_new(call, "arguments", json_of_bytes(d->tool_call->arguments));
        json_object_set_new(call, "done", json_boolean(d->tool_call->done));
        json_object_set_new(o, "tool_call", call);
        break;
    default:
        break;
    }
    return o;
}

static json_t *json_of_logprobs(const Shardd__V1__TokenLogprobs *l) {
    json_t *o = json_object(), *top = json_array();
    put_count(o, "token_id", l->token_id);
    put_number(o, "logprob", l->logprob);
    json_object_set_new(o, "token", json_of_bytes(l->token));
    for (size_t i = 0; i < l->n_top; i++) {
        json_t *t = json_object();
        put_count(t, "token_id", l->top[i]->token_id);
        put_number(t, "logprob", l->top[i]->logprob);
        json_object_set_new(t, "token", json_of_bytes(l->top[i]->token));
        json_array_append_new(top, t);
    }
    json_object_set_new(o, "top", top);
    return o;
}

static json_t *json_of_list(Shardd__V1__TokenLogprobs *const *logprobs, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_of_logprobs(logprobs[i]));
    return list;
}

static json_t *json_of_usage(const Shardd__V1__Usage *usage) {
    json_t *u = json_object();
    put_count(u, "prompt_tokens", usage->prompt_tokens);
    put_count(u, "completion_tokens", usage->completion_tokens);
    put_count(u, "reasoning_tokens", usage->reasoning_tokens);
    put_count(u, "cached_tokens", usage->cached_tokens);
    put_number(u, "queue_ms", usage->queue_ms);
    put_number(u, "first_token_ms", usage->first_token_ms);
    put_number(u, "total_ms", usage->total_ms);
    return u;
}

static json_t *json_of_finish(const Shardd__V1__Finish *f) {
    static const char *const reasons[] = {"unspecified", "stop", "length", "tool_calls", "aborted"};
    json_t *o = json_object();
    bool known = f->reason >= 0 && (size_t)f->reason < sizeof(reasons) / sizeof(reasons[0]);
    json_object_set_new(o, "reason", json_string(known ? reasons[f->reason] : "unspecified"));
    if (f->_stop_token_id_case)
        put_count(o, "stop_token_id", f->stop_token_id);
    if (f->_stop_string_case)
        json_object_set_new(o, "stop_string", json_of_bytes(f->stop_string));
    if (f->usage)
        json_object_set_new(o, "usage", json_of_usage(f->usage));
    return o;
}

bool chunk_print_json(FILE *out, const Shardd__V1__GenerateChunk *chunk) {
    json_t *o = json_object(), *list;
    put_count(o, "index", chunk->index);
    put_count(o, "first_token_index", chunk->first_token_index);
    put_count(o, "n_tokens", chunk->n_tokens);
    put_count(o, "answer", chunk->answer);
    if (chunk->started)
        json_object_set_new(o, "started", json_of_started(chunk->started));
    if (chunk->n_deltas) {
        list = json_array();
        for (size_t i = 0; i < chunk->n_deltas; i++)
            json_array_append_new(list, json_of_delta(chunk->deltas[i]));
        json_object_set_new(o, "deltas", list);
    }
    if (chunk->n_token_ids)
        json_object_set_new(o, "token_ids", json_of_ids(chunk->token_ids, chunk->n_token_ids));
    if (chunk->n_logprobs)
        json_object_set_new(o, "logprobs", json_of_list(chunk->logprobs, chunk->n_logprobs));
    if (chunk->n_prompt_logprobs) {
        put_count(o, "first_prompt_index", chunk->first_prompt_index);
        json_object_set_new(
                o, "prompt_logprobs", json_of_list(chunk->prompt_logprobs, chunk->n_prompt_logprobs));
    }
    if (chunk->finish)
        json_object_set_new(o, "finish", json_of_finish(chunk->finish));
    if (chunk->total)
        json_object_set_new(o, "total", json_of_usage(chunk->total));
    bool written = json_dumpf(o, out, JSON_COMPACT) == 0 && fputc('\n', out) != EOF;
    json_decref(o);
    return written;
}
