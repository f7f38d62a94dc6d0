/* messages.c - how many stream messages per second the rpc layer carries over loop-back, and what they cost.
 *
 *     bench-rpc-messages [streams] [messages per stream] [workers]       default: 64 2000 2
 *
 * free: a stream sends its next message as soon as the last is through. poked: a producer makes one token per
 * stream and step, as the engine does, and pokes each worker once per step, as fast as it can: what waits
 * goes out as one message. paced: the same at 50 steps a second. The client is a process of its own on the
 * same machine. */
#include "daemon/rpc/rpc.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define STREAMS_TOP   1000u
#define MESSAGE_BYTES 64u /* a chunk with one token, its id and text */
#define PACE_NS       20000000ull

enum mode { FREE, POKED, PACED, MODES };
static const char *const mode_names[] = {"free", "poked", "paced"};

struct stream {
    uint32_t sent;          /* tokens given to the client */
    _Atomic uint32_t ready; /* tokens made */
};

static uint32_t n_streams = 64, n_tokens = 2000, n_workers = 2;
static enum mode mode;
static struct stream streams[STREAMS_TOP];
static _Atomic uint32_t n_started, n_closed;
static _Atomic uint64_t n_messages;
static uint64_t start_ns, start_cpu_us;
static _Atomic bool go;
static void *_Atomic workers_seen[RPC_WORKERS_MAX];

static void on_wake(struct rpc_call *c) {
    struct stream *s = rpc_call_state(c);
    if (!s || !atomic_load(&go) || !rpc_call_can_send(c))
        return;
    uint32_t ready = mode == FREE ? s->sent + 1 : atomic_load(&s->ready);
    if (ready == s->sent)
        return;
    memset(rpc_call_message(c, MESSAGE_BYTES), 'x', MESSAGE_BYTES);
    s->sent = ready;
    atomic_fetch_add(&n_messages, 1);
    if (s->sent < n_tokens)
        rpc_call_send(c);
    else
        rpc_call_finish(c, NULL);
}

static void on_call(struct rpc_call *c) {
    rpc_call_set_state(c, &streams[atomic_fetch_add(&n_started, 1) % STREAMS_TOP]);
    for (uint32_t i = 0; i < n_workers; i++) {
        void *seen = NULL;
        if (atomic_compare_exchange_strong(&workers_seen[i], &seen, rpc_call_worker(c)) ||
                seen == rpc_call_worker(c))
            break;
    }
}

static void on_close(struct rpc_call *c) {
    (void)c;
    atomic_fetch_add(&n_closed, 1);
}

static const struct rpc_method methods[] = {{.path = "/b/Stream",
        .kind = RPC_SERVER_STREAM,
        .on_call = on_call,
        .on_wake = on_wake,
        .on_close = on_close}};

/* Makes tokens for all streams; returns the time that a step took on this thread. */
static double produce(void) {
    uint64_t busy = 0, next = clock_ns();
    for (uint32_t step = 0; step < n_tokens; step++) {
        uint64_t from = clock_ns();
        for (uint32_t i = 0; i < n_streams; i++)
            atomic_fetch_add(&streams[i].ready, 1);
        for (uint32_t i = 0; i < n_workers; i++)
            if (atomic_load(&workers_seen[i]))
                rpc_worker_poke(atomic_load(&workers_seen[i]));
        busy += clock_ns() - from;
        next += PACE_NS;
        if (mode == PACED && next > clock_ns())
            usleep((useconds_t)((next - clock_ns()) / 1000u));
    }
    return (double)busy / n_tokens / 1e3;
}

/* --- client --- */

struct reader {
    grpc_call *call;
    grpc_byte_buffer *message;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
};

static void read_next(struct reader *r) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &r->message;
    grpc_call_start_batch(r->call, &op, 1, r, NULL);
}

static void open_stream(grpc_channel *channel, grpc_completion_queue *cq, struct reader *r) {
    grpc_slice data = grpc_slice_from_static_string("x");
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&data, 1);
    grpc_metadata_array_init(&r->initial);
    grpc_metadata_array_init(&r->trailing);
    r->call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, cq,
            grpc_slice_from_static_string("/b/Stream"), NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE},
            {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    ops[1].data.send_message.send_message = message;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &r->initial;
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &r->trailing;
    status.data.recv_status_on_client.status = &r->status;
    status.data.recv_status_on_client.status_details = &r->details;
    grpc_call_start_batch(r->call, &status, 1, &r->status, NULL);
    grpc_call_start_batch(r->call, ops, 4, &r->initial, NULL);
    read_next(r);
}

/* Reads every stream to its end and exits without ceremony. */
static void client_main(const char *address) {
    static struct reader readers[STREAMS_TOP];
    grpc_init();
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    grpc_completion_queue *cq = grpc_completion_queue_create_for_next(NULL);
    grpc_channel *channels[4];
    for (int i = 0; i < 4; i++) {
        grpc_arg arg = {.type = GRPC_ARG_INTEGER,
                .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL,
                .value.integer = 1};
        channels[i] = grpc_channel_create(address, plain, &(grpc_channel_args){.num_args = 1, .args = &arg});
    }
    for (uint32_t i = 0; i < n_streams; i++)
        open_stream(channels[i % 4], cq, &readers[i]);
    for (uint32_t ended = 0; ended < n_streams;) {
        grpc_event e = grpc_completion_queue_next(cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        size_t offset = (size_t)((char *)e.tag - (char *)readers) % sizeof(struct reader);
        struct reader *r = e.tag;
        if (offset != 0) {
            ended += e.tag ==
                     &readers[(size_t)((char *)e.tag - (char *)readers) / sizeof(struct reader)].status;
        } else if (r->message) {
            grpc_byte_buffer_destroy(r->message);
            r->message = NULL;
            read_next(r);
        }
    }
    _exit(0);
}

static uint64_t cpu_us(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000u +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void report(double step_us) {
    double wall = (double)(clock_ns() - start_ns) / 1e9;
    double cpu = (double)(cpu_us() - start_cpu_us);
    double messages = (double)atomic_load(&n_messages), tokens = (double)n_streams * n_tokens;
    printf("%-6s %9.0f messages/s %10.0f tokens/s %6.1f us CPU per message %6.2f us per token",
            mode_names[mode], messages / wall, tokens / wall, cpu / messages, cpu / tokens);
    if (mode != FREE)
        printf("   producer %.1f us per step", step_us);
    printf("\n");
    fflush(stdout);
}

static int run_mode(void) {
    struct rpc_server *s = NULL;
    struct error e = {0};
    char name[64];
    int fd = -1, status = 0;
    double step_us = 0;
    if (rpc_listen("127.0.0.1:0", &fd, name, sizeof(name), &e) < 0) {
        log_error("%s", e.text);
        return 1;
    }
    pid_t client = fork(); /* before the C core has threads */
    if (client == 0)
        client_main(name);
    struct rpc_server_options o = {.n_workers = n_workers};
    int r = rpc_server_create(&o, methods, 1, &s, &e);
    if (r == 0)
        r = rpc_server_start(s, &e);
    if (r == 0)
        r = rpc_server_add_listener(s, fd, &e);
    if (r < 0) {
        log_error("%s", e.text);
        return 1;
    }
    while (atomic_load(&n_started) < n_streams)
        usleep(100);
    start_ns = clock_ns();
    start_cpu_us = cpu_us();
    atomic_store(&go, true);
    rpc_server_wake_all(s);
    if (mode != FREE)
        step_us = produce();
    while (atomic_load(&n_closed) < n_streams)
        usleep(200);
    report(step_us);
    waitpid(client, &status, 0);
    rpc_server_free(s);
    return status != 0;
}

static uint32_t number(int argc, char **argv, int i, uint32_t preset, uint32_t top) {
    unsigned long v = i < argc ? strtoul(argv[i], NULL, 10) : preset;
    return v < 1 ? 1 : v > top ? top : (uint32_t)v;
}

int main(int argc, char **argv) {
    int failed = 0;
    log_open("bench", LOG_LEVEL_WARNING);
    n_streams = number(argc, argv, 1, n_streams, STREAMS_TOP);
    n_tokens = number(argc, argv, 2, n_tokens, 1000000);
    n_workers = number(argc, argv, 3, n_workers, RPC_WORKERS_MAX);
    printf("%u streams of %u tokens, %u workers, 4 connections, %u-byte messages\n", n_streams, n_tokens,
            n_workers, MESSAGE_BYTES);
    fflush(stdout);
    for (mode = FREE; mode < MODES; mode++) {
        int status = 0;
        if (mode == PACED && n_tokens > 250)
            n_tokens = 250; /* five seconds */
        pid_t pid = fork(); /* each with a C core and counters of its own */
        if (pid == 0)
            _exit(run_mode());
        if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
            failed = 1;
    }
    return failed;
}
