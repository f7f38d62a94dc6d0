/* pool_layout.c - see pool_layout.h. */
#include "kernels/shared/pool_layout.h"

#include "kernels/shared/constants.h"
#include "kernels/shared/numbers.h"

#include <errno.h>
#include <string.h>

static uint64_t align16(uint64_t floats) {
    return (floats + 15) & ~UINT64_C(15);
}
static void lay_out_gdn(const struct k_shape *h, const struct k_pool_options *o, struct pool_layout *l) {
    const uint64_t s0_bytes =
            (uint64_t)h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim * k_dtype_bytes(o->state_dtype);
    l->ring_rows = GDN_BLOCK + o->drafts_max;
    l->window_rows = (h->conv_kernel ? h->conv_kernel - 1 : 0) + o->drafts_max;
    l->s0_at = 0;
    l->k_at = align16(l->s0_at + (s0_bytes + sizeof(float) - 1) / sizeof(float));
    l->delta_at = align16(l->k_at + (uint64_t)l->ring_rows * h->gdn_k_heads * h->gdn_k_dim);
    l->decay_at = align16(l->delta_at + (uint64_t)l->ring_rows * h->gdn_v_heads * h->gdn_v_dim);
    l->conv_at = align16(l->decay_at + (uint64_t)l->ring_rows * h->gdn_v_heads);
    l->gdn_floats = align16(l->conv_at + (uint64_t)l->window_rows * gdn_channels(h));
    l->gdn_slot_floats = l->gdn_floats * h->n_gdn_layers;
}

struct pool_layout pool_layout_of(const struct k_shape *h, const struct k_pool_options *o) {
    struct pool_layout l = {0};
    lay_out_gdn(h, o, &l);
    l.page_head_bytes = 2ull * PAGE_TOKENS * h->head_dim * k_dtype_bytes(o->kv_dtype);
    if (o->kv_dtype == K_INT8)
        l.page_head_bytes = page_scales_at(h->head_dim) + 2 * PAGE_TOKENS * sizeof(float);
    l.page_bytes = l.page_head_bytes * h->kv_heads;
    l.unit_hidden_at = sizeof(struct pool_unit_header);
    l.unit_seen_at = l.unit_hidden_at + align64((uint64_t)h->hidden_size * sizeof(float));
    l.unit_gdn_at = l.unit_seen_at + align64((h->vocab_size + 7) / 8);
    l.slot_unit_bytes = l.unit_gdn_at + align64(l.gdn_slot_floats * sizeof(float));
    l.page_unit_bytes = align64(l.page_bytes * h->n_attention_layers);
    return l;
}

void pool_cost_of(const struct k_shape *h, const struct k_pool_options *o, uint64_t slot_record_bytes,
        bool units_count, struct k_pool_cost *ret) {
    const struct pool_layout l = pool_layout_of(h, o);
    ret->slot_bytes = l.gdn_slot_floats * sizeof(float) + slot_record_bytes +
                      (uint64_t)o->pages_per_slot * sizeof(uint32_t) +
                      (uint64_t)h->vocab_size * sizeof(uint16_t) + (uint64_t)h->hidden_size * sizeof(float) +
                      BIAS_BYTES + SUPPRESS_MAX * sizeof(uint32_t);
    ret->page_bytes = l.page_bytes * h->n_attention_layers;
    ret->fixed_bytes = ret->slot_bytes + ret->page_bytes + h->rotary_dim / 2 * sizeof(float);
    ret->slot_unit_bytes = l.slot_unit_bytes;
    ret->page_unit_bytes = l.page_unit_bytes;
    ret->unit_stages_bytes = 0;
    if (units_count)
        ret->fixed_bytes += o->slot_units * l.slot_unit_bytes + o->page_units * l.page_unit_bytes;
}

void pool_inverse_frequencies(const struct k_shape *h, float *ret) {
    for (uint32_t i = 0; i < h->rotary_dim / 2; i++)
        ret[i] = 1.0f / (float)power(h->rope_theta, (float)(2 * i) / (float)h->rotary_dim);
}

int pool_check(const struct k_shape *h, const struct k_pool_options *o, struct error *e) {
    if (o->slots < 1 || o->slots > SEQS_MAX)
        return error_set(e, -EINVAL, "%u slots; 1 to %u are possible", o->slots, SEQS_MAX);
    if (o->kv_dtype != K_F32 && o->kv_dtype != K_BF16 && o->kv_dtype != K_INT8)
        return error_set(e, -EINVAL, "the KV cache can be f32, bf16 or int8");
    if (o->state_dtype != K_F32 && o->state_dtype != K_F16)
        return error_set(e, -EINVAL, "the recurrent state can be f32 or f16");
    if (o->drafts_max > DRAFT_MAX)
        return error_set(e, -EINVAL, "%u drafts; at most %u are possible", o->drafts_max, DRAFT_MAX);
    if (h->n_attention_layers &&
            (h->head_dim < 1 || h->head_dim > HEAD_DIM_MAX || h->rotary_dim > h->head_dim ||
                    h->rotary_dim % 2 || !h->kv_heads || h->q_heads % h->kv_heads))
        return error_set(e, -ENOTSUP,
                "attention heads (%u query, %u key/value, size %u, rotary %u) are not supported: size at most "
                "%u, query heads a multiple of key/value heads, rotary even and not above the size",
                h->q_heads, h->kv_heads, h->head_dim, h->rotary_dim, HEAD_DIM_MAX);
    if (h->n_gdn_layers &&
            (h->gdn_k_dim < 1 || h->gdn_k_dim > GDN_DIM_MAX || h->gdn_v_dim < 1 ||
                    h->gdn_v_dim > GDN_DIM_MAX || h->conv_kernel < 2 || h->conv_kernel > CONV_KERNEL_MAX ||
                    !h->gdn_k_heads || h->gdn_v_heads % h->gdn_k_heads))
        return error_set(e, -ENOTSUP,
                "linear attention heads (%u key of size %u, %u value of size %u, convolution %u) are not "
                "supported: sizes at most %u, value heads a multiple of key heads, convolution 2 to %u",
                h->gdn_k_heads, h->gdn_k_dim, h->gdn_v_heads, h->gdn_v_dim, h->conv_kernel, GDN_DIM_MAX,
                CONV_KERNEL_MAX);
    return 0;
}

bool k_slot_unit_may_be(const void *unit, uint32_t length) {
    struct pool_unit_header h;
    memcpy(&h, unit, sizeof(h));
    return h.length == length && h.folded % GDN_BLOCK == 0 && h.folded <= length &&
           length - h.folded <= GDN_BLOCK + DRAFT_MAX;
}
