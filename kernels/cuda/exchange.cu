/* exchange.cu - sums and rows of all ranks, pushed into each other's inboxes (exchange.h).
 *
 *   add     a thread has pairs of elements, all ranks' of one pair: it pushes its own to everybody, then waits for
 *           theirs and adds in the order of the tree over ranks, which is everybody's, so that all end with the same
 *           bits. Sends 8 bytes an element to each other rank, reads as many of each, and moves 12 at home.
 *   gather  the same without a sum. Sends and reads 8 bytes an element for each other rank.
 *
 * A block waits for what the same block of the others pushes, and pushes before it waits; all blocks of a kernel have a
 * place at the same time, so that none waits for one that cannot begin. A wait ends when its words are there, when the
 * group is aborted, when an earlier one has failed, or at its deadline; then the exchange is poisoned and later kernels
 * do not wait at all. */
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/launch.cuh"

#define EXCHANGE_THREADS 256u
static_assert(K_BLOCKS_TOGETHER <= EXCHANGE_BLOCKS, "every block has an epoch");

/* --- add --- */

template <uint32_t TP>
__global__ void __launch_bounds__(EXCHANGE_THREADS) exchange_add_kernel(const struct exchange_add_args a) {
    const struct exchange_view &v = a.view;
    const uint32_t epoch = epoch_begin(v), n = rows_here(a.d_plan, a.first_row, a.rows) * a.columns,
                   pairs = (n + 1) / 2, step = gridDim.x * EXCHANGE_THREADS,
                   first = blockIdx.x * EXCHANGE_THREADS + threadIdx.x;
    const float *d_part = a.d_part + (uint64_t)a.first_row * a.columns;
    float *d_x = a.d_x + (uint64_t)a.first_row * a.columns;
    if (n == 0 || *v.d_poisoned) /* nobody would be waited for: it is no exchange, and takes no epoch */
        return;
    for (uint32_t i = first; i < pairs; i += step)
        push_to_all(v, epoch, i, {d_part[2 * i], 2 * i + 1 < n ? d_part[2 * i + 1] : 0.0f});
    for (uint32_t i = first; i < pairs; i += step) {
        float2 sum[TP];
        bool there = true;
#pragma unroll
        for (uint32_t r = 0; r < TP; r++) {
            if (r == v.rank)
                sum[r] = {d_part[2 * i], 2 * i + 1 < n ? d_part[2 * i + 1] : 0.0f};
            else
                there = there && pull(v, r, epoch, i, &sum[r]);
        }
        if (!there)
            break;
#pragma unroll
        for (uint32_t d = 1; d < TP; d *= 2)
#pragma unroll
            for (uint32_t r = 0; r < TP; r += 2 * d)
                sum[r] = {sum[r].x + sum[r + d].x, sum[r].y + sum[r + d].y};
        d_x[2 * i] = d_x[2 * i] + sum[0].x;
        if (2 * i + 1 < n)
            d_x[2 * i + 1] = d_x[2 * i + 1] + sum[0].y;
    }
    epoch_end(v, epoch);
}
static uint32_t blocks_of(uint64_t floats) {
    const uint64_t blocks = (floats / 2 + EXCHANGE_THREADS) / EXCHANGE_THREADS;
    return blocks < K_BLOCKS_TOGETHER ? (uint32_t)blocks : K_BLOCKS_TOGETHER;
}
cudaError_t queue_exchange_add(cudaStream_t s, const struct exchange_add_args *a) {
    const uint32_t blocks = blocks_of((uint64_t)a->rows * a->columns);
    switch (a->view.tp) {
    case 2:
        return K_LAUNCH(exchange_add_kernel<2>, blocks, EXCHANGE_THREADS, 0, s, *a);
    case 4:
        return K_LAUNCH(exchange_add_kernel<4>, blocks, EXCHANGE_THREADS, 0, s, *a);
    default:
        return K_LAUNCH(exchange_add_kernel<8>, blocks, EXCHANGE_THREADS, 0, s, *a);
    }
}

/* --- gather --- */

/* Element e of a rank's rows of n columns, and where it lies in all. */
static __device__ __forceinline__ float *place_of_all(
        const struct exchange_gather_args &a, uint32_t r, uint32_t e) {
    return a.d_all + (uint64_t)(a.first_row + e / a.n[r]) * a.columns + a.first[r] + e % a.n[r];
}
static __device__ __forceinline__ void gather_put(
        const struct exchange_gather_args &a, uint32_t r, uint32_t i, uint32_t n, float2 x) {
    if (2 * i < n)
        *place_of_all(a, r, 2 * i) = x.x;
    if (2 * i + 1 < n)
        *place_of_all(a, r, 2 * i + 1) = x.y;
}
/* Of a rank that has n elements. One that has none says so with a word: who did not wait for it could be two exchanges
 * ahead of it, and write over what it still reads. */
static __device__ __forceinline__ uint32_t gather_words(uint32_t n) {
    return n == 0 ? 1 : (n + 1) / 2;
}
__global__ void __launch_bounds__(EXCHANGE_THREADS)
        exchange_gather_kernel(const struct exchange_gather_args a) {
    const struct exchange_view &v = a.view;
    const uint32_t epoch = epoch_begin(v), rows = rows_here(a.d_plan, a.first_row, a.rows),
                   step = gridDim.x * EXCHANGE_THREADS, first = blockIdx.x * EXCHANGE_THREADS + threadIdx.x,
                   own = rows * a.n[v.rank];
    const float *d_part = a.d_part + (uint64_t)a.first_row * a.n[v.rank];
    if (rows == 0 || *v.d_poisoned)
        return;
    for (uint32_t i = first; i < gather_words(own); i += step) {
        const float2 x = {2 * i < own ? d_part[2 * i] : 0.0f, 2 * i + 1 < own ? d_part[2 * i + 1] : 0.0f};
        push_to_all(v, epoch, i, x);
        gather_put(a, v.rank, i, own, x);
    }
    for (uint32_t r = 0; r < v.tp; r++) {
        const uint32_t n = rows * a.n[r];
        for (uint32_t i = first; r != v.rank && i < gather_words(n); i += step) {
            float2 x;
            if (!pull(v, r, epoch, i, &x))
                break;
            gather_put(a, r, i, n, x);
        }
    }
    epoch_end(v, epoch);
}
cudaError_t queue_exchange_gather(cudaStream_t s, const struct exchange_gather_args *a) {
    return K_LAUNCH(
            exchange_gather_kernel, blocks_of((uint64_t)a->rows * a->n_most), EXCHANGE_THREADS, 0, s, *a);
}
