/* safetensors.h - reads a Hugging Face checkpoint's tensors: one file, or shards with an index.
 *
 * Called by tp/ at load and by the checkpoint tool. Files are mapped read-only; tensor data are pointers into
 * the mappings, valid until free. Everything in the files is checked before it is believed: header length,
 * JSON, dtypes, shapes, overflow, offsets (in range, matching the shape, without overlaps and holes),
 * duplicate names. A tensor of a dtype that is not read, even of one that nobody knows, matters to who wants
 * it only. A refusal begins with the file's base name and names the tensor. Not checked: whether a tensor's
 * data are aligned for its dtype (the format does not promise it).
 *
 * The mapping is the file: whoever truncates a shard while it is open makes reads beyond the new end raise
 * SIGBUS. Replace model files by rename, never in place. */
#pragma once

#include "base/error.h"
#include "base/limits.h"
#include "base/quant.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TENSOR_DIMS_MAX 8u

enum tensor_dtype {
    TENSOR_F32,
    TENSOR_BF16,
    TENSOR_F16,
    TENSOR_F64,
    TENSOR_I64,
    TENSOR_I32,
    TENSOR_I16,
    TENSOR_I8,
    TENSOR_U8,
    TENSOR_BOOL,
    TENSOR_F8_E4M3,
    TENSOR_F8_E5M2,
    TENSOR_U16, /* from here on: stepped over, never read */
    TENSOR_U32,
    TENSOR_U64,
    TENSOR_C64,
    TENSOR_F8_E8M0,
    TENSOR_F8_E4M3FNUZ,
    TENSOR_F8_E5M2FNUZ,
    TENSOR_F6_E2M3,
    TENSOR_F6_E3M2,
    TENSOR_F4,
    TENSOR_UNKNOWN, /* of a name that is not known here: tensor.unknown */
    TENSOR_DTYPES,
    TENSOR_QUANTISED = TENSOR_DTYPES /* no file's: a matrix that model_tensors_resolve() put together */
};
const char *tensor_dtype_name(enum tensor_dtype t); /* "BF16" */
uint32_t tensor_dtype_bits(enum tensor_dtype t);    /* of an element; 0: TENSOR_UNKNOWN */
size_t tensor_dtype_bytes(enum tensor_dtype t);     /* 0 where elements are no whole bytes, or unknown */

struct tensor {
    const char *name; /* owned by the checkpoint */
    const char *file; /* base name of its shard, for messages */
    enum tensor_dtype dtype;
    char unknown[16]; /* TENSOR_UNKNOWN: the beginning of what the file calls it */
    uint32_t n_dims;
    uint64_t dims[TENSOR_DIMS_MAX];
    /* At least one byte aligned; never NULL, also where bytes is 0. TENSOR_QUANTISED: NULL. */
    const void *data;
    uint64_t bytes;                   /* TENSOR_QUANTISED: of all the tensors that it is made of */
    const struct quant_matrix *quant; /* TENSOR_QUANTISED only: how to read it; dims are [rows][columns] */
    const struct tensor *scales;      /* where its scales lie, for messages; NULL: with the codes */
};

const char *tensor_dtype_text(const struct tensor *t); /* its name, also of an unknown one */
#define TENSOR_SHAPE_TEXT (TENSOR_DIMS_MAX * 22 + 3)
const char *tensor_shape_text(const struct tensor *t, char to[TENSOR_SHAPE_TEXT]); /* "[8, 4]"; returns to */

struct checkpoint;
/* dir: a model folder with model.safetensors, or model.safetensors.index.json and its shards; with both, the index if
 * it names model.safetensors. -ENOENT: no folder, no checkpoint in it, no shard at all; -EBADMSG: a file is broken;
 * -ENOTSUP: a quantisation in config.json that is not read; -E2BIG: a limit. Tensors and shards that the index names
 * and that are not there are noted only: see checkpoint_check_announced(). */
int checkpoint_open(const char *dir, struct checkpoint **ret, struct error *e);
/* One safetensors file by path (tests, goldens). */
int checkpoint_open_file(const char *path, struct checkpoint **ret, struct error *e);
struct checkpoint *checkpoint_free(struct checkpoint *c);
/* Lets go of the pages that were touched so far; tensors stay valid. For who has used a part up: after each layer. */
void checkpoint_release(const struct checkpoint *c);
/* Samples are about to be taken here and there (file_map_scattered()); or that is over. */
void checkpoint_scattered(const struct checkpoint *c, bool scattered);
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name); /* NULL if absent */
/* Refuses when the index names a tensor that begins with prefix and it is not there: -ENOENT, or -EBADMSG where it lies
 * in another shard than the index says. To be asked about all that is wanted, whether it was found or not. */
int checkpoint_check_announced(const struct checkpoint *c, const char *prefix, struct error *e);
size_t checkpoint_count(const struct checkpoint *c);
const struct tensor *checkpoint_at(const struct checkpoint *c, size_t i); /* in name order */
uint64_t checkpoint_bytes(const struct checkpoint *c);                    /* of the files */
size_t checkpoint_files(const struct checkpoint *c);
/* What the folder's config.json says of quantisation (quant_config.h); NULL if nothing. Owned by c. */
const struct quant_config *checkpoint_quantisation(const struct checkpoint *c);

/* Walks a whole file image in memory (length, header, data) through the same checks: what open does for each
 * shard and what the fuzzer calls. */
int safetensors_check(const void *image, uint64_t bytes, const char *file, struct error *e);
