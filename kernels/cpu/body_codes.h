/* body_codes.h - INT4 and INT8 weights times INT8 activations, for one instruction set.
 *
 * The rule (kernels.h): per segment an exact integer sum, scaled once and added to the leaf's fp32 accumulator, segments
 * ascending; then the tree over leaves. Integer sums may be taken in any order, so a segment is added up four k at a
 * time, and how many strips and rows are open at once is free: one strip for a few rows, so that the weights are one
 * stream; two strips and as many rows as the registers hold for more. */
#pragma once

#include "kernels/cpu/body_widen.h"

#define AHEAD_BYTES 3072u /* how far before their use weights are fetched */

/* The activations of a run of 128 k (or what the leaf has left): codes and their scale. */
static void quantise_run(const float *x, uint32_t n, int8_t *codes, float *scale) {
    v16i high = vi_set1(0);
    uint32_t lanes[16], h = 0;
    for (uint32_t i = 0; i < n; i += 16)
        high = vi_max(high, vi_and(v_bits(v_load_m(x + i, n - i)), vi_set1(0x7fffffff)));
    v_store((float *)lanes, v_of_bits(high));
    for (uint32_t i = 0; i < 16; i++)
        h = lanes[i] > h ? lanes[i] : h;
    float highest_x;
    memcpy(&highest_x, &h, sizeof h);
    *scale = h >= 0x7f800000u ? (float)NAN : highest_x / 127.0f; /* what is no number stays none */
    if (!(*scale > 0)) {
        memset(codes, 0, n);
        return;
    }
    const v16 s = v_set1(*scale), top = v_set1(127.0f), bottom = v_set1(-127.0f), magic = v_set1(12582912.0f);
    for (uint32_t i = 0; i < n; i += 16) {
        v16 v = v_min(top, v_max(bottom, v_div(v_load_m(x + i, n - i), s)));
        vi_store_bytes(codes + i, vi_sub(v_bits(v_add(v, magic)), v_bits(magic)), n - i);
    }
}
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

/* Where the codes of a segment are, strips `stride` apart, and what to fetch meanwhile. */
struct codes_from {
    const uint8_t *codes, *ahead;
    uint64_t stride;
};

/* acc[s * nr + r] = codes of strip s times row r over one segment; x is [quad][x_rows][4]. */
ALWAYS_INLINE void segment_sums(const struct codes_from *from, const int8_t *x, uint32_t x_rows, uint32_t n,
        const uint32_t ns, const uint32_t nr, const uint32_t kind, v16i *acc) {
    const uint32_t per_load = kind == KIND_INT4 ? 8 : 4, n_loads = (n + per_load - 1) / per_load;
    const bool two = ns * nr <= 4; /* few sums: take turns, so that no addition waits for the one before */
    v16i odd[LANES_CODES_STRIPS * LANES_CODES_ROWS];
    UNROLL for (uint32_t i = 0; i < ns * nr; i++) acc[i] = vi_set1(0);
    if (two) {
        UNROLL for (uint32_t i = 0; i < ns * nr; i++) odd[i] = vi_set1(0);
    }
    uint32_t v = 0;
    if (kind == KIND_INT4) {
        const v16i nibble = vi_set1(0x0f0f0f0f);
        for (; v < n_loads; v++) {
            v16i low[2], high[2];
            UNROLL for (uint32_t s = 0; s < ns; s++) {
                __builtin_prefetch(from->ahead + s * from->stride + v * 64);
                v16i c = vi_load(from->codes + s * from->stride + v * 64);
                low[s] = vi_and(c, nibble);
                high[s] = vi_and(vi_shift_right(c, 4), nibble);
            }
            const int8_t *xv = x + (uint64_t)v * 2 * x_rows * 4;
            UNROLL for (uint32_t r = 0; r < nr; r++) {
                UNROLL for (uint32_t s = 0; s < ns; s++) {
                    const uint32_t i = s * nr + r;
                    acc[i] = dot_quad(acc[i], low[s], xv + r * 4, kind);
                    if (two)
                        odd[i] = dot_quad(odd[i], high[s], xv + (x_rows + r) * 4, kind);
                    else
                        acc[i] = dot_quad(acc[i], high[s], xv + (x_rows + r) * 4, kind);
                }
            }
        }
    } else {
        for (; two && v + 2 <= n_loads; v += 2) {
            UNROLL for (uint32_t s = 0; s < ns; s++) {
                const uint64_t at = s * from->stride + v * 64;
                __builtin_prefetch(from->ahead + at);
                __builtin_prefetch(from->ahead + at + 64);
                v16i c = vi_load(from->codes + at), d = vi_load(from->codes + at + 64);
                UNROLL for (uint32_t r = 0; r < nr; r++) {
                    const uint32_t i = s * nr + r;
                    acc[i] = dot_quad(acc[i], c, x + ((uint64_t)v * x_rows + r) * 4, kind);
                    odd[i] = dot_quad(odd[i], d, x + ((uint64_t)(v + 1) * x_rows + r) * 4, kind);
                }
            }
        }
        for (; v < n_loads; v++) {
            v16i c[2];
            UNROLL for (uint32_t s = 0; s < ns; s++) {
                __builtin_prefetch(from->ahead + s * from->stride + v * 64);
                c[s] = vi_load(from->codes + s * from->stride + v * 64);
            }
            UNROLL for (uint32_t r = 0; r < nr; r++) {
                UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] =
                        dot_quad(acc[s * nr + r], c[s], x + ((uint64_t)v * x_rows + r) * 4, kind);
            }
        }
    }
    if (two) {
        UNROLL for (uint32_t i = 0; i < ns * nr; i++) acc[i] = vi_add(acc[i], odd[i]);
    }
}

/* leaf[r] takes the segment's sums of one strip. */
ALWAYS_INLINE void segment_add(const struct form *f, const uint8_t *block, uint32_t segment,
        const float *scales, const int32_t *sums, const uint32_t nr, const v16i *acc, float *leaf) {
    const v16 scale = segment_scales(f, block, segment);
    const v16i zero = segment_zeros(f, block, segment);
    const v16 minimum = f->minimums ? segment_minimums(f, block, segment) : scale;
    const int32_t common = f->kind == KIND_INT4 ? 8 : 128;
    UNROLL for (uint32_t r = 0; r < nr; r++) {
        v16i less =
                f->zeros ? vi_mul(zero, vi_set1((uint32_t)sums[r])) : vi_set1((uint32_t)(common * sums[r]));
        v16 n = v_of_int(vi_sub(acc[r], less)), x_scale = v_set1(scales[r]);
        v16 to = v_fma(n, v_mul(scale, x_scale), v_load(leaf + r * 16));
        if (f->minimums)
            to = v_nfma(v_set1((float)sums[r]), v_mul(minimum, x_scale), to);
        v_store(leaf + r * 16, to);
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
        UNROLL for (uint32_t s = 0; s < ns; s++) segment_add(f, j->block + s * f->bytes, i, t->scales + at,
                t->sums + at, nr, acc + s * nr, leaf + s * j->sums_stride * 16);
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

/* out[n][rows of all tiles][16] of n neighbouring strips of one piece; n * rows <= OUT_MAX. */
static void linear_codes(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *tiles,
        uint32_t n_tiles, float *out) {
    _Alignas(64) float sums[K_LEAVES][OUT_MAX][16];
    const struct strip *strip = &w->strips[first];
    const struct piece *piece = &w->pieces[strip->piece];
    const struct form *f = &piece->form;
    const struct cutting *cut = &w->cuts[piece->cut];
    const uint32_t blocks_ahead = AHEAD_BYTES / f->bytes + 1;
    uint32_t rows = 0;
    for (uint32_t t = 0; t < n_tiles; t++)
        rows += tiles[t].rows;
    const uint32_t together = rows <= SMALL_ROWS ? 1 : LANES_CODES_STRIPS;
    for (uint32_t l = 0; l < w->leaves; l++) {
        for (uint32_t s = 0, ns; s < n; s += ns) {
            ns = n - s < together ? n - s : together;
            /* the block that this walk reaches blocks_ahead later: past the run's end it goes on in the next leaf */
            uint32_t as = s + (ns > blocks_ahead ? ns : blocks_ahead), al = l;
            for (; as >= n && al + 1 < w->leaves; al++)
                as -= n;
            struct codes_job j = {.form = f,
                    .segments = cut->segments,
                    .first = cut->leaf_first[l],
                    .n = cut->leaf_first[l + 1] - cut->leaf_first[l],
                    .block = strip->data + l * strip->leaf_stride + (uint64_t)s * f->bytes,
                    .ahead = strip->data + al * strip->leaf_stride + (uint64_t)as * f->bytes,
                    .sums_stride = rows};
            for (uint32_t t = 0, r = 0; t < n_tiles; r += tiles[t++].rows) {
                j.sums = sums[l][s * rows + r];
                codes_strips(&j, &tiles[t], ns);
                j.ahead = j.block;
            }
        }
    }
    for (uint32_t i = 0; i < n * rows; i++) {
        v16 leaf[K_LEAVES];
        for (uint32_t l = 0; l < w->leaves; l++)
            leaf[l] = v_load(sums[l][i]);
        v_store(out + (uint64_t)i * 16, leaf_tree(leaf, w->leaves, 1));
    }
}
