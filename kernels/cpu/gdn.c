/* gdn.c - one Gated DeltaNet mixer over a batch: which rows, slots and heads the bodies of body_gdn.h get.
 *
 * One task per sequence and key head does all of it, since the value heads of a key head share nothing with others:
 * convolution with SiLU over [window | rows], L2 norms, gates; then each value head walks its rows block by block;
 * at last the ring of k and the convolution window take the last rows.
 *
 * A block whose 16 rows are all there stays in the ring until a step that begins behind it folds it into S0, or a
 * prompt's rows reach the next block. Drafts may be wrong: a block that they complete is folded into a copy, and
 * the slot keeps its rows, besides those of the drafts behind it. */
#include "kernels/cpu/internal.h"

#include <math.h>
#include <string.h>

struct gdn_args {
    struct k_pool *p;
    const struct k_batch *b;
    struct k_gdn_weights w;
    const float *in;
    float *out;
    uint32_t layer;
};
struct gdn_job {
    const struct gdn_args *a;
    const struct isa *isa;
    float *mixed;             /* [R][channels] after convolution, q and k normalised */
    float *g, *beta;          /* [R][Hv] */
    uint32_t channels, width; /* width: columns of `in` */
};

/* Row i of the entry before convolution; negative i lie in the slot's window. */
static const float *pre_conv(
        const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g, int64_t i) {
    if (i < 0)
        return gdn_window_row(&j->a->p->layout, &j->a->p->shape, g, j->a->b->row_pos[e->row_begin] + i);
    return j->a->in + (e->row_begin + (uint64_t)i) * j->width;
}

/* Channels first .. first + n - 1 of a row. */
static void convolve(const struct gdn_job *j, const float *const *x, uint32_t first, uint32_t n, float *y) {
    const uint32_t n_taps = j->a->p->shape.conv_kernel;
    const float *from[CONV_KERNEL_MAX], *taps = j->a->w.conv + first;
    for (uint32_t t = 0; t < n_taps; t++) {
        from[t] = x[t] + first;
        /* many short streams: all at once is faster than as they come */
        for (uint32_t i = 0; i < n; i += 16) {
            __builtin_prefetch(from[t] + i);
            __builtin_prefetch(taps + (uint64_t)t * j->channels + i);
        }
    }
    j->isa->conv_row(from, taps, j->channels, n_taps, n, y + first);
}

struct columns { /* channels of one key head: its q, its k, the v of its value heads */
    uint32_t first[3], n[3];
};
static struct columns columns_of(const struct k_shape *h, uint32_t head) {
    const uint32_t dk = h->gdn_k_dim, keys = h->gdn_k_heads * dk,
                   dv = h->gdn_v_heads / h->gdn_k_heads * h->gdn_v_dim;
    return (struct columns){{head * dk, keys + head * dk, 2 * keys + head * dv}, {dk, dk, dv}};
}

/* q, k and v after the convolution, and the gates, of one row and key head. */
static void gdn_row(const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g, uint32_t row,
        uint32_t head) {
    const struct k_shape *h = &j->a->p->shape;
    const struct columns c = columns_of(h, head);
    const uint32_t dk = h->gdn_k_dim, n = h->gdn_v_heads / h->gdn_k_heads, v = head * n;
    const float *x[CONV_KERNEL_MAX], *in = j->a->in + (uint64_t)row * j->width;
    float *y = j->mixed + (uint64_t)row * j->channels;
    for (uint32_t t = 0; t < h->conv_kernel; t++)
        x[t] = pre_conv(j, e, g, (int64_t)row - e->row_begin - h->conv_kernel + 1 + t);
    for (uint32_t i = 0; i < 3; i++)
        convolve(j, x, c.first[i], c.n[i], y);
    j->isa->l2_row(y + c.first[0], dk, 1.0f / sqrtf((float)dk));
    j->isa->l2_row(y + c.first[1], dk, 1.0f);
    const float *b = in + j->channels + (uint64_t)h->gdn_v_heads * h->gdn_v_dim, *a = b + h->gdn_v_heads;
    const uint64_t at = (uint64_t)row * h->gdn_v_heads + v;
    j->isa->gdn_gates(a + v, b + v, j->a->w.a_log + v, j->a->w.dt_bias + v, n, j->g + at, j->beta + at);
}

/* Where rows 0..n-1 of the block that begins at position `base` lie: what this step computes of k is not in the slot's
 * ring before all value heads have read it. */
static void place_block(const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g,
        uint32_t v, uint32_t base, uint32_t n, struct gdn_task *t) {
    const struct k_shape *h = &j->a->p->shape;
    const uint32_t pos = j->a->b->row_pos[e->row_begin], k = v / (h->gdn_v_heads / h->gdn_k_heads);
    const uint32_t ring = j->a->p->layout.ring_rows;
    for (uint32_t i = 0, at = base % ring; i < n; i++, at = at + 1 == ring ? 0 : at + 1) {
        gdn_place(h, g, v, k, at, t, i);
        if (base + i >= pos)
            t->k[i] = j->mixed + (e->row_begin + (uint64_t)(base + i - pos)) * j->channels +
                      (uint64_t)(h->gdn_k_heads + k) * h->gdn_k_dim;
    }
}

/* Rows [i, i + t->n_rows) of the entry, all of one block. */
static void gdn_block(
        const struct gdn_job *j, const struct k_entry *e, uint32_t v, uint32_t i, struct gdn_task *t) {
    const struct k_shape *h = &j->a->p->shape;
    const uint64_t row = e->row_begin + i;
    const uint32_t k = v / (h->gdn_v_heads / h->gdn_k_heads), dv = h->gdn_v_dim;
    const float *mixed = j->mixed + row * j->channels;
    t->q = mixed + (uint64_t)k * h->gdn_k_dim;
    t->v = mixed + (uint64_t)2 * h->gdn_k_heads * h->gdn_k_dim + (uint64_t)v * dv;
    t->g = j->g + row * h->gdn_v_heads + v;
    t->beta = j->beta + row * h->gdn_v_heads + v;
    t->out = j->a->out + row * h->gdn_v_heads * dv + (uint64_t)v * dv;
    j->isa->gdn_rows(t);
    for (uint32_t r = 0; r < t->n_rows; r++) {
        float *o = t->out + (uint64_t)r * t->out_stride;
        const float *z = j->a->in + (row + r) * j->width + j->channels + (uint64_t)v * dv;
        j->isa->gated_norm(o, j->a->w.norm, z, h->rms_eps, dv, o);
    }
}

static struct gdn_task task_of(const struct gdn_job *j) {
    const struct k_shape *h = &j->a->p->shape;
    return (struct gdn_task){.dk = h->gdn_k_dim,
            .dv = h->gdn_v_dim,
            .f16 = j->a->p->options.state_dtype == K_F16,
            .row_stride = j->channels,
            .gate_stride = h->gdn_v_heads,
            .out_stride = h->gdn_v_heads * h->gdn_v_dim};
}

/* Rows [first, first + n) of the entry for one value head, with s0 the state before the block of the first of them; it
 * is folded where a block ends among them. */
static void gdn_walk(const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g, uint32_t v,
        uint32_t first, uint32_t n, void *s0) {
    const uint32_t pos = j->a->b->row_pos[e->row_begin], end = first + n;
    struct gdn_task t = task_of(j);
    t.s0 = s0;
    for (uint32_t i = first; i < end; i += t.n_rows) {
        t.first = (pos + i) % GDN_BLOCK;
        t.n_rows = end - i < GDN_BLOCK - t.first ? end - i : GDN_BLOCK - t.first;
        if (i > first) {
            place_block(j, e, g, v, pos + i - GDN_BLOCK, GDN_BLOCK, &t);
            j->isa->gdn_fold(&t, GDN_BLOCK, s0);
        }
        place_block(j, e, g, v, pos + i - t.first, t.first + t.n_rows, &t);
        gdn_block(j, e, v, i, &t);
    }
}

/* What lies behind a block that drafts complete: its fold is for this step alone. */
static void __attribute__((noinline)) gdn_walk_behind(const struct gdn_job *j, const struct k_entry *e,
        const struct gdn_view *g, uint32_t v, uint32_t first, const void *s0) {
    const uint32_t pos = j->a->b->row_pos[e->row_begin];
    float folded[GDN_DIM_MAX * GDN_DIM_MAX];
    struct gdn_task t = task_of(j);
    memcpy(folded, s0, (size_t)t.dk * t.dv * k_dtype_bytes(j->a->p->options.state_dtype));
    place_block(j, e, g, v, pos + first - GDN_BLOCK, GDN_BLOCK, &t);
    j->isa->gdn_fold(&t, GDN_BLOCK, folded);
    gdn_walk(j, e, g, v, first, e->n_rows - first, folded);
}

/* All rows of one sequence for one value head. */
static void gdn_head(const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g, uint32_t v) {
    const uint32_t pos = j->a->b->row_pos[e->row_begin], begun = pos % GDN_BLOCK,
                   left = GDN_BLOCK - begun; /* rows of the block that the first row lies in */
    const bool behind = e->n_rows > left && entry_certain_rows(e) < e->n_rows;
    struct gdn_task t = task_of(j);
    void *s0 = gdn_head_s0(j->a->p, g, v);
    if (j->a->p->slots[e->slot].folded + begun < pos) {
        place_block(j, e, g, v, pos - begun - GDN_BLOCK, GDN_BLOCK, &t);
        j->isa->gdn_fold(&t, GDN_BLOCK, s0);
    }
    gdn_walk(j, e, g, v, 0, behind ? left : e->n_rows, s0);
    if (behind)
        gdn_walk_behind(j, e, g, v, left, s0);
}

/* The slot's ring of k and window after the entry, as far as one key head uses them. */
static void gdn_commit(
        const struct gdn_job *j, const struct k_entry *e, const struct gdn_view *g, uint32_t head) {
    const struct pool_layout *l = &j->a->p->layout;
    const struct k_shape *h = &j->a->p->shape;
    const struct columns c = columns_of(h, head);
    const uint32_t n = e->n_rows, dk = h->gdn_k_dim, pos = j->a->b->row_pos[e->row_begin];
    for (uint32_t i = n > l->ring_rows ? n - l->ring_rows : 0; i < n; i++) {
        const uint64_t at = (pos + i) % l->ring_rows;
        memcpy(g->k + (at * h->gdn_k_heads + head) * dk,
                j->mixed + (e->row_begin + (uint64_t)i) * j->channels + c.first[1], dk * sizeof *g->k);
    }
    for (uint32_t i = n > l->window_rows ? n - l->window_rows : 0; i < n; i++) {
        const float *from = j->a->in + (e->row_begin + (uint64_t)i) * j->width;
        float *to = gdn_window_row(l, h, g, (int64_t)pos + i);
        for (uint32_t part = 0; part < 3; part++)
            memcpy(to + c.first[part], from + c.first[part], c.n[part] * sizeof *to);
    }
}

static void gdn_sequence_head(void *arg, uint32_t task) {
    const struct gdn_job *j = arg;
    const struct k_shape *h = &j->a->p->shape;
    const struct k_entry *e = &j->a->b->entries[task / h->gdn_k_heads];
    const uint32_t head = task % h->gdn_k_heads, n = h->gdn_v_heads / h->gdn_k_heads;
    const struct gdn_view g = pool_gdn(j->a->p, e->slot, j->a->layer);
    for (uint32_t i = 0; i < e->n_rows; i++)
        gdn_row(j, e, &g, e->row_begin + i, head);
    for (uint32_t v = head * n; v < (head + 1) * n; v++)
        gdn_head(j, e, &g, v);
    gdn_commit(j, e, &g, head);
}

static uint64_t gdn_scratch(const struct k_shape *h, uint32_t rows, uint64_t at[2]) {
    const uint64_t gates = align64((uint64_t)rows * h->gdn_v_heads * sizeof(float));
    at[0] = align64((uint64_t)rows * gdn_channels(h) * sizeof(float));
    at[1] = at[0] + gates;
    return at[1] + gates;
}
uint64_t gdn_scratch_bytes(const struct k_shape *h, uint32_t rows) {
    uint64_t at[2];
    return gdn_scratch(h, rows, at);
}

static void run_gdn(struct k_stream *s, const void *args) {
    const struct gdn_args *a = args;
    const struct k_shape *h = &a->p->shape;
    const struct k_plan *plan = &a->b->plan;
    uint64_t at[2];
    uint8_t *scratch = stream_scratch(s, gdn_scratch(h, plan->n_rows, at));
    if (!scratch)
        return;
    struct gdn_job j = {.a = a,
            .isa = stream_isa(s),
            .mixed = (float *)scratch,
            .g = (float *)(scratch + at[0]),
            .beta = (float *)(scratch + at[1]),
            .channels = gdn_channels(h)};
    j.width = j.channels + h->gdn_v_heads * (h->gdn_v_dim + 2);
    stream_run(s, gdn_sequence_head, &j, plan->n_entries * h->gdn_k_heads);
}
void k_gdn_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t gdn_layer,
        const struct k_gdn_weights *w, const float *in, float *out) {
    struct gdn_args a = {p, b, *w, in, out, gdn_layer};
    stream_submit(s, run_gdn, &a, sizeof a);
}
