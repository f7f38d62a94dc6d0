/* terms_input.cuh - activations as terms, as warps read them that have a leaf of up to 16 rows: Inputs of terms.cuh. */
#pragma once

#include "kernels/cuda/own_row.cuh"
#include "kernels/cuda/terms.cuh"

/* ASKED: loaded before the slot's weights are waited for; otherwise when they are multiplied, which needs fewer
 * registers. */
template <int FORM, int TILES, int TERMS_OF_X, bool ASKED> struct terms_input {
    static constexpr int X = TERMS_OF_X;
    static constexpr int UNROLL = TILES == 1 || X == 1 || FORM == FORM_BF16 ? TERMS : 1;
    const uint4 *lane[TILES]; /* this lane's fragments of a slot, of each eight rows */
    uint4 asked[X][weight<FORM>::PAIRS];
    __device__ __forceinline__ const uint4 *place(uint32_t n, uint32_t term, uint32_t pair) const {
        return lane[n] + term * (TERM_BYTES / 16) + pair * 32;
    }
    __device__ __forceinline__ uint4 load(uint32_t n, uint32_t term, uint32_t pair) const {
        return ASKED ? asked[term][pair] : load_read_only(place(n, term, pair));
    }
};
template <int FORM, int TILES, int X, bool ASKED>
static __device__ __forceinline__ void input_seek(terms_input<FORM, TILES, X, ASKED> &in,
        const struct terms &x, uint32_t run, uint32_t first_pair, uint32_t first_row, uint32_t rows) {
    static_assert(!ASKED || TILES == 1, "of eight rows");
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) {
        const uint32_t left = rows > n * 8 ? rows - n * 8 : 0, tile = first_row / 8 + (left ? n : 0);
        /* A row that is not there reads the tile's first one: its column is not stored. */
        in.lane[n] = (const uint4 *)(x.d_terms + ((uint64_t)run * x.row_tiles + tile) * (X * TERM_BYTES)) +
                     first_pair * 32 + (lane / 4 < left ? lane : lane % 4);
    }
#pragma unroll
    for (uint32_t term = 0; ASKED && term < X; term++)
#pragma unroll
        for (uint32_t pair = 0; pair < weight<FORM>::PAIRS; pair++)
            in.asked[term][pair] = load_read_only(in.place(0, term, pair));
    if (ASKED)
        ask_above();
}

/* The same of a row that is alone; it is every lane's, and only column 0 is stored. */
template <int TERMS_OF_X> struct own_input {
    static constexpr int X = TERMS_OF_X;
    static constexpr int UNROLL = TERMS;
    const uint8_t *lane;
    __device__ __forceinline__ uint4 load(uint32_t n, uint32_t term, uint32_t pair) const {
        (void)n;
        return *(const uint4 *)(lane + term * OWN_TERM_BYTES + pair * 64);
    }
};
