/* server.c - the server object, its workers and the order of its end. See rpc.h.
 *
 * The order matters twice. The C core closes a connection that was told to go away as soon as its last stream
 * has been written, and what the peer has not read by then can be lost. So our calls end first; the core's
 * shutdown then sends GOAWAY and a PING behind all their data, and closes when the answer shows that
 * everything was read. And a batch started on a queue that is shut aborts the process: so each worker shuts
 * its own queue, and knows. */
#include "daemon/rpc/rpc_internal.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void on_gpr_log(gpr_log_func_args *args) {
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_warning("grpc: %s", args->message);
    else
        log_debug("grpc: %s", args->message);
}

static grpc_server *make_server(void) {
    /* clang-format off */
    struct { const char *key; int value; } ints[] = {
            /* A second daemon on the same port must fail, not share it. */
            {GRPC_ARG_ALLOW_REUSEPORT, 0},
            /* Identity only: 0.9 MB of gzip would make 970 MB before the size limit is looked at. */
            {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1},
            {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)REQUEST_BYTES_MAX},
            {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1},
            /* Too much metadata ends every stream of the connection, so the limit is not tight. */
            {GRPC_ARG_MAX_METADATA_SIZE, (int)METADATA_BYTES_MAX},
            {GRPC_ARG_MAX_CONCURRENT_STREAMS, (int)STREAMS_PER_CONNECTION},
            /* Gateways ping during a long silence; the default takes that for abuse after 5 s. */
            {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000},
            {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
            {GRPC_ARG_KEEPALIVE_TIME_MS, 30000},
            {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000},
            {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
            {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000},
            {GRPC_ARG_ENABLE_CHANNELZ, 0},
    };
    /* clang-format on */
    grpc_arg args[sizeof(ints) / sizeof(ints[0]) + 1];
    grpc_resource_quota *quota = grpc_resource_quota_create("clients");
    grpc_resource_quota_resize(quota, CORE_BYTES_MAX);
    for (size_t i = 0; i < sizeof(ints) / sizeof(ints[0]); i++)
        args[i] = (grpc_arg){.type = GRPC_ARG_INTEGER,
                .key = (char *)(uintptr_t)ints[i].key,
                .value.integer = ints[i].value};
    const size_t n = sizeof(ints) / sizeof(ints[0]);
    args[n] = (grpc_arg){.type = GRPC_ARG_POINTER,
            .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
            .value.pointer = {.p = quota, .vtable = grpc_resource_quota_arg_vtable()}};
    grpc_server *server = grpc_server_create(&(grpc_channel_args){.num_args = n + 1, .args = args}, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

/* The worker shuts its own queue, so that it never starts a batch on a queue that is shut. */
static void worker_shut(struct rpc_worker *w) {
    pthread_mutex_lock(&w->poke_mutex);
    w->poke_open = false;
    grpc_call *poke = w->poke_call;
    w->poke_call = NULL;
    pthread_mutex_unlock(&w->poke_mutex);
    grpc_call_unref(poke);
    w->down = true;
    grpc_completion_queue_shutdown(w->cq);
}

static void on_poke(struct rpc_tag *t, bool ok) {
    struct rpc_worker *w = t->owner;
    (void)ok;
    atomic_store(&w->poked, false); /* before the look: what comes after it pokes again */
    for (struct rpc_call *c = w->calls; c && !w->down; c = c->next)
        rpc_call_wake(c);
    if (atomic_load(&w->server->closing) && !w->down)
        worker_shut(w);
}

void rpc_worker_poke(void *worker) {
    struct rpc_worker *w = worker;
    if (atomic_exchange(&w->poked, true))
        return;
    pthread_mutex_lock(&w->poke_mutex);
    if (w->poke_open) {
        grpc_call_error r = grpc_call_start_batch(w->poke_call, NULL, 0, &w->poke_tag, NULL);
        assert(r == GRPC_CALL_OK);
        (void)r;
    }
    pthread_mutex_unlock(&w->poke_mutex);
}

/* A reader that does not read is found by the clock: nothing else happens on its call. */
static gpr_timespec next_look(struct rpc_worker *w) {
    uint64_t stall_ns = (uint64_t)w->server->options.send_stall_ms * 1000000u;
    if (!stall_ns || !w->calls)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    uint64_t now = clock_ns(), period = stall_ns / 4 + 1000000u;
    if (now - w->stall_check_ns >= period) {
        w->stall_check_ns = now;
        for (struct rpc_call *c = w->calls; c; c = c->next)
            rpc_call_check_stall(c, now, stall_ns);
    }
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos((int64_t)period, GPR_TIMESPAN));
}

static void *worker_main(void *arg) {
    struct rpc_worker *w = arg;
    for (;;) {
        grpc_event event = grpc_completion_queue_next(w->cq, next_look(w), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE) {
            struct rpc_tag *t = event.tag;
            t->fn(t, event.success != 0);
        }
    }
}

static void worker_init(struct rpc_server *s, struct rpc_worker *w) {
    w->server = s;
    w->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->server, w->cq, NULL);
    pthread_mutex_init(&w->poke_mutex, NULL);
    w->poke_tag = (struct rpc_tag){.fn = on_poke, .owner = w};
    grpc_channel *lame = grpc_lame_client_channel_create("poke", GRPC_STATUS_UNAVAILABLE, "only pokes");
    w->poke_call = grpc_channel_create_call(lame, NULL, GRPC_PROPAGATE_DEFAULTS, w->cq,
            grpc_slice_from_static_string("/poke"), NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    w->poke_open = true;
    grpc_channel_destroy(lame);
}

static void on_shutdown(struct rpc_tag *t, bool ok) {
    struct rpc_server *s = t->owner;
    (void)ok;
    pthread_mutex_lock(&s->mutex);
    s->shutdown_done = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

int rpc_server_create(const struct rpc_server_options *options, const struct rpc_method *methods,
        size_t n_methods, struct rpc_server **ret, struct error *e) {
    if (options->n_workers < 1 || options->n_workers > RPC_WORKERS_MAX)
        return error_set(e, -EINVAL, "%u gRPC threads: give 1 to %u", options->n_workers, RPC_WORKERS_MAX);
    struct rpc_server *s = calloc(1, sizeof(*s));
    void **handles = calloc(n_methods, sizeof(*handles));
    if (!s || !handles) {
        free(s);
        free(handles);
        return error_set(e, -ENOMEM, "no memory for the gRPC server");
    }
    s->options = *options;
    s->methods = methods;
    s->n_methods = n_methods;
    s->handles = handles;
    s->shutdown_tag = (struct rpc_tag){.fn = on_shutdown, .owner = s};
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);

    gpr_set_log_function(on_gpr_log);
    gpr_set_log_verbosity(options->debug ? GPR_LOG_SEVERITY_INFO : GPR_LOG_SEVERITY_ERROR);
    grpc_init();
    s->server = make_server();
    for (uint32_t i = 0; i < options->n_workers; i++)
        worker_init(s, &s->workers[i]);
    int r = 0;
    for (size_t i = 0; i < n_methods && r == 0; i++) {
        s->handles[i] = grpc_server_register_method(s->server, methods[i].path, NULL,
                methods[i].kind == RPC_BIDI ? GRPC_SRM_PAYLOAD_NONE
                                            : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER,
                0);
        if (!s->handles[i])
            r = error_set(e, -EINVAL, "method '%s' is registered twice", methods[i].path);
    }
    if (r == 0)
        r = rpc_listener_create(s->server,
                options->connections_max ? options->connections_max : CONNECTIONS_MAX, &s->listener, e);
    if (r < 0) {
        rpc_server_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

int rpc_server_start(struct rpc_server *s, struct error *e) {
    grpc_server_start(s->server);
    s->started = true;
    for (uint32_t i = 0; i < s->options.n_workers; i++) {
        struct rpc_worker *w = &s->workers[i];
        for (size_t m = 0; m <= s->n_methods; m++)
            for (uint32_t k = 0; k < RPC_SLOTS; k++)
                rpc_call_post(w, m);
        int r = pthread_create(&w->thread, NULL, worker_main, w);
        if (r != 0)
            return error_set(e, -r, "cannot start a gRPC thread: %s", strerror(r));
        w->running = true;
    }
    return rpc_listener_start(s->listener, e);
}

int rpc_server_add_listener(struct rpc_server *s, int fd, struct error *e) {
    return rpc_listener_add(s->listener, fd, e);
}

enum wait { WAIT_CALLS, WAIT_LAST_WORDS, WAIT_PEERS, WAIT_CANCELLED };

static bool is_over(struct rpc_server *s, enum wait what) {
    bool none_live = atomic_load(&s->live_calls) == 0;
    return s->shutdown_done || (what == WAIT_CALLS && (s->idle || none_live)) ||
           (what == WAIT_LAST_WORDS && none_live);
}

/* Waits until the server's shutdown has come through; CALLS: or there was a moment with no live call; LAST_WORDS: or no
 * call is live. LAST_WORDS and CANCELLED cannot be hurried: every call was told to end, and the tags are on their
 * way. */
static void wait_for(struct rpc_server *s, enum wait what, uint64_t end_ns) {
    struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u), .tv_nsec = (long)(end_ns % 1000000000u)};
    pthread_mutex_lock(&s->mutex);
    while (!is_over(s, what)) {
        if (what == WAIT_CANCELLED) {
            pthread_cond_wait(&s->changed, &s->mutex);
            continue;
        }
        if ((s->hurry && what != WAIT_LAST_WORDS) || clock_ns() >= end_ns)
            break;
        pthread_cond_timedwait(&s->changed, &s->mutex, &end);
    }
    pthread_mutex_unlock(&s->mutex);
}

void rpc_server_hurry(struct rpc_server *s) {
    pthread_mutex_lock(&s->mutex);
    s->hurry = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static bool is_running(const struct rpc_server *s) {
    return s->started && s->workers[0].running;
}

bool rpc_server_drain(struct rpc_server *s, uint32_t grace_ms) {
    atomic_store(&s->draining, true);
    if (!is_running(s))
        return true;
    rpc_server_wake_all(s);
    wait_for(s, WAIT_CALLS, clock_ns() + (uint64_t)grace_ms * 1000000u);
    pthread_mutex_lock(&s->mutex);
    bool over = is_over(s, WAIT_CALLS);
    pthread_mutex_unlock(&s->mutex);
    return over;
}

void rpc_server_last_words(struct rpc_server *s, uint32_t ms) {
    if (is_running(s))
        wait_for(s, WAIT_LAST_WORDS, clock_ns() + (uint64_t)ms * 1000000u);
}

void rpc_server_stop(struct rpc_server *s, uint32_t grace_ms, uint32_t linger_ms) {
    if (s->stopped)
        return;
    s->stopped = true;
    rpc_server_drain(s, grace_ms);
    /* The core is told before it shuts down: a connection that was given to it afterwards would be nobody's. */
    rpc_listener_refuse(s->listener);
    if (is_running(s)) {
        grpc_server_shutdown_and_notify(s->server, s->workers[0].cq, &s->shutdown_tag);
        wait_for(s, WAIT_PEERS, clock_ns() + (uint64_t)linger_ms * 1000000u);
        grpc_server_cancel_all_calls(s->server);
        wait_for(s, WAIT_CANCELLED, 0);
    }
    atomic_store(&s->closing, true);
    rpc_server_wake_all(s);
    for (uint32_t i = 0; i < s->options.n_workers; i++)
        if (s->workers[i].running)
            pthread_join(s->workers[i].thread, NULL);
    rpc_listener_stop(s->listener);
}

/* Without a thread of its own (a failed start) the queue is shut and emptied here. */
static void worker_done(struct rpc_worker *w) {
    if (!w->cq)
        return;
    if (!w->running) {
        worker_shut(w);
        worker_main(w);
    }
    grpc_completion_queue_destroy(w->cq);
    pthread_mutex_destroy(&w->poke_mutex);
}

struct rpc_server *rpc_server_free(struct rpc_server *s) {
    if (!s)
        return NULL;
    if (s->listener)
        rpc_server_stop(s, 0, 0);
    if (s->started && !s->workers[0].running) {
        grpc_server_shutdown_and_notify(s->server, s->workers[0].cq, &s->shutdown_tag);
        grpc_server_cancel_all_calls(s->server);
    }
    for (uint32_t i = 0; i < s->options.n_workers; i++)
        worker_done(&s->workers[i]);
    grpc_server_destroy(s->server);
    rpc_listener_free(s->listener);
    grpc_shutdown();
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
    free(s->handles);
    free(s);
    return NULL;
}

bool rpc_server_draining(const struct rpc_server *s) {
    return atomic_load(&s->draining);
}

void rpc_server_wake_all(struct rpc_server *s) {
    for (uint32_t i = 0; i < s->options.n_workers; i++)
        rpc_worker_poke(&s->workers[i]);
}

uint32_t rpc_server_live_calls(const struct rpc_server *s) {
    return atomic_load(&s->live_calls);
}

uint64_t rpc_server_calls_total(const struct rpc_server *s) {
    return atomic_load(&s->calls_total);
}

uint32_t rpc_server_connections(struct rpc_server *s) {
    return rpc_listener_connections(s->listener);
}
