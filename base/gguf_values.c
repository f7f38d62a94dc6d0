/* gguf_values.c - the values of a GGUF file's metadata. See gguf.h; gguf.c has checked that they lie in the file. */
#include "base/gguf.h"

#include <errno.h>
#include <string.h>

static int find(const struct gguf *g, const char *key, const struct gguf_value **ret, struct error *e) {
    *ret = gguf_find(g, key);
    return *ret ? 0 : error_set(e, -ENOENT, "%s: the key %s is missing", g->file, key);
}

static int wrong_kind(const struct gguf *g, const char *key, const char *expected, struct error *e) {
    return error_set(e, -EINVAL, "%s: the key %s is not %s", g->file, key, expected);
}

/* A whole number that is not negative, of any width. */
static int number_at(enum gguf_value_type type, const unsigned char *data, uint64_t *ret) {
    static const unsigned char widths[GGUF_VALUE_TYPES] = {[GGUF_U8] = 1,
            [GGUF_I8] = 1,
            [GGUF_U16] = 2,
            [GGUF_I16] = 2,
            [GGUF_U32] = 4,
            [GGUF_I32] = 4,
            [GGUF_U64] = 8,
            [GGUF_I64] = 8};
    const bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    const unsigned width = widths[type];
    uint64_t value = 0;
    if (width == 0)
        return -EINVAL;
    memcpy(&value, data, width);
    if (is_signed && value >> (8 * width - 1))
        return -EINVAL;
    *ret = value;
    return 0;
}

/* A whole number that is negative. */
static bool negative_at(enum gguf_value_type type, const unsigned char *data, double *ret) {
    int8_t i8;
    int16_t i16;
    int32_t i32;
    int64_t i64;
    switch (type) {
    case GGUF_I8:
        memcpy(&i8, data, sizeof(i8));
        *ret = i8;
        return i8 < 0;
    case GGUF_I16:
        memcpy(&i16, data, sizeof(i16));
        *ret = i16;
        return i16 < 0;
    case GGUF_I32:
        memcpy(&i32, data, sizeof(i32));
        *ret = i32;
        return i32 < 0;
    case GGUF_I64:
        memcpy(&i64, data, sizeof(i64));
        *ret = (double)i64;
        return i64 < 0;
    default:
        return false;
    }
}

int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct error *e) {
    const struct gguf_value *v = NULL;
    int r = find(g, key, &v, e);
    if (r < 0)
        return r;
    return number_at(v->type, v->data, ret) < 0 ? wrong_kind(g, key, "a whole number of at least 0", e) : 0;
}

int gguf_get_real(const struct gguf *g, const char *key, double *ret, struct error *e) {
    const struct gguf_value *v = NULL;
    uint64_t whole = 0;
    float narrow = 0;
    int r = find(g, key, &v, e);
    if (r < 0)
        return r;
    if (v->type == GGUF_F64) {
        memcpy(ret, v->data, sizeof(*ret));
    } else if (v->type == GGUF_F32) {
        memcpy(&narrow, v->data, sizeof(narrow));
        *ret = (double)narrow;
    } else if (number_at(v->type, v->data, &whole) == 0) {
        *ret = (double)whole;
    } else if (negative_at(v->type, v->data, ret)) {
        return 0;
    } else {
        return wrong_kind(g, key, "a number", e);
    }
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct error *e) {
    const struct gguf_value *v = NULL;
    int r = find(g, key, &v, e);
    if (r < 0)
        return r;
    if (v->type != GGUF_BOOL || v->data[0] > 1)
        return wrong_kind(g, key, "true or false", e);
    *ret = v->data[0] == 1;
    return 0;
}

int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret, struct error *e) {
    const struct gguf_value *v = NULL;
    int r = find(g, key, &v, e);
    if (r < 0)
        return r;
    if (v->type != GGUF_STRING)
        return wrong_kind(g, key, "a string", e);
    const unsigned char *at = v->data;
    *ret = gguf_next_string(&at);
    return 0;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type element,
        const struct gguf_value **ret, struct error *e) {
    const struct gguf_value *v = NULL;
    int r = find(g, key, &v, e);
    if (r < 0)
        return r;
    if (v->type != GGUF_ARRAY || v->element != element)
        return wrong_kind(
                g, key, element == GGUF_STRING ? "a list of strings" : "a list of 32-bit numbers", e);
    *ret = v;
    return 0;
}

bool gguf_string_is(struct gguf_string s, const char *text) {
    return strlen(text) == s.bytes && memcmp(text, s.data, s.bytes) == 0;
}

int gguf_array_u64(const struct gguf_value *v, uint64_t i, uint64_t *ret) {
    static const unsigned char widths[GGUF_VALUE_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (v->type != GGUF_ARRAY || i >= v->n)
        return -EINVAL;
    return number_at(v->element, v->data + i * widths[v->element], ret);
}

struct gguf_string gguf_next_string(const unsigned char **at) {
    struct gguf_string s;
    memcpy(&s.bytes, *at, 8);
    s.data = (const char *)*at + 8;
    *at += 8 + s.bytes;
    return s;
}
