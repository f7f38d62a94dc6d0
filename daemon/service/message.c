/* message.c - see message.h. */
#include "daemon/service/message.h"

#include "base/utf8.h"
#include "daemon/service/refusal.h"

#include <string.h>

static int find_unknown(const ProtobufCMessage *m, struct rpc_status *s);

static int find_unknown_in_field(
        const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, struct rpc_status *s) {
    const char *base = (const char *)m;
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        size_t n = *(const size_t *)(base + f->quantifier_offset);
        ProtobufCMessage *const *list = *(ProtobufCMessage *const *const *)(base + f->offset);
        for (size_t i = 0; i < n; i++) {
            int r = find_unknown(list[i], s);
            if (r < 0)
                return r;
        }
        return 0;
    }
    if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) && *(const uint32_t *)(base + f->quantifier_offset) != f->id)
        return 0;
    const ProtobufCMessage *child = *(ProtobufCMessage *const *)(base + f->offset);
    return child ? find_unknown(child, s) : 0;
}

/* As deep as the types are nested; none of them is recursive. */
static int find_unknown(const ProtobufCMessage *m, struct rpc_status *s) {
    if (m->n_unknown_fields > 0)
        return refuse(s, REFUSAL_UNKNOWN_FIELD,
                "%s has no field %u on this server: leave it out, or use a server that has it",
                m->descriptor->name, m->unknown_fields[0].tag);
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        int r = f->type == PROTOBUF_C_TYPE_MESSAGE ? find_unknown_in_field(m, f, s) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t bytes,
        struct arena *a, struct rpc_status *s) {
    ProtobufCMessage *m = protobuf_c_message_unpack(d, &a->allocator, bytes, data);
    if (!m && a->exhausted)
        refuse(s, REFUSAL_TOO_COMPLEX,
                "the request has too many fields: unpacked it takes more than %zu MiB; send fewer",
                a->limit >> 20);
    else if (!m)
        refuse(s, REFUSAL_MALFORMED, "the request is not a valid %s message; build it from the .proto file",
                d->name);
    else if (find_unknown(m, s) == 0)
        return m;
    return NULL;
}

ProtobufCMessage *message_of_call(
        const ProtobufCMessageDescriptor *d, struct rpc_call *c, struct arena *a, struct rpc_status *s) {
    size_t bytes = 0;
    const void *data = rpc_call_request(c, &bytes);
    if (!data) {
        refuse(s, REFUSAL_MALFORMED, "the call ended without a request; send one %s message", d->name);
        return NULL;
    }
    return message_unpack(d, data, bytes, a, s);
}

void message_prepare(struct rpc_call *c, const ProtobufCMessage *m) {
    size_t bytes = protobuf_c_message_get_packed_size(m);
    protobuf_c_message_pack(m, rpc_call_message(c, bytes));
}

void message_send(struct rpc_call *c, const ProtobufCMessage *m) {
    message_prepare(c, m);
    rpc_call_send(c);
}

void message_reply(struct rpc_call *c, const ProtobufCMessage *m) {
    message_prepare(c, m);
    rpc_call_finish(c, NULL);
}

ProtobufCBinaryData message_string(const char *text) {
    return message_text(text, strlen(text));
}

bool message_is(ProtobufCBinaryData d, const char *text) {
    return d.len == strlen(text) && (d.len == 0 || memcmp(d.data, text, d.len) == 0);
}

int message_check_utf8(ProtobufCBinaryData d, const char *field, struct rpc_status *s) {
    size_t bad = 0;
    if (utf8_valid((const char *)d.data, d.len, &bad))
        return 0;
    return refuse(s, REFUSAL_INVALID_UTF8,
            "%s is not UTF-8: the byte at offset %zu is wrong; send valid UTF-8", field, bad);
}

/* Deeper than any of our types; a type that goes on beyond it contains itself. */
#define TYPE_DEPTH_MAX 16

static bool recurses(const ProtobufCMessageDescriptor *d, int depth) {
    if (depth > TYPE_DEPTH_MAX)
        return true;
    for (unsigned i = 0; i < d->n_fields; i++)
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE && recurses(d->fields[i].descriptor, depth + 1))
            return true;
    return false;
}

bool message_type_recurses(const ProtobufCMessageDescriptor *d) {
    return recurses(d, 0);
}
