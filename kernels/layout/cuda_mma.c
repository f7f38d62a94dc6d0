/* cuda_mma.c - see cuda_mma.h, whose words this follows.
 *
 * Units are a leaf of a strip in one of the arrays, in the order of the arrays. */
#include "kernels/layout/cuda_mma.h"

#include "base/half.h"
#include "kernels/layout/source.h"
#include "kernels/shared/check.h"
#include "kernels/shared/segments.h"

#include <errno.h>
#include <string.h>

#define RUN       ACTIVATION_RUN
#define STEP_INT  32u  /* k of an integer mma */
#define STEP_HALF 16u  /* k of a bf16 mma */
#define FRAGMENT  512u /* bytes of 32 lanes x 16 */

/* --- the plan --- */

static size_t aligned(size_t n) {
    return (n + 255) & ~(size_t)255;
}

static uint32_t count_slots(const struct k_tiles *t, uint32_t leaf_columns, uint32_t runs) {
    uint32_t most = 0;
    for (uint32_t leaf = 0; leaf < K_LEAVES; leaf++) {
        const uint32_t first = leaf * leaf_columns;
        uint32_t n = 0;
        for (uint32_t at = first; at < first + leaf_columns; n++)
            at = segment_end(t->group, first, leaf_columns, at);
        most = n > most ? n : most;
    }
    const uint32_t whole_runs =
            RUN % t->group == 0 && leaf_columns % t->group == 0 ? runs * (RUN / t->group) : 0;
    return most > whole_runs ? most : whole_runs;
}

struct cuda_mma_plan cuda_mma_plan(const struct k_tiles *t) {
    struct cuda_mma_plan p = {.strips = strips_of(t->rows),
            .leaf_columns = t->columns / K_LEAVES,
            .run_bytes = STRIP_ROWS * RUN * (uint32_t)k_dtype_bytes(t->dtype)};
    p.runs = (p.leaf_columns + RUN - 1) / RUN;
    if (t->quantised) {
        p.slots = count_slots(t, p.leaf_columns, p.runs);
        p.scale_bytes = t->scale == QUANT_SCALE_F32 ? 4 : 2;
        p.run_bytes = STRIP_ROWS * RUN / (t->format == QUANT_INT4 ? 2 : 1);
    }
    const size_t blocks = (size_t)K_LEAVES * p.strips, slots = blocks * p.slots * STRIP_ROWS;
    p.scales_at = aligned(blocks * p.runs * p.run_bytes);
    p.zeros_at = aligned(p.scales_at + slots * p.scale_bytes);
    p.minimums_at = aligned(p.zeros_at + (t->zeros ? slots : 0));
    p.bytes = aligned(p.minimums_at + (t->minimums ? slots * sizeof(float) : 0));
    return p;
}

static int check(const struct k_tiles *t, struct error *e) {
    (void)t;
    (void)e;
    return 0; /* there is a form for every matrix */
}
static size_t bytes(const struct k_tiles *t) {
    return cuda_mma_plan(t).bytes;
}

/* --- the arrays --- */

enum array_kind { CODES, SCALES, ZEROS, MINIMUMS, ARRAYS };
struct array {
    enum array_kind kind;
    size_t at, block; /* bytes of one leaf of one strip */
};

/* The arrays that the matrix has, in order; returns how many. */
static uint32_t arrays_of(const struct k_tiles *t, const struct cuda_mma_plan *p, struct array ret[ARRAYS]) {
    const size_t slots = (size_t)p->slots * STRIP_ROWS;
    uint32_t n = 0;
    ret[n++] = (struct array){CODES, 0, (size_t)p->runs * p->run_bytes};
    if (t->quantised)
        ret[n++] = (struct array){SCALES, p->scales_at, slots * p->scale_bytes};
    if (t->quantised && t->zeros)
        ret[n++] = (struct array){ZEROS, p->zeros_at, slots};
    if (t->quantised && t->minimums)
        ret[n++] = (struct array){MINIMUMS, p->minimums_at, slots * sizeof(float)};
    return n;
}

static uint32_t units(const struct k_tiles *t) {
    struct array all[ARRAYS];
    const struct cuda_mma_plan p = cuda_mma_plan(t);
    return arrays_of(t, &p, all) * K_LEAVES * p.strips;
}

static size_t place_of_unit(const struct cuda_mma_plan *p, const struct array *all, uint32_t n, uint32_t i) {
    const uint32_t blocks = K_LEAVES * p->strips;
    return i / blocks < n ? all[i / blocks].at + (size_t)(i % blocks) * all[i / blocks].block : p->bytes;
}
static size_t unit_at(const struct k_tiles *t, uint32_t i) {
    struct array all[ARRAYS];
    const struct cuda_mma_plan p = cuda_mma_plan(t);
    return place_of_unit(&p, all, arrays_of(t, &p, all), i);
}

static bool part(const struct k_matrix_view *v, uint32_t columns, uint32_t leaves, uint32_t i,
        const void **ret, size_t *ret_bytes) {
    struct array all[ARRAYS];
    const struct cuda_mma_plan p = cuda_mma_plan(v->tiles);
    const uint32_t n = arrays_of(v->tiles, &p, all), leaf = v->first_column / (columns / leaves) + i % leaves;
    if (i / leaves >= n)
        return false;
    const struct array *a = &all[i / leaves];
    *ret = (const uint8_t *)v->tiles->data + a->at +
           ((size_t)leaf * p.strips + v->first_row / STRIP_ROWS) * a->block;
    *ret_bytes = strips_of(v->rows) * a->block;
    return true;
}

/* --- where an element of a run of a strip is --- */

/* INT4: byte, and *ret_shift; k below RUN. */
static uint32_t nibble_at(uint32_t row, uint32_t k, uint32_t *ret_shift) {
    const uint32_t step = k / STEP_INT, lane = row % 8 * 4 + k % STEP_INT / 8, word = step % 2 * 2 + row / 8;
    *ret_shift = k % 8 / 4 * 4;
    return step / 2 * FRAGMENT + lane * 16 + word * 4 + k % 4;
}
static uint32_t int8_at(uint32_t row, uint32_t k) {
    const uint32_t step = k / STEP_INT, lane = row % 8 * 4 + k % STEP_INT / 8, word = k % 8 / 4 * 2 + row / 8;
    return step * FRAGMENT + lane * 16 + word * 4 + k % 4;
}
/* Lane and number of an element of the m16n8k16 fragment. */
static uint32_t lane_of_half(uint32_t row, uint32_t k) {
    return row % 8 * 4 + k % 8 / 2;
}
static uint32_t element_of_half(uint32_t row, uint32_t k) {
    return k % STEP_HALF / 8 * 4 + row / 8 * 2 + k % 2;
}
static uint32_t fp8_at(uint32_t row, uint32_t k) {
    const uint32_t step = k / STEP_HALF, a = element_of_half(row, k);
    return step / 2 * FRAGMENT + lane_of_half(row, k) * 16 + step % 2 * 8 + a / 4 * 4 + a % 4 / 2 + a % 2 * 2;
}
static uint32_t half_at(uint32_t row, uint32_t k) {
    return k / STEP_HALF * FRAGMENT + lane_of_half(row, k) * 16 + element_of_half(row, k) * 2;
}
static uint32_t float_at(uint32_t row, uint32_t k) {
    const uint32_t a = element_of_half(row, k);
    return (k / STEP_HALF * 2 + a / 4) * FRAGMENT + lane_of_half(row, k) * 16 + a % 4 * 4;
}

/* --- packing --- */

static void put_code(enum quant_format format, uint32_t row, uint32_t k, uint8_t code, uint8_t *run) {
    uint32_t shift;
    if (format == QUANT_INT4) {
        uint8_t *byte = run + nibble_at(row, k, &shift);
        *byte = (uint8_t)(*byte | ((code ^ 8u) & 15u) << shift);
    } else if (format == QUANT_INT8)
        run[int8_at(row, k)] = code ^ 128u;
    else
        run[fp8_at(row, k)] = code;
}

struct block { /* one leaf of one strip, of the matrix that is packed */
    const struct k_layout_source *source;
    const struct cuda_mma_plan *plan;
    uint32_t strip, leaf, rows; /* rows that are there */
};

static void pack_codes(const struct block *b, uint8_t *to) {
    const struct k_matrix_view *v = b->source->view;
    const uint32_t n = b->plan->leaf_columns, first = b->leaf * n;
    uint8_t codes[STRIP_ROWS * RUN];
    for (uint32_t k0 = 0; k0 < n; k0 += RUN, to += b->plan->run_bytes) {
        const uint32_t m = n - k0 < RUN ? n - k0 : RUN;
        source_codes(v, b->strip * STRIP_ROWS, b->rows, first + k0, m, codes);
        for (uint32_t r = 0; r < b->rows; r++)
            for (uint32_t k = 0; k < m; k++)
                put_code(v->quant->format, r, k, codes[r * m + k], to);
    }
}

static void pack_dense(const struct block *b, uint8_t *to) {
    const struct k_matrix_view *v = b->source->view;
    const uint32_t n = b->plan->leaf_columns, *order = b->source->order;
    const size_t size = k_dtype_bytes(v->dtype);
    for (uint32_t r = 0; r < b->rows; r++) {
        const uint8_t *from = (const uint8_t *)v->data +
                              (uint64_t)source_row(v, b->strip * STRIP_ROWS + r) * v->row_stride * size;
        for (uint32_t k = 0; k < n; k++) {
            const uint32_t column = b->leaf * n + k;
            const uint8_t *x = from + size * (uint64_t)(order ? order[column] : column);
            uint8_t *run = to + (size_t)(k / RUN) * b->plan->run_bytes;
            if (size == 2)
                memcpy(run + half_at(r, k % RUN), x, 2);
            else
                memcpy(run + float_at(r, k % RUN), x, 4);
        }
    }
}

static void put_of_group(
        enum array_kind kind, enum quant_scale scale, const struct quant_group *g, size_t at, uint8_t *to) {
    const uint16_t half = scale == QUANT_SCALE_BF16 ? bf16_of(g->scale) : f16_of(g->scale);
    if (kind == ZEROS)
        to[at] = g->zero;
    else if (kind == MINIMUMS)
        memcpy(to + at * 4, &g->minimum, 4);
    else if (scale == QUANT_SCALE_F32)
        memcpy(to + at * 4, &g->scale, 4);
    else
        memcpy(to + at * 2, &half, 2);
}

static void pack_groups(const struct block *b, enum array_kind kind, uint8_t *to) {
    const struct k_matrix_view *v = b->source->view;
    const struct k_tiles *t = b->source->tiles;
    const uint32_t n = b->plan->leaf_columns, first = b->leaf * n;
    for (uint32_t c = first, end, slot = 0; c < first + n; c = end, slot++) {
        end = segment_end(t->group, first, n, c);
        for (uint32_t r = 0; r < b->rows; r++) {
            struct quant_group g;
            v->quant->groups(v->quant, source_row(v, b->strip * STRIP_ROWS + r), c / t->group, 1, &g);
            put_of_group(kind, t->scale, &g, (size_t)slot * STRIP_ROWS + r % 8 * 2 + r / 8, to);
        }
    }
}

static void pack(const struct k_layout_source *s, uint32_t first, uint32_t n, uint8_t *to) {
    struct array all[ARRAYS];
    const struct k_tiles *t = s->tiles;
    const struct cuda_mma_plan p = cuda_mma_plan(t);
    const uint32_t arrays = arrays_of(t, &p, all), blocks = K_LEAVES * p.strips;
    const size_t from = place_of_unit(&p, all, arrays, first);
    memset(to, 0, place_of_unit(&p, all, arrays, first + n) - from);
    for (uint32_t i = first; i < first + n; i++) {
        struct block b = {.source = s, .plan = &p, .leaf = i % blocks / p.strips, .strip = i % p.strips};
        const enum array_kind kind = all[i / blocks].kind;
        const uint32_t left = t->rows - b.strip * STRIP_ROWS;
        uint8_t *at = to + (place_of_unit(&p, all, arrays, i) - from);
        b.rows = left < STRIP_ROWS ? left : STRIP_ROWS;
        if (kind != CODES)
            pack_groups(&b, kind, at);
        else if (t->quantised)
            pack_codes(&b, at);
        else
            pack_dense(&b, at);
    }
}

const struct k_layout k_layout_cuda_mma = {.name = "cuda-mma-2",
        .check = check,
        .bytes = bytes,
        .units = units,
        .unit_at = unit_at,
        .pack = pack,
        .part = part};
