/* pool.c - what belongs to sequences: KV pages, GDN states, slots; host units for what is swapped out or kept.
 *
 * Created by tp/ once; every block is allocated then. Slot and page numbers were checked by tp/. */
#include "kernels/cuda/units.h"

#include <errno.h>
#include <stdlib.h>

void k_pool_cost(const struct k_shape *shape, const struct k_pool_options *options, struct k_pool_cost *ret) {
    pool_cost_of(shape, options, sizeof(struct slot) + shape->gdn_k_heads * sizeof(uint32_t),
            /* units_count= */ false, ret);
    ret->unit_stages_bytes = UNIT_STAGES * ret->slot_unit_bytes;
}

/* Room for n x size bytes on the device, or pinned on the host; sets *bad on overflow or when there is no memory. */
static void *take(struct k_context *c, uint64_t n, uint64_t size, bool device, bool *bad) {
    uint64_t bytes;
    void *p = NULL;
    if (!__builtin_mul_overflow(n, size, &bytes))
        p = device ? k_alloc(c, bytes) : k_host_alloc(c, bytes);
    if (!p)
        *bad = true;
    return p;
}
static bool take_all(struct k_pool *p) {
    struct pool_view *v = &p->view;
    const struct k_shape *h = &v->shape;
    const struct k_pool_options *o = &p->options;
    const uint64_t slots = o->slots + 1ull;
    bool bad = false;
    v->d_kv = take(p->context, (uint64_t)v->pages * h->n_attention_layers, v->layout.page_bytes, true, &bad);
    v->d_gdn = take(p->context, slots, v->layout.gdn_slot_floats * sizeof(float), true, &bad);
    v->d_slots = take(p->context, slots, sizeof *v->d_slots, true, &bad);
    v->d_tables = take(p->context, slots * o->pages_per_slot, sizeof *v->d_tables, true, &bad);
    /* one more: an odd number of them would end within a word, and words are what is changed */
    v->d_counts = take(p->context, slots * h->vocab_size + 1, sizeof *v->d_counts, true, &bad);
    v->d_hidden = take(p->context, slots * h->hidden_size, sizeof *v->d_hidden, true, &bad);
    v->d_bias_ids = take(p->context, slots * LOGIT_BIAS_MAX, sizeof *v->d_bias_ids, true, &bad);
    v->d_bias = take(p->context, slots * LOGIT_BIAS_MAX, sizeof *v->d_bias, true, &bad);
    v->d_suppress = take(p->context, slots * SUPPRESS_MAX, sizeof *v->d_suppress, true, &bad);
    v->d_inv_freq = take(p->context, h->rotary_dim / 2 + 1, sizeof *v->d_inv_freq, true, &bad);
    v->d_arrivals = take(p->context, slots * h->gdn_k_heads, sizeof *v->d_arrivals, true, &bad);
    v->page_units = take(p->context, o->page_units, v->layout.page_unit_bytes, false, &bad);
    return !bad;
}
static int upload_frequencies(struct k_pool *p, struct error *e) {
    float inv_freq[HEAD_DIM_MAX / 2];
    if (!p->view.shape.n_attention_layers)
        return 0; /* its rotary size was not checked */
    pool_inverse_frequencies(&p->view.shape, inv_freq);
    return context_upload(
            p->context, p->view.d_inv_freq, inv_freq, p->view.shape.rotary_dim / 2 * sizeof *inv_freq, e);
}

int k_pool_create(struct k_context *c, const struct k_shape *shape, const struct k_pool_options *options,
        struct k_pool **ret, struct error *e) {
    int r = pool_check(shape, options, e);
    if (r < 0)
        return r;
    struct k_pool *p = calloc(1, sizeof *p);
    if (!p)
        return error_set(e, -ENOMEM, "no memory for a pool");
    p->context = c;
    p->options = *options;
    p->view = (struct pool_view){.shape = *shape,
            .layout = pool_layout_of(shape, options),
            .pages = options->pages + 1,
            .pages_per_slot = options->pages_per_slot,
            .kv_dtype = options->kv_dtype,
            .state_dtype = options->state_dtype};
    if (!take_all(p))
        r = error_set(e, -ENOMEM,
                "device %d: no memory for %u slots and %u pages, or on the host for %u units of pages; lower the "
                "number of sequences or the context",
                c->device, options->slots, options->pages, options->page_units);
    else
        r = upload_frequencies(p, e);
    if (r == 0 && options->slot_units > 0)
        r = units_create(c, options->slot_units, p->view.layout.slot_unit_bytes, &p->units, e);
    if (r < 0)
        p = k_pool_free(p);
    else
        *ret = p;
    return r;
}

void *k_pool_slot_unit(const struct k_pool *p, uint32_t unit) {
    return units_host(p->units, unit);
}

void *k_pool_page_unit(const struct k_pool *p, uint32_t unit) {
    return p->view.page_units + unit * p->view.layout.page_unit_bytes;
}

struct k_pool *k_pool_free(struct k_pool *p) {
    if (!p)
        return NULL;
    const struct pool_view *v = &p->view;
    void *const blocks[] = {v->d_kv, v->d_gdn, v->d_slots, v->d_tables, v->d_counts, v->d_hidden,
            v->d_bias_ids, v->d_bias, v->d_suppress, v->d_inv_freq, v->d_arrivals};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        k_free(p->context, blocks[i]);
    units_free(p->units);
    k_host_free(p->context, v->page_units);
    free(p);
    return NULL;
}
