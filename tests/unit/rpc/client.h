/* client.h - a small synchronous gRPC client for tests, on the C core.
 *
 * One thread per client. Messages are bytes. A call's status and trailers are there after client_finish(). */
#pragma once

#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct client {
    grpc_channel *channel;
    grpc_completion_queue *cq;
};

struct client_call {
    struct client *client;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    char text[1024], code[64], retryable[8], retry_after[16],
            pushback[16]; /* of the status, after client_finish */
};

struct client_bytes {
    char *data; /* malloc'ed, NUL after the end; NULL = none */
    size_t n;
};

static inline struct client client_open(const char *address, const grpc_channel_args *more) {
    grpc_init();
    grpc_arg args[8] = {
            {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, .value.integer = 1},
            {.type = GRPC_ARG_INTEGER,
                    .key = (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                    .value.integer = -1}};
    grpc_channel_args all = {.num_args = 2, .args = args};
    for (size_t i = 0; more && i < more->num_args; i++)
        args[all.num_args++] = more->args[i];
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    struct client c = {.channel = grpc_channel_create(address, plain, &all),
            .cq = grpc_completion_queue_create_for_pluck(NULL)};
    grpc_channel_credentials_release(plain);
    return c;
}

static inline void client_close(struct client *c) {
    grpc_channel_destroy(c->channel);
    grpc_completion_queue_shutdown(c->cq);
    grpc_completion_queue_destroy(c->cq);
    grpc_shutdown();
}

static inline bool client_wait(struct client *c, void *tag) {
    grpc_event e = grpc_completion_queue_pluck(c->cq, tag, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    assert(e.type == GRPC_OP_COMPLETE);
    return e.success != 0;
}

static inline gpr_timespec client_deadline(int ms) {
    return ms ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN))
              : gpr_inf_future(GPR_CLOCK_MONOTONIC);
}

static inline grpc_byte_buffer *client_buffer(const void *data, size_t n) {
    grpc_slice s = grpc_slice_from_copied_buffer(data, n);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    return b;
}

/* Starts a call; with data (not NULL) the one message and the half-close go out too. */
static inline struct client_call *client_call_gzip(
        struct client *c, const char *path, const void *data, size_t n, int deadline_ms, bool gzip) {
    struct client_call *call = calloc(1, sizeof(*call));
    call->client = c;
    grpc_slice method = grpc_slice_from_copied_string(path);
    call->call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq, method, NULL,
            client_deadline(deadline_ms), NULL);
    grpc_slice_unref(method);
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    call->details = grpc_empty_slice();
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &call->trailing;
    status.data.recv_status_on_client.status = &call->status;
    status.data.recv_status_on_client.status_details = &call->details;
    grpc_call_error r = grpc_call_start_batch(call->call, &status, 1, &call->status, NULL);
    grpc_op ops[4] = {0};
    grpc_byte_buffer *buffer = data ? client_buffer(data, n) : NULL;
    grpc_metadata gzip_metadata = {
            .key = grpc_slice_from_static_string(GRPC_COMPRESSION_REQUEST_ALGORITHM_MD_KEY),
            .value = grpc_slice_from_static_string("gzip")};
    size_t n_ops = 0;
    ops[n_ops].data.send_initial_metadata.metadata = gzip ? &gzip_metadata : NULL;
    ops[n_ops].data.send_initial_metadata.count = gzip;
    ops[n_ops++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (data) {
        ops[n_ops].op = GRPC_OP_SEND_MESSAGE;
        ops[n_ops++].data.send_message.send_message = buffer;
        ops[n_ops++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    if (r == GRPC_CALL_OK)
        r = grpc_call_start_batch(call->call, ops, n_ops, call, NULL);
    assert(r == GRPC_CALL_OK);
    grpc_op initial = {.op = GRPC_OP_RECV_INITIAL_METADATA};
    initial.data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    r = grpc_call_start_batch(call->call, &initial, 1, &call->initial, NULL);
    assert(r == GRPC_CALL_OK);
    client_wait(c, call);
    grpc_byte_buffer_destroy(buffer);
    return call;
}

static inline struct client_call *client_call(
        struct client *c, const char *path, const void *data, size_t n, int deadline_ms) {
    return client_call_gzip(c, path, data, n, deadline_ms, false);
}

static inline void client_send(struct client_call *call, const void *data, size_t n) {
    grpc_byte_buffer *b = client_buffer(data, n);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = b;
    grpc_call_error r = grpc_call_start_batch(call->call, &op, 1, call, NULL);
    assert(r == GRPC_CALL_OK);
    (void)r;
    client_wait(call->client, call);
    grpc_byte_buffer_destroy(b);
}

static inline void client_half_close(struct client_call *call) {
    grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    grpc_call_error r = grpc_call_start_batch(call->call, &op, 1, call, NULL);
    assert(r == GRPC_CALL_OK);
    (void)r;
    client_wait(call->client, call);
}

/* The next message; data NULL at the end of them. */
static inline struct client_bytes client_next(struct client_call *call) {
    grpc_byte_buffer *buffer = NULL;
    struct client_bytes out = {0};
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &buffer;
    grpc_call_error r = grpc_call_start_batch(call->call, &op, 1, &call->call, NULL);
    assert(r == GRPC_CALL_OK);
    (void)r;
    client_wait(call->client, &call->call);
    if (buffer) {
        grpc_byte_buffer_reader reader;
        if (grpc_byte_buffer_reader_init(&reader, buffer)) {
            grpc_slice s = grpc_byte_buffer_reader_readall(&reader);
            out.n = GRPC_SLICE_LENGTH(s);
            out.data = malloc(out.n + 1);
            memcpy(out.data, GRPC_SLICE_START_PTR(s), out.n);
            out.data[out.n] = '\0';
            grpc_slice_unref(s);
            grpc_byte_buffer_reader_destroy(&reader);
        }
        grpc_byte_buffer_destroy(buffer);
    }
    return out;
}

static inline void client_copy(char *to, size_t size, grpc_slice from) {
    size_t n = GRPC_SLICE_LENGTH(from) < size - 1 ? GRPC_SLICE_LENGTH(from) : size - 1;
    memcpy(to, GRPC_SLICE_START_PTR(from), n);
    to[n] = '\0';
}

/* Waits for the status. Read the messages first: what was not read is dropped. */
static inline grpc_status_code client_finish(struct client_call *call) {
    client_wait(call->client, &call->status);
    client_wait(call->client, &call->initial);
    client_copy(call->text, sizeof(call->text), call->details);
    for (size_t i = 0; i < call->trailing.count; i++) {
        const grpc_metadata *m = &call->trailing.metadata[i];
        if (grpc_slice_str_cmp(m->key, "shardd-code") == 0)
            client_copy(call->code, sizeof(call->code), m->value);
        if (grpc_slice_str_cmp(m->key, "shardd-retryable") == 0)
            client_copy(call->retryable, sizeof(call->retryable), m->value);
        if (grpc_slice_str_cmp(m->key, "shardd-retry-after-ms") == 0)
            client_copy(call->retry_after, sizeof(call->retry_after), m->value);
        if (grpc_slice_str_cmp(m->key, "grpc-retry-pushback-ms") == 0)
            client_copy(call->pushback, sizeof(call->pushback), m->value);
    }
    return call->status;
}

static inline void client_cancel(struct client_call *call) {
    grpc_call_cancel(call->call, NULL);
}

static inline void client_free(struct client_call *call) {
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->details);
    grpc_call_unref(call->call);
    free(call);
}
