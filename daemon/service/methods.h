/* methods.h - what service.c's table is made of. Each runs on the call's worker. */
#pragma once

#include "daemon/rpc/rpc.h"
#include "daemon/service/service.h"

void generate_on_call(struct rpc_call *c);
void generate_on_wake(struct rpc_call *c);
void generate_on_close(struct rpc_call *c);
void tokenize_on_call(struct rpc_call *c);
void detokenize_on_call(struct rpc_call *c);
void model_info_on_call(struct rpc_call *c);
void server_info_on_call(struct rpc_call *c);
void abort_on_call(struct rpc_call *c);
void health_check_on_call(struct rpc_call *c);
void health_watch_on_call(struct rpc_call *c);
void health_watch_on_wake(struct rpc_call *c);
void health_watch_on_close(struct rpc_call *c);
void reflection_on_message(struct rpc_call *c); /* v1 and v1alpha */
void reflection_on_wake(struct rpc_call *c);

/* Ends the call with a refusal, and counts it. */
void method_refuse(struct rpc_call *c, const struct rpc_status *s);
/* The names of the services, for health and reflection; NULL-terminated. */
extern const char *const service_names[];
