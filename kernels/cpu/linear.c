/* linear.c - linears: tables of strips over packed weights, of their own or in somebody's tiles.
 *
 * Called by tp/ at load. A linear's pieces lie one after another, each as kernels/layout/cpu_tiles.c makes it; a strip
 * knows where its block of the first leaf is and how far the next leaf's, so that a piece may as well lie in a mapped
 * file, which must outlive the linear. Packing is split over the rank's threads, strip by strip, so that it needs no
 * memory of its own. */
#include "kernels/cpu/internal.h"
#include "kernels/shared/check.h"
#include "kernels/shared/dummy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct k_layout *k_layout_native(void) {
    return &k_layout_cpu;
}

static struct form form_of_piece(const struct k_matrix_view *v, uint32_t leaf_columns) {
    return v->tiles ? form_of_tiles(v->tiles) : form_of_view(v, leaf_columns);
}
static size_t spec_bytes(const struct k_linear_spec *spec, bool with_tiles) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        if (with_tiles || !v->tiles)
            bytes += (size_t)strips_of(v->rows) * form_of_piece(v, spec->columns / spec->leaves).bytes *
                     spec->leaves;
    }
    return bytes;
}
size_t k_linear_bytes(const struct k_linear_spec *spec) {
    return spec_bytes(spec, /* with_tiles= */ true);
}

/* --- making one --- */

static int piece_cut(struct k_linear *l, struct piece *p, uint32_t first_column, struct error *e) {
    for (p->cut = 0; p->cut < l->n_cuts; p->cut++) {
        const struct cutting *c = &l->cuts[p->cut];
        if (c->group == p->form.group && c->first_column == first_column)
            return 0;
    }
    if (l->n_cuts == CUTS_MAX)
        return error_set(e, -EINVAL,
                "%s: more than %u different group sizes in one linear; requantise with one", l->name,
                CUTS_MAX);
    int r = cutting_make(&l->cuts[l->n_cuts++], p->form.group, first_column, l->leaves, l->leaf_columns);
    return r < 0 ? error_set(e, r, "%s: no memory", l->name) : 0;
}

struct whole_strips { /* a matrix in memory, of which a piece may be a part */
    const uint8_t *data;
    uint32_t n_strips, leaves;
    uint32_t first_strip, first_leaf; /* of the piece */
};
static void piece_strips(
        struct k_linear *l, uint32_t piece, uint32_t rows, const struct whole_strips *whole) {
    struct piece *p = &l->pieces[piece];
    for (uint32_t s = 0; s < p->n_strips; s++) {
        const uint32_t left = rows - s * 16;
        const struct strip_place place =
                strip_place(whole->first_strip + s, whole->n_strips, whole->leaves, p->form.bytes);
        l->strips[p->first_strip + s] =
                (struct strip){.data = whole->data + place.first + whole->first_leaf * place.leaf_stride,
                        .leaf_stride = place.leaf_stride,
                        .column = l->rows + s * 16,
                        .kind = p->form.kind,
                        .piece = (uint8_t)piece,
                        .n_valid = (uint8_t)(left < 16 ? left : 16)};
    }
    l->rows += rows;
}

static int linear_fill(struct k_linear *l, const struct k_linear_spec *spec, struct error *e) {
    uint64_t own = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        struct piece *p = &l->pieces[i];
        *p = (struct piece){
                .form = form_of_piece(v, l->leaf_columns), .first_strip = n, .n_strips = strips_of(v->rows)};
        struct whole_strips whole;
        if (v->tiles) {
            whole = (struct whole_strips){.data = v->tiles->data,
                    .n_strips = strips_of(v->tiles->rows),
                    .leaves = K_LEAVES,
                    .first_strip = v->first_row / 16,
                    .first_leaf = v->first_column / l->leaf_columns};
        } else {
            whole = (struct whole_strips){
                    .data = l->data + own, .n_strips = p->n_strips, .leaves = l->leaves};
            own += (uint64_t)p->form.bytes * p->n_strips * l->leaves;
        }
        piece_strips(l, i, v->rows, &whole);
        n += p->n_strips;
        int r = kind_quantised(p->form.kind) ? piece_cut(l, p, v->first_column, e) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static int linear_new(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = linear_check(spec, e);
    if (r < 0)
        return r;
    const size_t own = spec_bytes(spec, /* with_tiles= */ false);
    l = calloc(1, sizeof *l);
    if (!l)
        return error_set(e, -ENOMEM, "%s: no memory", spec->name);
    *l = (struct k_linear){.context = c,
            .columns = spec->columns,
            .leaves = spec->leaves,
            .n_pieces = spec->n_pieces,
            .leaf_columns = spec->columns / spec->leaves};
    snprintf(l->name, sizeof l->name, "%s", spec->name);
    for (uint32_t i = 0; i < spec->n_pieces; i++)
        l->n_strips += strips_of(spec->pieces[i].rows);
    l->strips = calloc(l->n_strips, sizeof *l->strips);
    l->data = own ? k_alloc(c, own) : NULL;
    l->order = spec->order ? malloc(l->columns * sizeof *l->order) : NULL;
    if (!l->strips || (own && !l->data) || (spec->order && !l->order)) {
        r = error_set(e, -ENOMEM, "%s: no memory for %zu bytes of packed weights", spec->name, own);
        goto fail;
    }
    if (l->order)
        memcpy(l->order, spec->order, l->columns * sizeof *l->order);
    r = linear_fill(l, spec, e);
    if (r < 0)
        goto fail;
    *ret = l;
    return 0;
fail:
    k_linear_free(l);
    return r;
}

/* --- filling it --- */

struct pack_job {
    const struct k_linear_spec *spec;
    struct k_linear *l;
};
static void pack_strip(void *arg, uint32_t s) {
    const struct pack_job *j = arg;
    struct k_linear *l = j->l;
    const struct strip *strip = &l->strips[s];
    const struct piece *p = &l->pieces[strip->piece];
    const struct k_matrix_view *v = &j->spec->pieces[strip->piece];
    const struct pack_source source = {v, &p->form, l->order, l->leaf_columns};
    if (v->tiles)
        return;
    uint8_t *to = l->data + (strip->data - l->data);
    for (uint32_t leaf = 0; leaf < l->leaves; leaf++)
        pack_block(&source, (s - p->first_strip) * 16, strip->n_valid, leaf, to + leaf * strip->leaf_stride);
}

int k_linear_pack(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = linear_check_weights(spec, e);
    if (r == 0)
        r = linear_new(c, spec, &l, e);
    if (r < 0)
        return r;
    struct pack_job job = {spec, l};
    team_run(c->team, pack_strip, &job, l->n_strips);
    *ret = l;
    return 0;
}

struct dummy_job {
    const struct k_linear_spec *spec;
    struct k_linear *l;
    uint64_t seed;
    float scale;
};
static void dummy_quantised(const struct dummy_job *j, uint32_t s) {
    const struct strip *strip = &j->l->strips[s];
    const struct piece *p = &j->l->pieces[strip->piece];
    const struct dummy_weights d = {dummy_piece_seed(j->seed, strip->piece), j->scale, j->l->leaf_columns};
    struct k_matrix_view v = j->spec->pieces[strip->piece];
    const struct quant_matrix q = dummy_matrix(v.quant, &d);
    v.quant = &q;
    const struct pack_source source = {&v, &p->form, NULL, j->l->leaf_columns};
    uint8_t *to = j->l->data + (strip->data - j->l->data);
    for (uint32_t leaf = 0; leaf < j->l->leaves; leaf++)
        pack_block(&source, (s - p->first_strip) * 16, strip->n_valid, leaf, to + leaf * strip->leaf_stride);
}

static void dummy_strip(void *arg, uint32_t s) {
    const struct dummy_job *j = arg;
    struct k_linear *l = j->l;
    const struct strip *strip = &l->strips[s];
    if (kind_quantised(strip->kind)) {
        dummy_quantised(j, s);
        return;
    }
    for (uint32_t leaf = 0; leaf < l->leaves; leaf++) {
        uint8_t *to = l->data + (strip->data - l->data) + leaf * strip->leaf_stride;
        for (uint32_t i = 0; i < l->leaf_columns * 16; i++) {
            if (i % 16 >= strip->n_valid)
                continue;
            const float x = dummy_dense(j->seed, s, leaf, i / 16, i % 16, j->scale);
            uint16_t half = strip->kind == K_BF16 ? bf16_of(x) : f16_of(x);
            if (strip->kind == K_F32)
                memcpy(to + (uint64_t)i * 4, &x, 4);
            else
                memcpy(to + (uint64_t)i * 2, &half, 2);
        }
    }
}
int k_linear_dummy(struct k_context *c, const struct k_linear_spec *spec, uint64_t seed, float scale,
        struct k_linear **ret, struct error *e) {
    struct k_linear *l;
    int r = linear_check_dummy(spec, e);
    if (r == 0)
        r = linear_new(c, spec, &l, e);
    if (r < 0)
        return r;
    struct dummy_job job = {spec, l, dummy_seed(seed), scale};
    team_run(c->team, dummy_strip, &job, l->n_strips);
    *ret = l;
    return 0;
}

struct k_linear *k_linear_free(struct k_linear *l) {
    if (!l)
        return NULL;
    team_forget_idle(l->context->team); /* threads may be reading ahead in it */
    k_free(l->context, l->data);
    for (uint32_t i = 0; i < l->n_cuts; i++)
        cutting_free(&l->cuts[i]);
    free(l->strips);
    free(l->order);
    free(l);
    return NULL;
}
void k_linear_then(struct k_linear *l, const struct k_linear *next, const float *norm, bool gate_up) {
    (void)norm; /* whoever multiplies with next normalises */
    l->next = next;
    l->gate_up = gate_up;
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

int k_taps_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t channels, uint32_t w,
        float **ret, struct error *e) {
    float *taps, *turned;
    int r = k_vector_load(c, data, dtype, channels * w, 0.0f, &taps, e);
    if (r < 0)
        return r;
    turned = k_alloc(c, (size_t)channels * w * sizeof *turned);
    for (uint32_t i = 0; turned && i < channels * w; i++)
        turned[(size_t)(i % w) * channels + i / w] = taps[i];
    k_free(c, taps);
    *ret = turned;
    return turned ? 0 : error_set(e, -ENOMEM, "no memory for the taps of %u channels", channels);
}
