/* batch.c - a step's plan on the device, and the operations that open and close a step.
 *
 * Called by tp/: created once, uploaded into at each step; not part of a graph, as what is copied depends on the plan.
 * What an upload finds wrong is a fault of the stream, and the step is then empty: a plan without rows. */
#include "kernels/cuda/gdn.h"
#include "kernels/cuda/internal.h"
#include "kernels/cuda/step.h"
#include "kernels/shared/bounds.h"

#include "base/mask.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int k_batch_create(
        struct k_context *c, uint32_t entries_max, uint32_t rows_max, struct k_batch **ret, struct error *e) {
    int r = batch_check(entries_max, rows_max, e);
    if (r < 0)
        return r;
    struct k_batch *b = calloc(1, sizeof *b);
    if (!b)
        return error_set(e, -ENOMEM, "no memory for a batch");
    *b = (struct k_batch){.context = c, .entries_max = entries_max, .rows_max = rows_max};
    k_batch_bounds(b, NULL);
    struct batch_view *v = &b->view;
    v->d_plan = k_alloc(c, sizeof *v->d_plan);
    v->d_entries = k_alloc(c, entries_max * sizeof *v->d_entries);
    v->d_ids = k_alloc(c, rows_max * sizeof *v->d_ids);
    v->d_rope = k_alloc(c, rows_max * 3 * sizeof *v->d_rope);
    v->d_row_id = k_alloc(c, rows_max * sizeof *v->d_row_id);
    v->d_row_pos = k_alloc(c, rows_max * sizeof *v->d_row_pos);
    v->d_row_entry = k_alloc(c, rows_max * sizeof *v->d_row_entry);
    v->d_row_rope = k_alloc(c, rows_max * 3 * sizeof *v->d_row_rope);
    if (!v->d_plan || !v->d_entries || !v->d_ids || !v->d_rope || !v->d_row_id || !v->d_row_pos ||
            !v->d_row_entry || !v->d_row_rope) {
        k_batch_free(b);
        return error_set(e, -ENOMEM, "no memory for a batch of %u rows on device %d", rows_max, c->device);
    }
    *ret = b;
    return 0;
}
struct k_batch *k_batch_free(struct k_batch *b) {
    if (!b)
        return NULL;
    const struct batch_view *v = &b->view;
    void *const blocks[] = {v->d_plan, v->d_entries, v->d_ids, v->d_rope, v->d_row_id, v->d_row_pos,
            v->d_row_entry, v->d_row_rope, v->d_masks};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        k_free(b->context, blocks[i]);
    free(b);
    return NULL;
}
void k_batch_bounds(struct k_batch *b, const struct k_bounds *bounds) {
    b->bounds = bounds_within(bounds, b->rows_max, b->entries_max);
}

void k_batch_upload(struct k_stream *s, struct k_batch *b, const struct k_plan *plan,
        const struct k_entry *entries, const uint32_t *ids, uint32_t n_ids, const uint32_t *rope,
        uint32_t n_rope) {
    struct error e;
    if (!stream_enter(s))
        return;
    if (plan_check(plan, n_ids, n_rope, b->entries_max, b->rows_max, &e) < 0 ||
            bounds_check(&b->bounds, plan, entries, /* slots= */ NULL, &e) < 0 ||
            masks_check(plan, entries, b->masks_max, &e) < 0) {
        stream_refused(s, &e);
        CUDA_QUEUED(s, cudaMemsetAsync(b->view.d_plan, 0, sizeof *b->view.d_plan, s->stream));
        return;
    }
    const uint64_t entry_words = plan->n_entries * sizeof *entries / sizeof(uint32_t),
                   plan_words = sizeof *plan / sizeof(uint32_t);
    if (plan_words + entry_words + n_ids + n_rope <= WORDS_MAX) { /* decoding: one node in place of four */
        words_put(s, b->view.d_plan, plan, plan_words);
        words_put(s, b->view.d_entries, entries, entry_words);
        words_put(s, b->view.d_ids, ids, n_ids);
        words_put(s, b->view.d_rope, rope, n_rope);
        return;
    }
    k_upload(s, b->view.d_plan, plan, sizeof *plan);
    k_upload(s, b->view.d_entries, entries, plan->n_entries * sizeof *entries);
    k_upload(s, b->view.d_ids, ids, n_ids * sizeof *ids);
    k_upload(s, b->view.d_rope, rope, n_rope * sizeof *rope);
}

/* --- masks --- */

int k_batch_create_masks(struct k_batch *b, uint32_t vocab_size, uint32_t masks_max, struct error *e) {
    const uint32_t words = mask_words(vocab_size);
    b->view.d_masks = k_alloc(b->context, (uint64_t)masks_max * words * sizeof *b->view.d_masks);
    if (!b->view.d_masks)
        return error_set(e, -ENOMEM, "no memory for %u masks of a vocabulary of %u on device %d", masks_max,
                vocab_size, b->context->device);
    b->masks_max = masks_max;
    b->mask_words = words;
    return 0;
}
void k_batch_upload_masks(struct k_stream *s, struct k_batch *b, const uint32_t *masks, uint32_t n_masks) {
    struct error e;
    if (masks_fit(n_masks, b->masks_max, &e) < 0)
        stream_refused(s, &e);
    else if (n_masks)
        k_upload(s, b->view.d_masks, masks, (uint64_t)n_masks * b->mask_words * sizeof *masks);
}

/* --- begin and end --- */

void k_begin_step(struct k_stream *s, struct k_pool *p, struct k_batch *b) {
    const struct begin_args a = {b->view, p->view, b->bounds, p->options.drafts_max, s->found};
    const struct fold_args fold = {p->view, b->view, ring_of(p->view.layout.ring_rows)};
    if (CUDA_QUEUED(s, queue_begin(s->stream, &a)) && p->options.drafts_max > 0 &&
            p->view.shape.n_gdn_layers > 0 && b->bounds.entries > 0)
        CUDA_QUEUED(s, queue_gdn_fold(s->stream, &fold, b->bounds.entries));
}
void k_end_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_result *results,
        const struct k_outcome *outcomes) {
    const struct end_args a = {b->view, p->view, results, outcomes};
    CUDA_QUEUED(s, queue_end(s->stream, &a, b->bounds.entries));
}

void k_draft_begin(struct k_stream *s, struct k_pool *p, const struct k_batch *b,
        const struct k_outcome *outcomes, const float *hidden, struct k_batch *d, float *d_hidden) {
    const struct draft_args a = {.p = p->view,
            .b = b->view,
            .d = d->view,
            .d_outcomes = outcomes,
            .d_hidden = hidden,
            .d_draft_hidden = d_hidden,
            .drafts_max = d->bounds.entries < d->bounds.rows ? d->bounds.entries : d->bounds.rows};
    if (a.drafts_max > 0)
        CUDA_QUEUED(s, queue_draft_begin(s->stream, &a));
}
void k_draft_take(struct k_stream *s, struct k_pool *p, struct k_batch *d, const struct k_result *results) {
    const struct draft_args a = {
            .p = p->view, .d = d->view, .d_results = results, .drafts_max = d->bounds.rows};
    if (a.drafts_max > 0)
        CUDA_QUEUED(s, queue_draft_take(s->stream, &a));
}

/* --- rows of embeddings and norms --- */

static struct table_view table_view_of(const struct k_table *t) {
    return (struct table_view){t->d_data, t->dtype, t->rows, t->columns};
}

void k_embed(struct k_stream *s, const struct k_batch *b, const struct k_table *table, float *x) {
    const struct embed_args a = {b->view, table_view_of(table), x};
    CUDA_QUEUED(s, queue_embed(s->stream, &a, b->bounds.rows));
}
void k_final_norm(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const float *x,
        const float *norm, float eps, float *y, bool keep) {
    const struct final_args a = {b->view, p->view, x, norm, y, eps, keep};
    CUDA_QUEUED(s, queue_final_norm(s->stream, &a, b->bounds.rows));
}
void k_mtp_input(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_table *table,
        const float *hidden, const float *norm_embedding, const float *norm_hidden, float eps,
        const struct k_result *results, float *y) {
    const struct mtp_args a = {b->view, p->view, table_view_of(table), hidden, norm_embedding, norm_hidden,
            results, y, eps, s->found};
    assert(table->columns == p->view.shape.hidden_size);
    assert(table->rows == p->view.shape.vocab_size);
    CUDA_QUEUED(s, queue_mtp_input(s->stream, &a, b->bounds.rows));
}
