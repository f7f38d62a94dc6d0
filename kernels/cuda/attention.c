/* attention.c - the attention mixer: its scratch, and what it queues for a step's bounds.
 *
 * Scratch, from the start of the stream's workspace: q of all rows, the list of tiles, and room for the parts of
 * leaves that other blocks combine. A step does not know on the host how deep its sequences are; there is room for
 * PARTS_LEAVES leaves of every query head, a million positions, and what is beyond that a block computes whole. */
#include "kernels/cuda/internal.h"

#define PARTS_LEAVES 4096u

struct scratch { /* where things lie, in bytes; at multiples of 64 */
    uint64_t q, list, small, large, arrived, sums, values, all;
};
static uint64_t tiles_of(const struct k_shape *h, uint64_t rows, uint32_t queries) {
    const uint64_t group = h->kv_heads ? h->q_heads / h->kv_heads : 0;
    return rows * group / queries +
           rows; /* every entry has a last one, and there are at most as many entries */
}
static struct scratch scratch_of(const struct k_shape *h, uint64_t rows) {
    const uint64_t small = tiles_of(h, rows, SMALL_QUERIES), large = tiles_of(h, rows, LARGE_QUERIES),
                   parts = (uint64_t)PARTS_LEAVES * h->q_heads;
    struct scratch at = {0};
    const uint64_t words = word_query_bytes(word_columns(h->head_dim)), floats = h->head_dim * sizeof(float);
    at.list = at.q + align64(rows * h->q_heads * (words > floats ? words : floats));
    at.small = at.list + align64(sizeof(struct attention_list));
    at.large = at.small + align64(small * sizeof(struct attention_tile));
    at.arrived = at.large + align64(large * sizeof(struct attention_tile));
    at.sums = at.arrived + align64(small * h->kv_heads * sizeof(uint32_t));
    at.values = at.sums + align64(parts * 2 * sizeof(float));
    at.all = at.values + align64(parts * h->head_dim * sizeof(float));
    return at;
}
uint64_t attention_scratch_bytes(const struct k_shape *h, uint32_t rows) {
    return h->n_attention_layers ? scratch_of(h, rows).all : 0;
}

static struct attention_bounds bounds_of(const struct k_stream *s, const struct k_pool *p,
        const struct k_batch *b, const struct attention_args *a) {
    const struct k_shape *h = &p->view.shape;
    const uint64_t in_pages = (uint64_t)p->view.pages_per_slot * PAGE_TOKENS,
                   asked = (uint64_t)b->bounds.context + a->shift,
                   context = asked < in_pages ? asked : in_pages;
    const uint64_t rows = b->bounds.rows, entries = b->bounds.entries < rows ? b->bounds.entries : rows,
                   long_ones = rows / LARGE_ROWS < entries ? rows / LARGE_ROWS : entries,
                   queries = rows * (h->q_heads / h->kv_heads);
    return (struct attention_bounds){.rows = b->bounds.rows,
            .entries = (uint32_t)entries,
            .small = (uint32_t)(queries / SMALL_QUERIES + entries),
            .large = a->large ? (uint32_t)(queries / LARGE_QUERIES + long_ones) : 0,
            .leaves = (uint32_t)((context + ATTENTION_LEAF - 1) / ATTENTION_LEAF),
            .sms = s->context->size.sms,
            .shared_of_sm = s->context->size.shared_of_sm};
}

void k_attention_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t attention_layer,
        uint32_t kv_shift, const struct k_attention_weights *w, const float *in, float *out) {
    const struct k_shape *h = &p->view.shape;
    const struct scratch at = scratch_of(h, b->bounds.rows);
    uint8_t *d_scratch = stream_scratch(s, at.all);
    if (b->bounds.rows == 0 || !d_scratch || !CUDA_QUEUED(s, cudaSetDevice(s->context->device)))
        return;
    struct attention_args a = {.pool = p->view,
            .batch = b->view,
            .d_q_norm = w->q_norm,
            .d_k_norm = w->k_norm,
            .d_in = in,
            .d_out = out,
            .layer = attention_layer,
            .shift = kv_shift,
            .group = h->q_heads / h->kv_heads,
            .group_inverse = (float)h->kv_heads / (float)h->q_heads,
            .large = p->view.kv_dtype != K_F32 && h->head_dim <= LARGE_DIM && b->bounds.rows >= LARGE_ROWS,
            .parts_max = PARTS_LEAVES * (h->q_heads / h->kv_heads),
            .d_q = d_scratch + at.q,
            .d_list = (struct attention_list *)(d_scratch + at.list),
            .d_small = (struct attention_tile *)(d_scratch + at.small),
            .d_large = (struct attention_tile *)(d_scratch + at.large),
            .d_arrived = (uint32_t *)(d_scratch + at.arrived),
            .d_sums = (float *)(d_scratch + at.sums),
            .d_values = (float *)(d_scratch + at.values)};
    const struct attention_bounds bounds = bounds_of(s, p, b, &a);
    if (attend_is_few(&a, &bounds)) {
        const struct made_of of = {.b = b,
                .d_from = out,
                .columns = h->q_heads * h->head_dim,
                .piece = ACTIVATION_RUN,
                .scratch = at.all};
        struct made made;
        const bool rounds = made_wanted(s, s->expected, &of, &made);
        a.large = false;
        a.d_arrived = s->d_arrivals;
        if (rounds)
            a.codes = made.codes;
        if (CUDA_QUEUED(s, queue_attend_few(s->stream, &a, &bounds)) && rounds)
            s->made = made;
        return;
    }
    if (CUDA_QUEUED(s, queue_attention_rows(s->stream, &a, &bounds)))
        CUDA_QUEUED(s, queue_attend(s->stream, &a, &bounds));
}
