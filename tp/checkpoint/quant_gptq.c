/* quant_gptq.c - matrices as AutoGPTQ, GPTQModel and AutoAWQ pack them: [inputs][outputs], words of codes along the
 * inputs (GPTQ) or the outputs (AWQ), zeros along the outputs.
 *
 * GPTQ's first version stores each zero less one, and so does its 32-bit arithmetic: a zero of 0 borrows from the next
 * one in its word. Adding one to every code of the whole word, as here, undoes it. */
#include "tp/checkpoint/quant_build.h"

#include <errno.h>
#include <stdio.h>

/* The width of GPTQ's codes in a tensor of this shape; 0: not GPTQ's. */
static uint32_t gptq_bits(const struct tensor *t, uint64_t rows, uint64_t columns) {
    for (uint32_t bits = 1; bits <= 8; bits++)
        if (t->n_dims == 2 && t->dims[1] == rows && t->dims[0] * 32 == columns * bits)
            return bits;
    return 0;
}

static int refuse_shape(const struct quant_build *b, const struct tensor *codes) {
    const uint32_t n = b->q->rows, k = b->q->columns;
    char found[TENSOR_SHAPE_TEXT];
    if (n % 8 != 0 || k % 8 != 0)
        return error_set(b->e, -EINVAL,
                "%s: %s: a matrix of %u outputs and %u inputs cannot be packed eight codes to a word; "
                "found %s",
                codes->file, codes->name, n, k, tensor_shape_text(codes, found));
    return error_set(b->e, -EINVAL,
            "%s: %s: expected [%u, %u] or [%u, %u] (GPTQ of 4 or 8 bits) or [%u, %u] (AWQ), found %s",
            codes->file, codes->name, k / 8, n, k / 4, n, k, n / 8, tensor_shape_text(codes, found));
}

/* scales [groups][outputs] and qzeros [groups][outputs in words]. */
static int set_groups(struct quant_build *b) {
    struct quant_layout *l = &b->t->layout;
    const struct tensor *scales = NULL, *zeros = NULL;
    const uint32_t rows = b->q->rows;
    int r = quant_need(b, "scales", &scales);
    if (r == 0)
        r = quant_need(b, "qzeros", &zeros);
    if (r == 0)
        r = quant_set_group(b, scales, scales->n_dims == 2 ? scales->dims[0] : 0);
    if (r == 0)
        r = quant_expect(b, scales, scales->dtype, quant_groups(&b->t->matrix), rows);
    if (r == 0)
        r = quant_set_scales(b, scales);
    if (r == 0)
        r = quant_expect(b, zeros, TENSOR_I32, quant_groups(&b->t->matrix), rows / (32 / l->bits));
    if (r < 0)
        return r;
    l->scale_rows = 1;
    l->scale_row = 1;
    l->scale_column = rows;
    l->zero_words = true;
    l->zero_row = 1;
    l->zero_column = rows / (32 / l->bits);
    quant_set_zeros(b, zeros);
    return 0;
}

static int make_awq(struct quant_build *b, const struct tensor *codes) {
    struct quant_layout *l = &b->t->layout;
    int r = quant_expect_method(b, codes, QUANT_METHOD_AWQ, QUANT_METHOD_AWQ);
    if (r == 0)
        r = quant_expect_bits(b, codes, 4);
    if (r < 0)
        return r;
    b->t->matrix.format = QUANT_INT4;
    b->t->matrix.codes = quant_codes_awq;
    l->bits = 4;
    l->slots = QUANT_AWQ_SLOTS;
    l->code_stride = b->q->rows / 2;
    r = set_groups(b);
    if (r == 0)
        quant_set_label(b, "awq int4");
    return r;
}

static int set_g_idx(struct quant_build *b) {
    const struct tensor *g_idx = quant_part(b, "g_idx");
    if (!g_idx && !b->scheme.order)
        return 0;
    int r = quant_need(b, "g_idx", &g_idx);
    return r < 0 ? r : quant_set_order(b, g_idx);
}

int quant_make_gptq(struct quant_build *b, const struct tensor *codes) {
    struct quant_layout *l = &b->t->layout;
    const uint32_t bits = gptq_bits(codes, b->q->rows, b->q->columns);
    if (codes->dtype != TENSOR_I32)
        return error_set(b->e, -ENOTSUP, "%s: %s: expected I32, found %s", codes->file, codes->name,
                tensor_dtype_text(codes));
    if (codes->n_dims == 2 && codes->dims[0] == b->q->columns && codes->dims[1] * 8 == b->q->rows)
        return make_awq(b, codes);
    if (bits && bits != 4 && bits != 8)
        return error_set(b->e, -ENOTSUP,
                "%s: %s: is GPTQ of %u bits: 4 and 8 bits are read; use another checkpoint of this model",
                codes->file, codes->name, bits);
    if (!bits || b->q->rows % (32 / bits) != 0)
        return refuse_shape(b, codes);
    int r = quant_expect_method(b, codes, QUANT_METHOD_GPTQ, QUANT_METHOD_GPTQ);
    if (r == 0)
        r = quant_expect_bits(b, codes, bits);
    if (r == 0 && !b->q->config)
        r = error_set(b->e, -ENOENT,
                "%s: %s: config.json has no quantization_config (and there is no quantize_config.json): "
                "it says which of GPTQ's formats this is; fetch it too",
                codes->file, codes->name);
    if (r < 0)
        return r;
    b->t->matrix.format = bits == 4 ? QUANT_INT4 : QUANT_INT8;
    b->t->matrix.codes = quant_codes_columns;
    l->bits = bits;
    l->code_stride = 4ull * b->q->rows;
    if (!quant_config_is_v2(b->q->config))
        l->zero_add = bits == 4 ? 0x11111111u : 0x01010101u;
    r = set_groups(b);
    if (r == 0)
        r = set_g_idx(b);
    if (r == 0)
        quant_set_label(b, bits == 4 ? "gptq int4" : "gptq int8");
    return r;
}
