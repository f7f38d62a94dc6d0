/* bounds.c - see bounds.h. */
#include "kernels/shared/bounds.h"

#include "kernels/shared/constants.h"
#include "kernels/shared/drafts.h"
#include "kernels/shared/slot.h"

#include <errno.h>

int batch_check(uint32_t entries_max, uint32_t rows_max, struct error *e) {
    if (rows_max < 1 || rows_max > STEP_ROWS_MAX || entries_max < 1 || entries_max > STEP_ROWS_MAX)
        return error_set(e, -EINVAL, "a step of %u rows and %u entries; 1 to %u are possible", rows_max,
                entries_max, STEP_ROWS_MAX);
    return 0;
}

int plan_check(const struct k_plan *plan, uint32_t n_ids, uint32_t n_rope, uint32_t entries_max,
        uint32_t rows_max, struct error *e) {
    if (plan->n_entries > entries_max || plan->n_rows > rows_max || n_ids > rows_max || n_rope > rows_max * 3)
        return error_set(e, -EINVAL, "a step of %u entries and %u rows; the batch was created for %u and %u",
                plan->n_entries, plan->n_rows, entries_max, rows_max);
    return 0;
}

int refuse_rows(
        uint32_t n_entries, uint32_t n_rows, uint32_t entries_bound, uint32_t rows_bound, struct error *e) {
    return error_set(e, -EINVAL, "a step of %u entries and %u rows; it was bounded to %u and %u", n_entries,
            n_rows, entries_bound, rows_bound);
}
int refuse_depth(uint64_t positions, uint32_t bound, struct error *e) {
    return error_set(e, -EINVAL, "a step as deep as %llu positions; it was bounded to %u",
            (unsigned long long)positions, bound);
}
int refuse_drafts(uint32_t slot, uint32_t asked, uint32_t left, struct error *e) {
    return error_set(e, -EINVAL, "slot %u: %u drafts, of which its last step left %u", slot, asked, left);
}
int refuse_id(uint32_t slot, uint32_t id, uint32_t vocabulary, struct error *e) {
    return error_set(e, -EINVAL, "slot %u: token id %u is not in the vocabulary of %u", slot, id, vocabulary);
}

int bounds_check(const struct k_bounds *bounds, const struct k_plan *plan, const struct k_entry *entries,
        const struct slot *slots, struct error *e) {
    uint64_t deepest = 0;
    if (plan->n_rows > bounds->rows || plan->n_entries > bounds->entries)
        return refuse_rows(plan->n_entries, plan->n_rows, bounds->entries, bounds->rows, e);
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const uint64_t depth = entry_depth(&entries[i], slots ? slots[entries[i].slot].length : 0);
        deepest = depth > deepest ? depth : deepest;
    }
    return deepest > bounds->context ? refuse_depth(deepest, bounds->context, e) : 0;
}

int drafts_check(
        const struct k_plan *plan, const struct k_entry *entries, uint32_t drafts_max, struct error *e) {
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const struct k_entry *t = &entries[i];
        if (t->kind == K_ENTRY_CONTINUE && t->n_rows > 1 + drafts_max)
            return error_set(
                    e, -EINVAL, "slot %u: %u drafts; the pool takes %u", t->slot, t->n_rows - 1, drafts_max);
    }
    return 0;
}

int masks_check(
        const struct k_plan *plan, const struct k_entry *entries, uint32_t masks_max, struct error *e) {
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const struct k_entry *t = &entries[i];
        const uint32_t n = entry_samples(t);
        if (n > 0 && entry_mask(t, n - 1) != UINT32_MAX && entry_mask(t, n - 1) >= masks_max)
            return error_set(e, -EINVAL, "slot %u: mask %u; the batch has room for %u", t->slot,
                    entry_mask(t, n - 1), masks_max);
    }
    return 0;
}
int masks_fit(uint32_t n_masks, uint32_t masks_max, struct error *e) {
    if (n_masks > masks_max)
        return error_set(e, -EINVAL, "%u masks in a step; the batch has room for %u", n_masks, masks_max);
    return 0;
}

int sampling_check(uint32_t slot, const struct k_sampling *sampling, struct error *e) {
    if (sampling->n_bias > LOGIT_BIAS_MAX || sampling->n_suppress > SUPPRESS_MAX)
        return error_set(e, -EINVAL, "slot %u: %u biases and %u suppressed ids; at most %u and %u fit", slot,
                sampling->n_bias, sampling->n_suppress, LOGIT_BIAS_MAX, SUPPRESS_MAX);
    return 0;
}

int scratch_check(uint64_t workspace_bytes, uint64_t needed, struct error *e) {
    if (needed > workspace_bytes)
        return error_set(e, -ENOBUFS,
                "the workspace has %llu bytes and %llu are needed; size it with k_workspace_bytes()",
                (unsigned long long)workspace_bytes, (unsigned long long)needed);
    return 0;
}
