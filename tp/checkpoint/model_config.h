/* model_config.h - what config.json, or the metadata of a GGUF file, says of a Qwen3.5 model, checked and complete.
 *
 * Read once at load by tp/ and by the checkpoint tool. Accepts the multimodal nesting (text_config) and the
 * text-only form. A value that this code does not implement (another hidden_act, attention_bias, MoE, rope
 * scaling, ...) is refused by name. Sizes are bounded by base/limits.h. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONV_KERNEL_MIN 2u /* taps of the convolution */
#define CONV_KERNEL_MAX 8u

struct model_config {
    uint32_t hidden_size, intermediate_size, vocab_size, n_layers;
    uint32_t q_heads, kv_heads, head_dim, rotary_dim;
    uint32_t gdn_k_heads, gdn_v_heads, gdn_k_dim, gdn_v_dim, conv_kernel;
    uint32_t max_position_embeddings; /* at most CONTEXT_MAX, whatever the file says */
    uint32_t mtp_layers;              /* 0 or 1: what config.json announces */
    /* The head is the embedding where the file has no head (model_tensors.tied). Where config.json has a text_config
     * the value beside it counts, false if absent, and never the one in it. */
    bool tie_word_embeddings;
    bool is_attention[MODEL_LAYERS_MAX]; /* layer i is full attention, else GDN */
    float rms_eps;
    double rope_theta;
    uint32_t eos_ids[MODEL_STOP_IDS_MAX], n_eos_ids; /* config.json and generation_config.json together */
};

/* dir/config.json, or the metadata where dir is a GGUF model (gguf_locate() of base/gguf.h); and the eos ids of
 * generation_config.json where that file is there. */
int model_config_load(const char *dir, struct model_config *ret, struct error *e);
/* The same from memory; file is for messages. */
int model_config_parse(
        const char *json, size_t bytes, const char *file, struct model_config *ret, struct error *e);
/* What a file calls the sizes, for messages. */
struct model_config_names {
    const char *q_heads, *kv_heads, *head_dim, *gdn_k_heads, *gdn_v_heads, *gdn_v_dim;
};
/* Sizes that must fit each other, whatever tp is. file and path ("" or "text_config.") begin the sentence; names NULL:
 * as config.json has them. */
int model_config_check(const struct model_config *m, const char *file, const char *path,
        const struct model_config_names *names, struct error *e);
/* Can this model be split over tp ranks? 0; -EDOM with a sentence naming the size that does not divide and the values
 * of tp that work; -EINVAL when none works, with a sentence that does not blame tp. Rules: the sharding table
 * (tp/load/shard.h); every K splits in 8 leaves. The vocabulary may have any size. */
int model_config_check_tp(const struct model_config *m, uint32_t tp, struct error *e);
uint64_t model_config_parameters(const struct model_config *m); /* language model, MTP not counted */
