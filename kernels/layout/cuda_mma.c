/* cuda_mma.c - see cuda_mma.h, whose words this follows. */
#include "kernels/layout/cuda_mma.h"

#include <errno.h>
#include <string.h>

#define SECTION_ALIGN 256u
#define STEP_K        16u
#define LANES         32u

static size_t aligned(size_t n) {
    return (n + SECTION_ALIGN - 1) / SECTION_ALIGN * SECTION_ALIGN;
}

/* --- the plan --- */

/* The groups that the leaf which touches most of them touches. */
static uint32_t count_slots(const struct k_tiles *t, uint32_t leaf_columns) {
    uint32_t most = 0;
    for (uint32_t leaf = 0; leaf < K_LEAVES; leaf++) {
        uint32_t first = leaf * leaf_columns, last = first + leaf_columns - 1;
        uint32_t n = last / t->group - first / t->group + 1;
        most = n > most ? n : most;
    }
    return most;
}

int cuda_mma_plan(const struct k_tiles *t, struct cuda_mma_plan *ret, struct error *e) {
    if (t->columns == 0 || t->columns % K_LEAVES != 0)
        return error_set(e, -EINVAL, "%u columns do not divide into %u leaves for layout %s", t->columns,
                K_LEAVES, CUDA_MMA_LAYOUT);
    if (!t->quantised && t->dtype == K_F32)
        return error_set(e, -ENOTSUP,
                "layout %s has no form for FP32 matrices; convert the checkpoint to BF16", CUDA_MMA_LAYOUT);
    struct cuda_mma_plan p = {.strips = (t->rows + CUDA_MMA_ROWS - 1) / CUDA_MMA_ROWS,
            .leaf_columns = t->columns / K_LEAVES,
            .tile_bytes = CUDA_MMA_ROWS * CUDA_MMA_K * 2};
    p.tiles = (p.leaf_columns + CUDA_MMA_K - 1) / CUDA_MMA_K;
    if (t->quantised) {
        p.slots = count_slots(t, p.leaf_columns);
        p.scale_bytes = t->scale == QUANT_SCALE_F32 ? 4 : 2;
        p.tile_bytes = CUDA_MMA_ROWS * CUDA_MMA_K / (t->format == QUANT_INT4 ? 2 : 1);
    }
    size_t blocks = (size_t)K_LEAVES * p.strips, groups = blocks * p.slots * CUDA_MMA_ROWS;
    p.scales_at = aligned(blocks * p.tiles * p.tile_bytes);
    p.zeros_at = aligned(p.scales_at + groups * p.scale_bytes);
    p.minimums_at = aligned(p.zeros_at + (t->zeros ? groups : 0));
    p.bytes = aligned(p.minimums_at + (t->minimums ? groups * sizeof(float) : 0));
    *ret = p;
    return 0;
}

/* --- places --- */

static size_t tile_at(const struct cuda_mma_plan *p, uint32_t leaf, uint32_t strip, uint32_t tile) {
    return (((size_t)leaf * p->strips + strip) * p->tiles + tile) * p->tile_bytes;
}

static size_t group_index(const struct cuda_mma_plan *p, uint32_t leaf, uint32_t strip, uint32_t slot) {
    return (((size_t)leaf * p->strips + strip) * p->slots + slot) * CUDA_MMA_ROWS;
}

struct place { /* of an element of a tile: whose, and which of a0..a7 */
    uint32_t step, lane, element;
};

static struct place place_of(uint32_t row, uint32_t k) {
    uint32_t in_step = k % STEP_K;
    return (struct place){.step = k / STEP_K,
            .lane = (row % 8) * 4 + in_step % 8 / 2,
            .element = in_step / 8 * 4 + row / 8 * 2 + in_step % 2};
}

/* Byte of the tile, and how far the nibble is shifted in it (INT4). */
static uint32_t nibble_at(struct place at, uint32_t *ret_shift) {
    uint32_t nibble = at.element / 2 + 4 * (at.element % 2);
    *ret_shift = nibble % 2 * 4;
    return at.lane * 16 + at.step * 4 + nibble / 2;
}
static uint32_t byte_at(struct place at) {
    uint32_t word = at.element / 4, in_word = at.element % 4;
    return at.step / 2 * (LANES * 16) + at.lane * 16 + at.step % 2 * 8 + word * 4 + in_word / 2 +
           2 * (in_word % 2);
}
static uint32_t half_at(struct place at) {
    return at.step * (LANES * 16) + at.lane * 16 + at.element * 2;
}

/* --- packing --- */

static void store_code(const struct k_tiles *t, uint8_t *tile, struct place at, uint8_t code) {
    if (t->format == QUANT_INT4) {
        uint32_t shift, byte = nibble_at(at, &shift);
        tile[byte] = (uint8_t)((tile[byte] & ~(0xfu << shift)) | (uint32_t)(code & 0xf) << shift);
    } else
        tile[byte_at(at)] = code;
}

static uint16_t bf16_bits(float x) { /* exact: the scale came from such a value */
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

static uint16_t f16_bits(float x) { /* exact likewise: no rounding, subnormals included */
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    uint32_t sign = bits >> 16 & 0x8000, mantissa = (bits & 0x7fffff) | 0x800000;
    int exponent = (int)(bits >> 23 & 0xff) - 127;
    if (exponent < -24)
        return (uint16_t)sign;
    if (exponent < -14)
        return (uint16_t)(sign | mantissa >> (-1 - exponent));
    return (uint16_t)(sign | (uint32_t)(exponent + 15) << 10 | (mantissa >> 13 & 0x3ff));
}

static void store_group(const struct cuda_mma_plan *p, const struct k_tiles *t, const struct quant_group *g,
        size_t index, uint8_t *to) {
    uint8_t *scale = to + p->scales_at + index * p->scale_bytes;
    uint16_t half = t->scale == QUANT_SCALE_BF16 ? bf16_bits(g->scale) : f16_bits(g->scale);
    if (t->scale == QUANT_SCALE_F32)
        memcpy(scale, &g->scale, sizeof(g->scale));
    else
        memcpy(scale, &half, sizeof(half));
    if (t->zeros)
        to[p->zeros_at + index] = g->zero;
    if (t->minimums)
        memcpy(to + p->minimums_at + index * sizeof(float), &g->minimum, sizeof(g->minimum));
}

static uint32_t row_of(const struct k_matrix_view *v, uint32_t row) {
    return v->row_order ? v->row_order[row] : v->first_row + row;
}

/* What padded columns hold: the zero of the leaf's last group. */
static uint8_t pad_code(const struct k_tiles *t, const struct quant_group *g) {
    return t->format == QUANT_FP8 ? 0 : g->zero;
}

/* One row's part of one leaf. */
static void pack_quantised(const struct cuda_mma_plan *p, const struct k_tiles *t,
        const struct k_matrix_view *v, uint32_t row, uint32_t leaf, uint8_t *to) {
    const uint32_t strip = row / CUDA_MMA_ROWS, r = row % CUDA_MMA_ROWS, first = leaf * p->leaf_columns,
                   from = row_of(v, row), first_group = first / t->group;
    const uint32_t n_groups = (first + p->leaf_columns - 1) / t->group - first_group + 1;
    struct quant_group g = {0};
    for (uint32_t slot = 0; slot < n_groups; slot++) {
        v->quant->groups(v->quant, from, first_group + slot, 1, &g);
        store_group(p, t, &g, group_index(p, leaf, strip, slot) + r, to);
    }
    for (uint32_t tile = 0; tile < p->tiles; tile++) {
        uint8_t codes[CUDA_MMA_K], *at = to + tile_at(p, leaf, strip, tile);
        uint32_t k0 = tile * CUDA_MMA_K, left = p->leaf_columns - k0,
                 n = left < CUDA_MMA_K ? left : CUDA_MMA_K;
        v->quant->codes(v->quant, from, 1, first + k0, n, codes);
        memset(codes + n, pad_code(t, &g), CUDA_MMA_K - n);
        for (uint32_t k = 0; k < CUDA_MMA_K; k++)
            store_code(t, at, place_of(r, k), codes[k]);
    }
}

static void pack_dense(const struct cuda_mma_plan *p, const struct k_matrix_view *v, const uint32_t *order,
        uint32_t row, uint32_t leaf, uint8_t *to) {
    const uint32_t strip = row / CUDA_MMA_ROWS, from = v->row_order ? v->row_order[row] : row;
    const uint8_t *line = (const uint8_t *)v->data + (uint64_t)from * v->row_stride * 2;
    for (uint32_t k = 0; k < p->leaf_columns; k++) {
        uint32_t column = leaf * p->leaf_columns + k;
        memcpy(to + tile_at(p, leaf, strip, k / CUDA_MMA_K) +
                        half_at(place_of(row % CUDA_MMA_ROWS, k % CUDA_MMA_K)),
                line + 2 * (uint64_t)(order ? order[column] : column), 2);
    }
}

void cuda_mma_pack(const struct cuda_mma_plan *p, const struct k_tiles *t, const struct k_matrix_view *whole,
        const uint32_t *order, uint32_t first, uint32_t n, void *to) {
    uint32_t begin = first * CUDA_MMA_ROWS, end = begin + n * CUDA_MMA_ROWS;
    if (end > t->rows)
        end = t->rows; /* rows of padding stay zero: their scale is 0, their dense values are */
    for (uint32_t leaf = 0; leaf < K_LEAVES; leaf++)
        for (uint32_t row = begin; row < end; row++) {
            if (t->quantised)
                pack_quantised(p, t, whole, row, leaf, to);
            else
                pack_dense(p, whole, order, row, leaf, to);
        }
}

/* --- reading back --- */

static const uint8_t *tile_of(const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row,
        uint32_t column, struct place *ret) {
    uint32_t k = column % p->leaf_columns;
    *ret = place_of(row % CUDA_MMA_ROWS, k % CUDA_MMA_K);
    return (const uint8_t *)t->data +
           tile_at(p, column / p->leaf_columns, row / CUDA_MMA_ROWS, k / CUDA_MMA_K);
}

uint8_t cuda_mma_code(const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column) {
    struct place at;
    const uint8_t *tile = tile_of(p, t, row, column, &at);
    uint32_t shift;
    if (t->format != QUANT_INT4)
        return tile[byte_at(at)];
    uint8_t byte = tile[nibble_at(at, &shift)];
    return byte >> shift & 0xf;
}

uint16_t cuda_mma_dense(
        const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column) {
    struct place at;
    const uint8_t *tile = tile_of(p, t, row, column, &at);
    uint16_t value;
    memcpy(&value, tile + half_at(at), sizeof(value));
    return value;
}

static float float_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff, bits;
    float value;
    if (exponent == 0) {
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

struct quant_group cuda_mma_group(
        const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column) {
    const uint8_t *data = t->data;
    uint32_t leaf = column / p->leaf_columns, slot = column / t->group - leaf * p->leaf_columns / t->group;
    size_t index = group_index(p, leaf, row / CUDA_MMA_ROWS, slot) + row % CUDA_MMA_ROWS;
    const uint8_t *scale = data + p->scales_at + index * p->scale_bytes;
    struct quant_group g = {.zero = t->format == QUANT_INT4 ? 8 : 128};
    uint16_t half;
    memcpy(&half, scale, sizeof(half));
    uint32_t wide = (uint32_t)half << 16;
    if (t->scale == QUANT_SCALE_F32)
        memcpy(&g.scale, scale, sizeof(g.scale));
    else if (t->scale == QUANT_SCALE_BF16)
        memcpy(&g.scale, &wide, sizeof(g.scale));
    else
        g.scale = float_of_f16(half);
    if (t->zeros)
        g.zero = data[p->zeros_at + index];
    if (t->minimums)
        memcpy(&g.minimum, data + p->minimums_at + index * sizeof(float), sizeof(g.minimum));
    return g;
}
