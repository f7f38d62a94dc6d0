/* body_codes.h - INT4 and INT8 weights times INT8 activations, for one instruction set.
 *
 * The rule (kernels.h): per segment an exact integer sum, scaled once and added to the leaf's fp32 accumulator,
 * segments ascending; then the tree over leaves. Integer sums may be taken in any order, so a segment is added
 * up four k at a time, and how many strips and rows are open at once is free: one strip for a few rows, so that
 * the weights are one stream; two strips and as many rows as the registers hold for more. */
#pragma once

#include "kernels/cpu/isa/body_quantise.h"
#include "kernels/cpu/isa/body_walk.h"
#include "kernels/cpu/isa/body_widen.h"

/* Runs of 128 k of a leaf, or what it has left. */
static void quantise_row(
        const float *x, uint32_t columns, uint32_t leaf_columns, int8_t *codes, float *scales) {
    for (uint32_t leaf = 0; leaf < columns; leaf += leaf_columns) {
        for (uint32_t k = 0; k < leaf_columns; k += ACTIVATION_RUN) {
            const uint32_t n = leaf_columns - k < ACTIVATION_RUN ? leaf_columns - k : ACTIVATION_RUN;
            quantise_run(x + leaf + k, n, codes + leaf + k, scales++);
        }
    }
}

ALWAYS_INLINE v16i dot_quad(v16i acc, v16i codes, const int8_t *x, const uint32_t kind) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return kind == KIND_INT4 ? vi_dot4_nibbles(acc, codes, quad) : vi_dot4(acc, codes, quad);
}

/* acc + 16 times the products of the high nibbles. */
ALWAYS_INLINE v16i dot_high(v16i acc, v16i codes, const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return vi_dot4_high(acc, codes, quad);
}

/* leaf[r] takes the segment's sums of one strip. */
ALWAYS_INLINE void segment_add(const struct form *f, const uint8_t *block, uint32_t segment,
        const float *scales, const int32_t *sums, const uint32_t nr, const uint32_t kind, const v16i *acc,
        v16 *leaf) {
    const v16 scale = segment_scales(f, block, segment);
    const int32_t common = kind == KIND_INT4 ? 8 : 128;
    if (!f->zeros && !f->minimums) {
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            const v16 n = v_of_int(vi_sub(acc[r], vi_set1((uint32_t)(common * sums[r]))));
            leaf[r] = v_fma(n, v_mul(scale, v_set1(scales[r])), leaf[r]);
        }
        return;
    }
    const v16i zero = segment_zeros(f, block, segment);
    const v16 minimum = f->minimums ? segment_minimums(f, block, segment) : scale;
    UNROLL for (uint32_t r = 0; r < nr; r++) {
        const v16 n = v_of_int(vi_sub(acc[r], vi_mul(zero, vi_set1((uint32_t)sums[r])))),
                  x_scale = v_set1(scales[r]);
        leaf[r] = v_fma(n, v_mul(scale, x_scale), leaf[r]);
        if (f->minimums)
            leaf[r] = v_nfma(v_set1((float)sums[r]), v_mul(minimum, x_scale), leaf[r]);
    }
}

/* --- few rows: strip after strip, so that the weights are read as one stream --- */

/* The sums of one vector of codes: INT4 has one quad of k in the low nibbles and one in the high. */
ALWAYS_INLINE void few_add(const uint8_t *codes, const int8_t *x, const uint32_t nr, const uint32_t kind,
        v16i *low, v16i *high) {
    const v16i c = vi_load(codes), nibble = vi_set1(0x0f0f0f0f);
    UNROLL for (uint32_t r = 0; r < nr; r++) {
        low[r] = dot_quad(low[r], kind == KIND_INT4 ? vi_and(c, nibble) : c, x + r * 4, kind);
        if (kind == KIND_INT4)
            high[r] = dot_high(high[r], c, x + (nr + r) * 4);
    }
}

/* acc[r] = codes times row r over one segment of n_loads vectors; x is [quad][nr][4]. Vectors take turns between
 * two sets of sums, so that no addition waits for the one before; an unrolled loop runs ahead with its fetches and
 * reads memory a fifth slower. */
ALWAYS_INLINE void few_sums(const uint8_t *codes, const uint8_t *ahead, const int8_t *x, uint64_t n_loads,
        const uint32_t nr, const uint32_t kind, v16i *acc) {
    const uint64_t x_load = (kind == KIND_INT4 ? 8 : 4) * nr;
    v16i low[2][SMALL_ROWS], high[2][SMALL_ROWS];
    UNROLL for (uint32_t r = 0; r < nr; r++) low[0][r] = low[1][r] = high[0][r] = high[1][r] = vi_set1(0);
    const uint8_t *const end = codes + n_loads / 2 * 128;
    ROLLED for (; codes < end; codes += 128, ahead += 128, x += 2 * x_load) {
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + 64);
        few_add(codes, x, nr, kind, low[0], high[0]);
        few_add(codes + 64, x + x_load, nr, kind, low[1], high[1]);
    }
    if (n_loads % 2)
        few_add(codes, x, nr, kind, low[0], high[0]);
    UNROLL for (uint32_t r = 0; r < nr; r++) {
        acc[r] = vi_add(low[0][r], low[1][r]);
        if (kind == KIND_INT4)
            acc[r] = vi_add(acc[r], vi_shift_sign(vi_add(high[0][r], high[1][r]), 4));
    }
}

/* One leaf of one strip. */
ALWAYS_INLINE void few_block(const struct form *f, const struct cutting *cut, uint32_t leaf,
        const uint8_t *block, const uint8_t *ahead, const struct codes_tile *t, const uint32_t nr,
        const uint32_t kind, v16 *sums) {
    const uint32_t from = cut->leaf_first[leaf], n_segments = cut->leaf_first[leaf + 1] - from;
    const float *scales = t->scales + (uint64_t)from * nr;
    const int32_t *x_sums = t->sums + (uint64_t)from * nr;
    const uint8_t *codes = block;
    UNROLL for (uint32_t r = 0; r < nr; r++) sums[r] = v_set1(0.0f);
    __builtin_prefetch(ahead + f->scales_at);
    for (uint32_t i = 0; i < n_segments; i++) {
        const struct segment *g = &cut->segments[from + i];
        const uint32_t n_loads = segment_bytes(kind, g->n) / 64;
        const int8_t *x = t->x + (uint64_t)g->x_at * nr;
        v16i acc[SMALL_ROWS];
        few_sums(codes, ahead, x, n_loads, nr, kind, acc);
        segment_add(f, block, i, scales + i * nr, x_sums + i * nr, nr, kind, acc, sums);
        codes += n_loads * 64;
        ahead += n_loads * 64;
    }
}

ALWAYS_INLINE void few_rows(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *t,
        const uint32_t nr, const uint32_t kind, float (*sums)[OUT_MAX][16]) {
    const struct strip *strip = &w->strips[first];
    const struct form *f = &w->pieces[strip->piece].form;
    const struct cutting *cut = &w->cuts[w->pieces[strip->piece].cut];
    for (uint32_t l = 0; l < w->leaves; l++) {
        const uint8_t *block = strip->data + l * strip->leaf_stride, *then = run_after(w, first, n, l);
        for (uint32_t s = 0; s < n; s++, block += f->bytes) {
            const uint64_t left = (uint64_t)(n - s) * f->bytes;
            const uint8_t *ahead = left > AHEAD_BYTES ? block + AHEAD_BYTES : then + (AHEAD_BYTES - left);
            v16 leaf[SMALL_ROWS];
            few_block(f, cut, l, block, ahead, t, nr, kind, leaf);
            UNROLL for (uint32_t r = 0; r < nr; r++) v_store(sums[l][s * nr + r], leaf[r]);
        }
    }
}
#define FEW_ROWS(kind)                                                                                       \
    (t->rows == 1          ? few_rows(w, first, n, t, 1, kind, sums)                                         \
            : t->rows == 2 ? few_rows(w, first, n, t, 2, kind, sums)                                         \
                           : few_rows(w, first, n, t, 3, kind, sums))
static void few_rows_int4(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *t,
        float (*sums)[OUT_MAX][16]) {
    FEW_ROWS(KIND_INT4);
}
static void few_rows_int8(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *t,
        float (*sums)[OUT_MAX][16]) {
    FEW_ROWS(KIND_INT8);
}

/* --- more rows --- */

/* Where the codes of a segment are, strips `stride` apart, and what to fetch meanwhile. */
struct codes_from {
    const uint8_t *codes, *ahead;
    uint64_t stride;
};

/* acc[s * nr + r] = codes of strip s times row r over one segment; x is [quad][x_rows][4]. */
ALWAYS_INLINE void segment_sums(const struct codes_from *from, const int8_t *x, uint64_t x_rows, uint32_t n,
        const uint32_t ns, const uint32_t nr, const uint32_t kind, v16i *acc) {
    const uint64_t x_quad = x_rows * 4;
    const uint8_t *codes = from->codes, *const end = codes + segment_bytes(kind, n);
    const int64_t ahead = from->ahead - codes;
    const v16i nibble = vi_set1(0x0f0f0f0f);
    UNROLL for (uint32_t i = 0; i < ns * nr; i++) acc[i] = vi_set1(0);
    for (; codes < end; codes += 64) {
        v16i c[LANES_CODES_STRIPS];
        UNROLL for (uint32_t s = 0; s < ns; s++) {
            __builtin_prefetch(codes + s * from->stride + ahead);
            c[s] = vi_load(codes + s * from->stride);
        }
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] = dot_quad(
                    acc[s * nr + r], kind == KIND_INT4 ? vi_and(c[s], nibble) : c[s], x + r * 4, kind);
        }
        x += x_quad;
        if (kind != KIND_INT4)
            continue;
        UNROLL for (uint32_t s = 0; s < ns; s++) c[s] = vi_and(vi_shift_right(c[s], 4), nibble);
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] =
                    dot_quad(acc[s * nr + r], c[s], x + r * 4, kind);
        }
        x += x_quad;
    }
}

struct codes_job { /* one leaf of one or two neighbouring strips */
    const struct form *form;
    const struct segment *segments;
    uint32_t first, n; /* segments of the leaf */
    const uint8_t *block, *ahead;
    float *sums; /* [strip][sums_stride][16], rows of this tile first */
    uint64_t sums_stride;
};

/* Rows r0 .. r0 + nr - 1 of a tile. */
ALWAYS_INLINE void codes_leaf(const struct codes_job *j, const struct codes_tile *t, uint32_t r0,
        const uint32_t ns, const uint32_t nr, const uint32_t kind) {
    const struct form *f = j->form;
    struct codes_from from = {j->block, j->ahead, f->bytes};
    float *leaf = j->sums + r0 * 16;
    UNROLL for (uint32_t s = 0; s < ns; s++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) v_store(leaf + (s * j->sums_stride + r) * 16, v_set1(0.0f));
        __builtin_prefetch(j->ahead + s * f->bytes + f->scales_at);
    }
    for (uint32_t i = 0; i < j->n; i++) {
        const struct segment *g = &j->segments[j->first + i];
        const uint64_t at = (uint64_t)(j->first + i) * t->rows + r0, bytes = segment_bytes(kind, g->n);
        v16i acc[LANES_CODES_STRIPS * LANES_CODES_ROWS];
        segment_sums(&from, t->x + ((uint64_t)g->x_at * t->rows) + r0 * 4, t->rows, g->n, ns, nr, kind, acc);
        UNROLL for (uint32_t s = 0; s < ns; s++) {
            float *to = leaf + s * j->sums_stride * 16;
            v16 sums[LANES_CODES_ROWS];
            UNROLL for (uint32_t r = 0; r < nr; r++) sums[r] = v_load(to + r * 16);
            segment_add(f, j->block + s * f->bytes, i, t->scales + at, t->sums + at, nr, kind, acc + s * nr,
                    sums);
            UNROLL for (uint32_t r = 0; r < nr; r++) v_store(to + r * 16, sums[r]);
        }
        from.codes += bytes;
        from.ahead += bytes;
    }
}

#define CODES_CASE(rows_, strips_, kind_)                                                                    \
    case (rows_):                                                                                            \
        codes_leaf(j, t, r, strips_, rows_, kind_);                                                          \
        break;
#if LANES_CODES_ROWS == 12
#define CODES_CASES(strips_, kind_)                                                                          \
    CODES_CASE(1, strips_, kind_)                                                                            \
    CODES_CASE(2, strips_, kind_)                                                                            \
    CODES_CASE(3, strips_, kind_)                                                                            \
    CODES_CASE(4, strips_, kind_)                                                                            \
    CODES_CASE(5, strips_, kind_)                                                                            \
    CODES_CASE(6, strips_, kind_)                                                                            \
    CODES_CASE(7, strips_, kind_)                                                                            \
    CODES_CASE(8, strips_, kind_)                                                                            \
    CODES_CASE(9, strips_, kind_)                                                                            \
    CODES_CASE(10, strips_, kind_) CODES_CASE(11, strips_, kind_) CODES_CASE(12, strips_, kind_)
#elif LANES_CODES_ROWS == 4
#define CODES_CASES(strips_, kind_)                                                                          \
    CODES_CASE(1, strips_, kind_)                                                                            \
    CODES_CASE(2, strips_, kind_) CODES_CASE(3, strips_, kind_) CODES_CASE(4, strips_, kind_)
#else
#define CODES_CASES(strips_, kind_) CODES_CASE(1, strips_, kind_)
#endif

ALWAYS_INLINE void codes_tile_rows(
        const struct codes_job *j, const struct codes_tile *t, const uint32_t ns, const uint32_t kind) {
    for (uint32_t r = 0, nr; r < t->rows; r += nr) {
        nr = t->rows - r < LANES_CODES_ROWS ? t->rows - r : LANES_CODES_ROWS;
        switch (nr) { CODES_CASES(ns, kind) }
    }
}
static void codes_one_int4(const struct codes_job *j, const struct codes_tile *t) {
    codes_tile_rows(j, t, 1, KIND_INT4);
}
static void codes_one_int8(const struct codes_job *j, const struct codes_tile *t) {
    codes_tile_rows(j, t, 1, KIND_INT8);
}
#if LANES_CODES_STRIPS == 2
static void codes_two_int4(const struct codes_job *j, const struct codes_tile *t) {
    codes_tile_rows(j, t, 2, KIND_INT4);
}
static void codes_two_int8(const struct codes_job *j, const struct codes_tile *t) {
    codes_tile_rows(j, t, 2, KIND_INT8);
}
#endif

static void codes_strips(const struct codes_job *j, const struct codes_tile *t, uint32_t ns) {
#if LANES_CODES_STRIPS == 2
    if (ns == 2) {
        (j->form->kind == KIND_INT4 ? codes_two_int4 : codes_two_int8)(j, t);
        return;
    }
#endif
    (void)ns;
    (j->form->kind == KIND_INT4 ? codes_one_int4 : codes_one_int8)(j, t);
}

static void more_rows(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *tiles,
        uint32_t n_tiles, uint32_t rows, float (*sums)[OUT_MAX][16]) {
    const struct strip *strip = &w->strips[first];
    const struct form *f = &w->pieces[strip->piece].form;
    const struct cutting *cut = &w->cuts[w->pieces[strip->piece].cut];
    for (uint32_t l = 0; l < w->leaves; l++) {
        for (uint32_t s = 0, ns; s < n; s += ns) {
            ns = n - s < LANES_CODES_STRIPS ? n - s : LANES_CODES_STRIPS;
            struct codes_job j = {.form = f,
                    .segments = cut->segments,
                    .first = cut->leaf_first[l],
                    .n = cut->leaf_first[l + 1] - cut->leaf_first[l],
                    .block = strip->data + l * strip->leaf_stride + (uint64_t)s * f->bytes,
                    .ahead = block_ahead(w, first, n, s, l, ns, f->bytes),
                    .sums_stride = rows};
            for (uint32_t t = 0, r = 0; t < n_tiles; r += tiles[t++].rows) {
                j.sums = sums[l][s * rows + r];
                codes_strips(&j, &tiles[t], ns);
                j.ahead = j.block;
            }
        }
    }
}

/* out[n][rows of all tiles][16] of n neighbouring strips of one piece; n * rows <= OUT_MAX. */
static void linear_codes(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *tiles,
        uint32_t n_tiles, float *out) {
    _Alignas(64) float sums[K_LEAVES][OUT_MAX][16];
    uint32_t rows = 0;
    for (uint32_t t = 0; t < n_tiles; t++)
        rows += tiles[t].rows;
    if (rows <= SMALL_ROWS)
        (w->strips[first].kind == KIND_INT4 ? few_rows_int4 : few_rows_int8)(w, first, n, tiles, sums);
    else
        more_rows(w, first, n, tiles, n_tiles, rows, sums);
    for (uint32_t i = 0; i < n * rows; i++) {
        v16 leaf[K_LEAVES];
        for (uint32_t l = 0; l < w->leaves; l++)
            leaf[l] = v_load(sums[l][i]);
        v_store(out + (uint64_t)i * 16, leaf_tree(leaf, w->leaves, 1));
    }
}
