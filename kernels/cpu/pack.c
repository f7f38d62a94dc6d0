/* pack.c - how weights lie in memory: the forms of a block, and turning matrices of a checkpoint into blocks.
 *
 * Used by linear.c for weights of its own and by whoever writes packed files, through k_tiles_*. A matrix becomes
 * [group of 16 strips][K-leaf][strip of 16 rows][block]: one stream for a product that works group after group, and
 * still long runs for a rank that has some of the leaves. struct form (internal.h) says what a block holds. Which
 * columns form a segment depends on the whole matrix only, so that a rank finds in its part what the whole has
 * there. */
#include "kernels/cpu/internal.h"
#include "kernels/shared/check.h"

#include <errno.h>
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
        const uint64_t at = v->row_order ? v->row_order[row + r] : row + r;
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

static uint32_t quant_row(const struct k_matrix_view *v, uint32_t row) {
    return v->row_order ? v->row_order[row] : v->first_row + row;
}

/* codes[r][n] of rows that need not be neighbours. */
static void read_codes(const struct k_matrix_view *v, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint8_t *codes) {
    for (uint32_t r = 0, run; r < n_rows; r += run) {
        const uint32_t first = quant_row(v, row + r);
        for (run = 1; r + run < n_rows && quant_row(v, row + r + run) == first + run;)
            run++;
        v->quant->codes(v->quant, first, run, column, n, codes + (size_t)r * n);
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
    read_codes(s->view, row, n_rows, column, n, codes);
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t i = segment * 16 + r;
        struct quant_group g;
        q->groups(q, quant_row(s->view, row + r), column / q->group, 1, &g);
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

const char *k_tiles_layout(void) {
    return "cpu-2";
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

struct strip_place strip_place(uint32_t strip, uint32_t n_strips, uint32_t leaves, uint32_t block_bytes) {
    const uint32_t in_group = strip % GROUP_STRIPS, group = strip - in_group,
                   n = n_strips - group < GROUP_STRIPS ? n_strips - group : GROUP_STRIPS;
    return (struct strip_place){.first = ((uint64_t)group * leaves + in_group) * block_bytes,
            .leaf_stride = (uint64_t)n * block_bytes};
}

size_t k_tiles_bytes(const struct k_tiles *t) {
    if (t->columns < K_LEAVES || (t->quantised && t->group == 0))
        return 0;
    return (size_t)form_of_tiles(t).bytes * strips_of(t->rows) * K_LEAVES;
}

uint32_t k_tiles_group_rows(void) {
    return GROUP_STRIPS * 16;
}

bool k_tiles_part(const struct k_matrix_view *v, uint32_t columns, uint32_t leaves, uint32_t i,
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

struct tiles_job {
    struct pack_source source;
    uint8_t *to;
    uint32_t n_strips;
};
static void pack_tiles_strip(void *arg, uint32_t s) {
    const struct tiles_job *j = arg;
    const uint32_t left = j->source.view->rows - s * 16, bytes = j->source.form->bytes;
    const struct strip_place place = strip_place(s, j->n_strips, K_LEAVES, bytes);
    for (uint32_t leaf = 0; leaf < K_LEAVES; leaf++) {
        uint8_t *to = j->to + place.first + leaf * place.leaf_stride;
        memset(to, 0, bytes);
        pack_block(&j->source, s * 16, left < 16 ? left : 16, leaf, to);
    }
}

int k_tiles_pack(struct k_context *c, const struct k_matrix_view *whole, uint32_t columns,
        const uint32_t *order, void *to, struct error *e) {
    const uint32_t leaf_columns = columns / K_LEAVES;
    if (columns == 0 || columns % K_LEAVES || columns > MODEL_DIM_MAX)
        return error_set(e, -EINVAL,
                "a matrix of %u columns does not divide into %u K-leaves; it cannot be packed", columns,
                K_LEAVES);
    int r = view_check(whole, columns, leaf_columns, "tiles", e);
    if (r < 0)
        return r;
    if (!whole->data && !whole->quant)
        return error_set(
                e, -EINVAL, "tiles are packed from a dense or a quantised matrix; neither was given");
    if (whole->quant && whole->quant->columns != columns)
        return error_set(e, -EINVAL, "tiles hold whole matrices; %u of %u columns were given", columns,
                whole->quant->columns);
    for (uint32_t k = 0; order && k < columns; k++) {
        if (order[k] >= columns)
            return error_set(e, -EINVAL, "the order of %u columns names column %u", columns, order[k]);
    }
    const struct form form = form_of_view(whole, leaf_columns);
    struct tiles_job job = {{whole, &form, order, leaf_columns}, to, strips_of(whole->rows)};
    team_run(c->team, pack_tiles_strip, &job, job.n_strips);
    return 0;
}
