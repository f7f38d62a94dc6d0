/* reduce.cu - adding what a row-parallel product gave to the residual. With one rank the tree over ranks is its own
 * part.
 *
 *   add  a thread four elements; a row is a multiple of them or goes element by element. Moves 12 bytes an element, all
 *        in L2 after a product of few rows. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.h"

#define ADD_THREADS 256u

template <class T> static __device__ __forceinline__ T sum_of(T x, T y);
template <> __device__ __forceinline__ float sum_of(float x, float y) {
    return x + y;
}
template <> __device__ __forceinline__ float4 sum_of(float4 x, float4 y) {
    x.x += y.x;
    x.y += y.y;
    x.z += y.z;
    x.w += y.w;
    return x;
}
/* n: of T in a row */
template <class T>
__global__ void __launch_bounds__(ADD_THREADS) add_kernel(const struct add_args a, uint32_t n) {
    const uint64_t i = (uint64_t)blockIdx.x * ADD_THREADS + threadIdx.x;
    if (i >= (uint64_t)a.d_plan->n_rows * n)
        return;
    T *d_x = (T *)a.d_x + i;
    *d_x = sum_of(*d_x, ((const T *)a.d_part)[i]);
}
cudaError_t queue_add(cudaStream_t s, const struct add_args *a, uint32_t rows_bound) {
    const uint32_t wide = a->columns % 4 == 0 ? 4 : 1, n = a->columns / wide;
    const uint64_t all = (uint64_t)rows_bound * n;
    const unsigned blocks = (unsigned)((all + ADD_THREADS - 1) / ADD_THREADS);
    return wide == 4 ? K_LAUNCH(add_kernel<float4>, blocks, ADD_THREADS, 0, s, *a, n)
                     : K_LAUNCH(add_kernel<float>, blocks, ADD_THREADS, 0, s, *a, n);
}
