/* head.c - logits of the rows that need them, and their samples; the workspace that all operations share.
 *
 * Rows go through in chunks of HEAD_ROWS. With several ranks each puts its part of the logits of a few rows
 * into the shared region; rank (row % tp) then samples the whole row as a single rank would, and all copy the
 * results. So sampling cannot depend on tp.
 *
 * A head for drafts has fewer rows, and the logits that a rank makes are as many; a whole row is made of them before it
 * is sampled. */
#include "kernels/cpu/internal.h"
#include "kernels/cpu/sample.h"
#include "kernels/shared/check.h"

#include <string.h>

struct head_args {
    struct k_pool *p;
    struct k_comm *m;
    const struct k_batch *b;
    const struct k_linear *head;
    struct k_draft_head draft; /* n 0: it is the whole head */
    const float *hidden;
    struct k_result *results;
    struct k_outcome *outcomes;
    float *logits;
    uint32_t logits_rows_max;
};

static const struct k_draft_head *some_of(const struct head_args *a) {
    return a->draft.n > 0 ? &a->draft : NULL;
}

struct head_chunk {
    const struct head_args *a;
    const struct isa *isa;
    uint32_t next_entry, next_row; /* where the next chunk starts; next_row counts inside the entry */
    uint32_t n, rows[HEAD_ROWS];   /* rows of the batch */
    bool asked[HEAD_ROWS];         /* raw logits go out */
    uint32_t n_samples;
    uint32_t sample_row[HEAD_ROWS]; /* index into rows */
    uint32_t first_sample, n_round; /* the samples of this round: of one exchange */
    uint32_t width;                 /* logits of a row that this rank makes */
    float *logits, *work, *whole;   /* [HEAD_ROWS][width], [..][V], [..][V] (several ranks only) */
    struct k_result *results;       /* [n_round] of this round */
};

static bool is_scored(const struct k_entry *e, uint32_t row) {
    return row < e->n_scores;
}
static bool row_has_result(const struct k_entry *e, uint32_t row) {
    return is_scored(e, row) || (entry_samples(e) > 0 && row >= entry_sampled_from(e));
}
static bool is_asked(const struct k_entry *e, uint32_t row) {
    return e->flags & K_ENTRY_LOGITS_ALL || (e->flags & K_ENTRY_LOGITS && row + 1 == e->n_rows);
}

/* The next rows that somebody wants logits of, in row order. */
static void collect_rows(struct head_chunk *c) {
    const struct k_batch *b = c->a->b;
    c->n = c->n_samples = 0;
    for (; c->next_entry < b->plan.n_entries; c->next_entry++, c->next_row = 0) {
        const struct k_entry *e = &b->entries[c->next_entry];
        for (; c->next_row < e->n_rows; c->next_row++) {
            const bool asked = is_asked(e, c->next_row), has_result = row_has_result(e, c->next_row);
            if (!asked && !has_result)
                continue;
            if (c->n == HEAD_ROWS)
                return;
            if (has_result)
                c->sample_row[c->n_samples++] = c->n;
            c->asked[c->n] = asked;
            c->rows[c->n++] = e->row_begin + c->next_row;
        }
    }
}

/* The row of the batch, and the entry, of sample i of this round. */
static uint32_t sample_row_of(const struct head_chunk *c, uint32_t i) {
    return c->rows[c->sample_row[c->first_sample + i]];
}
static const struct k_entry *sample_entry(const struct head_chunk *c, uint32_t i) {
    return &c->a->b->entries[c->a->b->row_entry[sample_row_of(c, i)]];
}

static void score_one(const struct head_chunk *c, uint32_t i, const float *raw) {
    const struct k_entry *e = sample_entry(c, i);
    const uint32_t row = sample_row_of(c, i), vocab = c->a->p->shape.vocab_size,
                   id = row + 1 == e->row_begin + e->n_rows ? e->id_after : c->a->b->row_id[row + 1];
    const struct score_task t = {
            .isa = c->isa, .vocab = vocab, .id = id < vocab ? id : 0, .top_logprobs = e->top_logprobs};
    score_row(&t, raw, &c->results[i]);
}
/* Sample i of this round, from one contiguous row of logits. */
static void sample_one(const struct head_chunk *c, uint32_t i, const float *raw, float *work) {
    const struct k_pool *p = c->a->p;
    const struct k_entry *e = sample_entry(c, i);
    const uint32_t row = sample_row_of(c, i) - e->row_begin;
    if (is_scored(e, row)) {
        score_one(c, i, raw);
        return;
    }
    const uint32_t mask = entry_mask(e, row - entry_sampled_from(e));
    const struct slot *slot = &p->slots[e->slot];
    const uint32_t position = entry_sample_position(e, c->a->b->row_pos[sample_row_of(c, i)]),
                   n_drafts = entry_drafts_before(e, position, slot->length);
    const struct sample_task t = {.isa = c->isa,
            .sampling = &slot->sampling,
            .counts = p->counts + (uint64_t)e->slot * p->shape.vocab_size,
            .drafts = slot->drafts,
            .n_drafts = n_drafts,
            .vocab = p->shape.vocab_size,
            .mask = mask == UINT32_MAX ? NULL : c->a->b->masks + (uint64_t)mask * c->a->b->mask_words,
            .sample_index = slot->sample_index + n_drafts,
            .top_logprobs = e->top_logprobs,
            .position = position};
    sample_row(&t, raw, work, &c->results[i]);
}
static void sample_alone(void *arg, uint32_t i) {
    const struct head_chunk *c = arg;
    const uint64_t v = c->a->p->shape.vocab_size;
    sample_one(c, i, c->logits + c->sample_row[i] * v, c->work + i * v);
}
/* Logits of the whole vocabulary from those of some ids. */
static void widen(const struct k_draft_head *some, uint32_t vocab, const float *from, float *to) {
    for (uint32_t id = 0; id < vocab; id++)
        to[id] = some->place[id] < some->n ? from[some->place[id]] : K_DRAFT_ABSENT;
}
/* Task i: sample i * tp + rank of the round. */
static void sample_shared(void *arg, uint32_t task) {
    const struct head_chunk *c = arg;
    const struct k_shape *h = &c->a->p->shape;
    const uint32_t i = task * h->tp + h->rank;
    const struct k_draft_head *some = some_of(c->a);
    float *whole = c->whole + (uint64_t)task * h->vocab_size,
          *work = c->work + (uint64_t)task * h->vocab_size, *to = some ? work : whole;
    for (uint32_t r = 0; r < h->tp; r++) {
        uint32_t first = r * c->width, rows = c->width;
        if (!some)
            comm_vocab(c->a->m, r, &first, &rows);
        memcpy(to + first, comm_area(c->a->m, r) + (uint64_t)i * rows, rows * sizeof *to);
    }
    if (some)
        widen(some, h->vocab_size, work, whole);
    sample_one(c, i, whole, work);
}

static void widen_row(void *arg, uint32_t i) {
    const struct head_chunk *c = arg;
    const uint32_t v = c->a->p->shape.vocab_size;
    widen(&c->a->draft, v, c->work + (uint64_t)i * c->width, c->logits + (uint64_t)i * v);
}

static void take_results(const struct head_chunk *c) {
    for (uint32_t i = 0; i < c->n_round; i++) {
        const struct k_entry *e = sample_entry(c, i);
        const uint32_t row = sample_row_of(c, i) - e->row_begin;
        const uint32_t at = is_scored(e, row) ? row - e->n_scores : row - entry_sampled_from(e);
        c->a->results[e->sample_at + at] = c->results[i]; /* scores lie before the samples */
    }
}

static bool exchange_round(struct k_stream *s, struct head_chunk *c) {
    const struct k_shape *h = &c->a->p->shape;
    const uint64_t rows = c->width;
    comm_flip(c->a->m);
    for (uint32_t i = 0; i < c->n_round; i++)
        memcpy(comm_area(c->a->m, h->rank) + i * rows, c->logits + c->sample_row[c->first_sample + i] * rows,
                rows * sizeof(float));
    if (!comm_barrier(s, c->a->m))
        return false;
    c->results = comm_results(c->a->m);
    if (c->n_round > h->rank)
        stream_run(s, sample_shared, c, (c->n_round - h->rank + h->tp - 1) / h->tp);
    if (!comm_barrier(s, c->a->m))
        return false;
    take_results(c);
    return true;
}

/* Ids of the vocabulary that a rank has at most. */
static uint32_t vocab_share(const struct k_shape *h) {
    const uint32_t share = k_vocab_segment(h->vocab_size) * (VOCAB_SEGMENTS / h->tp);
    return share < h->vocab_size ? share : h->vocab_size;
}

static bool sample_chunk(struct k_stream *s, struct head_chunk *c) {
    const struct k_shape *h = &c->a->p->shape;
    if (h->tp == 1) {
        struct k_result results[HEAD_ROWS];
        c->results = results;
        c->first_sample = 0;
        c->n_round = c->n_samples;
        stream_run(s, sample_alone, c, c->n_samples);
        take_results(c);
        return true;
    }
    const uint64_t fit = comm_area_floats(c->a->m) / vocab_share(h);
    for (c->first_sample = 0; c->first_sample < c->n_samples; c->first_sample += c->n_round) {
        uint32_t left = c->n_samples - c->first_sample;
        c->n_round = left < fit ? left : (uint32_t)fit;
        if (!exchange_round(s, c))
            return false;
    }
    return true;
}

static void write_outcomes(const struct head_args *a) {
    const uint64_t n = a->p->shape.hidden_size;
    for (uint32_t i = 0; i < a->b->plan.n_entries; i++) {
        const struct k_entry *e = &a->b->entries[i];
        if (!(e->flags & K_ENTRY_SAMPLE))
            continue;
        struct k_outcome *o = &a->outcomes[e->outcome_at];
        *o = outcome_of(e, a->results + e->sample_at, &a->p->slots[e->slot]);
        if (entry_accepted_row(e, o) + 1 < e->n_rows)
            memcpy(a->p->hidden + e->slot * n, a->hidden + (e->row_begin + entry_accepted_row(e, o)) * n,
                    n * sizeof(float));
    }
}

static uint64_t head_scratch(const struct k_shape *h, uint64_t at[3]) {
    const uint64_t whole =
            align64((uint64_t)((HEAD_ROWS + h->tp - 1) / h->tp) * h->vocab_size * sizeof(float));
    at[0] = product_scratch_bytes(h->hidden_size, HEAD_ROWS);
    at[1] = at[0] + align64((uint64_t)HEAD_ROWS * vocab_share(h) * sizeof(float));
    at[2] = at[1] + whole;
    return at[2] + (h->tp > 1 ? whole : 0);
}
uint64_t head_scratch_bytes(const struct k_shape *h) {
    uint64_t at[3];
    return head_scratch(h, at);
}

static bool head_fits(struct k_stream *s, const struct head_args *a) {
    const struct k_linear *w = a->head;
    struct error e;
    const char *name = w ? w->name : NULL;
    const uint32_t rows = w ? w->rows : 0, columns = w ? w->columns : 0;
    const int r = some_of(a) ? draft_head_check(&a->p->shape, some_of(a), name, rows, columns, &e)
                             : head_check(&a->p->shape, name, rows, columns, &e);
    if (r < 0)
        stream_fault(s, r, "%s", e.text);
    return r == 0;
}

/* Logits of the chunk's rows: of one rank's drafts whole ones already. */
static void head_product(struct k_stream *s, struct head_chunk *c, float *scratch) {
    const struct head_args *a = c->a;
    const bool widens = some_of(a) && a->p->shape.tp == 1;
    struct product p = {.w = a->head,
            .x = a->hidden,
            .rows_at = c->rows,
            .n = c->n,
            .y = widens ? c->work : c->logits,
            .ldy = c->width};
    if (a->head)
        product_run(s, &p, scratch);
    if (widens)
        stream_run(s, widen_row, c, c->n);
}

static void run_head(struct k_stream *s, const void *args) {
    const struct head_args *a = args;
    const struct k_shape *h = &a->p->shape;
    uint64_t at[3];
    uint8_t *scratch = stream_scratch(s, head_scratch(h, at));
    uint32_t logits_rows = 0;
    if (!scratch)
        return;
    if (!head_fits(s, a))
        return;
    struct head_chunk c = {.a = a,
            .isa = stream_isa(s),
            .width = some_of(a) ? a->draft.n / h->tp : h->vocab_rows,
            .logits = (float *)(scratch + at[0]),
            .work = (float *)(scratch + at[1]),
            .whole = (float *)(scratch + at[2])};
    for (;;) {
        collect_rows(&c);
        if (c.n == 0)
            break;
        head_product(s, &c, (float *)scratch);
        for (uint32_t i = 0; i < c.n && a->logits; i++)
            if (c.asked[i] && logits_rows < a->logits_rows_max)
                memcpy(a->logits + (uint64_t)logits_rows++ * h->vocab_rows,
                        c.logits + (uint64_t)i * h->vocab_rows, h->vocab_rows * sizeof(float));
        if (!sample_chunk(s, &c))
            return;
    }
    if (a->outcomes)
        write_outcomes(a);
}
void k_head_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *head, const float *hidden, struct k_result *results,
        struct k_outcome *outcomes, float *logits, uint32_t logits_rows_max) {
    struct head_args a = {.p = p,
            .m = m,
            .b = b,
            .head = head,
            .hidden = hidden,
            .results = results,
            .outcomes = outcomes,
            .logits = logits,
            .logits_rows_max = logits_rows_max};
    stream_submit(s, run_head, &a, sizeof a);
}
void k_draft_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *d,
        const struct k_draft_head *h, const float *d_hidden, struct k_result *results) {
    struct head_args a = {
            .p = p, .m = m, .b = d, .head = h->head, .draft = *h, .hidden = d_hidden, .results = results};
    stream_submit(s, run_head, &a, sizeof a);
}

/* --- workspace --- */

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}
size_t k_workspace_bytes(const struct k_shape *shape, uint32_t rows_max, uint32_t samples_max) {
    const struct k_shape *h = shape;
    uint64_t columns = larger(2ull * h->hidden_size, h->intermediate_size);
    (void)samples_max; /* the head takes HEAD_ROWS at a time, however many there are */
    columns = larger(
            columns, larger((uint64_t)h->q_heads * h->head_dim, (uint64_t)h->gdn_v_heads * h->gdn_v_dim));
    uint64_t bytes = product_scratch_bytes((uint32_t)columns, rows_max);
    bytes = larger(bytes, gdn_scratch_bytes(h, rows_max));
    bytes = larger(bytes, attention_scratch_bytes(h, rows_max));
    return larger(bytes, head_scratch_bytes(h));
}
