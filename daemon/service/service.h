/* service.h - the methods: shardd.v1, health and reflection over one engine and one model.
 *
 * coordinator_main makes one service, gives its methods to an rpc server and keeps model, engine and service
 * alive until that server has stopped. Everything a method shares with other threads is in the engine or
 * atomic here. */
#pragma once

#include "daemon/engine/engine.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/model.h"

#include <stdatomic.h>

struct service_options {
    const struct model *model; /* borrowed */
    struct engine *engine;     /* borrowed */
    uint64_t seed;             /* of requests that bring none; 0 = one is drawn for each */
};

struct service {
    struct service_options options;
    uint64_t start_ns;
    _Atomic bool serving; /* what health says; see service_set_health() */
    _Atomic bool served;  /* it has said so at least once */
    _Atomic uint64_t refused_total, cancelled_total, chunks_total;
    _Atomic uint64_t sent_tokens_total;
};

void service_init(struct service *s, const struct service_options *options);
/* The method table, with s as their user. *ret is static; one service per process. */
size_t service_methods(struct service *s, const struct rpc_method **ret);
/* Whether the engine serves, as coordinator_main found. Clients see no "serving" before it is said here. A
 * change is told to Watch streams (server may be NULL). */
void service_set_health(struct service *s, bool serving, struct rpc_server *server);
/* The state for people: the engine's, or "draining", or what it was before when health does not say serving
 * yet. */
const char *service_state(
        const struct service *s, const struct rpc_server *server, const struct engine_stats *stats);

/* Tokens that one request may have, prompt and answer: the model's length, or less where the cache is
 * smaller. */
uint32_t service_context_tokens(const struct engine_stats *stats);

/* /metrics (Prometheus text) and /healthz over HTTP, on a thread of its own. */
struct metrics;
int metrics_start(struct service *s, struct rpc_server *server, const char *address, struct metrics **ret,
        struct error *e);
const char *metrics_address(const struct metrics *m); /* with the port that was found for port 0 */
struct metrics *metrics_stop(struct metrics *m);
