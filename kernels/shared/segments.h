/* segments.h - how the columns of a leaf are cut where weights and activations are integers.
 *
 * A segment ends wherever the weights' group (counted in the whole matrix) or the activations' run of ACTIVATION_RUN
 * (counted from the leaf's start) ends, or the leaf does. Which columns form one depends on the whole matrix only, so a
 * rank finds in its part what the whole has there. */
#pragma once

#include "kernels/shared/constants.h"
#include "kernels/shared/portable.h"

/* The first column after the segment that `column` begins; all columns of the whole matrix. */
K_INLINE uint32_t segment_end(uint32_t group, uint32_t leaf_first, uint32_t leaf_columns, uint32_t column) {
    uint32_t end = leaf_first + leaf_columns;
    const uint32_t run = leaf_first + ((column - leaf_first) / ACTIVATION_RUN + 1) * ACTIVATION_RUN;
    const uint64_t of_group = ((uint64_t)column / group + 1) * group;
    end = run < end ? run : end;
    return of_group < end ? (uint32_t)of_group : end;
}

/* The first column of the segment that `column` is in. */
K_INLINE uint32_t segment_begin(uint32_t group, uint32_t leaf_first, uint32_t column) {
    const uint32_t run = leaf_first + (column - leaf_first) / ACTIVATION_RUN * ACTIVATION_RUN,
                   of_group = column / group * group;
    return run > of_group ? run : of_group;
}

struct segment {
    uint32_t column, n; /* of the rank's K */
    uint32_t x_at; /* in a row of prepared INT8 activations, where every segment starts at a multiple of 8 */
};

/* All segments of a rank's columns: `leaves` leaves of leaf_columns from column first_column of the whole matrix on. */
struct cutting {
    uint32_t group, first_column; /* of the whole matrix */
    uint32_t n_segments, x_columns;
    uint32_t *leaf_first; /* [leaves + 1] index of a leaf's first segment */
    struct segment *segments;
};

#ifdef __cplusplus
extern "C" {
#endif

/* 0 or -ENOMEM; the caller owns *ret, also after a failure, and ends it with cutting_free(). */
int cutting_make(
        struct cutting *ret, uint32_t group, uint32_t first_column, uint32_t leaves, uint32_t leaf_columns);
void cutting_free(struct cutting *c);

#ifdef __cplusplus
}
#endif
