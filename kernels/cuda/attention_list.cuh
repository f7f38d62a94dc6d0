/* attention_list.cuh - how entries are cut into tiles, and the tiles of all before one counted. */
#pragma once

#include "kernels/cuda/attention_parts.cuh"

enum { SMALL_TILES, LARGE_TILES, LEAVES, PARTS, COUNTS };
struct tile_counts { /* of some entries, or of all before one; leaves and parts of small tiles */
    uint32_t of[COUNTS];
};
static __device__ __forceinline__ uint32_t add_up_to_max(uint32_t a, uint32_t b) {
    return a + b < a ? UINT32_MAX : a + b;
}
static __device__ __forceinline__ void counts_add(struct tile_counts *to, const struct tile_counts &c) {
#pragma unroll
    for (uint32_t k = 0; k < COUNTS; k++)
        to->of[k] = add_up_to_max(to->of[k], c.of[k]);
}

/* What the list takes of an entry. */
struct entry_rows {
    uint32_t slot, row_begin, n_rows, position; /* of its first row */
};
static __device__ __forceinline__ struct entry_rows entry_rows_of(const struct k_entry &entry) {
    return {entry.slot, entry.row_begin, entry.n_rows, 0};
}
static __device__ __forceinline__ bool is_large(
        const struct attention_args &a, const struct entry_rows &entry) {
    return a.large && entry.n_rows >= LARGE_ROWS;
}
/* The tiles of an entry, one by one: t.n queries were in the one before, so that none come before the first. */
static __device__ __forceinline__ struct attention_tile tile_begin(const struct entry_rows &entry) {
    struct attention_tile t = {};
    t.slot = entry.slot;
    t.row = entry.row_begin;
    return t;
}
static __device__ __forceinline__ bool tile_next(const struct attention_args &a,
        const struct entry_rows &entry, bool large, const struct tile_counts *at, struct attention_tile *t) {
    const uint32_t size = large ? LARGE_QUERIES : SMALL_QUERIES,
                   first = (t->row - entry.row_begin) * a.group + t->skipped + t->n,
                   queries = entry.n_rows * a.group, left = queries - first;
    if (first >= queries)
        return false;
    t->row = entry.row_begin + first / a.group;
    t->skipped = first % a.group;
    t->n = left < size ? left : size;
    t->last = entry.position + (first + t->n - 1) / a.group;
    t->leaves = t->last / ATTENTION_LEAF + 1;
    t->first_leaf = at->of[LEAVES];
    t->first_part = at->of[PARTS];
    return true;
}
static __device__ __forceinline__ void tile_count(
        const struct attention_tile &t, bool large, struct tile_counts *at) {
    const struct tile_counts one = {{!large, large, large ? 0 : t.leaves, large ? 0 : t.leaves * t.n}};
    counts_add(at, one);
}
static __device__ __forceinline__ void entry_count(
        const struct attention_args &a, const struct entry_rows &entry, struct tile_counts *at) {
    const bool large = is_large(a, entry);
    for (struct attention_tile t = tile_begin(entry); tile_next(a, entry, large, at, &t);)
        tile_count(t, large, at);
}

/* *c = the sum of the threads before this one, of the first n; returns that of all. shared: [warps][COUNTS]. */
template <uint32_t WARPS>
static __device__ struct tile_counts counts_before(struct tile_counts *c, uint32_t n, uint32_t *shared) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct tile_counts all = {};
#pragma unroll
    for (uint32_t k = 0; k < COUNTS; k++) {
        uint32_t v = c->of[k];
        for (uint32_t d = 1; d < 32; d *= 2) {
            const uint32_t before = __shfl_up_sync(ALL_LANES, v, d);
            v = lane >= d ? add_up_to_max(v, before) : v;
        }
        if (lane == 31)
            shared[warp * COUNTS + k] = v;
        v = __shfl_up_sync(ALL_LANES, v, 1);
        c->of[k] = lane == 0 ? 0 : v;
    }
    __syncthreads();
    for (uint32_t w = 0; w < WARPS && w * 32 < n; w++) {
        struct tile_counts of_warp;
#pragma unroll
        for (uint32_t k = 0; k < COUNTS; k++)
            of_warp.of[k] = shared[w * COUNTS + k];
        if (w == warp)
            counts_add(c, all);
        counts_add(&all, of_warp);
    }
    __syncthreads();
    return all;
}
