/* pool.c - what belongs to sequences: KV pages, GDN states, slots, and the memory operations on them.
 *
 * Created by tp/ once; every block is allocated then. Blocks are zero when fresh, so the pages of the
 * operating system are only taken as they are used. Slot and page numbers were checked by tp/. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct gdn_view pool_gdn(const struct k_pool *p, uint32_t slot, uint32_t layer) {
    const struct pool_layout *l = &p->layout;
    float *base = p->gdn + slot * l->gdn_slot_floats + layer * l->gdn_floats;
    return (struct gdn_view){
            base + l->s0_at, base + l->k_at, base + l->delta_at, base + l->decay_at, base + l->conv_at};
}

/* --- creation --- */

void k_pool_cost(const struct k_shape *shape, const struct k_pool_options *options, struct k_pool_cost *ret) {
    pool_cost_of(shape, options, sizeof(struct slot), /* units_count= */ true, ret);
}

/* Room for n x size bytes; sets *bad on overflow or when there is no memory. */
static void *take(struct k_context *c, uint64_t n, uint64_t size, bool *bad) {
    uint64_t bytes;
    void *p = NULL;
    if (!__builtin_mul_overflow(n, size, &bytes))
        p = k_alloc(c, bytes);
    if (!p)
        *bad = true;
    return p;
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
    p->shape = *shape;
    p->options = *options;
    p->layout = pool_layout_of(shape, options);
    const uint64_t slots = options->slots + 1ull, pages = options->pages + 1ull;
    bool bad = false;
    p->kv = take(c, pages * shape->n_attention_layers, p->layout.page_bytes, &bad);
    p->gdn = take(c, slots, p->layout.gdn_slot_floats * sizeof(float), &bad);
    p->slots = take(c, slots, sizeof *p->slots, &bad);
    p->tables = take(c, slots * options->pages_per_slot, sizeof *p->tables, &bad);
    p->counts = take(c, slots * shape->vocab_size, sizeof *p->counts, &bad);
    p->hidden = take(c, slots * shape->hidden_size, sizeof *p->hidden, &bad);
    p->bias_ids = take(c, slots * LOGIT_BIAS_MAX, sizeof *p->bias_ids, &bad);
    p->bias = take(c, slots * LOGIT_BIAS_MAX, sizeof *p->bias, &bad);
    p->suppress = take(c, slots * SUPPRESS_MAX, sizeof *p->suppress, &bad);
    p->inv_freq = take(c, shape->rotary_dim / 2 + 1, sizeof *p->inv_freq, &bad);
    p->slot_units = take(c, options->slot_units, p->layout.slot_unit_bytes, &bad);
    p->page_units = take(c, options->page_units, p->layout.page_unit_bytes, &bad);
    if (bad) {
        k_pool_free(p);
        return error_set(e, -ENOMEM,
                "no memory for %u slots and %u pages; lower the number of sequences or the context",
                options->slots, options->pages);
    }
    pool_inverse_frequencies(shape, p->inv_freq);
    *ret = p;
    return 0;
}

void *k_pool_slot_unit(const struct k_pool *p, uint32_t unit) {
    return p->slot_units + unit * p->layout.slot_unit_bytes;
}

void *k_pool_page_unit(const struct k_pool *p, uint32_t unit) {
    return p->page_units + unit * p->layout.page_unit_bytes;
}

struct k_pool *k_pool_free(struct k_pool *p) {
    if (!p)
        return NULL;
    void *const blocks[] = {p->kv, p->gdn, p->slots, p->tables, p->counts, p->hidden, p->bias_ids, p->bias,
            p->suppress, p->inv_freq, p->slot_units, p->page_units};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        k_free(p->context, blocks[i]);
    free(p);
    return NULL;
}

/* --- slots --- */

struct open_args {
    struct k_pool *p;
    uint32_t slot;
    struct k_sampling sampling;
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias[LOGIT_BIAS_MAX];
    uint32_t suppress[SUPPRESS_MAX];
};
static void run_open(struct k_stream *s, const void *args) {
    const struct open_args *a = args;
    struct k_pool *p = a->p;
    (void)s;
    struct slot *slot = &p->slots[a->slot];
    uint32_t *bias_ids = p->bias_ids + (uint64_t)a->slot * LOGIT_BIAS_MAX;
    float *bias = p->bias + (uint64_t)a->slot * LOGIT_BIAS_MAX;
    uint32_t *suppress = p->suppress + (uint64_t)a->slot * SUPPRESS_MAX;
    *slot = (struct slot){.open = 1, .sample_index = a->sampling.first_sample_index, .sampling = a->sampling};
    memcpy(bias_ids, a->bias_ids, a->sampling.n_bias * sizeof *bias_ids);
    memcpy(bias, a->bias, a->sampling.n_bias * sizeof *bias);
    memcpy(suppress, a->suppress, a->sampling.n_suppress * sizeof *suppress);
    slot->sampling.bias_ids = bias_ids;
    slot->sampling.bias = bias;
    slot->sampling.suppress = suppress;
    memset(p->counts + (uint64_t)a->slot * p->shape.vocab_size, 0, p->shape.vocab_size * sizeof *p->counts);
}
void k_slot_open(struct k_stream *s, struct k_pool *p, uint32_t slot, const struct k_sampling *sampling) {
    struct open_args a = {.p = p, .slot = slot, .sampling = *sampling};
    struct error e;
    if (sampling_check(slot, sampling, &e) < 0) {
        stream_refused(s, &e);
        return;
    }
    if (sampling->n_bias) {
        memcpy(a.bias_ids, sampling->bias_ids, sampling->n_bias * sizeof *a.bias_ids);
        memcpy(a.bias, sampling->bias, sampling->n_bias * sizeof *a.bias);
    }
    if (sampling->n_suppress)
        memcpy(a.suppress, sampling->suppress, sampling->n_suppress * sizeof *a.suppress);
    stream_submit(s, run_open, &a, sizeof a);
}

struct close_args {
    struct k_pool *p;
    uint32_t slot;
};
static void run_close(struct k_stream *s, const void *args) {
    const struct close_args *a = args;
    (void)s;
    memset(&a->p->slots[a->slot], 0, sizeof a->p->slots[a->slot]);
    memset(a->p->tables + (uint64_t)a->slot * a->p->options.pages_per_slot, 0,
            a->p->options.pages_per_slot * sizeof *a->p->tables);
}
void k_slot_close(struct k_stream *s, struct k_pool *p, uint32_t slot) {
    struct close_args a = {p, slot};
    stream_submit(s, run_close, &a, sizeof a);
}

#define GRANT_PART 256u
struct grant_args {
    struct k_pool *p;
    uint32_t slot, first, n;
    uint32_t pages[GRANT_PART];
};
static void run_grant(struct k_stream *s, const void *args) {
    const struct grant_args *a = args;
    (void)s;
    memcpy(a->p->tables + (uint64_t)a->slot * a->p->options.pages_per_slot + a->first, a->pages,
            a->n * sizeof *a->pages);
}
void k_slot_grant(struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t first, uint32_t n,
        const uint32_t *pages) {
    for (uint32_t i = 0; i < n; i += GRANT_PART) {
        struct grant_args a = {
                .p = p, .slot = slot, .first = first + i, .n = n - i < GRANT_PART ? n - i : GRANT_PART};
        memcpy(a.pages, pages + i, a.n * sizeof *pages);
        stream_submit(s, run_grant, &a, sizeof a);
    }
}

/* --- memory operations --- */

static float *slot_hidden(const struct k_pool *p, uint32_t slot) {
    return p->hidden + (uint64_t)slot * p->shape.hidden_size;
}
static float *slot_gdn(const struct k_pool *p, uint32_t slot) {
    return p->gdn + slot * p->layout.gdn_slot_floats;
}
static uint16_t *slot_counts(const struct k_pool *p, uint32_t slot) {
    return p->counts + (uint64_t)slot * p->shape.vocab_size;
}

static void zero_slot(struct k_pool *p, uint32_t slot) {
    p->slots[slot].length = 0;
    p->slots[slot].folded = 0;
    p->slots[slot].pending = p->slots[slot].n_drafts = 0;
    memset(slot_gdn(p, slot), 0, p->layout.gdn_slot_floats * sizeof(float));
    memset(slot_hidden(p, slot), 0, p->shape.hidden_size * sizeof(float));
}

static void copy_slot(struct k_pool *p, uint32_t from, uint32_t to) {
    if (from == to)
        return;
    memcpy(&p->slots[to], &p->slots[from], offsetof(struct slot, open)); /* as far as it is of the state */
    memcpy(slot_gdn(p, to), slot_gdn(p, from), p->layout.gdn_slot_floats * sizeof(float));
    memcpy(slot_hidden(p, to), slot_hidden(p, from), p->shape.hidden_size * sizeof(float));
    memcpy(slot_counts(p, to), slot_counts(p, from), p->shape.vocab_size * sizeof(uint16_t));
}

static void snapshot_slot(struct k_pool *p, uint32_t slot, uint32_t unit) {
    const struct slot *from = &p->slots[slot];
    const struct pool_layout *l = &p->layout;
    const uint16_t *counts = slot_counts(p, slot);
    uint8_t *to = p->slot_units + unit * l->slot_unit_bytes, *seen = to + l->unit_seen_at;
    const struct pool_unit_header header = {.length = from->length, .folded = from->folded};
    memcpy(to, &header, sizeof header);
    memcpy(to + l->unit_hidden_at, slot_hidden(p, slot), p->shape.hidden_size * sizeof(float));
    memset(seen, 0, l->unit_gdn_at - l->unit_seen_at);
    for (uint32_t id = 0; id < p->shape.vocab_size; id++)
        if (count_seen(counts[id], from->pending && id == from->last_id))
            seen[id / 8] |= (uint8_t)(1u << id % 8);
    memcpy(to + l->unit_gdn_at, slot_gdn(p, slot), l->gdn_slot_floats * sizeof(float));
}

/* What the snapshot had seen is prompt to the sequence that goes on from it. */
static void restore_slot(struct k_pool *p, uint32_t unit, uint32_t slot) {
    const struct pool_layout *l = &p->layout;
    const uint8_t *from = p->slot_units + unit * l->slot_unit_bytes, *seen = from + l->unit_seen_at;
    uint16_t *counts = slot_counts(p, slot);
    struct pool_unit_header header;
    memcpy(&header, from, sizeof header);
    p->slots[slot].length = header.length;
    p->slots[slot].folded = header.folded;
    p->slots[slot].pending = p->slots[slot].n_drafts = 0;
    memcpy(slot_hidden(p, slot), from + l->unit_hidden_at, p->shape.hidden_size * sizeof(float));
    for (uint32_t id = 0; id < p->shape.vocab_size; id++)
        if (seen[id / 8] >> id % 8 & 1)
            counts[id] = count_once_more(counts[id], /* generated= */ false);
    memcpy(slot_gdn(p, slot), from + l->unit_gdn_at, l->gdn_slot_floats * sizeof(float));
}

static uint8_t *page_at(const struct k_pool *p, uint32_t layer, uint32_t page) {
    return p->kv + ((uint64_t)layer * (p->options.pages + 1ull) + page) * p->layout.page_bytes;
}
static void move_page(struct k_pool *p, uint32_t kind, uint32_t a, uint32_t b) {
    for (uint32_t layer = 0; layer < p->shape.n_attention_layers; layer++) {
        const uint8_t *from = kind == K_MEM_PAGE_IN ? p->page_units + a * p->layout.page_unit_bytes +
                                                              layer * p->layout.page_bytes
                                                    : page_at(p, layer, a);
        uint8_t *to = kind == K_MEM_PAGE_OUT
                              ? p->page_units + b * p->layout.page_unit_bytes + layer * p->layout.page_bytes
                              : page_at(p, layer, b);
        if (from != to)
            memcpy(to, from, p->layout.page_bytes);
    }
}

#define MEMORY_PART 256u
struct memory_args {
    struct k_pool *p;
    uint32_t n;
    struct k_memory_op ops[MEMORY_PART];
};
static void run_memory(struct k_stream *s, const void *args) {
    const struct memory_args *a = args;
    for (uint32_t i = 0; i < a->n; i++) {
        const struct k_memory_op *op = &a->ops[i];
        switch (op->kind) {
        case K_MEM_ZERO_SLOT:
            zero_slot(a->p, op->a);
            break;
        case K_MEM_COPY_SLOT:
            copy_slot(a->p, op->a, op->b);
            break;
        case K_MEM_SNAPSHOT_SLOT:
            snapshot_slot(a->p, op->a, op->b);
            break;
        case K_MEM_RESTORE_SLOT:
            restore_slot(a->p, op->a, op->b);
            break;
        case K_MEM_COPY_PAGE:
        case K_MEM_PAGE_OUT:
        case K_MEM_PAGE_IN:
            move_page(a->p, op->kind, op->a, op->b);
            break;
        default:
            stream_fault(s, -EINVAL, "unknown memory operation %u", op->kind);
        }
    }
}
void k_memory(struct k_stream *s, struct k_pool *p, const struct k_memory_op *ops, uint32_t n) {
    for (uint32_t i = 0; i < n; i += MEMORY_PART) {
        struct memory_args a = {.p = p, .n = n - i < MEMORY_PART ? n - i : MEMORY_PART};
        memcpy(a.ops, ops + i, a.n * sizeof *ops);
        stream_submit(s, run_memory, &a, sizeof a);
    }
}

/* --- looking in --- */

int k_pool_read_gdn(
        struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t gdn_layer, float *state, float *conv) {
    stream_run_queue(s, NULL);
    const struct k_shape *h = &p->shape;
    const struct gdn_view g = pool_gdn(p, slot, gdn_layer);
    const uint64_t head = (uint64_t)h->gdn_k_dim * h->gdn_v_dim;
    const uint32_t length = p->slots[slot].length, kept = h->conv_kernel - 1;
    const enum k_dtype dtype = p->options.state_dtype;
    convert_row(dtype, g.s0, (uint32_t)(h->gdn_v_heads * head), state);
    for (uint32_t v = 0; v < h->gdn_v_heads; v++) {
        for (uint32_t at = p->slots[slot].folded; at < length; at += GDN_BLOCK) {
            const uint32_t n = length - at < GDN_BLOCK ? length - at : GDN_BLOCK;
            struct gdn_task t = {.dk = h->gdn_k_dim, .dv = h->gdn_v_dim};
            for (uint32_t i = 0; i < n; i++)
                gdn_place(h, &g, v, v / (h->gdn_v_heads / h->gdn_k_heads), (at + i) % p->layout.ring_rows, &t,
                        i);
            stream_isa(s)->gdn_fold(&t, n, state + v * head);
            if (dtype == K_F16 && n == GDN_BLOCK)
                round_row_f16((uint32_t)head, state + v * head);
        }
    }
    for (uint32_t j = 0; j < kept; j++) {
        const float *row = gdn_window_row(&p->layout, h, &g, (int64_t)length - kept + j);
        for (uint32_t c = 0; c < gdn_channels(h); c++)
            conv[(uint64_t)c * kept + j] = row[c];
    }
    return k_stream_error(s, NULL);
}
