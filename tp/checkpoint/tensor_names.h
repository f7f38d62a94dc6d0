/* tensor_names.h - finds the tensors of a Qwen3.5 language model in a checkpoint and checks what they are.
 *
 * Called by the model loader and by the checkpoint tool, once, after checkpoint_open() and
 * model_config_load(). It is the only place that knows Hugging Face's names. Accepts both prefixes
 * (model.language_model. of the multimodal files, model. of text-only ones). Every tensor that the model
 * needs is there afterwards, F32, BF16 or F16, aligned for its dtype, or, where it is a matrix other than the
 * embedding, TENSOR_QUANTISED, put together from its parts (quant_tensor.h); and it has exactly the shape that
 * the configuration says. What is not, is refused by file, tensor, expected and found:
 *
 *     model-00003.safetensors: model.layers.12.mlp.up_proj.weight: expected [8, 4], found [8, 6]
 *
 * Pointers are into the checkpoint, which must outlive the result. Shapes below use the letters of kernels.h,
 * full (not per rank); matrices are [rows = outputs][columns = inputs]. */
#pragma once

#include "base/error.h"
#include "base/limits.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/safetensors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct attention_tensors {
    const struct tensor *q;               /* [Hq*2D][H]: per head D query rows, then D gate rows */
    const struct tensor *k, *v;           /* [Hkv*D][H] */
    const struct tensor *o;               /* [H][Hq*D] */
    const struct tensor *q_norm, *k_norm; /* [D], zero-centred */
};

struct gdn_tensors {
    const struct tensor *in_qkv;  /* [2*Hk*dk + Hv*dv][H]: all q rows, all k rows, all v rows */
    const struct tensor *in_z;    /* [Hv*dv][H] */
    const struct tensor *in_b;    /* [Hv][H] */
    const struct tensor *in_a;    /* [Hv][H] */
    const struct tensor *conv;    /* [2*Hk*dk + Hv*dv][W] (or [..][1][W], the same bytes), newest tap last */
    const struct tensor *dt_bias; /* [Hv] */
    const struct tensor *a_log;   /* [Hv] */
    const struct tensor *norm;    /* [dv], plain (not zero-centred) */
    const struct tensor *out;     /* [H][Hv*dv] */
};

struct layer_tensors {
    const struct tensor *input_norm, *post_norm; /* [H], zero-centred */
    bool is_attention;
    struct attention_tensors attention; /* all NULL in a GDN layer */
    struct gdn_tensors gdn;             /* all NULL in an attention layer */
    const struct tensor *gate, *up;     /* [I][H] */
    const struct tensor *down;          /* [H][I] */
};

struct mtp_tensors {
    const struct tensor *fc;             /* [H][2H]: the embedding's columns first */
    const struct tensor *norm_embedding; /* [H], zero-centred */
    const struct tensor *norm_hidden;    /* [H], zero-centred */
    const struct tensor *norm;           /* [H], zero-centred */
    struct layer_tensors layer;          /* an attention layer */
};

struct model_tensors {
    const struct tensor *embed; /* [V][H] */
    const struct tensor *norm;  /* [H], zero-centred */
    /* [V][H]; == embed where tied, except in a GGUF file with a quantised embedding: there this is the quantised matrix
     * and embed a dense copy of it. */
    const struct tensor *lm_head;
    bool tied; /* the head is the embedding: tie_word_embeddings, and no head in the files */
    struct layer_tensors *layers; /* [n_layers] */
    uint32_t n_layers;
    bool has_mtp; /* the configuration announces an MTP layer and the checkpoint has it, all 15 tensors */
    struct mtp_tensors mtp; /* all NULL without */
    const char *prefix;     /* "model.language_model." or "model." */

    uint64_t bytes, mtp_bytes;     /* of the tensors named above; a tied head is counted once; MTP apart */
    uint64_t vision_bytes;         /* of model.visual.*, which is not used */
    uint32_t n_used, n_vision;     /* tensors of the files; MTP's are in n_used where has_mtp */
    const struct tensor **ignored; /* tensors that are neither: stepped over, for inspect to name */
    uint32_t n_ignored;
    struct quant_tensor *quantised; /* the matrices put together here, owned; NULL: none */
    struct gguf_parts *gguf; /* of a GGUF checkpoint: what the pointers above lead into, owned; else NULL */
    /* Of a GGUF checkpoint: memory of this process that holds copies, and whether the embedding is one of them. */
    uint64_t copied_bytes;
    bool embed_copied;
};

/* 0; -ENOENT: a tensor is missing; -EINVAL: a shape differs; -ENOTSUP: a dtype that is not read. A checkpoint
 * with some MTP tensors but not all is refused; one with none where the configuration announces MTP is
 * accepted. */
int model_tensors_resolve(const struct checkpoint *c, const struct model_config *m,
        struct model_tensors **ret, struct error *e);
/* The same to look at sizes only: what would be copied into memory (of GGUF files) is not, so data must not be
 * read. */
int model_tensors_survey(const struct checkpoint *c, const struct model_config *m, struct model_tensors **ret,
        struct error *e);
struct model_tensors *model_tensors_free(struct model_tensors *t); /* NULL ok; returns NULL */
