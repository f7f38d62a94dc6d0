/* synth_plan.c - which tensors a model has, under both of their names, and how their values are spread. */
#include "tp/synth/synth_parts.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a kind of tensor has in common. */
enum kind { LINEAR, RESIDUAL, EMBEDDING, ZERO_NORM, PLAIN_NORM, CONV, DT_BIAS, A_LOG };

struct row {
    const char *name, *gguf_name;
    enum kind kind;
    uint64_t rows, columns; /* columns = 0: a vector */
    enum synth_tile tile;
    uint64_t tile_first, tile_unit;
};

struct maker {
    const struct model_config *m;
    enum tensor_dtype dtype;
    struct synth_plan *plan;
    struct error *e;
};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static void set_spread(struct synth_tensor *t, enum kind kind, const struct model_config *m) {
    /* Linear: 1/sqrt(K) keeps activations near 1. What is added to the residual stream is made smaller by the
     * number of additions, so that the stream stays near 1 too. */
    const float linear = 1.0f / sqrtf((float)t->columns), additions = sqrtf(2.0f * (float)m->n_layers);
    switch (kind) {
    case LINEAR:
    case CONV:
        t->spread = linear;
        break;
    case EMBEDDING: /* as small as a row of the head, which it may be */
        t->spread = linear;
        break;
    case RESIDUAL:
        t->spread = linear / additions;
        break;
    case ZERO_NORM:
        t->spread = 0.1f;
        t->change = CHANGE_PLUS_ONE;
        break;
    case PLAIN_NORM:
        t->mean = 1.0f;
        t->spread = 0.1f;
        break;
    case DT_BIAS:
        t->draw = DRAW_UNIFORM;
        t->mean = -1.0f;
        t->spread = 3.0f;
        break;
    case A_LOG:
        t->draw = DRAW_LOG_UNIFORM;
        t->change = CHANGE_MINUS_EXP;
        break;
    }
}

static int add(const struct maker *k, const char *prefix, const char *gguf_prefix, const struct row *rows,
        size_t n) {
    for (size_t i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        struct synth_plan *plan = k->plan;
        if (plan->n == plan->size) {
            uint32_t size = plan->size ? plan->size * 2 : 64;
            struct synth_tensor *grown = realloc(plan->tensors, size * sizeof(*grown));
            if (!grown)
                return error_set(k->e, -ENOMEM, "out of memory for a list of %u tensors", size);
            plan->tensors = grown;
            plan->size = size;
        }
        struct synth_tensor *t = &plan->tensors[plan->n++];
        bool is_f32 = row->kind == A_LOG || row->kind == PLAIN_NORM;
        *t = (struct synth_tensor){
                .rows = row->rows,
                .columns = row->columns ? row->columns : 1,
                .is_vector = row->columns == 0,
                .is_conv = row->kind == CONV,
                .dtype = is_f32 ? TENSOR_F32 : k->dtype,
                .tile = row->tile,
                .tile_first = row->tile_first,
                .tile_unit = row->tile_unit,
        };
        t->gguf_dtype = t->is_vector || t->is_conv ? TENSOR_F32 : t->dtype;
        snprintf(t->name, sizeof(t->name), "%s%s", prefix, row->name);
        snprintf(t->gguf_name, sizeof(t->gguf_name), "%s%s", gguf_prefix, row->gguf_name);
        set_spread(t, row->kind, k->m);
    }
    return 0;
}

static int add_gdn(const struct maker *k, const char *prefix, const char *gguf_prefix) {
    const struct model_config *m = k->m;
    const uint64_t h = m->hidden_size, heads = m->gdn_v_heads, dv = m->gdn_v_dim, v = heads * dv;
    const uint64_t qk = 2ull * m->gdn_k_heads * m->gdn_k_dim;
    const struct row rows[] = {
            {"linear_attn.in_proj_qkv.weight", "attn_qkv.weight", LINEAR, qk + v, h, TILE_ROWS, qk, dv},
            {"linear_attn.in_proj_z.weight", "attn_gate.weight", LINEAR, v, h, TILE_ROWS, 0, dv},
            {"linear_attn.in_proj_b.weight", "ssm_beta.weight", LINEAR, heads, h, TILE_ROWS, 0, 1},
            {"linear_attn.in_proj_a.weight", "ssm_alpha.weight", LINEAR, heads, h, TILE_ROWS, 0, 1},
            {"linear_attn.conv1d.weight", "ssm_conv1d.weight", CONV, qk + v, m->conv_kernel, TILE_ROWS, qk,
                    dv},
            {"linear_attn.dt_bias", "ssm_dt.bias", DT_BIAS, heads, 0, TILE_ROWS, 0, 1},
            {"linear_attn.A_log", "ssm_a", A_LOG, heads, 0, TILE_ROWS, 0, 1},
            {"linear_attn.norm.weight", "ssm_norm.weight", PLAIN_NORM, dv, 0, TILE_NONE, 0, 0},
            {"linear_attn.out_proj.weight", "ssm_out.weight", RESIDUAL, h, v, TILE_COLUMNS, 0, dv},
    };
    return add(k, prefix, gguf_prefix, rows, COUNT(rows));
}

static int add_attention(const struct maker *k, const char *prefix, const char *gguf_prefix) {
    const struct model_config *m = k->m;
    const uint64_t h = m->hidden_size, d = m->head_dim, q = m->q_heads * d, kv = m->kv_heads * d;
    const struct row rows[] = {
            {"self_attn.q_proj.weight", "attn_q.weight", LINEAR, 2 * q, h, TILE_NONE, 0, 0},
            {"self_attn.k_proj.weight", "attn_k.weight", LINEAR, kv, h, TILE_NONE, 0, 0},
            {"self_attn.v_proj.weight", "attn_v.weight", LINEAR, kv, h, TILE_NONE, 0, 0},
            {"self_attn.o_proj.weight", "attn_output.weight", RESIDUAL, h, q, TILE_NONE, 0, 0},
            {"self_attn.q_norm.weight", "attn_q_norm.weight", ZERO_NORM, d, 0, TILE_NONE, 0, 0},
            {"self_attn.k_norm.weight", "attn_k_norm.weight", ZERO_NORM, d, 0, TILE_NONE, 0, 0},
    };
    return add(k, prefix, gguf_prefix, rows, COUNT(rows));
}

static int add_layer(const struct maker *k, const char *prefix, const char *gguf_prefix, bool is_attention) {
    const uint64_t h = k->m->hidden_size, i = k->m->intermediate_size;
    const struct row rows[] = {
            {"input_layernorm.weight", "attn_norm.weight", ZERO_NORM, h, 0, TILE_NONE, 0, 0},
            {"post_attention_layernorm.weight", "post_attention_norm.weight", ZERO_NORM, h, 0, TILE_NONE, 0,
                    0},
            {"mlp.gate_proj.weight", "ffn_gate.weight", LINEAR, i, h, TILE_NONE, 0, 0},
            {"mlp.up_proj.weight", "ffn_up.weight", LINEAR, i, h, TILE_NONE, 0, 0},
            {"mlp.down_proj.weight", "ffn_down.weight", RESIDUAL, h, i, TILE_NONE, 0, 0},
    };
    int r = is_attention ? add_attention(k, prefix, gguf_prefix) : add_gdn(k, prefix, gguf_prefix);
    return r < 0 ? r : add(k, prefix, gguf_prefix, rows, COUNT(rows));
}

static int add_all(const struct maker *k) {
    const struct model_config *m = k->m;
    const uint64_t h = m->hidden_size, v = m->vocab_size;
    char prefix[SYNTH_NAME_SIZE / 2], gguf_prefix[SYNTH_NAME_SIZE / 2];
    const struct row ends[] = {
            {"model.embed_tokens.weight", "token_embd.weight", EMBEDDING, v, h, TILE_NONE, 0, 0},
            {"model.norm.weight", "output_norm.weight", ZERO_NORM, h, 0, TILE_NONE, 0, 0},
            {"lm_head.weight", "output.weight", LINEAR, v, h, TILE_NONE, 0, 0},
    };
    const struct row mtp[] = {
            {"fc.weight", "nextn.eh_proj.weight", LINEAR, h, 2 * h, TILE_NONE, 0, 0},
            {"pre_fc_norm_embedding.weight", "nextn.enorm.weight", ZERO_NORM, h, 0, TILE_NONE, 0, 0},
            {"pre_fc_norm_hidden.weight", "nextn.hnorm.weight", ZERO_NORM, h, 0, TILE_NONE, 0, 0},
            {"norm.weight", "nextn.shared_head_norm.weight", ZERO_NORM, h, 0, TILE_NONE, 0, 0},
    };
    int r = add(k, "", "", ends, COUNT(ends) - (m->tie_word_embeddings ? 1 : 0));
    for (uint32_t i = 0; i < m->n_layers && r == 0; i++) {
        snprintf(prefix, sizeof(prefix), "model.layers.%u.", i);
        snprintf(gguf_prefix, sizeof(gguf_prefix), "blk.%u.", i);
        r = add_layer(k, prefix, gguf_prefix, m->is_attention[i]);
    }
    if (r < 0 || m->mtp_layers == 0)
        return r;
    snprintf(gguf_prefix, sizeof(gguf_prefix), "blk.%u.", m->n_layers);
    r = add(k, "mtp.", gguf_prefix, mtp, COUNT(mtp));
    return r < 0 ? r : add_layer(k, "mtp.layers.0.", gguf_prefix, true);
}

int synth_plan_make(
        const struct model_config *m, enum tensor_dtype dtype, struct synth_plan *ret, struct error *e) {
    struct synth_plan plan = {.v_heads = m->gdn_v_heads, .k_heads = m->gdn_k_heads};
    struct maker k = {m, dtype, &plan, e};
    int r = add_all(&k);
    if (r < 0) {
        synth_plan_done(&plan);
        return r;
    }
    *ret = plan;
    return 0;
}

void synth_plan_done(struct synth_plan *plan) {
    free(plan->tensors);
    *plan = (struct synth_plan){0};
}

uint64_t synth_tensor_bytes(const struct synth_tensor *t, enum synth_format format) {
    if (format == SYNTH_GGUF && t->gguf_bits)
        return t->rows * t->columns / SYNTH_BLOCK * (2 + SYNTH_BLOCK * t->gguf_bits / 8);
    return t->rows * t->columns * tensor_dtype_bytes(format == SYNTH_GGUF ? t->gguf_dtype : t->dtype);
}
