/* attention.c - one full-attention mixer over a batch: norms, rope, the pages, and which queries a task gets.
 *
 * Two passes. Rows: q and k norm, rope, K and V into the pages (rounded to their dtype there and read back
 * rounded). Then one task per kv head and a few consecutive rows of a sequence: its query heads of those rows
 * share what is read of K and V. */
#include "kernels/cpu/internal.h"

#include <string.h>

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

static void store_page(enum k_dtype dtype, const float *from, uint32_t n, uint8_t *to) {
    if (dtype == K_F32) {
        memcpy(to, from, n * sizeof *from);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint16_t half = bf16_of(from[i]);
        memcpy(to + i * sizeof half, &half, sizeof half);
    }
}

static const uint32_t *slot_table(const struct k_pool *p, uint32_t slot) {
    return p->tables + (uint64_t)slot * p->options.pages_per_slot;
}
static uint8_t *head_pages(const struct k_pool *p, uint32_t layer, uint32_t head) {
    return p->kv + (uint64_t)layer * (p->options.pages + 1ull) * p->page_bytes + head * p->page_head_bytes;
}

static void attention_row(void *arg, uint32_t row) {
    const struct attention_job *j = arg;
    const struct k_pool *p = j->a->p;
    const struct k_shape *h = &p->shape;
    const uint32_t d = h->head_dim, half = h->rotary_dim / 2, index = j->a->b->row_pos[row] + j->a->shift;
    const uint32_t slot = j->a->b->entries[j->a->b->row_entry[row]].slot,
                   page = slot_table(p, slot)[index / PAGE_TOKENS];
    const uint64_t size = k_dtype_bytes(p->options.kv_dtype), at = (uint64_t)(index % PAGE_TOKENS) * d * size;
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
        uint8_t *to = head_pages(p, j->a->layer, i) + page * p->page_bytes + at;
        j->isa->norm_row(k + (uint64_t)i * d, j->a->w.k_norm, h->rms_eps, d, t);
        j->isa->rope(t, angle, half);
        store_page(p->options.kv_dtype, t, d, to);
        store_page(p->options.kv_dtype, v + (uint64_t)i * d, d, to + PAGE_TOKENS * d * size);
    }
}

/* Rows [row0, row0 + rows) of one sequence, the query heads of one kv head, QUERIES_MAX at a time. */
static void attend(
        const struct attention_job *j, uint32_t slot, uint32_t head, uint32_t row0, uint32_t rows) {
    const struct k_pool *p = j->a->p;
    const struct k_shape *h = &p->shape;
    const uint32_t d = h->head_dim, group = h->q_heads / h->kv_heads;
    struct attention_task t = {.head_dim = d,
            .first = j->a->shift,
            .pages = head_pages(p, j->a->layer, head),
            .page_stride = p->page_bytes,
            .table = slot_table(p, slot),
            .dtype = p->options.kv_dtype};
    for (uint32_t i = 0; i < rows * group; i++) {
        const uint64_t row = row0 + i / group, q_head = head * group + i % group;
        t.q[t.n] = j->q + (row * h->q_heads + q_head) * d;
        t.out[t.n] = j->a->out + (row * h->q_heads + q_head) * d;
        t.last[t.n] = j->a->b->row_pos[row] + j->a->shift;
        t.longest = t.last[t.n++];
        if (t.n == QUERIES_MAX || i + 1 == rows * group) {
            j->isa->attention(&t);
            t.n = 0;
        }
    }
    for (uint32_t i = 0; i < rows * group; i++) {
        const uint64_t row = row0 + i / group, q_head = head * group + i % group;
        const float *gate = j->a->in + row * j->width + q_head * 2 * d + d;
        j->isa->sigmoid_mul(gate, d, j->a->out + (row * h->q_heads + q_head) * d);
    }
}

/* Tasks are numbered (chunk of rows, kv head); a chunk ends where its sequence ends. */
static void attention_rows(void *arg, uint32_t task) {
    const struct attention_job *j = arg;
    const struct k_batch *b = j->a->b;
    const uint32_t head = task % j->a->p->shape.kv_heads, row_end = b->plan.n_rows;
    uint32_t row = task / j->a->p->shape.kv_heads * j->rows_per_task;
    const uint32_t end = row + j->rows_per_task < row_end ? row + j->rows_per_task : row_end;
    while (row < end) {
        const struct k_entry *e = &b->entries[b->row_entry[row]];
        uint32_t entry_end = e->row_begin + e->n_rows, to = entry_end < end ? entry_end : end;
        attend(j, e->slot, head, row, to - row);
        row = to;
    }
}

uint64_t attention_scratch_bytes(const struct k_shape *h, uint32_t rows) {
    return align64((uint64_t)rows * h->q_heads * h->head_dim * sizeof(float));
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
    stream_run(s, attention_row, &j, rows);
    stream_run(s, attention_rows, &j, (rows + j.rows_per_task - 1) / j.rows_per_task * h->kv_heads);
}
void k_attention_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t attention_layer,
        uint32_t kv_shift, const struct k_attention_weights *w, const float *in, float *out) {
    struct attention_args a = {p, b, *w, in, out, attention_layer, kv_shift};
    stream_submit(s, run_attention, &a, sizeof a);
}
