/* terms_input.cuh - activations as terms, as warps read them that have a leaf of up to 16 rows: Inputs of terms.cuh. */
#pragma once

#include "kernels/cuda/own_row.cuh"
#include "kernels/cuda/terms.cuh"

template <int TILES, int TERMS_OF_X> struct terms_input {
    static constexpr int X = TERMS_OF_X;
    const uint4 *lane[TILES]; /* this lane's fragments of a slot, of each eight rows */
    __device__ __forceinline__ uint4 load(uint32_t n, uint32_t term, uint32_t pair) const {
        return load_read_only(lane[n] + term * (TERM_BYTES / 16) + pair * 32);
    }
};
template <int TILES, int X>
static __device__ __forceinline__ void input_seek(terms_input<TILES, X> &in, const struct terms &x,
        uint32_t run, uint32_t first_pair, uint32_t first_row, uint32_t rows) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) {
        const uint32_t left = rows > n * 8 ? rows - n * 8 : 0, tile = first_row / 8 + (left ? n : 0);
        /* A row that is not there reads the tile's first one: its column is not stored. */
        in.lane[n] = (const uint4 *)(x.d_terms + ((uint64_t)run * x.row_tiles + tile) * (X * TERM_BYTES)) +
                     first_pair * 32 + (lane / 4 < left ? lane : lane % 4);
    }
}

/* The same of a row that is alone; it is every lane's, and only column 0 is stored. */
struct own_input {
    static constexpr int X = TERMS;
    const uint8_t *lane;
    __device__ __forceinline__ uint4 load(uint32_t n, uint32_t term, uint32_t pair) const {
        (void)n;
        return *(const uint4 *)(lane + term * OWN_TERM_BYTES + pair * 64);
    }
};
