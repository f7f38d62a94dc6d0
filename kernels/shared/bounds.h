/* bounds.h - what a step may be at most, how deep its entries go, and what is said of one that is more; the same of
 * what a slot is opened with.
 *
 * Refusals return -EINVAL (-ENOBUFS) and fill *e; a backend keeps the sentence in its stream, whether the host or a
 * kernel found it. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/portable.h"

/* The bounds that k_batch_bounds() means: NULL, or more than the batch was created for, is that. */
K_INLINE struct k_bounds bounds_within(
        const struct k_bounds *asked, uint32_t rows_max, uint32_t entries_max) {
    struct k_bounds b;
    b.rows = asked && asked->rows < rows_max ? asked->rows : rows_max;
    b.entries = asked && asked->entries < entries_max ? asked->entries : entries_max;
    b.context = asked ? asked->context : UINT32_MAX;
    return b;
}

/* Positions that the entry's last row sees; length: of its slot, for CONTINUE. */
K_INLINE uint64_t entry_depth(const struct k_entry *e, uint32_t length) {
    return (uint64_t)(e->kind == K_ENTRY_PROMPT ? e->first_pos : length) + e->n_rows;
}

#ifdef __cplusplus
extern "C" {
#endif

struct slot;

/* Whether a batch can be created for so many. */
int batch_check(uint32_t entries_max, uint32_t rows_max, struct error *e);
/* Whether an upload fits the batch's arrays. */
int plan_check(const struct k_plan *plan, uint32_t n_ids, uint32_t n_rope, uint32_t entries_max,
        uint32_t rows_max, struct error *e);
/* Whether a plan is within its bounds. slots: NULL, or those whose lengths CONTINUE entries start from. */
int bounds_check(const struct k_bounds *bounds, const struct k_plan *plan, const struct k_entry *entries,
        const struct slot *slots, struct error *e);
/* Whether each entry carries no more drafts than the pool takes. */
int drafts_check(
        const struct k_plan *plan, const struct k_entry *entries, uint32_t drafts_max, struct error *e);
/* Whether each entry names masks that there is room for, and whether so many fit. */
int masks_check(
        const struct k_plan *plan, const struct k_entry *entries, uint32_t masks_max, struct error *e);
int masks_fit(uint32_t n_masks, uint32_t masks_max, struct error *e);
/* What bounds_check() says, drafts that nobody left, and the ids that no vocabulary has. */
int refuse_rows(
        uint32_t n_entries, uint32_t n_rows, uint32_t entries_bound, uint32_t rows_bound, struct error *e);
int refuse_depth(uint64_t positions, uint32_t bound, struct error *e);
int refuse_drafts(uint32_t slot, uint32_t asked, uint32_t left, struct error *e);
int refuse_id(uint32_t slot, uint32_t id, uint32_t vocabulary, struct error *e);

/* Whether a slot has room for the biases and suppressed ids. */
int sampling_check(uint32_t slot, const struct k_sampling *sampling, struct error *e);
/* Whether the workspace has what an operation needs. */
int scratch_check(uint64_t workspace_bytes, uint64_t needed, struct error *e);

#ifdef __cplusplus
}
#endif
