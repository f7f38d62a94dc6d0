/* health.c - grpc.health.v1. SERVING means that a Generate sent now would run. */
#include "daemon/service/message.h"
#include "daemon/service/methods.h"
#include "daemon/service/refusal.h"

#include "grpc/health/v1/health.pb-c.h"

#include <stdlib.h>

typedef Grpc__Health__V1__HealthCheckRequest Request;
typedef Grpc__Health__V1__HealthCheckResponse Response;

enum {
    SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING,
    NOT_SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING,
    SERVICE_UNKNOWN = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN,
};

struct watch {
    bool known; /* the service that is watched */
    int told;   /* the last state sent */
};

static int state_now(struct rpc_call *c) {
    struct service *s = rpc_call_user(c);
    return atomic_load(&s->serving) && !rpc_server_draining(rpc_call_server(c)) ? SERVING : NOT_SERVING;
}

/* -1: refused. 0 or 1: whether the service is known. */
static int read_request(struct rpc_call *c, struct rpc_status *s) {
    struct arena arena;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const Request *q = (const Request *)message_of_call(
            &grpc__health__v1__health_check_request__descriptor, c, &arena, s);
    int known = q ? q->service.len == 0 : -1;
    for (size_t i = 0; q && service_names[i]; i++)
        known |= message_is(q->service, service_names[i]);
    arena_done(&arena);
    return known;
}

void health_check_on_call(struct rpc_call *c) {
    struct rpc_status s;
    int known = read_request(c, &s);
    if (known == 0)
        refuse(&s, REFUSAL_UNKNOWN_SERVICE,
                "no such service here; ask with an empty name for the server as a whole");
    if (known <= 0) {
        method_refuse(c, &s);
        return;
    }
    Response answer = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    answer.status = state_now(c);
    message_reply(c, &answer.base);
}

void health_watch_on_call(struct rpc_call *c) {
    struct rpc_status s;
    int known = read_request(c, &s);
    struct watch *w = known < 0 ? NULL : calloc(1, sizeof(*w));
    if (known >= 0 && !w)
        refuse(&s, REFUSAL_INTERNAL, "no memory for a Watch stream");
    if (!w) {
        method_refuse(c, &s);
        return;
    }
    w->known = known == 1;
    rpc_call_set_state(c, w);
    health_watch_on_wake(c);
}

/* Sends what changed. At shutdown the stream is ended here: an endless one would hold the server open. */
void health_watch_on_wake(struct rpc_call *c) {
    struct watch *w = rpc_call_state(c);
    if (!w || !rpc_call_can_send(c))
        return;
    int state = w->known ? state_now(c) : SERVICE_UNKNOWN;
    if (state != w->told) {
        Response answer = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        w->told = state;
        answer.status = state;
        message_send(c, &answer.base);
    } else if (rpc_server_draining(rpc_call_server(c))) {
        struct rpc_status s;
        refuse(&s, REFUSAL_DRAINING, "the server is shutting down; try another one or later");
        rpc_call_finish(c, &s);
    }
}

void health_watch_on_close(struct rpc_call *c) {
    free(rpc_call_state(c));
}
