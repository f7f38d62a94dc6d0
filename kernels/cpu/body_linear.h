/* body_linear.h - linear products over packed strips, for one instruction set.
 *
 * The rule: an output is, per K-leaf, one fp32 accumulator that starts at 0 and takes fma(w[k], x[k]) with k
 * ascending; leaves are then added as a binary tree. How many outputs are open at once is free, and is what
 * the two forms below differ in: small  1..3 rows: weights are read once and straight from memory; several
 * leaves or strips are open at once, so that fma latency is hidden and each is a sequential stream for the
 * prefetcher. block  more rows: weights are turned into fp32 once per BLOCK_ROWS rows (128 k x 2 strips = 16
 * KB, in L1) and multiplied with activation tiles [k][12] from registers. */
#pragma once

#define BLOCK_K 128u

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
            from[s * w->leaves + l] = w->data + l * w->leaf_bytes + w->strips[strips[s]].at;
            x_at[s * w->leaves + l] = l * w->leaf_columns;
        }
    }
    enum k_dtype dtype = (enum k_dtype)w->strips[strips[0]].dtype;
    for (; i + LANES_SMALL_CHAINS <= n_chains; i += LANES_SMALL_CHAINS)
        chains_full(from + i, x_at + i, x, ldx, w->leaf_columns, rows, dtype, sums + i * rows);
    for (; i < n_chains; i++)
        chains_one(from + i, x_at + i, x, ldx, w->leaf_columns, rows, dtype, sums + i * rows);
    for (uint32_t s = 0; s < n; s++)
        for (uint32_t r = 0; r < rows; r++)
            v_store(out + ((uint64_t)s * rows + r) * 16,
                    leaf_tree(sums + s * w->leaves * rows + r, w->leaves, rows));
}

/* acc[s][r] += w[k][s] * x[k][r] over n k; ns strips x nr rows stay in registers. */
ALWAYS_INLINE void tile(const float *w, const float *x, uint32_t n, const uint32_t ns, const uint32_t nr,
        float *sums, uint64_t strip_stride) {
    v16 acc[LANES_TILE_STRIPS * LANES_TILE_ROWS];
    UNROLL for (uint32_t s = 0; s < ns; s++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) acc[s * nr + r] = v_load(sums + s * strip_stride + r * 16);
    }
    for (uint32_t k = 0; k < n; k++) {
        v16 wk[LANES_TILE_STRIPS];
        UNROLL for (uint32_t s = 0; s < ns; s++) wk[s] = v_load(w + (k * 2 + s) * 16);
        UNROLL for (uint32_t r = 0; r < nr; r++) {
            v16 xk = v_set1(x[k * TILE_ROWS + r]);
            UNROLL for (uint32_t s = 0; s < ns; s++) acc[s * nr + r] = v_fma(wk[s], xk, acc[s * nr + r]);
        }
    }
    UNROLL for (uint32_t s = 0; s < ns; s++) {
        UNROLL for (uint32_t r = 0; r < nr; r++) v_store(sums + s * strip_stride + r * 16, acc[s * nr + r]);
    }
}

/* Any number of rows up to TILE_ROWS, in pieces that fit the registers. */
static void tile_rows(const float *w, const float *x, uint32_t n, uint32_t n_strips, uint32_t rows,
        float *sums, uint64_t strip_stride) {
    const uint32_t ns = n_strips < LANES_TILE_STRIPS ? n_strips : LANES_TILE_STRIPS;
    for (uint32_t s = 0; s < n_strips; s += ns) {
        for (uint32_t r = 0; r < rows;) {
            uint32_t nr = rows - r < LANES_TILE_ROWS ? rows - r : LANES_TILE_ROWS;
            float *to = sums + s * strip_stride + r * 16;
#define TILE_CASE(rows_, strips_)                                                                            \
    case (rows_):                                                                                            \
        tile(w + s * 16, x + r, n, strips_, rows_, to, strip_stride);                                        \
        break;
#define TILE_CASES(strips_)                                                                                  \
    switch (nr) {                                                                                            \
        TILE_CASE(1, strips_)                                                                                \
        TILE_CASE(2, strips_)                                                                                \
        TILE_CASE(3, strips_)                                                                                \
        TILE_CASE(4, strips_)                                                                                \
        TILE_CASES_WIDE(strips_)                                                                             \
    default:                                                                                                 \
        break;                                                                                               \
    }
#if LANES_TILE_ROWS == 12
#define TILE_CASES_WIDE(s_)                                                                                  \
    TILE_CASE(5, s_)                                                                                         \
    TILE_CASE(6, s_)                                                                                         \
    TILE_CASE(7, s_)                                                                                         \
    TILE_CASE(8, s_) TILE_CASE(9, s_) TILE_CASE(10, s_) TILE_CASE(11, s_) TILE_CASE(12, s_)
#elif LANES_TILE_ROWS == 6
#define TILE_CASES_WIDE(s_) TILE_CASE(5, s_) TILE_CASE(6, s_)
#else
#define TILE_CASES_WIDE(s_)
#endif
            if (ns == LANES_TILE_STRIPS) {
                TILE_CASES(LANES_TILE_STRIPS)
            } else {
                TILE_CASES(1)
            }
            r += nr;
        }
    }
}

/* n k of up to two strips as fp32, [k][2][16]. */
static void widen(const uint8_t *const *from, uint32_t n_strips, const enum k_dtype *dtype, uint32_t k0,
        uint32_t n, float *to) {
    for (uint32_t s = 0; s < n_strips; s++) {
        const uint8_t *p = from[s];
        float *out = to + s * 16;
        if (dtype[s] == K_BF16) {
            for (uint32_t k = 0; k < n; k++)
                v_store(out + k * 32, weights_at(p, k0 + k, K_BF16));
        } else if (dtype[s] == K_F16) {
            for (uint32_t k = 0; k < n; k++)
                v_store(out + k * 32, weights_at(p, k0 + k, K_F16));
        } else {
            for (uint32_t k = 0; k < n; k++)
                v_store(out + k * 32, weights_at(p, k0 + k, K_F32));
        }
    }
}

static void linear_block(const struct k_linear *w, const uint32_t *strips, uint32_t n, const float *tiles,
        const uint32_t *rows, uint32_t n_tiles, float *out) {
    _Alignas(64) float sums[K_LEAVES][2][BLOCK_ROWS][16];
    _Alignas(64) float wide[BLOCK_K * 32];
    enum k_dtype dtype[2] = {K_F32, K_F32};
    const uint64_t tile_floats = (uint64_t)w->columns * TILE_ROWS;
    uint32_t n_rows = 0;
    for (uint32_t t = 0; t < n_tiles; t++)
        n_rows += rows[t];
    for (uint32_t s = 0; s < n; s++)
        dtype[s] = (enum k_dtype)w->strips[strips[s]].dtype;
    for (uint32_t l = 0; l < w->leaves; l++) {
        const uint8_t *from[2] = {NULL, NULL};
        for (uint32_t s = 0; s < n; s++) {
            from[s] = w->data + l * w->leaf_bytes + w->strips[strips[s]].at;
            memset(sums[l][s], 0, n_rows * sizeof sums[l][s][0]);
        }
        for (uint32_t k0 = 0; k0 < w->leaf_columns; k0 += BLOCK_K) {
            uint32_t nk = w->leaf_columns - k0 < BLOCK_K ? w->leaf_columns - k0 : BLOCK_K;
            widen(from, n, dtype, k0, nk, wide);
            const float *x = tiles + ((uint64_t)l * w->leaf_columns + k0) * TILE_ROWS;
            for (uint32_t t = 0, r = 0; t < n_tiles; r += rows[t++])
                tile_rows(wide, x + t * tile_floats, nk, n, rows[t], sums[l][0][r], BLOCK_ROWS * 16);
        }
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
