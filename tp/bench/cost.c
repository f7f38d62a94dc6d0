/* cost.c - see cost.h. */
#include "tp/bench/cost.h"

/* Bytes of one recurrent layer and sequence that one token moves. */
static double state_bytes(const struct k_shape *h, enum k_dtype of_s0) {
    const double s0 = (double)h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim,
                 key = (double)h->gdn_k_heads * h->gdn_k_dim, value = (double)h->gdn_v_heads * h->gdn_v_dim,
                 ring_row = key + value + h->gdn_v_heads, window_row = 2 * key + value;
    const double read = GDN_BLOCK / 2.0 * ring_row + (h->conv_kernel - 1.0) * window_row,
                 written = ring_row + window_row;
    return (s0 + s0 / GDN_BLOCK) * (double)k_dtype_bytes(of_s0) + (read + written) * sizeof(float);
}

static double multiply_adds(const struct model_config *m) {
    const double h = m->hidden_size, v = (double)m->gdn_v_heads * m->gdn_v_dim,
                 k = (double)m->gdn_k_heads * m->gdn_k_dim, q = (double)m->q_heads * m->head_dim,
                 kv = (double)m->kv_heads * m->head_dim;
    double n = 0;
    for (uint32_t i = 0; i < m->n_layers; i++)
        n += 3 * h * m->intermediate_size +
             (m->is_attention[i] ? h * (3 * q + 2 * kv) : h * (2 * k + 3 * v + 2.0 * m->gdn_v_heads));
    return n;
}

struct bench_cost bench_cost_of(const struct group *g) {
    const struct rank *first = group_rank(g, 0);
    struct bench_cost c = {
            .embedding = first->config.hidden_size * (first->weights.table_dtype == K_F32 ? 4.0 : 2.0),
            .multiply_adds = multiply_adds(&first->config)};
    for (uint32_t i = 0; i < g->tp; i++) {
        const struct rank *r = group_rank(g, i);
        const struct k_shape *h = &r->shard.shape;
        c.weights += (double)r->weights.linear_bytes;
        struct k_pool_cost cost;
        k_pool_cost(h, &r->budget.pool, &cost);
        c.kv += (double)cost.page_bytes / PAGE_TOKENS;
        c.state += state_bytes(h, r->budget.pool.state_dtype) * h->n_gdn_layers;
    }
    return c;
}

double bench_step_bytes(const struct bench_cost *c, uint32_t batch, double length) {
    return c->weights + batch * (c->kv * (length + 1) + c->state + c->embedding);
}
