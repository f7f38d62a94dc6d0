/* gguf.c - see gguf.h. The file is: "GGUF", version, counts, key-value pairs, tensor infos, padding, data; all
 * little-endian, nothing aligned but the data. */
#include "base/gguf.h"

#include "base/limits.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they lie in memory");

#define ALIGNMENT_DEFAULT 32u
#define ALIGNMENT_MAX     (1u << 20)
#define SHOWN_MAX         200 /* bytes of a key or name in a message */
#define VALUE_BYTES_MIN   13u /* key length, type, the smallest value: bounds counts by the file's size */
#define INFO_BYTES_MIN    33u /* name length, one byte, dimensions, type, offset */

static const struct {
    const char *name;
    uint32_t elements, bytes; /* of a block; 0: known by name only */
} TYPES[] = {
        [GGUF_TENSOR_F32] = {"F32", 1, 4},
        [GGUF_TENSOR_F16] = {"F16", 1, 2},
        [GGUF_TENSOR_Q4_0] = {"Q4_0", 32, 18},
        [GGUF_TENSOR_Q4_1] = {"Q4_1", 32, 20},
        [GGUF_TENSOR_Q5_0] = {"Q5_0", 32, 22},
        [GGUF_TENSOR_Q5_1] = {"Q5_1", 32, 24},
        [GGUF_TENSOR_Q8_0] = {"Q8_0", 32, 34},
        [9] = {"Q8_1", 0, 0},
        [10] = {"Q2_K", 0, 0},
        [11] = {"Q3_K", 0, 0},
        [GGUF_TENSOR_Q4_K] = {"Q4_K", 256, 144},
        [GGUF_TENSOR_Q5_K] = {"Q5_K", 256, 176},
        [GGUF_TENSOR_Q6_K] = {"Q6_K", 256, 210},
        [15] = {"Q8_K", 0, 0},
        [16] = {"IQ2_XXS", 0, 0},
        [17] = {"IQ2_XS", 0, 0},
        [18] = {"IQ3_XXS", 0, 0},
        [19] = {"IQ1_S", 0, 0},
        [20] = {"IQ4_NL", 0, 0},
        [21] = {"IQ3_S", 0, 0},
        [22] = {"IQ2_S", 0, 0},
        [23] = {"IQ4_XS", 0, 0},
        [24] = {"I8", 0, 0},
        [25] = {"I16", 0, 0},
        [26] = {"I32", 0, 0},
        [27] = {"I64", 0, 0},
        [28] = {"F64", 0, 0},
        [29] = {"IQ1_M", 0, 0},
        [GGUF_TENSOR_BF16] = {"BF16", 1, 2},
        [34] = {"TQ1_0", 0, 0},
        [35] = {"TQ2_0", 0, 0},
        [39] = {"MXFP4", 0, 0},
};
#define N_TYPES (sizeof(TYPES) / sizeof(*TYPES))

bool gguf_tensor_is_read(const struct gguf_tensor *t) {
    return (size_t)t->type < N_TYPES && TYPES[t->type].elements > 0;
}

const char *gguf_tensor_type_name(enum gguf_tensor_type t) {
    return (size_t)t < N_TYPES && TYPES[t].name ? TYPES[t].name : "unknown";
}

void gguf_tensor_block(enum gguf_tensor_type t, uint32_t *ret_elements, uint32_t *ret_bytes) {
    assert((size_t)t < N_TYPES && TYPES[t].elements > 0);
    *ret_elements = TYPES[t].elements;
    *ret_bytes = TYPES[t].bytes;
}

/* --- bytes --- */

struct cursor {
    const unsigned char *at, *end;
    const char *file;
    struct error *e;
};

#define SHOWN(s) ((s).bytes < SHOWN_MAX ? (int)(s).bytes : SHOWN_MAX), (s).data

static int truncated(const struct cursor *c, const char *where) {
    return error_set(c->e, -EBADMSG, "%s: ends inside %s: it is truncated, fetch it again", c->file, where);
}

static int take(struct cursor *c, uint64_t bytes, const char *where, const unsigned char **ret) {
    if (bytes > (uint64_t)(c->end - c->at))
        return truncated(c, where);
    *ret = c->at;
    c->at += bytes;
    return 0;
}

static int take_number(struct cursor *c, size_t bytes, const char *where, uint64_t *ret) {
    const unsigned char *data = NULL;
    int r = take(c, bytes, where, &data);
    if (r < 0)
        return r;
    *ret = 0;
    memcpy(ret, data, bytes);
    return 0;
}

static int take_string(struct cursor *c, const char *where, struct gguf_string *ret) {
    const unsigned char *data = NULL;
    uint64_t bytes = 0;
    int r = take_number(c, 8, where, &bytes);
    if (r == 0)
        r = take(c, bytes, where, &data);
    if (r < 0)
        return r;
    *ret = (struct gguf_string){(const char *)data, bytes};
    return 0;
}

/* --- metadata --- */

static size_t scalar_bytes(enum gguf_value_type t) {
    static const unsigned char sizes[GGUF_VALUE_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return sizes[t];
}

static int take_type(struct cursor *c, struct gguf_string key, enum gguf_value_type *ret) {
    uint64_t type = 0;
    int r = take_number(c, 4, "the metadata", &type);
    if (r < 0)
        return r;
    if (type >= GGUF_VALUE_TYPES)
        return error_set(c->e, -EBADMSG, "%s: %.*s: unknown type of value %llu", c->file, SHOWN(key),
                (unsigned long long)type);
    *ret = (enum gguf_value_type)type;
    return 0;
}

static int take_array(struct cursor *c, struct gguf_value *v) {
    uint64_t bytes = 0;
    const unsigned char *data = NULL;
    int r = take_type(c, v->key, &v->element);
    if (r == 0)
        r = take_number(c, 8, "the metadata", &v->n);
    if (r < 0)
        return r;
    if (v->element == GGUF_ARRAY)
        return error_set(
                c->e, -ENOTSUP, "%s: %.*s: is a list of lists, which is not read", c->file, SHOWN(v->key));
    v->data = c->at;
    if (v->element != GGUF_STRING) {
        if (__builtin_mul_overflow(v->n, scalar_bytes(v->element), &bytes))
            return truncated(c, "the metadata");
        return take(c, bytes, "the metadata", &data);
    }
    for (uint64_t i = 0; i < v->n && r == 0;
            i++) { /* each takes eight bytes at least: a hostile n ends early */
        struct gguf_string unused;
        r = take_string(c, "the metadata", &unused);
    }
    return r;
}

static int take_value(struct cursor *c, struct gguf_value *v) {
    struct gguf_string unused;
    int r = take_string(c, "the metadata", &v->key);
    if (r < 0)
        return r;
    if (v->key.bytes == 0 || v->key.bytes > UINT16_MAX || memchr(v->key.data, '\0', v->key.bytes))
        return error_set(
                c->e, -EBADMSG, "%s: a key of the metadata is empty, too long, or has a NUL in it", c->file);
    r = take_type(c, v->key, &v->type);
    if (r < 0)
        return r;
    v->data = c->at;
    if (v->type == GGUF_ARRAY)
        return take_array(c, v);
    if (v->type == GGUF_STRING)
        return take_string(c, "the metadata", &unused);
    return take(c, scalar_bytes(v->type), "the metadata", &v->data);
}

static int compare(struct gguf_string a, struct gguf_string b) {
    uint64_t bytes = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = memcmp(a.data, b.data, bytes);
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int by_key(const void *a, const void *b) {
    return compare(((const struct gguf_value *)a)->key, ((const struct gguf_value *)b)->key);
}

static int by_name(const void *a, const void *b) {
    return compare(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int take_values(struct cursor *c, struct gguf *g, uint64_t n) {
    if (n > GGUF_VALUES_MAX)
        return error_set(c->e, -E2BIG, "%s: has %llu keys of metadata, at most %u are read", c->file,
                (unsigned long long)n, GGUF_VALUES_MAX);
    if (n > (uint64_t)(c->end - c->at) / VALUE_BYTES_MIN)
        return truncated(c, "the metadata");
    g->values = calloc(n + 1, sizeof(*g->values));
    if (!g->values)
        return error_set(c->e, -ENOMEM, "%s: out of memory for its metadata", c->file);
    for (; g->n_values < n; g->n_values++) {
        int r = take_value(c, &g->values[g->n_values]);
        if (r < 0)
            return r;
    }
    qsort(g->values, g->n_values, sizeof(*g->values), by_key);
    for (size_t i = 1; i < g->n_values; i++)
        if (compare(g->values[i - 1].key, g->values[i].key) == 0)
            return error_set(
                    c->e, -EBADMSG, "%s: %.*s: is in the metadata twice", c->file, SHOWN(g->values[i].key));
    return 0;
}

static int find_alignment(struct gguf *g, struct error *e) {
    uint64_t alignment = ALIGNMENT_DEFAULT;
    if (gguf_find(g, "general.alignment")) {
        int r = gguf_get_u64(g, "general.alignment", &alignment, e);
        if (r < 0)
            return r;
    }
    if (alignment < 8 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
        return error_set(e, -EBADMSG, "%s: general.alignment is %llu: it must be a power of two, 8 to %u",
                g->file, (unsigned long long)alignment, ALIGNMENT_MAX);
    g->alignment = (uint32_t)alignment;
    return 0;
}

/* --- tensors --- */

int gguf_tensor_check_read(const struct gguf_tensor *t, const char *file, struct error *e) {
    if (gguf_tensor_is_read(t))
        return 0;
    if ((size_t)t->type >= N_TYPES || !TYPES[t->type].name)
        return error_set(
                e, -ENOTSUP, "%s: %.*s: unknown tensor type %u", file, SHOWN(t->name), (unsigned)t->type);
    return error_set(e, -ENOTSUP,
            "%s: %.*s: tensors of type %s are not read: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
            "Q5_K and Q6_K are; take another quantisation of this model",
            file, SHOWN(t->name), TYPES[t->type].name);
}

/* Bytes of the tensor out of its type and dimensions; 0 where the type's blocks are not known. */
static int measure(const struct cursor *c, struct gguf_tensor *t) {
    uint64_t elements = 1;
    bool overflow = false;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->dims[i] == 0)
            return error_set(c->e, -EBADMSG, "%s: %.*s: has a dimension of 0", c->file, SHOWN(t->name));
        overflow = __builtin_mul_overflow(elements, t->dims[i], &elements) || overflow;
    }
    if (!gguf_tensor_is_read(t))
        return 0;
    const uint32_t block = TYPES[t->type].elements;
    if (t->dims[0] % block != 0)
        return error_set(c->e, -EBADMSG, "%s: %.*s: rows of %llu are not whole blocks of %u of %s", c->file,
                SHOWN(t->name), (unsigned long long)t->dims[0], block, TYPES[t->type].name);
    if (overflow || __builtin_mul_overflow(elements / block, TYPES[t->type].bytes, &t->bytes))
        return error_set(c->e, -EBADMSG, "%s: %.*s: its dimensions have more bytes than 64 bits can count",
                c->file, SHOWN(t->name));
    return 0;
}

/* *place: where the tensor begins in the data, as the file says. */
static int take_info(struct cursor *c, struct gguf_tensor *t, uint64_t *place) {
    uint64_t n_dims = 0, type = 0;
    int r = take_string(c, "the tensor infos", &t->name);
    if (r < 0)
        return r;
    if (t->name.bytes == 0 || t->name.bytes > GGUF_NAME_BYTES_MAX ||
            memchr(t->name.data, '\0', t->name.bytes))
        return error_set(c->e, -EBADMSG,
                "%s: a tensor's name is empty, longer than %u bytes, or has a NUL in it", c->file,
                GGUF_NAME_BYTES_MAX);
    r = take_number(c, 4, "the tensor infos", &n_dims);
    if (r < 0)
        return r;
    if (n_dims == 0 || n_dims > GGUF_DIMS_MAX)
        return error_set(c->e, -EBADMSG, "%s: %.*s: has %llu dimensions: it must have 1 to %u", c->file,
                SHOWN(t->name), (unsigned long long)n_dims, GGUF_DIMS_MAX);
    t->n_dims = (uint32_t)n_dims;
    for (uint32_t i = 0; i < n_dims && r == 0; i++)
        r = take_number(c, 8, "the tensor infos", &t->dims[i]);
    if (r == 0)
        r = take_number(c, 4, "the tensor infos", &type);
    if (r == 0)
        r = take_number(c, 8, "the tensor infos", place);
    t->type = (enum gguf_tensor_type)type;
    return r < 0 ? r : measure(c, t);
}

/* Does the tensor begin where the one before it ends? *offset is moved behind it. One of a type whose blocks are not
 * known (before: it, else NULL) reaches to where the next begins. */
static int follow(struct cursor *c, const struct gguf *g, struct gguf_tensor *t, struct gguf_tensor *before,
        uint64_t place, uint64_t *offset) {
    uint64_t end = 0;
    if (before && place >= *offset && place % g->alignment == 0) {
        before->bytes = place - *offset;
        *offset = place;
    }
    if (place != *offset)
        return error_set(c->e, -EBADMSG, "%s: %.*s: begins at byte %llu of the data, expected %llu", c->file,
                SHOWN(t->name), (unsigned long long)place, (unsigned long long)*offset);
    if (__builtin_add_overflow(place, t->bytes, &end) || __builtin_add_overflow(end, g->alignment - 1, &end))
        return truncated(c, "the data");
    *offset = end & ~(uint64_t)(g->alignment - 1);
    return 0;
}

static int take_infos(struct cursor *c, struct gguf *g, uint64_t n) {
    struct gguf_tensor *before = NULL;
    uint64_t offset = 0;
    if (n > GGUF_TENSORS_MAX)
        return error_set(c->e, -E2BIG, "%s: has %llu tensors, at most %u are read", c->file,
                (unsigned long long)n, GGUF_TENSORS_MAX);
    if (n > (uint64_t)(c->end - c->at) / INFO_BYTES_MIN)
        return truncated(c, "the tensor infos");
    g->tensors = calloc(n + 1, sizeof(*g->tensors));
    if (!g->tensors)
        return error_set(c->e, -ENOMEM, "%s: out of memory for %llu tensors", c->file, (unsigned long long)n);
    for (; g->n_tensors < n; g->n_tensors++) {
        struct gguf_tensor *t = &g->tensors[g->n_tensors];
        uint64_t place = 0;
        int r = take_info(c, t, &place);
        if (r == 0)
            r = follow(c, g, t, before, place, &offset);
        if (r < 0)
            return r;
        before = gguf_tensor_is_read(t) ? NULL : t;
    }
    return 0;
}

/* Infos, then the data that they speak of: what lies where is known only after the last info. */
static int take_tensors(struct cursor *c, struct gguf *g, uint64_t n, const unsigned char *image) {
    uint64_t offset = 0;
    int r = take_infos(c, g, n);
    if (r < 0)
        return r;
    uint64_t at = (uint64_t)(c->at - image), pad = (g->alignment - at % g->alignment) % g->alignment;
    if (n > 0 && pad > (uint64_t)(c->end - c->at))
        return truncated(c, "the padding before the data");
    const unsigned char *data = n > 0 ? c->at + pad : c->at;
    const uint64_t bytes = (uint64_t)(c->end - data);
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (i + 1 == g->n_tensors && !gguf_tensor_is_read(t) && offset <= bytes)
            t->bytes = bytes - offset;
        if (offset > bytes || t->bytes > bytes - offset)
            return error_set(c->e, -EBADMSG,
                    "%s: %.*s: ends at byte %llu of the data, but the file has %llu: it is truncated, fetch it "
                    "again",
                    c->file, SHOWN(t->name), (unsigned long long)(offset + t->bytes),
                    (unsigned long long)bytes);
        t->data = data + offset;
        offset = (offset + t->bytes + g->alignment - 1) & ~(uint64_t)(g->alignment - 1);
    }
    qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare(g->tensors[i - 1].name, g->tensors[i].name) == 0)
            return error_set(c->e, -EBADMSG, "%s: %.*s: is there twice", c->file, SHOWN(g->tensors[i].name));
    return 0;
}

/* --- the file --- */

static int parse(struct cursor *c, struct gguf *g, const unsigned char *image) {
    const unsigned char *magic = NULL;
    uint64_t version = 0, n_tensors = 0, n_values = 0;
    int r = take(c, 4, "its first four bytes", &magic);
    if (r < 0)
        return r;
    if (memcmp(magic, "GGUF", 4) != 0)
        return error_set(c->e, -EBADMSG, "%s: does not begin with GGUF: is it a GGUF file?", c->file);
    r = take_number(c, 4, "its header", &version);
    if (r < 0)
        return r;
    if (version != 2 && version != 3)
        return error_set(c->e, -ENOTSUP, "%s: GGUF version %llu%s: versions 2 and 3 are read", c->file,
                (unsigned long long)version,
                version == 2u << 24 || version == 3u << 24 ? ", a big-endian file" : "");
    g->version = (uint32_t)version;
    r = take_number(c, 8, "its header", &n_tensors);
    if (r == 0)
        r = take_number(c, 8, "its header", &n_values);
    if (r == 0)
        r = take_values(c, g, n_values);
    if (r == 0)
        r = find_alignment(g, c->e);
    return r < 0 ? r : take_tensors(c, g, n_tensors, image);
}

int gguf_parse(const void *image, uint64_t bytes, const char *file, struct gguf *ret, struct error *e) {
    struct gguf g = {.file = file};
    struct cursor c = {image, (const unsigned char *)image + bytes, file, e};
    if (bytes == 0)
        return error_set(e, -EBADMSG, "%s: is empty", file);
    int r = parse(&c, &g, image);
    if (r < 0) {
        gguf_done(&g);
        return r;
    }
    *ret = g;
    return 0;
}

void gguf_done(struct gguf *g) {
    free(g->values);
    free(g->tensors);
    *g = (struct gguf){0};
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name) {
    const struct gguf_tensor wanted = {.name = {name, strlen(name)}};
    return g->n_tensors ? bsearch(&wanted, g->tensors, g->n_tensors, sizeof(wanted), by_name) : NULL;
}

const struct gguf_value *gguf_find(const struct gguf *g, const char *key) {
    const struct gguf_value wanted = {.key = {key, strlen(key)}};
    return g->n_values ? bsearch(&wanted, g->values, g->n_values, sizeof(wanted), by_key) : NULL;
}
