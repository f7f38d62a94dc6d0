/* attention.c - one full-attention mixer over a batch: norms, rope, the pages, and which queries a task gets.
 *
 * Two passes. Rows: q and k norm, rope, K and V into the pages (rounded to their dtype there and read back
 * rounded). Then one task per kv head and a few consecutive rows of a sequence: its query heads of those rows
 * share what is read of K and V. */
#include "kernels/cpu/internal.h"

#include <string.h>

#define PARTS_BYTES  (8u << 20) /* room for leaves as tasks: 8 heads of 256 over 260 000 positions */
#define SPLIT_LEAVES 4u         /* below that merging costs more than it brings */

struct attention_args {
    struct k_pool *p;
    const struct k_batch *b;
    struct k_attention_weights w;
    const float *in;
    float *out;
    uint32_t layer, shift;
};
struct attention_job {
    const struct attention_args *a;
    const struct isa *isa;
    float *q;       /* [R][Hq][D] after norm and rope */
    uint32_t width; /* columns of `in` */
    uint32_t rows_per_task;
    uint32_t leaves; /* 0: a task does all leaves of its queries; otherwise each is a task */
    float *parts;    /* [R][Hq][leaves][2 + D] max, sum, o */
};

/* cos and sin of one row, [half] each. Frequency i takes the position of height if i % 3 == 1, of width if i
 * % 3 == 2, of time otherwise, as far as each section (a third of the frequencies, the remainder to time,
 * then height) goes. */
static void rope_row(const struct k_pool *p, const uint32_t *pos, uint32_t shift, float *cos_sin_row) {
    const uint32_t half = p->shape.rotary_dim / 2, height = (half + 1) / 3, width = half / 3;
    for (uint32_t i = 0; i < half; i++) {
        uint32_t axis = i % 3 == 1 && i < 3 * height ? 1 : i % 3 == 2 && i < 3 * width ? 2 : 0;
        cos_sin((float)(pos[axis] + shift) * p->inv_freq[i], &cos_sin_row[i], &cos_sin_row[half + i]);
    }
}

/* A row of K (which = 0) or V (1) of a head, at `index` of a page that begins at `page`. */
static void store_page(
        const struct attention_job *j, const float *from, uint8_t *page, uint32_t which, uint32_t index) {
    const enum k_dtype dtype = j->a->p->options.kv_dtype;
    const uint32_t d = j->a->p->shape.head_dim, row = which * PAGE_TOKENS + index;
    uint8_t *to = page + (uint64_t)row * d * k_dtype_bytes(dtype);
    if (dtype == K_INT8) {
        j->isa->quantise_run(from, d, (int8_t *)to, (float *)(page + page_scales_at(d)) + row);
        return;
    }
    if (dtype == K_F32) {
        memcpy(to, from, d * sizeof *from);
        return;
    }
    for (uint32_t i = 0; i < d; i++) {
        uint16_t half = bf16_of(from[i]);
        memcpy(to + i * sizeof half, &half, sizeof half);
    }
}

static const uint32_t *slot_table(const struct k_pool *p, uint32_t slot) {
    return p->tables + (uint64_t)slot * p->options.pages_per_slot;
}
static uint8_t *head_pages(const struct k_pool *p, uint32_t layer, uint32_t head) {
    return p->kv + (uint64_t)layer * (p->options.pages + 1ull) * p->layout.page_bytes +
           head * p->layout.page_head_bytes;
}

static void attention_row(void *arg, uint32_t row) {
    const struct attention_job *j = arg;
    const struct k_pool *p = j->a->p;
    const struct k_shape *h = &p->shape;
    const uint32_t d = h->head_dim, half = h->rotary_dim / 2, index = j->a->b->row_pos[row] + j->a->shift;
    const uint32_t slot = j->a->b->entries[j->a->b->row_entry[row]].slot,
                   page = slot_table(p, slot)[index / PAGE_TOKENS];
    const float *in = j->a->in + (uint64_t)row * j->width, *k = in + (uint64_t)h->q_heads * 2 * d;
    const float *v = k + (uint64_t)h->kv_heads * d;
    float angle[HEAD_DIM_MAX], t[HEAD_DIM_MAX];
    rope_row(p, j->a->b->row_rope + (uint64_t)row * 3, j->a->shift, angle);
    for (uint32_t i = 0; i < h->q_heads; i++) {
        float *q = j->q + ((uint64_t)row * h->q_heads + i) * d;
        j->isa->norm_row(in + (uint64_t)i * 2 * d, j->a->w.q_norm, h->rms_eps, d, q);
        j->isa->rope(q, angle, half);
    }
    for (uint32_t i = 0; i < h->kv_heads; i++) {
        uint8_t *to = head_pages(p, j->a->layer, i) + page * p->layout.page_bytes;
        j->isa->norm_row(k + (uint64_t)i * d, j->a->w.k_norm, h->rms_eps, d, t);
        j->isa->rope(t, angle, half);
        store_page(j, t, to, 0, index % PAGE_TOKENS);
        store_page(j, v + (uint64_t)i * d, to, 1, index % PAGE_TOKENS);
    }
}

static float *part_of(const struct attention_job *j, uint64_t row, uint64_t q_head, uint32_t leaf) {
    const struct k_shape *h = &j->a->p->shape;
    return j->parts + ((row * h->q_heads + q_head) * j->leaves + leaf) * (h->head_dim + 2);
}

/* One leaf of the queries of t, the first of which is query i0 of the task; results go to their parts. */
static void attend_leaf(const struct attention_job *j, const struct attention_task *t, uint32_t head,
        uint32_t row0, uint32_t i0, uint32_t leaf) {
    const struct k_shape *h = &j->a->p->shape;
    const uint32_t group = h->q_heads / h->kv_heads;
    float max[QUERIES_MAX], sum[QUERIES_MAX], o[QUERIES_MAX * HEAD_DIM_MAX];
    if (t->longest < leaf * ATTENTION_LEAF)
        return;
    j->isa->attention_leaf(t, leaf * ATTENTION_LEAF, max, sum, o);
    for (uint32_t i = 0; i < t->n; i++) {
        float *part = part_of(j, row0 + (i0 + i) / group, head * group + (i0 + i) % group, leaf);
        if (t->last[i] < leaf * ATTENTION_LEAF)
            continue;
        part[0] = max[i];
        part[1] = sum[i];
        memcpy(part + 2, o + (uint64_t)i * HEAD_DIM_MAX, h->head_dim * sizeof *o);
    }
}

/* Rows [row0, row0 + rows) of one sequence, the query heads of one kv head, QUERIES_MAX at a time. */
static void attend(const struct attention_job *j, uint32_t slot, uint32_t head, uint32_t row0, uint32_t rows,
        uint32_t leaf) {
    const struct k_pool *p = j->a->p;
    const struct k_shape *h = &p->shape;
    const uint32_t d = h->head_dim, group = h->q_heads / h->kv_heads;
    struct attention_task t = {.head_dim = d,
            .first = j->a->shift,
            .pages = head_pages(p, j->a->layer, head),
            .page_stride = p->layout.page_bytes,
            .table = slot_table(p, slot),
            .dtype = p->options.kv_dtype};
    for (uint32_t i = 0; i < rows * group; i++) {
        const uint64_t row = row0 + i / group, q_head = head * group + i % group;
        t.q[t.n] = j->q + (row * h->q_heads + q_head) * d;
        t.out[t.n] = j->a->out + (row * h->q_heads + q_head) * d;
        t.last[t.n] = j->a->b->row_pos[row] + j->a->shift;
        t.longest = t.last[t.n++];
        if (t.n < QUERIES_MAX && i + 1 < rows * group)
            continue;
        if (j->leaves)
            attend_leaf(j, &t, head, row0, i + 1 - t.n, leaf);
        else
            j->isa->attention(&t);
        t.n = 0;
    }
}

static void gate_row(const struct attention_job *j, uint64_t row, uint64_t q_head) {
    const uint32_t d = j->a->p->shape.head_dim;
    const float *gate = j->a->in + row * j->width + q_head * 2 * d + d;
    j->isa->sigmoid_mul(gate, d, j->a->out + (row * j->a->p->shape.q_heads + q_head) * d);
}

/* Tasks are numbered (chunk of rows, kv head, leaf); a chunk's rows may belong to several sequences. */
static void attention_rows(void *arg, uint32_t task) {
    const struct attention_job *j = arg;
    const struct k_batch *b = j->a->b;
    const struct k_shape *h = &j->a->p->shape;
    const uint32_t leaves = j->leaves ? j->leaves : 1, leaf = task % leaves, group = h->q_heads / h->kv_heads;
    const uint32_t head = task / leaves % h->kv_heads, row_end = b->plan.n_rows;
    const uint32_t first = task / leaves / h->kv_heads * j->rows_per_task;
    const uint32_t end = first + j->rows_per_task < row_end ? first + j->rows_per_task : row_end;
    for (uint32_t row = first; row < end;) {
        const struct k_entry *e = &b->entries[b->row_entry[row]];
        uint32_t entry_end = e->row_begin + e->n_rows, to = entry_end < end ? entry_end : end;
        attend(j, e->slot, head, row, to - row, leaf);
        row = to;
    }
    for (uint32_t i = 0; i < (end - first) * group && !j->leaves; i++)
        gate_row(j, first + i / group, head * group + i % group);
}

static void attention_merge_row(void *arg, uint32_t row) {
    const struct attention_job *j = arg;
    const struct k_shape *h = &j->a->p->shape;
    const uint32_t n = (j->a->b->row_pos[row] + j->a->shift) / ATTENTION_LEAF + 1;
    for (uint32_t i = 0; i < h->q_heads; i++) {
        j->isa->attention_merge(part_of(j, row, i, 0), n, h->head_dim,
                j->a->out + ((uint64_t)row * h->q_heads + i) * h->head_dim);
        gate_row(j, row, i);
    }
}

static uint64_t query_bytes(const struct k_shape *h, uint32_t rows) {
    return align64((uint64_t)rows * h->q_heads * h->head_dim * sizeof(float));
}
uint64_t attention_scratch_bytes(const struct k_shape *h, uint32_t rows) {
    return query_bytes(h, rows) + PARTS_BYTES;
}

/* Leaves of the longest sequence if they shall be tasks, otherwise 0. */
static uint32_t split_leaves(const struct attention_job *j, uint32_t tasks, uint32_t threads) {
    const struct k_shape *h = &j->a->p->shape;
    uint32_t longest = 0;
    for (uint32_t r = 0; r < j->a->b->plan.n_rows; r++)
        longest = j->a->b->row_pos[r] > longest ? j->a->b->row_pos[r] : longest;
    const uint32_t leaves = (longest + j->a->shift) / ATTENTION_LEAF + 1;
    const uint64_t parts = (uint64_t)j->a->b->plan.n_rows * h->q_heads * leaves;
    if (threads == 1 || tasks >= 2 * threads || leaves < SPLIT_LEAVES)
        return 0;
    return parts * (h->head_dim + 2) * sizeof(float) <= PARTS_BYTES ? leaves : 0;
}

static void run_attention(struct k_stream *s, const void *args) {
    const struct attention_args *a = args;
    const struct k_shape *h = &a->p->shape;
    const uint32_t rows = a->b->plan.n_rows, group = h->q_heads / h->kv_heads;
    struct attention_job j = {.a = a,
            .isa = stream_isa(s),
            .width = (2 * h->q_heads + 2 * h->kv_heads) * h->head_dim,
            .rows_per_task = group < QUERIES_MAX ? QUERIES_MAX / group : 1};
    j.q = stream_scratch(s, attention_scratch_bytes(h, rows));
    if (!j.q)
        return;
    j.parts = j.q + query_bytes(h, rows) / sizeof(float);
    uint32_t tasks = (rows + j.rows_per_task - 1) / j.rows_per_task * h->kv_heads;
    j.leaves = split_leaves(&j, tasks, team_threads(s->context->team));
    stream_run(s, attention_row, &j, rows);
    stream_run(s, attention_rows, &j, tasks * (j.leaves ? j.leaves : 1));
    if (j.leaves)
        stream_run(s, attention_merge_row, &j, rows);
}
void k_attention_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t attention_layer,
        uint32_t kv_shift, const struct k_attention_weights *w, const float *in, float *out) {
    struct attention_args a = {p, b, *w, in, out, attention_layer, kv_shift};
    stream_submit(s, run_attention, &a, sizeof a);
}
