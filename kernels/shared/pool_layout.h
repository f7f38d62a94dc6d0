/* pool_layout.h - where everything that belongs to sequences lies, and how large it is.
 *
 * Called by a backend's k_pool_create() and k_pool_cost(); kernels.h says what the parts mean. Sizes are in bytes
 * unless floats are said. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/portable.h"

struct pool_layout {
    /* GDN state of one slot and layer, floats: S0 [Hv][dk][dv] of state_dtype, ring of k [ring_rows][Hk][dk], of
     * Delta [ring_rows][Hv][dv], of G [ring_rows][Hv], conv window [window_rows][channels]; each at a multiple of 16 */
    uint64_t s0_at, k_at, delta_at, decay_at, conv_at;
    uint32_t ring_rows, window_rows;      /* C + drafts_max, W-1 + drafts_max: position p lies at p % rows */
    uint64_t gdn_floats, gdn_slot_floats; /* of one layer; of all */
    uint64_t page_head_bytes;             /* K and V of one page, layer and head, with their scales */
    uint64_t page_bytes;                  /* one page, one layer */
    /* A slot unit: a header, the MTP hidden row, the ids seen (a bit each, id 0 lowest), the GDN state of all layers;
     * each part at a multiple of 64 bytes. A page unit: its layers one after another. */
    uint64_t unit_hidden_at, unit_seen_at, unit_gdn_at;
    uint64_t slot_unit_bytes, page_unit_bytes;
};

struct pool_unit_header {
    uint32_t length, folded; /* as in struct slot */
    uint32_t reserved[14];
};

K_INLINE uint64_t align64(uint64_t n) {
    return (n + 63) & ~(uint64_t)63;
}
/* Of a page's head with INT8, in bytes: its scales, [K|V][64] fp32, behind its codes. */
K_INLINE uint64_t page_scales_at(uint32_t head_dim) {
    return 2ull * PAGE_TOKENS * head_dim;
}
K_INLINE uint32_t gdn_channels(const struct k_shape *h) {
    return 2 * h->gdn_k_heads * h->gdn_k_dim + h->gdn_v_heads * h->gdn_v_dim;
}

#ifdef __cplusplus
extern "C" {
#endif

struct pool_layout pool_layout_of(const struct k_shape *h, const struct k_pool_options *o);
/* slot_record_bytes: what the backend keeps of a slot beside its arrays. units_count: host units lie in the memory that
 * is counted, as on a CPU. */
void pool_cost_of(const struct k_shape *h, const struct k_pool_options *o, uint64_t slot_record_bytes,
        bool units_count, struct k_pool_cost *ret);
/* -EINVAL or -ENOTSUP with what a pool cannot be made for. */
int pool_check(const struct k_shape *h, const struct k_pool_options *o, struct error *e);
/* Inverse frequencies of rope, [rotary_dim / 2], each step rounded to fp32 as the reference does it. */
void pool_inverse_frequencies(const struct k_shape *h, float *ret);

#ifdef __cplusplus
}
#endif
