/* conversation.h - chat messages and tools of a request as jansson values of the OpenAI shape, for the chat
 * template.
 *
 * Checks everything that the template does not: counts, UTF-8, JSON, which role may carry what. */
#pragma once

#include "base/limits.h"

#include "daemon/rpc/rpc.h"

#include "shardd/v1/shardd.pb-c.h"

#include <jansson.h>

struct conversation {
    json_t *messages;
    json_t *tools; /* NULL when there are none */
};

/* 0, or -1 with *s filled. On success conversation_done() releases *ret. */
int conversation_build(const Shardd__V1__ChatInput *chat, struct conversation *ret, struct rpc_status *s);
void conversation_done(struct conversation *c);

/* A JSON object of at most bytes_left bytes (which are taken from it), nested at most JSON_DEPTH_MAX deep, no
 * key twice. NULL with *s filled; field names it in the sentence. */
json_t *conversation_parse_object(
        ProtobufCBinaryData text, const char *field, size_t *bytes_left, struct rpc_status *s);
