/* attention_parts.cuh - what the kernels of attention.cu share: where queries and pages lie, how leaves are
 * combined, and the parts of leaves that another block combines. The arithmetic is attention.h's. */
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/elementary.h"

#define ALL_LANES    0xffffffffu
#define FOLD_THREADS 256u /* of every kernel that combines parts */
#define FOLD_LEAVES  32u  /* at a time, a lane each */
#define FOLD_VALUES  8u   /* of a thread */

/* Some leaves of a tile and kv head. */
struct attention_work {
    struct attention_tile t;
    uint32_t tile;      /* its number, where it is split */
    uint32_t row_begin; /* of the entry, where rows are made */
    uint32_t head, leaf, n_leaves;
    bool whole; /* they are combined by the block itself; else they become parts */
};

/* In a block's shared memory: the tile that it begins with, and what one thread tells all. */
struct found_tile {
    uint32_t flag, n, row_begin;
    struct attention_tile t;
};
#define FOUND_BYTES 48u
static_assert(sizeof(struct found_tile) <= FOUND_BYTES, "room for what is found");

/* --- where things lie --- */

/* Rows of query i behind the tile's first: exact for i of a tile, where a division would be forty instructions. */
static __device__ __forceinline__ uint32_t rows_behind(
        const struct attention_args &a, const struct attention_tile &t, uint32_t i) {
    return (uint32_t)(((float)(t.skipped + i) + 0.5f) * a.group_inverse);
}
static __device__ __forceinline__ uint32_t row_of(
        const struct attention_args &a, const struct attention_tile &t, uint32_t i) {
    return t.row + rows_behind(a, t, i);
}
/* Query i of the tile among [R][Hq]. */
static __device__ __forceinline__ uint64_t query_of(
        const struct attention_args &a, const struct attention_tile &t, uint32_t head, uint32_t i) {
    const uint32_t rows = rows_behind(a, t, i);
    return (uint64_t)(t.row + rows) * a.pool.shape.q_heads + head * a.group +
           (t.skipped + i - rows * a.group);
}
/* The last position that query i sees, as an entry's rows follow each other; 0 behind the last query. */
static __device__ __forceinline__ uint32_t last_of(
        const struct attention_args &a, const struct attention_tile &t, uint32_t i) {
    return i < t.n ? t.last - (rows_behind(a, t, t.n - 1) - rows_behind(a, t, i)) : 0;
}
static __device__ __forceinline__ const uint32_t *table_of(
        const struct attention_args &a, const struct attention_tile &t) {
    return a.pool.d_tables + (uint64_t)t.slot * a.pool.pages_per_slot;
}
/* K and V of page 0 of a kv head. */
static __device__ __forceinline__ const uint8_t *pages_of(const struct attention_args &a, uint32_t head) {
    return a.pool.d_kv + (uint64_t)a.layer * a.pool.pages * a.pool.layout.page_bytes +
           head * a.pool.layout.page_head_bytes;
}
static __device__ __forceinline__ uint32_t part_of(const struct attention_args &a,
        const struct attention_tile &t, uint32_t head, uint32_t leaf, uint32_t i) {
    return a.pool.shape.kv_heads * t.first_part + (head * t.leaves + leaf) * t.n + i;
}

/* --- combining leaves --- */

/* How what was combined and the next leaf enter. */
struct fold_step {
    float keep, add;
};
static __device__ __forceinline__ struct fold_step fold_step_of(float max, float m, float top) {
    const struct fold_step s = {f32_exp(max - top), f32_exp(m - top)};
    return s;
}
static __device__ __forceinline__ float larger_of(float max, float m) {
    return m > max ? m : max;
}
static __device__ __forceinline__ float fold_sum(float sum, float l, const struct fold_step &s) {
    return sum * s.keep + l * s.add;
}
static __device__ __forceinline__ float fold_value(float value, float o, const struct fold_step &s) {
    return fmaf(o, s.add, value * s.keep);
}
/* out = O / L * sigmoid(gate) of column c of a query. */
static __device__ __forceinline__ float output_of(float value, float sum, float gate) {
    return value / sum * f32_sigmoid(gate);
}
/* The gates of a query, by column. */
static __device__ __forceinline__ const float *gates_of(
        const struct attention_args &a, uint32_t row, uint64_t query) {
    const struct k_shape &h = a.pool.shape;
    const uint64_t width = (uint64_t)(2 * h.q_heads + 2 * h.kv_heads) * h.head_dim,
                   q_head = query - (uint64_t)row * h.q_heads;
    return a.d_in + row * width + q_head * 2 * h.head_dim + h.head_dim;
}
static __device__ __forceinline__ void output_put(
        const struct attention_args &a, uint32_t row, uint64_t query, uint32_t c, float value, float sum) {
    a.d_out[query * a.pool.shape.head_dim + c] =
            output_of(value, sum, load_read_only(gates_of(a, row, query) + c));
}

/* --- parts: leaves of a tile that several blocks had --- */

/* Steps and sums of up to FOLD_LEAVES leaves of queries, in shared memory: [n][FOLD_LEAVES]. */
struct fold_room {
    struct fold_step *steps;
    float *sums;
    float *values; /* two buffers of [leaf][n][D] */
    uint32_t n_values;
};
#define FOLD_STEP_BYTES(n) ((n)*FOLD_LEAVES * (sizeof(struct fold_step) + sizeof(float)))
static __device__ __forceinline__ struct fold_room fold_room_in(uint8_t *shared, uint32_t bytes, uint32_t n) {
    struct fold_room r;
    r.values = (float *)shared;
    r.n_values = (bytes - FOLD_STEP_BYTES(n)) / sizeof(float) & ~3u;
    r.steps = (struct fold_step *)(r.values + r.n_values);
    r.sums = (float *)(r.steps + n * FOLD_LEAVES);
    return r;
}

/* A warp: how leaf first + lane of query i enters, and *sum of that leaf; *max: of the leaves before, runs along. The
 * first is added to 0 times a value: -0, so that its zeros keep their sign. */
static __device__ __forceinline__ struct fold_step fold_lane(const struct attention_args &a,
        const struct attention_work &w, uint32_t i, uint32_t first, uint32_t leaves, float *sum, float *max) {
    const uint32_t lane = threadIdx.x % 32;
    float m = -INFINITY;
    if (first + lane < leaves) {
        const float *d_sums = a.d_sums + 2ull * part_of(a, w.t, w.head, first + lane, i);
        m = load_shared_by_blocks(d_sums);
        *sum = load_shared_by_blocks(d_sums + 1);
    }
    float top = lane == 0 ? larger_of(*max, m) : m;
#pragma unroll
    for (uint32_t d = 1; d < 32; d *= 2) {
        const float before = __shfl_up_sync(ALL_LANES, top, d);
        top = lane >= d ? larger_of(before, top) : top;
    }
    const float up = __shfl_up_sync(ALL_LANES, top, 1), before = lane == 0 ? *max : up;
    *max = __shfl_sync(ALL_LANES, top, 31);
    const struct fold_step none = {0.0f, 1.0f};
    return first + lane == 0 ? none : fold_step_of(before, m, top);
}
/* What lane n of a warp has. */
static __device__ __forceinline__ struct fold_step fold_step_at(const struct fold_step &of_lane, uint32_t n) {
    return {__shfl_sync(ALL_LANES, of_lane.keep, n), __shfl_sync(ALL_LANES, of_lane.add, n)};
}
/* Brings the values of leaves [first, first + n) of queries [i0, i0 + n_queries): of a leaf they lie together. */
static __device__ __forceinline__ void fold_fetch(const struct attention_args &a,
        const struct attention_work &w, uint32_t d, uint32_t i0, uint32_t n_queries, uint32_t first,
        uint32_t n, float *values) {
    const uint32_t of_leaf = n_queries * d;
    for (uint32_t leaf = 0; leaf < n; leaf++, values += of_leaf) {
        const float *d_values = a.d_values + (uint64_t)part_of(a, w.t, w.head, first + leaf, i0) * d;
        if (d % 4 == 0) {
            for (uint32_t e = threadIdx.x * 4; e < of_leaf; e += FOLD_THREADS * 4)
                copy_16(values + e, d_values + e);
        } else {
            for (uint32_t e = threadIdx.x; e < of_leaf; e += FOLD_THREADS)
                values[e] = load_shared_by_blocks(d_values + e);
        }
    }
}

/* Combines all leaves of queries [i0, i0 + n_queries) of the tile, whose parts are there; as many queries as
 * FOLD_THREADS threads of VALUES have room for. d: head size. */
template <uint32_t VALUES>
static __device__ __forceinline__ void fold_parts(const struct attention_args &a,
        const struct attention_work &w, uint32_t d, uint32_t i0, uint32_t n_queries,
        const struct fold_room &room) {
    const uint32_t warp = threadIdx.x / 32, half = room.n_values / (n_queries * d) / 2,
                   at_once = half < FOLD_LEAVES ? half : FOLD_LEAVES, leaves = w.t.leaves;
    float value[VALUES] = {}, sum[VALUES] = {}, gate[VALUES] = {}, max = -INFINITY;
    uint32_t buffer = 0, seen[VALUES] = {}; /* leaves that the value's query sees */
    fold_fetch(a, w, d, i0, n_queries, 0, leaves < at_once ? leaves : at_once, room.values);
    copy_commit();
#pragma unroll
    for (uint32_t k = 0; k < VALUES; k++) {
        const uint32_t e = threadIdx.x + k * FOLD_THREADS, q = i0 + e / d;
        if (e >= n_queries * d)
            continue;
        seen[k] = last_of(a, w.t, q) / ATTENTION_LEAF + 1;
        gate[k] = load_read_only(gates_of(a, row_of(a, w.t, q), query_of(a, w.t, w.head, q)) + e % d);
    }
    const uint32_t seen_by_warp = warp < n_queries ? last_of(a, w.t, i0 + warp) / ATTENTION_LEAF + 1 : 0;
    for (uint32_t first = 0; first < leaves; first += at_once, buffer ^= 1) {
        const uint32_t end = first + at_once < leaves ? first + at_once : leaves;
        const uint32_t next_end = end + at_once < leaves ? end + at_once : leaves;
        const float *values = room.values + buffer * at_once * n_queries * d;
        fold_fetch(a, w, d, i0, n_queries, end, next_end - end,
                room.values + (buffer ^ 1) * at_once * n_queries * d);
        copy_commit();
        if (warp < n_queries)
            room.steps[warp * FOLD_LEAVES + threadIdx.x % 32] =
                    fold_lane(a, w, i0 + warp, first, seen_by_warp < end ? seen_by_warp : end,
                            &room.sums[warp * FOLD_LEAVES + threadIdx.x % 32], &max);
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < VALUES; k++) {
            const uint32_t e = threadIdx.x + k * FOLD_THREADS, q = e / d;
            for (uint32_t leaf = first; leaf < end && leaf < seen[k]; leaf++) {
                const uint32_t at = q * FOLD_LEAVES + leaf - first;
                const float o = values[(leaf - first) * n_queries * d + e];
                value[k] = leaf == 0 ? o : fold_value(value[k], o, room.steps[at]);
                sum[k] = leaf == 0 ? room.sums[at] : fold_sum(sum[k], room.sums[at], room.steps[at]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (uint32_t k = 0; k < VALUES; k++) {
        const uint32_t e = threadIdx.x + k * FOLD_THREADS, q = i0 + e / d;
        if (e < n_queries * d)
            a.d_out[query_of(a, w.t, w.head, q) * d + e % d] = output_of(value[k], sum[k], gate[k]);
    }
}

/* Combines all leaves of all queries of the tile, whose parts are there; DIM: largest head size. */
template <uint32_t DIM>
static __device__ __forceinline__ void fold_queries(const struct attention_args &a,
        const struct attention_work &w, uint32_t d, uint8_t *shared, uint32_t bytes) {
    constexpr uint32_t AT_ONCE = FOLD_VALUES * FOLD_THREADS / DIM;
    for (uint32_t i = 0; i < w.t.n; i += AT_ONCE) {
        const uint32_t left = w.t.n - i, n = left < AT_ONCE ? left : AT_ONCE;
        fold_parts<FOLD_VALUES>(a, w, d, i, n, fold_room_in(shared, bytes, n));
    }
}

/* This block has put the parts of w. Did the last of the tile and kv head come with it? flag: a word of shared
 * memory. */
static __device__ __forceinline__ bool parts_arrived(
        const struct attention_args &a, const struct attention_work &w, uint32_t *flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); /* what the others wrote before the barrier comes with it */
        uint32_t *d_arrived = a.d_arrived + (uint64_t)w.tile * a.pool.shape.kv_heads + w.head;
        *flag = atomicAdd(d_arrived, w.n_leaves) + w.n_leaves == w.t.leaves;
        __threadfence();
        if (*flag)
            *d_arrived = 0; /* for the next kernel */
    }
    __syncthreads();
    return *flag;
}
