/* rpc_internal.h - what server.c, call.c and listener.c share. */
#pragma once

#include "daemon/rpc/rpc.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

/* Requests that wait for a call, per method and worker: a slot is opened again first thing when one is used. */
#define RPC_SLOTS 16u

struct rpc_tag {
    void (*fn)(struct rpc_tag *t, bool ok);
    void *owner; /* struct rpc_call, rpc_worker or rpc_server */
};

struct rpc_worker {
    struct rpc_server *server;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool running;

    /* The worker thread alone touches these. */
    struct rpc_call *calls; /* live ones, a list */
    bool down;              /* the queue is shut: no batch may be started */
    uint64_t stall_check_ns;

    pthread_mutex_t poke_mutex; /* protects poke_call and poke_open */
    grpc_call *poke_call;       /* never started; an empty batch on it posts poke_tag */
    bool poke_open;
    _Atomic bool poked; /* poke_tag is on its way */
    struct rpc_tag poke_tag;
};

struct rpc_server {
    struct rpc_server_options options;
    const struct rpc_method *methods;
    size_t n_methods;
    void **handles; /* (n_methods) of the C core */
    grpc_server *server;
    struct rpc_worker workers[RPC_WORKERS_MAX];
    struct rpc_listener *listener;
    bool started, stopped;

    struct rpc_tag shutdown_tag;
    pthread_mutex_t mutex; /* protects the next three, goes with changed */
    pthread_cond_t changed;
    bool shutdown_done, hurry;
    bool idle; /* no call was live at some moment of the draining */
    _Atomic bool draining, closing;
    _Atomic uint32_t live_calls;
    _Atomic uint64_t calls_total;
};

struct rpc_call {
    struct rpc_worker *worker;
    const struct rpc_method *method; /* NULL: no such method */
    size_t method_index;
    struct rpc_call *previous, *next;
    uint32_t refs; /* one per batch in flight, one while a function of ours runs */
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details; /* of the catch-all */
    grpc_byte_buffer *payload;
    grpc_slice request;
    bool has_request;
    struct rpc_tag new_tag, close_tag, send_tag, receive_tag;
    int cancelled;
    bool greeted, sending, finished, broken, closed;
    bool receiving, received_all; /* RPC_BIDI */
    uint64_t send_start_ns;
    grpc_slice out; /* the message being prepared */
    bool has_out;
    grpc_byte_buffer *out_buffer;
    grpc_metadata trailers[4];
    void *state;
};

/* call.c */
void rpc_call_post(struct rpc_worker *w, size_t method_index); /* n_methods = the catch-all */
void rpc_call_wake(struct rpc_call *c);
void rpc_call_check_stall(struct rpc_call *c, uint64_t now_ns, uint64_t stall_ns);

/* listener.c */
struct rpc_listener;
int rpc_listener_create(
        grpc_server *server, uint32_t connections_max, struct rpc_listener **ret, struct error *e);
int rpc_listener_start(struct rpc_listener *l, struct error *e);
int rpc_listener_add(struct rpc_listener *l, int fd, struct error *e);
void rpc_listener_refuse(
        struct rpc_listener *l); /* from now on what it accepts is closed, not given to the core */
void rpc_listener_stop(struct rpc_listener *l); /* joins and closes the listening sockets */
struct rpc_listener *rpc_listener_free(struct rpc_listener *l);
uint32_t rpc_listener_connections(struct rpc_listener *l);
/* The C core names a connection by the number of its descriptor; an even one was given to a local peer. */
bool rpc_listener_fd_is_local(int fd);
/* Who is at the other end of a connection that was given to the core. -ENOENT: no such connection. */
int rpc_listener_caller(struct rpc_listener *l, int fd, char *ret, size_t bytes);
