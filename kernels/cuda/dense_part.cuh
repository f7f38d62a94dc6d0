/* dense_part.cuh - the small dense part of a linear whose large part is INT4 or INT8, multiplied by blocks of the large
 * part's kernel (stream.cu): a kernel of its own would take a place in the stream, or a branch beside it.
 *
 * The sums are those of terms.cu, to the bit: a block has 8 / leaves strips, a warp a leaf of one. Weights are asked
 * for at once and read where they lie: a ring would take an SM's shared memory from the large part's blocks.
 *
 * Bytes moved: the part once, 6 bytes an element of x per strip from L2 (a row that is alone: 4, and all of it), 4
 * bytes per output. */
#pragma once

#include "kernels/cuda/terms_input.cuh"

#define DENSE_WARPS  8u
#define DENSE_BLOCKS 16u /* at most: few beside those of any card */

/* Dynamic shared memory of a block: the row as terms, where it makes them, and where leaves meet. */
static inline size_t dense_shared_bytes(const struct panel &w, uint32_t rows, bool own) {
    return DENSE_WARPS * ((own ? w.runs * own_terms<TERMS>::RUN_BYTES : 0) + rows * 16 * sizeof(float));
}
static inline uint32_t dense_blocks_of(const struct panel &w) {
    const uint32_t parts = DENSE_WARPS / w.leaves;
    return (w.strips + parts - 1) / parts;
}

/* Of a leaf of a strip: where this lane's codes are, and that all of them come to L2. */
static __device__ __forceinline__ const uint8_t *dense_codes(
        const struct panel &w, uint32_t leaf, uint32_t strip) {
    typedef weight<FORM_BF16> form;
    return w.d_codes + ((uint64_t)leaf * w.strips + strip) * w.runs * (4 / form::PAIRS * form::BYTES) +
           threadIdx.x % 32 * 16;
}
static __device__ __forceinline__ void dense_ask(const struct panel &w, uint32_t leaf, uint32_t strip) {
    const uint32_t lane = threadIdx.x % 32, bytes = slots_of_leaf<FORM_BF16>(w) * weight<FORM_BF16>::BYTES;
    const uint8_t *codes = dense_codes(w, leaf, strip) - lane * 16;
    for (uint32_t at = lane * 128; at < bytes; at += 32 * 128)
        ask_for_line(codes + at);
}
/* A warp's leaf of a strip, of up to 8 * TILES rows that are terms in d_x, or of the one row in `own`. */
template <int TILES, enum source SOURCE>
static __device__ __forceinline__ void dense_leaf(const struct panel &w, uint32_t leaf, uint32_t strip,
        const struct terms &x, const own_terms<TERMS> &own, uint32_t rows, sums<1, TILES> &ret) {
    typedef weight<FORM_BF16> form;
    const uint32_t lane = threadIdx.x % 32, n_slots = slots_of_leaf<FORM_BF16>(w);
    const uint8_t *codes = dense_codes(w, leaf, strip);
#pragma unroll(SOURCE == SOURCE_READY ? 1 : 2) /* as many as registers are for */
    for (uint32_t at = 0; at < n_slots; at++, codes += form::BYTES) {
        const uint32_t run = at * form::PAIRS / 4, pair = at * form::PAIRS % 4;
        if constexpr (SOURCE == SOURCE_READY) {
            terms_input<FORM_BF16, TILES, TERMS, /* ASKED= */ false> in;
            input_seek(in, x, leaf * w.runs + run, pair, /* first_row= */ 0, rows);
            slot_dense<FORM_BF16>(codes, in, ret);
        } else {
            const own_input<TERMS> in = {own.terms + run * own.RUN_BYTES + pair * 64 + lane % 4 * 16};
            slot_dense<FORM_BF16>(codes, in, ret);
        }
    }
}
