/* unpack.cu - strips of a panel of BF16 weights as rows, for a library that multiplies rows (blas.h): many rows of
 * activations are multiplied in less time than our own tiles would save by reading strips.
 *
 *   grid    (strips, eights of the runs of all leaves)
 *   warp    a run of a strip: 4 KB, 16 bytes a lane and step of 16 k. Of each 32 k a lane has 8 of row g, and 8 of row
 *           g + 8, which it stores as they come: rows have the order of k that bf16 rows of activations have
 *           (product.h), and four lanes fill 64 bytes of a row.
 *
 * Bytes moved: the strips once, and as much written. */
#include "kernels/cuda/product.cuh"

#define UNPACK_THREADS 256u
#define WARPS          (UNPACK_THREADS / 32u)
#define STEPS          (ACTIVATION_RUN / 16u)
#define RUN_BYTES      (STEPS * 512u)

__global__ void __launch_bounds__(UNPACK_THREADS) unpack_kernel(const struct unpack_args a) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4, strip = a.first_strip + blockIdx.x,
                   run = blockIdx.y * WARPS + threadIdx.x / 32, runs = a.w.leaves * a.w.runs;
    if (run >= runs)
        return;
    const uint64_t block = (uint64_t)(run / a.w.runs) * a.w.strips + strip;
    const uint4 *d_from =
            (const uint4 *)(a.w.d_codes + (block * a.w.runs + run % a.w.runs) * RUN_BYTES) + lane;
    uint4 steps[STEPS];
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++)
        steps[s] = load_read_only(d_from + s * 32);
    const uint64_t stride = (uint64_t)runs * (ACTIVATION_RUN / 8); /* in fours of words */
    uint4 *d_to = (uint4 *)a.d_to + (blockIdx.x * STRIP_ROWS + g) * stride + run * (ACTIVATION_RUN / 8) + i;
#pragma unroll
    for (uint32_t p = 0; p < STEPS / 2; p++) {
        const uint4 low = steps[2 * p], high = steps[2 * p + 1];
        d_to[p * 4] = uint4{low.x, low.z, high.x, high.z};
        d_to[8 * stride + p * 4] = uint4{low.y, low.w, high.y, high.w};
    }
}
cudaError_t queue_unpack(cudaStream_t s, const struct unpack_args *a) {
    return K_LAUNCH(unpack_kernel, dim3(a->strips, (a->w.leaves * a->w.runs + WARPS - 1) / WARPS),
            UNPACK_THREADS, 0, s, *a);
}
