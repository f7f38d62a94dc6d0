/* kept.cu - the sum of weights that a process left behind, to tell whether they are as they were.
 *
 *   sums  n words of 8 bytes; thread t of all takes the pairs t, t + threads, ... A word is mixed with its place, so
 *         that words that change places are seen; sums are of integers, in any order. Reads all bytes once: 5 ms for
 *         14 GB on an H100. */
#include "kernels/cuda/kept.h"
#include "kernels/cuda/launch.cuh"

#include "base/hash.h"

#define SUM_THREADS 256u

struct __align__(16) word_pair {
    uint64_t a, b;
};

/* n: of pairs */
__global__ void __launch_bounds__(SUM_THREADS)
        kept_sums_kernel(const struct word_pair *d_from, uint64_t n, uint64_t *d_sums) {
    __shared__ uint64_t parts[SUM_THREADS];
    uint64_t sum = 0;
    for (uint64_t i = (uint64_t)blockIdx.x * SUM_THREADS + threadIdx.x; i < n;
            i += (uint64_t)gridDim.x * SUM_THREADS) {
        const struct word_pair p = d_from[i];
        sum += hash_mix(p.a + 2 * i * SPLITMIX_GAMMA) + hash_mix(p.b + (2 * i + 1) * SPLITMIX_GAMMA);
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (uint32_t i = 1; i < SUM_THREADS; i++)
        sum += parts[i];
    d_sums[blockIdx.x] = sum;
}
cudaError_t queue_kept_sums(cudaStream_t s, const uint64_t *d_from, uint64_t n, uint64_t *d_sums) {
    const uint64_t most = (n / 2 + SUM_THREADS - 1) / SUM_THREADS;
    return K_LAUNCH(kept_sums_kernel, dim3(most < KEPT_BLOCKS ? (uint32_t)most : KEPT_BLOCKS), SUM_THREADS, 0,
            s, (const struct word_pair *)d_from, n / 2, d_sums);
}
