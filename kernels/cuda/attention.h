/* attention.h - the attention mixer on the device: what its kernels share, and the functions that queue them.
 *
 * Between attention.c and its .cu files. A query is one query head of one row; query i of an entry is head i %
 * group of a kv head's group, of row i / group. Two kernels: rows (attention_rows.cu) makes q, writes K and V, and
 * cuts the step into tiles; attend (attention.cu) computes tiles. A step of few rows has one for both.
 *
 * One arithmetic, whatever a tile is: small or large, all its leaves in a block or each in another. Per leaf of 256
 * positions and per query, steps of 64 positions (a page) in order, from m = -inf, l = 0, o = 0:
 *
 *   s_j  = (q . k_j) / sqrt(D)
 *   m'   = max(m, max s_j),  a = e^(m-m') (1 where m' = m),  p_j = e^(s_j-m'), 0 where the query does not see j
 *   l    = l a + sum p_j
 *   o    = o a, then + p_j v_j, j ascending
 *
 * BF16 pages, on tensor cores (mma_bf16()): q and p are sums of two bf16, high = rounded, low = the rest rounded.
 *   q . k     four chains of products over 16 columns, columns ascending: high even, high odd, low even, low odd
 *             ones; (0 + 1) + (2 + 3). Columns are padded with 0 to a multiple of 32.
 *   sum p     of eights of j, ((0+1)+(2+3))+((4+5)+(6+7)), and of the eight sums alike
 *   p v       one chain over 16 positions: high, then low
 * INT8 pages (mma_s8()): q is integers of 16 bits in a unit of max|q| / 32512, as on the CPU, so that q . k is an exact
 * integer, s_j = (q . k_j) * (unit / sqrt(D) * K's scale).
 *   p v       y_j = p_j * V's scale becomes an integer of 16 bits, in a unit of the step's largest V scale that the
 *             query sees / 32512 (0 where the unit is below SMALLEST_UNIT: no V above 2^-104); the exact sum of
 *             the step times the unit is added by an fma
 *   sum p     as of bf16
 * F32 pages: q . k and p v are one chain of fma each; sum p is over j and j + 32, then a tree of 32 (distance 16
 * first).
 *
 * What a query does not see enters as p = 0, so that it changes no bit, unless a V is no finite number: such a V also
 * spoils queries of rows before it, in the same step and the same page.
 *
 * Leaves are combined in index order as in kernels/cpu: M' = max(M, m), L' = L e^(M-M') + l e^(m-M'), O' = fma(o,
 * e^(m-M'), O e^(M-M')); out = O / L * sigmoid(gate).
 *
 * Against exact arithmetic on the same pages: q and p lose at most 2^-17 of themselves, which moves a score by less
 * than 2^-17 |q| |k| / sqrt(D), and an output by less than 2^-16 times that plus the largest |v|. With INT8, of q 2^-16
 * of its largest element, and of p 2^-16. */
#pragma once

#include "kernels/cuda/product.h"
#include "kernels/cuda/views.h"
#include "kernels/shared/constants.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SMALL_QUERIES 16u   /* of a tile: an entry of few rows, or any where there are no large tiles */
#define LARGE_QUERIES 48u   /* of a tile of an entry of many rows */
#define LARGE_ROWS    32u   /* from so many rows on an entry has large tiles */
#define LARGE_DIM     256u  /* head size up to which there are large tiles */
#define TOGETHER_ROWS 64u   /* up to so many rows of a step one kernel may have all */
#define ARRIVALS_MAX  1024u /* tiles and kv heads of such a step */
#define SMALLEST_UNIT 1.17549435e-38f /* normal, so that its inverse is finite */

/* Up to SMALL_QUERIES or LARGE_QUERIES queries of an entry, for every kv head. */
struct attention_tile {
    uint32_t slot;         /* of the entry */
    uint32_t row, skipped; /* of its first query: the row, and the heads of the group before it */
    uint32_t n;            /* queries */
    uint32_t last;         /* position that the last of them sees last */
    uint32_t leaves;       /* that the last of them sees */
    uint32_t first_leaf;   /* small tiles: sum of leaves of the tiles before */
    uint32_t first_part;   /* small tiles: sum of leaves * n of the tiles before */
};

/* What a step is made of, per kv head. The first n_split small tiles are split at leaves: their results lie in parts
 * until the block that brings a tile's last one combines them. There is room for parts of parts_max queries and
 * leaves; tiles behind that, and large tiles, are a block each. */
struct attention_list {
    uint32_t n_split, n_small, n_large;
    uint32_t split_leaves; /* of all tiles that are split */
    uint32_t large_taken;  /* kv heads of large tiles that a block has taken */
};

struct attention_args {
    struct pool_view pool;
    struct batch_view batch;
    const float *d_q_norm, *d_k_norm; /* [D] */
    const float *d_in;                /* [R][q+gate | k | v] */
    float *d_out;                     /* [R][Hq][D] */
    uint32_t layer, shift;
    uint32_t group; /* query heads of a kv head */
    float group_inverse;
    bool large;         /* entries of many rows have large tiles */
    uint32_t parts_max; /* of a kv head */
    /* scratch */
    void *d_q; /* [R][Hq] after norm and rope: [D] fp32, or words (see word_query_bytes()) */
    struct attention_list *d_list;
    struct attention_tile *d_small, *d_large;
    uint32_t *d_arrived;      /* [small tile][Hkv] leaves that are in their parts */
    float *d_sums, *d_values; /* parts: [part][2] max and sum, [part][D] */
    /* queue_attend_few(): d_out for the product after it; d_codes NULL = not wanted */
    struct activations codes;
};

/* q for pages of INT8: words of 16 bits as [columns] high bytes, then [columns] low ones, 0 behind the last column;
 * then the fp32 unit of both, with 1 / sqrt(D); in whole pieces of 16 bytes. */
K_INLINE uint32_t word_columns(uint32_t head_dim) {
    return (head_dim + 63) & ~63u;
}
K_INLINE uint32_t word_query_bytes(uint32_t columns) {
    return 2 * columns + 16;
}

/* What grids are made for. */
struct attention_bounds {
    uint32_t rows, entries;
    uint32_t small, large; /* tiles; large may be 0 */
    uint32_t leaves;
    uint32_t sms;
    size_t shared_of_sm;
};
cudaError_t queue_attention_rows(
        cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b);
/* Both in one kernel, where a step is small enough for it. */
bool attend_is_few(const struct attention_args *a, const struct attention_bounds *b);
cudaError_t queue_attend_few(
        cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b);
cudaError_t queue_attend(cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b);

/* Once per device: how much shared memory a block may have there. */
cudaError_t attend_prepare(uint32_t shared_of_block);

#ifdef __cplusplus
}
#endif
