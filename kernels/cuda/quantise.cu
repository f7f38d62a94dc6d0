/* quantise.cu - activations as the kernels of products read them, INT8 or terms of bf16 in fragment order, normalised
 * and reordered before where a linear wants it; and SiLU of products whose gate and up are not one kernel's.
 *
 * The rule is kernels.h's, operation by operation kernels/cpu/isa/body_rows.h and body_codes.h: a run of 128 k of a
 * leaf has the scale max|x| / 127, and no number where x has one that is none; the norm is norm.cuh's. Compiled without
 * fused or approximate arithmetic of the compiler's own (CMakeLists.txt).
 *
 *   quantise  grid (rows, spread): `spread` blocks share the runs of a row, a warp takes a run, a lane four k of it.
 *             Few rows are spread until every warp has one run, which it loads before the norm's sum, so that a row
 *             waits for memory once. Each block takes that sum by itself: a node of its own would cost more. Reads 4
 *             bytes of x (and 4 of the norm) an element, writes 1; all in L2.
 *   terms     the same, but writes 6 bytes an element, or 2.
 *   both      the same, of which both are written.
 *   rows      the same, 2 bytes an element, each row by itself. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rounding.cuh"
#include "kernels/shared/elementary.h"

#define QUANTISE_THREADS NORM_THREADS
#define WARPS            (QUANTISE_THREADS / 32u)
#define BLOCKS_ENOUGH    264u /* more rows than that are not spread: they fill any card */

/* --- a run of a row, in a form; the values are used up --- */

static __device__ __forceinline__ void run_make(
        const struct quantise_args &a, struct run_values &v, uint32_t row, uint32_t run) {
    run_codes_put(a.to, v.x, row, run);
}
static __device__ __forceinline__ void run_make(
        const struct terms_args &a, struct run_values &v, uint32_t row, uint32_t run) {
    run_terms_put(a.to, a.order, v, row, run);
}
static __device__ __forceinline__ void run_make(
        const struct both_args &a, struct run_values &v, uint32_t row, uint32_t run) {
    run_codes_put(a.codes, v.x, row, run);
    run_terms_put(a.terms, a.order, v, row, run);
}
static __device__ __forceinline__ void run_make(
        const struct rows_args &a, struct run_values &v, uint32_t row, uint32_t run) {
    const uint64_t all_runs = a.in.columns / a.in.leaf_columns * a.in.runs;
    uint8_t *d_run = a.d_to + (row * all_runs + run) * (2 * ACTIVATION_RUN);
    run_terms_put(d_run + threadIdx.x % 32 / 8 * 64, 0, 1, TERMS_PLAIN, v);
}

/* --- the kernels --- */

/* All runs of input row first_row + blockIdx.x, to row blockIdx.x. */
template <class A> static __device__ __forceinline__ void row_prepare(const A &a, uint32_t first_row) {
    const struct input &in = a.in;
    const uint32_t row = first_row + blockIdx.x, all_runs = in.columns / in.leaf_columns * in.runs;
    const float *d_x = in.d_x + (uint64_t)row * in.columns;
    uint32_t run = blockIdx.y * WARPS + threadIdx.x / 32;
    struct run_values v = {};
    __shared__ float chains[NORM_CHAINS];
    const uint32_t n_rows = in.d_plan->n_rows;
    if (row > 0 && row >= n_rows) /* behind the last row there may be no memory */
        return;
    if (run < all_runs)
        run_load(in, d_x, run, v);
    const float scale = in.d_norm ? norm_scale(d_x, in.columns, in.eps, chains) : 1.0f;
    if (row >= n_rows) /* the first row, whose memory is there: alone it does not wait to know that it is */
        return;
    while (run < all_runs) {
        if (in.d_norm)
            run_norm(v, scale);
        run_make(a, v, blockIdx.x, run);
        run += gridDim.y * WARPS;
        if (run < all_runs)
            run_load(in, d_x, run, v);
    }
}
static dim3 grid_of(const struct input &in, uint32_t rows) {
    const uint32_t all = (in.columns / in.leaf_columns * in.runs + WARPS - 1) / WARPS,
                   most = (BLOCKS_ENOUGH + rows - 1) / rows;
    return dim3(rows, all < most ? all : most);
}

__global__ void __launch_bounds__(QUANTISE_THREADS) quantise_kernel(const struct quantise_args a) {
    row_prepare(a, 0);
}
cudaError_t queue_quantise(cudaStream_t s, const struct quantise_args *a, uint32_t rows_bound) {
    return K_LAUNCH(quantise_kernel, grid_of(a->in, rows_bound), QUANTISE_THREADS, 0, s, *a);
}
__global__ void __launch_bounds__(QUANTISE_THREADS) terms_kernel(const struct terms_args a) {
    row_prepare(a, a.first_row);
}
cudaError_t queue_terms(cudaStream_t s, const struct terms_args *a, uint32_t rows_bound) {
    return K_LAUNCH(terms_kernel, grid_of(a->in, rows_bound), QUANTISE_THREADS, 0, s, *a);
}
__global__ void __launch_bounds__(QUANTISE_THREADS) both_kernel(const struct both_args a) {
    row_prepare(a, 0);
}
cudaError_t queue_both(cudaStream_t s, const struct both_args *a, uint32_t rows_bound) {
    return K_LAUNCH(both_kernel, grid_of(a->in, rows_bound), QUANTISE_THREADS, 0, s, *a);
}
__global__ void __launch_bounds__(QUANTISE_THREADS) rows_kernel(const struct rows_args a) {
    row_prepare(a, 0);
}
cudaError_t queue_rows(cudaStream_t s, const struct rows_args *a, uint32_t rows_bound) {
    return K_LAUNCH(rows_kernel, grid_of(a->in, rows_bound), QUANTISE_THREADS, 0, s, *a);
}

/* --- SiLU --- */

/* grid (rows, blocks of 256 outputs) */
__global__ void silu_kernel(const struct silu_args a) {
    const uint32_t row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (row >= a.d_plan->n_rows || i >= a.n)
        return;
    const float *d_gate = a.d_both + (uint64_t)row * 2 * a.n;
    a.d_y[(uint64_t)row * a.n + i] = f32_silu(d_gate[i]) * d_gate[a.n + i];
}
cudaError_t queue_silu(cudaStream_t s, const struct silu_args *a, uint32_t rows_bound) {
    return K_LAUNCH(silu_kernel, dim3(rows_bound, (a->n + 255) / 256), 256, 0, s, *a);
}
