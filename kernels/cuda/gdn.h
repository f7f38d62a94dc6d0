/* gdn.h - one Gated DeltaNet mixer on the device: what the kernels are given, and the functions that queue them.
 *
 * Between gdn.c (C) and gdn.cu, gdn_blocks.cu. Meaning, and the order of every operation, are those of kernels/cpu
 * (gdn.c, isa/body_gdn.h): the bits are equal. Entries of up to GDN_LONG rows take a kernel of gdn.cu alone, those of
 * one row another way than those of more; longer ones the kernels of gdn_blocks.cu. A row's bits do not depend on
 * which. */
#pragma once

#include "kernels/cuda/product.h"
#include "kernels/cuda/views.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GDN_LONG 64u
/* Blocks that one of n > GDN_LONG rows has at most: n * 7 / 64, rounded down, is never fewer. */
#define GDN_BLOCKS_OF(rows) (((rows)*7u + 63) / 64)

/* Heads and taps that gdn_row.cuh is for. */
#define GDN_ROW_DIM  128u
#define GDN_ROW_TAPS 4u
K_INLINE bool gdn_has_row(const struct k_shape *h) {
    return h->gdn_k_dim == GDN_ROW_DIM && h->gdn_v_dim == GDN_ROW_DIM && h->conv_kernel == GDN_ROW_TAPS;
}

/* x % rows in three instructions: x below 2^27, rows 2 to 31. */
struct ring {
    uint32_t rows, inverse;
};
K_INLINE struct ring ring_of(uint32_t rows) {
    struct ring r;
    r.rows = rows;
    r.inverse = (uint32_t)((UINT64_C(1) << 32) / rows + 1);
    return r;
}
K_INLINE uint32_t ring_at(struct ring r, uint32_t x) {
    return x - (uint32_t)((uint64_t)x * r.inverse >> 32) * r.rows;
}

/* What gdn_blocks.cu keeps between its kernels, of blocks of long entries: block n of the entry whose rows begin at r
 * is GDN_BLOCKS_OF(r) + n. Positions i, j are counted in the block; what is not there is 0. */
struct gdn_scratch {
    float *d_x;     /* [block][Hk][dk][q of 16 i | k of 16 j], normalised */
    float *d_dots;  /* [block][Hk][q_i . k_j of 16 i, 16 j | k_i . k_j of the same] */
    float *d_gates; /* [block][Hv][G of 16 i | beta of 16 i] */
};

struct gdn_args {
    struct pool_view pool;
    struct batch_view batch;
    struct k_gdn_weights w; /* on the device */
    const float *d_in;
    float *d_out;
    uint32_t layer;
    struct ring rows, window; /* of a slot; rows 0: its pool takes no drafts */
    uint32_t rows_most;       /* of an entry for gdn.cu; above it gdn_blocks.cu takes it */
    struct gdn_scratch scratch;
    struct activations codes; /* of one row: d_out for the product after it; d_codes NULL = not wanted */
};

/* Largest shared memory of a block, told once for a device. */
/* Whether a step of so many rows can leave its result as gdn_args.codes. */
bool gdn_can_round(const struct k_shape *h, uint32_t rows_bound, const struct device_size *d);
cudaError_t gdn_prepare(uint32_t shared_of_block);
cudaError_t queue_gdn_rows(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d);
cudaError_t gdn_blocks_prepare(uint32_t shared_of_block);
cudaError_t queue_gdn_blocks(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d);

/* What a step of a pool that takes drafts begins with: in all layers, S0 takes the GDN block that the slot's accepted
 * rows have completed, if there is one. */
struct fold_args {
    struct pool_view pool;
    struct batch_view batch;
    struct ring rows;
};
cudaError_t queue_gdn_fold(cudaStream_t s, const struct fold_args *a, uint32_t entries_bound);

#ifdef __cplusplus
}
#endif
