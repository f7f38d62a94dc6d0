/* tensor_names.c - see tensor_names.h. A table per group of tensors: Hugging Face's name, where the pointer
 * goes, the shape. */
#include "tp/checkpoint/tensor_names.h"

#include "tp/checkpoint/gguf_model.h"
#include "tp/checkpoint/quant_tensor.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SIZE 160u

static const char *const PREFIXES[] = {"model.language_model.", "model."};
static const char *const VISION_PREFIXES[] = {"model.visual.", "visual."};

enum form {
    VECTOR,
    MATRIX, /* dense or quantised */
    TABLE,  /* dense: the embedding */
    TAPS    /* dense; a dimension of 1 may stand between the two */
};

/* A tensor that must be there. */
struct wanted {
    const char *name;
    const struct tensor **to;
    uint64_t rows, columns; /* columns = 0: a vector */
    enum form form;
};

struct resolver {
    const struct checkpoint *checkpoint;
    const struct model_config *m;
    struct model_tensors *t;
    bool *used; /* [checkpoint_count] */
    struct error *e;
};

/* --- one tensor --- */

static bool shape_is(const struct tensor *t, const struct wanted *w) {
    if (w->columns == 0)
        return t->n_dims == 1 && t->dims[0] == w->rows;
    if (t->n_dims == 2)
        return t->dims[0] == w->rows && t->dims[1] == w->columns;
    return w->form == TAPS && t->n_dims == 3 && t->dims[0] == w->rows && t->dims[1] == 1 &&
           t->dims[2] == w->columns;
}

static int check_tensor(const struct resolver *r, const struct tensor *t, const struct wanted *w) {
    char expected[TENSOR_SHAPE_TEXT], found[TENSOR_SHAPE_TEXT];
    if (!shape_is(t, w)) {
        const struct tensor wanted = {.n_dims = w->columns ? 2 : 1, .dims = {w->rows, w->columns}};
        return error_set(r->e, -EINVAL, "%s: %s: expected %s, found %s", t->file, t->name,
                tensor_shape_text(&wanted, expected), tensor_shape_text(t, found));
    }
    if (t->dtype == TENSOR_QUANTISED)
        return 0;
    if (t->dtype != TENSOR_F32 && t->dtype != TENSOR_BF16 && t->dtype != TENSOR_F16)
        return error_set(r->e, -ENOTSUP, "%s: %s: dtype %s is not supported here: F32, BF16 and F16 are",
                t->file, t->name, tensor_dtype_text(t));
    /* The kernels read elements where they lie. Files of the safetensors library are always aligned. */
    if ((uintptr_t)t->data % tensor_dtype_bytes(t->dtype) != 0)
        return error_set(r->e, -ENOTSUP,
                "%s: %s: its data are not aligned for %s; save the checkpoint again with the safetensors "
                "library",
                t->file, t->name, tensor_dtype_text(t));
    return 0;
}

static void mark_used(const struct resolver *r, const struct tensor *t) {
    r->used[t - checkpoint_at(r->checkpoint, 0)] = true;
    r->t->n_used++;
}

/* The matrix named name, put together; leaves *ret alone where it is not quantised. */
static int find_quantised(
        const struct resolver *r, const char *name, const struct wanted *w, const struct tensor **ret) {
    char module[NAME_SIZE];
    struct quant_tensor *quantised = NULL;
    const size_t length = strlen(name) - strlen(".weight");
    memcpy(module, name, length);
    module[length] = '\0';
    const struct quant_request request = {.checkpoint = r->checkpoint,
            .config = checkpoint_quantisation(r->checkpoint),
            .module = module,
            .rows = (uint32_t)w->rows,
            .columns = (uint32_t)w->columns};
    int result = quant_tensor_make(&request, &quantised, r->e);
    if (result <= 0)
        return result;
    quantised->next = r->t->quantised;
    r->t->quantised = quantised;
    for (uint32_t i = 0; i < quantised->n_parts; i++)
        mark_used(r, quantised->parts[i]);
    *ret = &quantised->tensor;
    return 0;
}

/* Is all of it there that the index names? Of a matrix all parts that it may have: what is optional is not left out
 * because a shard is missing. */
static int check_announced(const struct resolver *r, const char *name, enum form form) {
    char prefix[NAME_SIZE];
    const size_t length = strlen(name) - (form == MATRIX ? strlen("weight") : 0);
    memcpy(prefix, name, length);
    prefix[length] = '\0';
    return checkpoint_check_announced(r->checkpoint, prefix, r->e);
}

/* Finds the n tensors named prefix + name. */
static int find_all(const struct resolver *r, const char *prefix, const struct wanted *wanted, size_t n,
        uint64_t *bytes) {
    for (size_t i = 0; i < n; i++) {
        char name[NAME_SIZE];
        const struct tensor *t = NULL;
        int result = 0;
        snprintf(name, sizeof(name), "%s%s", prefix, wanted[i].name);
        result = check_announced(r, name, wanted[i].form);
        if (result == 0 && wanted[i].form == MATRIX)
            result = find_quantised(r, name, &wanted[i], &t);
        if (result == 0 && !t) {
            t = checkpoint_find(r->checkpoint, name);
            if (!t)
                return error_set(r->e, -ENOENT, "%s: this tensor is not in the checkpoint", name);
            mark_used(r, t);
        }
        if (result == 0)
            result = check_tensor(r, t, &wanted[i]);
        if (result < 0)
            return result;
        *bytes += t->bytes;
        *wanted[i].to = t;
    }
    return 0;
}

/* --- groups --- */

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static int find_gdn(const struct resolver *r, const char *prefix, struct gdn_tensors *g, uint64_t *bytes) {
    const struct model_config *m = r->m;
    const uint64_t h = m->hidden_size, heads = m->gdn_v_heads, v = heads * m->gdn_v_dim;
    const uint64_t qkv = 2ull * m->gdn_k_heads * m->gdn_k_dim + v;
    const struct wanted wanted[] = {
            {"linear_attn.in_proj_qkv.weight", &g->in_qkv, qkv, h, MATRIX},
            {"linear_attn.in_proj_z.weight", &g->in_z, v, h, MATRIX},
            {"linear_attn.in_proj_b.weight", &g->in_b, heads, h, MATRIX},
            {"linear_attn.in_proj_a.weight", &g->in_a, heads, h, MATRIX},
            {"linear_attn.conv1d.weight", &g->conv, qkv, m->conv_kernel, TAPS},
            {"linear_attn.dt_bias", &g->dt_bias, heads, 0, VECTOR},
            {"linear_attn.A_log", &g->a_log, heads, 0, VECTOR},
            {"linear_attn.norm.weight", &g->norm, m->gdn_v_dim, 0, VECTOR},
            {"linear_attn.out_proj.weight", &g->out, h, v, MATRIX},
    };
    return find_all(r, prefix, wanted, COUNT(wanted), bytes);
}

static int find_attention(
        const struct resolver *r, const char *prefix, struct attention_tensors *a, uint64_t *bytes) {
    const struct model_config *m = r->m;
    const uint64_t h = m->hidden_size, d = m->head_dim, q = m->q_heads * d, kv = m->kv_heads * d;
    const struct wanted wanted[] = {
            {"self_attn.q_proj.weight", &a->q, 2 * q, h, MATRIX},
            {"self_attn.k_proj.weight", &a->k, kv, h, MATRIX},
            {"self_attn.v_proj.weight", &a->v, kv, h, MATRIX},
            {"self_attn.o_proj.weight", &a->o, h, q, MATRIX},
            {"self_attn.q_norm.weight", &a->q_norm, d, 0, VECTOR},
            {"self_attn.k_norm.weight", &a->k_norm, d, 0, VECTOR},
    };
    return find_all(r, prefix, wanted, COUNT(wanted), bytes);
}

static int find_layer(const struct resolver *r, const char *prefix, bool is_attention,
        struct layer_tensors *l, uint64_t *bytes) {
    const uint64_t h = r->m->hidden_size, i = r->m->intermediate_size;
    const struct wanted wanted[] = {
            {"input_layernorm.weight", &l->input_norm, h, 0, VECTOR},
            {"post_attention_layernorm.weight", &l->post_norm, h, 0, VECTOR},
            {"mlp.gate_proj.weight", &l->gate, i, h, MATRIX},
            {"mlp.up_proj.weight", &l->up, i, h, MATRIX},
            {"mlp.down_proj.weight", &l->down, h, i, MATRIX},
    };
    l->is_attention = is_attention;
    int result = find_all(r, prefix, wanted, COUNT(wanted), bytes);
    if (result < 0)
        return result;
    return is_attention ? find_attention(r, prefix, &l->attention, bytes)
                        : find_gdn(r, prefix, &l->gdn, bytes);
}

static int find_mtp(const struct resolver *r, struct mtp_tensors *mtp) {
    const uint64_t h = r->m->hidden_size;
    const struct wanted wanted[] = {
            {"fc.weight", &mtp->fc, h, 2 * h, MATRIX},
            {"pre_fc_norm_embedding.weight", &mtp->norm_embedding, h, 0, VECTOR},
            {"pre_fc_norm_hidden.weight", &mtp->norm_hidden, h, 0, VECTOR},
            {"norm.weight", &mtp->norm, h, 0, VECTOR},
    };
    int result = find_all(r, "mtp.", wanted, COUNT(wanted), &r->t->mtp_bytes);
    return result < 0 ? result : find_layer(r, "mtp.layers.0.", true, &mtp->layer, &r->t->mtp_bytes);
}

static bool begins_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool has_any(const struct checkpoint *c, const char *prefix) {
    for (size_t i = 0; i < checkpoint_count(c); i++)
        if (begins_with(checkpoint_at(c, i)->name, prefix))
            return true;
    return false;
}

/* Embedding, final norm and head. */
static int find_ends(const struct resolver *r) {
    const struct model_config *m = r->m;
    struct model_tensors *t = r->t;
    const struct wanted ends[] = {
            {"embed_tokens.weight", &t->embed, m->vocab_size, m->hidden_size, TABLE},
            {"norm.weight", &t->norm, m->hidden_size, 0, VECTOR},
    };
    const struct wanted head = {"lm_head.weight", &t->lm_head, m->vocab_size, m->hidden_size, MATRIX};
    int result = find_all(r, t->prefix, ends, COUNT(ends), &t->bytes);
    if (result < 0)
        return result;
    /* A head in the file is the model's, as transformers has it, whatever the configuration says: where it equals the
     * embedding nothing changes, and where it does not it was trained or quantised apart. */
    const bool has_head = has_any(r->checkpoint, "lm_head.");
    result = checkpoint_check_announced(r->checkpoint, "lm_head.", r->e);
    if (result < 0)
        return result;
    t->tied = m->tie_word_embeddings && !has_head;
    if (t->tied) {
        t->lm_head = t->embed;
        return 0;
    }
    if (!has_head)
        return error_set(r->e, -ENOENT,
                "lm_head.weight: this tensor is not in the checkpoint, and tie_word_embeddings in "
                "config.json (outside text_config) is not true");
    return find_all(r, "", &head, 1, &t->bytes);
}

/* --- the whole --- */

/* The parts that a quantised embedding would have: rows of it are looked up, so only a dense one will do. */
static int refuse_quantised_embedding(const struct resolver *r) {
    static const char *const parts[] = {"qweight", "weight_packed"};
    for (size_t i = 0; i < COUNT(PREFIXES) * COUNT(parts); i++) {
        char name[NAME_SIZE];
        snprintf(name, sizeof(name), "%sembed_tokens.%s", PREFIXES[i / 2], parts[i % 2]);
        const struct tensor *t = checkpoint_find(r->checkpoint, name);
        if (t)
            return error_set(r->e, -ENOTSUP,
                    "%s: %s: a quantised embedding is not read; quantise the model again without "
                    "embed_tokens",
                    t->file, t->name);
    }
    return 0;
}

static int find_prefix(const struct resolver *r) {
    for (size_t i = 0; i < COUNT(PREFIXES); i++) {
        char name[NAME_SIZE];
        snprintf(name, sizeof(name), "%sembed_tokens.weight", PREFIXES[i]);
        int lost = checkpoint_check_announced(r->checkpoint, name, r->e);
        if (lost < 0)
            return lost;
        if (checkpoint_find(r->checkpoint, name)) {
            r->t->prefix = PREFIXES[i];
            return 0;
        }
    }
    int result = refuse_quantised_embedding(r);
    if (result < 0)
        return result;
    return error_set(r->e, -ENOENT,
            "%sembed_tokens.weight (or %sembed_tokens.weight): this tensor is not in the checkpoint: is it "
            "a Qwen3.5 language model?",
            PREFIXES[0], PREFIXES[1]);
}

/* What was not asked for: vision, and the rest by name. */
static int list_unused(const struct resolver *r) {
    struct model_tensors *t = r->t;
    size_t n = checkpoint_count(r->checkpoint);
    t->ignored = calloc(n + 1, sizeof(*t->ignored));
    if (!t->ignored)
        return error_set(r->e, -ENOMEM, "out of memory for a list of %zu tensors", n);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *tensor = checkpoint_at(r->checkpoint, i);
        if (r->used[i])
            continue;
        if (begins_with(tensor->name, VISION_PREFIXES[0]) || begins_with(tensor->name, VISION_PREFIXES[1])) {
            t->n_vision++;
            t->vision_bytes += tensor->bytes;
        } else {
            t->ignored[t->n_ignored++] = tensor;
        }
    }
    return 0;
}

static int resolve(const struct resolver *r) {
    struct model_tensors *t = r->t;
    int result = find_prefix(r);
    if (result == 0)
        result = find_ends(r);
    for (uint32_t i = 0; i < r->m->n_layers && result == 0; i++) {
        char prefix[NAME_SIZE / 2];
        snprintf(prefix, sizeof(prefix), "%slayers.%u.", t->prefix, i);
        result = find_layer(r, prefix, r->m->is_attention[i], &t->layers[i], &t->bytes);
    }
    if (result == 0 && r->m->mtp_layers > 0)
        result = checkpoint_check_announced(r->checkpoint, "mtp.", r->e);
    if (result == 0 && r->m->mtp_layers > 0 && has_any(r->checkpoint, "mtp.")) {
        t->has_mtp = true;
        result = find_mtp(r, &t->mtp);
    }
    return result < 0 ? result : list_unused(r);
}

int model_tensors_resolve(const struct checkpoint *c, const struct model_config *m,
        struct model_tensors **ret, struct error *e) {
    if (checkpoint_gguf(c))
        return gguf_tensors_resolve(c, m, /* with_copies= */ true, ret, e);
    struct model_tensors *t = calloc(1, sizeof(*t));
    struct layer_tensors *layers = calloc(m->n_layers, sizeof(*layers));
    bool *used = calloc(checkpoint_count(c) + 1, sizeof(*used));
    int r = -ENOMEM;
    if (!t || !layers || !used) {
        free(layers);
        error_set(e, r, "out of memory for the tables of %u layers", m->n_layers);
        goto done;
    }
    t->layers = layers;
    t->n_layers = m->n_layers;
    r = resolve(&(struct resolver){c, m, t, used, e});
    if (r == 0) {
        *ret = t;
        t = NULL;
    }
done:
    model_tensors_free(t);
    free(used);
    return r;
}

int model_tensors_survey(const struct checkpoint *c, const struct model_config *m, struct model_tensors **ret,
        struct error *e) {
    if (checkpoint_gguf(c))
        return gguf_tensors_resolve(c, m, /* with_copies= */ false, ret, e);
    return model_tensors_resolve(c, m, ret, e);
}

struct model_tensors *model_tensors_free(struct model_tensors *t) {
    if (!t)
        return NULL;
    for (struct quant_tensor *next, *q = t->quantised; q; q = next) {
        next = q->next;
        quant_tensor_free(q);
    }
    free(t->layers);
    free(t->ignored);
    gguf_parts_free(t->gguf);
    free(t);
    return NULL;
}
