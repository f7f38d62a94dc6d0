/* quant_compressed.c - integer matrices as compressed-tensors stores them: [outputs][inputs], in words of codes along
 * the inputs (pack-quantized) or a signed byte each (int-quantized); scales [outputs][groups]; zeros in words along the
 * outputs, or bytes. Codes and zeros in words are stored with the middle added, so that they are unsigned. */
#include "tp/checkpoint/quant_build.h"

#include <errno.h>
#include <string.h>

static int set_scales(struct quant_build *b) {
    struct quant_layout *l = &b->t->layout;
    const struct tensor *t = NULL;
    const uint32_t rows = b->q->rows;
    char found[TENSOR_SHAPE_TEXT];
    int r = quant_need(b, "weight_scale", &t);
    if (r < 0)
        return r;
    bool one = t->n_dims == 0 || (t->n_dims == 1 && t->dims[0] == 1 && rows != 1);
    if (!one && (t->n_dims > 2 || t->dims[0] != rows))
        return error_set(b->e, -EINVAL, "%s: %s: expected scales of %u outputs, found %s", t->file, t->name,
                rows, tensor_shape_text(t, found));
    r = quant_set_group(b, t, t->n_dims == 2 ? t->dims[1] : 1);
    if (r < 0)
        return r;
    l->scale_rows = one ? rows : 1;
    l->scale_row = quant_groups(&b->t->matrix);
    l->scale_column = 1;
    return quant_set_scales(b, t);
}

/* weight_shape: what the words unpack to. */
static int check_shape(struct quant_build *b) {
    const struct tensor *t = quant_part(b, "weight_shape");
    int64_t shape[2];
    if (!t)
        return 0;
    quant_use(b, t);
    if (t->dtype != TENSOR_I64 || t->n_dims != 1 || t->dims[0] != 2)
        return error_set(b->e, -EINVAL, "%s: %s: expected two sizes of I64", t->file, t->name);
    memcpy(shape, t->data, sizeof(shape));
    if (shape[0] == (int64_t)b->q->rows && shape[1] == (int64_t)b->q->columns)
        return 0;
    return error_set(b->e, -EINVAL, "%s: %s: expected [%u, %u], says [%lld, %lld]", t->file, t->name,
            b->q->rows, b->q->columns, (long long)shape[0], (long long)shape[1]);
}

static int set_order(struct quant_build *b) {
    const struct tensor *t = quant_part(b, "weight_g_idx");
    if (!t && !b->scheme.order)
        return 0;
    int r = quant_need(b, "weight_g_idx", &t);
    return r < 0 ? r : quant_set_order(b, t);
}

/* In words of I32 [outputs in words][groups], or I8 [outputs][groups]. */
static int set_zeros(struct quant_build *b) {
    struct quant_layout *l = &b->t->layout;
    const struct tensor *t = quant_part(b, "weight_zero_point");
    const uint32_t groups = quant_groups(&b->t->matrix);
    const uint64_t per = l->zero_words ? 32 / l->bits : 1;
    int r = t || !b->scheme.asymmetric ? 0 : quant_need(b, "weight_zero_point", &t);
    if (r < 0 || !t)
        return r;
    r = quant_expect(b, t, l->zero_words ? TENSOR_I32 : TENSOR_I8, (b->q->rows + per - 1) / per, groups);
    if (r < 0)
        return r;
    l->zero_row = groups;
    l->zero_column = 1;
    quant_set_zeros(b, t);
    return 0;
}

static int set_rest(struct quant_build *b, const char *label) {
    int r = set_scales(b);
    if (r == 0)
        r = set_zeros(b);
    if (r == 0)
        r = check_shape(b);
    if (r == 0)
        r = set_order(b);
    if (r == 0)
        quant_set_label(b, label);
    return r;
}

int quant_make_packed(struct quant_build *b, const struct tensor *codes) {
    struct quant_layout *l = &b->t->layout;
    const uint64_t rows = b->q->rows, words4 = (b->q->columns + 7ull) / 8,
                   words8 = (b->q->columns + 3ull) / 4;
    char found[TENSOR_SHAPE_TEXT];
    int r = quant_expect_method(b, codes, QUANT_METHOD_COMPRESSED_TENSORS, QUANT_METHOD_COMPRESSED_TENSORS);
    if (r == 0)
        r = quant_expect_type(b, codes, /* is_float= */ false);
    if (r < 0)
        return r;
    if (codes->dtype != TENSOR_I32)
        return error_set(b->e, -ENOTSUP, "%s: %s: expected I32, found %s", codes->file, codes->name,
                tensor_dtype_text(codes));
    bool fits = codes->n_dims == 2 && codes->dims[0] == rows;
    l->bits = fits && codes->dims[1] == words4 ? 4 : fits && codes->dims[1] == words8 ? 8 : 0;
    if (l->bits == 0)
        return error_set(b->e, -EINVAL,
                "%s: %s: expected [%llu, %llu] (4 bits) or [%llu, %llu] (8 bits), found %s", codes->file,
                codes->name, (unsigned long long)rows, (unsigned long long)words4, (unsigned long long)rows,
                (unsigned long long)words8, tensor_shape_text(codes, found));
    r = quant_expect_bits(b, codes, l->bits);
    if (r < 0)
        return r;
    b->t->matrix.format = l->bits == 4 ? QUANT_INT4 : QUANT_INT8;
    b->t->matrix.codes = l->bits == 4 ? quant_codes_words : quant_codes_bytes;
    l->code_stride = 4 * codes->dims[1];
    l->zero_words = true;
    return set_rest(b, l->bits == 4 ? "compressed-tensors int4" : "compressed-tensors int8");
}

int quant_make_int8(struct quant_build *b, const struct tensor *codes) {
    struct quant_layout *l = &b->t->layout;
    int r = quant_expect_method(b, codes, QUANT_METHOD_COMPRESSED_TENSORS, QUANT_METHOD_COMPRESSED_TENSORS);
    if (r == 0)
        r = quant_expect_type(b, codes, /* is_float= */ false);
    if (r == 0)
        r = quant_expect(b, codes, TENSOR_I8, b->q->rows, b->q->columns);
    if (r == 0)
        r = quant_expect_bits(b, codes, 8);
    if (r < 0)
        return r;
    b->t->matrix.format = QUANT_INT8;
    b->t->matrix.codes = quant_codes_bytes;
    l->bits = 8;
    l->flip = 0x80;
    l->code_stride = b->q->columns;
    return set_rest(b, "compressed-tensors int8");
}
