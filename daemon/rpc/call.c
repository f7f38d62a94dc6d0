/* call.c - the life of one call, on its worker's thread from the first event to the last. See rpc.h.
 *
 * Every batch in flight holds a reference; the call is released when the last tag is back. All sends of a
 * call go out one after another: a second one while the first is out may be refused by the core, or may not. */
#include "daemon/rpc/rpc_internal.h"

#include "base/clock.h"
#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A batch that the core refuses is our mistake, never the peer's doing. */
static void start_batch(struct rpc_call *c, const grpc_op *ops, size_t n, struct rpc_tag *tag) {
    assert(!c->worker->down);
    c->refs++;
    grpc_call_error r = grpc_call_start_batch(c->call, ops, n, tag, NULL);
    if (r != GRPC_CALL_OK) {
        log_error("grpc_call_start_batch: %s", grpc_call_error_to_string(r));
        abort();
    }
}

static void drop_request(struct rpc_call *c) {
    if (c->has_request)
        grpc_slice_unref(c->request);
    c->has_request = false;
    grpc_byte_buffer_destroy(c->payload);
    c->payload = NULL;
}

static void call_unref(struct rpc_call *c) {
    assert(c->refs > 0);
    if (--c->refs > 0)
        return;
    drop_request(c);
    if (c->has_out)
        grpc_slice_unref(c->out);
    grpc_byte_buffer_destroy(c->out_buffer);
    grpc_metadata_array_destroy(&c->metadata);
    grpc_call_details_destroy(&c->details);
    if (c->call)
        grpc_call_unref(c->call);
    free(c);
}

/* The received message as one piece; the buffer is let go as soon as it was copied. */
static void take_payload(struct rpc_call *c) {
    if (!c->payload)
        return;
    grpc_byte_buffer_reader reader;
    if (grpc_byte_buffer_reader_init(&reader, c->payload)) {
        c->request = grpc_byte_buffer_reader_readall(&reader);
        c->has_request = true;
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(c->payload);
    c->payload = NULL;
}

static void list_add(struct rpc_call *c) {
    struct rpc_worker *w = c->worker;
    c->next = w->calls;
    if (w->calls)
        w->calls->previous = c;
    w->calls = c;
    atomic_fetch_add(&w->server->live_calls, 1);
    atomic_fetch_add(&w->server->calls_total, 1);
}

static void list_remove(struct rpc_call *c) {
    struct rpc_worker *w = c->worker;
    if (c->previous)
        c->previous->next = c->next;
    else
        w->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    c->previous = c->next = NULL;
    if (atomic_fetch_sub(&w->server->live_calls, 1) == 1) {
        pthread_mutex_lock(&w->server->mutex);
        w->server->idle = atomic_load(&w->server->draining);
        pthread_cond_broadcast(&w->server->changed);
        pthread_mutex_unlock(&w->server->mutex);
    }
}

static void refuse_unknown_method(struct rpc_call *c) {
    struct rpc_status s = {.status = RPC_UNIMPLEMENTED, .code = "unknown_method"};
    char *method = grpc_slice_to_c_string(c->details.method);
    snprintf(s.text, sizeof(s.text),
            "method '%.200s' is not served here; reflection lists the services that are", method);
    gpr_free(method);
    rpc_call_finish(c, &s);
}

/* RPC_BIDI: asks for the next message, unless one is awaited, the client has ended or an answer is on its way
 * (a client that sends questions and reads no answers is held back here). */
static void receive_next(struct rpc_call *c) {
    if (c->receiving || c->received_all || !rpc_call_can_send(c))
        return;
    c->receiving = true;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->payload;
    start_batch(c, &op, 1, &c->receive_tag);
}

static void on_new(struct rpc_tag *t, bool ok) {
    struct rpc_call *c = t->owner;
    struct rpc_worker *w = c->worker;
    if (!ok || w->down) { /* not a call, the server is closing; or one that came after the end */
        call_unref(c);
        return;
    }
    rpc_call_post(w, c->method_index); /* keeps the slot open */
    list_add(c);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &c->cancelled;
    start_batch(c, &op, 1, &c->close_tag);
    if (!c->method) {
        refuse_unknown_method(c);
    } else if (c->method->kind == RPC_BIDI) {
        if (c->method->on_call)
            c->method->on_call(c);
        receive_next(c);
    } else {
        take_payload(c);
        c->method->on_call(c);
        drop_request(c);
    }
    call_unref(c);
}

static void on_close(struct rpc_tag *t, bool ok) {
    struct rpc_call *c = t->owner;
    (void)ok;
    c->closed = true;
    if (c->method && c->method->on_close)
        c->method->on_close(c);
    c->state = NULL;
    list_remove(c);
    call_unref(c);
}

static void on_receive(struct rpc_tag *t, bool ok) {
    struct rpc_call *c = t->owner;
    c->receiving = false;
    if (ok && !c->closed && !c->finished && !c->worker->down) {
        take_payload(c);
        c->received_all = !c->has_request;
        c->method->on_message(c);
        drop_request(c);
        receive_next(c);
    }
    call_unref(c);
}

static void on_send(struct rpc_tag *t, bool ok) {
    struct rpc_call *c = t->owner;
    c->sending = false;
    grpc_byte_buffer_destroy(c->out_buffer);
    c->out_buffer = NULL;
    if (!ok)
        c->broken = true; /* on_close tells the method */
    else if (rpc_call_can_send(c)) {
        rpc_call_wake(c);
        if (c->method && c->method->kind == RPC_BIDI)
            receive_next(c);
    }
    call_unref(c);
}

void rpc_call_post(struct rpc_worker *w, size_t method_index) {
    struct rpc_server *s = w->server;
    struct rpc_call *c = calloc(1, sizeof(*c));
    if (!c) { /* one slot less; the others go on */
        log_error("no memory for a gRPC call");
        return;
    }
    c->worker = w;
    c->method_index = method_index;
    c->method = method_index < s->n_methods ? &s->methods[method_index] : NULL;
    c->refs = 1;
    c->new_tag = (struct rpc_tag){.fn = on_new, .owner = c};
    c->close_tag = (struct rpc_tag){.fn = on_close, .owner = c};
    c->send_tag = (struct rpc_tag){.fn = on_send, .owner = c};
    c->receive_tag = (struct rpc_tag){.fn = on_receive, .owner = c};
    grpc_metadata_array_init(&c->metadata);
    grpc_call_details_init(&c->details);
    grpc_call_error r;
    if (c->method)
        r = grpc_server_request_registered_call(s->server, s->handles[method_index], &c->call, &c->deadline,
                &c->metadata, c->method->kind == RPC_BIDI ? NULL : &c->payload, w->cq, w->cq, &c->new_tag);
    else
        r = grpc_server_request_call(
                s->server, &c->call, &c->details, &c->metadata, w->cq, w->cq, &c->new_tag);
    assert(r == GRPC_CALL_OK);
    (void)r;
}

void rpc_call_wake(struct rpc_call *c) {
    if (!c->closed && c->method && c->method->on_wake)
        c->method->on_wake(c);
}

void rpc_call_check_stall(struct rpc_call *c, uint64_t now_ns, uint64_t stall_ns) {
    if (c->sending && !c->closed && now_ns - c->send_start_ns >= stall_ns)
        rpc_call_cancel(c, RPC_RESOURCE_EXHAUSTED, "the reader is too slow: read the stream as it comes");
}

bool rpc_call_can_send(const struct rpc_call *c) {
    return !c->sending && !c->finished && !c->broken && !c->closed && !c->worker->down;
}

void *rpc_call_message(struct rpc_call *c, size_t bytes) {
    assert(!c->has_out);
    c->out = grpc_slice_malloc(bytes);
    c->has_out = true;
    return GRPC_SLICE_START_PTR(c->out); /* into c->out itself when small: c does not move */
}

/* Adds what every batch of sends begins with; returns the number of operations. */
static size_t begin_send(struct rpc_call *c, grpc_op ops[3]) {
    size_t n = 0;
    if (!c->greeted)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    c->greeted = true;
    if (c->has_out) {
        c->out_buffer = grpc_raw_byte_buffer_create(&c->out, 1);
        grpc_slice_unref(c->out);
        c->has_out = false;
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = c->out_buffer;
    }
    c->sending = true;
    c->send_start_ns = clock_ns();
    return n;
}

void rpc_call_send(struct rpc_call *c) {
    assert(rpc_call_can_send(c));
    assert(c->has_out);
    grpc_op ops[3] = {0};
    size_t n = begin_send(c, ops);
    start_batch(c, ops, n, &c->send_tag);
}

static grpc_metadata trailer(const char *key, grpc_slice value) {
    return (grpc_metadata){.key = grpc_slice_from_static_string(key), .value = value};
}

/* The second name of the wait is gRPC's own: clients with a retry policy wait for it by themselves. */
static size_t make_trailers(struct rpc_call *c, const struct rpc_status *s, grpc_slice wait) {
    c->trailers[0] = trailer("shardd-code", grpc_slice_from_static_string(s->code));
    c->trailers[1] =
            trailer("shardd-retryable", grpc_slice_from_static_string(s->retryable ? "true" : "false"));
    if (s->retry_after_ms == 0)
        return 2;
    c->trailers[2] = trailer("shardd-retry-after-ms", wait);
    c->trailers[3] = trailer("grpc-retry-pushback-ms", wait);
    return 4;
}

void rpc_call_finish(struct rpc_call *c, const struct rpc_status *status) {
    assert(rpc_call_can_send(c));
    grpc_op ops[3] = {0};
    size_t n = begin_send(c, ops);
    grpc_slice details = grpc_empty_slice(), wait = grpc_empty_slice();
    char wait_ms[16];
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    if (status) {
        assert(status->status != RPC_OK);
        details = grpc_slice_from_copied_string(status->text);
        snprintf(wait_ms, sizeof(wait_ms), "%u", status->retry_after_ms);
        wait = grpc_slice_from_copied_string(wait_ms);
        ops[n].data.send_status_from_server.trailing_metadata_count = make_trailers(c, status, wait);
        ops[n].data.send_status_from_server.trailing_metadata = c->trailers;
        ops[n].data.send_status_from_server.status_details = &details;
    }
    ops[n++].data.send_status_from_server.status = status ? (grpc_status_code)status->status : GRPC_STATUS_OK;
    c->finished = true;
    start_batch(c, ops, n, &c->send_tag);
    grpc_slice_unref(details);
    grpc_slice_unref(wait);
}

void rpc_call_cancel(struct rpc_call *c, enum rpc_status_code status, const char *text) {
    grpc_call_cancel_with_status(c->call, (grpc_status_code)status, text, NULL);
}

struct rpc_worker *rpc_call_worker(struct rpc_call *c) {
    return c->worker;
}

struct rpc_server *rpc_call_server(struct rpc_call *c) {
    return c->worker->server;
}

void *rpc_call_user(struct rpc_call *c) {
    return c->method->user;
}

void *rpc_call_state(struct rpc_call *c) {
    return c->state;
}

void rpc_call_set_state(struct rpc_call *c, void *state) {
    c->state = state;
}

const void *rpc_call_request(struct rpc_call *c, size_t *ret_bytes) {
    if (!c->has_request)
        return NULL;
    *ret_bytes = GRPC_SLICE_LENGTH(c->request);
    return GRPC_SLICE_START_PTR(c->request);
}

uint64_t rpc_call_deadline_ns(struct rpc_call *c) {
    if (gpr_time_cmp(c->deadline, gpr_inf_future(c->deadline.clock_type)) == 0)
        return 0;
    gpr_timespec t = gpr_convert_clock_type(c->deadline, GPR_CLOCK_MONOTONIC);
    if (t.tv_sec < 0 || t.tv_sec > INT64_MAX / 1000000000)
        return t.tv_sec < 0 ? 1 : 0;
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool has_prefix(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

void rpc_call_caller(struct rpc_call *c, char *ret, size_t bytes) {
    char *peer = grpc_call_get_peer(c->call);
    int fd;
    if (sscanf(peer, "fd:%d", &fd) != 1 ||
            rpc_listener_caller(c->worker->server->listener, fd, ret, bytes) < 0)
        snprintf(ret, bytes, "%s", peer);
    gpr_free(peer);
}

bool rpc_call_peer_is_local(struct rpc_call *c) {
    char *peer = grpc_call_get_peer(c->call);
    int fd;
    bool local = has_prefix(peer, "unix:") || has_prefix(peer, "ipv4:127.") ||
                 has_prefix(peer, "ipv6:[::1]") || has_prefix(peer, "ipv6:%5B::1%5D");
    if (sscanf(peer, "fd:%d", &fd) == 1)
        local = rpc_listener_fd_is_local(fd);
    gpr_free(peer);
    return local;
}
