/* layout.c - see layout.h: the table, and packing with several threads. */
#include "kernels/layout/layout.h"

#include "kernels/shared/check.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define THREADS_MAX 64u
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
    uint32_t first, end;
    atomic_uint next; /* counted from first */
    uint8_t *to;
    size_t at; /* of unit `first` */
};
static void *pack_some(void *arg) {
    struct pack_job *j = arg;
    for (;;) {
        const uint32_t taken = atomic_fetch_add(&j->next, UNITS_TAKEN);
        if (taken >= j->end - j->first)
            return NULL;
        const uint32_t unit = j->first + taken, left = j->end - unit;
        j->layout->pack(j->source, unit, left < UNITS_TAKEN ? left : UNITS_TAKEN,
                j->to + (j->layout->unit_at(j->source->tiles, unit) - j->at));
    }
}

void k_layout_pack_units(const struct k_layout *l, const struct k_layout_source *s, uint32_t first,
        uint32_t n, uint32_t threads, void *to) {
    struct pack_job job = {.layout = l,
            .source = s,
            .first = first,
            .end = first + n,
            .to = to,
            .at = l->unit_at(s->tiles, first)};
    pthread_t others[THREADS_MAX];
    uint32_t started = 0;
    cpu_set_t set;
    if (threads == 0)
        threads = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    while (started + 1 < threads && started < THREADS_MAX && started < n / UNITS_TAKEN &&
            pthread_create(&others[started], NULL, pack_some, &job) == 0)
        started++; /* where no more can be had those that there are do the work */
    pack_some(&job);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(others[i], NULL);
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
