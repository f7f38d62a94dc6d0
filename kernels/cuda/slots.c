/* slots.c - slots are opened, granted pages and closed; memory operations on slots, pages and host units; a look at a
 * slot's GDN state.
 *
 * Called by tp/ between steps, in the stream's order; slots, pages and units were checked there. What the host gives is
 * copied into kernel arguments, so that nothing of it must stay alive. What a slot unit holds is written and read in
 * the stream's order in a stage on the device, and goes over the bus beside it (units.h). */
#include "kernels/cuda/slots.h"

#include "kernels/cuda/units.h"
#include "kernels/shared/bounds.h"
#include "kernels/shared/elementary.h"
#include "kernels/shared/numbers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void clear(struct k_stream *s, void *d_p, uint64_t bytes) {
    if (bytes)
        CUDA_QUEUED(s, cudaMemsetAsync(d_p, 0, bytes, s->stream));
}
static void copy(struct k_stream *s, void *d_to, const void *d_from, uint64_t bytes) {
    if (bytes)
        CUDA_QUEUED(s, cudaMemcpyAsync(d_to, d_from, bytes, cudaMemcpyDeviceToDevice, s->stream));
}

static uint16_t *slot_counts(const struct pool_view *v, uint32_t slot) {
    return v->d_counts + (uint64_t)slot * v->shape.vocab_size;
}
static float *slot_hidden(const struct pool_view *v, uint32_t slot) {
    return v->d_hidden + (uint64_t)slot * v->shape.hidden_size;
}
static float *slot_gdn(const struct pool_view *v, uint32_t slot) {
    return v->d_gdn + slot * v->layout.gdn_slot_floats;
}
static uint32_t *slot_table(const struct pool_view *v, uint32_t slot) {
    return v->d_tables + (uint64_t)slot * v->pages_per_slot;
}

/* --- slots --- */

_Static_assert(sizeof(struct slot) % sizeof(uint32_t) == 0, "a slot is whole words");

void k_slot_open(struct k_stream *s, struct k_pool *p, uint32_t slot, const struct k_sampling *sampling) {
    const struct pool_view *v = &p->view;
    struct error e;
    struct slot record = {.open = 1, .sample_index = sampling->first_sample_index, .sampling = *sampling};
    if (sampling_check(slot, sampling, &e) < 0) {
        stream_refused(s, &e);
        return;
    }
    if (!stream_enter(s))
        return;
    uint32_t *d_bias_ids = v->d_bias_ids + (uint64_t)slot * LOGIT_BIAS_MAX;
    float *d_bias = v->d_bias + (uint64_t)slot * LOGIT_BIAS_MAX;
    uint32_t *d_suppress = v->d_suppress + (uint64_t)slot * SUPPRESS_MAX;
    record.sampling.bias_ids = d_bias_ids;
    record.sampling.bias = d_bias;
    record.sampling.suppress = d_suppress;
    words_put(s, v->d_slots + slot, &record, sizeof record / sizeof(uint32_t));
    words_put(s, d_suppress, sampling->suppress, sampling->n_suppress);
    words_put(s, d_bias_ids, sampling->bias_ids, sampling->n_bias);
    words_put(s, d_bias, sampling->bias, sampling->n_bias);
    clear(s, slot_counts(v, slot), v->shape.vocab_size * sizeof(uint16_t));
}
void k_slot_close(struct k_stream *s, struct k_pool *p, uint32_t slot) {
    const struct pool_view *v = &p->view;
    if (!stream_enter(s))
        return;
    clear(s, v->d_slots + slot, sizeof *v->d_slots);
    clear(s, slot_table(v, slot), v->pages_per_slot * sizeof(uint32_t));
}
void k_slot_grant(struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t first, uint32_t n,
        const uint32_t *pages) {
    words_put(s, slot_table(&p->view, slot) + first, pages, n);
}

/* --- memory operations --- */

static void zero_slot(struct k_stream *s, const struct pool_view *v, uint32_t slot) {
    clear(s, v->d_slots + slot, offsetof(struct slot, last_id)); /* length, folded, pending, n_drafts */
    clear(s, slot_gdn(v, slot), v->layout.gdn_slot_floats * sizeof(float));
    clear(s, slot_hidden(v, slot), v->shape.hidden_size * sizeof(float));
}
static void copy_slot(struct k_stream *s, const struct pool_view *v, uint32_t from, uint32_t to) {
    if (from == to)
        return;
    copy(s, v->d_slots + to, v->d_slots + from,
            offsetof(struct slot, open)); /* as far as it is of the state */
    copy(s, slot_gdn(v, to), slot_gdn(v, from), v->layout.gdn_slot_floats * sizeof(float));
    copy(s, slot_hidden(v, to), slot_hidden(v, from), v->shape.hidden_size * sizeof(float));
    copy(s, slot_counts(v, to), slot_counts(v, from), v->shape.vocab_size * sizeof(uint16_t));
}

static void snapshot_slot(struct k_stream *s, const struct k_pool *p, uint32_t slot, uint32_t unit) {
    const struct pool_layout *l = &p->view.layout;
    const struct unit_args a = {p->view, slot, units_write(p->units, s, unit)};
    if (!a.d_unit)
        return;
    CUDA_QUEUED(s, queue_snapshot(s->stream, &a));
    copy(s, a.d_unit + l->unit_hidden_at, slot_hidden(&p->view, slot),
            p->view.shape.hidden_size * sizeof(float));
    copy(s, a.d_unit + l->unit_gdn_at, slot_gdn(&p->view, slot), l->gdn_slot_floats * sizeof(float));
    units_end(p->units, s);
}
static void restore_slot(struct k_stream *s, const struct k_pool *p, uint32_t unit, uint32_t slot) {
    const struct pool_layout *l = &p->view.layout;
    const struct unit_args a = {p->view, slot, units_read(p->units, s, unit)};
    if (!a.d_unit)
        return;
    CUDA_QUEUED(s, queue_restore(s->stream, &a));
    copy(s, slot_hidden(&p->view, slot), a.d_unit + l->unit_hidden_at,
            p->view.shape.hidden_size * sizeof(float));
    copy(s, slot_gdn(&p->view, slot), a.d_unit + l->unit_gdn_at, l->gdn_slot_floats * sizeof(float));
    units_end(p->units, s);
}

static void move_page(struct k_stream *s, const struct pool_view *v, const struct k_memory_op *op) {
    const uint64_t bytes = v->layout.page_bytes, stride = v->pages * bytes;
    struct page_args a = {.from = v->d_kv + op->a * bytes,
            .to = v->d_kv + op->b * bytes,
            .from_stride = stride,
            .to_stride = stride,
            .bytes = bytes,
            .layers = v->shape.n_attention_layers};
    if (op->kind == K_MEM_PAGE_IN) {
        a.from = v->page_units + op->a * v->layout.page_unit_bytes;
        a.from_stride = bytes;
    }
    if (op->kind == K_MEM_PAGE_OUT) {
        a.to = v->page_units + op->b * v->layout.page_unit_bytes;
        a.to_stride = bytes;
    }
    if (a.from != a.to && bytes && a.layers)
        CUDA_QUEUED(s, queue_page(s->stream, &a));
}

void k_memory(struct k_stream *s, struct k_pool *p, const struct k_memory_op *ops, uint32_t n) {
    if (!stream_enter(s))
        return;
    for (const struct k_memory_op *op = ops; op < ops + n; op++) {
        switch (op->kind) {
        case K_MEM_ZERO_SLOT:
            zero_slot(s, &p->view, op->a);
            break;
        case K_MEM_COPY_SLOT:
            copy_slot(s, &p->view, op->a, op->b);
            break;
        case K_MEM_SNAPSHOT_SLOT:
            snapshot_slot(s, p, op->a, op->b);
            break;
        case K_MEM_RESTORE_SLOT:
            restore_slot(s, p, op->a, op->b);
            break;
        case K_MEM_COPY_PAGE:
        case K_MEM_PAGE_OUT:
        case K_MEM_PAGE_IN:
            move_page(s, &p->view, op);
            break;
        default:
            stream_fault(s, -EINVAL, "unknown memory operation %u", op->kind);
        }
    }
}

/* --- looking in --- */

/* S after n rows of the block that begins at position `first`: the rule of a fold (kernels/cpu/isa/body_gdn.h), of one
 * value head. */
static void fold(const struct k_shape *h, const struct pool_layout *l, const float *gdn, uint32_t head,
        uint32_t first, uint32_t n, float *state) {
    const uint32_t dk = h->gdn_k_dim, dv = h->gdn_v_dim, k_head = head / (h->gdn_v_heads / h->gdn_k_heads);
    uint32_t row[GDN_BLOCK];
    for (uint32_t j = 0; j < n; j++)
        row[j] = (first + j) % l->ring_rows;
    const float *decay = gdn + l->decay_at + head, last = decay[row[n - 1] * h->gdn_v_heads];
    for (uint32_t k = 0; k < dk; k++) {
        for (uint32_t c = 0; c < dv; c++) {
            float x = f32_exp(last) * state[k * dv + c];
            for (uint32_t j = 0; j < n; j++) {
                const float fade = f32_exp(last - decay[row[j] * h->gdn_v_heads]);
                const float kj = gdn[l->k_at + (row[j] * h->gdn_k_heads + k_head) * dk + k];
                x = fmaf(fade * kj, gdn[l->delta_at + (row[j] * h->gdn_v_heads + head) * dv + c], x);
            }
            state[k * dv + c] = x;
        }
    }
}
static void unpack_gdn(const struct pool_view *v, bool drafts, const float *gdn, const struct slot *slot,
        float *state, float *conv) {
    const struct k_shape *h = &v->shape;
    const struct pool_layout *l = &v->layout;
    const uint64_t head = (uint64_t)h->gdn_k_dim * h->gdn_v_dim;
    const uint32_t length = slot->length, window = h->conv_kernel - 1;
    convert_row(v->state_dtype, gdn + l->s0_at, (uint32_t)(h->gdn_v_heads * head), state);
    for (uint32_t i = 0; i < h->gdn_v_heads; i++) {
        for (uint32_t at = slot->folded; at < length; at += GDN_BLOCK) {
            const uint32_t n = length - at < GDN_BLOCK ? length - at : GDN_BLOCK;
            fold(h, l, gdn, i, at, n, state + i * head);
            if (v->state_dtype == K_F16 && n == GDN_BLOCK)
                round_row_f16((uint32_t)head, state + i * head);
        }
    }
    for (uint32_t c = 0; c < gdn_channels(h); c++)
        for (uint32_t j = 0; j < window; j++) { /* without drafts it lies there oldest first: gdn.cuh */
            const uint64_t row = drafts ? (length + l->window_rows - window + j) % l->window_rows : j;
            conv[(uint64_t)c * window + j] = gdn[l->conv_at + row * gdn_channels(h) + c];
        }
}

int k_pool_read_gdn(
        struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t gdn_layer, float *state, float *conv) {
    const struct pool_view *v = &p->view;
    const uint64_t bytes = v->layout.gdn_floats * sizeof(float);
    struct slot record;
    float *gdn = malloc(bytes + 1);
    if (!gdn)
        return -ENOMEM;
    k_download(s, gdn, slot_gdn(v, slot) + gdn_layer * v->layout.gdn_floats, bytes);
    k_download(s, &record, v->d_slots + slot, sizeof record);
    int r = k_stream_wait(s, 0, NULL);
    if (r == 0)
        unpack_gdn(v, p->options.drafts_max > 0, gdn, &record, state, conv);
    free(gdn);
    return r;
}
