/* weights.h - one rank's weights, on its device, in the form the operations of a step take.
 *
 * Called by tp/worker/rank.c. Linears are packed from the mapped checkpoint, or lie in a packed file, or are made up
 * (dummy); the embedding table is replicated and may be used in the mapping, so checkpoint and packed file must outlive
 * the weights. Everything else is owned here. */
#pragma once

#include "kernels/kernels.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/tensor_names.h"
#include "tp/load/draft_vocab.h"
#include "tp/load/dummy_form.h"
#include "tp/load/packed.h"
#include "tp/load/shard.h"

#include <stdbool.h>

struct weights_layer {
    bool attention;
    uint32_t index;                /* among the layers of its kind: KV layer or GDN layer of the pool */
    float *input_norm, *post_norm; /* [H], +1 applied */
    struct k_linear *mixer_in;     /* q+gate|k|v or q|k|v|z|b|a */
    struct k_linear *mixer_out;    /* o_proj or out_proj, row-parallel */
    struct k_linear *gate_up, *down;
    float *q_norm, *k_norm;                   /* attention: [D], +1 applied */
    float *conv, *a_log, *dt_bias, *gdn_norm; /* GDN: k_gdn_weights */
};

struct weights {
    uint32_t n_layers;
    struct weights_layer *layers; /* [n_layers] */
    struct k_table *embedding;    /* [V][H] */
    enum k_dtype table_dtype;     /* its */
    float *final_norm;
    struct k_linear *head; /* NULL: this rank has no rows of the vocabulary */
    bool has_mtp;
    struct weights_layer mtp;
    float *mtp_norm_embedding, *mtp_norm_hidden, *mtp_norm;
    struct k_linear *mtp_fc;     /* [H][2H], replicated */
    struct k_linear *draft_head; /* this rank's share of the draft vocabulary's rows; NULL = there is none */
    uint64_t bytes;              /* as weights_bytes() counted them */
    uint64_t linear_bytes; /* of them, without the embedding table and the MTP layer: what a step reads */
};

struct weights_options {
    bool with_mtp;
    const struct draft_vocab *draft_vocab; /* with_mtp: whose rows of the head make drafts; NULL = all */
    bool dummy;                   /* no checkpoint: seeded values, not the same at another tp or rank count */
    uint64_t seed;                /* dummy */
    struct dummy_form dummy_form; /* what dummy linears are quantised like */
    const struct checkpoint *checkpoint; /* whose pages are let go after each layer; NULL: none are */
    const struct packed *packed; /* tiles that are used where they lie; NULL = everything is packed here */
    bool there;                  /* they lie in memory that was adopted (k_keep_adopt()): nothing is read */
    void (*progress)(
            void *user, uint64_t bytes_done, uint64_t bytes_total, const char *what); /* may be NULL */
    void *user;
};

/* What this rank's linears take packed, and its embedding table where it is not used in the mapping; without
 * allocating. tensors is NULL for dummy. */
int weights_bytes(const struct model_config *m, const struct shard *s, const struct model_tensors *tensors,
        const struct weights_options *options, uint64_t *ret, struct error *e);
/* Where weights that are kept (k_keep_begin()) come to lie, one after another as they are loaded. */
struct weights_places {
    uint64_t bytes; /* in all */
    uint64_t hash;  /* of each one's */
};
int weights_places(const struct model_config *m, const struct shard *s, const struct model_tensors *tensors,
        const struct weights_options *options, struct weights_places *ret, struct error *e);
/* Fills *w, which must be zero; after a failure weights_done() releases what was loaded. */
int weights_load(struct k_context *c, const struct model_config *m, const struct shard *s,
        const struct model_tensors *tensors, const struct weights_options *options, struct weights *w,
        struct error *e);
void weights_done(struct k_context *c, struct weights *w);
/* K_F32 when every matrix of the model is F32, else K_BF16: the KV dtype that --kv-cache-dtype auto means. */
enum k_dtype weights_kv_dtype(const struct model_tensors *tensors);
