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
/* A block whose strips are `first`, first + step, ... below `strips`, 16 outputs each, has stored what they give of one
 * row; by the warp that did it. */
static __device__ __forceinline__ void next_codes_finish_row(
        const struct next_codes &n, const float *d_y, uint32_t first, uint32_t step, uint32_t strips) {
    for (; first < strips; first += 32 * step) {
        __syncwarp();
        for (uint32_t left = next_runs_arrive(n, first, step, strips); left; left &= left - 1) {
            const uint32_t strip = first + ((uint32_t)__ffs((int)left) - 1) * step;
            next_run_round(n, next_run_of(n, strip * STRIP_ROWS), d_y, 0);
        }
    }
}
/* The same of rows[rows][ldy], by all of the block. complete: a word in shared memory that others may still read. */
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
