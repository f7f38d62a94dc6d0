/* check.h - what a linear and its pieces must be, said once: a backend calls this before it believes a pointer.
 *
 * Called by k_linear_pack(), k_linear_dummy() and the packers of kernels/layout. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/constants.h"
#include "kernels/shared/portable.h"

K_INLINE uint32_t strips_of(uint32_t rows) {
    return rows / STRIP_ROWS + (rows % STRIP_ROWS != 0);
}

#ifdef __cplusplus
extern "C" {
#endif

/* -EINVAL naming what is wrong with the pointers, ranges and orders of a view with data or a quant. */
int view_check(const struct k_matrix_view *v, uint32_t columns, uint32_t leaf_columns, const char *name,
        struct error *e);
/* The same of a whole linear: its sizes, every view, tiles, and that quantised pieces have the linear's order. */
int linear_check(const struct k_linear_spec *spec, struct error *e);
/* -EINVAL when a piece has neither data nor a quant nor tiles. */
int linear_check_weights(const struct k_linear_spec *spec, struct error *e);
/* -EINVAL when a piece is tiles, which cannot hold made-up weights. */
int linear_check_dummy(const struct k_linear_spec *spec, struct error *e);
/* -EINVAL when a linear of that name (NULL: none) and size is not the head that the rank's shape has. */
/* Of a head for drafts: this rank's rows, of h->n in all. */
int draft_head_check(const struct k_shape *s, const struct k_draft_head *h, const char *name, uint32_t rows,
        uint32_t columns, struct error *e);
int head_check(const struct k_shape *h, const char *name, uint32_t rows, uint32_t columns, struct error *e);

/* -EINVAL when an embedding table is none. */
int table_check(const void *data, uint32_t rows, uint32_t columns, struct error *e);

#ifdef __cplusplus
}
#endif
