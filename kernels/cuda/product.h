/* product.h - linear products on the device: what the kernels are given, and the functions that queue them.
 *
 * Between the host code of this folder (C) and its .cu files. Arguments are copied when a kernel is queued; the arrays
 * that they name are the caller's. */
#pragma once

#include "kernels/cuda/ahead.h"
#include "kernels/kernels.h"
#include "kernels/shared/constants.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A run is 128 k of a leaf counted from its start (ACTIVATION_RUN); the last one of a leaf may be short. */

enum weight_form { /* the first three are those of enum quant_format */
    FORM_INT4,
    FORM_INT8,
    FORM_FP8,
    FORM_BF16,
    FORM_F16,
    FORM_F32,
};

enum { SEGMENTS_ANY = 0 }; /* panel.segments: cut wherever kernels/shared/segments.h says */

struct strip_output {
    uint32_t column;  /* of y, of the strip's first row */
    uint32_t n_valid; /* 1..16 rows that are there */
};

/* Strips of one form, of one or several pieces of a linear, in the layout of kernels/layout/cuda_mma.h; of this rank's
 * leaves and rows only. */
struct panel {
    const uint8_t *d_codes;               /* [leaf][strip][run][run bytes] */
    const uint8_t *d_scales;              /* [leaf][strip][slot][8][2] of `scale` */
    const uint8_t *d_zeros;               /* [leaf][strip][slot][8][2] */
    const float *d_minimums;              /* [leaf][strip][slot][8][2] */
    const struct strip_output *d_outputs; /* [strip] */
    uint32_t strips, leaves, leaf_columns;
    uint32_t runs, slots; /* of one leaf of one strip */
    /* 1, 2 or 4: a run is that many equal segments, in as many slots; or SEGMENTS_ANY. Dense: 1 */
    uint32_t segments;
    uint32_t group, first_column; /* SEGMENTS_ANY: of the whole matrix */
    uint8_t form, scale;          /* enum weight_form; enum quant_scale */
    bool zeros, minimums;         /* whether those arrays are there */
};

/* Activations as INT8, in the fragments of mma_s8() (kernels/cuda/ptx.cuh).
 *
 *   d_codes   [leaf][run][row / 8][half h][lane (g, i)][16]: row g of the eight; k 64h + 8i .. + 7, then k 64h + 32 +
 *             8i .. + 7
 *   d_scales  [leaf][run][row]
 *
 * Rows are counted in tiles of 8; those that are not there are undefined. Columns behind a leaf's end are 0. */
struct activations {
    uint8_t *d_codes;
    float *d_scales;
    uint32_t row_tiles;
};

struct input {           /* what a product multiplies, before it is brought into the form of its kernels */
    const float *d_x;    /* [rows][columns] */
    const float *d_norm; /* NULL, or [columns]: x is normalised first */
    const uint32_t *d_order; /* NULL, or [columns]: position k is input order[k] */
    const struct k_plan *d_plan;
    float eps;
    uint32_t columns, leaf_columns, runs;
};
struct quantise_args {
    struct input in;
    struct activations to;
};
cudaError_t queue_quantise(cudaStream_t s, const struct quantise_args *a, uint32_t rows_bound);

/* Activations as terms of bf16, in the fragments of mma_bf16(): three (high, middle and low, 8 bits of x each, whose
 * sum is x; an infinity is one in the high term alone), or x rounded to one.
 *
 *   d_terms   [leaf][run][row / 8][term, high first][k / 32][lane (g, i)][step 2][b0, b1]: row g of the eight
 *
 * plain: b0 has k 16 step + 2i and 2i + 1, b1 those 8 further on. codes (for INT4 and INT8 weights): of k 8i + 4 step
 * .. + 3, b0 has the first and the third, b1 the second and the fourth. Columns behind a leaf's end are 0. */
#define TERMS      3u
#define TERM_BYTES 2048u /* of eight rows of a run */
enum terms_order { TERMS_PLAIN, TERMS_CODES };
struct terms {
    uint8_t *d_terms;
    uint32_t row_tiles;
    uint32_t n; /* terms: TERMS, or 1 for rounded ones */
};
struct terms_args {
    struct input in;
    struct terms to;
    uint32_t first_row; /* which is row 0 of the terms */
    enum terms_order order;
};
#define TERMS_ROWS 1024u /* at once, at most */
cudaError_t queue_terms(cudaStream_t s, const struct terms_args *a, uint32_t rows_bound);

/* The same rows in both forms, of up to TERMS_ROWS. */
struct both_args {
    struct input in;
    struct activations codes;
    struct terms terms;
    enum terms_order order;
};
cudaError_t queue_both(cudaStream_t s, const struct both_args *a, uint32_t rows_bound);

/* Rows of bf16, as a library multiplies them (blas.h): of activations, rounded, and of a panel's BF16 weights.
 *
 *   [row][leaf][run][k / 32][i 0..3][step 2][b0, b1]
 *
 * What lane (g, i) of plain terms has of row g of the eight lies together, so that k have an order of their own within
 * each 32, the same in both. Columns behind a leaf's end are 0. */
struct rows_args {
    struct input in;
    uint8_t *d_to; /* all rows of the plan */
};
cudaError_t queue_rows(cudaStream_t s, const struct rows_args *a, uint32_t rows_bound);
struct unpack_args {
    struct panel w;
    uint32_t first_strip, strips;
    uint8_t *d_to; /* 16 rows a strip */
};
cudaError_t queue_unpack(cudaStream_t s, const struct unpack_args *a);

/* A result as INT8 besides, for the product after it, of whose leaves columns are a multiple of 16: then a strip of
 * outputs is in one run. */
#define NEXT_RUNS_MAX 512u
struct next_codes {
    struct activations to;
    uint32_t leaf_columns, runs; /* of a leaf */
    uint32_t *d_arrived; /* [leaf][run] strips that are there, 0 between kernels; NULL = nobody wants it */
    /* NULL, or [columns] a row that is alone on its way from block to block (next_codes.cuh), 0 between kernels */
    uint32_t *d_words;
};

/* A result that other ranks are to have while it is made: every output is half a word of theirs (exchange.h). */
struct push_view {
    void *words[RANKS_MAX - 1]
               [2];             /* of each other rank, this one's: of an exchange of even and of odd number */
    const uint32_t *d_epoch;    /* the last exchange */
    const uint32_t *d_poisoned; /* there are none any more */
    uint32_t n;                 /* other ranks; 0 = nobody is to have it */
};

struct product_args {
    struct panel w;
    struct activations x;
    /* queue_stream() with `own`: its one row is brought into INT8 by the product, and x is not read */
    struct input in;
    bool own;
    /* queue_stream(): a panel of BF16 that the same kernel multiplies with the same rows, as terms, or with `own` as
     * they are; strips 0 = none */
    struct panel dense;
    struct terms dense_x;
    uint32_t dense_blocks; /* set by whoever queues it */
    const struct k_plan *d_plan;
    uint32_t first_row; /* queue_stream(): a multiple of 16 */
    uint32_t units;     /* set by whoever queues it: strips, or pairs of them */
    bool pair; /* strips u and strips / 2 + u are gate and up of the same outputs: y = silu(gate) * up */
    bool add;  /* y += instead of y = */
    float *d_y;
    uint32_t ldy;
    struct next_codes next; /* queue_stream() of a pair; all rows are in one kernel then */
    /* queue_stream() of all rows that is no pair; ldy is the columns of the exchange */
    struct push_view push;
    struct ahead ahead; /* queue_stream(): what it asks for at its end */
    /* queue_tiles(): sums of the leaf groups of tiles that several blocks share, and a counter for each such tile, 0
     * between kernels; SPLIT_BLOCKS_MAX of both */
    float *d_parts;
    uint32_t *d_counters;
};
#define SPLIT_BLOCKS_MAX 512u /* that share tiles with others in one kernel */

struct device_size { /* what grids are made for */
    uint32_t sms;
    size_t shared_of_sm, shared_of_block; /* the most that a block may have */
    size_t l2;                            /* bytes of the cache that all share */
    size_t once_most;                     /* bytes that a kernel may be told to read once (launch.cuh) */
};
/* y[r][outputs] of up to STREAM_ROWS rows from first_row on, as far as the plan and rows_bound have them. */
#define STREAM_ROWS 16u
cudaError_t queue_stream(
        cudaStream_t s, const struct product_args *a, uint32_t rows_bound, const struct device_size *d);
/* Whether a product may take its row as it is; of a step that has one at most. */
bool stream_can_own(const struct panel *w, const struct input *in, uint32_t rows_bound);
/* Whether the product of w can have product_args.next. */
bool stream_can_round(const struct panel *w, uint32_t rows_bound);
/* Whether a panel can be product_args.dense of w's product; all rows are in one of its kernels then. */
bool stream_can_take(const struct panel *w, const struct panel *dense, uint32_t rows_bound);
/* The same of all rows, of panels that tiles_can() take; activations in whole tiles of TILE_ROWS. */
#define TILE_ROWS  64u
#define TILE_PARTS (64u * TILE_ROWS) /* floats of d_parts that a block fills */
bool tiles_can(const struct panel *w);
cudaError_t queue_tiles(
        cudaStream_t s, const struct product_args *a, uint32_t rows_bound, const struct device_size *d);

/* y[first_row + r][outputs] of up to TERMS_ROWS rows r of terms; a panel of any form, and of rounded x one of
 * form_takes_bf16(). */
static inline bool form_takes_bf16(enum weight_form form) {
    return form != FORM_F16 && form != FORM_F32;
}
struct terms_product_args {
    struct panel w;
    struct terms x;
    const struct k_plan *d_plan;
    struct input in; /* queue_terms_product() with `own`: its one row is brought into terms by the product */
    bool own;        /* and x is not read */
    uint32_t first_row; /* of the terms */
    bool add;           /* y += instead of y = */
    float *d_y;
    uint32_t ldy;
    /* queue_terms_tiles(): TERMS_PARTS sums of tiles that several blocks share, and SPLIT_BLOCKS_MAX counters of such
     * tiles, 0 between kernels */
    float *d_parts;
    uint32_t *d_counters;
};
bool terms_can_own(const struct panel *w, const struct input *in, uint32_t rows_bound);
cudaError_t queue_terms_product(
        cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound, const struct device_size *d);
/* The same for many rows, of panels that terms_tiles_can() take; terms in whole tiles of TILE_ROWS. */
#define TERMS_PARTS (SPLIT_BLOCKS_MAX * 4096u)
bool terms_tiles_can(const struct panel *w);
cudaError_t queue_terms_tiles(
        cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound, const struct device_size *d);
cudaError_t queue_bf16_tiles(/* of rounded x */
        cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound, const struct device_size *d);

/* y[r][n] = silu(both[r][i]) * both[r][n + i] */
struct silu_args {
    const float *d_both;
    const struct k_plan *d_plan;
    float *d_y;
    uint32_t n;
};
cudaError_t queue_silu(cudaStream_t s, const struct silu_args *a, uint32_t rows_bound);

/* Once per device: how much shared memory a block may have there. */
cudaError_t stream_prepare(uint32_t shared_of_block);
cudaError_t tiles_prepare(uint32_t shared_of_block);
cudaError_t terms_prepare(uint32_t shared_of_block);
cudaError_t terms_tiles_prepare(uint32_t shared_of_block);
cudaError_t bf16_tiles_prepare(uint32_t shared_of_block);

#ifdef __cplusplus
}
#endif
