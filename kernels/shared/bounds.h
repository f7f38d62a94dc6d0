/* bounds.h - what a step may be at most, and how deep its entries go. */
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
