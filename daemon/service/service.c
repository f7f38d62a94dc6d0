/* service.c - the method table and the state of the service. See service.h. */
#include "daemon/service/service.h"

#include "base/clock.h"

#include "daemon/service/methods.h"

#include <string.h>

const char *const service_names[] = {"shardd.v1.Shardd", "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", NULL};

static struct rpc_method methods[] = {
        {.path = "/shardd.v1.Shardd/Generate",
                .kind = RPC_SERVER_STREAM,
                .on_call = generate_on_call,
                .on_wake = generate_on_wake,
                .on_close = generate_on_close},
        {.path = "/shardd.v1.Shardd/Tokenize", .on_call = tokenize_on_call},
        {.path = "/shardd.v1.Shardd/Detokenize", .on_call = detokenize_on_call},
        {.path = "/shardd.v1.Shardd/GetModelInfo", .on_call = model_info_on_call},
        {.path = "/shardd.v1.Shardd/GetServerInfo", .on_call = server_info_on_call},
        {.path = "/shardd.v1.Shardd/Abort", .on_call = abort_on_call},
        {.path = "/grpc.health.v1.Health/Check", .on_call = health_check_on_call},
        {.path = "/grpc.health.v1.Health/Watch",
                .kind = RPC_SERVER_STREAM,
                .on_call = health_watch_on_call,
                .on_wake = health_watch_on_wake,
                .on_close = health_watch_on_close},
        {.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                .kind = RPC_BIDI,
                .on_message = reflection_on_message,
                .on_wake = reflection_on_wake},
        {.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                .kind = RPC_BIDI,
                .on_message = reflection_on_message,
                .on_wake = reflection_on_wake},
};

void service_init(struct service *s, const struct service_options *options) {
    *s = (struct service){.options = *options};
    s->start_ns = clock_ns();
}

size_t service_methods(struct service *s, const struct rpc_method **ret) {
    size_t n = sizeof(methods) / sizeof(methods[0]);
    for (size_t i = 0; i < n; i++)
        methods[i].user = s;
    *ret = methods;
    return n;
}

void service_set_health(struct service *s, bool serving, struct rpc_server *server) {
    if (serving)
        atomic_store(&s->served, true);
    if (atomic_exchange(&s->serving, serving) != serving && server)
        rpc_server_wake_all(server);
}

const char *service_state(
        const struct service *s, const struct rpc_server *server, const struct engine_stats *stats) {
    if (rpc_server_draining(server))
        return "draining";
    if (strcmp(stats->state, "serving") == 0 && !atomic_load(&s->serving))
        return atomic_load(&s->served) ? "recovering" : "loading";
    return stats->state;
}

uint32_t service_context_tokens(const struct engine_stats *stats) {
    uint64_t cache = (uint64_t)stats->pages_total * PAGE_TOKENS;
    return cache < stats->max_model_len ? (uint32_t)cache : stats->max_model_len;
}

void method_refuse(struct rpc_call *c, const struct rpc_status *s) {
    struct service *service = rpc_call_user(c);
    atomic_fetch_add(&service->refused_total, 1);
    rpc_call_finish(c, s);
}
