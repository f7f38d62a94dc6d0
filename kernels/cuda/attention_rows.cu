/* attention_rows.cu - the first kernel of the attention mixer: q and k norm, rope, K and V into the pages, and the
 * list of tiles.
 *
 *   grid     (1 + blocks that go around the rows, heads / 8): a block has eight heads of a row, a warp a head: query
 *            heads, then key heads, then value heads. Block (0, 0) makes the list instead.
 *   bits     of K and V as kernels/cpu writes them: the norm's sum is 16 chains of every 16th element, then a tree
 *   moved    4 bytes of each column of `in` but the gates; 4 bytes of q, 2 or 4 of K and V written */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/elementary.h"
#include "kernels/shared/trigonometry.h"

#define ROWS_THREADS 256u
#define ROWS_WARPS   (ROWS_THREADS / 32)
#define ROWS_BLOCKS  4u /* of an SM, for every eight heads */
#define CHAINS       16u
#define ALL_LANES    0xffffffffu
static_assert(HEAD_DIM_MAX <= NORM_SHORT, "a head's norm has 16 chains");

/* --- rows --- */

/* cos[half], sin[half] of a row, in shared memory, by the threads of the block. Frequency i takes the position of
 * height if i % 3 == 1, of width if i % 3 == 2, of time otherwise, as far as each section (a third of the
 * frequencies, the remainder to time, then height) goes. */
static __device__ void rope_angles(const struct attention_args &a, uint32_t row, float *cos_sin_row) {
    const uint32_t half = a.pool.shape.rotary_dim / 2, height = (half + 1) / 3, width = half / 3;
    const uint32_t *d_pos = a.batch.d_row_rope + (uint64_t)row * 3;
    for (uint32_t i = threadIdx.x; i < half; i += ROWS_THREADS) {
        const uint32_t axis = i % 3 == 1 && i < 3 * height ? 1 : i % 3 == 2 && i < 3 * width ? 2 : 0;
        cos_sin((float)(d_pos[axis] + a.shift) * a.pool.d_inv_freq[i], &cos_sin_row[i],
                &cos_sin_row[half + i]);
    }
}

/* 1 / sqrt(mean(x^2) + eps); lanes l and l + 16 are the same chain. */
static __device__ __forceinline__ float head_scale(const float *d_x, uint32_t n, float eps) {
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t k = threadIdx.x % CHAINS; k < n; k += CHAINS)
        sum = fmaf(d_x[k], d_x[k], sum);
    for (int d = CHAINS / 2; d > 0; d /= 2)
        sum = sum + __shfl_xor_sync(ALL_LANES, sum, d);
    return 1.0f / sqrtf(sum / (float)n + eps);
}

struct head_output { /* one of them */
    float *d_f32;
    uint16_t *d_bf16;
};
static __device__ __forceinline__ void head_put(const struct head_output &to, uint32_t i, float x) {
    if (to.d_f32)
        to.d_f32[i] = x;
    else
        to.d_bf16[i] = bf16_of(x);
}
/* rope(norm(x)): pairs (i, i + half), the rest as it is. */
static __device__ void head_norm_rope(const struct attention_args &a, const float *d_x, const float *d_norm,
        const float *cos_sin_row, const struct head_output &to) {
    const uint32_t d = a.pool.shape.head_dim, half = a.pool.shape.rotary_dim / 2, lane = threadIdx.x % 32;
    const float scale = head_scale(d_x, d, a.pool.shape.rms_eps);
    for (uint32_t i = lane; i < half; i += 32) {
        const float x = d_x[i] * scale * d_norm[i], y = d_x[half + i] * scale * d_norm[half + i];
        const float c = cos_sin_row[i], s = cos_sin_row[half + i];
        head_put(to, i, fmaf(-y, s, x * c));
        head_put(to, half + i, fmaf(x, s, y * c));
    }
    for (uint32_t i = 2 * half + lane; i < d; i += 32)
        head_put(to, i, d_x[i] * scale * d_norm[i]);
}

/* Where position `index` of the row's sequence lies in K (which = 0) or V (1) of a kv head. */
static __device__ struct head_output page_row(
        const struct attention_args &a, uint32_t slot, uint32_t index, uint32_t head, uint32_t which) {
    const uint32_t d = a.pool.shape.head_dim;
    const uint64_t page = a.pool.d_tables[(uint64_t)slot * a.pool.pages_per_slot + index / PAGE_TOKENS];
    uint8_t *d_head = a.pool.d_kv + ((uint64_t)a.layer * a.pool.pages + page) * a.pool.layout.page_bytes +
                      head * a.pool.layout.page_head_bytes;
    const uint64_t at = (uint64_t)(which * PAGE_TOKENS + index % PAGE_TOKENS) * d;
    struct head_output to = {};
    if (a.pool.kv_dtype == K_F32)
        to.d_f32 = (float *)d_head + at;
    else
        to.d_bf16 = (uint16_t *)d_head + at;
    return to;
}
static __device__ void row_head(
        const struct attention_args &a, uint32_t row, uint32_t head, const float *cos_sin_row) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t d = h.head_dim, width = (2 * h.q_heads + 2 * h.kv_heads) * d,
                   slot = a.batch.d_entries[a.batch.d_row_entry[row]].slot,
                   index = a.batch.d_row_pos[row] + a.shift;
    const float *d_in = a.d_in + (uint64_t)row * width, *d_k = d_in + (uint64_t)h.q_heads * 2 * d;
    if (head < h.q_heads) {
        const struct head_output to = {a.d_q + ((uint64_t)row * h.q_heads + head) * d, NULL};
        head_norm_rope(a, d_in + (uint64_t)head * 2 * d, a.d_q_norm, cos_sin_row, to);
    } else if (head < h.q_heads + h.kv_heads) {
        const uint32_t i = head - h.q_heads;
        head_norm_rope(a, d_k + (uint64_t)i * d, a.d_k_norm, cos_sin_row, page_row(a, slot, index, i, 0));
    } else {
        const uint32_t i = head - h.q_heads - h.kv_heads;
        const struct head_output to = page_row(a, slot, index, i, 1);
        for (uint32_t e = threadIdx.x % 32; e < d; e += 32)
            head_put(to, e, d_k[(uint64_t)(h.kv_heads + i) * d + e]);
    }
}

/* --- the list of tiles --- */

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
/* Counts the tiles of entry e on from *at, and writes them where `split` (number and leaves of those that are
 * split) is not NULL. */
static __device__ void entry_tiles(
        const struct attention_args &a, uint32_t e, struct tile_counts *at, uint32_t *split) {
    const struct k_entry &entry = a.batch.d_entries[e];
    const uint32_t group = a.pool.shape.q_heads / a.pool.shape.kv_heads, queries = entry.n_rows * group;
    const bool large = a.large && entry.n_rows >= LARGE_ROWS;
    const uint32_t size = large ? LARGE_QUERIES : SMALL_QUERIES,
                   position = a.batch.d_row_pos[entry.row_begin] + a.shift;
    for (uint32_t first = 0; first < queries; first += size) {
        struct attention_tile t;
        t.slot = entry.slot;
        t.row_begin = entry.row_begin;
        t.first = first;
        t.n = queries - first < size ? queries - first : size;
        t.last = position + (first + t.n - 1) / group;
        t.leaves = t.last / ATTENTION_LEAF + 1;
        t.first_leaf = at->of[LEAVES];
        t.first_part = at->of[PARTS];
        if (split && large)
            a.d_large[at->of[LARGE_TILES]] = t;
        else if (split)
            tile_put(a, t, at->of[SMALL_TILES], split);
        const struct tile_counts one = {{!large, large, large ? 0 : t.leaves, large ? 0 : t.leaves * t.n}};
        counts_add(at, one);
    }
}

/* *c = the sum of the threads before this one; returns that of all. shared: [warps][COUNTS]. */
static __device__ struct tile_counts counts_before(struct tile_counts *c, uint32_t *shared) {
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
    for (uint32_t w = 0; w < ROWS_WARPS; w++) {
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
/* shared: LIST_SHARED bytes */
#define LIST_SHARED ((2 + ROWS_WARPS * COUNTS) * sizeof(uint32_t))
static __device__ void list_make(const struct attention_args &a, uint32_t *shared) {
    const uint32_t n = a.batch.d_plan->n_entries;
    uint32_t *split = shared;
    struct tile_counts done = {};
    if (threadIdx.x < 2)
        split[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t first = 0; first < n; first += ROWS_THREADS) {
        const uint32_t e = first + threadIdx.x;
        struct tile_counts at = {};
        if (e < n)
            entry_tiles(a, e, &at, /* split= */ NULL);
        const struct tile_counts total = counts_before(&at, shared + 2);
        counts_add(&at, done);
        if (e < n)
            entry_tiles(a, e, &at, split);
        counts_add(&done, total);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *a.d_list = {split[0], done.of[SMALL_TILES], done.of[LARGE_TILES], split[1], /* large_taken= */ 0};
}

/* --- the kernel --- */

__global__ void __launch_bounds__(ROWS_THREADS) attention_rows_kernel(const struct attention_args a) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t head = blockIdx.y * ROWS_WARPS + threadIdx.x / 32;
    float *shared = (float *)dynamic_shared();
    if (blockIdx.x == 0) {
        if (blockIdx.y == 0)
            list_make(a, (uint32_t *)shared);
        return;
    }
    for (uint32_t row = blockIdx.x - 1; row < a.batch.d_plan->n_rows; row += gridDim.x - 1) {
        rope_angles(a, row, shared);
        __syncthreads();
        if (head < h.q_heads + 2 * h.kv_heads)
            row_head(a, row, head, shared);
        __syncthreads();
    }
}
cudaError_t queue_attention_rows(
        cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b) {
    const struct k_shape *h = &a->pool.shape;
    const size_t angles = h->rotary_dim * sizeof(float);
    const uint32_t most = b->sms * ROWS_BLOCKS, rows = b->rows < most ? b->rows : most;
    return K_LAUNCH(attention_rows_kernel,
            dim3(1 + rows, (h->q_heads + 2 * h->kv_heads + ROWS_WARPS - 1) / ROWS_WARPS), ROWS_THREADS,
            LIST_SHARED > angles ? LIST_SHARED : angles, s, *a);
}
