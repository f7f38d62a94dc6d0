/* layout.c - see layout.h: the table, and packing with several threads. */
#include "kernels/layout/layout.h"

#include "kernels/shared/check.h"
#include "kernels/shared/parallel.h"

#include <errno.h>
#include <string.h>

#define UNITS_TAKEN 8u /* by a thread at once */

const struct k_layout *k_layout_at(uint32_t i) {
    static const struct k_layout *const all[K_LAYOUTS] = {&k_layout_cpu, &k_layout_cuda_mma};
    return all[i];
}

const struct k_layout *k_layout_find(const char *name) {
    for (uint32_t i = 0; i < K_LAYOUTS; i++)
        if (strcmp(k_layout_at(i)->name, name) == 0)
            return k_layout_at(i);
    return NULL;
}

void k_tiles_describe(const struct k_matrix_view *whole, uint32_t columns, struct k_tiles *ret) {
    static const struct quant_matrix none = {.format = QUANT_INT4};
    const struct quant_matrix *q = whole->quant ? whole->quant : &none;
    ret->rows = whole->rows;
    ret->columns = columns;
    ret->dtype = whole->dtype;
    ret->quantised = whole->quant != NULL;
    ret->format = q->format;
    ret->scale = q->scale;
    ret->group = q->group;
    ret->zeros = q->zeros;
    ret->minimums = q->minimums;
}

int k_layout_check(
        const struct k_layout *l, const struct k_layout_source *s, const char *name, struct error *e) {
    const uint32_t columns = s->tiles->columns;
    const struct k_matrix_view *whole = s->view;
    if (columns == 0 || columns % K_LEAVES || columns > MODEL_DIM_MAX)
        return error_set(e, -EINVAL,
                "%s: a matrix of %u columns does not divide into %u K-leaves; it cannot be packed", name,
                columns, K_LEAVES);
    int r = view_check(whole, columns, columns / K_LEAVES, name, e);
    if (r < 0)
        return r;
    if (!whole->data && !whole->quant)
        return error_set(e, -EINVAL,
                "%s: tiles are packed from a dense or a quantised matrix; neither was given", name);
    if (whole->quant && whole->quant->columns != columns)
        return error_set(e, -EINVAL, "%s: tiles hold whole matrices; %u of %u columns were given", name,
                columns, whole->quant->columns);
    for (uint32_t k = 0; s->order && k < columns; k++) {
        if (s->order[k] >= columns)
            return error_set(
                    e, -EINVAL, "%s: the order of %u columns names column %u", name, columns, s->order[k]);
    }
    r = l->check(s->tiles, e);
    return r < 0 ? error_prefix(e, r, "%s", name) : 0;
}

struct pack_job {
    const struct k_layout *layout;
    const struct k_layout_source *source;
    uint32_t first, n;
    uint8_t *to;
    size_t at; /* of unit `first` */
};
static void pack_some(void *arg, uint32_t i) {
    const struct pack_job *j = arg;
    const uint32_t taken = i * UNITS_TAKEN, unit = j->first + taken, left = j->n - taken;
    j->layout->pack(j->source, unit, left < UNITS_TAKEN ? left : UNITS_TAKEN,
            j->to + (j->layout->unit_at(j->source->tiles, unit) - j->at));
}

void k_layout_pack_units(const struct k_layout *l, const struct k_layout_source *s, uint32_t first,
        uint32_t n, uint32_t threads, void *to) {
    struct pack_job job = {l, s, first, n, to, l->unit_at(s->tiles, first)};
    parallel_run(threads, (n + UNITS_TAKEN - 1) / UNITS_TAKEN, pack_some, &job);
}

int k_layout_pack(const struct k_layout *l, const struct k_matrix_view *whole, uint32_t columns,
        const uint32_t *order, uint32_t threads, void *to, struct error *e) {
    struct k_tiles t = {0};
    const struct k_layout_source s = {.tiles = &t, .view = whole, .order = order};
    k_tiles_describe(whole, columns, &t);
    int r = k_layout_check(l, &s, "tiles", e);
    if (r == 0)
        k_layout_pack_units(l, &s, 0, l->units(&t), threads, to);
    return r;
}
