/* batch.c - a step's plan on the device.
 *
 * Called by tp/: created once, uploaded into at each step. What an upload finds wrong is a fault of the stream, and the
 * step is then empty: a plan without rows. */
#include "kernels/cuda/internal.h"
#include "kernels/shared/bounds.h"

#include <errno.h>
#include <stdlib.h>

int k_batch_create(
        struct k_context *c, uint32_t entries_max, uint32_t rows_max, struct k_batch **ret, struct error *e) {
    struct k_batch *b;
    if (rows_max < 1 || rows_max > STEP_ROWS_MAX || entries_max < 1 || entries_max > STEP_ROWS_MAX)
        return error_set(e, -EINVAL, "a step of %u rows and %u entries; 1 to %u are possible", rows_max,
                entries_max, STEP_ROWS_MAX);
    b = calloc(1, sizeof *b);
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
            v->d_row_entry, v->d_row_rope};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        k_free(b->context, blocks[i]);
    free(b);
    return NULL;
}
void k_batch_bounds(struct k_batch *b, const struct k_bounds *bounds) {
    b->bounds = bounds_within(bounds, b->rows_max, b->entries_max);
}

/* What can be said before the slots are looked at. */
static bool plan_fits(struct k_stream *s, const struct k_batch *b, const struct k_plan *plan,
        const struct k_entry *entries, uint32_t n_ids, uint32_t n_rope) {
    uint64_t deepest = 0;
    if (plan->n_entries > b->entries_max || plan->n_rows > b->rows_max || n_ids > b->rows_max ||
            n_rope > b->rows_max * 3) {
        stream_fault(s, -EINVAL, "a step of %u entries and %u rows; the batch was created for %u and %u",
                plan->n_entries, plan->n_rows, b->entries_max, b->rows_max);
        return false;
    }
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const uint64_t depth = entry_depth(&entries[i], /* length= */ 0);
        deepest = depth > deepest ? depth : deepest;
    }
    if (plan->n_rows > b->bounds.rows || plan->n_entries > b->bounds.entries)
        stream_fault(s, -EINVAL, "a step of %u entries and %u rows; it was bounded to %u and %u",
                plan->n_entries, plan->n_rows, b->bounds.entries, b->bounds.rows);
    else if (deepest > b->bounds.context)
        stream_fault(s, -EINVAL, "a step as deep as %llu positions; it was bounded to %u",
                (unsigned long long)deepest, b->bounds.context);
    else
        return true;
    return false;
}

void k_batch_upload(struct k_stream *s, struct k_batch *b, const struct k_plan *plan,
        const struct k_entry *entries, const uint32_t *ids, uint32_t n_ids, const uint32_t *rope,
        uint32_t n_rope) {
    if (!CUDA_QUEUED(s, cudaSetDevice(b->context->device)))
        return;
    if (!plan_fits(s, b, plan, entries, n_ids, n_rope)) {
        CUDA_QUEUED(s, cudaMemsetAsync(b->view.d_plan, 0, sizeof *b->view.d_plan, s->stream));
        return;
    }
    k_upload(s, b->view.d_plan, plan, sizeof *plan);
    k_upload(s, b->view.d_entries, entries, plan->n_entries * sizeof *entries);
    k_upload(s, b->view.d_ids, ids, n_ids * sizeof *ids);
    k_upload(s, b->view.d_rope, rope, n_rope * sizeof *rope);
}
