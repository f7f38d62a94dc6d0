/* gguf.h - the GGUF format, versions 2 and 3: metadata, tensor infos, data, out of a mapped file.
 *
 * Called by tp/checkpoint (weights) and by daemon/text (the tokenizer); it knows the format and no model. A struct gguf
 * owns its tables; everything that it names lies in the image, which must outlive it. All of the file is hostile:
 * counts, lengths, types, alignment and places are checked before they are believed, keys and names may be there
 * once, and tensors follow each other as the format says. Sentences begin with the file's name. */
#pragma once

#include "base/error.h"
#include "base/file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GGUF_DIMS_MAX 4u

enum gguf_value_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
    GGUF_VALUE_TYPES
};

/* The types of tensors that are read. A file may have others (gguf_tensor_is_read()). */
enum gguf_tensor_type {
    GGUF_TENSOR_F32 = 0,
    GGUF_TENSOR_F16 = 1,
    GGUF_TENSOR_Q4_0 = 2,
    GGUF_TENSOR_Q4_1 = 3,
    GGUF_TENSOR_Q5_0 = 6,
    GGUF_TENSOR_Q5_1 = 7,
    GGUF_TENSOR_Q8_0 = 8,
    GGUF_TENSOR_Q4_K = 12,
    GGUF_TENSOR_Q5_K = 13,
    GGUF_TENSOR_Q6_K = 14,
    GGUF_TENSOR_BF16 = 30,
};

struct gguf_string { /* any bytes, not NUL-terminated */
    const char *data;
    uint64_t bytes;
};

struct gguf_value {
    struct gguf_string key;
    enum gguf_value_type type;
    enum gguf_value_type element; /* of an array; never GGUF_ARRAY */
    uint64_t n;                   /* elements of an array */
    const unsigned char *data;    /* unaligned */
};

struct gguf_tensor {
    struct gguf_string name; /* without NUL */
    enum gguf_tensor_type type;
    uint32_t n_dims;
    uint64_t dims[GGUF_DIMS_MAX]; /* innermost first: dims[0] is the length of a row */
    const void *data;             /* aligned to the file's alignment */
    uint64_t bytes;               /* of a type that is not read: up to the next tensor, or the end */
};

struct gguf {
    const char *file; /* the caller's */
    uint32_t version, alignment;
    struct gguf_value *values; /* sorted by key */
    size_t n_values;
    struct gguf_tensor *tensors; /* sorted by name */
    size_t n_tensors;
};

/* -EBADMSG: broken or truncated; -ENOTSUP: another version or byte order; -E2BIG: a limit; -ENOMEM. */
int gguf_parse(const void *image, uint64_t bytes, const char *file, struct gguf *ret, struct error *e);
void gguf_done(struct gguf *g); /* a zeroed one is fine */

const struct gguf_value *gguf_find(const struct gguf *g, const char *key);          /* NULL if absent */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* NULL if absent */
bool gguf_tensor_is_read(const struct gguf_tensor *t); /* is its type one of the above? */
int gguf_tensor_check_read(
        const struct gguf_tensor *t, const char *file, struct error *e); /* else -ENOTSUP */
const char *gguf_tensor_type_name(enum gguf_tensor_type t);              /* "Q4_K"; or "unknown" */
/* Elements of a block, and its bytes. */
void gguf_tensor_block(enum gguf_tensor_type t, uint32_t *ret_elements, uint32_t *ret_bytes);

/* The value of key; -ENOENT where it is missing, -EINVAL where it is of another kind, each with a sentence. A number
 * may be stored in any of the format's widths. */
int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct error *e);
int gguf_get_real(const struct gguf *g, const char *key, double *ret, struct error *e);
int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct error *e);
int gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret, struct error *e);
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type element,
        const struct gguf_value **ret, struct error *e);
bool gguf_string_is(struct gguf_string s, const char *text);
/* Element i of an array of whole numbers; -EINVAL: not such an array, no such element, or a negative number. */
int gguf_array_u64(const struct gguf_value *v, uint64_t i, uint64_t *ret);
/* Walks an array of strings: *at is v->data at first, and is moved behind the string that is returned. The caller
 * counts to v->n. */
struct gguf_string gguf_next_string(const unsigned char **at);

/* Where a model's GGUF files are. */
struct gguf_files {
    char first[PATH_MAX]; /* the file, or part 1 of a set */
    char folder[PATH_MAX];
    uint32_t n; /* files of the set; 1: a file of its own */
};
/* path: a GGUF file, any part of a split set ("...-00001-of-00003.gguf"), or a folder that has no safetensors
 * checkpoint and exactly one GGUF model (mmproj*.gguf, a vision projector, is stepped over). 1: *ret is set; 0: path
 * is no GGUF model (or is not there); -EINVAL: several models lie in the folder. */
int gguf_locate(const char *path, struct gguf_files *ret, struct error *e);
/* The path of part i, from 0. */
int gguf_part_path(const struct gguf_files *f, uint32_t i, char ret[PATH_MAX], struct error *e);
