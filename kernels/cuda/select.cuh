/* select.cuh - what the threads of one block find together: sums and maxima of 64 bits, prefix sums, and the lowest of
 * the highest that weigh enough (kernels/shared/cuts.h), without sorting. */
#pragma once

#include "kernels/shared/cuts.h"

#include <cuda_runtime.h>

#define BLOCK_THREADS 256u
#define BLOCK_WARPS   (BLOCK_THREADS / 32)
#define ALL_LANES     0xffffffffu

/* Shared memory of these functions. Each may be called again at once: it begins with a barrier where it must. */
struct block_shared {
    uint64_t warp[BLOCK_WARPS];
    struct { /* the bin that a level of select_lowest() ends in */
        uint64_t target, mass, total;
        uint32_t bin, n;
    } found;
    uint32_t flag;
};
/* Bins of select_lowest(); masses in two halves, since shared memory adds 32 bits at a time. */
struct block_bins {
    uint32_t n[CUT_BINS];
    uint32_t mass_low[CUT_BINS], mass_high[CUT_BINS]; /* only where a source has masses */
};

/* --- 64 bits through a warp --- */

static __device__ __forceinline__ uint64_t halves(uint32_t high, uint32_t low) {
    return (uint64_t)high << 32 | low;
}
static __device__ __forceinline__ uint64_t warp_max(uint64_t v) {
    const uint32_t high = __reduce_max_sync(ALL_LANES, (uint32_t)(v >> 32));
    return halves(high, __reduce_max_sync(ALL_LANES, (uint32_t)(v >> 32) == high ? (uint32_t)v : 0));
}
/* In three parts that 32 lanes cannot carry out of 32 bits. */
static __device__ __forceinline__ uint64_t warp_sum(uint64_t v) {
    const uint32_t part = (1u << 26) - 1;
    return __reduce_add_sync(ALL_LANES, (uint32_t)v & part) +
           ((uint64_t)__reduce_add_sync(ALL_LANES, (uint32_t)(v >> 26) & part) << 26) +
           ((uint64_t)__reduce_add_sync(ALL_LANES, (uint32_t)(v >> 52)) << 52);
}

/* --- the block --- */

/* The highest v, in every thread. */
static __device__ inline uint64_t block_max(uint64_t v, struct block_shared *b) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        b->warp[threadIdx.x / 32] = v;
    __syncthreads();
    for (uint32_t w = 0; w < BLOCK_WARPS; w++)
        v = b->warp[w] > v ? b->warp[w] : v;
    return v;
}
/* The sum of all v, in every thread. */
static __device__ inline uint64_t block_sum(uint64_t v, struct block_shared *b) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        b->warp[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (uint32_t w = 0; w < BLOCK_WARPS; w++)
        v += b->warp[w];
    return v;
}
/* The sum of the v of the threads before this one. */
static __device__ inline uint64_t block_before(uint64_t v, struct block_shared *b, uint64_t *ret_total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = v, before = 0, total = 0;
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint64_t other = halves(__shfl_up_sync(ALL_LANES, (uint32_t)(sum >> 32), d),
                __shfl_up_sync(ALL_LANES, (uint32_t)sum, d));
        sum += lane >= d ? other : 0;
    }
    __syncthreads();
    if (lane == 31)
        b->warp[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < BLOCK_WARPS; w++) {
        before += w < warp ? b->warp[w] : 0;
        total += b->warp[w];
    }
    *ret_total = total;
    return before + sum - v;
}

/* True in the last of `blocks` blocks that come here: it sees what the others wrote before. */
static __device__ inline bool block_is_last(uint32_t *d_arrived, uint32_t blocks, struct block_shared *b) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        b->flag = atomicAdd(d_arrived, 1u) + 1 == blocks;
    __syncthreads();
    __threadfence();
    return b->flag;
}

/* --- selection --- */

struct selected {
    uint32_t key;    /* the lowest that is needed */
    uint32_t n;      /* how many have it */
    uint64_t mass;   /* what those weigh together */
    uint64_t target; /* of it, what is needed: 1..mass */
    uint64_t total;  /* what all weigh */
};

static __device__ __forceinline__ uint64_t bin_mass(const struct block_bins *bins, uint32_t i, bool masses) {
    return masses ? halves(bins->mass_high[i], bins->mass_low[i]) : bins->n[i];
}
static __device__ __forceinline__ void mass_add(struct block_bins *bins, uint32_t i, uint64_t mass) {
    const uint32_t low = (uint32_t)mass, before = atomicAdd(&bins->mass_low[i], low);
    const uint32_t high = (uint32_t)(mass >> 32) + (before + low < before);
    if (high)
        atomicAdd(&bins->mass_high[i], high);
}
static __device__ __forceinline__ void bin_add(
        struct block_bins *bins, uint32_t i, uint64_t mass, bool masses) {
    atomicAdd(&bins->n[i], 1u);
    if (masses)
        mass_add(bins, i, mass);
}
/* The highest bins first, each thread has `per` of them: finds the one in which target is reached. */
static __device__ inline void bins_find(const struct block_bins *bins, uint32_t n_bins, bool masses,
        bool first, uint64_t target, float top_p, struct block_shared *b) {
    const uint32_t per = n_bins / BLOCK_THREADS, top = n_bins - 1 - threadIdx.x * per;
    uint64_t own = 0, total;
    for (uint32_t i = 0; i < per; i++)
        own += bin_mass(bins, top - i, masses);
    uint64_t before = block_before(own, b, &total);
    if (first && target == 0)
        target = mass_wanted(top_p, total);
    if (first && target > total)
        target = total;
    if (before < target && target <= before + own) {
        uint32_t i = top;
        for (; before + bin_mass(bins, i, masses) < target; i--)
            before += bin_mass(bins, i, masses);
        b->found.bin = i;
        b->found.n = bins->n[i];
        b->found.mass = bin_mass(bins, i, masses);
        b->found.target = target - before;
    }
    if (first && threadIdx.x == 0)
        b->found.total = total;
    __syncthreads();
}
/* Of n keys those that weigh `target` (0: top_p of all), the highest first; all, if they weigh less. At least
 * one must be there. S: static MASSES (false: each weighs 1), and at(j, &key, &mass), false = j is not of them. */
template <class S>
static __device__ struct selected select_lowest(const S &source, uint32_t n, uint64_t target, float top_p,
        struct block_bins *bins, struct block_shared *b) {
    struct selected r = {};
    for (uint32_t level = 0; level < CUT_LEVELS; level++) {
        const uint32_t shift = cut_shift(level), width = cut_width(level), n_bins = 1u << width;
        for (uint32_t i = threadIdx.x; i < n_bins; i += BLOCK_THREADS) {
            bins->n[i] = 0;
            if (S::MASSES)
                bins->mass_low[i] = bins->mass_high[i] = 0;
        }
        __syncthreads();
        for (uint32_t j = threadIdx.x; j < n; j += BLOCK_THREADS) {
            uint32_t key;
            uint64_t mass;
            if (source.at(j, &key, &mass) && (uint64_t)key >> (shift + width) == r.key)
                bin_add(bins, key >> shift & (n_bins - 1), mass, S::MASSES);
        }
        __syncthreads();
        bins_find(bins, n_bins, S::MASSES, level == 0, level == 0 ? target : r.target, top_p, b);
        r.key = r.key << width | b->found.bin;
        r.n = b->found.n;
        r.mass = b->found.mass;
        r.target = b->found.target;
        r.total = b->found.total;
    }
    return r;
}
