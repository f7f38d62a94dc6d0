/* layout.h - packed layouts: what the bytes of a matrix in tiles mean, for whichever device will read them.
 *
 * A layout is a row of a table: a name, which stands in packed files and changes whenever the bytes do, and functions
 * of a description (struct k_tiles) alone. All of it is host code free of any device, so any host packs for any other.
 * Called by tp/load for packed files, and by a backend for tiles of its own. Nothing here owns memory.
 *
 * A packed matrix is a sequence of units that can be packed one by one, in the order of their bytes: so that a file of
 * any size is written front to back through a buffer of any size, by any number of threads. */
#pragma once

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a matrix is packed from: a whole matrix, dense or quantised, that k_layout_check() let through. */
struct k_layout_source {
    const struct k_tiles *tiles; /* k_tiles_describe() of view; its data are not looked at */
    const struct k_matrix_view *view;
    const uint32_t *order; /* NULL, or [columns] of a dense matrix: position k is column order[k] */
};

struct k_layout {
    const char *name;
    /* 0, or -ENOTSUP and why this layout has no form for such a matrix. */
    int (*check)(const struct k_tiles *t, struct error *e);
    size_t (*bytes)(const struct k_tiles *t);
    uint32_t (*units)(const struct k_tiles *t);
    /* Where unit i begins; i = units: bytes(). What lies between units is zero and belongs to the one before. */
    size_t (*unit_at)(const struct k_tiles *t, uint32_t i);
    /* Packs units [first, first + n); `to` takes the bytes from unit_at(first) to unit_at(first + n), all of them. */
    void (*pack)(const struct k_layout_source *s, uint32_t first, uint32_t n, uint8_t *to);
    /* Stretch i of the bytes that a view of tiles will read with its `columns` in `leaves`, ascending; false = no more.
     * A stretch may hold bytes of others when the view has part of what the layout keeps together. */
    bool (*part)(const struct k_matrix_view *v, uint32_t columns, uint32_t leaves, uint32_t i,
            const void **ret, size_t *ret_bytes);
};

extern const struct k_layout k_layout_cpu;      /* cpu_tiles.h: "cpu-2" */
extern const struct k_layout k_layout_cuda_mma; /* cuda_mma.h: "cuda-mma-2" */

#define K_LAYOUTS 2u
const struct k_layout *k_layout_at(uint32_t i);         /* i < K_LAYOUTS */
const struct k_layout *k_layout_find(const char *name); /* NULL: there is none of this name */

/* Fills everything of *ret but data from a dense or quantised view of the whole matrix. */
void k_tiles_describe(const struct k_matrix_view *whole, uint32_t columns, struct k_tiles *ret);

/* Whether the matrix can be packed so: -EINVAL or -ENOTSUP naming what is in the way. */
int k_layout_check(
        const struct k_layout *l, const struct k_layout_source *s, const char *name, struct error *e);
/* Packs units [first, first + n) of what k_layout_check() let through with up to `threads` threads, the calling one
 * included; 0 = all that this process may use. */
void k_layout_pack_units(const struct k_layout *l, const struct k_layout_source *s, uint32_t first,
        uint32_t n, uint32_t threads, void *to);
/* Both of a whole matrix; order as in struct k_layout_source. */
int k_layout_pack(const struct k_layout *l, const struct k_matrix_view *whole, uint32_t columns,
        const uint32_t *order, uint32_t threads, void *to, struct error *e);

#ifdef __cplusplus
}
#endif
