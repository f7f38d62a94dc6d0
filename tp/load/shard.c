/* shard.c - see shard.h. Every first row and count of the sharding table is computed here and nowhere
 * else. */
#include "tp/load/shard.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static struct shard_range split(uint32_t n, uint32_t tp, uint32_t rank) {
    assert(n % tp == 0);
    return (struct shard_range){.first = n / tp * rank, .count = n / tp};
}

/* 64/tp segments of the vocabulary, cut where it ends. */
static struct shard_range split_vocabulary(uint32_t n, uint32_t tp, uint32_t rank) {
    const uint32_t share = k_vocab_segment(n) * (VOCAB_SEGMENTS / tp),
                   first = share * rank < n ? share * rank : n;
    return (struct shard_range){.first = first, .count = n - first < share ? n - first : share};
}

int shard_make(const struct model_config *m, uint32_t tp, uint32_t rank, bool with_mtp, struct shard *ret,
        struct error *e) {
    int r = model_config_check_tp(m, tp, e);
    if (r < 0)
        return r;
    if (rank >= tp)
        return error_set(e, -EINVAL, "rank %u does not exist: with %u ranks they are numbered 0 to %u", rank,
                tp, tp - 1);
    struct shard s = {0};
    s.q_heads = split(m->q_heads, tp, rank);
    if (m->kv_heads >= tp)
        s.kv_heads = split(m->kv_heads, tp, rank);
    else /* a kv head is shared by tp / kv_heads consecutive ranks */
        s.kv_heads = (struct shard_range){.first = rank / (tp / m->kv_heads), .count = 1};
    s.gdn_k_heads = split(m->gdn_k_heads, tp, rank);
    s.gdn_v_heads = split(m->gdn_v_heads, tp, rank);
    s.intermediate = split(m->intermediate_size, tp, rank);
    s.vocab = split_vocabulary(m->vocab_size, tp, rank);
    s.gdn_k_heads_full = m->gdn_k_heads;
    s.gdn_v_heads_full = m->gdn_v_heads;

    struct k_shape *k = &s.shape;
    k->tp = tp;
    k->rank = rank;
    k->hidden_size = m->hidden_size;
    k->vocab_size = m->vocab_size;
    k->vocab_first = s.vocab.first;
    k->vocab_rows = s.vocab.count;
    k->q_heads = s.q_heads.count;
    k->kv_heads = s.kv_heads.count;
    k->head_dim = m->head_dim;
    k->rotary_dim = m->rotary_dim;
    k->gdn_k_heads = s.gdn_k_heads.count;
    k->gdn_v_heads = s.gdn_v_heads.count;
    k->gdn_k_dim = m->gdn_k_dim;
    k->gdn_v_dim = m->gdn_v_dim;
    k->conv_kernel = m->conv_kernel;
    k->intermediate_size = s.intermediate.count;
    k->rms_eps = m->rms_eps;
    k->rope_theta = m->rope_theta;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (m->is_attention[i])
            k->n_attention_layers++;
        else
            k->n_gdn_layers++;
    }
    if (with_mtp)
        k->n_attention_layers++;
    *ret = s;
    return 0;
}

static void add_rows(struct shard_linear *l, const struct shard_matrix *m, uint32_t first, uint32_t rows) {
    assert(l->n_pieces < 8);
    assert(first + rows <= m->rows);
    struct k_matrix_view *v = &l->pieces[l->n_pieces++];
    *v = (struct k_matrix_view){.data = m->data,
            .row_stride = m->columns,
            .quant = m->quant,
            .tiles = m->tiles,
            .first_row = first,
            .rows = rows,
            .dtype = m->dtype};
    if (m->row_order)
        v->row_order = m->row_order + first;
    else if (m->data)
        v->data = (const uint8_t *)m->data + (uint64_t)first * m->columns * k_dtype_bytes(m->dtype);
    l->columns = m->columns;
    l->leaves = K_LEAVES;
}

void shard_attention_in(const struct shard *s, const struct shard_matrix *q, const struct shard_matrix *k,
        const struct shard_matrix *v, struct shard_linear *ret) {
    uint32_t d = s->shape.head_dim;
    *ret = (struct shard_linear){0};
    add_rows(ret, q, s->q_heads.first * 2 * d,
            s->q_heads.count * 2 * d); /* a head's query and gate stay together */
    add_rows(ret, k, s->kv_heads.first * d, s->kv_heads.count * d);
    add_rows(ret, v, s->kv_heads.first * d, s->kv_heads.count * d);
}

void shard_gdn_channels(const struct shard *s, struct shard_range ret[3]) {
    uint32_t dk = s->shape.gdn_k_dim, dv = s->shape.gdn_v_dim;
    uint32_t k_segment = s->gdn_k_heads_full * dk;
    ret[0] = (struct shard_range){s->gdn_k_heads.first * dk, s->gdn_k_heads.count * dk};
    ret[1] = (struct shard_range){k_segment + ret[0].first, ret[0].count};
    ret[2] = (struct shard_range){2 * k_segment + s->gdn_v_heads.first * dv, s->gdn_v_heads.count * dv};
}

void shard_gdn_in(const struct shard *s, const struct shard_matrix *qkv, const struct shard_matrix *z,
        const struct shard_matrix *b, const struct shard_matrix *a, struct shard_linear *ret) {
    struct shard_range channels[3];
    shard_gdn_channels(s, channels);
    *ret = (struct shard_linear){0};
    for (int i = 0; i < 3; i++)
        add_rows(ret, qkv, channels[i].first, channels[i].count);
    uint32_t dv = s->shape.gdn_v_dim;
    add_rows(ret, z, s->gdn_v_heads.first * dv, s->gdn_v_heads.count * dv);
    add_rows(ret, b, s->gdn_v_heads.first, s->gdn_v_heads.count);
    add_rows(ret, a, s->gdn_v_heads.first, s->gdn_v_heads.count);
}

void shard_gate_up(const struct shard *s, const struct shard_matrix *gate, const struct shard_matrix *up,
        struct shard_linear *ret) {
    *ret = (struct shard_linear){0};
    add_rows(ret, gate, s->intermediate.first, s->intermediate.count);
    add_rows(ret, up, s->intermediate.first, s->intermediate.count);
}

void shard_row_parallel(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret) {
    struct shard_range k = split(m->columns, s->shape.tp, s->shape.rank);
    *ret = (struct shard_linear){0};
    add_rows(ret, m, 0, m->rows);
    ret->pieces[0].first_column = k.first;
    if (m->data)
        ret->pieces[0].data = (const uint8_t *)m->data + (uint64_t)k.first * k_dtype_bytes(m->dtype);
    ret->columns = k.count;
    ret->leaves = K_LEAVES / s->shape.tp;
}

void shard_head(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret) {
    *ret = (struct shard_linear){0};
    if (s->vocab.count > 0)
        add_rows(ret, m, s->vocab.first, s->vocab.count);
}

void shard_evenly(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret) {
    const uint32_t share = m->rows / s->shape.tp;
    *ret = (struct shard_linear){0};
    assert(m->rows % s->shape.tp == 0);
    add_rows(ret, m, s->shape.rank * share, share);
}

void shard_replicated(const struct shard_matrix *m, struct shard_linear *ret) {
    *ret = (struct shard_linear){0};
    add_rows(ret, m, 0, m->rows);
}
