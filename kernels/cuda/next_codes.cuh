/* next_codes.cuh - a product's result as the INT8 activations of the product after it, made by the blocks that made the
 * result: it saves a kernel between the two.
 *
 * A run of that product is of several strips, hence of several blocks. Each counts the strips that it has stored, when
 * all of its own are; who completes a run rounds it, a warp a row. A block waits for the counters once, at its end.
 * Bytes moved: 4 bytes an element read again from L2, 1 written. */
#pragma once

#include "kernels/cuda/product.h"
#include "kernels/cuda/rounding.cuh"

/* The run that output `column` is in. */
struct next_run {
    uint32_t run, first, columns; /* first: output */
};
static __device__ __forceinline__ struct next_run next_run_of(const struct next_codes &n, uint32_t column) {
    const uint32_t leaf = column / n.leaf_columns, run = column % n.leaf_columns / ACTIVATION_RUN,
                   left = n.leaf_columns - run * ACTIVATION_RUN;
    struct next_run r;
    r.run = leaf * n.runs + run;
    r.first = leaf * n.leaf_columns + run * ACTIVATION_RUN;
    r.columns = left < ACTIVATION_RUN ? left : ACTIVATION_RUN;
    return r;
}
/* Counts the strip with outputs from `column` on, which are stored; whether it was the last of its run. */
static __device__ __forceinline__ bool next_run_arrive(const struct next_codes &n, uint32_t column) {
    const struct next_run r = next_run_of(n, column);
    if (count_by_blocks(n.d_arrived + r.run) + 1 != r.columns / STRIP_ROWS)
        return false;
    n.d_arrived[r.run] = 0; /* for the next kernel */
    return true;
}
static __device__ __forceinline__ void next_run_round(
        const struct next_codes &n, const struct next_run &r, const float *d_y, uint32_t row) {
    const uint32_t k = threadIdx.x % 32 * 4;
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k < r.columns)
        v = load_of_others((const float4 *)(d_y + r.first + k));
    const float x[4] = {v.x, v.y, v.z, v.w};
    run_codes_put(n.to, x, row, r.run);
}

/* Of 32 strips from `first` on that are not behind the last, those that complete a run: a bit each. By a warp. */
static __device__ __forceinline__ uint32_t next_runs_arrive(
        const struct next_codes &n, uint32_t first, uint32_t step, uint32_t strips) {
    const uint32_t strip = first + threadIdx.x % 32 * step;
    return __ballot_sync(0xffffffffu, strip < strips && next_run_arrive(n, strip * STRIP_ROWS));
}
/* One row goes from block to block by words that say themselves whether they are there, so that nobody waits until his
 * outputs are seen by all before he counts, nor with loading until he has counted. A word is the output's bits,
 * negated: 0 is none (bits that would be are no number: then another one). */
static __device__ __forceinline__ void next_word_put(const struct next_codes &n, uint32_t column, float y) {
    const uint32_t word = ~bits_of_float(y);
    store_word(n.d_words + column, word ? word : ~0x7fffffffu);
}
static __device__ __forceinline__ bool all_there(const uint4 &words) {
    return words.x && words.y && words.z && words.w;
}
/* words: this lane's four, of what has come so far. */
static __device__ __forceinline__ void next_words_round(
        const struct next_codes &n, const struct next_run &r, uint4 words) {
    const uint32_t k = threadIdx.x % 32 * 4;
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k < r.columns) {
        uint32_t *d_words = n.d_words + r.first + k;
        while (!all_there(words)) /* they are on their way */
            words = load_words(d_words);
        *(uint4 *)d_words = uint4{0, 0, 0, 0};
        x[0] = float_of_bits(~words.x);
        x[1] = float_of_bits(~words.y);
        x[2] = float_of_bits(~words.z);
        x[3] = float_of_bits(~words.w);
    }
    __syncwarp();
    run_codes_put(n.to, x, /* row= */ 0, r.run);
}
static __device__ __forceinline__ struct next_run next_run_of_lane(
        const struct next_run &mine, uint32_t lane) {
    struct next_run r;
    r.run = __shfl_sync(0xffffffffu, mine.run, (int)lane);
    r.first = __shfl_sync(0xffffffffu, mine.first, (int)lane);
    r.columns = __shfl_sync(0xffffffffu, mine.columns, (int)lane);
    return r;
}
/* A block whose strips are `first`, first + step, ... below `strips`, 16 outputs each, has put the words of one row; by
 * a warp. */
static __device__ __forceinline__ void next_codes_finish_row(
        const struct next_codes &n, uint32_t first, uint32_t step, uint32_t strips) {
    constexpr uint32_t AT_ONCE = 4;
    const uint32_t lane = threadIdx.x % 32;
    for (; first < strips; first += AT_ONCE * step) {
        const uint32_t strip = first + lane % AT_ONCE * step;
        const bool has_strip = lane < AT_ONCE && strip < strips;
        const struct next_run mine = next_run_of(n, (strip < strips ? strip : first) * STRIP_ROWS);
        const uint32_t before = has_strip ? atomicAdd(n.d_arrived + mine.run, 1u) : 0;
        uint4 words[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const struct next_run r = next_run_of_lane(mine, i);
            words[i] = lane * 4 < r.columns ? load_words(n.d_words + r.first + lane * 4) : uint4{1, 1, 1, 1};
        }
        const bool last = has_strip && before + 1 == mine.columns / STRIP_ROWS;
        if (last)
            n.d_arrived[mine.run] = 0; /* for the next kernel */
        const uint32_t complete = __ballot_sync(0xffffffffu, last);
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            if (complete >> i & 1)
                next_words_round(n, next_run_of_lane(mine, i), words[i]);
    }
}
/* The same of rows[rows][ldy], which are stored; by all of the block. complete: a word in shared memory that others may
 * still read. */
static __device__ __forceinline__ void next_codes_finish(const struct next_codes &n, const float *d_y,
        uint32_t ldy, uint32_t rows, uint32_t first, uint32_t step, uint32_t strips, uint32_t *complete) {
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (; first < strips; first += 32 * step) {
        __syncthreads();
        if (warp == 0) {
            const uint32_t all = next_runs_arrive(n, first, step, strips);
            if (threadIdx.x == 0)
                *complete = all;
        }
        __syncthreads();
        uint32_t turn = warp;
        for (uint32_t left = *complete; left; left &= left - 1) {
            const uint32_t strip = first + ((uint32_t)__ffs((int)left) - 1) * step;
            for (; turn < rows; turn += warps)
                next_run_round(n, next_run_of(n, strip * STRIP_ROWS), d_y + (uint64_t)turn * ldy, turn);
            turn -= rows;
        }
    }
}
