/* views.h - a batch and a pool as kernels see them: device pointers and sizes, passed by value.
 *
 * Between the host code of this folder (C), which owns what they point to, and its .cu files. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/pool_layout.h"
#include "kernels/shared/slot.h"

/* What a kernel found wrong, for the host to say. The first one stays. */
enum device_fault_kind {
    DEVICE_FAULT_NONE,
    DEVICE_FAULT_ID,       /* a: token id, b: vocabulary, c: slot */
    DEVICE_FAULT_DEPTH,    /* a: positions, b: bound */
    DEVICE_FAULT_ROWS,     /* a: entries, b: rows, c: bound of entries, d: bound of rows */
    DEVICE_FAULT_DRAFTS,   /* a: slot, b: drafts of its entry, c: that the pool takes */
    DEVICE_FAULT_LEFT,     /* a: slot, b: drafts of its entry, c: that its last step left */
    DEVICE_FAULT_EXCHANGE, /* a: 1 aborted, 2 late; b: rank, c: rank waited for, d: epoch */
};
struct device_fault {
    uint32_t kind; /* enum device_fault_kind; written after the rest */
    uint64_t a, b, c, d;
};
/* A stream's, as kernels see it (fault.cuh). A graph tells it to the stream that it was captured on. */
struct fault_view {
    uint32_t *d_claimed;       /* by whoever changes it from 0 to 1, and then tells */
    struct device_fault *told; /* in pinned host memory */
};

struct batch_view {
    struct k_plan *d_plan;
    struct k_entry *d_entries;                    /* [entries_max] */
    uint32_t *d_ids, *d_rope;                     /* [rows_max], [3 * rows_max] as uploaded */
    uint32_t *d_row_id, *d_row_pos, *d_row_entry; /* [rows_max] derived by k_begin_step() */
    uint32_t *d_row_rope;                         /* [rows_max][3] */
    uint32_t *d_masks;                            /* [masks_max][mask_words] as uploaded, or NULL */
};

struct pool_view {
    struct k_shape shape;
    struct pool_layout layout;
    uint32_t pages, pages_per_slot; /* pages: with the dummy */
    enum k_dtype kv_dtype, state_dtype;
    uint8_t *d_kv; /* [layer][page][kv_head][K|V][64][D] */
    float *d_gdn;  /* [slot][layer] of layout.gdn_floats */
    struct slot *d_slots;
    uint32_t *d_tables;   /* [slot][pages_per_slot] */
    uint16_t *d_counts;   /* [slot][V] */
    float *d_hidden;      /* [slot][H] MTP hidden */
    uint32_t *d_bias_ids; /* [slot][LOGIT_BIAS_MAX] */
    float *d_bias;
    uint32_t *d_suppress; /* [slot][SUPPRESS_MAX] */
    float *d_inv_freq;    /* [rotary_dim / 2] */
    /* [slot][Hk] value heads of a key head that have read what they share; 0 between kernels */
    uint32_t *d_arrivals;
    uint8_t *page_units; /* in pinned memory of the host that kernels reach too: see pool_layout.h */
};
