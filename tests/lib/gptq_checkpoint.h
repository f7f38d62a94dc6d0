/* gptq_checkpoint.h - makes a GPTQ INT4 checkpoint out of a dense one, with or without act-order, and the same weights
 * in two other forms to compare with.
 *
 * Called by tests of loading. The caller owns both folders. Scales are symmetric, the largest weight of a group over 7,
 * cut to what F16 holds; what matters is not that they are good but that all forms have the same values:
 *
 *   GPTQ_STORED   qweight, scales, qzeros, g_idx, as GPTQ stores them
 *   GPTQ_SORTED   the same with columns sorted by group and no act-order: what act-order means, done by hand
 *   GPTQ_DENSE    the dequantised values in F32 */
#pragma once

#include "tests/lib/seeded_checkpoint.h"
#include "tp/checkpoint/safetensors.h"

#include <assert.h>
#include <stdbool.h>

#define GPTQ_TENSORS_MAX 1024u
#define GPTQ_CODE_ZERO   8

enum gptq_form { GPTQ_STORED, GPTQ_SORTED, GPTQ_DENSE };

struct gptq_choice { /* what becomes of one matrix */
    bool quantise;
    uint32_t segments;  /* 0: no act-order; n: columns are reordered within each n-th of them */
    uint64_t seed;      /* of the order: equal seeds, equal orders */
    uint64_t row_seed;  /* GPTQ_SORTED: rows are taken in the order of this seed (0: as they are) */
    uint32_t row_group; /* ... whose columns had groups of this many in one segment */
};

struct gptq_options {
    uint32_t group;
    enum gptq_form form;
    void (*choose)(const char *name, struct gptq_choice *ret); /* ret is zero */
};

/* g_idx [columns], and the order that sorts by it, ties by column. */
static inline void gptq_order(
        uint64_t seed, uint32_t columns, uint32_t group, uint32_t segments, int32_t *g_idx, uint32_t *order) {
    uint32_t n = segments ? columns / segments : columns;
    for (uint32_t k = 0; k < columns; k++)
        g_idx[k] = (int32_t)(k / group);
    for (uint32_t s = 0; segments && s < segments; s++)
        for (uint32_t i = n - 1; i > 0; i--) { /* shuffled */
            uint32_t a = s * n + i, b = s * n + (uint32_t)(seeded_mix(seed + i * SEEDED_STEP) % (i + 1));
            int32_t t = g_idx[a];
            g_idx[a] = g_idx[b];
            g_idx[b] = t;
        }
    uint32_t at = 0;
    for (int32_t g = 0; at < columns; g++)
        for (uint32_t k = 0; k < columns; k++)
            if (g_idx[k] == g)
                order[at++] = k;
}

struct gptq_out { /* a tensor to write */
    char name[SEEDED_NAME + 16];
    const char *dtype;
    uint64_t dims[2], bytes;
    uint32_t n_dims;
    void *data; /* owned */
};
struct gptq_writer {
    struct gptq_out at[GPTQ_TENSORS_MAX];
    uint32_t n;
};

static inline void *gptq_add(struct gptq_writer *w, const char *name, const char *end, const char *dtype,
        size_t unit, uint64_t rows, uint64_t columns) {
    assert(w->n < GPTQ_TENSORS_MAX);
    struct gptq_out *o = &w->at[w->n++];
    size_t stem = strlen(name);
    if (end[0])
        stem -= strlen("weight");
    snprintf(o->name, sizeof(o->name), "%.*s%s", (int)stem, name, end);
    o->dtype = dtype;
    o->dims[0] = rows;
    o->dims[1] = columns;
    o->n_dims = columns ? 2 : 1;
    o->bytes = rows * (columns ? columns : 1) * unit;
    o->data = calloc(1, o->bytes);
    assert(o->data);
    return o->data;
}

static inline float gptq_float(const struct tensor *t, uint64_t i) {
    uint32_t bits;
    uint16_t half;
    float f;
    if (t->dtype == TENSOR_F32) {
        memcpy(&f, (const float *)t->data + i, 4);
        return f;
    }
    assert(t->dtype == TENSOR_BF16);
    memcpy(&half, (const uint16_t *)t->data + i, 2);
    bits = (uint32_t)half << 16;
    memcpy(&f, &bits, 4);
    return f;
}

/* scales[row][group] and codes[row][column] of a dense matrix. */
static inline void gptq_quantise(
        const struct tensor *t, uint32_t group, const int32_t *g_idx, float *scales, uint8_t *codes) {
    uint64_t rows = t->dims[0], columns = t->dims[1], groups = columns / group;
    for (uint64_t r = 0; r < rows; r++) {
        float *s = scales + r * groups;
        for (uint64_t k = 0; k < columns; k++) {
            float x = fabsf(gptq_float(t, r * columns + k));
            s[g_idx[k]] = x > s[g_idx[k]] ? x : s[g_idx[k]];
        }
        for (uint64_t g = 0; g < groups; g++) {
            uint32_t bits;
            s[g] /= 7.0f;
            memcpy(&bits, &s[g], 4);
            bits &= 0xffffe000u;
            memcpy(&s[g], &bits, 4);
        }
        for (uint64_t k = 0; k < columns; k++) {
            float scale = s[g_idx[k]];
            long q = scale > 0 ? lrintf(gptq_float(t, r * columns + k) / scale) : 0;
            codes[r * columns + k] = (uint8_t)((q < -8 ? -8 : q > 7 ? 7 : q) + GPTQ_CODE_ZERO);
        }
    }
}

/* Columns are `from[]` of the matrix, rows `rows_from[]` (NULL: as they are). */
static inline void gptq_store(struct gptq_writer *w, const char *name, uint64_t rows, uint64_t columns,
        uint32_t group, const float *scales, const uint8_t *codes, const int32_t *g_idx, const uint32_t *from,
        const uint32_t *rows_from) {
    uint64_t groups = columns / group;
    uint32_t *qweight = gptq_add(w, name, "qweight", "I32", 4, columns / 8, rows);
    uint32_t *qzeros = gptq_add(w, name, "qzeros", "I32", 4, groups, rows / 8);
    uint16_t *stored = gptq_add(w, name, "scales", "F16", 2, groups, rows);
    int32_t *index = gptq_add(w, name, "g_idx", "I32", 4, columns, 0);
    memcpy(index, g_idx, columns * sizeof(*index));
    for (uint64_t i = 0; i < groups * rows / 8; i++)
        qzeros[i] = 0x77777777u; /* one less than 8: GPTQ's first version */
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t row = rows_from ? rows_from[r] : r;
        for (uint64_t g = 0; g < groups; g++) {
            uint32_t bits;
            memcpy(&bits, &scales[row * groups + g], 4);
            stored[g * rows + r] = seeded_f16(bits);
        }
        for (uint64_t k = 0; k < columns; k++)
            qweight[k / 8 * rows + r] |= (uint32_t)codes[row * columns + (from ? from[k] : k)] << 4 * (k % 8);
    }
}

static inline void gptq_matrix(struct gptq_writer *w, const struct tensor *t, const struct gptq_options *o,
        const struct gptq_choice *c) {
    uint32_t rows = (uint32_t)t->dims[0], columns = (uint32_t)t->dims[1], groups = columns / o->group;
    int32_t *g_idx = malloc((columns + rows) * sizeof(*g_idx)), *plain = malloc(columns * sizeof(*plain));
    uint32_t *order = malloc(columns * sizeof(*order)), *rows_from = malloc(rows * sizeof(*rows_from));
    float *scales = calloc((size_t)rows * groups, sizeof(*scales));
    uint8_t *codes = malloc((size_t)rows * columns);
    assert(g_idx && plain && order && rows_from && scales && codes);
    gptq_order(c->seed, columns, o->group, c->segments, g_idx, order);
    gptq_quantise(t, o->group, g_idx, scales, codes);
    if (o->form == GPTQ_DENSE) {
        float *to = gptq_add(w, t->name, "", "F32", 4, rows, columns);
        for (uint64_t i = 0; i < (uint64_t)rows * columns; i++)
            to[i] = scales[i / columns * groups + (uint64_t)g_idx[i % columns]] *
                    (float)(codes[i] - GPTQ_CODE_ZERO);
    } else if (o->form == GPTQ_SORTED) {
        for (uint32_t k = 0; k < columns; k++)
            plain[k] = (int32_t)(k / o->group);
        if (c->row_seed)
            gptq_order(c->row_seed, rows, c->row_group, 1, g_idx, rows_from);
        gptq_store(w, t->name, rows, columns, o->group, scales, codes, plain, order,
                c->row_seed ? rows_from : NULL);
    } else {
        gptq_store(w, t->name, rows, columns, o->group, scales, codes, g_idx, NULL, NULL);
    }
    free(g_idx);
    free(plain);
    free(order);
    free(rows_from);
    free(scales);
    free(codes);
}

/* A tensor that stays dense; its rows may have to follow a sorted down_proj. */
static inline void gptq_keep(struct gptq_writer *w, const struct tensor *t, const struct gptq_options *o,
        const struct gptq_choice *c) {
    size_t unit = t->dtype == TENSOR_F32 ? 4 : 2;
    uint8_t *to = gptq_add(w, t->name, "", t->dtype == TENSOR_F32 ? "F32" : "BF16", unit, t->dims[0],
            t->n_dims == 1 ? 0 : t->bytes / unit / t->dims[0]);
    memcpy(to, t->data, t->bytes);
    if (o->form != GPTQ_SORTED || !c->row_seed)
        return;
    uint32_t rows = (uint32_t)t->dims[0], *from = malloc(rows * sizeof(*from));
    int32_t *g_idx = malloc(rows * sizeof(*g_idx));
    assert(from && g_idx);
    gptq_order(c->row_seed, rows, c->row_group, 1, g_idx, from);
    for (uint32_t r = 0; r < rows; r++)
        memcpy(to + r * (t->bytes / rows), (const uint8_t *)t->data + from[r] * (t->bytes / rows),
                t->bytes / rows);
    free(from);
    free(g_idx);
}

static inline int gptq_write_file(const struct gptq_writer *w, const char *path) {
    uint64_t at = 0;
    char *json = NULL;
    size_t bytes = 0;
    FILE *text = open_memstream(&json, &bytes);
    assert(text);
    fputc('{', text);
    for (uint32_t i = 0; i < w->n; i++) {
        const struct gptq_out *o = &w->at[i];
        fprintf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", i ? "," : "", o->name, o->dtype,
                (unsigned long long)o->dims[0]);
        if (o->n_dims == 2)
            fprintf(text, ",%llu", (unsigned long long)o->dims[1]);
        fprintf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                (unsigned long long)(at + o->bytes));
        at += o->bytes;
    }
    fputc('}', text);
    while (ftell(text) % 8 != 0)
        fputc(' ', text);
    fclose(text);
    uint64_t length = bytes;
    FILE *f = fopen(path, "we");
    if (!f)
        return -errno;
    int r = fwrite(&length, 1, 8, f) == 8 && fwrite(json, 1, bytes, f) == bytes ? 0 : -EIO;
    for (uint32_t i = 0; i < w->n && r == 0; i++)
        r = fwrite(w->at[i].data, 1, w->at[i].bytes, f) == w->at[i].bytes ? 0 : -EIO;
    free(json);
    return fclose(f) != 0 && r == 0 ? -EIO : r;
}

/* config.json with a quantization_config. */
static inline int gptq_write_config(const char *from_dir, const char *to_dir, const struct gptq_options *o) {
    char path[SEEDED_PATH], text[16384];
    snprintf(path, sizeof(path), "%s/config.json", from_dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = '\0';
    char *end = strrchr(text, '}');
    if (!end)
        return -EBADMSG;
    *end = '\0';
    snprintf(path, sizeof(path), "%s/config.json", to_dir);
    f = fopen(path, "we");
    if (!f)
        return -errno;
    fputs(text, f);
    if (o->form != GPTQ_DENSE)
        fprintf(f,
                ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":%u,\"sym\":true,"
                "\"desc_act\":%s,\"checkpoint_format\":\"gptq\"}",
                o->group, o->form == GPTQ_STORED ? "true" : "false");
    fputs("}\n", f);
    return fclose(f) != 0 ? -EIO : 0;
}

/* from_dir: a dense model of F32 and BF16 tensors. to_dir exists; config.json and model.safetensors are written. */
static inline int gptq_write(const char *from_dir, const char *to_dir, const struct gptq_options *o) {
    struct gptq_writer *w = calloc(1, sizeof(*w));
    struct checkpoint *c = NULL;
    struct error e = {0};
    char path[SEEDED_PATH];
    assert(w);
    int r = checkpoint_open(from_dir, &c, &e);
    for (size_t i = 0; r == 0 && i < checkpoint_count(c); i++) {
        const struct tensor *t = checkpoint_at(c, i);
        struct gptq_choice choice = {0};
        o->choose(t->name, &choice);
        if (choice.quantise)
            gptq_matrix(w, t, o, &choice);
        else
            gptq_keep(w, t, o, &choice);
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", to_dir);
    if (r == 0)
        r = gptq_write_file(w, path);
    if (r == 0)
        r = gptq_write_config(from_dir, to_dir, o);
    for (uint32_t i = 0; i < w->n; i++)
        free(w->at[i].data);
    free(w);
    checkpoint_free(c);
    return r;
}
