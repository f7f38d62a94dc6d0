/* quant.h - a quantised matrix as its file stores it, behind two readers.
 *
 * Made by tp/checkpoint (one maker per file format), read by the packers of a kernels library and by tools. It is what
 * lets the packers know no file format and the formats no packer. Rows are outputs, columns (k) are inputs, whatever
 * the file's orientation. The value of an element with code q in a group with (scale, zero, minimum) is
 *
 *     QUANT_INT4, QUANT_INT8   scale * (q - zero) - minimum      q in 0..15 or 0..255
 *     QUANT_FP8                scale * e4m3(q)                   q the byte
 *
 * in real arithmetic; who turns it into fp32 says where it rounds. Pointers lead into mapped files that outlive it.
 * Readers do no checks: the maker has checked that every element is inside its file, and the order. What would take
 * reading the matrix, scales and minimums that are no numbers and FP8 codes that are NaN (0x7f, 0xff), is refused by
 * quant_matrix_check() (tp/checkpoint/quant_matrix.h), which whoever packs a matrix calls first. Readers may be called
 * from several threads. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define QUANT_ROWS_MAX 16u /* rows of one call */

enum quant_format { QUANT_INT4, QUANT_INT8, QUANT_FP8 };
enum quant_scale {
    QUANT_SCALE_F32,
    QUANT_SCALE_BF16,
    QUANT_SCALE_F16
}; /* what represents every scale exactly */

struct quant_group {
    float scale;
    float minimum; /* 0 unless the matrix has minimums */
    uint8_t zero;  /* 8 or 128 unless the matrix has zeros; unused by FP8 */
};

struct quant_matrix {
    enum quant_format format;
    enum quant_scale scale;
    uint32_t rows, columns;
    uint32_t group; /* columns per group, at most `columns`; a multiple of 16 unless it is all columns */
    bool zeros, minimums; /* whether some group's differ from the defaults above */
    /* Where the file's quantiser reordered the columns by group (GPTQ act-order): [columns], position k of this matrix
     * multiplies input order[k]. Groups are whole and consecutive in positions. NULL: position k is input k. */
    const uint32_t *order;
    /* ret[r * n_columns + i] = code of (row + r, column + i); n_rows <= QUANT_ROWS_MAX; columns are positions */
    void (*codes)(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
            uint32_t n_columns, uint8_t *ret);
    /* ret[i] = group first + i of the row */
    void (*groups)(
            const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret);
    const char *label; /* for people: "gptq int4 g128 act-order"; never NULL; lives as long as the matrix */
    const void *file;  /* the maker's own */
};

static inline uint32_t quant_groups(const struct quant_matrix *q) { /* per row */
    return (q->columns + q->group - 1) / q->group;
}
