/* quantise.cu - activations as INT8 in fragment order, normalised and reordered before where a linear wants it; and
 * SiLU of products whose gate and up have no form in common.
 *
 * The rule is kernels.h's, operation by operation kernels/cpu/isa/body_rows.h and body_codes.h: a run of 128 k of a
 * leaf has the scale max|x| / 127, and no number where x has one that is none; the norm is norm.cuh's. Compiled without
 * fused or approximate arithmetic of the compiler's own (CMakeLists.txt).
 *
 *   quantise  grid (rows, spread): `spread` blocks share the runs of a row, a warp takes a run, a lane four k of it.
 *             Few rows are spread until every warp has one run, which it loads before the norm's sum, so that a row
 *             waits for memory once. Each block takes that sum by itself: a node of its own would cost more. Reads 4
 *             bytes of x (and 4 of the norm) an element, writes 1; all in L2. */
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
        const struct quantise_args &a, const float *d_x, uint32_t run, struct run_values &v) {
    const uint32_t leaf = run / a.runs, k = run % a.runs * ACTIVATION_RUN + threadIdx.x % 32 * 4,
                   at = leaf * a.leaf_columns + k;
    if (!a.d_order && a.columns % 4 == 0 && a.leaf_columns % 4 == 0 && k < a.leaf_columns) {
        *(float4 *)v.x = *(const float4 *)(d_x + at);
        if (a.d_norm)
            *(float4 *)v.norm = load_read_only((const float4 *)(a.d_norm + at));
        return;
    }
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const bool there = k + e < a.leaf_columns;
        const uint32_t from = there && a.d_order ? load_read_only(a.d_order + at + e) : at + e;
        v.x[e] = there ? d_x[from] : 0.0f;
        v.norm[e] = there && a.d_norm ? load_read_only(a.d_norm + from) : 0.0f;
    }
}

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
        const struct quantise_args &a, struct run_values &v, float scale, uint32_t row, uint32_t run) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t highest = 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        v.x[e] = a.d_norm ? v.x[e] * scale * v.norm[e] : v.x[e];
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

__global__ void __launch_bounds__(QUANTISE_THREADS) quantise_kernel(const struct quantise_args a) {
    const uint32_t row = blockIdx.x, all_runs = a.columns / a.leaf_columns * a.runs;
    const float *d_x = a.d_x + (uint64_t)row * a.columns;
    uint32_t run = blockIdx.y * WARPS + threadIdx.x / 32;
    struct run_values v = {};
    __shared__ float chains[NORM_CHAINS];
    if (row >= a.d_plan->n_rows)
        return;
    if (run < all_runs)
        run_load(a, d_x, run, v);
    const float scale = a.d_norm ? norm_scale(d_x, a.columns, a.eps, chains) : 1.0f;
    while (run < all_runs) {
        run_quantise(a, v, scale, row, run);
        run += gridDim.y * WARPS;
        if (run < all_runs)
            run_load(a, d_x, run, v);
    }
}
cudaError_t queue_quantise(cudaStream_t s, const struct quantise_args *a, uint32_t rows_bound) {
    const uint32_t all = (a->columns / a->leaf_columns * a->runs + WARPS - 1) / WARPS,
                   most = (BLOCKS_ENOUGH + rows_bound - 1) / rows_bound, spread = all < most ? all : most;
    return K_LAUNCH(quantise_kernel, dim3(rows_bound, spread), QUANTISE_THREADS, 0, s, *a);
}

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
