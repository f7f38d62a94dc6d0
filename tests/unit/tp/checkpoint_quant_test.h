/* checkpoint_quant_test.h - for the tests of quantised checkpoints: what a matrix is worth, read through struct
 * quant_matrix. */
#pragma once

#include "checkpoint_test.h"
#include "tp/checkpoint/quant_matrix.h"
#include "tp/checkpoint/quant_tensor.h"

#include <math.h>

static inline float test_e4m3(uint8_t code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float size = exponent ? ldexpf(8.0f + (float)mantissa, exponent - 10) : ldexpf((float)mantissa, -9);
    return code & 0x80 ? -size : size;
}

/* All values, in the order of the file's inputs, rounded once. */
static inline float *test_values(const struct quant_matrix *q) {
    float *values = malloc((size_t)q->rows * q->columns * sizeof(*values));
    uint8_t *codes = malloc(q->columns);
    struct quant_group *groups = malloc(quant_groups(q) * sizeof(*groups));
    assert_true(values && codes && groups);
    for (uint32_t row = 0; row < q->rows; row++) {
        q->codes(q, row, 1, 0, q->columns, codes);
        q->groups(q, row, 0, quant_groups(q), groups);
        for (uint32_t k = 0; k < q->columns; k++) {
            const struct quant_group *g = &groups[k / q->group];
            float code = q->format == QUANT_FP8 ? test_e4m3(codes[k]) : (float)(codes[k] - g->zero);
            values[(size_t)row * q->columns + (q->order ? q->order[k] : k)] = g->scale * code;
            assert_true(g->minimum == 0);
        }
    }
    free(codes);
    free(groups);
    return values;
}
