/* gdn.c - k_gdn_step: which kernels a step needs, and their scratch. */
#include "kernels/cuda/gdn.h"

#include "kernels/cuda/internal.h"

/* Floats of blocks of long entries that a step of `rows` rows may have; nothing where no entry can be long. */
static uint64_t lay_out(const struct k_shape *h, uint32_t rows, float *d_from, struct gdn_scratch *ret) {
    const uint64_t blocks = rows > GDN_LONG ? GDN_BLOCKS_OF(rows) : 0, c = GDN_BLOCK,
                   x = blocks * h->gdn_k_heads * h->gdn_k_dim * 2 * c,
                   dots = blocks * h->gdn_k_heads * 2 * c * c, gates = blocks * h->gdn_v_heads * 2 * c;
    if (ret)
        *ret = (struct gdn_scratch){.d_x = d_from, .d_dots = d_from + x, .d_gates = d_from + x + dots};
    return x + dots + gates;
}
uint64_t gdn_scratch_bytes(const struct k_shape *h, uint32_t rows) {
    return lay_out(h, rows, NULL, NULL) * sizeof(float);
}

void k_gdn_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t gdn_layer,
        const struct k_gdn_weights *w, const float *in, float *out) {
    const struct k_shape *h = &p->view.shape;
    const uint32_t rows = b->bounds.rows, entries = b->bounds.entries < rows ? b->bounds.entries : rows;
    const struct device_size *size = &s->context->size;
    struct gdn_args a = {.pool = p->view,
            .batch = b->view,
            .w = *w,
            .d_in = in,
            .d_out = out,
            .layer = gdn_layer,
            .rows_most = GDN_LONG};
    if (rows == 0 || entries == 0)
        return;
    if (p->options.drafts_max > 0) {
        a.rows = ring_of(p->view.layout.ring_rows);
        a.window = ring_of(p->view.layout.window_rows);
    }
    if (rows > GDN_LONG) {
        float *d_scratch = stream_scratch(s, gdn_scratch_bytes(h, rows));
        if (!d_scratch)
            return;
        lay_out(h, rows, d_scratch, &a.scratch);
        if (!CUDA_QUEUED(s, queue_gdn_blocks(s->stream, &a, entries, rows, size)))
            return;
    }
    const struct made_of of = {
            .b = b, .d_from = out, .columns = h->gdn_v_heads * h->gdn_v_dim, .piece = GDN_ROW_DIM};
    struct made made;
    const bool rounds = gdn_can_round(h, rows, size) && made_wanted(s, s->expected, &of, &made);
    if (rounds)
        a.codes = made.codes;
    if (CUDA_QUEUED(s, queue_gdn_rows(s->stream, &a, entries, rows, size)) && rounds)
        s->made = made;
}
