/* client.c - see client.h. Facts about the C core that it relies on: batches are one tag each; the status
 * batch is started first; a completion queue of the NEXT kind is asked with short deadlines, so that Ctrl-C
 * is seen. A call is released when its last batch is back. */
#include "launcher/client/client.h"

#include "base/limits.h"
#include "base/sizes.h"
#include "launcher/client/interrupt.h"
#include "launcher/verbs.h"

#include <errno.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PORT      "50051"
#define INTERRUPT_POLL_MS 50
#define RECONNECT_MS      1000
#define KEEPALIVE_MS      30000 /* a service that vanished in the middle of an answer is noticed */
#define KEEPALIVE_WAIT_MS 10000

struct client {
    char address[512]; /* as the C core takes it */
    grpc_channel *channel;
    grpc_completion_queue *queue;
};

enum batch_kind { BATCH_STATUS, BATCH_SENT, BATCH_MESSAGE, BATCHES };

struct batch { /* the tag of one */
    struct client_call *call;
    enum batch_kind kind;
};

struct client_call {
    struct client *client;
    grpc_call *call;
    struct batch batches[BATCHES];
    unsigned out; /* batches that have not come back */
    grpc_metadata_array headers, trailers;
    grpc_status_code code;
    grpc_slice details;
    grpc_byte_buffer *request, *message;
    bool answered; /* a header or a message came: somebody is there */
    client_message_fn on_message;
    client_end_fn on_end;
    void *user;
};

static void be_silent(gpr_log_func_args *args) {
    (void)args; /* the status says it in one sentence */
}

/* HOST:PORT with a port that there can be. */
static int check_port(const char *given, const char *colon, const char *bracket, struct error *e) {
    uint32_t port;
    struct error why = {0};
    if (!bracket && strchr(given, ':') != colon)
        return error_set(e, -EINVAL,
                "--server %.128s: an IPv6 address stands in brackets: [::1]:" DEFAULT_PORT, given);
    if (count_parse_u32(colon + 1, 1, 65535, &port, &why) < 0)
        return error_set(e, -EINVAL, "--server %.128s: the port: %s", given, why.text);
    return 0;
}

static int normal_address(const char *given, char *address, size_t size, struct error *e) {
    const char *last_colon = strrchr(given, ':'), *bracket = strrchr(given, ']');
    bool path = given[0] == '/' || given[0] == '.',
         whole = strncmp(given, "unix:", 5) == 0 || strncmp(given, "unix-abstract:", 14) == 0 ||
                 strncmp(given, "dns:", 4) == 0 || strncmp(given, "ipv4:", 5) == 0 ||
                 strncmp(given, "ipv6:", 5) == 0;
    if (strstr(given, "://") && !whole)
        return error_set(e, -EINVAL, "--server %.128s: give HOST:PORT or unix:PATH, without a scheme", given);
    bool with_port = last_colon && (!bracket || last_colon > bracket);
    if (with_port && !path && !whole && check_port(given, last_colon, bracket, e) < 0)
        return e->code;
    const char *before = path ? "unix:" : given[0] == ':' ? "127.0.0.1" : "";
    int n = snprintf(
            address, size, "%s%s%s", before, given, path || whole || with_port ? "" : ":" DEFAULT_PORT);
    if (n < 0 || (size_t)n >= size)
        return error_set(e, -EINVAL, "--server: the address is longer than %zu bytes", size - 1);
    return 0;
}

int client_open(const char *address, struct client **ret, struct error *e) {
    struct client *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, -ENOMEM, "no memory for a connection");
    int rc = normal_address(address, c->address, sizeof(c->address), e);
    if (rc < 0) {
        free(c);
        return rc;
    }
    if (!getenv("GRPC_TRACE") && !getenv("GRPC_VERBOSITY"))
        gpr_set_log_function(be_silent);
    grpc_init();
    /* A proxy of the environment would be asked to reach 127.0.0.1. */
    const struct {
        const char *key;
        int value;
    } numbers[] = {{GRPC_ARG_ENABLE_HTTP_PROXY, 0}, {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1},
            {GRPC_ARG_MAX_METADATA_SIZE, METADATA_BYTES_MAX},
            {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RECONNECT_MS}, {GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS},
            {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_WAIT_MS}};
    enum { ARGS_N = sizeof(numbers) / sizeof(numbers[0]) };
    grpc_arg args[ARGS_N];
    for (size_t i = 0; i < ARGS_N; i++)
        args[i] = (grpc_arg){.type = GRPC_ARG_INTEGER,
                .key = (char *)(uintptr_t)numbers[i].key,
                .value.integer = numbers[i].value};
    grpc_channel_args all = {.num_args = ARGS_N, .args = args};
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    c->channel = grpc_channel_create(c->address, plain, &all);
    grpc_channel_credentials_release(plain);
    c->queue = grpc_completion_queue_create_for_next(NULL);
    *ret = c;
    return 0;
}

struct client *client_close(struct client *c) {
    if (!c)
        return NULL;
    grpc_channel_destroy(c->channel);
    grpc_completion_queue_shutdown(c->queue);
    while (grpc_completion_queue_next(c->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
            GRPC_QUEUE_SHUTDOWN)
        continue;
    grpc_completion_queue_destroy(c->queue);
    grpc_shutdown();
    free(c);
    return NULL;
}

const char *client_address(const struct client *c) {
    return c->address;
}

/* --- one call --- */

static gpr_timespec in_ms(uint64_t ms) {
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis((int64_t)ms, GPR_TIMESPAN));
}

static void start(struct client_call *k, grpc_op *ops, size_t n, enum batch_kind kind) {
    k->batches[kind] = (struct batch){k, kind};
    k->out++;
    grpc_call_error r = grpc_call_start_batch(k->call, ops, n, &k->batches[kind], NULL);
    GPR_ASSERT(r == GRPC_CALL_OK); /* any other answer is a mistake of this file */
}

static void ask_message(struct client_call *k) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &k->message;
    start(k, &op, 1, BATCH_MESSAGE);
}

static void start_batches(struct client_call *k, const uint8_t *request, size_t bytes) {
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &k->trailers;
    status.data.recv_status_on_client.status = &k->code;
    status.data.recv_status_on_client.status_details = &k->details;
    start(k, &status, 1, BATCH_STATUS);
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)request, bytes);
    k->request = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    grpc_op send[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE},
            {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    send[1].data.send_message.send_message = k->request;
    send[3].data.recv_initial_metadata.recv_initial_metadata = &k->headers;
    start(k, send, 4, BATCH_SENT);
    ask_message(k);
}

/* True if there may be another message. */
static bool take_message(struct client_call *k) {
    if (!k->message)
        return false;
    k->answered = true;
    grpc_byte_buffer_reader reader;
    bool go_on = true;
    if (grpc_byte_buffer_reader_init(&reader, k->message)) {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        go_on = k->on_message(k->user, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(k->message);
    k->message = NULL;
    if (!go_on)
        grpc_call_cancel(k->call, NULL);
    return true;
}

static void copy_slice(grpc_slice slice, char *text, size_t size) {
    snprintf(text, size, "%.*s", (int)(GRPC_SLICE_LENGTH(slice) < size ? GRPC_SLICE_LENGTH(slice) : size - 1),
            (const char *)GRPC_SLICE_START_PTR(slice));
}

static void read_status(const struct client_call *k, struct client_status *ret) {
    ret->code = (int)k->code;
    copy_slice(k->details, ret->message, sizeof(ret->message));
    for (size_t i = 0; i < k->trailers.count; i++) {
        const grpc_metadata *m = &k->trailers.metadata[i];
        if (grpc_slice_str_cmp(m->key, "shardd-code") == 0)
            copy_slice(m->value, ret->word, sizeof(ret->word));
        else if (grpc_slice_str_cmp(m->key, "shardd-retryable") == 0)
            copy_slice(m->value, ret->retryable, sizeof(ret->retryable));
        else if (grpc_slice_str_cmp(m->key, "shardd-retry-after-ms") == 0)
            copy_slice(m->value, ret->wait_ms, sizeof(ret->wait_ms));
    }
    ret->interrupted = interrupt_seen() && k->code == GRPC_STATUS_CANCELLED;
    bool silent = !k->answered && k->trailers.count == 0;
    /* A deadline that passed while nothing was connected is a machine that does not answer. */
    bool connected = grpc_channel_check_connectivity_state(k->client->channel, 0) == GRPC_CHANNEL_READY;
    ret->unreachable = silent && (k->code == GRPC_STATUS_UNAVAILABLE ||
                                         (k->code == GRPC_STATUS_DEADLINE_EXCEEDED && !connected));
}

static void release(struct client_call *k) {
    grpc_byte_buffer_destroy(k->request);
    grpc_metadata_array_destroy(&k->headers);
    grpc_metadata_array_destroy(&k->trailers);
    grpc_slice_unref(k->details);
    grpc_call_unref(k->call);
    free(k);
}

/* --- calls --- */

struct client_call *client_start(struct client *c, const char *method, const uint8_t *request, size_t bytes,
        uint64_t timeout_ms, client_message_fn on_message, client_end_fn on_end, void *user) {
    struct client_call *k = calloc(1, sizeof(*k));
    if (!k)
        return NULL;
    *k = (struct client_call){.client = c,
            .on_message = on_message,
            .on_end = on_end,
            .user = user,
            .details = grpc_empty_slice()};
    grpc_metadata_array_init(&k->headers);
    grpc_metadata_array_init(&k->trailers);
    gpr_timespec deadline = timeout_ms ? in_ms(timeout_ms) : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    grpc_slice name = grpc_slice_from_copied_string(method);
    k->call = grpc_channel_create_call(
            c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->queue, name, NULL, deadline, NULL);
    grpc_slice_unref(name);
    start_batches(k, request, bytes);
    return k;
}

void client_cancel(struct client_call *k) {
    grpc_call_cancel(k->call, NULL);
}

bool client_poll(struct client *c, uint64_t timeout_ms) {
    grpc_event event = grpc_completion_queue_next(c->queue, in_ms(timeout_ms), NULL);
    if (event.type != GRPC_OP_COMPLETE)
        return false;
    const struct batch *b = event.tag;
    struct client_call *k = b->call;
    k->out--;
    if (b->kind == BATCH_SENT)
        k->answered |= event.success && k->headers.count > 0;
    if (b->kind == BATCH_MESSAGE && take_message(k))
        ask_message(k);
    if (k->out > 0)
        return true;
    struct client_status status = {0};
    read_status(k, &status);
    k->on_end(k->user, &status);
    release(k);
    return true;
}

struct waited { /* a call that somebody waits for */
    client_message_fn on_message;
    void *user;
    struct client_status *status;
    bool ended;
};

static bool on_waited_message(void *user, const uint8_t *data, size_t bytes) {
    struct waited *w = user;
    return w->on_message(w->user, data, bytes);
}

static void on_waited_end(void *user, const struct client_status *status) {
    struct waited *w = user;
    *w->status = *status;
    w->ended = true;
}

void client_call(struct client *c, const char *method, const uint8_t *request, size_t bytes,
        uint64_t timeout_ms, client_message_fn on_message, void *user, struct client_status *ret) {
    struct waited w = {on_message, user, ret, false};
    *ret = (struct client_status){0};
    struct client_call *k =
            client_start(c, method, request, bytes, timeout_ms, on_waited_message, on_waited_end, &w);
    bool cancelled = false;
    if (!k) {
        ret->code = GRPC_STATUS_RESOURCE_EXHAUSTED;
        snprintf(ret->message, sizeof(ret->message), "no memory for a call");
        return;
    }
    while (!w.ended) {
        if (interrupt_seen() && !cancelled) {
            client_cancel(k);
            cancelled = true;
        }
        client_poll(c, INTERRUPT_POLL_MS);
    }
}

/* --- telling --- */

const char *client_status_name(int code) {
    static const char *const names[] = {"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED",
            "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
            "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
            "UNAUTHENTICATED"};
    return code >= 0 && code < (int)(sizeof(names) / sizeof(names[0])) ? names[code] : "UNKNOWN";
}

static const char *hint(const struct client_status *status) {
    if (strcmp(status->retryable, "true") == 0)
        return "try again in a moment";
    switch (status->code) {
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return "give more time with --timeout, or ask for less with --max-tokens";
    case GRPC_STATUS_UNIMPLEMENTED:
        return status->word[0] ? NULL
                               : "is this a shardd service, and of this version? `shardd version` tells ours";
    case GRPC_STATUS_UNAVAILABLE:
        return "the service went away meanwhile; `shardd status` shows whether it is back";
    default:
        return NULL;
    }
}

int client_report(const struct client *c, const struct client_status *status) {
    if (status->code == GRPC_STATUS_OK)
        return EXIT_OK;
    if (status->interrupted)
        return EXIT_INTERRUPTED;
    if (status->unreachable) {
        fprintf(stderr,
                "shardd: no service answers at %s (%s)\nStart one with `shardd serve --model DIR`, or name another "
                "with --server.\n",
                c->address, status->message);
        return EXIT_UNREACHABLE;
    }
    const char *more = hint(status);
    fprintf(stderr, "shardd: %s: %s%s%s%s\n", client_status_name(status->code), status->message,
            status->word[0] ? " [" : "", status->word, status->word[0] ? "]" : "");
    double wait_s = strtod(status->wait_ms, NULL) / 1e3;
    if (wait_s > 0)
        fprintf(stderr, "Hint: try again in about %.1f s.\n", wait_s);
    else if (more)
        fprintf(stderr, "Hint: %s.\n", more);
    return EXIT_FAILED;
}
