/* linears.c - see linears.h. */
#include "tp/load/linears.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- matrices --- */

static enum k_dtype dtype_of(const struct tensor *t) { /* model_tensors_resolve let no other dtype through */
    return t->dtype == TENSOR_F32 ? K_F32 : t->dtype == TENSOR_F16 ? K_F16 : K_BF16;
}

static void add(struct linear *x, const struct tensor *t, uint32_t rows, uint32_t columns) {
    assert(x->n < LINEAR_MATRICES_MAX);
    struct shard_matrix *m = &x->m[x->n];
    *m = (struct shard_matrix){.rows = rows, .columns = columns, .dtype = K_BF16};
    if (t) {
        assert(t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == columns);
        m->data = t->data;
        m->quant = t->quant;
        if (!t->quant)
            m->dtype = dtype_of(t);
    }
    x->t[x->n++] = t;
}

static struct linear *begin(struct linear *x, enum linear_kind kind, const char *prefix, const char *name) {
    *x = (struct linear){.kind = kind};
    snprintf(x->name, sizeof(x->name), "%s%s", prefix, name);
    return x;
}

/* --- orders --- */

static const uint32_t *order_of(const struct tensor *t) {
    return t && t->quant ? t->quant->order : NULL;
}

static bool same_order(const uint32_t *a, const uint32_t *b, uint32_t n) {
    return a == b || (a && b && memcmp(a, b, n * sizeof(*a)) == 0);
}

/* The order that all quantised matrices of the linear agree on. */
static int find_order(struct linear *x, struct error *e) {
    const struct tensor *first = NULL;
    for (uint32_t i = 0; i < x->n; i++) {
        const struct tensor *t = x->t[i];
        if (!t || !t->quant)
            continue;
        if (!first)
            first = t;
        else if (!same_order(order_of(first), order_of(t), x->m[i].columns))
            return error_set(e, -ENOTSUP,
                    "%s: %s: its columns are in another act-order than those of %s, which has the same input; "
                    "quantise the model again with desc_act false",
                    t->file, t->name, first->name);
    }
    x->order = order_of(first);
    return 0;
}

/* --- the linears of a model --- */

static void attention(const struct model_config *m, const struct attention_tensors *t, const char *prefix,
        struct linear *in, struct linear *out) {
    uint32_t h = m->hidden_size, d = m->head_dim;
    begin(in, LINEAR_ATTENTION_IN, prefix, "self_attn.qkv");
    add(in, t->q, m->q_heads * 2 * d, h);
    add(in, t->k, m->kv_heads * d, h);
    add(in, t->v, m->kv_heads * d, h);
    begin(out, LINEAR_ROW_PARALLEL, prefix, "self_attn.o_proj");
    add(out, t->o, h, m->q_heads * d);
}

static void gdn(const struct model_config *m, const struct gdn_tensors *t, const char *prefix,
        struct linear *in, struct linear *out) {
    uint32_t h = m->hidden_size, v_rows = m->gdn_v_heads * m->gdn_v_dim;
    begin(in, LINEAR_GDN_IN, prefix, "linear_attn.in_proj");
    add(in, t->in_qkv, 2 * m->gdn_k_heads * m->gdn_k_dim + v_rows, h);
    add(in, t->in_z, v_rows, h);
    add(in, t->in_b, m->gdn_v_heads, h);
    add(in, t->in_a, m->gdn_v_heads, h);
    begin(out, LINEAR_ROW_PARALLEL, prefix, "linear_attn.out_proj");
    add(out, t->out, h, v_rows);
}

int linears_of_layer(const struct model_config *m, const struct layer_tensors *t, bool is_attention,
        const char *prefix, struct linear ret[LINEARS_OF_LAYER], struct error *e) {
    static const struct layer_tensors none;
    uint32_t h = m->hidden_size, i = m->intermediate_size;
    if (!t)
        t = &none;
    if (is_attention)
        attention(m, &t->attention, prefix, &ret[LINEAR_MIXER_IN], &ret[LINEAR_MIXER_OUT]);
    else
        gdn(m, &t->gdn, prefix, &ret[LINEAR_MIXER_IN], &ret[LINEAR_MIXER_OUT]);
    struct linear *in = begin(&ret[LINEAR_MLP_IN], LINEAR_GATE_UP, prefix, "mlp.gate_up"),
                  *out = begin(&ret[LINEAR_MLP_OUT], LINEAR_ROW_PARALLEL, prefix, "mlp.down_proj");
    add(in, t->gate, i, h);
    add(in, t->up, i, h);
    add(out, t->down, h, i);
    for (int k = 0; k < LINEARS_OF_LAYER; k++) {
        int r = find_order(&ret[k], e);
        if (r < 0)
            return r;
    }
    in->m[0].row_order = in->m[1].row_order = out->order; /* what down wants, gate and up deliver */
    out->order = NULL;
    return 0;
}

void linear_of_fc(const struct model_config *m, const struct tensor *fc, struct linear *ret) {
    begin(ret, LINEAR_REPLICATED, "mtp.", "fc");
    add(ret, fc, m->hidden_size, 2 * m->hidden_size);
    ret->order = order_of(fc);
}

void linear_of_head(const struct model_config *m, const struct tensor *head, struct linear *ret) {
    begin(ret, LINEAR_HEAD, "", "lm_head");
    add(ret, head, m->vocab_size, m->hidden_size);
    ret->order = order_of(head);
}

void linear_of_draft_head(const struct model_config *m, const struct tensor *head, const uint32_t *ids,
        uint32_t n, struct linear *ret) {
    begin(ret, LINEAR_DRAFT_HEAD, "mtp.", "draft_head");
    add(ret, head, m->vocab_size, m->hidden_size);
    ret->m[0].rows = n;
    ret->m[0].row_order = ids;
    ret->order = order_of(head);
}

/* --- sharding --- */

static void shard_by_kind(const struct linear *x, const struct shard *s, struct shard_linear *ret) {
    switch (x->kind) {
    case LINEAR_ATTENTION_IN:
        shard_attention_in(s, &x->m[0], &x->m[1], &x->m[2], ret);
        break;
    case LINEAR_GDN_IN:
        shard_gdn_in(s, &x->m[0], &x->m[1], &x->m[2], &x->m[3], ret);
        break;
    case LINEAR_GATE_UP:
        shard_gate_up(s, &x->m[0], &x->m[1], ret);
        break;
    case LINEAR_ROW_PARALLEL:
        shard_row_parallel(s, &x->m[0], ret);
        break;
    case LINEAR_HEAD:
        shard_head(s, &x->m[0], ret);
        break;
    case LINEAR_REPLICATED:
        shard_replicated(&x->m[0], ret);
        break;
    case LINEAR_DRAFT_HEAD:
        shard_evenly(s, &x->m[0], ret);
    }
}

/* The rank's part of an order, counted from the rank's own first input. */
static int local_order(
        const struct linear *x, const struct shard *s, uint32_t columns, uint32_t **ret, struct error *e) {
    const struct tensor *t = x->t[0];
    uint32_t first = s->shape.rank * columns;
    uint32_t *local = malloc(columns * sizeof(*local));
    if (!local)
        return error_set(e, -ENOMEM, "%s: out of memory for the order of %u columns", x->name, columns);
    for (uint32_t i = 0; i < columns; i++) {
        local[i] = x->order[first + i] - first; /* wraps to something large when it lies before */
        if (local[i] >= columns) {
            free(local);
            return error_set(e, -ENOTSUP,
                    "%s: %s: its act-order mixes columns of different ranks, so it cannot be split over %u; use "
                    "--tensor-parallel-size 1, or quantise the model again with desc_act false (or with the "
                    "group-wise act-order, actorder \"weight\")",
                    t->file, t->name, s->shape.tp);
        }
    }
    *ret = local;
    return 0;
}

int linear_shard(const struct linear *x, const struct shard *s, struct shard_linear *ret,
        const uint32_t **ret_order, uint32_t **ret_owned, struct error *e) {
    uint32_t *owned = NULL;
    const uint32_t *order = x->order;
    shard_by_kind(x, s, ret);
    if (order && ret->columns != x->m[0].columns) {
        int r = local_order(x, s, ret->columns, &owned, e);
        if (r < 0)
            return r;
        order = owned;
    }
    *ret_order = order;
    *ret_owned = owned;
    return 0;
}

bool linear_tiles_serve(const struct linear *x, uint32_t i, const struct model_config *m) {
    struct linear probe = *x;
    const struct k_tiles marks[LINEAR_MATRICES_MAX] = {0};
    for (uint32_t k = 0; k < x->n; k++) {
        probe.m[k].tiles = &marks[k];
        probe.m[k].row_order = NULL;
    }
    for (uint32_t tp = 1; tp <= RANKS_MAX; tp *= 2) {
        for (uint32_t rank = 0; rank < tp; rank++) {
            struct shard s;
            struct shard_linear part;
            if (shard_make(m, tp, rank, false, &s, NULL) < 0)
                break;
            shard_by_kind(&probe, &s, &part);
            for (uint32_t k = 0; k < part.n_pieces; k++)
                if (part.pieces[k].tiles == &marks[i] && part.pieces[k].first_row % 16 != 0)
                    return false;
        }
    }
    return true;
}
