/* linears.h - which matrices of the checkpoint make up each linear of the model, and in which order their rows and
 * columns are taken.
 *
 * Called by weights.c, which loads a rank's part of each, and by packed_write.c, which packs them whole. The one place
 * that knows how the permutations of act-order checkpoints are undone:
 *
 *   down_proj            its columns lie sorted by group; the rows of gate and up are taken in that order, so that
 *                        position k of the product between them is what column k wants. Works at every tp.
 *   q|k|v, qkv|z|b|a,    all quantised matrices of one linear must have one order; the input is permuted, and dense
 *   gate|up, head, fc    matrices of the linear are packed in that order too.
 *   o_proj, out_proj     the input is permuted within a rank; at tp > 1 only where every rank's columns are a
 *                        permutation of its own inputs.
 *
 * Pointers lead into the tensors, which must outlive the linear. Nothing is allocated here except where said. */
#pragma once

#include "tp/checkpoint/tensor_names.h"
#include "tp/load/shard.h"

#define LINEAR_MATRICES_MAX 4u
#define LINEAR_NAME_MAX     96u

enum linear_kind {
    LINEAR_ATTENTION_IN, /* q, k, v */
    LINEAR_GDN_IN,       /* qkv, z, b, a */
    LINEAR_GATE_UP,      /* gate, up */
    LINEAR_ROW_PARALLEL, /* o_proj, out_proj, down_proj */
    LINEAR_HEAD,
    LINEAR_REPLICATED, /* mtp.fc */
    LINEAR_DRAFT_HEAD, /* some rows of the head */
};

struct linear {
    enum linear_kind kind;
    char name[LINEAR_NAME_MAX]; /* "layers.3.mlp.gate_up" */
    struct shard_matrix m[LINEAR_MATRICES_MAX];
    const struct tensor *t[LINEAR_MATRICES_MAX]; /* NULL without a checkpoint */
    uint32_t n;
    const uint32_t *order; /* of the full K, as in k_linear_spec; NULL = as the inputs come */
};

enum { LINEAR_MIXER_IN, LINEAR_MIXER_OUT, LINEAR_MLP_IN, LINEAR_MLP_OUT, LINEARS_OF_LAYER };

/* t is NULL where there is no checkpoint (sizes only). -ENOTSUP: orders that do not go together, by file and tensor. */
int linears_of_layer(const struct model_config *m, const struct layer_tensors *t, bool attention,
        const char *prefix, struct linear ret[LINEARS_OF_LAYER], struct error *e);
void linear_of_fc(const struct model_config *m, const struct tensor *fc, struct linear *ret);
void linear_of_head(const struct model_config *m, const struct tensor *head, struct linear *ret);
/* Rows ids[n] of the head, in this order; ids NULL: n rows of made-up weights. */
void linear_of_draft_head(const struct model_config *m, const struct tensor *head, const uint32_t *ids,
        uint32_t n, struct linear *ret);

/* One rank's part. *ret_order is what k_linear_spec wants: into x, or, where *ret_owned is set, the caller's to free().
 * -ENOTSUP: an order that this tp cannot undo, by file and tensor. */
int linear_shard(const struct linear *x, const struct shard *s, struct shard_linear *ret,
        const uint32_t **ret_order, uint32_t **ret_owned, struct error *e);

/* Can tiles of matrix i serve every tp that the model can be split over? (Every rank's rows begin at a strip.) */
bool linear_tiles_serve(const struct linear *x, uint32_t i, const struct model_config *m);
