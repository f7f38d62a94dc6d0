/* cpu_tiles.c - see cpu_tiles.h: the forms of a block, and turning matrices of a checkpoint into blocks.
 *
 * Used for packed files through struct k_layout, and by kernels/cpu for weights of its own, block by block. */
#include "kernels/layout/cpu_tiles.h"

#include "base/half.h"
#include "kernels/layout/source.h"
#include "kernels/shared/check.h"
#include "kernels/shared/pool_layout.h"
#include "kernels/shared/segments.h"

#include <string.h>

/* --- forms --- */

static uint32_t codes_bytes(uint32_t kind, uint32_t n) {
    if (kind == KIND_INT4)
        return (n + 7) / 8 * 64;
    return kind == KIND_INT8 ? (n + 3) / 4 * 64 : n * 16;
}
static uint32_t scale_bytes(uint32_t scale) {
    return scale == QUANT_SCALE_F32 ? 4 : 2;
}

struct quant_look { /* what a form depends on */
    enum quant_format format;
    enum quant_scale scale;
    uint32_t group, columns;
    bool zeros, minimums;
};

static struct form form_quantised(const struct quant_look *q, uint32_t leaf_columns) {
    struct form f = {.kind = (uint8_t)(q->format == QUANT_INT4   ? KIND_INT4
                                       : q->format == QUANT_INT8 ? KIND_INT8
                                                                 : KIND_FP8),
            .scale = (uint8_t)q->scale,
            .zeros = q->zeros,
            .minimums = q->minimums,
            .group = q->group};
    uint32_t codes = 0;
    for (uint32_t first = 0; first + leaf_columns <= q->columns; first += leaf_columns) {
        uint32_t n = 0, bytes = 0;
        for (uint32_t c = first, end; c < first + leaf_columns; c = end, n++) {
            end = segment_end(q->group, first, leaf_columns, c);
            bytes += codes_bytes(f.kind, end - c);
        }
        f.segments = n > f.segments ? n : f.segments;
        codes = bytes > codes ? bytes : codes;
    }
    f.scales_at = codes;
    f.zeros_at = f.scales_at + f.segments * 16 * scale_bytes(f.scale);
    f.minimums_at = f.zeros_at + (f.zeros ? f.segments * 16 : 0);
    f.bytes = (uint32_t)align64(f.minimums_at + (f.minimums ? f.segments * 64 : 0));
    return f;
}
static struct form form_dense(enum k_dtype dtype, uint32_t leaf_columns) {
    return (struct form){.kind = (uint8_t)dtype,
            .bytes = (uint32_t)align64((uint64_t)leaf_columns * 16 * k_dtype_bytes(dtype))};
}

struct form form_of_tiles(const struct k_tiles *t) {
    const struct quant_look q = {t->format, t->scale, t->group, t->columns, t->zeros, t->minimums};
    return t->quantised ? form_quantised(&q, t->columns / K_LEAVES)
                        : form_dense(t->dtype, t->columns / K_LEAVES);
}
struct form form_of_view(const struct k_matrix_view *v, uint32_t leaf_columns) {
    if (!v->quant)
        return form_dense(v->dtype, leaf_columns);
    const struct quant_look q = {v->quant->format, v->quant->scale, v->quant->group, v->quant->columns,
            v->quant->zeros, v->quant->minimums};
    return form_quantised(&q, leaf_columns);
}

/* --- one block --- */

/* Transposes rows x n columns; order names the columns, NULL = one after another. */
static void pack_dense(
        const struct pack_source *s, uint32_t row, uint32_t n_rows, uint32_t leaf, uint8_t *to) {
    const struct k_matrix_view *v = s->view;
    const size_t size = k_dtype_bytes(v->dtype);
    const uint64_t k0 = (uint64_t)leaf * s->leaf_columns;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint64_t at = source_row(v, row + r);
        const uint8_t *from = (const uint8_t *)v->data + at * v->row_stride * size;
        for (uint32_t k = 0; k < s->leaf_columns; k++) {
            const uint8_t *x = from + (s->order ? s->order[k0 + k] : k0 + k) * size;
            if (size == 2)
                memcpy(to + ((uint64_t)k * 16 + r) * 2, x, 2);
            else
                memcpy(to + ((uint64_t)k * 16 + r) * 4, x, 4);
        }
    }
}

static void put_codes(uint32_t kind, const uint8_t *codes, const uint8_t *zeros, uint32_t n, uint8_t *to) {
    const uint32_t padded = kind == KIND_INT4 ? (n + 7) & ~7u : kind == KIND_INT8 ? (n + 3) & ~3u : n;
    for (uint32_t r = 0; r < 16; r++) {
        for (uint32_t k = 0; k < padded; k++) {
            const uint8_t q = k < n ? codes[r * n + k] : zeros[r];
            if (kind == KIND_INT4)
                to[k / 8 * 64 + r * 4 + k % 4] |= (uint8_t)(k % 8 < 4 ? q & 15 : q << 4);
            else if (kind == KIND_INT8)
                to[k / 4 * 64 + r * 4 + k % 4] = q;
            else
                to[k * 16 + r] = q;
        }
    }
}

static void put_scale(uint32_t kind, float scale, uint32_t i, uint8_t *to) {
    const uint16_t half = kind == QUANT_SCALE_BF16 ? bf16_of(scale) : f16_of(scale);
    if (kind == QUANT_SCALE_F32)
        memcpy(to + (size_t)i * 4, &scale, 4);
    else
        memcpy(to + (size_t)i * 2, &half, 2);
}

/* Rows past n_rows get the default zero as codes and scale 0: nothing reads them, but the bytes are defined. */
static void pack_segment(const struct pack_source *s, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint32_t segment, uint8_t *codes_to, uint8_t *block) {
    const struct quant_matrix *q = s->view->quant;
    const struct form *f = s->form;
    const uint8_t zero = f->kind == KIND_INT4 ? 8 : f->kind == KIND_INT8 ? 128 : 0;
    uint8_t codes[16 * ACTIVATION_RUN], zeros[16];
    memset(codes + n_rows * n, zero, (16 - n_rows) * n);
    memset(zeros, zero, sizeof zeros);
    source_codes(s->view, row, n_rows, column, n, codes);
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t i = segment * 16 + r;
        struct quant_group g;
        q->groups(q, source_row(s->view, row + r), column / q->group, 1, &g);
        put_scale(f->scale, g.scale, i, block + f->scales_at);
        if (f->zeros)
            zeros[r] = g.zero;
        if (f->minimums)
            memcpy(block + f->minimums_at + (size_t)i * 4, &g.minimum, 4);
    }
    if (f->zeros)
        memcpy(block + f->zeros_at + (size_t)segment * 16, zeros, 16);
    put_codes(f->kind, codes, zeros, n, codes_to);
}

void pack_block(const struct pack_source *s, uint32_t row, uint32_t n_rows, uint32_t leaf, uint8_t *to) {
    if (!s->view->quant) {
        pack_dense(s, row, n_rows, leaf, to);
        return;
    }
    const uint32_t first = s->view->first_column + leaf * s->leaf_columns;
    uint8_t *codes = to;
    for (uint32_t c = first, end, i = 0; c < first + s->leaf_columns; c = end, i++) {
        end = segment_end(s->form->group, first, s->leaf_columns, c);
        pack_segment(s, row, n_rows, c, end - c, i, codes, to);
        codes += codes_bytes(s->form->kind, end - c);
    }
}

/* --- whole matrices --- */

struct strip_place strip_place(uint32_t strip, uint32_t n_strips, uint32_t leaves, uint32_t block_bytes) {
    const uint32_t in_group = strip % GROUP_STRIPS, group = strip - in_group,
                   n = n_strips - group < GROUP_STRIPS ? n_strips - group : GROUP_STRIPS;
    return (struct strip_place){.first = ((uint64_t)group * leaves + in_group) * block_bytes,
            .leaf_stride = (uint64_t)n * block_bytes};
}

static int check(const struct k_tiles *t, struct error *e) {
    (void)t, (void)e; /* there is a form for all that k_layout_check() lets through */
    return 0;
}

static size_t bytes(const struct k_tiles *t) {
    if (t->columns < K_LEAVES || (t->quantised && t->group == 0))
        return 0;
    return (size_t)form_of_tiles(t).bytes * strips_of(t->rows) * K_LEAVES;
}

/* A unit is a block. */
static uint32_t units(const struct k_tiles *t) {
    return strips_of(t->rows) * K_LEAVES;
}
static size_t unit_at(const struct k_tiles *t, uint32_t i) {
    return (size_t)form_of_tiles(t).bytes * i;
}

static bool part(const struct k_matrix_view *v, uint32_t columns, uint32_t leaves, uint32_t i,
        const void **ret, size_t *ret_bytes) {
    const uint32_t first = v->first_row / 16, end = first + strips_of(v->rows), n = strips_of(v->tiles->rows),
                   block = form_of_tiles(v->tiles).bytes;
    const uint32_t group = first / GROUP_STRIPS + i, of_group = group * GROUP_STRIPS,
                   from = of_group > first ? of_group : first,
                   to = of_group + GROUP_STRIPS < end ? of_group + GROUP_STRIPS : end;
    if (from >= end)
        return false;
    const struct strip_place place = strip_place(from, n, K_LEAVES, block);
    *ret = (const uint8_t *)v->tiles->data + place.first +
           v->first_column / (columns / leaves) * place.leaf_stride;
    *ret_bytes = (leaves - 1) * place.leaf_stride + (size_t)(to - from) * block;
    return true;
}

static void pack(const struct k_layout_source *s, uint32_t first, uint32_t n, uint8_t *to) {
    const struct form form = form_of_tiles(s->tiles);
    const uint32_t n_strips = strips_of(s->tiles->rows), of_group = GROUP_STRIPS * K_LEAVES;
    const struct pack_source source = {s->view, &form, s->order, s->tiles->columns / K_LEAVES};
    for (uint32_t i = first; i < first + n; i++, to += form.bytes) {
        const uint32_t group = i / of_group * GROUP_STRIPS, left = n_strips - group,
                       strips = left < GROUP_STRIPS ? left : GROUP_STRIPS, leaf = i % of_group / strips,
                       row = (group + i % of_group % strips) * STRIP_ROWS, rows = s->tiles->rows - row;
        memset(to, 0, form.bytes);
        pack_block(&source, row, rows < STRIP_ROWS ? rows : STRIP_ROWS, leaf, to);
    }
}

const struct k_layout k_layout_cpu = {.name = "cpu-2",
        .check = check,
        .bytes = bytes,
        .units = units,
        .unit_at = unit_at,
        .pack = pack,
        .part = part};
