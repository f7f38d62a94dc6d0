/* gguf_config.c - the metadata of a GGUF file as a struct model_config. See gguf_model.h. Refusals name the key. */
#include "tp/checkpoint/gguf_model.h"

#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <string.h>

#define ARCH           "qwen35"
#define KV_HEADS       ARCH ".attention.head_count_kv"
#define INTERVAL_USUAL 4u /* what llama.cpp takes where the key is missing */
#define THETA_USUAL    10000.0

static int check_architecture(const struct gguf *g, struct error *e) {
    struct gguf_string name, type;
    int r = gguf_get_string(g, "general.architecture", &name, e);
    if (r < 0)
        return r;
    if (gguf_string_is(name, ARCH "moe"))
        return error_set(e, -ENOTSUP,
                "%s: general.architecture is " ARCH "moe: mixture of experts is not supported yet", g->file);
    if (!gguf_string_is(name, ARCH))
        return error_set(e, -ENOTSUP,
                "%s: general.architecture is '%.*s', which is not supported: only " ARCH " is", g->file,
                name.bytes < 60 ? (int)name.bytes : 60, name.data);
    if (!gguf_find(g, "general.type"))
        return 0;
    r = gguf_get_string(g, "general.type", &type, e);
    if (r == 0 && !gguf_string_is(type, "model"))
        r = error_set(e, -ENOTSUP, "%s: general.type is '%.*s', which is not supported: only model is",
                g->file, type.bytes < 60 ? (int)type.bytes : 60, type.data);
    return r;
}

/* What a dense model does not have, and what is not done. */
static int check_supported(const struct gguf *g, struct error *e) {
    static const char experts[] = ARCH ".expert_count", scaling[] = ARCH ".rope.scaling.type";
    uint64_t n = 0;
    struct gguf_string kind = {0};
    if (gguf_find(g, experts)) {
        int r = gguf_get_u64(g, experts, &n, e);
        if (r < 0)
            return r;
        if (n > 0)
            return error_set(e, -ENOTSUP, "%s: %s is %llu: mixture of experts is not supported yet", g->file,
                    experts, (unsigned long long)n);
    }
    if (gguf_find(g, scaling)) {
        int r = gguf_get_string(g, scaling, &kind, e);
        if (r < 0)
            return r;
        if (!gguf_string_is(kind, "none"))
            return error_set(e, -ENOTSUP, "%s: %s is '%.*s', which is not supported: only none is", g->file,
                    scaling, kind.bytes < 60 ? (int)kind.bytes : 60, kind.data);
    }
    return 0;
}

/* A whole number in min..max. */
static int read_size(
        const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *ret, struct error *e) {
    uint64_t value = 0;
    int r = gguf_get_u64(g, key, &value, e);
    if (r < 0)
        return r;
    if (value < min || value > max)
        return error_set(e, -EINVAL, "%s: %s is %llu, it must be %u to %u", g->file, key,
                (unsigned long long)value, min, max);
    *ret = (uint32_t)value;
    return 0;
}

/* The same, or usual where the key is missing: what llama.cpp takes there. */
static int read_optional(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t usual,
        uint32_t *ret, struct error *e) {
    *ret = usual;
    return gguf_find(g, key) ? read_size(g, key, min, max, ret, e) : 0;
}

/* A number that may be given per layer: of the layers that have it (all, or those of attention) it is the same; what
 * others have there does not matter. */
static int read_per_layer(const struct gguf *g, const char *key, const struct model_config *m, bool all,
        uint32_t *ret, struct error *e) {
    const struct gguf_value *v = gguf_find(g, key);
    uint64_t found = 0;
    if (!v || v->type != GGUF_ARRAY)
        return read_size(g, key, 1, MODEL_DIM_MAX, ret, e);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        uint64_t value = 0;
        if (!all && !m->is_attention[i])
            continue;
        if (gguf_array_u64(v, i, &value) < 0 || value < 1 || value > MODEL_DIM_MAX ||
                (found && value != found))
            return error_set(e, -EINVAL,
                    "%s: %s: layer %u must have a number of 1 or more, the same as all %s", g->file, key, i,
                    all ? "layers" : "attention layers");
        found = value;
    }
    if (found == 0)
        return error_set(e, -EINVAL, "%s: %s: no layer is attention", g->file, key);
    *ret = (uint32_t)found;
    return 0;
}

/* Which layers are attention: every n-th, as the key says; or, without it, those that have KV heads where these are
 * given per layer and some have none; or every fourth. */
static int read_layer_kinds(const struct gguf *g, struct model_config *m, struct error *e) {
    static const char interval[] = ARCH ".full_attention_interval";
    const struct gguf_value *heads = gguf_find(g, KV_HEADS);
    uint32_t every = INTERVAL_USUAL, n_with = 0;
    int r = read_optional(g, interval, 1, MODEL_LAYERS_MAX, INTERVAL_USUAL, &every, e);
    for (uint32_t i = 0; i < m->n_layers && r == 0; i++)
        m->is_attention[i] = (i + 1) % every == 0;
    if (r < 0 || gguf_find(g, interval) || !heads || heads->type != GGUF_ARRAY)
        return r;
    bool with[MODEL_LAYERS_MAX];
    for (uint32_t i = 0; i < m->n_layers; i++) {
        uint64_t n = 0;
        with[i] = gguf_array_u64(heads, i, &n) == 0 && n > 0;
        n_with += with[i];
    }
    if (n_with > 0 && n_with < m->n_layers)
        memcpy(m->is_attention, with, m->n_layers * sizeof(*with));
    return 0;
}

/* Layers, which of them are attention, and whether the last block is the MTP layer. */
static int read_layers(const struct gguf *g, struct model_config *m, struct error *e) {
    static const char nextn[] = ARCH ".nextn_predict_layers";
    uint32_t blocks = 0;
    uint64_t extra = 0;
    int r = read_size(g, ARCH ".block_count", 1, MODEL_LAYERS_MAX + 1, &blocks, e);
    if (r == 0 && gguf_find(g, nextn))
        r = gguf_get_u64(g, nextn, &extra, e);
    if (r < 0)
        return r;
    if (extra > 1)
        return error_set(e, -ENOTSUP, "%s: %s is %llu: only 0 and 1 are supported", g->file, nextn,
                (unsigned long long)extra);
    if (blocks <= extra || blocks - extra > MODEL_LAYERS_MAX)
        return error_set(e, -EINVAL,
                "%s: " ARCH ".block_count is %u with %llu of them for prediction: it must leave 1 "
                "to %u layers",
                g->file, blocks, (unsigned long long)extra, MODEL_LAYERS_MAX);
    m->mtp_layers = (uint32_t)extra;
    m->n_layers = blocks - (uint32_t)extra;
    return read_layer_kinds(g, m, e);
}

/* Heads of attention, and what follows from them where it is not said: a head is its part of the hidden size, all of it
 * is rotated, and there are as many KV heads as heads. */
static int read_heads(const struct gguf *g, struct model_config *m, struct error *e) {
    uint32_t value_length = 0;
    int r = read_per_layer(g, ARCH ".attention.head_count", m, /* all= */ false, &m->q_heads, e);
    m->kv_heads = m->q_heads;
    if (r == 0 && gguf_find(g, KV_HEADS))
        r = read_per_layer(g, KV_HEADS, m, /* all= */ false, &m->kv_heads, e);
    if (r < 0)
        return r;
    const uint32_t part = m->hidden_size / m->q_heads;
    r = read_optional(g, ARCH ".attention.key_length", 1, MODEL_DIM_MAX, part, &m->head_dim, e);
    if (r == 0)
        r = read_optional(g, ARCH ".attention.value_length", 1, MODEL_DIM_MAX, part, &value_length, e);
    if (r == 0)
        r = read_optional(g, ARCH ".rope.dimension_count", 1, MODEL_DIM_MAX, m->head_dim, &m->rotary_dim, e);
    if (r < 0)
        return r;
    if (m->head_dim == 0)
        return error_set(e, -EINVAL,
                "%s: " ARCH
                ".attention.key_length is missing, and embedding_length %u is less than the %u heads",
                g->file, m->hidden_size, m->q_heads);
    if (value_length != m->head_dim)
        return error_set(e, -ENOTSUP,
                "%s: " ARCH ".attention.value_length is %u and key_length %u: they must be equal", g->file,
                value_length, m->head_dim);
    if (m->rotary_dim > m->head_dim || m->rotary_dim % 2 != 0)
        return error_set(e, -EINVAL,
                "%s: " ARCH
                ".rope.dimension_count is %u: it must be even and at most %u, the length of a head",
                g->file, m->rotary_dim, m->head_dim);
    return 0;
}

static int read_sizes(const struct gguf *g, struct model_config *m, struct error *e) {
    uint32_t inner = 0;
    const struct {
        const char *key;
        uint32_t min, max, *to;
    } sizes[] = {
            {ARCH ".embedding_length", 1, MODEL_DIM_MAX, &m->hidden_size},
            {ARCH ".ssm.group_count", 1, MODEL_DIM_MAX, &m->gdn_k_heads},
            {ARCH ".ssm.time_step_rank", 1, MODEL_DIM_MAX, &m->gdn_v_heads},
            {ARCH ".ssm.state_size", 1, MODEL_DIM_MAX, &m->gdn_k_dim},
            {ARCH ".ssm.inner_size", 1, MODEL_DIM_MAX, &inner},
            {ARCH ".ssm.conv_kernel", CONV_KERNEL_MIN, CONV_KERNEL_MAX, &m->conv_kernel},
            {ARCH ".context_length", 1, UINT32_MAX, &m->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int r = read_size(g, sizes[i].key, sizes[i].min, sizes[i].max, sizes[i].to, e);
        if (r < 0)
            return r;
    }
    if (inner % m->gdn_v_heads != 0)
        return error_set(e, -EINVAL,
                "%s: " ARCH ".ssm.inner_size is %u, which is not a multiple of ssm.time_step_rank %u",
                g->file, inner, m->gdn_v_heads);
    m->gdn_v_dim = inner / m->gdn_v_heads;
    if (m->max_position_embeddings > CONTEXT_MAX)
        m->max_position_embeddings = CONTEXT_MAX;
    int r = read_per_layer(g, ARCH ".feed_forward_length", m, /* all= */ true, &m->intermediate_size, e);
    return r < 0 ? r : read_heads(g, m, e);
}

static int read_reals(const struct gguf *g, struct model_config *m, struct error *e) {
    static const char eps_key[] = ARCH ".attention.layer_norm_rms_epsilon",
                      theta_key[] = ARCH ".rope.freq_base";
    double eps = 0;
    int r = gguf_get_real(g, eps_key, &eps, e);
    m->rope_theta = THETA_USUAL;
    if (r == 0 && gguf_find(g, theta_key))
        r = gguf_get_real(g, theta_key, &m->rope_theta, e);
    if (r < 0)
        return r;
    if (!(eps >= (double)FLT_MIN && eps < 1))
        return error_set(
                e, -EINVAL, "%s: %s is %g, it must be a float above 0 and below 1", g->file, eps_key, eps);
    if (!(m->rope_theta > 1 && m->rope_theta < 1e15))
        return error_set(e, -EINVAL, "%s: %s is %g, it must be above 1", g->file, theta_key, m->rope_theta);
    m->rms_eps = (float)eps;
    return 0;
}

/* The vocabulary is what the embedding has rows for; a list of tokens and a key, where they are there, agree. */
static int read_vocabulary(const struct gguf *g, struct model_config *m, struct error *e) {
    static const char size_key[] = ARCH ".vocab_size", tokens_key[] = "tokenizer.ggml.tokens";
    const struct gguf_tensor *embed = gguf_find_tensor(g, "token_embd.weight");
    const struct gguf_value *tokens = gguf_find(g, tokens_key);
    uint64_t announced = 0, rows = embed && embed->n_dims == 2 ? embed->dims[1] : 0;
    if (gguf_find(g, size_key)) {
        int r = gguf_get_u64(g, size_key, &announced, e);
        if (r < 0)
            return r;
    } else if (tokens && tokens->type == GGUF_ARRAY) {
        announced = tokens->n;
    } else {
        announced = rows;
    }
    if (rows == 0) /* a split set may have it in another file */
        rows = announced;
    if (rows == 0)
        return error_set(e, -EINVAL, "%s: has neither %s nor %s nor a token_embd.weight of two dimensions",
                g->file, size_key, tokens_key);
    if (rows > TOKENIZER_VOCAB_MAX || announced > rows)
        return error_set(e, -EINVAL,
                "%s: a vocabulary of %llu, and %llu rows of token_embd.weight: they must be equal and at most %u",
                g->file, (unsigned long long)announced, (unsigned long long)rows, TOKENIZER_VOCAB_MAX);
    m->vocab_size = (uint32_t)rows;
    return 0;
}

static int read_eos_ids(const struct gguf *g, struct model_config *m, struct error *e) {
    static const char *const keys[] = {
            "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        uint64_t id = 0;
        bool known = false;
        if (!gguf_find(g, keys[i]))
            continue;
        int r = gguf_get_u64(g, keys[i], &id, e);
        if (r < 0)
            return r;
        if (id >= m->vocab_size)
            return error_set(e, -EINVAL, "%s: %s is %llu, which is not an id of a vocabulary of %u", g->file,
                    keys[i], (unsigned long long)id, m->vocab_size);
        for (uint32_t k = 0; k < m->n_eos_ids; k++)
            known = known || m->eos_ids[k] == id;
        if (!known)
            m->eos_ids[m->n_eos_ids++] = (uint32_t)id;
    }
    return 0;
}

static const struct model_config_names GGUF_NAMES = {.q_heads = ARCH ".attention.head_count",
        .kv_heads = KV_HEADS,
        .head_dim = ARCH ".attention.key_length",
        .gdn_k_heads = ARCH ".ssm.group_count",
        .gdn_v_heads = ARCH ".ssm.time_step_rank",
        .gdn_v_dim = ARCH ".ssm.inner_size / time_step_rank"};

int gguf_model_config(const struct gguf *g, struct model_config *ret, struct error *e) {
    struct model_config m = {0};
    int r = check_architecture(g, e);
    if (r == 0)
        r = check_supported(g, e);
    if (r == 0)
        r = read_layers(g, &m, e);
    if (r == 0)
        r = read_sizes(g, &m, e);
    if (r == 0)
        r = read_reals(g, &m, e);
    if (r == 0)
        r = read_vocabulary(g, &m, e);
    if (r == 0)
        r = read_eos_ids(g, &m, e);
    if (r == 0)
        r = model_config_check(&m, g->file, "", &GGUF_NAMES, e);
    if (r < 0)
        return r;
    *ret = m;
    return 0;
}
