/* gguf_model.h - a Qwen3.5 model in GGUF files, given the meaning that it has in a Hugging Face checkpoint.
 *
 * Between checkpoint.c, model_config.c and tensor_names.c, which hand over to it where the model is a GGUF one; nobody
 * else includes it. What llama.cpp's converter changes is undone here:
 *
 *   names     blk.3.ffn_up.weight is model.layers.3.mlp.up_proj.weight; the MTP layer is the block after the last
 *   norms     stored as 1 + w (the GDN norm is not): w again
 *   ssm_a     stored as -exp(A_log): A_log again
 *   V heads   where there are more of them than K heads, head k * r + i lies at place i * Hk + k (r = Hv / Hk): back,
 *             in rows or columns
 *
 * Quantised matrices become a struct quant_matrix over the file's blocks, which moves heads as it is read. Dense ones
 * are used where they lie; copied into memory are vectors, dense matrices with moved heads, and a quantised embedding,
 * because rows are gathered from it: that one becomes F16. */
#pragma once

#include "base/gguf.h"
#include "tp/checkpoint/safetensors_file.h"
#include "tp/checkpoint/tensor_names.h"

/* --- gguf_checkpoint.c: the files --- */

struct gguf_checkpoint;
int gguf_checkpoint_open(const struct gguf_files *files, struct gguf_checkpoint **ret, struct error *e);
struct gguf_checkpoint *gguf_checkpoint_free(struct gguf_checkpoint *c);
void gguf_checkpoint_scattered(const struct gguf_checkpoint *c, bool scattered);
void gguf_checkpoint_release(const struct gguf_checkpoint *c); /* see checkpoint_release() */
/* Appends all tensors under the names of the file; a quantised one is U8 with dims [..., bytes of a row]. */
int gguf_checkpoint_list(const struct gguf_checkpoint *c, struct tensor_list *list, struct error *e);
const struct gguf_tensor *gguf_checkpoint_find(
        const struct gguf_checkpoint *c, const char *name, const char **ret_file); /* NULL if absent */
const struct gguf *gguf_checkpoint_metadata(const struct gguf_checkpoint *c);      /* of the first file */
const char *gguf_checkpoint_file(const struct gguf_checkpoint *c); /* base name of the first */
uint64_t gguf_checkpoint_bytes(const struct gguf_checkpoint *c);
size_t gguf_checkpoint_files(const struct gguf_checkpoint *c);
/* The GGUF side of a checkpoint; NULL: it is not one. In checkpoint.c. */
const struct gguf_checkpoint *checkpoint_gguf(const struct checkpoint *c);

/* --- gguf_config.c: the sizes --- */

int gguf_model_config(const struct gguf *g, struct model_config *ret, struct error *e);

/* --- gguf_matrix.c: quantised matrices --- */

/* Where the V heads of this matrix's rows or columns are: index i is at gguf_order_at(). */
struct gguf_order {
    uint32_t first, unit;    /* heads begin at `first`, `unit` rows or columns each */
    uint32_t k_heads, ratio; /* ratio < 2: nothing is moved */
};
static inline uint32_t gguf_order_at(const struct gguf_order *o, uint32_t i) {
    if (o->ratio < 2 || i < o->first)
        return i;
    uint32_t head = (i - o->first) / o->unit, within = (i - o->first) % o->unit;
    return o->first + (head % o->ratio * o->k_heads + head / o->ratio) * o->unit + within;
}

struct gguf_matrix { /* must stay where it is: q.file points to it */
    struct quant_matrix q;
    enum gguf_tensor_type type;
    const unsigned char *data;
    uint64_t row_bytes;
    struct gguf_order rows, columns;
};
bool gguf_is_quantised(enum gguf_tensor_type t);
/* t: quantised, two dimensions. -ENOTSUP: groups of this type do not fit into the heads that columns move. */
int gguf_matrix_make(const struct gguf_tensor *t, const struct gguf_order *rows,
        const struct gguf_order *columns, struct gguf_matrix *ret, struct error *e);
/* Row r as F16, rounded to nearest even. -ERANGE: a value is no finite F16. */
int gguf_matrix_row_f16(const struct gguf_matrix *m, uint32_t row, uint16_t *ret);

/* --- gguf_tensors.c: the tensors --- */

struct gguf_parts; /* what model_tensors made of a GGUF file points into */
struct gguf_parts *gguf_parts_free(struct gguf_parts *p);
int gguf_tensors_resolve(const struct checkpoint *c, const struct model_config *m, bool with_copies,
        struct model_tensors **ret, struct error *e);
