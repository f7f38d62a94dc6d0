/* safetensors.c - the format: 8 bytes of little-endian header length, a JSON header, the data.
 *
 * The header maps names to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from the end of
 * the header; "__metadata__" is free text. As the format's definition says, tensors cover the data without
 * holes. */
#include "base/json_pull.h"
#include "tp/checkpoint/safetensors_file.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES    8u
#define NAME_BYTES_MAX  1024u
#define NAME_SHOWN      200 /* characters of a name in a message */
#define FIRST_LIST_SIZE 64u

static const struct {
    const char *name;
    uint32_t bits;
} DTYPES[TENSOR_DTYPES] = {
        [TENSOR_F32] = {"F32", 32},
        [TENSOR_BF16] = {"BF16", 16},
        [TENSOR_F16] = {"F16", 16},
        [TENSOR_F64] = {"F64", 64},
        [TENSOR_I64] = {"I64", 64},
        [TENSOR_I32] = {"I32", 32},
        [TENSOR_I16] = {"I16", 16},
        [TENSOR_I8] = {"I8", 8},
        [TENSOR_U8] = {"U8", 8},
        [TENSOR_BOOL] = {"BOOL", 8},
        [TENSOR_F8_E4M3] = {"F8_E4M3", 8},
        [TENSOR_F8_E5M2] = {"F8_E5M2", 8},
        [TENSOR_U16] = {"U16", 16},
        [TENSOR_U32] = {"U32", 32},
        [TENSOR_U64] = {"U64", 64},
        [TENSOR_C64] = {"C64", 64},
        [TENSOR_F8_E8M0] = {"F8_E8M0", 8},
        [TENSOR_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
        [TENSOR_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
        [TENSOR_F6_E2M3] = {"F6_E2M3", 6},
        [TENSOR_F6_E3M2] = {"F6_E3M2", 6},
        [TENSOR_F4] = {"F4", 4},
        [TENSOR_UNKNOWN] = {"unknown", 0},
};

const char *tensor_dtype_name(enum tensor_dtype t) {
    assert(t < TENSOR_DTYPES);
    return DTYPES[t].name;
}

uint32_t tensor_dtype_bits(enum tensor_dtype t) {
    assert(t < TENSOR_DTYPES);
    return DTYPES[t].bits;
}

size_t tensor_dtype_bytes(enum tensor_dtype t) {
    const uint32_t bits = tensor_dtype_bits(t);
    return bits % 8 == 0 ? bits / 8 : 0;
}

const char *tensor_dtype_text(const struct tensor *t) {
    return t->dtype == TENSOR_UNKNOWN ? t->unknown : tensor_dtype_name(t->dtype);
}

const char *tensor_shape_text(const struct tensor *t, char to[TENSOR_SHAPE_TEXT]) {
    size_t at = 1;
    snprintf(to, TENSOR_SHAPE_TEXT, "[");
    for (uint32_t i = 0; i < t->n_dims; i++)
        at += (size_t)snprintf(
                to + at, TENSOR_SHAPE_TEXT - at, "%s%llu", i ? ", " : "", (unsigned long long)t->dims[i]);
    snprintf(to + at, TENSOR_SHAPE_TEXT - at, "]");
    return to;
}

/* --- the list --- */

void tensor_list_done(struct tensor_list *list) {
    for (size_t i = 0; i < list->n; i++)
        free((char *)(uintptr_t)list->at[i].name);
    free(list->at);
    *list = (struct tensor_list){0};
}

/* A zeroed tensor at the end, with its name. */
static int list_add(struct tensor_list *list, const char *name, size_t name_bytes, const char *file,
        struct tensor **ret, struct error *e) {
    if (list->n == SAFETENSORS_TENSORS_MAX)
        return error_set(e, -E2BIG, "%s: more than %u tensors", file, SAFETENSORS_TENSORS_MAX);
    if (list->n == list->size) {
        size_t size = list->size ? list->size * 2 : FIRST_LIST_SIZE;
        struct tensor *grown = realloc(list->at, size * sizeof(*grown));
        if (!grown)
            return error_set(e, -ENOMEM, "%s: out of memory for %zu tensors", file, size);
        list->at = grown;
        list->size = size;
    }
    char *copy = malloc(name_bytes + 1);
    if (!copy)
        return error_set(e, -ENOMEM, "%s: out of memory for a tensor's name", file);
    memcpy(copy, name, name_bytes);
    copy[name_bytes] = '\0';
    struct tensor *t = &list->at[list->n++];
    *t = (struct tensor){.name = copy, .file = file};
    *ret = t;
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int tensor_list_sort(struct tensor_list *list, struct error *e) {
    if (list->n > 0)
        qsort(list->at, list->n, sizeof(*list->at), by_name);
    for (size_t i = 1; i < list->n; i++) {
        const struct tensor *t = &list->at[i], *before = &list->at[i - 1];
        if (strcmp(t->name, before->name) != 0)
            continue;
        if (strcmp(t->file, before->file) == 0)
            return error_set(e, -EBADMSG, "%s: %.*s: is in the header twice", t->file, NAME_SHOWN, t->name);
        return error_set(e, -EBADMSG, "%s: %.*s: is in %s too", t->file, NAME_SHOWN, t->name, before->file);
    }
    return 0;
}

/* --- one entry of the header --- */

struct header {
    struct json_pull json;
    const char *file;
    const unsigned char *data; /* first byte after the header */
    uint64_t data_bytes;
};

static int read_dtype(struct header *h, struct tensor *t, struct error *e) {
    int r = json_pull_expect(&h->json, PULL_STRING, e);
    if (r < 0)
        return r;
    for (int i = 0; i < TENSOR_UNKNOWN; i++)
        if (json_pull_is(&h->json, DTYPES[i].name)) {
            t->dtype = (enum tensor_dtype)i;
            return 0;
        }
    t->dtype = TENSOR_UNKNOWN;
    for (size_t i = 0; i < h->json.string_bytes && i + 1 < sizeof(t->unknown); i++) {
        const char c = h->json.string[i]; /* it may end up in a terminal */
        t->unknown[i] = c > ' ' && c < 0x7f ? c : '?';
    }
    return 0;
}

static int read_shape(struct header *h, struct tensor *t, struct error *e) {
    int r = json_pull_expect(&h->json, PULL_ARRAY_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(&h->json, e)) != PULL_ARRAY_END) {
        uint64_t dim = 0;
        if (r >= 0)
            r = json_pull_u64(&h->json, &dim, e);
        if (r < 0)
            return r;
        if (t->n_dims == TENSOR_DIMS_MAX)
            return error_set(e, -E2BIG, "%s: %.*s: has more than %u dimensions", h->file, NAME_SHOWN, t->name,
                    TENSOR_DIMS_MAX);
        t->dims[t->n_dims++] = dim;
    }
    return r < 0 ? r : 0;
}

static int read_offsets(struct header *h, uint64_t ret[2], struct error *e) {
    int r = json_pull_expect(&h->json, PULL_ARRAY_BEGIN, e);
    for (int i = 0; i < 2 && r >= 0; i++) {
        r = json_pull_expect(&h->json, PULL_NUMBER, e);
        if (r >= 0)
            r = json_pull_u64(&h->json, &ret[i], e);
    }
    return r < 0 ? r : json_pull_expect(&h->json, PULL_ARRAY_END, e);
}

/* The bytes that its shape and dtype need. */
static int size_tensor(const struct header *h, const struct tensor *t, uint64_t *ret, struct error *e) {
    const uint32_t bits = tensor_dtype_bits(t->dtype);
    uint64_t n = 1, whole, rest; /* of 8 elements each; elements */
    bool empty = false, overflow = false;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        empty = empty || t->dims[i] == 0;
        overflow = __builtin_mul_overflow(n, t->dims[i], &n) || overflow;
    }
    *ret = 0;
    if (empty)
        return 0;
    whole = n / 8;
    rest = n % 8 * bits;
    overflow = __builtin_mul_overflow(whole, bits, ret) || overflow;
    if (overflow || __builtin_add_overflow(*ret, rest / 8, ret))
        return error_set(e, -EBADMSG, "%s: %.*s: its shape has more bytes than 64 bits can count", h->file,
                NAME_SHOWN, t->name);
    if (rest % 8 != 0)
        return error_set(e, -EBADMSG, "%s: %.*s: %llu elements of %s are no whole bytes", h->file, NAME_SHOWN,
                t->name, (unsigned long long)n, tensor_dtype_name(t->dtype));
    return 0;
}

/* Do shape, dtype, offsets and file agree? Sets data and bytes. */
static int place_tensor(
        const struct header *h, struct tensor *t, const uint64_t offsets[2], struct error *e) {
    uint64_t bytes = 0;
    int r = t->dtype == TENSOR_UNKNOWN ? 0 : size_tensor(h, t, &bytes, e);
    if (r < 0)
        return r;
    if (offsets[0] > offsets[1])
        return error_set(e, -EBADMSG, "%s: %.*s: data_offsets [%llu, %llu] run backwards", h->file,
                NAME_SHOWN, t->name, (unsigned long long)offsets[0], (unsigned long long)offsets[1]);
    if (t->dtype == TENSOR_UNKNOWN) /* whatever it needs */
        bytes = offsets[1] - offsets[0];
    if (offsets[1] - offsets[0] != bytes)
        return error_set(e, -EBADMSG, "%s: %.*s: its shape needs %llu bytes of %s, data_offsets has %llu",
                h->file, NAME_SHOWN, t->name, (unsigned long long)bytes, tensor_dtype_name(t->dtype),
                (unsigned long long)(offsets[1] - offsets[0]));
    if (offsets[1] > h->data_bytes)
        return error_set(e, -EBADMSG,
                "%s: %.*s: ends at byte %llu of the data, but the file has %llu: it is truncated, fetch it "
                "again",
                h->file, NAME_SHOWN, t->name, (unsigned long long)offsets[1],
                (unsigned long long)h->data_bytes);
    t->data = h->data + offsets[0];
    t->bytes = bytes;
    return 0;
}

/* The entry whose key is the current event. */
static int read_tensor(struct header *h, struct tensor_list *list, struct error *e) {
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4, ALL = 7 };
    static const char *const missing[] = {[0] = "dtype", [DTYPE] = "shape", [DTYPE | SHAPE] = "data_offsets"};
    struct json_pull *p = &h->json;
    struct tensor *t = NULL;
    uint64_t offsets[2] = {0, 0};
    int seen = 0;
    if (p->string_bytes == 0 || memchr(p->string, '\0', p->string_bytes))
        return json_pull_error(
                p, -EBADMSG, e, "a tensor's name may not be empty and may not have a NUL in it");
    if (p->string_bytes > NAME_BYTES_MAX)
        return json_pull_error(
                p, -E2BIG, e, "a tensor's name may have %u bytes, not %zu", NAME_BYTES_MAX, p->string_bytes);
    int r = list_add(list, p->string, p->string_bytes, h->file, &t, e);
    if (r >= 0)
        r = json_pull_expect(p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_KEY) {
        int field = json_pull_is(p, "dtype")   ? DTYPE
                    : json_pull_is(p, "shape") ? SHAPE
                                               : (json_pull_is(p, "data_offsets") ? OFFSETS : 0);
        if (seen & field)
            return json_pull_error(p, -EBADMSG, e, "%.*s has this field twice", NAME_SHOWN, t->name);
        seen |= field;
        r = field == DTYPE   ? read_dtype(h, t, e)
            : field == SHAPE ? read_shape(h, t, e)
                             : (field == OFFSETS ? read_offsets(h, offsets, e) : json_pull_skip(p, e));
    }
    if (r < 0)
        return r;
    if (seen != ALL) {
        int first = !(seen & DTYPE) ? 0 : !(seen & SHAPE) ? DTYPE : DTYPE | SHAPE;
        return error_set(e, -EBADMSG, "%s: %.*s: has no '%s'", h->file, NAME_SHOWN, t->name, missing[first]);
    }
    return place_tensor(h, t, offsets, e);
}

/* --- the file --- */

static int by_place(const void *a, const void *b) {
    const struct tensor *x = *(const struct tensor *const *)a, *y = *(const struct tensor *const *)b;
    uintptr_t px = (uintptr_t)x->data, py = (uintptr_t)y->data;
    if (px != py)
        return px < py ? -1 : 1;
    /* An empty tensor lies before the one that begins where it is. */
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The tensors must cover the data from first byte to last, each byte once. */
static int check_cover(const struct header *h, const struct tensor *tensors, size_t n, struct error *e) {
    const struct tensor **order = malloc((n + 1) * sizeof(*order));
    uint64_t covered = 0;
    int r = 0;
    if (!order)
        return error_set(e, -ENOMEM, "%s: out of memory for %zu tensors", h->file, n);
    for (size_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof(*order), by_place);
    for (size_t i = 0; i < n && r == 0; i++) {
        uint64_t begin = (uint64_t)((const unsigned char *)order[i]->data - h->data);
        if (begin < covered)
            r = error_set(e, -EBADMSG, "%s: %.*s: its data overlap those of %.*s", h->file, NAME_SHOWN,
                    order[i]->name, NAME_SHOWN, order[i - 1]->name);
        else if (begin > covered)
            r = error_set(e, -EBADMSG, "%s: %.*s: %llu bytes before it belong to no tensor", h->file,
                    NAME_SHOWN, order[i]->name, (unsigned long long)(begin - covered));
        covered = begin + order[i]->bytes;
    }
    free(order);
    if (r == 0 && covered != h->data_bytes)
        r = error_set(e, -EBADMSG, "%s: %llu bytes at its end belong to no tensor", h->file,
                (unsigned long long)(h->data_bytes - covered));
    return r;
}

static int check_length(
        const unsigned char *image, uint64_t bytes, const char *file, uint64_t *ret, struct error *e) {
    uint64_t length = 0;
    if (bytes < LENGTH_BYTES)
        return error_set(e, -EBADMSG, "%s: has %llu bytes, which is too short for a safetensors file", file,
                (unsigned long long)bytes);
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)image[i] << (8 * i);
    if (length > SAFETENSORS_HEADER_MAX)
        return error_set(e, -E2BIG,
                "%s: its header would have %llu bytes, at most %u are read: is it a safetensors file?", file,
                (unsigned long long)length, SAFETENSORS_HEADER_MAX);
    if (length > bytes - LENGTH_BYTES)
        return error_set(e, -EBADMSG,
                "%s: its header has %llu bytes, but the file has %llu: it is truncated, fetch it again", file,
                (unsigned long long)length, (unsigned long long)bytes);
    *ret = length;
    return 0;
}

int safetensors_parse(
        const void *image, uint64_t bytes, const char *file, struct tensor_list *list, struct error *e) {
    const unsigned char *begin = image;
    uint64_t length = 0;
    size_t first = list->n;
    bool metadata = false;
    int r = check_length(begin, bytes, file, &length, e);
    if (r < 0)
        return r;
    struct header h = {
            .file = file, .data = begin + LENGTH_BYTES + length, .data_bytes = bytes - LENGTH_BYTES - length};
    struct json_pull *p = &h.json;
    json_pull_init(p, (const char *)begin + LENGTH_BYTES, (size_t)length, file);
    r = json_pull_expect(p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_KEY) {
        if (!json_pull_is(p, "__metadata__"))
            r = read_tensor(&h, list, e);
        else if (metadata)
            r = json_pull_error(p, -EBADMSG, e, "__metadata__ is there twice");
        else {
            metadata = true;
            r = json_pull_skip(p, e);
        }
    }
    if (r >= 0)
        r = json_pull_expect(p, PULL_DOCUMENT_END, e);
    json_pull_done(p);
    if (r < 0)
        return r;
    return check_cover(&h, list->n > first ? list->at + first : NULL, list->n - first, e);
}

int safetensors_check(const void *image, uint64_t bytes, const char *file, struct error *e) {
    struct tensor_list list = {0};
    int r = safetensors_parse(image, bytes, file, &list, e);
    if (r >= 0)
        r = tensor_list_sort(&list, e);
    tensor_list_done(&list);
    return r;
}
