/* own_row.cuh - a row that is alone, brought into the form of a product by every block that multiplies it, for
 * stream.cu and terms.cu: while its first weights are on their way. It saves a kernel before the product.
 *
 * A warp makes the leaf that it multiplies. Reads 4 bytes of x an element, and 4 of the norm: all of the row in every
 * block with a norm, the leaf otherwise; from L2, and from L1 what another of the SM's blocks has read. */
#pragma once

#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rounding.cuh"

/* Where the activations come from: they are there in their form; or the one row as it is, or after its norm; or they
 * are there, and come beside the weights (terms.cu). */
enum source { SOURCE_READY, SOURCE_ROW, SOURCE_NORM, SOURCE_RING };
static __host__ __device__ constexpr bool source_is_own(enum source s) {
    return s == SOURCE_ROW || s == SOURCE_NORM;
}

/* One leaf of the row as INT8, in shared memory: [run][half][lane i of a row's four][16], and [run]. */
#define OWN_CODES_BYTES 128u /* of a run */
struct own_codes {
    uint8_t *codes;
    float *scales;
    __device__ __forceinline__ void put(uint32_t run, struct run_values &v) const {
        const uint32_t lane = threadIdx.x % 32;
        float scale;
        *(uint32_t *)(codes + run * OWN_CODES_BYTES + lane / 16 * 64 + code_place(lane)) =
                run_codes_of(v.x, &scale);
        if (lane == 0)
            scales[run] = scale;
    }
};
static __host__ __device__ __forceinline__ uint32_t own_codes_bytes(uint32_t runs) { /* of a leaf */
    return runs * OWN_CODES_BYTES + ((runs * (uint32_t)sizeof(float) + 15) & ~15u);
}

/* The same as N terms: [run][term][k / 32][lane i of a row's four][16]. */
#define OWN_TERM_BYTES 256u /* of a run */
template <int N> struct own_terms {
    static constexpr uint32_t RUN_BYTES = N * OWN_TERM_BYTES;
    uint8_t *terms;
    __device__ __forceinline__ void put(uint32_t run, struct run_values &v) const {
        run_terms_put(terms + run * RUN_BYTES + threadIdx.x % 32 / 8 * 64, OWN_TERM_BYTES, N, TERMS_PLAIN, v);
    }
};

/* This lane's four values from k on, which no leaf ends within; 0 behind its end. */
static __device__ __forceinline__ void four_load(
        float *to, const float *d_leaf, uint32_t k, uint32_t leaf_columns) {
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k < leaf_columns)
        v = load_read_only((const float4 *)(d_leaf + k));
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}

/* What a norm waits for, asked for ahead of the weights, which are many: its sum's elements, and that its own weights,
 * which nobody has used since the last token, come to L2. */
static __device__ __forceinline__ void own_norm_ask(
        const struct input &in, uint32_t leaf, struct norm_batch &asked) {
    const float *d_norm = in.d_norm + leaf * in.leaf_columns;
    for (uint32_t k = threadIdx.x % 32 * 32; k < in.leaf_columns; k += 32 * 32)
        ask_for_line(d_norm + k);
    norm_ask(in.d_x, in.columns, threadIdx.x, asked);
}
/* Leaf `leaf` of in.d_x, by this warp; with NORM all of the block call it, and `chains` is [NORM_CHAINS] of theirs. A
 * batch of runs waits for memory once. */
template <bool NORM, class Form>
static __device__ __forceinline__ void own_leaf_make(
        const struct input &in, uint32_t leaf, const Form &to, float *chains, struct norm_batch &asked) {
    constexpr uint32_t BATCH = 5; /* runs: 640 columns, 5120 in 8 leaves */
    const uint32_t lane = threadIdx.x % 32, first_column = leaf * in.leaf_columns;
    const float chain = NORM ? norm_chain(in.d_x, in.columns, asked) : 0.0f;
    float scale = 1.0f;
    for (uint32_t first = 0; first < in.runs; first += BATCH) {
        struct run_values v[BATCH];
#pragma unroll
        for (uint32_t n = 0; NORM && n < BATCH; n++)
            four_load(v[n].norm, in.d_norm + first_column, (first + n) * ACTIVATION_RUN + lane * 4,
                    in.leaf_columns);
#pragma unroll
        for (uint32_t n = 0; n < BATCH; n++)
            four_load(
                    v[n].x, in.d_x + first_column, (first + n) * ACTIVATION_RUN + lane * 4, in.leaf_columns);
        if (NORM && first == 0)
            scale = norm_of_chains(chain, in.columns, in.eps, chains);
#pragma unroll
        for (uint32_t n = 0; n < BATCH; n++) {
            if (first + n >= in.runs)
                break;
            if (NORM)
                run_norm(v[n], scale);
            to.put(first + n, v[n]);
        }
    }
    __syncwarp();
}
/* Whether a row can be loaded like that. */
static inline bool own_row_can(const struct input &in, uint32_t rows_bound) {
    return rows_bound == 1 && !in.d_order && in.columns % 4 == 0 && in.leaf_columns % 4 == 0;
}
