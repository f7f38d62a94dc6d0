/* harness.h - the whole service in one process: fake engine, real methods, a real client. */
#pragma once

#include "base/log.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/message.h"
#include "daemon/service/service.h"
#include "tests/unit/rpc/client.h"
#include "tests/unit/service/fake_engine.h"
#include "tests/unit/service/test_model.h"

#include "grpc/health/v1/health.pb-c.h"
#include "shardd/v1/shardd.pb-c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#define TEXT_MAX 65536

struct harness {
    struct model *model;
    struct service service;
    struct rpc_server *server;
    char address[64];
    struct client client;
};

/* All of a stream put together; the promises of a stream are asserted on the way. */
struct answer {
    char text[TEXT_MAX], reasoning[TEXT_MAX], tool_name[256], tool_arguments[TEXT_MAX], started_id[160];
    uint32_t ids[FAKE_TOKENS_MAX];
    size_t n_ids, n_chunks, n_tokens, n_tools_done, n_logprobs, n_top;
    char logprob_bytes[TEXT_MAX];
    bool finished;
    int reason;
    uint32_t stop_id, prompt_tokens, completion_tokens, reasoning_tokens, max_tokens;
    bool has_stop_id;
    char stop_string[300];
    double temperature;
    grpc_status_code status;
    char sentence[1024], code[64], retryable[8], retry_after[16];
};

static struct harness *harness;

static inline int harness_up(void **state) {
    struct harness *h = calloc(1, sizeof(*h));
    struct error e = {0};
    const struct rpc_method *methods;
    int fd;
    (void)state;
    atomic_store(&fake_submit_code, 0);
    atomic_store(&fake_takes, 0);
    atomic_store(&fake_submits, 0);
    atomic_store(&fake_hold, false);
    atomic_store(&fake_piece, 1);
    atomic_store(&fake_cancels, 0);
    atomic_store(&fake_finishes, 0);
    fake_state = "serving";
    h->model = test_model();
    fake_engine_start();
    struct service_options options = {.model = h->model, .engine = &fake_engine};
    service_init(&h->service, &options);
    size_t n = service_methods(&h->service, &methods);
    struct rpc_server_options rpc = {.n_workers = 2};
    assert_int_equal(rpc_server_create(&rpc, methods, n, &h->server, &e), 0);
    assert_int_equal(rpc_server_start(h->server, &e), 0);
    assert_int_equal(rpc_listen("127.0.0.1:0", &fd, h->address, sizeof(h->address), &e), 0);
    assert_int_equal(rpc_server_add_listener(h->server, fd, &e), 0);
    service_set_health(&h->service, true, h->server);
    h->client = client_open(h->address, NULL);
    harness = h;
    return 0;
}

static inline int harness_down(void **state) {
    struct harness *h = harness;
    (void)state;
    client_close(&h->client);
    rpc_server_stop(h->server, 1000, 1000);
    fake_engine_stop();
    rpc_server_free(h->server);
    model_free(h->model);
    free(h);
    assert_int_equal(atomic_load(&fake_live), 0); /* every stream was let go */
    return 0;
}

/* The next tokens of every stream: those of this text, then these ids. */
static inline void script(
        const char *text, const uint32_t *more, uint32_t n_more, enum engine_finish finish) {
    uint32_t all[FAKE_TOKENS_MAX], *ids = NULL;
    size_t n = 0;
    if (*text) {
        assert_int_equal(tokenizer_encode(harness->model->tokenizer, text, strlen(text),
                                 /* parse_special= */ true, FAKE_TOKENS_MAX, &ids, &n, NULL),
                0);
        memcpy(all, ids, n * sizeof(*ids));
        free(ids);
    }
    for (uint32_t i = 0; i < n_more; i++)
        all[n++] = more[i];
    fake_script_set(all, (uint32_t)n, finish);
}

static inline struct client_call *call(const char *path, const ProtobufCMessage *m, int deadline_ms) {
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);
    protobuf_c_message_pack(m, bytes);
    struct client_call *c = client_call(&harness->client, path, bytes, n, deadline_ms);
    free(bytes);
    return c;
}

/* One answer of a unary call, or NULL with the status in *ret_call (client_free it in both cases). */
static inline ProtobufCMessage *ask(const char *path, const ProtobufCMessage *m,
        const ProtobufCMessageDescriptor *answer, struct client_call **ret_call) {
    struct client_call *c = call(path, m, 60000);
    struct client_bytes b = client_next(c);
    ProtobufCMessage *a = b.data ? protobuf_c_message_unpack(answer, NULL, b.n, (uint8_t *)b.data) : NULL;
    free(b.data);
    client_finish(c);
    *ret_call = c;
    return a;
}

static inline void append(char *to, ProtobufCBinaryData from) {
    size_t n = strlen(to);
    assert_true(n + from.len < TEXT_MAX);
    if (from.len > 0)
        memcpy(to + n, from.data, from.len);
    to[n + from.len] = '\0';
}

static inline void add_delta(struct answer *a, const Shardd__V1__Delta *d) {
    struct rpc_status s;
    if (d->delta_case == SHARDD__V1__DELTA__DELTA_TEXT) {
        assert_int_equal(message_check_utf8(d->text, "delta", &s), 0);
        append(a->text, d->text);
    } else if (d->delta_case == SHARDD__V1__DELTA__DELTA_REASONING) {
        assert_int_equal(message_check_utf8(d->reasoning, "delta", &s), 0);
        append(a->reasoning, d->reasoning);
    } else {
        assert_int_equal(d->delta_case, SHARDD__V1__DELTA__DELTA_TOOL_CALL);
        append(a->tool_name, d->tool_call->name);
        append(a->tool_arguments, d->tool_call->arguments);
        a->n_tools_done += d->tool_call->done;
    }
}

static inline void add_chunk(struct answer *a, const Shardd__V1__GenerateChunk *c) {
    assert_false(a->finished);
    assert_int_equal(c->index, a->n_chunks);
    assert_int_equal(c->first_token_index, a->n_tokens);
    assert_int_equal(c->started != NULL, a->n_chunks == 0);
    a->n_chunks++;
    a->n_tokens += c->n_tokens;
    if (c->started) {
        append(a->started_id, c->started->request_id);
        a->temperature = (double)c->started->sampling->temperature;
        a->max_tokens = c->started->max_tokens;
    }
    for (size_t i = 0; i < c->n_token_ids; i++)
        a->ids[a->n_ids++] = c->token_ids[i];
    for (size_t i = 0; i < c->n_deltas; i++)
        add_delta(a, c->deltas[i]);
    for (size_t i = 0; i < c->n_logprobs; i++) {
        append(a->logprob_bytes, c->logprobs[i]->token);
        a->n_top += c->logprobs[i]->n_top;
    }
    a->n_logprobs += c->n_logprobs;
    if (!c->finish)
        return;
    a->finished = true;
    a->reason = c->finish->reason;
    a->has_stop_id = c->finish->_stop_token_id_case != 0;
    a->stop_id = a->has_stop_id ? c->finish->stop_token_id : 0;
    if (c->finish->_stop_string_case)
        append(a->stop_string, c->finish->stop_string);
    a->prompt_tokens = c->finish->usage->prompt_tokens;
    a->completion_tokens = c->finish->usage->completion_tokens;
    a->reasoning_tokens = c->finish->usage->reasoning_tokens;
}

static inline struct answer *collect(struct client_call *c) {
    struct answer *a = calloc(1, sizeof(*a));
    for (struct client_bytes b; (b = client_next(c)).data;) {
        Shardd__V1__GenerateChunk *chunk = shardd__v1__generate_chunk__unpack(NULL, b.n, (uint8_t *)b.data);
        assert_non_null(chunk);
        add_chunk(a, chunk);
        shardd__v1__generate_chunk__free_unpacked(chunk, NULL);
        free(b.data);
    }
    a->status = client_finish(c);
    memcpy(a->sentence, c->text, sizeof(a->sentence));
    memcpy(a->code, c->code, sizeof(a->code));
    memcpy(a->retryable, c->retryable, sizeof(a->retryable));
    memcpy(a->retry_after, c->retry_after, sizeof(a->retry_after));
    client_free(c);
    return a;
}

static inline struct answer *generate(const Shardd__V1__GenerateRequest *q) {
    return collect(call("/shardd.v1.Shardd/Generate", &q->base, 60000));
}

static inline struct Shardd__V1__GenerateRequest text_request(const char *text) {
    Shardd__V1__GenerateRequest q = SHARDD__V1__GENERATE_REQUEST__INIT;
    q.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT;
    q.text = message_string(text);
    return q;
}
