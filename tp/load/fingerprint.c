/* fingerprint.c - see fingerprint.h. FNV-1a, in 64 bits. */
#include "tp/load/fingerprint.h"

#include "base/hash.h"

#include "tp/checkpoint/quant_config.h"

#include <string.h>

#define SAMPLES_PER_TENSOR 16u
#define SAMPLE_BYTES       64u

static uint64_t hash_u64(uint64_t h, uint64_t v) {
    return fnv1a(h, &v, sizeof(v));
}

static uint64_t hash_config(uint64_t h, const struct model_config *m) {
    const uint32_t sizes[] = {m->hidden_size, m->intermediate_size, m->vocab_size, m->n_layers, m->q_heads,
            m->kv_heads, m->head_dim, m->rotary_dim, m->gdn_k_heads, m->gdn_v_heads, m->gdn_k_dim,
            m->gdn_v_dim, m->conv_kernel, m->max_position_embeddings, m->mtp_layers, m->tie_word_embeddings};
    h = fnv1a(h, sizes, sizeof(sizes));
    for (uint32_t i = 0; i < m->n_layers; i++)
        h = hash_u64(h, m->is_attention[i]);
    h = fnv1a(h, &m->rms_eps, sizeof(m->rms_eps));
    return fnv1a(h, &m->rope_theta, sizeof(m->rope_theta));
}

/* Evenly spread samples: the first bytes, the last ones, and some between. */
static uint64_t hash_tensor(uint64_t h, const struct tensor *t) {
    h = fnv1a(h, t->name, strlen(t->name));
    h = hash_u64(h, t->dtype);
    for (uint32_t i = 0; i < t->n_dims; i++)
        h = hash_u64(h, t->dims[i]);
    if (t->bytes <= SAMPLES_PER_TENSOR * SAMPLE_BYTES)
        return fnv1a(h, t->data, t->bytes);
    uint64_t last = t->bytes - SAMPLE_BYTES;
    for (uint64_t i = 0; i < SAMPLES_PER_TENSOR; i++) {
        uint64_t at = last / (SAMPLES_PER_TENSOR - 1) * i;
        h = fnv1a(h, (const uint8_t *)t->data + at, SAMPLE_BYTES);
    }
    return h;
}

/* What codes mean, where the configuration is what says it. */
static uint64_t hash_quantisation(uint64_t h, const struct quant_config *q) {
    if (!q)
        return h;
    h = hash_u64(h, quant_config_method(q));
    return hash_u64(h, quant_config_is_v2(q));
}

uint64_t fingerprint_model(const struct model_config *m, const struct checkpoint *c, uint64_t seed) {
    uint64_t h = hash_config(FNV1A_START, m);
    if (!c)
        return hash_u64(h, seed);
    size_t n = checkpoint_count(c);
    checkpoint_scattered(c, true); /* else the kernel reads 128 KB around each sample: most of the file */
    for (size_t i = 0; i < n; i++)
        h = hash_tensor(h, checkpoint_at(c, i));
    checkpoint_scattered(c, false);
    return hash_quantisation(h, checkpoint_quantisation(c));
}
