/* head.c - logits of the rows that need them, and their samples; and the residual that products are added to.
 *
 * Rows go through in rounds of HEAD_ROWS, of which the host knows at most how many there are: a row is wanted because
 * its entry samples or scores it, or because its logits find room in the caller's buffer. A round is the product of its
 * rows, as if they were a step of their own, and the passes of sample.cu. */
#include "kernels/cuda/comm.h"
#include "kernels/cuda/internal.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step.h"
#include "kernels/shared/check.h"

enum part {
    ROUND,
    ROWS,
    STATES,
    PARTS,
    SUMS,
    MASSES,
    MAXIMA,
    LISTS,
    HIDDEN,
    LOCAL, /* logits of this rank's rows of the vocabulary; nothing where they are all */
    RAW,
    CHANGED,
    PARTS_OF_SCRATCH
};

/* Bytes of all, the product's own before them. */
static uint64_t head_scratch(const struct k_shape *h, uint64_t at[PARTS_OF_SCRATCH]) {
    const uint64_t a_segment = HEAD_ROWS * VOCAB_SEGMENTS,
                   bytes[PARTS_OF_SCRATCH] = {
                           [ROUND] = sizeof(struct k_plan),
                           [ROWS] = HEAD_ROWS * sizeof(struct head_row),
                           [STATES] = HEAD_ROWS * sizeof(struct sample_state),
                           [PARTS] = a_segment * sizeof(struct sample_part),
                           [SUMS] = a_segment * sizeof(float),
                           [MASSES] = (uint64_t)HEAD_ROWS * MASS_BINS * sizeof(uint64_t),
                           [MAXIMA] = HEAD_ROWS * 2ull * SAMPLE_GROUPS * sizeof(uint32_t),
                           [LISTS] = HEAD_ROWS * 2ull * SAMPLE_LIST * sizeof(uint32_t),
                           [HIDDEN] = (uint64_t)HEAD_ROWS * h->hidden_size * sizeof(float),
                           [LOCAL] = h->tp > 1 ? (uint64_t)HEAD_ROWS * h->vocab_rows * sizeof(float) : 0,
                           [RAW] = (uint64_t)HEAD_ROWS * h->vocab_size * sizeof(float),
                           [CHANGED] = (uint64_t)HEAD_ROWS * h->vocab_size * sizeof(float),
                   };
    uint64_t all = align64(product_scratch_bytes(h->hidden_size, HEAD_ROWS, 0));
    for (uint32_t i = 0; i < PARTS_OF_SCRATCH; i++) {
        at[i] = all;
        all += align64(bytes[i]);
    }
    return all;
}
uint64_t head_scratch_bytes(const struct k_shape *h) {
    uint64_t at[PARTS_OF_SCRATCH];
    return head_scratch(h, at);
}

static bool head_fits(struct k_stream *s, const struct k_shape *h, const struct k_linear *head,
        const struct k_draft_head *some) {
    const char *name = head ? head->name : NULL;
    const uint32_t rows = head ? head->rows : 0, columns = head ? head->columns : 0;
    struct error e;
    const int r = some ? draft_head_check(h, some, name ? name : "no head", rows, columns, &e)
                       : head_check(h, name, rows, columns, &e);
    if (r < 0)
        stream_refused(s, &e);
    return r == 0;
}

struct round {
    struct collect_args collect;
    struct sample_args sample;
    const struct k_linear *head;     /* NULL: this rank has no rows of the vocabulary */
    const struct k_draft_head *some; /* NULL, or whose head it is */
    struct k_comm *comm;
    float *d_local;
};
/* Logits of the whole vocabulary, in every rank. */
static void queue_logits(struct k_stream *s, const struct round *r, const struct k_batch *wanted) {
    const bool alone = comm_alone(r->comm);
    if (r->head)
        k_project(s, wanted, r->collect.d_x, r->head, alone ? (float *)r->sample.d_raw : r->d_local);
    if (!alone)
        comm_gather_vocab(s, r->comm, wanted->view.d_plan, wanted->bounds.rows, r->d_local,
                (float *)r->sample.d_raw, r->sample.p.shape.vocab_size);
}
/* The same of a head that has some ids. What the samples change lies where logits are on their way before. */
static bool queue_some_logits(struct k_stream *s, const struct round *r, const struct k_batch *wanted) {
    const bool alone = comm_alone(r->comm);
    const uint32_t rows = wanted->bounds.rows, n = r->some->n;
    float *d_raw = (float *)r->sample.d_raw, *d_few = r->sample.d_changed;
    k_project(s, wanted, r->collect.d_x, r->head, alone ? d_few : d_raw);
    if (!alone)
        comm_gather_shares(s, r->comm, wanted->view.d_plan, rows, d_raw, d_few, n);
    const struct widen_args a = {.d_round = wanted->view.d_plan,
            .d_place = r->some->place,
            .d_from = d_few,
            .d_to = d_raw,
            .vocab = r->sample.p.shape.vocab_size,
            .n = n};
    return CUDA_QUEUED(s, queue_widen(s->stream, &a, rows));
}
static bool queue_round(struct k_stream *s, const struct round *r, uint32_t rows) {
    const struct k_batch wanted = {.view.d_plan = r->collect.d_round,
            .context = s->context,
            .entries_max = 1,
            .rows_max = HEAD_ROWS,
            .bounds = {.rows = rows, .entries = 1, .context = UINT32_MAX}};
    if (!CUDA_QUEUED(s, queue_collect(s->stream, &r->collect, rows)))
        return false;
    if (!r->some)
        queue_logits(s, r, &wanted);
    else if (!queue_some_logits(s, r, &wanted))
        return false;
    return CUDA_QUEUED(s, queue_samples(s->stream, &r->sample, rows));
}

static void queue_head(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *head, const struct k_draft_head *some, const float *hidden,
        struct k_result *results, struct k_outcome *outcomes, float *logits, uint32_t logits_rows_max) {
    const struct k_shape *h = &p->view.shape;
    const uint64_t room = logits ? logits_rows_max : 0, drafts = p->options.drafts_max,
                   wanted = b->bounds.entries * (1 + drafts) + SCORES_MAX + room,
                   rows = wanted < b->bounds.rows ? wanted : b->bounds.rows;
    uint64_t at[PARTS_OF_SCRATCH];
    uint8_t *d_scratch = stream_scratch(s, head_scratch(h, at));
    if (!d_scratch || !head_fits(s, h, head, some) || !CUDA_QUEUED(s, cudaSetDevice(s->context->device)))
        return;
    struct round r = {.head = head,
            .some = some,
            .comm = m,
            .d_local = (float *)(d_scratch + at[LOCAL]),
            .collect = {.d_plan = b->view.d_plan,
                    .d_entries = b->view.d_entries,
                    .d_row_pos = b->view.d_row_pos,
                    .d_row_id = b->view.d_row_id,
                    .d_slots = p->view.d_slots,
                    .d_hidden = hidden,
                    .hidden_size = h->hidden_size,
                    .logits_rows_max = (uint32_t)room,
                    .d_round = (struct k_plan *)(d_scratch + at[ROUND]),
                    .d_rows = (struct head_row *)(d_scratch + at[ROWS]),
                    .d_states = (struct sample_state *)(d_scratch + at[STATES]),
                    .d_masses = (uint64_t *)(d_scratch + at[MASSES]),
                    .d_x = (float *)(d_scratch + at[HIDDEN])}};
    r.sample = (struct sample_args){.p = p->view,
            .segment = k_vocab_segment(h->vocab_size),
            .d_entries = b->view.d_entries,
            .d_masks = b->view.d_masks,
            .d_round = r.collect.d_round,
            .d_rows = r.collect.d_rows,
            .d_states = r.collect.d_states,
            .d_parts = (struct sample_part *)(d_scratch + at[PARTS]),
            .d_sums = (float *)(d_scratch + at[SUMS]),
            .d_masses = r.collect.d_masses,
            .d_maxima = (uint32_t *)(d_scratch + at[MAXIMA]),
            .d_lists = (uint32_t *)(d_scratch + at[LISTS]),
            .d_raw = (float *)(d_scratch + at[RAW]),
            .d_changed = (float *)(d_scratch + at[CHANGED]),
            .d_results = results,
            .d_outcomes = drafts ? NULL : outcomes, /* which one sample cannot tell */
            .d_logits = logits};
    for (; r.collect.first < rows; r.collect.first += HEAD_ROWS) {
        const uint64_t left = rows - r.collect.first;
        if (!queue_round(s, &r, left < HEAD_ROWS ? (uint32_t)left : HEAD_ROWS))
            return;
    }
    if (drafts && outcomes && b->bounds.entries > 0) {
        const struct outcome_args o = {b->view.d_plan, b->view.d_entries, p->view, hidden, results, outcomes};
        CUDA_QUEUED(s, queue_outcomes(s->stream, &o, b->bounds.entries));
    }
}
void k_head_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *head, const float *hidden, struct k_result *results,
        struct k_outcome *outcomes, float *logits, uint32_t logits_rows_max) {
    queue_head(s, p, m, b, head, NULL, hidden, results, outcomes, logits, logits_rows_max);
}
void k_draft_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *d,
        const struct k_draft_head *h, const float *d_hidden, struct k_result *results) {
    queue_head(s, p, m, d, h->head, h, d_hidden, results, NULL, NULL, 0);
}

void k_reduce_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part,
        float *x, uint32_t hidden_size) {
    const struct add_args a = {.d_plan = b->view.d_plan, .d_part = part, .d_x = x, .columns = hidden_size};
    if (b->bounds.rows == 0 || !stream_enter(s))
        return;
    if (comm_alone(m))
        CUDA_QUEUED(s, queue_add(s->stream, &a, b->bounds.rows));
    else
        comm_add(s, m, b, part, x, hidden_size);
}
