/* exchange.cuh - what kernels that exchange something with other ranks share: words that are their own signal, waits
 * that end, and the epoch of an exchange (exchange.h). Included by exchange*.cu.
 *
 * A wait ends when its words are there, when the group is aborted, when an earlier one has failed, or at its deadline;
 * then the exchange is poisoned and later kernels do not wait at all. */
#pragma once

#include "kernels/cuda/exchange.h"
#include "kernels/cuda/fault.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/portable.h"

#define SPINS 1024u /* looks at a word before the clock and the abort word are looked at */

/* --- words --- */

static __device__ __forceinline__ uint4 *words_of(
        const struct exchange_view &v, uint32_t inbox_of, uint32_t from, uint32_t epoch) {
    return (uint4 *)v.inbox[inbox_of] + ((epoch & 1) * v.tp + from) * (uint64_t)(EXCHANGE_FLOATS / 2);
}
static __device__ __forceinline__ uint8_t *exchange_large_inbox(void *inbox, uint32_t tp, uint32_t epoch) {
    return (uint8_t *)inbox + EXCHANGE_WORDS(tp) + (epoch & 1) * EXCHANGE_LARGE(tp);
}
static __device__ __forceinline__ void push_to_all(
        const struct exchange_view &v, uint32_t epoch, uint32_t at, float2 x) {
    const uint4 word = {bits_of_float(x.x), epoch, bits_of_float(x.y), epoch};
    for (uint32_t r = 0; r < v.tp; r++)
        if (r != v.rank)
            store_to_peer(words_of(v, r, v.rank, epoch) + at, word);
}
static __device__ void give_up(const struct exchange_view &v, uint32_t why, uint32_t from, uint32_t epoch) {
    *(volatile uint32_t *)v.d_poisoned = 1;
    fault_tell(v.fault, DEVICE_FAULT_EXCHANGE, why, v.rank, from, epoch);
}
/* Between looks at what rank `from` is to say: whether to look again. *began: 0 at first. */
static __device__ bool wait_goes_on(
        const struct exchange_view &v, uint64_t *began, uint32_t from, uint32_t epoch) {
    const uint64_t now = clock_of_device_ns();
    *began = *began ? *began : now;
    if (*(const volatile uint32_t *)v.d_poisoned)
        return false;
    if (!*v.aborted && now - *began <= v.deadline_ns)
        return true;
    give_up(v, *v.aborted ? EXCHANGE_ABORTED : EXCHANGE_LATE, from, epoch);
    return false;
}
/* The pair that rank `from` has pushed; false: it does not come. */
static __device__ inline bool pull(
        const struct exchange_view &v, uint32_t from, uint32_t epoch, uint32_t at, float2 *ret) {
    const uint4 *word = words_of(v, v.rank, from, epoch) + at;
    uint64_t began = 0;
    do {
        for (uint32_t spin = 0; spin < SPINS; spin++) {
            const uint4 w = load_from_peer(word);
            if (w.y == epoch && w.w == epoch) {
                *ret = {float_of_bits(w.x), float_of_bits(w.z)};
                return true;
            }
            spin_pause();
        }
    } while (wait_goes_on(v, &began, from, epoch));
    return false;
}

/* The epoch of this exchange, and at its end that it was one; blocks that this grid does not have are block 0's. */
static __device__ __forceinline__ uint32_t epoch_begin(const struct exchange_view &v) {
    return v.d_epochs[blockIdx.x] + 1;
}
static __device__ __forceinline__ void epoch_end(const struct exchange_view &v, uint32_t epoch) {
    __syncthreads();
    if (threadIdx.x == 0)
        v.d_epochs[blockIdx.x] = epoch;
    for (uint32_t k = gridDim.x + threadIdx.x; blockIdx.x == 0 && k < EXCHANGE_BLOCKS; k += blockDim.x)
        v.d_epochs[k] = epoch;
}
/* Rows of the plan that are this exchange's. */
static __device__ __forceinline__ uint32_t rows_here(
        const struct k_plan *d_plan, uint32_t first_row, uint32_t rows) {
    const uint32_t n = d_plan->n_rows, left = n > first_row ? n - first_row : 0;
    return left < rows ? left : rows;
}
