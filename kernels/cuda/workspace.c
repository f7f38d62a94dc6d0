/* workspace.c - the scratch that the operations of a stream share: each takes all of it from its start; at its end
 * what one leaves for the next, which may leave something itself while it reads it. */
#include "kernels/cuda/internal.h"

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}
size_t k_workspace_bytes(const struct k_shape *shape, uint32_t rows_max, uint32_t samples_max) {
    const struct k_shape *h = shape;
    uint64_t columns = larger(2ull * h->hidden_size, h->intermediate_size);
    (void)samples_max; /* the head takes HEAD_ROWS at a time, however many there are */
    columns = larger(
            columns, larger((uint64_t)h->q_heads * h->head_dim, (uint64_t)h->gdn_v_heads * h->gdn_v_dim));
    const uint64_t products = product_scratch_bytes(columns, rows_max, 2ull * h->intermediate_size);
    const uint64_t mixers = larger(gdn_scratch_bytes(h, rows_max), attention_scratch_bytes(h, rows_max));
    return larger(larger(products, head_scratch_bytes(h)), mixers) +
           made_scratch_bytes(columns, rows_max, /* terms= */ false) +
           (h->tp > 1 ? made_scratch_bytes(h->hidden_size, rows_max, /* terms= */ true) : 0);
}
