/* quant_fp8.c - FP8 (E4M3) matrices [outputs][inputs] with scales of blocks, rows, groups or the whole: the official
 * "-FP8" checkpoints (weight_scale_inv, which is what codes are multiplied with, whatever its name says) and
 * compressed-tensors' float-quantized (weight_scale). */
#include "tp/checkpoint/quant_build.h"

#include <errno.h>
#include <stdio.h>

#define BLOCK_DEFAULT 128u /* of a file whose configuration names none */

static uint32_t parts_of(uint32_t size, uint32_t part) {
    return (size + part - 1) / part;
}

/* Scales of blocks [outputs / block_rows][inputs / block_columns]. */
static int set_blocks(struct quant_build *b, const struct tensor *t, uint32_t n, uint32_t k) {
    struct quant_layout *l = &b->t->layout;
    int r = quant_expect(b, t, t->dtype, parts_of(b->q->rows, n), parts_of(b->q->columns, k));
    if (r < 0)
        return r;
    b->scheme.group = k;
    r = quant_set_group(b, t, t->dims[1]);
    if (r < 0)
        return r;
    l->scale_rows = n;
    l->scale_row = t->dims[1];
    l->scale_column = 1;
    snprintf(b->t->label, sizeof(b->t->label), "fp8 %ux%u", n, k);
    return 0;
}

static int set_rows(struct quant_build *b, const struct tensor *t) {
    struct quant_layout *l = &b->t->layout;
    int r = quant_set_group(b, t, t->n_dims == 2 ? t->dims[1] : 1);
    if (r < 0)
        return r;
    l->scale_rows = 1;
    l->scale_row = quant_groups(&b->t->matrix);
    l->scale_column = 1;
    quant_set_label(b, "fp8");
    return 0;
}

static int set_whole(struct quant_build *b, const struct tensor *t) {
    b->scheme.group = QUANT_GROUP_ROW;
    int r = quant_set_group(b, t, 1);
    b->t->layout.scale_rows = b->q->rows;
    if (r == 0)
        snprintf(b->t->label, sizeof(b->t->label), "fp8 by tensor");
    return r;
}

static int set_scales(struct quant_build *b) {
    const struct tensor *t = quant_part(b, "weight_scale_inv");
    const struct quant_scheme *s = &b->scheme;
    bool blocks = t != NULL || s->block_rows != 0;
    uint64_t elements = 1;
    int r = t ? 0 : quant_need(b, "weight_scale", &t);
    if (r == 0)
        r = quant_set_scales(b, t);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < t->n_dims; i++)
        elements *= t->dims[i];
    if (elements == 1 && s->block_rows == 0)
        return set_whole(b, t);
    bool by_row = t->n_dims >= 1 && t->n_dims <= 2 && t->dims[0] == b->q->rows;
    if (!blocks && by_row)
        return set_rows(b, t);
    return set_blocks(b, t, s->block_rows ? s->block_rows : BLOCK_DEFAULT,
            s->block_columns ? s->block_columns : BLOCK_DEFAULT);
}

int quant_make_fp8(struct quant_build *b, const struct tensor *codes) {
    int r = quant_expect_method(b, codes, QUANT_METHOD_FP8, QUANT_METHOD_COMPRESSED_TENSORS);
    if (r == 0)
        r = quant_expect_type(b, codes, /* is_float= */ true);
    if (r == 0)
        r = quant_expect(b, codes, TENSOR_F8_E4M3, b->q->rows, b->q->columns);
    if (r == 0)
        r = quant_expect_bits(b, codes, 8);
    if (r < 0)
        return r;
    b->t->matrix.format = QUANT_FP8;
    b->t->matrix.codes = quant_codes_bytes;
    b->t->layout.bits = 8;
    b->t->layout.code_stride = b->q->columns;
    return set_scales(b);
}
