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
 *   terms     the same, but writes 6 bytes an element, or 2. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/product.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/constants.h"
#include "kernels/shared/elementary.h"

#define QUANTISE_THREADS NORM_THREADS
#define WARPS            (QUANTISE_THREADS / 32u)
#define BLOCKS_ENOUGH    264u /* more rows than that are not spread: they fill any card */
#define ALL_LANES        0xffffffffu

/* Four k of a run as they come from memory: x, and the norm's weights. */
struct run_values {
    float x[4], norm[4];
};
static __device__ __forceinline__ void run_load(
        const struct input &in, const float *d_x, uint32_t run, struct run_values &v) {
    const uint32_t leaf = run / in.runs, k = run % in.runs * ACTIVATION_RUN + threadIdx.x % 32 * 4,
                   at = leaf * in.leaf_columns + k;
    if (!in.d_order && in.columns % 4 == 0 && in.leaf_columns % 4 == 0 && k < in.leaf_columns) {
        *(float4 *)v.x = *(const float4 *)(d_x + at);
        if (in.d_norm)
            *(float4 *)v.norm = load_read_only((const float4 *)(in.d_norm + at));
        return;
    }
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const bool there = k + e < in.leaf_columns;
        const uint32_t from = there && in.d_order ? load_read_only(in.d_order + at + e) : at + e;
        v.x[e] = there ? d_x[from] : 0.0f;
        v.norm[e] = there && in.d_norm ? load_read_only(in.d_norm + from) : 0.0f;
    }
}

/* The same as it enters the product. */
static __device__ __forceinline__ void run_norm(const struct input &in, float scale, struct run_values &v) {
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        v.x[e] = in.d_norm ? v.x[e] * scale * v.norm[e] : v.x[e];
}

/* --- INT8 --- */

/* Four codes, the first in the low byte; highest: bits of the largest |x| of the run. */
static __device__ uint32_t codes_of(const float *x, uint32_t highest, float *ret_scale) {
    const float scale = highest >= 0x7f800000u ? float_of_bits(0x7fc00000u) : float_of_bits(highest) / 127.0f;
    uint32_t codes = 0;
    *ret_scale = scale;
    if (!(scale > 0.0f))
        return 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        float q = x[e] / scale;
        q = -127.0f > q ? -127.0f : q;
        q = 127.0f < q ? 127.0f : q;
        codes |= ((bits_of_float(q + ROUND_MAGIC) - bits_of_float(ROUND_MAGIC)) & 255u) << (8 * e);
    }
    return codes;
}

/* One run of a row: lane l has k 4l .. 4l + 3. */
static __device__ void run_quantise(
        const struct quantise_args &a, const struct run_values &v, uint32_t row, uint32_t run) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t highest = 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t size = bits_of_float(v.x[e]) & 0x7fffffffu;
        highest = size > highest ? size : highest;
    }
    float x_scale;
    const uint32_t codes = codes_of(v.x, __reduce_max_sync(ALL_LANES, highest), &x_scale);
    /* k = 64h + 32s + 8i + 4b: half h, step s of it, lane i of the row's four, register b */
    const uint32_t h = lane / 16, s = lane / 8 % 2, i = lane / 2 % 4, b = lane % 2;
    uint8_t *d_tile = a.to.d_codes + ((uint64_t)run * a.to.row_tiles + row / 8) * 1024;
    *(uint32_t *)(d_tile + h * 512 + row % 8 * 64 + i * 16 + s * 8 + b * 4) = codes;
    if (lane == 0)
        a.to.d_scales[(uint64_t)run * a.to.row_tiles * 8 + row] = x_scale;
}

/* --- terms --- */

/* Takes the upper 8 bits of x's fraction off as a bf16, in the upper half of the result; what is no number stays
 * none. */
static __device__ __forceinline__ uint32_t term_off(float *x) {
    const uint32_t bits = bits_of_float(*x), term = bits & 0xffff0000u, size = bits & 0x7fffffffu;
    *x = size < 0x7f800000u ? *x - float_of_bits(term) : 0.0f;
    return size > 0x7f800000u ? term | 0x00400000u : term;
}
static __device__ void run_quantise(
        const struct terms_args &a, struct run_values &v, uint32_t row, uint32_t run) {
    const uint32_t lane = threadIdx.x % 32;
    uint8_t *d_tile = a.to.d_terms + ((uint64_t)run * a.to.row_tiles + row / 8) * (a.to.n * TERM_BYTES) +
                      lane / 8 * 512 + row % 8 * 64;
#pragma unroll
    for (uint32_t place = 0; place < TERMS && place < a.to.n; place++) {
        uint8_t *d_term = d_tile + place * TERM_BYTES;
        uint32_t t[4];
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            t[e] = a.to.n == 1 ? (uint32_t)bf16_of(v.x[e]) << 16 : term_off(&v.x[e]);
        if (a.order == TERMS_CODES) { /* k = 32 .. + 8i + 4s */
            uint2 both;
            both.x = t[0] >> 16 | t[2];
            both.y = t[1] >> 16 | t[3];
            *(uint2 *)(d_term + lane / 2 % 4 * 16 + lane % 2 * 8) = both;
        } else { /* k = 32 .. + 16s + 8b + 2i, i and i + 1 */
            uint8_t *d_pair = d_term + lane % 2 * 32 + lane / 4 % 2 * 8 + lane / 2 % 2 * 4;
            *(uint32_t *)d_pair = t[0] >> 16 | t[1];
            *(uint32_t *)(d_pair + 16) = t[2] >> 16 | t[3];
        }
    }
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
        run_norm(in, scale, v);
        run_quantise(a, v, blockIdx.x, run);
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
