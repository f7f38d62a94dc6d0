/* gguf_tensors.c - the tensors of a GGUF model as model_tensors has them. See gguf_model.h. A table per group of
 * tensors: the names in both worlds, where the pointer goes, the shape, and what the converter did to it. */
#include "tp/checkpoint/gguf_model.h"

#include "base/half.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SIZE      96u
#define PARTS_OF_LAYER 16u /* at most: a GDN layer has 14 */
#define PARTS_OF_ENDS  8u  /* embedding, norm, head, and the four of MTP */
#define COUNT(array)   (sizeof(array) / sizeof(*(array)))

/* What the converter did to a vector, to be undone. */
enum change { CHANGE_NONE, CHANGE_PLUS_ONE, CHANGE_MINUS_EXP };

/* Which V heads it moved. */
enum move { MOVE_NONE, MOVE_ROWS, MOVE_COLUMNS };

struct wanted {
    const char *gguf, *name; /* there, and in Hugging Face's checkpoints */
    const struct tensor **to;
    uint64_t rows, columns; /* columns = 0: a vector */
    enum change change;
    enum move move;
    uint32_t first, unit; /* of the moved heads */
    bool values;          /* small, wanted as F32 */
    const char *other;    /* NULL, or what other converters call it */
};

struct part { /* one tensor of the model */
    struct tensor tensor;
    struct gguf_matrix matrix;
    char name[NAME_SIZE];
    void *memory; /* a copy, owned */
};

struct gguf_parts {
    struct part *at;
    size_t n, size;
};

struct resolver {
    const struct checkpoint *checkpoint;
    const struct gguf_checkpoint *gguf;
    const struct model_config *m;
    struct model_tensors *t;
    bool *used;       /* [checkpoint_count] */
    bool heads_moved; /* V heads are in the converter's order */
    bool with_copies; /* else large copies are not made: their tensors point at nothing that may be read */
    struct error *e;
};

struct gguf_parts *gguf_parts_free(struct gguf_parts *p) {
    if (!p)
        return NULL;
    for (size_t i = 0; i < p->n; i++)
        free(p->at[i].memory);
    free(p->at);
    free(p);
    return NULL;
}

/* --- copies --- */

static struct gguf_order order_of(const struct resolver *r, const struct wanted *w, enum move move) {
    if (w->move != move || !r->heads_moved)
        return (struct gguf_order){0};
    return (struct gguf_order){.first = w->first,
            .unit = w->unit,
            .k_heads = r->m->gdn_k_heads,
            .ratio = r->m->gdn_v_heads / r->m->gdn_k_heads};
}

static float element(const struct gguf_tensor *t, uint64_t i) {
    uint16_t half;
    uint32_t bits;
    float value;
    if (t->type == GGUF_TENSOR_F32) {
        memcpy(&value, (const char *)t->data + i * 4, 4);
        return value;
    }
    memcpy(&half, (const char *)t->data + i * 2, 2);
    if (t->type == GGUF_TENSOR_F16)
        return float_of_f16(half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* A vector or the convolution, as F32, with the converter's change undone. */
static int copy_values(
        const struct resolver *r, const struct wanted *w, const struct gguf_tensor *t, struct part *p) {
    const struct gguf_order rows = order_of(r, w, MOVE_ROWS);
    const uint64_t width = w->columns ? w->columns : 1;
    float *to = malloc(w->rows * width * sizeof(*to));
    if (!to)
        return error_set(r->e, -ENOMEM, "%s: out of memory for %s", p->tensor.file, w->gguf);
    p->memory = to;
    for (uint64_t row = 0; row < w->rows; row++)
        for (uint64_t i = 0; i < width; i++) {
            float value = element(t, gguf_order_at(&rows, (uint32_t)row) * width + i);
            if (w->change == CHANGE_MINUS_EXP && !(value < 0 && isfinite(value)))
                return error_set(r->e, -EINVAL,
                        "%s: %.*s: value %llu is %g: it must be negative, being -exp of something",
                        p->tensor.file, (int)t->name.bytes, t->name.data, (unsigned long long)row,
                        (double)value);
            *to++ = w->change == CHANGE_PLUS_ONE    ? value - 1.0f
                    : w->change == CHANGE_MINUS_EXP ? (float)log(-(double)value)
                                                    : value;
        }
    p->tensor.dtype = TENSOR_F32;
    p->tensor.data = p->memory;
    p->tensor.bytes = w->rows * width * sizeof(*to);
    return 0;
}

/* A dense matrix whose heads go back. */
static int copy_moved(
        const struct resolver *r, const struct wanted *w, const struct gguf_tensor *t, struct part *p) {
    const struct gguf_order rows = order_of(r, w, MOVE_ROWS), columns = order_of(r, w, MOVE_COLUMNS);
    const uint64_t size = tensor_dtype_bytes(p->tensor.dtype),
                   run = columns.ratio ? columns.unit : w->columns;
    r->t->copied_bytes += t->bytes;
    if (!r->with_copies)
        return 0;
    char *to = malloc(t->bytes);
    if (!to)
        return error_set(r->e, -ENOMEM, "%s: out of memory for a copy of %.*s of %llu bytes", p->tensor.file,
                (int)t->name.bytes, t->name.data, (unsigned long long)t->bytes);
    p->memory = to;
    p->tensor.data = to;
    for (uint64_t row = 0; row < w->rows; row++) {
        const char *from = (const char *)t->data + gguf_order_at(&rows, (uint32_t)row) * w->columns * size;
        for (uint64_t i = 0; i < w->columns; i += run, to += run * size)
            memcpy(to, from + gguf_order_at(&columns, (uint32_t)i) * size, run * size);
    }
    return 0;
}

/* --- one tensor --- */

static int check_shape(
        const struct resolver *r, const struct wanted *w, const struct gguf_tensor *t, const char *file) {
    char found[GGUF_DIMS_MAX * 22] = "", expected[48];
    size_t n = 0;
    if (w->columns == 0 && t->n_dims == 1 && t->dims[0] == w->rows)
        return 0;
    if (w->columns && t->n_dims == 2 && t->dims[1] == w->rows && t->dims[0] == w->columns)
        return 0;
    for (uint32_t i = t->n_dims; i-- > 0;)
        n += (size_t)snprintf(
                found + n, sizeof(found) - n, "%llu%s", (unsigned long long)t->dims[i], i ? ", " : "");
    n = (size_t)snprintf(expected, sizeof(expected), "%llu", (unsigned long long)w->rows);
    if (w->columns)
        snprintf(expected + n, sizeof(expected) - n, ", %llu", (unsigned long long)w->columns);
    return error_set(r->e, -EINVAL, "%s: %.*s: expected [%s], found [%s]", file, (int)t->name.bytes,
            t->name.data, expected, found);
}

static struct part *new_part(
        struct gguf_parts *parts, const char *prefix, const char *name, const char *file) {
    assert(parts->n < parts->size);
    struct part *p = &parts->at[parts->n++];
    snprintf(p->name, sizeof(p->name), "%s%s", prefix, name);
    p->tensor = (struct tensor){.name = p->name, .file = file};
    return p;
}

static int make_part(
        const struct resolver *r, const struct wanted *w, const struct gguf_tensor *t, struct part *p) {
    const struct gguf_order rows = order_of(r, w, MOVE_ROWS), columns = order_of(r, w, MOVE_COLUMNS);
    struct tensor *to = &p->tensor;
    to->n_dims = w->columns ? 2 : 1;
    to->dims[0] = w->rows;
    to->dims[1] = w->columns;
    to->bytes = t->bytes;
    to->data = t->data;
    if (w->values && gguf_is_quantised(t->type))
        return error_set(r->e, -ENOTSUP, "%s: %.*s: is %s, only matrices may be quantised", to->file,
                (int)t->name.bytes, t->name.data, gguf_tensor_type_name(t->type));
    if (w->values)
        return copy_values(r, w, t, p);
    if (gguf_is_quantised(t->type)) {
        int result = gguf_matrix_make(t, &rows, &columns, &p->matrix, r->e);
        to->dtype = TENSOR_QUANTISED;
        to->data = NULL;
        to->quant = &p->matrix.q;
        return result < 0 ? error_prefix(r->e, result, "%s", to->file) : 0;
    }
    to->dtype = t->type == GGUF_TENSOR_F32   ? TENSOR_F32
                : t->type == GGUF_TENSOR_F16 ? TENSOR_F16
                                             : TENSOR_BF16;
    if (rows.ratio >= 2 || columns.ratio >= 2)
        return copy_moved(r, w, t, p);
    return 0;
}

static int find_one(const struct resolver *r, const char *gguf_prefix, const char *prefix,
        const struct wanted *w, uint64_t *bytes) {
    char name[NAME_SIZE];
    const char *file = NULL;
    snprintf(name, sizeof(name), "%s%s", gguf_prefix, w->gguf);
    const struct gguf_tensor *t = gguf_checkpoint_find(r->gguf, name, &file);
    if (!t && w->other) {
        snprintf(name, sizeof(name), "%s%s", gguf_prefix, w->other);
        t = gguf_checkpoint_find(r->gguf, name, &file);
    }
    if (!t)
        return error_set(r->e, -ENOENT, "%s: %s%s: this tensor is missing", gguf_checkpoint_file(r->gguf),
                gguf_prefix, w->gguf);
    int result = gguf_tensor_check_read(t, file, r->e);
    if (result == 0)
        result = check_shape(r, w, t, file);
    if (result < 0)
        return result;
    struct part *p = new_part(r->t->gguf, prefix, w->name, file);
    result = make_part(r, w, t, p);
    if (result < 0)
        return result;
    r->used[checkpoint_find(r->checkpoint, name) - checkpoint_at(r->checkpoint, 0)] = true;
    r->t->n_used++;
    *bytes += t->bytes;
    *w->to = &p->tensor;
    return 0;
}

static int find_all(const struct resolver *r, const char *gguf_prefix, const char *prefix,
        const struct wanted *wanted, size_t n, uint64_t *bytes) {
    int result = 0;
    for (size_t i = 0; i < n && result == 0; i++)
        result = find_one(r, gguf_prefix, prefix, &wanted[i], bytes);
    return result;
}

/* --- groups --- */

#define MATRIX(there, here, pointer, n_rows, n_columns)                                                      \
    MOVED(there, here, pointer, n_rows, n_columns, NONE, 0, 0)
#define MOVED(there, here, pointer, n_rows, n_columns, moved, first_row, rows_of_head)                       \
    {                                                                                                        \
        .gguf = (there), .name = (here), .to = (pointer), .rows = (n_rows), .columns = (n_columns),          \
        .move = MOVE_##moved, .first = (first_row), .unit = (rows_of_head)                                   \
    }
#define VALUES(there, here, pointer, n_rows, n_columns, changed, moved, first_row, rows_of_head)             \
    {                                                                                                        \
        .gguf = (there), .name = (here), .to = (pointer), .rows = (n_rows), .columns = (n_columns),          \
        .change = CHANGE_##changed, .move = MOVE_##moved, .first = (first_row), .unit = (rows_of_head),      \
        .values = true                                                                                       \
    }
#define NORM(there, here, pointer, size) VALUES(there, here, pointer, size, 0, PLUS_ONE, NONE, 0, 0)

static int find_gdn(const struct resolver *r, const char *there, const char *here, struct gdn_tensors *g,
        uint64_t *bytes) {
    const struct model_config *m = r->m;
    const uint64_t h = m->hidden_size, heads = m->gdn_v_heads, v = heads * m->gdn_v_dim;
    const uint32_t qk = 2 * m->gdn_k_heads * m->gdn_k_dim;
    const uint32_t dv = m->gdn_v_dim;
    const struct wanted wanted[] = {
            MOVED("attn_qkv.weight", "linear_attn.in_proj_qkv.weight", &g->in_qkv, qk + v, h, ROWS, qk, dv),
            MOVED("attn_gate.weight", "linear_attn.in_proj_z.weight", &g->in_z, v, h, ROWS, 0, dv),
            MOVED("ssm_beta.weight", "linear_attn.in_proj_b.weight", &g->in_b, heads, h, ROWS, 0, 1),
            MOVED("ssm_alpha.weight", "linear_attn.in_proj_a.weight", &g->in_a, heads, h, ROWS, 0, 1),
            MOVED("ssm_out.weight", "linear_attn.out_proj.weight", &g->out, h, v, COLUMNS, 0, dv),
            VALUES("ssm_conv1d.weight", "linear_attn.conv1d.weight", &g->conv, qk + v, m->conv_kernel, NONE,
                    ROWS, qk, dv),
            {"ssm_dt.bias", "linear_attn.dt_bias", &g->dt_bias, heads, 0, CHANGE_NONE, MOVE_ROWS, 0, 1, true,
                    "ssm_dt"}, /* Ollama's */
            VALUES("ssm_a", "linear_attn.A_log", &g->a_log, heads, 0, MINUS_EXP, ROWS, 0, 1),
            VALUES("ssm_norm.weight", "linear_attn.norm.weight", &g->norm, dv, 0, NONE, NONE, 0, 0),
    };
    return find_all(r, there, here, wanted, COUNT(wanted), bytes);
}

static int find_attention(const struct resolver *r, const char *there, const char *here,
        struct attention_tensors *a, uint64_t *bytes) {
    const struct model_config *m = r->m;
    const uint64_t h = m->hidden_size, d = m->head_dim, q = m->q_heads * d, kv = m->kv_heads * d;
    const struct wanted wanted[] = {
            MATRIX("attn_q.weight", "self_attn.q_proj.weight", &a->q, 2 * q, h),
            MATRIX("attn_k.weight", "self_attn.k_proj.weight", &a->k, kv, h),
            MATRIX("attn_v.weight", "self_attn.v_proj.weight", &a->v, kv, h),
            MATRIX("attn_output.weight", "self_attn.o_proj.weight", &a->o, h, q),
            NORM("attn_q_norm.weight", "self_attn.q_norm.weight", &a->q_norm, d),
            NORM("attn_k_norm.weight", "self_attn.k_norm.weight", &a->k_norm, d),
    };
    return find_all(r, there, here, wanted, COUNT(wanted), bytes);
}

static int find_layer(const struct resolver *r, const char *there, const char *here, bool is_attention,
        struct layer_tensors *l, uint64_t *bytes) {
    const uint64_t h = r->m->hidden_size, i = r->m->intermediate_size;
    const struct wanted wanted[] = {
            NORM("attn_norm.weight", "input_layernorm.weight", &l->input_norm, h),
            NORM("post_attention_norm.weight", "post_attention_layernorm.weight", &l->post_norm, h),
            MATRIX("ffn_gate.weight", "mlp.gate_proj.weight", &l->gate, i, h),
            MATRIX("ffn_up.weight", "mlp.up_proj.weight", &l->up, i, h),
            MATRIX("ffn_down.weight", "mlp.down_proj.weight", &l->down, h, i),
    };
    l->is_attention = is_attention;
    int result = find_all(r, there, here, wanted, COUNT(wanted), bytes);
    if (result < 0)
        return result;
    return is_attention ? find_attention(r, there, here, &l->attention, bytes)
                        : find_gdn(r, there, here, &l->gdn, bytes);
}

static bool has_any(const struct checkpoint *c, const char *prefix) {
    for (size_t i = 0; i < checkpoint_count(c); i++)
        if (strncmp(checkpoint_at(c, i)->name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

/* The block after the last layer. A file may announce it and leave it out, all of it. */
static int find_mtp(const struct resolver *r, struct mtp_tensors *mtp) {
    static const char *const own[] = {"nextn.embed_tokens.weight", "nextn.shared_head_head.weight"};
    const uint64_t h = r->m->hidden_size;
    char there[NAME_SIZE / 2], name[NAME_SIZE];
    const struct wanted wanted[] = {
            MATRIX("nextn.eh_proj.weight", "fc.weight", &mtp->fc, h, 2 * h),
            NORM("nextn.enorm.weight", "pre_fc_norm_embedding.weight", &mtp->norm_embedding, h),
            NORM("nextn.hnorm.weight", "pre_fc_norm_hidden.weight", &mtp->norm_hidden, h),
            NORM("nextn.shared_head_norm.weight", "norm.weight", &mtp->norm, h),
    };
    snprintf(there, sizeof(there), "blk.%u.", r->m->n_layers);
    if (!has_any(r->checkpoint, there))
        return 0;
    for (size_t i = 0; i < COUNT(own); i++) {
        const char *file;
        snprintf(name, sizeof(name), "%s%s", there, own[i]);
        if (gguf_checkpoint_find(r->gguf, name, &file))
            return error_set(r->e, -ENOTSUP,
                    "%s: %s: an MTP layer with an embedding or head of its own is not supported", file, name);
    }
    r->t->has_mtp = true;
    int result = find_all(r, there, "mtp.", wanted, COUNT(wanted), &r->t->mtp_bytes);
    return result < 0 ? result : find_layer(r, there, "mtp.layers.0.", true, &mtp->layer, &r->t->mtp_bytes);
}

/* --- embedding and head --- */

/* Rows are gathered from the embedding, so it has to be dense: a quantised one is copied as F16, which keeps three bits
 * more than BF16. */
static int copy_embedding(const struct resolver *r, const struct part *from, struct part *to) {
    const uint64_t rows = r->m->vocab_size, columns = r->m->hidden_size, bytes = rows * columns * 2;
    to->tensor.n_dims = 2;
    to->tensor.dims[0] = rows;
    to->tensor.dims[1] = columns;
    to->tensor.dtype = TENSOR_F16;
    to->tensor.bytes = bytes;
    to->tensor.data = from->matrix.data; /* never NULL */
    r->t->copied_bytes += bytes;
    r->t->embed_copied = true;
    if (!r->with_copies)
        return 0;
    uint16_t *table = malloc(bytes);
    if (!table)
        return error_set(r->e, -ENOMEM,
                "%s: token_embd.weight: out of memory for the %llu bytes of its F16 form", from->tensor.file,
                (unsigned long long)bytes);
    to->memory = table;
    to->tensor.data = table;
    for (uint32_t i = 0; i < rows; i++)
        if (gguf_matrix_row_f16(&from->matrix, i, table + i * columns) < 0)
            return error_set(r->e, -EINVAL, "%s: token_embd.weight: row %u has a value that is no finite F16",
                    from->tensor.file, i);
    return 0;
}

static int find_ends(const struct resolver *r) {
    const struct model_config *m = r->m;
    struct model_tensors *t = r->t;
    const struct tensor *embed = NULL;
    const struct wanted ends[] = {
            MATRIX("token_embd.weight", "embed_tokens.weight", &embed, m->vocab_size, m->hidden_size),
            NORM("output_norm.weight", "norm.weight", &t->norm, m->hidden_size),
    };
    const struct wanted head =
            MATRIX("output.weight", "lm_head.weight", &t->lm_head, m->vocab_size, m->hidden_size);
    int result = find_all(r, "", t->prefix, ends, COUNT(ends), &t->bytes);
    if (result < 0)
        return result;
    t->embed = embed;
    if (embed->dtype == TENSOR_QUANTISED) {
        struct part *copy = new_part(t->gguf, t->prefix, "embed_tokens.weight", embed->file);
        result = copy_embedding(r, &t->gguf->at[0], copy);
        t->embed = &copy->tensor;
    }
    t->tied = m->tie_word_embeddings;
    if (result == 0 && t->tied)
        t->lm_head = embed; /* the head multiplies what the file has */
    else if (result == 0)
        result = find_all(r, "", "", &head, 1, &t->bytes);
    return result;
}

/* --- the whole --- */

static int list_ignored(const struct resolver *r) {
    struct model_tensors *t = r->t;
    size_t n = checkpoint_count(r->checkpoint);
    t->ignored = calloc(n + 1, sizeof(*t->ignored));
    if (!t->ignored)
        return error_set(r->e, -ENOMEM, "out of memory for a list of %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        if (!r->used[i])
            t->ignored[t->n_ignored++] = checkpoint_at(r->checkpoint, i);
    return 0;
}

static int resolve(const struct resolver *r) {
    struct model_tensors *t = r->t;
    int result = find_ends(r);
    for (uint32_t i = 0; i < r->m->n_layers && result == 0; i++) {
        char there[NAME_SIZE / 2], here[NAME_SIZE / 2];
        snprintf(there, sizeof(there), "blk.%u.", i);
        snprintf(here, sizeof(here), "%slayers.%u.", t->prefix, i);
        result = find_layer(r, there, here, r->m->is_attention[i], &t->layers[i], &t->bytes);
    }
    if (result == 0 && r->m->mtp_layers > 0)
        result = find_mtp(r, &t->mtp);
    return result < 0 ? result : list_ignored(r);
}

/* Converters that know of another order say which theirs is. */
static int find_order(struct resolver *r) {
    static const char key[] = "qwen35.ssm.v_head_reordered";
    const struct gguf *g = gguf_checkpoint_metadata(r->gguf);
    return gguf_find(g, key) ? gguf_get_bool(g, key, &r->heads_moved, r->e) : 0;
}

int gguf_tensors_resolve(const struct checkpoint *c, const struct model_config *m, bool with_copies,
        struct model_tensors **ret, struct error *e) {
    struct model_tensors *t = calloc(1, sizeof(*t));
    bool *used = calloc(checkpoint_count(c) + 1, sizeof(*used));
    struct gguf_parts *parts = calloc(1, sizeof(*parts));
    int r = -ENOMEM;
    if (!t || !used || !parts) {
        free(parts);
        goto memory;
    }
    t->gguf = parts;
    t->prefix = "model.";
    t->n_layers = m->n_layers;
    parts->size = (m->n_layers + 1ull) * PARTS_OF_LAYER + PARTS_OF_ENDS;
    parts->at = calloc(parts->size, sizeof(*parts->at));
    t->layers = calloc(m->n_layers, sizeof(*t->layers));
    if (!parts->at || !t->layers)
        goto memory;
    struct resolver resolver = {.checkpoint = c,
            .gguf = checkpoint_gguf(c),
            .m = m,
            .t = t,
            .used = used,
            .heads_moved = true,
            .with_copies = with_copies,
            .e = e};
    r = find_order(&resolver);
    if (r == 0)
        r = resolve(&resolver);
    if (r == 0) {
        *ret = t;
        t = NULL;
    }
    goto done;
memory:
    error_set(e, r, "out of memory for the tables of %u layers", m->n_layers);
done:
    model_tensors_free(t);
    free(used);
    return r;
}
