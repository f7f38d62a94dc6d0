/* body_linear.h - linear products over packed strips, for one instruction set.
 *
 * The rule: an output is, per K-leaf, one fp32 accumulator that starts at 0 and takes fma(w[k], x[k]) with k
 * ascending; leaves are then added as a binary tree. How many outputs are open at once is free, and is what the
 * two forms below differ in:
 *
 *   small   1..3 rows     weights are read once and straight from memory, as one stream; a few neighbouring strips are
 *                         open at once, which hides the latency of fma (measured: more of them are slower, since the
 *                         machine follows few streams well)
 *   block   more rows     weights are turned into fp32 once per BLOCK_ROWS rows (128 k x 2 strips = 16 KB, in L1) and
 *                         multiplied with activation tiles [k][12] from registers */
#pragma once

#define BLOCK_K 128u

ALWAYS_INLINE v16 weights_at(const uint8_t *strip, uint64_t k, const enum k_dtype dtype) {
    if (dtype == K_BF16)
        return v_load_bf16((const uint16_t *)strip + k * 16);
    if (dtype == K_F16)
        return v_load_f16((const uint16_t *)strip + k * 16);
    return v_load((const float *)strip + k * 16);
}

/* nc chains (a strip each) x nr rows of one leaf; chain c reads w[c]. `ahead` is fetched meanwhile, as one stream. */
ALWAYS_INLINE void chains(const uint8_t *const *w, const uint8_t *ahead, const float *x, uint32_t ldx,
        uint32_t n, const uint32_t nc, const uint32_t nr, const enum k_dtype dtype, v16 *out) {
    v16 acc[LANES_SMALL_CHAINS * SMALL_ROWS];
    const uint8_t *p[LANES_SMALL_CHAINS];
    const uint64_t step = 16 * k_dtype_bytes(dtype), per_line = 64 / step;
    UNROLL for (uint32_t c = 0; c < nc; c++) p[c] = w[c];
    UNROLL for (uint32_t i = 0; i < nc * nr; i++) acc[i] = v_set1(0.0f);
    uint64_t k = 0;
    for (; k + per_line <= n; k += per_line) {
        UNROLL for (uint32_t c = 0; c < nc; c++) {
            __builtin_prefetch(ahead + (k * nc + c * per_line) * step);
            UNROLL for (uint32_t i = 0; i < per_line; i++) {
                v16 wk = weights_at(p[c], k + i, dtype);
                UNROLL for (uint32_t r = 0; r < nr; r++) acc[c * nr + r] =
                        v_fma(wk, v_set1(x[(uint64_t)r * ldx + k + i]), acc[c * nr + r]);
            }
        }
    }
    for (; k < n; k++) {
        UNROLL for (uint32_t c = 0; c < nc; c++) {
            v16 wk = weights_at(p[c], k, dtype);
            UNROLL for (uint32_t r = 0; r < nr; r++) acc[c * nr + r] =
                    v_fma(wk, v_set1(x[(uint64_t)r * ldx + k]), acc[c * nr + r]);
        }
    }
    UNROLL for (uint32_t i = 0; i < nc * nr; i++) out[i] = acc[i];
}

#define CHAINS_ROWS(nc, dtype)                                                                               \
    (rows == 1          ? chains(w, ahead, x, ldx, n, nc, 1, dtype, out)                                     \
            : rows == 2 ? chains(w, ahead, x, ldx, n, nc, 2, dtype, out)                                     \
                        : chains(w, ahead, x, ldx, n, nc, 3, dtype, out))
#define CHAINS_DTYPE(nc)                                                                                     \
    (dtype == K_BF16         ? CHAINS_ROWS(nc, K_BF16)                                                       \
            : dtype == K_F16 ? CHAINS_ROWS(nc, K_F16)                                                        \
                             : CHAINS_ROWS(nc, K_F32))

static void chains_full(const uint8_t *const *w, const uint8_t *ahead, const float *x, uint32_t ldx,
        uint32_t n, uint32_t rows, enum k_dtype dtype, v16 *out) {
    CHAINS_DTYPE(LANES_SMALL_CHAINS);
}
static void chains_one(const uint8_t *const *w, const uint8_t *ahead, const float *x, uint32_t ldx,
        uint32_t n, uint32_t rows, enum k_dtype dtype, v16 *out) {
    CHAINS_DTYPE(1);
}

static void small_dense(const struct k_linear *w, uint32_t first, uint32_t n, const float *x, uint32_t ldx,
        uint32_t rows, v16 *sums) {
    const struct strip *strips = &w->strips[first];
    const enum k_dtype dtype = (enum k_dtype)strips->kind;
    const uint32_t bytes = w->pieces[strips->piece].form.bytes;
    const uint8_t *from[GROUP_STRIPS], *ahead[GROUP_STRIPS];
    for (uint32_t l = 0; l < w->leaves; l++) {
        const float *xl = x + (uint64_t)l * w->leaf_columns;
        v16 *out = sums + (uint64_t)l * n * rows;
        uint32_t s = 0;
        for (uint32_t i = 0; i < n; i++) {
            from[i] = strips[i].data + l * strips[i].leaf_stride;
            ahead[i] = block_ahead(w, first, n, i, l, LANES_SMALL_CHAINS, bytes);
        }
        for (; s + LANES_SMALL_CHAINS <= n; s += LANES_SMALL_CHAINS)
            chains_full(from + s, ahead[s], xl, ldx, w->leaf_columns, rows, dtype, out + (uint64_t)s * rows);
        for (; s < n; s++)
            chains_one(from + s, ahead[s], xl, ldx, w->leaf_columns, rows, dtype, out + (uint64_t)s * rows);
    }
}

/* --- few rows, quantised weights: a segment of some strips at a time is widened in L1 --- */

#define WIDE_STRIPS (LANES_TILE_ROWS == 1 ? 1 : 4)

ALWAYS_INLINE void wide_dot(const float (*wide)[BLOCK_K * 16], const float *x, uint32_t ldx, uint32_t n,
        const uint32_t ns, const uint32_t nr, v16 *sums) {
    v16 acc[WIDE_STRIPS * SMALL_ROWS];
    UNROLL for (uint32_t i = 0; i < ns * nr; i++) acc[i] = sums[i];
    for (uint32_t k = 0; k < n; k++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            const v16 xk = v_set1(x[(uint64_t)r * ldx + k]);
            UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] =
                    v_fma(v_load(wide[s] + k * 16), xk, acc[s * nr + r]);
        }
    }
    UNROLL for (uint32_t i = 0; i < ns * nr; i++) sums[i] = acc[i];
}
#define WIDE_DOT_ROWS(ns)                                                                                    \
    (rows == 1          ? wide_dot(wide, x, ldx, n, ns, 1, sums)                                             \
            : rows == 2 ? wide_dot(wide, x, ldx, n, ns, 2, sums)                                             \
                        : wide_dot(wide, x, ldx, n, ns, 3, sums))
static void wide_dot_some(const float (*wide)[BLOCK_K * 16], const float *x, uint32_t ldx, uint32_t n,
        uint32_t ns, uint32_t rows, v16 *sums) {
    if (ns == WIDE_STRIPS) {
        WIDE_DOT_ROWS(WIDE_STRIPS);
        return;
    }
    for (uint32_t s = 0; s < ns; s++, wide++, sums += rows)
        WIDE_DOT_ROWS(1);
}

/* One leaf of ns neighbouring strips: sums[strip][row]. */
static void small_widened_leaf(const struct k_linear *w, const struct strip *strip, uint32_t leaf,
        uint32_t ns, const float *x, uint32_t ldx, uint32_t rows, v16 *sums) {
    _Alignas(64) float wide[WIDE_STRIPS][BLOCK_K * 16];
    const struct piece *p = &w->pieces[strip->piece];
    const struct cutting *c = &w->cuts[p->cut];
    const uint8_t *block = strip->data + leaf * strip->leaf_stride, *codes = block;
    for (uint32_t i = 0; i < ns * rows; i++)
        sums[i] = v_set1(0.0f);
    for (uint32_t i = c->leaf_first[leaf]; i < c->leaf_first[leaf + 1]; i++) {
        const struct segment *g = &c->segments[i];
        for (uint32_t s = 0; s < ns; s++)
            widen_segment(&p->form, block + s * p->form.bytes, codes + s * p->form.bytes,
                    i - c->leaf_first[leaf], g->n, wide[s]);
        wide_dot_some((const float(*)[BLOCK_K * 16]) wide, x + g->column, ldx, g->n, ns, rows, sums);
        codes += segment_bytes(p->form.kind, g->n);
    }
}
static void small_widened(const struct k_linear *w, uint32_t first, uint32_t n, const float *x, uint32_t ldx,
        uint32_t rows, v16 *sums) {
    v16 part[WIDE_STRIPS * SMALL_ROWS];
    for (uint32_t s = 0, ns; s < n; s += ns) {
        ns = n - s < WIDE_STRIPS ? n - s : WIDE_STRIPS;
        for (uint32_t l = 0; l < w->leaves; l++) {
            small_widened_leaf(w, &w->strips[first + s], l, ns, x, ldx, rows, part);
            for (uint32_t i = 0; i < ns * rows; i++)
                sums[((uint64_t)l * n + s) * rows + i] = part[i];
        }
    }
}

static void linear_small(const struct k_linear *w, uint32_t first, uint32_t n, const float *x, uint32_t ldx,
        uint32_t rows, float *out) {
    v16 sums[GROUP_STRIPS * K_LEAVES * SMALL_ROWS];
    if (kind_quantised(w->strips[first].kind))
        small_widened(w, first, n, x, ldx, rows, sums);
    else
        small_dense(w, first, n, x, ldx, rows, sums);
    for (uint32_t s = 0; s < n; s++)
        for (uint32_t r = 0; r < rows; r++)
            v_store(out + ((uint64_t)s * rows + r) * 16, leaf_tree(sums + s * rows + r, w->leaves, n * rows));
}

/* --- more rows --- */

/* Where the weights of a tile come from: strips as they lie in memory, or widened ones; and what to fetch ahead. */
struct tile_source {
    const uint8_t *w[2], *ahead[2];
    uint64_t ahead_step; /* bytes per k */
};

/* sums[s][r] += w[s][k] * x[k][r] over n k; ns strips x nr rows stay in registers. */
ALWAYS_INLINE void tile(const struct tile_source *from, const float *x, uint32_t n, const uint32_t ns,
        const uint32_t nr, const enum k_dtype dtype, float *sums, uint64_t strip_stride) {
    v16 acc[LANES_TILE_STRIPS * LANES_TILE_ROWS];
    const uint64_t step = from->ahead_step;
    UNROLL for (uint32_t s = 0; s < ns; s++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) acc[s * nr + r] = v_load(sums + s * strip_stride + r * 16);
    }
    for (uint32_t k = 0; k < n; k++) {
        v16 wk[LANES_TILE_STRIPS];
        UNROLL for (uint32_t s = 0; s < ns; s++) {
            __builtin_prefetch(from->ahead[s] + k * step);
            wk[s] = weights_at(from->w[s], k, dtype);
        }
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            v16 xk = v_set1(x[k * TILE_ROWS + r]);
            UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] = v_fma(wk[s], xk, acc[s * nr + r]);
        }
    }
    UNROLL for (uint32_t s = 0; s < ns; s++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) v_store(sums + s * strip_stride + r * 16, acc[s * nr + r]);
    }
}

#define TILE_CASE(rows_, strips_, dtype_)                                                                    \
    case (rows_):                                                                                            \
        tile(&part, x + r, n, strips_, rows_, dtype_, to, strip_stride);                                     \
        break;
#if LANES_TILE_ROWS == 12
#define TILE_CASES(strips_, dtype_)                                                                          \
    TILE_CASE(1, strips_, dtype_)                                                                            \
    TILE_CASE(2, strips_, dtype_)                                                                            \
    TILE_CASE(3, strips_, dtype_)                                                                            \
    TILE_CASE(4, strips_, dtype_)                                                                            \
    TILE_CASE(5, strips_, dtype_)                                                                            \
    TILE_CASE(6, strips_, dtype_)                                                                            \
    TILE_CASE(7, strips_, dtype_)                                                                            \
    TILE_CASE(8, strips_, dtype_)                                                                            \
    TILE_CASE(9, strips_, dtype_)                                                                            \
    TILE_CASE(10, strips_, dtype_) TILE_CASE(11, strips_, dtype_) TILE_CASE(12, strips_, dtype_)
#elif LANES_TILE_ROWS == 6
#define TILE_CASES(strips_, dtype_)                                                                          \
    TILE_CASE(1, strips_, dtype_)                                                                            \
    TILE_CASE(2, strips_, dtype_)                                                                            \
    TILE_CASE(3, strips_, dtype_)                                                                            \
    TILE_CASE(4, strips_, dtype_) TILE_CASE(5, strips_, dtype_) TILE_CASE(6, strips_, dtype_)
#else
#define TILE_CASES(strips_, dtype_) TILE_CASE(1, strips_, dtype_)
#endif

/* Any number of rows up to TILE_ROWS and one or two strips, in pieces that fit the registers. */
ALWAYS_INLINE void tile_rows(const struct tile_source *from, const float *x, uint32_t n, uint32_t n_strips,
        uint32_t rows, const enum k_dtype dtype, float *sums, uint64_t strip_stride) {
    const uint32_t ns = n_strips < LANES_TILE_STRIPS ? n_strips : LANES_TILE_STRIPS;
    for (uint32_t s = 0; s < n_strips; s += ns) {
        const struct tile_source part = {
                {from->w[s], from->w[1]}, {from->ahead[s], from->ahead[1]}, from->ahead_step};
        for (uint32_t r = 0, nr; r < rows; r += nr) {
            float *to = sums + s * strip_stride + r * 16;
            nr = rows - r < LANES_TILE_ROWS ? rows - r : LANES_TILE_ROWS;
            if (ns == LANES_TILE_STRIPS) {
                switch (nr) { TILE_CASES(LANES_TILE_STRIPS, dtype) }
            } else {
                switch (nr) { TILE_CASES(1, dtype) }
            }
        }
    }
}
static void tile_f32(const struct tile_source *from, const float *x, uint32_t n, uint32_t n_strips,
        uint32_t rows, float *sums) {
    tile_rows(from, x, n, n_strips, rows, K_F32, sums, BLOCK_ROWS * 16);
}
static void tile_bf16(const struct tile_source *from, const float *x, uint32_t n, uint32_t n_strips,
        uint32_t rows, float *sums) {
    tile_rows(from, x, n, n_strips, rows, K_BF16, sums, BLOCK_ROWS * 16);
}

/* n k of a strip as fp32, [k][16]. */
static void widen(const uint8_t *from, enum k_dtype dtype, uint32_t n, float *to) {
    if (dtype == K_BF16) {
        for (uint32_t k = 0; k < n; k++)
            v_store(to + k * 16, weights_at(from, k, K_BF16));
    } else {
        for (uint32_t k = 0; k < n; k++)
            v_store(to + k * 16, weights_at(from, k, K_F16));
    }
}

/* A K-leaf of n strips: its blocks, and what will be read after them. */
struct block_source {
    const struct form *form;
    const struct segment *segments; /* quantised: of this leaf */
    const uint8_t *strip[2], *next[2];
    uint32_t n, leaf_k;
};

/* The next run of k from k0 on, widened where that pays: at most BLOCK_K, one segment of quantised weights. */
static uint32_t block_run(const struct block_source *b, uint32_t k0, uint32_t i, bool direct,
        const uint8_t **codes, float (*wide)[BLOCK_K * 16], struct tile_source *ret) {
    const uint32_t kind = b->form->kind;
    if (kind_quantised(kind)) {
        const uint32_t nk = b->segments[i].n, bytes = segment_bytes(kind, nk);
        ret->ahead_step = bytes / nk;
        for (uint32_t s = 0; s < b->n; s++) {
            widen_segment(b->form, b->strip[s], codes[s], i, nk, wide[s]);
            codes[s] += bytes;
            ret->w[s] = (const uint8_t *)wide[s];
            ret->ahead[s] = k0 + nk < b->leaf_k ? codes[s] : b->next[s];
        }
        return nk;
    }
    const uint32_t nk = b->leaf_k - k0 < BLOCK_K ? b->leaf_k - k0 : BLOCK_K;
    const uint64_t k_bytes = 16 * k_dtype_bytes((enum k_dtype)kind);
    ret->ahead_step = k_bytes;
    for (uint32_t s = 0; s < b->n; s++) {
        ret->w[s] = b->strip[s] + k0 * k_bytes;
        ret->ahead[s] = k0 + nk < b->leaf_k ? ret->w[s] + nk * k_bytes : b->next[s];
        if (!direct) {
            widen(ret->w[s], (enum k_dtype)kind, nk, wide[s]);
            ret->w[s] = (const uint8_t *)wide[s];
        }
    }
    return nk;
}

/* One K-leaf for all rows of the tiles: sums[s][row]. */
static void block_leaf(const struct block_source *b, const float *x, uint64_t tile_floats,
        const uint32_t *rows, uint32_t n_tiles, float (*sums)[BLOCK_ROWS][16]) {
    _Alignas(64) float wide[2][BLOCK_K * 16];
    const uint8_t *codes[2] = {b->strip[0], b->strip[1]};
    const bool bf16 = b->form->kind == K_BF16 && n_tiles == 1, direct = bf16 || b->form->kind == K_F32;
    for (uint32_t k0 = 0, nk, i = 0; k0 < b->leaf_k; k0 += nk, i++) {
        struct tile_source from = {{NULL}, {NULL}, 0};
        nk = block_run(b, k0, i, direct, codes, wide, &from);
        for (uint32_t t = 0, r = 0; t < n_tiles; r += rows[t++]) {
            const float *xt = x + t * tile_floats + (uint64_t)k0 * TILE_ROWS;
            (bf16 ? tile_bf16 : tile_f32)(&from, xt, nk, b->n, rows[t], sums[0][r]);
        }
    }
}

static void linear_block(const struct k_linear *w, uint32_t first, uint32_t n, const float *tiles,
        const uint32_t *rows, uint32_t n_tiles, float *out) {
    _Alignas(64) float sums[K_LEAVES][2][BLOCK_ROWS][16];
    const struct strip *strips = &w->strips[first];
    const struct piece *piece = &w->pieces[strips->piece];
    struct block_source b = {.form = &piece->form, .n = n, .leaf_k = w->leaf_columns};
    uint32_t n_rows = 0;
    for (uint32_t t = 0; t < n_tiles; t++)
        n_rows += rows[t];
    for (uint32_t l = 0; l < w->leaves; l++) {
        if (kind_quantised(strips->kind)) {
            const struct cutting *c = &w->cuts[piece->cut];
            b.segments = c->segments + c->leaf_first[l];
        }
        for (uint32_t s = 0; s < n; s++) {
            const uint32_t then = first + s + n < w->n_strips ? s + n : s;
            b.strip[s] = strips[s].data + l * strips[s].leaf_stride;
            b.next[s] = l + 1 < w->leaves ? b.strip[s] + strips[s].leaf_stride : strips[then].data;
            memset(sums[l][s], 0, n_rows * sizeof sums[l][s][0]);
        }
        block_leaf(&b, tiles + (uint64_t)l * w->leaf_columns * TILE_ROWS, (uint64_t)w->columns * TILE_ROWS,
                rows, n_tiles, sums[l]);
    }
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t r = 0; r < n_rows; r++) {
            v16 leaf[K_LEAVES];
            for (uint32_t l = 0; l < w->leaves; l++)
                leaf[l] = v_load(sums[l][s][r]);
            v_store(out + ((uint64_t)s * n_rows + r) * 16, leaf_tree(leaf, w->leaves, 1));
        }
    }
}
