/* attention_rows.cu - the first kernel of the attention mixer: q and k norm, rope, K and V into the pages, and the
 * list of tiles.
 *
 *   grid     (1 + blocks that go around the rows, heads / 8): a block has eight heads of a row, a warp a head: query
 *            heads, then key heads, then value heads; a ninth warp has the row's angles. Block (0, 0) makes the list
 *            instead. Row 0 is asked for before it is known whether the step has it.
 *   bits     of K and V as kernels/cpu writes them: the norm's sum is 16 chains of every 16th element, then a tree
 *   moved    4 bytes of each column of `in` but the gates; 4 bytes of q (2 for INT8), 1, 2 or 4 of K and V written */
#include "kernels/cuda/attention_heads.cuh"
#include "kernels/cuda/attention_list.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/shared/integers.h"

#define ROWS_HEADS   8u
#define ROWS_WARPS   (ROWS_HEADS + 1)
#define ROWS_THREADS (ROWS_WARPS * 32)
#define ROWS_BLOCKS  4u /* of an SM, for every eight heads */

/* --- rows --- */

struct head_place { /* of a row's head among the columns of `in`, and what becomes of it */
    enum { QUERY, KEY, VALUE } is;
    uint32_t head; /* of the query heads or kv heads */
    uint32_t from;
};
static __device__ __forceinline__ struct head_place place_of(const struct k_shape &h, uint32_t n) {
    const uint32_t keys = h.q_heads * 2;
    if (n < h.q_heads)
        return {head_place::QUERY, n, n * 2 * h.head_dim};
    if (n < h.q_heads + h.kv_heads)
        return {head_place::KEY, n - h.q_heads, (keys + n - h.q_heads) * h.head_dim};
    return {head_place::VALUE, n - h.q_heads - h.kv_heads, (keys + n - h.q_heads) * h.head_dim};
}
/* The largest bits of |y| of a head, of whose columns every lane has some. */
template <uint32_t DIM> static __device__ __forceinline__ uint32_t highest_of(const float *y) {
    uint32_t highest = 0;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++) {
        const uint32_t size = bits_of_float(y[k]) & 0x7fffffffu;
        highest = size > highest ? size : highest;
    }
    return __reduce_max_sync(ALL_LANES, highest);
}
/* A row of K or V, `at` rows behind the first of K, as codes and their scale. */
template <uint32_t DIM>
static __device__ __forceinline__ void codes_put(
        const struct attention_args &a, uint8_t *d_head, uint32_t at, const float *y) {
    const uint32_t d = a.pool.shape.head_dim, lane = threadIdx.x % 32;
    const float scale = integers_scale(highest_of<DIM>(y), CODE_STEPS);
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++) {
        const uint32_t c = lane + k * 32;
        if (c < d)
            d_head[at * d + c] = (uint8_t)integer_of(y[k], scale, CODE_STEPS);
    }
    if (lane == 0)
        ((float *)(d_head + page_scales_at(d)))[at] = scale;
}
template <uint32_t DIM>
static __device__ __forceinline__ void query_words_put(
        const struct attention_args &a, uint8_t *d_words, const float *y) {
    const uint32_t d = a.pool.shape.head_dim, columns = word_columns(d), lane = threadIdx.x % 32;
    const float scale = integers_scale(highest_of<DIM>(y), WORD_STEPS);
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++) {
        const uint32_t c = lane + k * 32;
        const int32_t word = integer_of(y[k], scale, WORD_STEPS);
        if (c < columns) {
            d_words[c] = (uint8_t)word_high(word);
            d_words[columns + c] = (uint8_t)word_low(word);
        }
    }
    if (lane == 0)
        *(float *)(d_words + 2 * columns) = scale * (1.0f / sqrtf((float)d));
}
template <uint32_t DIM>
static __device__ __forceinline__ void head_put(const struct attention_args &a, const struct head_place &p,
        uint32_t row, uint32_t page, uint32_t index, const float *y) {
    const uint32_t d = a.pool.shape.head_dim, lane = threadIdx.x % 32;
    uint8_t *d_head = page_head(a, page, p.head);
    const uint32_t at = ((p.is == head_place::VALUE ? PAGE_TOKENS : 0) + index % PAGE_TOKENS) * d;
    const bool is_query = p.is == head_place::QUERY;
    const uint64_t query = (uint64_t)row * a.pool.shape.q_heads + p.head;
    if (a.pool.kv_dtype == K_INT8) {
        if (is_query)
            query_words_put<DIM>(a, (uint8_t *)a.d_q + query * word_query_bytes(word_columns(d)), y);
        else
            codes_put<DIM>(a, d_head, at / d, y);
        return;
    }
    float *d_f32 = is_query ? (float *)a.d_q + query * d : (float *)d_head + at;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 32; k++) {
        const uint32_t c = lane + k * 32;
        if (c >= d)
            continue;
        if (is_query || a.pool.kv_dtype == K_F32)
            d_f32[c] = y[k];
        else
            ((uint16_t *)d_head + at)[c] = bf16_of(y[k]);
    }
}

/* --- the list of tiles --- */

static __device__ void tile_put(
        const struct attention_args &a, const struct attention_tile &t, uint32_t n, uint32_t *split) {
    a.d_small[n] = t;
    for (uint32_t h = 0; h < a.pool.shape.kv_heads; h++)
        a.d_arrived[(uint64_t)n * a.pool.shape.kv_heads + h] = 0;
    if (add_up_to_max(t.first_part, t.leaves * t.n) <= a.parts_max) {
        atomicMax(&split[0], n + 1);
        atomicMax(&split[1], t.first_leaf + t.leaves);
    }
}
/* Counts the tiles of an entry on from *at, and writes them; split: number and leaves of those that are split. */
static __device__ void entry_put(const struct attention_args &a, const struct entry_rows &entry,
        struct tile_counts *at, uint32_t *split) {
    const bool large = is_large(a, entry);
    for (struct attention_tile t = tile_begin(entry); tile_next(a, entry, large, at, &t);) {
        if (large)
            a.d_large[at->of[LARGE_TILES]] = t;
        else
            tile_put(a, t, at->of[SMALL_TILES], split);
        tile_count(t, large, at);
    }
}
/* shared: LIST_SHARED bytes */
#define LIST_SHARED ((2 + ROWS_WARPS * COUNTS) * sizeof(uint32_t))
static __device__ void list_make(const struct attention_args &a, uint32_t entries, uint32_t *shared) {
    uint32_t *split = shared;
    struct tile_counts done = {};
    struct entry_rows entry = {};
    if (threadIdx.x < entries)
        entry = entry_rows_of(a.batch.d_entries[threadIdx.x]);
    ask_above();
    const uint32_t n = a.batch.d_plan->n_entries;
    if (threadIdx.x < 2)
        split[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t first = 0; first < n; first += ROWS_THREADS) {
        const uint32_t e = first + threadIdx.x;
        struct tile_counts at = {};
        if (e < n) {
            if (first)
                entry = entry_rows_of(a.batch.d_entries[e]);
            entry.position = a.batch.d_row_pos[entry.row_begin] + a.shift;
            entry_count(a, entry, &at);
        }
        const struct tile_counts total = counts_before<ROWS_WARPS>(&at, n - first, shared + 2);
        counts_add(&at, done);
        if (e < n)
            entry_put(a, entry, &at, split);
        counts_add(&done, total);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *a.d_list = {split[0], done.of[SMALL_TILES], done.of[LARGE_TILES], split[1], /* large_taken= */ 0};
}

/* --- the kernel --- */

/* A row's heads of this block, if the step has the row; returns how many it has, or 0. angles: [rotary_dim]; rows:
 * [heads of the block][DIM]. */
template <uint32_t DIM>
static __device__ __forceinline__ uint32_t row_heads(
        const struct attention_args &a, uint32_t row, float *angles, float *rows) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t d = h.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32,
                   head = blockIdx.y * ROWS_HEADS + warp, width = (2 * h.q_heads + 2 * h.kv_heads) * d;
    const bool has_head = warp < ROWS_HEADS && head < h.q_heads + 2 * h.kv_heads;
    const struct head_place p = place_of(h, head);
    const uint32_t entry = a.batch.d_row_entry[row], index = a.batch.d_row_pos[row] + a.shift;
    /* `in` has room for one row in any case: row 0 does not wait here */
    if (row > 0 && row >= a.batch.d_plan->n_rows)
        return 0;
    struct row_head<DIM> r;
    if (has_head)
        head_load(&r, a.d_in + (uint64_t)row * width + p.from,
                p.is == head_place::QUERY ? a.d_q_norm : a.d_k_norm, d);
    const uint32_t n_rows = a.batch.d_plan->n_rows;
    ask_above();
    if (warp == ROWS_HEADS)
        rope_angles(a, row, angles);
    if (row >= n_rows)
        return 0;
    const uint32_t slot = a.batch.d_entries[entry].slot;
    if (has_head && p.is != head_place::VALUE)
        head_norm(&r, d, h.rms_eps);
    const uint32_t page = a.pool.d_tables[(uint64_t)slot * a.pool.pages_per_slot + index / PAGE_TOKENS];
#pragma unroll
    for (uint32_t k = 0; has_head && k < DIM / 32; k++)
        rows[warp * DIM + lane + k * 32] = r.x[k];
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; has_head && p.is != head_place::VALUE && k < DIM / 32; k++)
        r.x[k] = rope_of(rows + warp * DIM, r.x[k], lane + k * 32, h.rotary_dim / 2, angles);
    if (has_head)
        head_put<DIM>(a, p, row, page, index, r.x);
    return n_rows;
}
template <uint32_t DIM>
__global__ void __launch_bounds__(ROWS_THREADS)
        attention_rows_kernel(const struct attention_args a, uint32_t entries) {
    float *rows = (float *)dynamic_shared(), *angles = rows + ROWS_HEADS * DIM;
    if (blockIdx.x == 0) {
        if (blockIdx.y == 0)
            list_make(a, entries, (uint32_t *)rows);
        return;
    }
    for (uint32_t row = blockIdx.x - 1;;) {
        const uint32_t n_rows = row_heads<DIM>(a, row, angles, rows);
        row += gridDim.x - 1;
        if (row >= n_rows) /* it may lie behind the last that there is room for */
            return;
        __syncthreads();
    }
}
template <uint32_t DIM>
static cudaError_t queue_rows(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t most = b.sms * ROWS_BLOCKS, rows = b.rows < most ? b.rows : most;
    static_assert(LIST_SHARED <= ROWS_HEADS * DIM * sizeof(float), "the list has room where rows lie");
    return K_LAUNCH((attention_rows_kernel<DIM>),
            dim3(1 + rows, (h.q_heads + 2 * h.kv_heads + ROWS_HEADS - 1) / ROWS_HEADS), ROWS_THREADS,
            (ROWS_HEADS * DIM + h.rotary_dim) * sizeof(float), s, a, b.entries);
}
cudaError_t queue_attention_rows(
        cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b) {
    return a->pool.shape.head_dim <= 256 ? queue_rows<256>(s, *a, *b) : queue_rows<HEAD_DIM_MAX>(s, *a, *b);
}
