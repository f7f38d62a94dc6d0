/* cuda_mma.h - the packed layout "cuda-mma-2": weights as the A operand of tensor-core instructions.
 *
 * For who writes a CUDA kernel: all bytes are said here. `extern const struct k_layout k_layout_cuda_mma` (layout.h)
 * makes them; cuda_mma_plan() says where the arrays are. One packing serves every tensor-parallel size: a row-parallel
 * shard takes whole leaves, a column-parallel one whole strips.
 *
 * The matrix is 8 leaves of K/8 columns; rows are in strips of 16 (the last one padded); the columns of a leaf are
 * runs of 128 k counted from the leaf's first column (the last one padded). What pads is zero bytes: x must be 0 (or
 * finite and its scale anything) in padded columns, and padded rows are not stored. Up to four arrays follow one
 * another, each beginning at a multiple of 256 bytes:
 *
 *   codes      [leaf][strip][run][run bytes]
 *   scales     [leaf][strip][slot][g 0..7][2]   quantised; in the file's dtype (k_tiles.scale): F32, BF16 or F16
 *   zeros      [leaf][strip][slot][g 0..7][2]   u8, if there are zeros: 0..15 or 0..255, as in quant.h
 *   minimums   [leaf][strip][slot][g 0..7][2]   f32, if there are minimums
 *
 * [g][2] are rows g and g + 8 of the strip: what a lane needs is one aligned load. Slot s of a leaf is its segment s
 * (kernels/shared/segments.h): a segment ends where the weights' group (counted in the full K), a run of 128, or the
 * leaf ends, so the fold over segments takes slots in order, each with the run's activation scale. A group longer than
 * a run is repeated in each of its runs. Where the group g divides 128 and every leaf begins a group, run r has the
 * slots r * 128/g .. + 128/g - 1, also in a padded run (there 0); a group of a multiple of 128 that leaves begin has
 * one slot a run. In general every leaf has `slots` slots, as many as the leaf that has most segments; those left over
 * are 0.
 *
 * Lane t of a warp has g = t >> 2 and i = t & 3. Words are little-endian; bits and bytes are counted from the lowest.
 * In every form one 16-byte load of 32 lanes is one coalesced access of 512 bytes.
 *
 *   INT4   1024 bytes a run: [half h][lane][4 words], for mma.m16n8k32 with s8 operands: steps j = 0..3 of 32 k, of
 *          which the lane owns k 32j + 8i .. 32j + 8i + 7 (any order of k gives the same sum, an exact integer).
 *            word 0   row g      of step 2h          word 2   row g      of step 2h + 1
 *            word 1   row g + 8  of step 2h          word 3   row g + 8  of step 2h + 1
 *          Byte b of a word holds k 8i + b in its low and k 8i + 4 + b in its high nibble, each as code ^ 8, the two's
 *          complement of code - 8. Registers, holding 16 (code - 8): a0 = w0 << 4 & 0xf0f0f0f0, a1 = w1 << 4 & the
 *          same, a2 = w0 & 0xf0f0f0f0, a3 = w1 & the same; the B operand's register 0 has x of k 8i .. 8i + 3, its
 *          register 1 x of 8i + 4 .. 8i + 7. The same words serve bf16 m16n8k16: (w & 0x000f000f) ^ 0x43084308 is the
 *          pair 128 + code of k 8i and 8i + 2, w >> 8 that of 8i + 1 and 8i + 3, w >> 4 and w >> 12 four k further on.
 *   INT8   2048 bytes a run: [step j][lane][4 words], for mma.m16n8k32 with s8 operands, k owned as above. The words
 *          are registers a0 .. a3: row g k 8i .. 8i + 3, row g + 8 k 8i .. 8i + 3, row g k 8i + 4 .. 8i + 7, row g + 8
 *          the same; each byte is code ^ 128, the two's complement of code - 128.
 *   FP8    2048 bytes a run: [pair p][lane][step 2p, 2p + 1][2 words], for bf16 m16n8k16: 8 steps of 16 k. Word v of a
 *          step holds a(4v) .. a(4v + 3) of the fragment below, a(4v + 2q + h) in byte q + 2h: w << 8 & 0xff00ff00 are
 *          the pair a(4v), a(4v + 1) as the high bytes of halves, w & 0xff00ff00 the pair a(4v + 2), a(4v + 3).
 *   BF16,  4096 bytes a run: [step of 16 k][lane][a0 .. a7], the four registers of mma.m16n8k16.
 *   F16
 *   F32    8192 bytes a run: [step of 16 k][half h][lane][a(4h) .. a(4h + 3)], of the same fragment.
 *
 * The fragment of m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
 *
 *   a0 a1   row g       k = 2i, 2i + 1              a4 a5   row g       k = 2i + 8, 2i + 9
 *   a2 a3   row g + 8   k = 2i, 2i + 1              a6 a7   row g + 8   k = 2i + 8, 2i + 9 */
#pragma once

#include "kernels/layout/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_mma_plan { /* where things are; a function of the description alone */
    uint32_t strips, leaf_columns;
    uint32_t runs;  /* of one leaf of one strip */
    uint32_t slots; /* of one leaf of one strip; 0 for dense matrices */
    uint32_t run_bytes, scale_bytes;
    size_t scales_at, zeros_at, minimums_at; /* codes are at 0 */
    size_t bytes;
};

/* t is what k_layout_cuda_mma.check() let through. */
struct cuda_mma_plan cuda_mma_plan(const struct k_tiles *t);

#ifdef __cplusplus
}
#endif
