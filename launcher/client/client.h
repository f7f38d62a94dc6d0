/* client.h - a small gRPC client on the C core, for the client verbs.
 *
 * One channel, one thread. A call sends one message and hands every message that comes back to a callback; it ends with
 * a status. client_call() makes one and waits for it; bench has many at the same time, which client_poll() moves. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct client;

/* "HOST:PORT", "HOST" (port 50051), "unix:PATH" or "/PATH". Nothing is connected yet. */
int client_open(const char *address, struct client **ret, struct error *e);
struct client *client_close(struct client *c); /* NULL ok; returns NULL */
const char *client_address(const struct client *c);

struct client_status {
    int code;           /* grpc_status_code; 0 = OK */
    bool unreachable;   /* no service answered at the address */
    bool interrupted;   /* Ctrl-C ended it */
    char message[1024]; /* the service's sentence */
    char word[64];      /* trailer shardd-code: "context_too_long" */
    char retryable[8];  /* trailer shardd-retryable: "true", "false", "" */
    char wait_ms[16];   /* trailer shardd-retry-after-ms: "1500", "" */
};

/* One message of the answer; false cancels the call. */
typedef bool (*client_message_fn)(void *user, const uint8_t *data, size_t bytes);

/* method: "/shardd.v1.Shardd/Generate". timeout_ms 0 = no deadline. Everything that can happen is in *ret. */
void client_call(struct client *c, const char *method, const uint8_t *request, size_t bytes,
        uint64_t timeout_ms, client_message_fn on_message, void *user, struct client_status *ret);

/* Starts a call, which goes on in client_poll(): on_message for every message, at last on_end, after which the call is
 * gone. NULL = out of memory. */
struct client_call;
typedef void (*client_end_fn)(void *user, const struct client_status *status);
struct client_call *client_start(struct client *c, const char *method, const uint8_t *request, size_t bytes,
        uint64_t timeout_ms, client_message_fn on_message, client_end_fn on_end, void *user);
void client_cancel(struct client_call *k); /* it still ends by on_end */
/* Takes one thing that happened, waiting up to timeout_ms for it; false = nothing did. */
bool client_poll(struct client *c, uint64_t timeout_ms);

/* "INVALID_ARGUMENT" for 3. */
const char *client_status_name(int code);
/* Prints status, sentence and a hint of what to do on stderr; returns the exit code of verbs.h. */
int client_report(const struct client *c, const struct client_status *status);
