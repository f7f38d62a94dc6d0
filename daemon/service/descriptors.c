/* descriptors.c - see descriptors.h. Field numbers are those of google/protobuf/descriptor.proto. */
#include "daemon/service/descriptors.h"

#include <string.h>

enum {
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6
};
enum { MESSAGE_FIELD = 2, MESSAGE_NESTED = 3, MESSAGE_ENUM = 4, SERVICE_METHOD = 2, ANY_NAME = 1 };
#define NESTING_MAX 8

struct cursor {
    const uint8_t *at, *end;
    bool broken; /* stopped at what is no field */
};

struct field {
    uint32_t number;
    ProtobufCBinaryData data; /* of length-delimited fields; of others empty, but never NULL */
};

static bool varint(struct cursor *c, uint64_t *ret) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && c->at < c->end; shift += 7) {
        uint8_t b = *c->at++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *ret = v;
            return true;
        }
    }
    return false;
}

static bool read_field(struct cursor *c, struct field *ret) {
    uint64_t key, length;
    if (!varint(c, &key))
        return false;
    *ret = (struct field){.number = (uint32_t)(key >> 3), .data.data = (uint8_t *)(uintptr_t)c->at};
    switch (key & 7) {
    case 0:
        return varint(c, &length);
    case 1:
        length = 8;
        break;
    case 2:
        if (!varint(c, &length))
            return false;
        break;
    case 5:
        length = 4;
        break;
    default:
        return false;
    }
    if (length > (uint64_t)(c->end - c->at))
        return false;
    if ((key & 7) == 2)
        ret->data = (ProtobufCBinaryData){.len = (size_t)length, .data = (uint8_t *)(uintptr_t)c->at};
    c->at += length;
    return true;
}

/* The next field; false at the end or at what cannot be read. */
static bool next_field(struct cursor *c, struct field *ret) {
    if (c->at == c->end || c->broken)
        return false;
    c->broken = !read_field(c, ret);
    return !c->broken;
}

static struct cursor cursor_of(ProtobufCBinaryData d) {
    return (struct cursor){.at = d.data, .end = d.data + d.len};
}

static ProtobufCBinaryData field_of(ProtobufCBinaryData message, uint32_t number) {
    struct cursor c = cursor_of(message);
    struct field f;
    while (next_field(&c, &f))
        if (f.number == number)
            return f.data;
    return (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t) ""};
}

static bool equal(ProtobufCBinaryData a, ProtobufCBinaryData b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

bool descriptor_set_read(const unsigned char *data, size_t bytes, struct descriptor_set *ret) {
    struct cursor c = {.at = data, .end = data + bytes};
    struct field f;
    ret->n_files = 0;
    while (next_field(&c, &f)) {
        if (f.number != 1)
            continue;
        if (ret->n_files == DESCRIPTOR_FILES_MAX)
            return false;
        ret->files[ret->n_files++] = f.data;
    }
    return !c.broken;
}

int descriptor_find_file(const struct descriptor_set *d, ProtobufCBinaryData name) {
    for (size_t i = 0; i < d->n_files; i++)
        if (equal(field_of(d->files[i], FILE_NAME), name))
            return (int)i;
    return -1;
}

/* Takes "name" off the front of *symbol, and the dot after it. *ret_whole: nothing is left. A name must end
 * at a dot: "shardd.v1" is not a prefix of "shardd.v10.X". */
static bool take_prefix(ProtobufCBinaryData *symbol, ProtobufCBinaryData name, bool *ret_whole) {
    if (name.len == 0 || symbol->len < name.len || memcmp(symbol->data, name.data, name.len) != 0)
        return false;
    *ret_whole = symbol->len == name.len;
    if (!*ret_whole && symbol->data[name.len] != '.')
        return false;
    size_t taken = name.len + !*ret_whole;
    symbol->data += taken;
    symbol->len -= taken;
    return true;
}

static bool has_named(ProtobufCBinaryData parent, uint32_t number, ProtobufCBinaryData name) {
    struct cursor c = cursor_of(parent);
    struct field f;
    while (next_field(&c, &f))
        if (f.number == number && equal(field_of(f.data, ANY_NAME), name))
            return true;
    return false;
}

static bool message_defines(ProtobufCBinaryData message, ProtobufCBinaryData symbol, int depth) {
    struct cursor c = cursor_of(message);
    struct field f;
    if (depth > NESTING_MAX)
        return false;
    if (has_named(message, MESSAGE_FIELD, symbol))
        return true;
    while (next_field(&c, &f)) {
        ProtobufCBinaryData rest = symbol;
        bool whole = false;
        if ((f.number != MESSAGE_NESTED && f.number != MESSAGE_ENUM) ||
                !take_prefix(&rest, field_of(f.data, ANY_NAME), &whole))
            continue;
        if (whole || (f.number == MESSAGE_NESTED && message_defines(f.data, rest, depth + 1)))
            return true;
    }
    return false;
}

static bool file_defines(ProtobufCBinaryData file, ProtobufCBinaryData symbol) {
    bool whole = false;
    ProtobufCBinaryData package = field_of(file, FILE_PACKAGE);
    if (package.len > 0 && (!take_prefix(&symbol, package, &whole) || whole))
        return false;
    struct cursor c = cursor_of(file);
    struct field f;
    while (next_field(&c, &f)) {
        ProtobufCBinaryData rest = symbol;
        if (f.number != FILE_MESSAGE && f.number != FILE_ENUM && f.number != FILE_SERVICE)
            continue;
        if (!take_prefix(&rest, field_of(f.data, ANY_NAME), &whole))
            continue;
        if (whole || (f.number == FILE_SERVICE && has_named(f.data, SERVICE_METHOD, rest)) ||
                (f.number == FILE_MESSAGE && message_defines(f.data, rest, 0)))
            return true;
    }
    return false;
}

int descriptor_find_symbol(const struct descriptor_set *d, ProtobufCBinaryData symbol) {
    for (size_t i = 0; i < d->n_files; i++)
        if (file_defines(d->files[i], symbol))
            return (int)i;
    return -1;
}

/* A file comes after its imports in the set, so one pass downwards marks all that is needed. */
size_t descriptor_with_imports(
        const struct descriptor_set *d, int file, int ret_files[DESCRIPTOR_FILES_MAX]) {
    bool wanted[DESCRIPTOR_FILES_MAX] = {false};
    wanted[file] = true;
    for (int i = file; i >= 0; i--) {
        struct cursor c = cursor_of(d->files[i]);
        struct field f;
        while (wanted[i] && next_field(&c, &f)) {
            int import = f.number == FILE_DEPENDENCY ? descriptor_find_file(d, f.data) : -1;
            if (import >= 0 && import < i)
                wanted[import] = true;
        }
    }
    size_t n = 0;
    for (int i = 0; i <= file; i++)
        if (wanted[i])
            ret_files[n++] = i;
    return n;
}
