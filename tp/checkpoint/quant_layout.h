/* quant_layout.h - where the codes, scales and zeros of a matrix lie in a safetensors file, and the readers of struct
 * quant_matrix that follow it. Filled by the makers (quant_tensor.h), which check that all of it is inside the file;
 * nobody else includes this.
 *
 * "Words" are the I32 of the packing tools: 32 / bits codes each, the first in the lowest bits. */
#pragma once

#include "base/quant.h"
#include "tp/checkpoint/safetensors.h"

struct quant_layout {
    const uint8_t *codes;
    uint64_t code_stride; /* bytes from a row of the stored matrix to the next */
    uint32_t bits;        /* of a code in a word; also of zeros */
    uint8_t flip;         /* what is xored into codes and zeros that are bytes: 0x80 where they are signed */

    const uint8_t *scales;
    enum tensor_dtype scale_dtype;
    uint32_t scale_rows; /* rows that share a scale: 1, or of a block, or all */
    uint64_t scale_row,
            scale_column; /* elements from a row (of blocks) to the next, from a group to the next */

    const uint8_t *zeros; /* NULL: all as the format's default */
    bool zero_words;      /* words along rows; else bytes */
    uint32_t zero_add;    /* to each word, before it is taken apart */
    const uint8_t *slots; /* of row % (32 / bits) in its word; NULL: in order */
    uint64_t zero_row,
            zero_column; /* words (or bytes) from a row (of words) to the next, from a group to the next */
};

/* AWQ: the word of rows 8c.. has row 8c + i in slot QUANT_AWQ_SLOTS[i]. */
extern const uint8_t QUANT_AWQ_SLOTS[8];

/* Readers of codes; q->file is a struct quant_layout. */
typedef void quant_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret);
quant_codes quant_codes_bytes;   /* [rows][columns], a byte each */
quant_codes quant_codes_words;   /* [rows][columns in words of 4 bits] */
quant_codes quant_codes_columns; /* [columns in words][rows]: GPTQ */
quant_codes quant_codes_awq;     /* [columns][rows in words, in AWQ's order] */
void quant_layout_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret);
