/* dummy.h - the seeded weights of k_linear_dummy(), element by element, so that every backend makes the same ones.
 *
 * Dense: uniform in [-scale, scale], an element per (strip of the linear, leaf, k of the leaf, row of the strip).
 * Quantised: eight codes per hash of (row of the piece's matrix, column), the eights counted from the first column of
 * each segment (segments.h); a scale and a zero for the whole matrix. */
#pragma once

#include "base/quant.h"
#include "kernels/shared/noise.h"

K_INLINE uint64_t dummy_seed(uint64_t seed) { /* of a linear, dense pieces */
    return splitmix64(seed);
}
K_INLINE uint64_t dummy_piece_seed(uint64_t linear_seed, uint32_t piece) { /* quantised pieces */
    return splitmix64(linear_seed ^ piece);
}

K_INLINE float dummy_dense(
        uint64_t linear_seed, uint32_t strip, uint32_t leaf, uint32_t k, uint32_t row, float scale) {
    const uint64_t at = ((uint64_t)strip << 40 | (uint64_t)leaf << 36) + ((uint64_t)k * 16 + row);
    const uint64_t bits = splitmix64(linear_seed ^ splitmix64(at));
    return ((float)(int32_t)(bits >> 40) - 8388607.5f) * (scale / 8388607.5f);
}

/* The codes of columns column .. column + 7, the first in the low byte. */
K_INLINE uint64_t dummy_eight(uint64_t piece_seed, uint32_t row, uint32_t column) {
    return splitmix64(piece_seed ^ splitmix64((uint64_t)row << 32 | column));
}
K_INLINE uint8_t dummy_code(enum quant_format format, uint64_t eight, uint32_t i) {
    const uint8_t code = (uint8_t)(eight >> (8 * i));
    if (format == QUANT_INT4)
        return (uint8_t)(code >> 4);
    return format == QUANT_FP8 && (code & 0x7f) == 0x7f ? 0 : code; /* no NaN */
}
K_INLINE float dummy_scale(enum quant_format format, float scale) {
    return format == QUANT_INT4 ? scale / 8 : format == QUANT_INT8 ? scale / 128 : scale / 448;
}
K_INLINE uint8_t dummy_zero(enum quant_format format) {
    return format == QUANT_INT4 ? 8 : 128;
}

/* All of that as a matrix to pack: `like` with other codes and groups. d is its `file` and must live as long. */
struct dummy_weights {
    uint64_t seed; /* of the piece */
    float scale;
    uint32_t leaf_columns;
};

#ifdef __cplusplus
extern "C" {
#endif

struct quant_matrix dummy_matrix(const struct quant_matrix *like, const struct dummy_weights *d);

#ifdef __cplusplus
}
#endif
