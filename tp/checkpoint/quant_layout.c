/* quant_layout.c - see quant_layout.h. Loading is as fast as these loops: each has a path for whole words, without an
 * order of columns, and a slow one for the rest. */
#include "tp/checkpoint/quant_layout.h"

#include "base/half.h"

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

/* Rows of words lie far apart, where no hardware looks ahead: this many are asked for before they are needed. */
#define WORDS_AHEAD 16u

static uint32_t input(const struct quant_matrix *q, uint32_t position) {
    return q->order ? q->order[position] : position;
}

/* --- codes --- */

static void flip_bytes(uint8_t *p, uint32_t n, uint8_t flip) {
    const uint64_t flips = flip * 0x0101010101010101ull;
    uint64_t eight;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        memcpy(&eight, p + i, 8);
        eight ^= flips;
        memcpy(p + i, &eight, 8);
    }
    for (; i < n; i++)
        p[i] ^= flip;
}

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
        if (l->flip)
            flip_bytes(ret, n_columns, l->flip);
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
            if (n_columns - i > WORDS_AHEAD * per) {
                __builtin_prefetch(from + WORDS_AHEAD * l->code_stride);
                __builtin_prefetch(from + WORDS_AHEAD * l->code_stride + 4 * n_rows - 1);
            }
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

/* The upper part of each block of a with the lower one of b. */
static inline void swap(uint64_t *a, uint64_t *b, uint32_t shift, uint64_t mask) {
    uint64_t both = (*a >> shift ^ *b) & mask;
    *b ^= both;
    *a ^= both << shift;
}

/* 8 words of a row each, eight codes in a word: turned so that ret[i] has code i of each, as bytes. */
static void turn(const uint8_t *from, uint64_t stride, uint64_t ret[8]) {
    for (uint32_t k = 0; k < 8; k++)
        ret[k] = spread(load32(from + k * stride));
    for (uint32_t k = 0; k < 4; k++) /* 4 x 4 bytes change places, then 2 x 2, then single ones */
        swap(&ret[k], &ret[k + 4], 32, 0x00000000ffffffffull);
    for (uint32_t k = 0; k < 2; k++) {
        swap(&ret[k], &ret[k + 2], 16, 0x0000ffff0000ffffull);
        swap(&ret[k + 4], &ret[k + 6], 16, 0x0000ffff0000ffffull);
    }
    for (uint32_t k = 0; k < 8; k += 2)
        swap(&ret[k], &ret[k + 1], 8, 0x00ff00ff00ff00ffull);
}

static void awq_block(const uint8_t *from, uint64_t stride, uint32_t n_columns, uint8_t *ret) {
    uint64_t slots[8];
    turn(from, stride, slots);
    for (uint32_t r = 0; r < 8; r++)
        memcpy(ret + (size_t)r * n_columns, &slots[QUANT_AWQ_SLOTS[r]], 8);
}

void quant_codes_awq(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct quant_layout *l = q->file;
    uint32_t i = 0;
    while (i < n_columns) {
        const uint8_t *from = l->codes + (column + i) * l->code_stride;
        if (row % 8 == 0 && n_rows % 8 == 0 && n_columns - i >= 8) {
            for (uint32_t k = WORDS_AHEAD; k < WORDS_AHEAD + 8 && n_columns - i > k; k++)
                __builtin_prefetch(from + row / 2 + k * l->code_stride);
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

static float load_scale(const struct quant_layout *l, uint64_t at) {
    uint16_t half;
    if (l->scale_dtype == TENSOR_F32)
        return float_of_bits(load32(l->scales + 4 * at));
    memcpy(&half, l->scales + 2 * at, sizeof(half));
    return l->scale_dtype == TENSOR_F16 ? float_of_f16(half) : float_of_bf16(half);
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
