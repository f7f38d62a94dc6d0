/* rpc.h - the gRPC C core behind one layer: a server, its workers, its calls.
 *
 * Used by service/ only; no header of gRPC is seen outside this folder. A worker is a completion queue with
 * one thread and a call belongs to one worker for life, so a method's functions for one call never run at the
 * same time and need no lock. Other threads do one thing: rpc_worker_poke(), after which the worker asks each
 * of its calls whether it has something to say (on_wake).
 *
 * At most one message of a call is on its way. A method that has more waits for on_wake and then sends all
 * that has gathered as one message: that is the backpressure.
 *
 * Sizes, intervals and counts that a peer can reach for are limited by the channel arguments in server.c and
 * by base/limits.h. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPC_WORKERS_MAX   64u
#define RPC_LISTENERS_MAX 8u

/* gRPC's own numbers. */
enum rpc_status_code {
    RPC_OK = 0,
    RPC_CANCELLED = 1,
    RPC_INVALID_ARGUMENT = 3,
    RPC_DEADLINE_EXCEEDED = 4,
    RPC_NOT_FOUND = 5,
    RPC_ALREADY_EXISTS = 6,
    RPC_PERMISSION_DENIED = 7,
    RPC_RESOURCE_EXHAUSTED = 8,
    RPC_UNIMPLEMENTED = 12,
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,
};

/* How a call ends when it does not end OK. */
struct rpc_status {
    enum rpc_status_code status;
    const char *code;          /* trailer shardd-code: a stable word; static */
    bool retryable;            /* trailer shardd-retryable */
    uint32_t retry_after_ms;   /* trailers shardd-retry-after-ms and grpc-retry-pushback-ms; 0 = none */
    char text[ERROR_TEXT_MAX]; /* for people: what to change */
};

struct rpc_server;
struct rpc_worker;
struct rpc_call;

enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_BIDI };

/* All functions run on the call's worker. Only on_call (and on_message for RPC_BIDI) must be there. */
struct rpc_method {
    const char *path; /* "/shardd.v1.Shardd/Generate"; static */
    enum rpc_kind kind;
    void (*on_call)(struct rpc_call *c); /* a call; rpc_call_request() has its message (not for RPC_BIDI) */
    void (*on_message)(struct rpc_call *c); /* RPC_BIDI: the next message, or NULL at the end of them */
    void (*on_wake)(
            struct rpc_call *c); /* the worker was poked, or the last send is through; may be spurious */
    void (*on_close)(
            struct rpc_call *c); /* the call is over, for whatever reason: release its state. Last, once */
    void *user;                  /* rpc_call_user() */
};

struct rpc_server_options {
    uint32_t n_workers;       /* 1 .. RPC_WORKERS_MAX */
    uint32_t connections_max; /* more are closed at once; 0 = CONNECTIONS_MAX */
    uint32_t send_stall_ms;   /* a message that waits longer for its reader ends the call; 0 = never */
    bool debug;               /* the C core's informational lines too */
};

/* Block the signals that main waits for before this: the C core starts threads. methods are kept by
 * reference. */
int rpc_server_create(const struct rpc_server_options *options, const struct rpc_method *methods,
        size_t n_methods, struct rpc_server **ret, struct error *e);
/* Starts the workers and the accept thread. */
int rpc_server_start(struct rpc_server *s, struct error *e);
/* Accepts on a listening socket (TCP or Unix, plaintext) from now on. The server owns fd, also on failure. */
int rpc_server_add_listener(struct rpc_server *s, int fd, struct error *e);
/* The end begins: rpc_server_draining() is true from now on, every call is woken (endless ones end themselves), and
 * live calls have grace_ms to end. Connections are still taken and calls still answered: that the server drains is for
 * the methods to say. Returns whether there was a moment with no call. */
bool rpc_server_drain(struct rpc_server *s, uint32_t grace_ms);
/* After the grace: waits until the calls that were told to end have ended, for ms at most; rpc_server_hurry() does not
 * shorten it. */
void rpc_server_last_words(struct rpc_server *s, uint32_t ms);
/* Drains, closes new connections at once, lets peers hang up for linger_ms, then cancels what is left and joins all
 * threads. A poke after it does nothing. */
void rpc_server_stop(struct rpc_server *s, uint32_t grace_ms, uint32_t linger_ms);
/* Ends the waiting of rpc_server_drain() and rpc_server_stop(): any thread. */
void rpc_server_hurry(struct rpc_server *s);
struct rpc_server *rpc_server_free(struct rpc_server *s); /* stops it first, without grace; NULL ok */

bool rpc_server_draining(const struct rpc_server *s);
void rpc_server_wake_all(struct rpc_server *s); /* any thread */
uint32_t rpc_server_live_calls(const struct rpc_server *s);
uint64_t rpc_server_calls_total(const struct rpc_server *s);
uint32_t rpc_server_connections(struct rpc_server *s); /* counts them; any thread */

void rpc_worker_poke(void *worker); /* any thread, never blocks for long; fits struct engine_poke */

struct rpc_worker *rpc_call_worker(struct rpc_call *c);
struct rpc_server *rpc_call_server(struct rpc_call *c);
void *rpc_call_user(struct rpc_call *c);
void *rpc_call_state(struct rpc_call *c);
void rpc_call_set_state(struct rpc_call *c, void *state);
/* The message: NULL when the client ended without one (or, RPC_BIDI, has ended). Valid during on_call or
 * on_message. */
const void *rpc_call_request(struct rpc_call *c, size_t *ret_bytes);
uint64_t rpc_call_deadline_ns(struct rpc_call *c); /* CLOCK_MONOTONIC; 0 = none */
bool rpc_call_peer_is_local(struct rpc_call *c);   /* loopback or Unix socket */
/* Who calls, the same for all connections of one caller: "loopback", "uid 1000" (a Unix socket), or the peer's address
 * without its port. Cut to fit; RPC_CALLER_BYTES always suffice. */
#define RPC_CALLER_BYTES 64u
void rpc_call_caller(struct rpc_call *c, char *ret, size_t bytes);

/* True when a message or a status may be given now: nothing is on its way and the call is not over. */
bool rpc_call_can_send(const struct rpc_call *c);
/* Memory for the next message, exactly bytes long; fill it, then rpc_call_send() or rpc_call_finish(). */
void *rpc_call_message(struct rpc_call *c, size_t bytes);
void rpc_call_send(struct rpc_call *c);
/* Ends the call: with the message prepared by rpc_call_message(), if any, and status (NULL = OK). */
void rpc_call_finish(struct rpc_call *c, const struct rpc_status *status);
/* Ends a call whose reader is stuck: a status would wait behind the stuck message, this does not. */
void rpc_call_cancel(struct rpc_call *c, enum rpc_status_code status, const char *text);

/* Opens a listening socket: "127.0.0.1:50051", "[::1]:0", "0.0.0.0:50051", "unix:/path". A stale socket file
 * is replaced, a live one is -EADDRINUSE. ret_name gets the address with the port that was chosen. */
int rpc_listen(const char *address, int *ret_fd, char *ret_name, size_t name_bytes, struct error *e);
