/* metrics_text.h - which metrics there are: all that /metrics shows, under our names and under vLLM's. */
#pragma once

#include "base/buffer.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/service.h"

/* 0 or -ENOMEM; the caller frees ret->data in both cases. Any thread. */
int metrics_text(const struct service *s, struct rpc_server *server, struct byte_buffer *ret);
