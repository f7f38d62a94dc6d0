/* quant_build.c - see quant_build.h. */
#include "tp/checkpoint/quant_build.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_MULTIPLE 16u /* base/quant.h */

/* --- parts --- */

const struct tensor *quant_part(const struct quant_build *b, const char *suffix) {
    char name[192];
    int n = snprintf(name, sizeof(name), "%s.%s", b->q->module, suffix);
    return n > 0 && (size_t)n < sizeof(name) ? checkpoint_find(b->q->checkpoint, name) : NULL;
}

int quant_need(const struct quant_build *b, const char *suffix, const struct tensor **ret) {
    const struct tensor *t = quant_part(b, suffix);
    if (!t)
        return error_set(b->e, -ENOENT,
                "%s.%s: this tensor is not in the checkpoint, but others of this quantised matrix are: "
                "fetch the checkpoint again",
                b->q->module, suffix);
    *ret = t;
    return 0;
}

void quant_use(struct quant_build *b, const struct tensor *part) {
    b->t->parts[b->t->n_parts++] = part;
    b->t->tensor.bytes += part->bytes;
}

int quant_expect(const struct quant_build *b, const struct tensor *t, enum tensor_dtype dtype, uint64_t rows,
        uint64_t columns) {
    char found[TENSOR_SHAPE_TEXT];
    if (t->dtype != dtype)
        return error_set(b->e, -ENOTSUP, "%s: %s: expected %s, found %s", t->file, t->name,
                tensor_dtype_name(dtype), tensor_dtype_text(t));
    if (t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == columns)
        return 0;
    return error_set(b->e, -EINVAL, "%s: %s: expected [%llu, %llu], found %s", t->file, t->name,
            (unsigned long long)rows, (unsigned long long)columns, tensor_shape_text(t, found));
}

/* --- what the configuration says --- */

int quant_expect_method(const struct quant_build *b, const struct tensor *codes, enum quant_method method,
        enum quant_method other) {
    if (!b->q->config)
        return 0;
    enum quant_method said = quant_config_method(b->q->config);
    if (said == method || said == other)
        return 0;
    return error_set(b->e, -EINVAL,
            "%s: %s: is quantised as %s does it, but quant_method in config.json is %s: are both files of "
            "one checkpoint?",
            codes->file, codes->name, quant_method_name(method), quant_method_name(said));
}

int quant_expect_bits(const struct quant_build *b, const struct tensor *codes, uint32_t bits) {
    if (b->scheme.bits == 0 || b->scheme.bits == bits)
        return 0;
    return error_set(b->e, -EINVAL,
            "%s: %s: expected codes of %u bits, as quantization_config says, found %u: are both files of one "
            "checkpoint?",
            codes->file, codes->name, b->scheme.bits, bits);
}

int quant_expect_type(const struct quant_build *b, const struct tensor *codes, bool is_float) {
    const char *said = b->scheme.type == QUANT_TYPE_FLOAT ? "float" : "int";
    if (b->scheme.type == QUANT_TYPE_NOT_SAID || (b->scheme.type == QUANT_TYPE_FLOAT) == is_float)
        return 0;
    return error_set(b->e, -EINVAL,
            "%s: %s: has %s codes, but the type of its weights in quantization_config is %s: are both files of one "
            "checkpoint?",
            codes->file, codes->name, is_float ? "FP8" : "integer", said);
}

/* --- scales and groups --- */

int quant_set_scales(struct quant_build *b, const struct tensor *t) {
    struct quant_matrix *m = &b->t->matrix;
    if (t->dtype != TENSOR_F32 && t->dtype != TENSOR_BF16 && t->dtype != TENSOR_F16)
        return error_set(b->e, -ENOTSUP, "%s: %s: expected F32, BF16 or F16, found %s", t->file, t->name,
                tensor_dtype_text(t));
    m->scale = t->dtype == TENSOR_F32    ? QUANT_SCALE_F32
               : t->dtype == TENSOR_BF16 ? QUANT_SCALE_BF16
                                         : QUANT_SCALE_F16;
    b->t->layout.scales = t->data;
    b->t->layout.scale_dtype = t->dtype;
    b->t->tensor.scales = t;
    quant_use(b, t);
    return 0;
}

int quant_set_group(struct quant_build *b, const struct tensor *t, uint64_t found) {
    const uint32_t columns = b->q->columns;
    uint32_t group = b->scheme.group < columns ? b->scheme.group : columns;
    if (group && found != (columns + group - 1) / group)
        return error_set(b->e, -EINVAL,
                "%s: %s: expected scales of %u groups, because quantization_config says that a group has "
                "%u of %u inputs; found %llu: are both files of one checkpoint?",
                t->file, t->name, (columns + group - 1) / group, group, columns, (unsigned long long)found);
    if (!group && (found == 0 || columns % found != 0))
        return error_set(b->e, -EINVAL,
                "%s: %s: has scales of %llu groups, which %u inputs do not divide into", t->file, t->name,
                (unsigned long long)found, columns);
    if (!group)
        group = columns / (uint32_t)found;
    if (group != columns && group % GROUP_MULTIPLE != 0)
        return error_set(b->e, -ENOTSUP,
                "%s: %s: groups of %u inputs are not read: multiples of %u and whole rows are; quantise "
                "the model again with group size 32, 64 or 128",
                t->file, t->name, group, GROUP_MULTIPLE);
    b->t->matrix.group = group;
    return 0;
}

static bool all_are(const struct tensor *t, uint32_t word) {
    const uint8_t *p = t->data;
    for (uint64_t i = 0; i + 4 <= t->bytes; i += 4)
        if (memcmp(p + i, &word, 4) != 0)
            return false;
    for (uint64_t i = t->bytes & ~3ull; i < t->bytes; i++)
        if (p[i] != (uint8_t)word)
            return false;
    return true;
}

void quant_set_zeros(struct quant_build *b, const struct tensor *t) {
    struct quant_layout *l = &b->t->layout;
    uint32_t middle = !l->zero_words ? 0 : (l->bits == 4 ? 0x88888888u : 0x80808080u) - l->zero_add;
    quant_use(b, t);
    if (all_are(t, middle)) /* a symmetric file that has them all the same */
        return;
    l->zeros = t->data;
    b->t->matrix.zeros = true;
}

/* --- order --- */

static int32_t group_of(const struct tensor *t, uint32_t column) {
    int32_t group;
    memcpy(&group, (const uint8_t *)t->data + 4ull * column, sizeof(group));
    return group;
}

/* Whole groups, as many columns in each as in a matrix that is not reordered? */
static int count_groups(
        const struct quant_build *b, const struct tensor *t, uint32_t *counts, bool *ret_sorted) {
    const struct quant_matrix *m = &b->t->matrix;
    const uint32_t n = quant_groups(m);
    *ret_sorted = true;
    for (uint32_t k = 0; k < m->columns; k++) {
        int32_t group = group_of(t, k);
        if (group < 0 || (uint32_t)group >= n)
            return error_set(b->e, -EBADMSG,
                    "%s: %s: says that input %u is in group %d, but there are scales of %u groups: fetch "
                    "the file again",
                    t->file, t->name, k, group, n);
        counts[group]++;
        *ret_sorted = *ret_sorted && (uint32_t)group == k / m->group;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t whole = i + 1 < n ? m->group : m->columns - i * m->group;
        if (counts[i] != whole)
            return error_set(b->e, -ENOTSUP,
                    "%s: %s: gives group %u %u inputs, expected %u: only groups of one size are read; "
                    "quantise the model again without reordering (desc_act false)",
                    t->file, t->name, i, counts[i], whole);
    }
    return 0;
}

/* compressed-tensors writes -1 everywhere where it has not reordered. */
static bool is_unset(const struct tensor *t, uint32_t columns) {
    for (uint32_t k = 0; k < columns; k++)
        if (group_of(t, k) != -1)
            return false;
    return true;
}

int quant_set_order(struct quant_build *b, const struct tensor *t) {
    struct quant_matrix *m = &b->t->matrix;
    char found[TENSOR_SHAPE_TEXT];
    bool sorted = false;
    if (t->dtype != TENSOR_I32 || t->n_dims != 1 || t->dims[0] != m->columns)
        return error_set(b->e, -EINVAL, "%s: %s: expected [%u] of I32, found %s of %s", t->file, t->name,
                m->columns, tensor_shape_text(t, found), tensor_dtype_text(t));
    quant_use(b, t);
    if (is_unset(t, m->columns))
        return 0;
    uint32_t *next = calloc(quant_groups(m), sizeof(*next));
    if (!next)
        return error_set(b->e, -ENOMEM, "%s: out of memory", t->name);
    int r = count_groups(b, t, next, &sorted);
    if (r < 0 || sorted)
        goto done;
    b->t->order = malloc(m->columns * sizeof(*b->t->order));
    if (!b->t->order) {
        r = error_set(b->e, -ENOMEM, "%s: out of memory", t->name);
        goto done;
    }
    for (uint32_t i = 0; i < quant_groups(m); i++)
        next[i] = i * m->group;
    for (uint32_t k = 0; k < m->columns; k++)
        b->t->order[next[group_of(t, k)]++] = k;
    m->order = b->t->order;
done:
    free(next);
    return r;
}

void quant_set_label(struct quant_build *b, const char *format) {
    const struct quant_matrix *m = &b->t->matrix;
    char group[24] = "by row";
    if (m->group < m->columns)
        snprintf(group, sizeof(group), "g%u", m->group);
    snprintf(b->t->label, sizeof(b->t->label), "%s %s%s%s", format, group, m->zeros ? " asymmetric" : "",
            m->order ? " act-order" : "");
}
