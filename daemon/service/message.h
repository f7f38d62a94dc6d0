/* message.h - protobuf messages in and out of a call. Used by every method. */
#pragma once

#include "daemon/rpc/rpc.h"
#include "daemon/service/arena.h"

#include <protobuf-c/protobuf-c.h>

/* Unpacks into the arena and refuses fields that the message does not have: what is set is never ignored.
 * NULL with *s filled. */
ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t bytes,
        struct arena *a, struct rpc_status *s);
/* The same for the message of a call; a call without one is refused. */
ProtobufCMessage *message_of_call(
        const ProtobufCMessageDescriptor *d, struct rpc_call *c, struct arena *a, struct rpc_status *s);
/* The message that goes with the next rpc_call_finish(). */
void message_prepare(struct rpc_call *c, const ProtobufCMessage *m);
void message_send(struct rpc_call *c, const ProtobufCMessage *m);  /* one of several */
void message_reply(struct rpc_call *c, const ProtobufCMessage *m); /* the last one, status OK */

static inline ProtobufCBinaryData message_text(const char *text, size_t bytes) {
    return (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)(uintptr_t)text};
}
ProtobufCBinaryData message_string(const char *text);
bool message_is(ProtobufCBinaryData d, const char *text);
/* Refuses text that is not UTF-8; field names it in the sentence. */
int message_check_utf8(ProtobufCBinaryData d, const char *field, struct rpc_status *s);
/* True when a message of this type can contain itself: such a type must not be in what clients send
 * (protobuf-c unpacks with one stack frame per level and no limit). */
bool message_type_recurses(const ProtobufCMessageDescriptor *d);
