/* cpu_tiles.h - the packed layout "cpu-2": what kernels/cpu computes with.
 *
 * A matrix is groups of 16 strips of 16 rows, in a group [K-leaf 0..7][strip][block], rows padded to 16: one stream
 * for a product that works group after group, and still long runs for a rank that has some of the leaves. struct form
 * says what a block holds; which columns form a segment depends on the whole matrix only (kernels/shared/segments.h),
 * so that a rank finds in its part what the whole has there. Groups of strips lie one after another: a matrix of some
 * of them is these bytes of the whole's.
 *
 * Called through struct k_layout by who writes packed files, and by kernels/cpu/linear.c, whose own linears are made of
 * the same blocks. */
#pragma once

#include "kernels/layout/layout.h"
#include "kernels/shared/constants.h"

#define GROUP_STRIPS 16u /* strips whose blocks lie together, leaf after leaf */

/* What a strip's weights are: an enum k_dtype, or one of these. */
enum { KIND_INT4 = 3, KIND_INT8 = 4, KIND_FP8 = 5 };
static inline bool kind_quantised(uint32_t kind) {
    return kind >= KIND_INT4;
}

/* What the block of one leaf of one strip holds, in this order: codes; scales [segment][16]; zeros u8 [segment][16];
 * minimums f32 [segment][16]. Dense weights are [k][16]. Codes of a segment: INT4 in vectors of 64 bytes with 16 rows x
 * 4 k, two of them in the low and the high nibbles, so padded to 8 k; INT8 in vectors of 16 rows x 4 k; FP8 [k][16]. */
struct form {
    uint8_t kind, scale; /* scale: enum quant_scale */
    bool zeros, minimums;
    uint32_t group;    /* columns of the whole matrix with one scale */
    uint32_t segments; /* reserved in every leaf: the most that a leaf of the matrix has */
    uint32_t scales_at, zeros_at, minimums_at, bytes; /* bytes: a multiple of 64 */
};

/* The form of a dense or quantised view with K-leaves of leaf_columns; of whole tiles. */
struct form form_of_view(const struct k_matrix_view *v, uint32_t leaf_columns);
struct form form_of_tiles(const struct k_tiles *t);
/* Where a strip's block of the first of `leaves` leaves lies in a matrix of n_strips, and how far on the next is. */
struct strip_place {
    uint64_t first, leaf_stride; /* bytes */
};
struct strip_place strip_place(uint32_t strip, uint32_t n_strips, uint32_t leaves, uint32_t block_bytes);
struct pack_source {
    const struct k_matrix_view *view;
    const struct form *form;
    const uint32_t *order; /* of dense columns; may be NULL */
    uint32_t leaf_columns;
};
/* One block: rows row .. row + n - 1 of the view, its leaf number `leaf`. `to` is all zero bytes. */
void pack_block(const struct pack_source *s, uint32_t row, uint32_t n, uint32_t leaf, uint8_t *to);
