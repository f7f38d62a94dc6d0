/* body_linear.h - linear products over packed strips, for one instruction set.
 *
 * The rule: an output is, per K-leaf, one fp32 accumulator that starts at 0 and takes fma(w[k], x[k]) with k
 * ascending; leaves are then added as a binary tree. How many outputs are open at once is free, and is what
 * the two forms below differ in: small  1..3 rows: weights are read once and straight from memory; several
 * leaves or strips are open at once, so that fma latency is hidden and each is a sequential stream for the
 * prefetcher. block  more rows: weights are turned into fp32 once per BLOCK_ROWS rows (128 k x 2 strips = 16
 * KB, in L1) and multiplied with activation tiles [k][12] from registers. */
#pragma once

#define BLOCK_K        128u
#define PREFETCH_BYTES 1024u /* ahead in each chain; 768 to 3072 measure alike, none or 4096 lose a fifth */

ALWAYS_INLINE v16 weights_at(const uint8_t *strip, uint64_t k, const enum k_dtype dtype) {
    if (dtype == K_BF16)
        return v_load_bf16((const uint16_t *)strip + k * 16);
    if (dtype == K_F16)
        return v_load_f16((const uint16_t *)strip + k * 16);
    return v_load((const float *)strip + k * 16);
}

/* nc chains (a leaf of a strip each) x nr rows; chain c reads w[c] and x[r] + x_at[c]. */
ALWAYS_INLINE void chains(const uint8_t *const *w, const uint32_t *x_at, const float *x, uint32_t ldx,
        uint32_t n, const uint32_t nc, const uint32_t nr, const enum k_dtype dtype, v16 *out) {
    v16 acc[LANES_SMALL_CHAINS * SMALL_ROWS];
    const uint8_t *p[LANES_SMALL_CHAINS];
    const float *q[LANES_SMALL_CHAINS];
    UNROLL for (uint32_t c = 0; c < nc; c++) {
        p[c] = w[c];
        q[c] = x + x_at[c];
    }
    UNROLL for (uint32_t i = 0; i < nc * nr; i++) acc[i] = v_set1(0.0f);
    for (uint32_t k = 0; k < n; k++) {
        UNROLL for (uint32_t c = 0; c < nc; c++) {
            __builtin_prefetch(p[c] + ((uint64_t)k * 16) * k_dtype_bytes(dtype) + PREFETCH_BYTES);
            v16 wk = weights_at(p[c], k, dtype);
            UNROLL for (uint32_t r = 0; r < nr; r++) acc[c * nr + r] =
                    v_fma(wk, v_set1(q[c][(uint64_t)r * ldx + k]), acc[c * nr + r]);
        }
    }
    UNROLL for (uint32_t i = 0; i < nc * nr; i++) out[i] = acc[i];
}

#define CHAINS_ROWS(nc, dtype)                                                                               \
    (rows == 1          ? chains(w, x_at, x, ldx, n, nc, 1, dtype, out)                                      \
            : rows == 2 ? chains(w, x_at, x, ldx, n, nc, 2, dtype, out)                                      \
                        : chains(w, x_at, x, ldx, n, nc, 3, dtype, out))
#define CHAINS_DTYPE(nc)                                                                                     \
    (dtype == K_BF16         ? CHAINS_ROWS(nc, K_BF16)                                                       \
            : dtype == K_F16 ? CHAINS_ROWS(nc, K_F16)                                                        \
                             : CHAINS_ROWS(nc, K_F32))

static void chains_full(const uint8_t *const *w, const uint32_t *x_at, const float *x, uint32_t ldx,
        uint32_t n, uint32_t rows, enum k_dtype dtype, v16 *out) {
    CHAINS_DTYPE(LANES_SMALL_CHAINS);
}
static void chains_one(const uint8_t *const *w, const uint32_t *x_at, const float *x, uint32_t ldx,
        uint32_t n, uint32_t rows, enum k_dtype dtype, v16 *out) {
    CHAINS_DTYPE(1);
}

/* ((0+1)+(2+3))+((4+5)+(6+7)) over leaves, or the part of it that this rank holds; `stride` vectors per leaf.
 */
static inline v16 leaf_tree(const v16 *leaf, uint32_t leaves, uint32_t stride) {
    if (leaves == 1)
        return leaf[0];
    uint32_t half = leaves / 2;
    return v_add(leaf_tree(leaf, half, stride), leaf_tree(leaf + (uint64_t)half * stride, half, stride));
}

static void linear_small(const struct k_linear *w, const uint32_t *strips, uint32_t n, const float *x,
        uint32_t ldx, uint32_t rows, float *out) {
    v16 sums[SMALL_STRIPS * K_LEAVES * SMALL_ROWS];
    const uint8_t *from[SMALL_STRIPS * K_LEAVES];
    uint32_t x_at[SMALL_STRIPS * K_LEAVES];
    uint32_t n_chains = n * w->leaves, i = 0;
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t l = 0; l < w->leaves; l++) {
            from[s * w->leaves + l] = w->strips[strips[s]].data + l * w->strips[strips[s]].leaf_stride;
            x_at[s * w->leaves + l] = l * w->leaf_columns;
        }
    }
    enum k_dtype dtype = (enum k_dtype)w->strips[strips[0]].kind;
    for (; i + LANES_SMALL_CHAINS <= n_chains; i += LANES_SMALL_CHAINS)
        chains_full(from + i, x_at + i, x, ldx, w->leaf_columns, rows, dtype, sums + i * rows);
    for (; i < n_chains; i++)
        chains_one(from + i, x_at + i, x, ldx, w->leaf_columns, rows, dtype, sums + i * rows);
    for (uint32_t s = 0; s < n; s++)
        for (uint32_t r = 0; r < rows; r++)
            v_store(out + ((uint64_t)s * rows + r) * 16,
                    leaf_tree(sums + s * w->leaves * rows + r, w->leaves, rows));
}

/* Where the weights of a tile come from: strips as they lie in memory, or widened ones; and what to fetch
 * ahead. */
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

/* One K-leaf of n strips for all rows of the tiles: sums[s][row]. `next` is what will be read after it. */
static void block_leaf(const uint8_t *const *strip, const uint8_t *const *next, uint32_t n,
        enum k_dtype dtype, uint32_t leaf_k, const float *x, uint64_t tile_floats, const uint32_t *rows,
        uint32_t n_tiles, float (*sums)[BLOCK_ROWS][16]) {
    _Alignas(64) float wide[2][BLOCK_K * 16];
    const uint64_t k_bytes = 16 * k_dtype_bytes(dtype);
    const bool direct = dtype == K_F32 || (dtype == K_BF16 && n_tiles == 1);
    for (uint32_t k0 = 0; k0 < leaf_k; k0 += BLOCK_K) {
        const uint32_t nk = leaf_k - k0 < BLOCK_K ? leaf_k - k0 : BLOCK_K;
        struct tile_source from = {.ahead_step = k_bytes};
        for (uint32_t s = 0; s < n; s++) {
            from.w[s] = strip[s] + k0 * k_bytes;
            from.ahead[s] = k0 + nk < leaf_k ? from.w[s] + nk * k_bytes : next[s];
            if (!direct) {
                widen(from.w[s], dtype, nk, wide[s]);
                from.w[s] = (const uint8_t *)wide[s];
            }
        }
        for (uint32_t t = 0, r = 0; t < n_tiles; r += rows[t++]) {
            const float *xt = x + t * tile_floats + (uint64_t)k0 * TILE_ROWS;
            if (direct && dtype == K_BF16)
                tile_bf16(&from, xt, nk, n, rows[t], sums[0][r]);
            else
                tile_f32(&from, xt, nk, n, rows[t], sums[0][r]);
        }
    }
}

static void linear_block(const struct k_linear *w, const uint32_t *strips, uint32_t n, const float *tiles,
        const uint32_t *rows, uint32_t n_tiles, float *out) {
    _Alignas(64) float sums[K_LEAVES][2][BLOCK_ROWS][16];
    const uint32_t stride = n == 2 && strips[1] == strips[0] + 1 ? 2 : 1; /* a caller walks strips upwards */
    const enum k_dtype dtype = (enum k_dtype)w->strips[strips[0]].kind;
    const uint8_t *from[2], *next[2];
    uint32_t n_rows = 0;
    for (uint32_t t = 0; t < n_tiles; t++)
        n_rows += rows[t];
    for (uint32_t l = 0; l < w->leaves; l++) {
        for (uint32_t s = 0; s < n; s++) {
            uint32_t then = strips[s] + stride < w->n_strips ? strips[s] + stride : strips[s];
            from[s] = w->strips[strips[s]].data + l * w->strips[strips[s]].leaf_stride;
            next[s] = l + 1 < w->leaves ? from[s] + w->strips[strips[s]].leaf_stride : w->strips[then].data;
            memset(sums[l][s], 0, n_rows * sizeof sums[l][s][0]);
        }
        block_leaf(from, next, n, dtype, w->leaf_columns, tiles + (uint64_t)l * w->leaf_columns * TILE_ROWS,
                (uint64_t)w->columns * TILE_ROWS, rows, n_tiles, sums[l]);
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
