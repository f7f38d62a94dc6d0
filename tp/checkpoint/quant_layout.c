/* quant_layout.c - see quant_layout.h. Loading is as fast as these loops: each has a path for whole words, without an
 * order of columns, and a slow one for the rest. */
#include "tp/checkpoint/quant_layout.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words of a file are read where they lie");

const uint8_t QUANT_AWQ_SLOTS[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static uint32_t load32(const uint8_t *p) { /* the format does not promise alignment */
    uint32_t word;
    memcpy(&word, p, sizeof(word));
    return word;
}

/* The eight nibbles of a word as eight bytes, the lowest first. */
static uint64_t spread(uint32_t word) {
    uint64_t x = word;
    x = (x | x << 16) & 0x0000ffff0000ffffull;
    x = (x | x << 8) & 0x00ff00ff00ff00ffull;
    return (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
}

static uint32_t input(const struct quant_matrix *q, uint32_t position) {
    return q->order ? q->order[position] : position;
}

/* --- codes --- */

void quant_codes_bytes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quant_layout *l = q->file;
    for (uint32_t r = 0; r < n_rows; r++, ret += n_columns) {
        const uint8_t *from = l->codes + (row + r) * l->code_stride;
        if (q->order)
            for (uint32_t i = 0; i < n_columns; i++)
                ret[i] = from[q->order[column + i]];
        else
            memcpy(ret, from + column, n_columns);
        for (uint32_t i = 0; l->flip && i < n_columns; i++)
            ret[i] ^= l->flip;
    }
}

void quant_codes_words(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quant_layout *l = q->file;
    for (uint32_t r = 0; r < n_rows; r++, ret += n_columns) {
        const uint8_t *from = l->codes + (row + r) * l->code_stride;
        uint32_t i = 0;
        while (i < n_columns) {
            uint32_t k = input(q, column + i);
            if (!q->order && k % 8 == 0 && n_columns - i >= 8) {
                uint64_t codes = spread(load32(from + k / 2));
                memcpy(ret + i, &codes, 8);
                i += 8;
            } else {
                ret[i++] = from[k / 2] >> (k % 2 * 4) & 15;
            }
        }
    }
}

void quant_codes_columns(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quant_layout *l = q->file;
    const uint32_t per = 32 / l->bits, mask = (1u << l->bits) - 1;
    uint32_t i = 0;
    while (i < n_columns) {
        uint32_t k = input(q, column + i);
        const uint8_t *from = l->codes + k / per * l->code_stride + row * 4ull;
        if (!q->order && k % per == 0 && n_columns - i >= per) {
            for (uint32_t r = 0; r < n_rows; r++) {
                uint32_t word = load32(from + 4 * r);
                uint64_t codes = per == 8 ? spread(word) : word;
                memcpy(ret + (size_t)r * n_columns + i, &codes, per);
            }
            i += per;
        } else {
            for (uint32_t r = 0; r < n_rows; r++)
                ret[(size_t)r * n_columns + i] = load32(from + 4 * r) >> (k % per * l->bits) & mask;
            i++;
        }
    }
}

/* 8 rows x 8 columns at once: words of eight columns, turned. */
static void awq_block(const uint8_t *from, uint64_t stride, uint32_t n_columns, uint8_t *ret) {
    uint64_t columns[8];
    for (uint32_t k = 0; k < 8; k++)
        columns[k] = spread(load32(from + k * stride));
    for (uint32_t r = 0; r < 8; r++) {
        uint64_t codes = 0;
        for (uint32_t k = 0; k < 8; k++)
            codes |= (columns[k] >> 8 * QUANT_AWQ_SLOTS[r] & 15) << 8 * k;
        memcpy(ret + (size_t)r * n_columns, &codes, 8);
    }
}

void quant_codes_awq(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quant_layout *l = q->file;
    uint32_t i = 0;
    while (i < n_columns) {
        const uint8_t *from = l->codes + (column + i) * l->code_stride;
        if (row % 8 == 0 && n_rows % 8 == 0 && n_columns - i >= 8) {
            for (uint32_t r = 0; r < n_rows; r += 8)
                awq_block(from + (row + r) / 2, l->code_stride, n_columns, ret + (size_t)r * n_columns + i);
            i += 8;
        } else {
            for (uint32_t r = 0; r < n_rows; r++) {
                uint32_t word = load32(from + (row + r) / 8 * 4);
                ret[(size_t)r * n_columns + i] = word >> 4 * QUANT_AWQ_SLOTS[(row + r) % 8] & 15;
            }
            i++;
        }
    }
}

/* --- groups --- */

static float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static float float_of_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 0) { /* zero and subnormal: a multiple of 2^-24, exact */
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    if (exponent == 31)
        return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static float load_scale(const struct quant_layout *l, uint64_t at) {
    uint16_t half;
    if (l->scale_dtype == TENSOR_F32)
        return float_of_bits(load32(l->scales + 4 * at));
    memcpy(&half, l->scales + 2 * at, sizeof(half));
    return l->scale_dtype == TENSOR_F16 ? float_of_half(half) : float_of_bits((uint32_t)half << 16);
}

static uint8_t load_zero(const struct quant_layout *l, uint32_t row, uint32_t group) {
    if (!l->zero_words)
        return l->zeros[row * l->zero_row + group * l->zero_column] ^ l->flip;
    uint32_t per = 32 / l->bits, slot = l->slots ? l->slots[row % per] : row % per;
    uint32_t word = load32(l->zeros + 4 * (row / per * l->zero_row + group * l->zero_column)) + l->zero_add;
    return word >> slot * l->bits & ((1u << l->bits) - 1);
}

void quant_layout_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct quant_layout *l = q->file;
    const uint64_t scales = row / l->scale_rows * l->scale_row;
    const uint8_t middle = q->format == QUANT_INT4 ? 8 : 128;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct quant_group){
                .scale = load_scale(l, scales + (first + i) * l->scale_column),
                .zero = l->zeros ? load_zero(l, row, first + i) : middle,
        };
}
