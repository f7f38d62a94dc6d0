/* quant_tensor.c - see quant_tensor.h. */
#include "tp/checkpoint/quant_tensor.h"

#include "tp/checkpoint/quant_build.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int maker(struct quant_build *b, const struct tensor *codes);

static bool is_dense(const struct tensor *t) {
    return t->dtype != TENSOR_I8 && t->dtype != TENSOR_F8_E4M3;
}

/* Parts without the tensor that has the codes. */
static int refuse_orphans(const struct quant_build *b) {
    static const char *const parts[][2] = {{"scales", "qweight"}, {"qzeros", "qweight"}, {"g_idx", "qweight"},
            {"weight_scale", "weight"}, {"weight_scale_inv", "weight"},
            {"weight_zero_point", "weight_packed"}, {"weight_shape", "weight_packed"}};
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        const struct tensor *t = quant_part(b, parts[i][0]);
        if (t)
            return error_set(b->e, -ENOENT,
                    "%s: %s: is part of a quantised matrix, but %s.%s is not in the checkpoint: fetch it "
                    "again",
                    t->file, t->name, b->q->module, parts[i][1]);
    }
    return 0;
}

/* What has the codes, and who reads them; NULL where the module is dense or absent. */
static int find_codes(const struct quant_build *b, const struct tensor **ret, maker **ret_make) {
    const struct tensor *weight = quant_part(b, "weight"), *qweight = quant_part(b, "qweight"),
                        *packed = quant_part(b, "weight_packed");
    const struct tensor *all[] = {weight, qweight, packed};
    const struct tensor *one = NULL;
    for (size_t i = 0; i < 3; i++) {
        if (one && all[i])
            return error_set(b->e, -EINVAL,
                    "%s: %s: is in the checkpoint, and so is %s (in %s): two forms of one matrix; fetch "
                    "the checkpoint again",
                    one->file, one->name, all[i]->name, all[i]->file);
        one = one ? one : all[i];
    }
    *ret = NULL;
    if (!one)
        return refuse_orphans(b);
    if (one == weight && is_dense(one))
        return 0;
    *ret = one;
    *ret_make = one == qweight            ? quant_make_gptq
                : one == packed           ? quant_make_packed
                : one->dtype == TENSOR_I8 ? quant_make_int8
                                          : quant_make_fp8;
    return 0;
}

/* What the configuration says of this module. */
static int ask_config(struct quant_build *b, const struct tensor *codes) {
    const char *excluded = NULL;
    if (!b->q->config)
        return 0;
    int r = quant_config_find(b->q->config, b->q->module, &b->scheme, &excluded, b->e);
    if (r < 0 || !excluded)
        return r;
    return error_set(b->e, -EINVAL,
            "%s: %s: is quantised, but '%.120s' in config.json leaves this matrix as it is: are both "
            "files of one checkpoint?",
            codes->file, codes->name, excluded);
}

/* Names that code and messages see. */
static int set_names(struct quant_build *b, const struct tensor *codes) {
    struct quant_tensor *t = b->t;
    int n = snprintf(t->name, sizeof(t->name), "%s.weight", b->q->module);
    if (n < 0 || (size_t)n >= sizeof(t->name))
        return error_set(b->e, -EINVAL, "%.100s...: a tensor's name is too long", b->q->module);
    t->tensor.name = t->name;
    t->tensor.file = codes->file;
    t->tensor.dtype = TENSOR_QUANTISED;
    t->tensor.n_dims = 2;
    t->tensor.dims[0] = b->q->rows;
    t->tensor.dims[1] = b->q->columns;
    t->tensor.quant = &t->matrix;
    t->matrix.rows = b->q->rows;
    t->matrix.columns = b->q->columns;
    t->matrix.groups = quant_layout_groups;
    t->matrix.label = t->label;
    t->matrix.file = &t->layout;
    t->layout.codes = codes->data;
    quant_use(b, codes);
    return 0;
}

int quant_tensor_make(const struct quant_request *q, struct quant_tensor **ret, struct error *e) {
    struct quant_build b = {.q = q, .e = e};
    const struct tensor *codes = NULL;
    maker *make = NULL;
    int r = find_codes(&b, &codes, &make);
    if (r < 0 || !codes)
        return r;
    b.t = calloc(1, sizeof(*b.t));
    if (!b.t)
        return error_set(e, -ENOMEM, "%s: out of memory", q->module);
    r = ask_config(&b, codes);
    if (r == 0)
        r = set_names(&b, codes);
    if (r == 0)
        r = make(&b, codes);
    if (r < 0) {
        quant_tensor_free(b.t);
        return r;
    }
    *ret = b.t;
    return 1;
}

struct quant_tensor *quant_tensor_free(struct quant_tensor *t) {
    if (!t)
        return NULL;
    free(t->order);
    free(t);
    return NULL;
}
