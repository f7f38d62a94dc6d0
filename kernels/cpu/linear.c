/* linear.c - packing weights into strips, and the operations that multiply with them.
 *
 * A linear is packed as [leaf][strip][k][16]: 16 outputs side by side, so that one vector load serves one k
 * of them, in the dtype of the checkpoint. Threads split the strips of a product; each strip is computed by
 * one thread with the order of body_linear.h, so the split does not show in the bits. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- packing --- */

static uint32_t spec_strips(const struct k_linear_spec *spec) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < spec->n_pieces; i++)
        n += (spec->pieces[i].rows + 15) / 16;
    return n;
}
static size_t spec_leaf_bytes(const struct k_linear_spec *spec) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < spec->n_pieces; i++)
        bytes += (size_t)(spec->pieces[i].rows + 15) / 16 * 16 * (spec->columns / spec->leaves) *
                 k_dtype_bytes(spec->pieces[i].dtype);
    return bytes;
}
size_t k_linear_bytes(const struct k_linear_spec *spec) {
    return spec_leaf_bytes(spec) * spec->leaves;
}

static int check_spec(const struct k_linear_spec *spec, struct error *e) {
    uint32_t l = spec->leaves;
    if (spec->n_pieces < 1 || spec->n_pieces > PIECES_MAX)
        return error_set(
                e, -EINVAL, "%s: %u pieces; 1 to %u are possible", spec->name, spec->n_pieces, PIECES_MAX);
    if (l != 1 && l != 2 && l != 4 && l != 8)
        return error_set(e, -EINVAL, "%s: %u leaves; 1, 2, 4 or 8 are possible", spec->name, l);
    if (spec->columns == 0 || spec->columns > MODEL_DIM_MAX || spec->columns % l)
        return error_set(e, -EINVAL,
                "%s: %u columns do not divide into %u leaves; use another tensor parallel size", spec->name,
                spec->columns, l);
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        if (spec->pieces[i].rows == 0 || spec->pieces[i].rows > MODEL_DIM_MAX)
            return error_set(e, -EINVAL, "%s: piece %u has %u rows; 1 to %u are possible", spec->name, i,
                    spec->pieces[i].rows, MODEL_DIM_MAX);
    }
    return 0;
}

static int linear_new(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = check_spec(spec, e);
    if (r < 0)
        return r;
    l = calloc(1, sizeof *l);
    if (!l)
        return error_set(e, -ENOMEM, "%s: no memory", spec->name);
    *l = (struct k_linear){.context = c,
            .columns = spec->columns,
            .leaves = spec->leaves,
            .n_pieces = spec->n_pieces,
            .leaf_columns = spec->columns / spec->leaves,
            .n_strips = spec_strips(spec),
            .leaf_bytes = spec_leaf_bytes(spec)};
    snprintf(l->name, sizeof l->name, "%s", spec->name);
    l->strips = calloc(l->n_strips, sizeof *l->strips);
    l->data = k_alloc(c, k_linear_bytes(spec));
    if (!l->strips || !l->data) {
        k_linear_free(l);
        return error_set(e, -ENOMEM, "%s: no memory for %zu bytes of packed weights", spec->name,
                k_linear_bytes(spec));
    }
    uint64_t at = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *p = &spec->pieces[i];
        for (uint32_t r0 = 0; r0 < p->rows; r0 += 16) {
            uint32_t left = p->rows - r0;
            l->strips[n++] = (struct strip){.at = at,
                    .column = l->rows + r0,
                    .dtype = (uint16_t)p->dtype,
                    .n_valid = (uint16_t)(left < 16 ? left : 16)};
            at += (uint64_t)l->leaf_columns * 16 * k_dtype_bytes(p->dtype);
        }
        l->rows += p->rows;
    }
    *ret = l;
    return 0;
}

/* Transposes 16 rows x n columns; rows past n_rows stay the zeros of k_alloc(). */
static void pack_tile(
        const uint8_t *from, uint64_t row_bytes, uint32_t n_rows, uint32_t n, size_t size, uint8_t *to) {
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *row = from + r * row_bytes;
        if (size == 2) {
            for (uint32_t k = 0; k < n; k++)
                memcpy(to + ((uint64_t)k * 16 + r) * 2, row + (uint64_t)k * 2, 2);
        } else {
            for (uint32_t k = 0; k < n; k++)
                memcpy(to + ((uint64_t)k * 16 + r) * 4, row + (uint64_t)k * 4, 4);
        }
    }
}

struct pack_job {
    const struct k_linear_spec *spec;
    struct k_linear *l;
};
static void pack_strip(void *arg, uint32_t s) {
    const struct pack_job *j = arg;
    struct k_linear *l = j->l;
    uint32_t piece = 0, first = 0, strips = 0;
    while (s >= strips + (j->spec->pieces[piece].rows + 15) / 16) {
        strips += (j->spec->pieces[piece].rows + 15) / 16;
        first += j->spec->pieces[piece].rows;
        piece++;
    }
    const struct k_matrix_view *p = &j->spec->pieces[piece];
    size_t size = k_dtype_bytes(p->dtype);
    uint64_t row_bytes = p->row_stride * size;
    const uint8_t *from = (const uint8_t *)p->data + (l->strips[s].column - first) * row_bytes;
    for (uint32_t leaf = 0; leaf < l->leaves; leaf++)
        pack_tile(from + (uint64_t)leaf * l->leaf_columns * size, row_bytes, l->strips[s].n_valid,
                l->leaf_columns, size, l->data + leaf * l->leaf_bytes + l->strips[s].at);
}

int k_linear_pack(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = linear_new(c, spec, &l, e);
    if (r < 0)
        return r;
    struct pack_job job = {spec, l};
    team_run(c->team, pack_strip, &job, l->n_strips);
    *ret = l;
    return 0;
}

static uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
struct dummy_job {
    struct k_linear *l;
    uint64_t seed;
    float scale;
};
static void dummy_strip(void *arg, uint32_t s) {
    const struct dummy_job *j = arg;
    struct k_linear *l = j->l;
    const struct strip *strip = &l->strips[s];
    for (uint32_t leaf = 0; leaf < l->leaves; leaf++) {
        uint8_t *to = l->data + leaf * l->leaf_bytes + strip->at;
        for (uint32_t i = 0; i < l->leaf_columns * 16; i++) {
            if (i % 16 >= strip->n_valid)
                continue;
            uint64_t bits = mix64(j->seed ^ mix64(((uint64_t)s << 40 | (uint64_t)leaf << 36) + i));
            float x = ((float)(int32_t)(bits >> 40) - 8388607.5f) * (j->scale / 8388607.5f);
            uint16_t half = bf16_of(x);
            if (strip->dtype == K_F32)
                memcpy(to + (uint64_t)i * 4, &x, 4);
            else if (strip->dtype == K_BF16)
                memcpy(to + (uint64_t)i * 2, &half, 2);
            else {
                half = f16_of(x);
                memcpy(to + (uint64_t)i * 2, &half, 2);
            }
        }
    }
}
int k_linear_dummy(struct k_context *c, const struct k_linear_spec *spec, uint64_t seed, float scale,
        struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = linear_new(c, spec, &l, e);
    if (r < 0)
        return r;
    struct dummy_job job = {l, mix64(seed), scale};
    team_run(c->team, dummy_strip, &job, l->n_strips);
    *ret = l;
    return 0;
}

struct k_linear *k_linear_free(struct k_linear *l) {
    if (!l)
        return NULL;
    k_free(l->context, l->data);
    free(l->strips);
    free(l);
    return NULL;
}
uint32_t k_linear_rows(const struct k_linear *l) {
    return l->rows;
}

int k_vector_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t n, float offset,
        float **ret, struct error *e) {
    float *v = k_alloc(c, (size_t)n * sizeof *v);
    if (!v)
        return error_set(e, -ENOMEM, "no memory for a vector of %u weights", n);
    convert_row(dtype, data, n, v);
    for (uint32_t i = 0; i < n; i++)
        v[i] += offset;
    *ret = v;
    return 0;
}
