/* source.h - reading the rows of a view, in its order. Between the packers of this folder; nobody else includes it. */
#pragma once

#include "kernels/layout/layout.h"

/* The row of the dense or quantised matrix that is row `row` of the view. */
static inline uint32_t source_row(const struct k_matrix_view *v, uint32_t row) {
    if (v->row_order)
        return v->row_order[row];
    return v->quant ? v->first_row + row : row;
}

/* codes[r][n] of n_rows <= QUANT_ROWS_MAX rows of the view, which need not be neighbours in the matrix. */
static inline void source_codes(const struct k_matrix_view *v, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint8_t *codes) {
    for (uint32_t r = 0, run; r < n_rows; r += run) {
        const uint32_t first = source_row(v, row + r);
        for (run = 1; r + run < n_rows && source_row(v, row + r + run) == first + run;)
            run++;
        v->quant->codes(v->quant, first, run, column, n, codes + (size_t)r * n);
    }
}
