/* cuda_mma.h - the packed layout "cuda-mma-1": weights as the A operand of mma.sync.m16n8k16, in host code.
 *
 * Called by who makes packed files for GPUs, by the loader of kernels/cuda, and by tests; it needs no CUDA. Memory is
 * the caller's. One packing serves every tensor-parallel size, as with k_tiles: a row-parallel shard takes whole
 * leaves, a column-parallel one whole strips.
 *
 * A matrix is 8 leaves of K/8 columns; a leaf is strips of 16 rows; a strip is tiles of 16 rows x 64 k, counted from
 * the leaf's first column. Rows are padded to 16 with zero bytes; a leaf's columns are padded to 64 with zeros or,
 * where quantised, with the code that is the zero of the leaf's last group: x must be 0 there. Four arrays follow one
 * another, each beginning at a multiple of 256 bytes:
 *
 *   codes      [leaf][strip][tile][tile bytes]
 *   scales     [leaf][strip][slot][16 rows]    quantised, in the dtype of k_tiles.scale
 *   zeros      [leaf][strip][slot][16 rows]    u8, if there are zeros
 *   minimums   [leaf][strip][slot][16 rows]    f32, if there are minimums
 *
 * Slot s of a leaf is the weights' group (first column of the leaf / group) + s of the full K: a group that a leaf's
 * end cuts is in both. Every leaf has as many slots as the one that touches most groups; those left over are 0.
 *
 * Inside a tile. mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16") wants of A, 16 rows x 16 k, in lane t,
 * with g = t >> 2 and i = t & 3:
 *
 *   a0 a1   row g       k = 2i, 2i + 1              a4 a5   row g       k = 2i + 8, 2i + 9
 *   a2 a3   row g + 8   k = 2i, 2i + 1              a6 a7   row g + 8   k = 2i + 8, 2i + 9
 *
 * A tile holds four such steps, step j being k = 16j .. 16j + 15 of the tile. Bytes of a lane are consecutive, so that
 * one 16-byte load of 32 lanes is one coalesced access of 512 bytes:
 *
 *   INT4   512 bytes   [lane][4 words]             word j is step j; a(2p + h) is nibble p + 4h, nibble 0 lowest:
 *                                                  (word >> 4p) & 0x000f000f is the pair a(2p), a(2p + 1)
 *   INT8,  1024 bytes  [j / 2][lane][j % 2][2 words]   word v holds a(4v) .. a(4v + 3); a(4v + 2p + h) is byte p + 2h,
 *   FP8                                            byte 0 lowest: (word >> 8p) & 0x00ff00ff is a pair
 *   BF16,  2048 bytes  [j][lane][8 values]         a0 .. a7, the four registers of the instruction
 *   F16
 *
 * Words are little-endian. INT8 codes are unsigned, as in quant.h. FP32 matrices have no such form (-ENOTSUP). */
#pragma once

#include "kernels/kernels.h"

#define CUDA_MMA_LAYOUT "cuda-mma-1"
#define CUDA_MMA_ROWS   16u
#define CUDA_MMA_K      64u

struct cuda_mma_plan { /* where things are; a function of the description alone */
    uint32_t strips, leaf_columns;
    uint32_t tiles; /* of one leaf of one strip */
    uint32_t slots; /* groups of one leaf of one strip; 0 for dense matrices */
    uint32_t tile_bytes, scale_bytes;
    size_t scales_at, zeros_at, minimums_at; /* codes are at 0 */
    size_t bytes;
};

/* t as k_tiles_describe() fills it; its data are not looked at. -ENOTSUP: FP32; -EINVAL: columns do not divide by 8. */
int cuda_mma_plan(const struct k_tiles *t, struct cuda_mma_plan *ret, struct error *e);

/* Packs strips [first, first + n) of a whole matrix into `to`, plan.bytes long and zeroed: ranges of strips may be
 * packed by different threads. order as in k_tiles_pack(). */
void cuda_mma_pack(const struct cuda_mma_plan *p, const struct k_tiles *t, const struct k_matrix_view *whole,
        const uint32_t *order, uint32_t first, uint32_t n, void *to);

/* The other way: one element of packed data. */
uint8_t cuda_mma_code(const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column);
uint16_t cuda_mma_dense(
        const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column);
struct quant_group cuda_mma_group(
        const struct cuda_mma_plan *p, const struct k_tiles *t, uint32_t row, uint32_t column);
