/* attention.cu - attention of tiles of queries over their sequences' pages. The arithmetic is attention.h's.
 *
 *   small     as many blocks as the device holds at once. The leaves of all tiles and kv heads that are split, in
 *             order, are cut into as many equal runs as there are blocks; then tiles that are not split, a block
 *             each. A block that brings the last leaf of a tile and kv head combines them, in leaf order.
 *   few       the same of a step of few rows, and all of the step: a block makes q, K and V of the rows that it sees,
 *             and finds its work in the plan, so that no other kernel comes first.
 *   combine   the same for many leaves, as a kernel of its own: a block combines one query, a thread a column.
 *   large     a block takes a tile and kv head, the longest first, combines as it goes, and takes another.
 *
 * A block of `small` or `few` over pages of bf16 has 8 warps for 16 queries. At D = 256 it has a leaf at a time
 * (attention_leaf.cuh): with a ring of two pages it has 97 KB, with one of six, where an SM has room for it, 225 KB.
 * `large` has 6 warps for 48 queries and stages of 32: 98 KB. Over pages of INT8 a ring of four is 70 KB and the block
 * 83 KB, so that an SM that has room for two has twice the bytes on their way; of two 48 KB; `large`, with stages of
 * 64, 73 KB. */
#include "kernels/cuda/attention_bf16.cuh"
#include "kernels/cuda/attention_f32.cuh"
#include "kernels/cuda/attention_int8.cuh"
#include "kernels/cuda/attention_leaf.cuh"
#include "kernels/cuda/attention_list.cuh"
#include "kernels/cuda/launch.cuh"

#define COMBINE_LEAVES 40u /* more: a kernel of its own combines, since one block would read for too long */

/* --- small tiles --- */

/* The split tile that has leaf `unit` of all, kv heads counted. mine: tile threadIdx.x, if there is one. */
static __device__ __forceinline__ void tile_find(const struct attention_args &a,
        const struct attention_list &list, struct attention_tile mine, uint32_t unit,
        struct found_tile *shared) {
    const uint32_t heads = a.pool.shape.kv_heads;
    for (uint32_t n = threadIdx.x; n < list.n_split; n += blockDim.x) {
        if (n != threadIdx.x)
            mine = a.d_small[n];
        if (mine.first_leaf * heads <= unit && unit < (mine.first_leaf + mine.leaves) * heads) {
            shared->n = n;
            shared->t = mine;
        }
    }
    __syncthreads();
}
/* A block's work, piece by piece: its run of the leaves that are split, then tiles that are not, a block each. */
struct work_left {
    struct attention_list list;
    uint32_t at, end; /* leaves that are split, kv heads counted */
    uint32_t tile;    /* of leaf `at` */
    uint32_t alone;   /* of the tiles that are not split, kv heads counted */
};
static __device__ __forceinline__ struct work_left work_all(
        const struct attention_args &a, uint32_t tiles, struct found_tile *found) {
    struct attention_tile mine = {};
    if (threadIdx.x < tiles) /* there is room for it, if no tile: it comes with the list */
        mine = a.d_small[threadIdx.x];
    ask_above();
    struct work_left left;
    left.list = *a.d_list;
    const uint32_t all = left.list.split_leaves * a.pool.shape.kv_heads, each = all / gridDim.x,
                   longer = all % gridDim.x; /* blocks have one more */
    left.at = each * blockIdx.x + (blockIdx.x < longer ? blockIdx.x : longer);
    left.end = left.at + each + (blockIdx.x < longer);
    left.tile = 0;
    left.alone = blockIdx.x;
    if (left.at < left.end) {
        tile_find(a, left.list, mine, left.at, found);
        left.tile = found->n;
    }
    return left;
}
/* The next piece, if there is one. combine: a block that has all leaves of a tile and kv head needs no parts; where a
 * kernel of its own combines, it has to know it too. */
static __device__ __forceinline__ bool work_next(const struct attention_args &a, bool combine,
        const struct found_tile *found, struct work_left *left, struct attention_work *w) {
    const uint32_t heads = a.pool.shape.kv_heads;
    if (left->at >= left->end) {
        if (left->alone >= (left->list.n_small - left->list.n_split) * heads)
            return false;
        w->t = a.d_small[left->list.n_split + left->alone / heads];
        w->head = left->alone % heads;
        w->leaf = 0;
        w->n_leaves = w->t.leaves;
        w->whole = true;
        left->alone += gridDim.x;
        return true;
    }
    w->tile = left->tile;
    w->t = w->tile == found->n ? found->t : a.d_small[w->tile];
    const uint32_t in_tile = left->at - w->t.first_leaf * heads, in_head = in_tile % w->t.leaves,
                   n = w->t.leaves - in_head;
    w->head = in_tile / w->t.leaves;
    w->leaf = in_head;
    w->n_leaves = n < left->end - left->at ? n : left->end - left->at;
    w->whole = w->n_leaves == w->t.leaves && (combine || w->t.leaves == 1);
    left->at += w->n_leaves;
    left->tile += in_tile + w->n_leaves == w->t.leaves * heads;
    return true;
}
template <class F>
__global__ void __launch_bounds__(F::THREADS, F::BLOCKS)
        attend_small_kernel(const struct attention_args a, uint32_t tiles, bool combine) {
    typename F::run run(a);
    struct work_left left = work_all(a, tiles, run.found);
    for (struct attention_work w; work_next(a, combine, run.found, &left, &w);) {
        run.run(w);
        run.finish(combine && !w.whole && parts_arrived(a, w, &run.found->flag));
    }
}

/* --- few rows: a block makes what it needs of them, and finds its work in the plan --- */

/* The entries as a block sees them, a thread each, and the block's run of all their leaves. */
struct plan_left {
    struct entry_rows entry;
    struct tile_counts before; /* the entry */
    uint32_t n, at, end;
};
static __device__ __forceinline__ struct plan_left plan_all(
        const struct attention_args &a, uint32_t entries, uint32_t *shared) {
    struct plan_left left;
    struct tile_counts own = {};
    left.entry = {};
    if (threadIdx.x < entries)
        left.entry = entry_rows_of(a.batch.d_entries[threadIdx.x]);
    ask_above();
    left.n = a.batch.d_plan->n_entries;
    if (threadIdx.x < left.n) {
        left.entry.position = a.batch.d_row_pos[left.entry.row_begin] + a.shift;
        entry_count(a, left.entry, &own);
    }
    left.before = own;
    const uint32_t all = counts_before<FOLD_THREADS / 32>(&left.before, left.n, shared).of[LEAVES] *
                         a.pool.shape.kv_heads,
                   each = all / gridDim.x, longer = all % gridDim.x; /* blocks have one more */
    left.at = each * blockIdx.x + (blockIdx.x < longer ? blockIdx.x : longer);
    left.end = left.at + each + (blockIdx.x < longer);
    return left;
}
static __device__ __forceinline__ bool plan_next(const struct attention_args &a, struct found_tile *found,
        struct plan_left *left, struct attention_work *w) {
    const uint32_t heads = a.pool.shape.kv_heads;
    if (left->at >= left->end)
        return false;
    struct tile_counts at = left->before;
    for (struct attention_tile t = tile_begin(left->entry);
            threadIdx.x < left->n && at.of[LEAVES] * heads <= left->at &&
            tile_next(a, left->entry, /* large= */ false, &at, &t);
            tile_count(t, /* large= */ false, &at))
        if (left->at < (t.first_leaf + t.leaves) * heads) {
            found->t = t;
            found->n = at.of[SMALL_TILES];
            found->row_begin = left->entry.row_begin;
        }
    __syncthreads();
    w->t = found->t;
    w->tile = found->n;
    w->row_begin = found->row_begin;
    const uint32_t in_tile = left->at - w->t.first_leaf * heads, in_head = in_tile % w->t.leaves,
                   n = w->t.leaves - in_head;
    w->head = in_tile / w->t.leaves;
    w->leaf = in_head;
    w->n_leaves = n < left->end - left->at ? n : left->end - left->at;
    w->whole = w->n_leaves == w->t.leaves;
    left->at += w->n_leaves;
    return true;
}
template <class F>
__global__ void __launch_bounds__(F::THREADS, F::BLOCKS)
        attend_few_kernel(const struct attention_args a, uint32_t entries) {
    typename F::run run(a);
    struct plan_left left = plan_all(a, entries, (uint32_t *)run.scores);
    for (struct attention_work w; plan_next(a, run.found, &left, &w);) {
        run.run(w);
        run.finish(!w.whole && parts_arrived(a, w, &run.found->flag));
    }
}

/* --- combine: grid (query of the tile, kv head, tiles), the last as many as there are, going around --- */

/* Column c of a query, out of all its parts: a thread's. Each warp has how the leaves enter for itself, so that no
 * thread waits for another, and the values of FOLD_LEAVES leaves are on their way at once. */
static __device__ __forceinline__ void combine_column(
        const struct attention_args &a, const struct attention_work &w, uint32_t i, uint32_t c) {
    const uint32_t d = a.pool.shape.head_dim, leaves = last_of(a, w.t, i) / ATTENTION_LEAF + 1;
    const uint64_t query = query_of(a, w.t, w.head, i), leaf_floats = (uint64_t)w.t.n * d;
    const bool has = c < d;
    const float gate = has ? load_read_only(gates_of(a, row_of(a, w.t, i), query) + c) : 0.0f;
    float value = -0.0f, sum = 0.0f, max = -INFINITY, sum_of_lane = 0.0f;
    for (uint32_t first = 0; first < leaves; first += FOLD_LEAVES) {
        const float *d_part = a.d_values + (uint64_t)part_of(a, w.t, w.head, first, i) * d + c;
        float o[FOLD_LEAVES];
#pragma unroll
        for (uint32_t k = 0; k < FOLD_LEAVES; k++)
            o[k] = has && first + k < leaves ? load_read_only(d_part + k * leaf_floats) : 0.0f;
        const struct fold_step of_lane = fold_lane(a, w, i, first, leaves, &sum_of_lane, &max);
#pragma unroll
        for (uint32_t k = 0; k < FOLD_LEAVES; k++) {
            if (first + k >= leaves)
                break;
            const struct fold_step s = fold_step_at(of_lane, k);
            sum = fold_sum(sum, __shfl_sync(ALL_LANES, sum_of_lane, k), s);
            value = fold_value(value, o[k], s);
        }
    }
    if (has)
        a.d_out[query * d + c] = output_of(value, sum, gate);
}
__global__ void __launch_bounds__(FOLD_THREADS) attend_combine_kernel(const struct attention_args a) {
    struct attention_work w;
    w.head = blockIdx.y;
    for (uint32_t n = blockIdx.z; n < a.d_list->n_split; n += gridDim.z) {
        w.t = a.d_small[n];
        if (blockIdx.x >= w.t.n || w.t.leaves == 1)
            continue;
        for (uint32_t c = threadIdx.x; c / 32 * 32 < a.pool.shape.head_dim; c += FOLD_THREADS)
            combine_column(a, w, blockIdx.x, c);
    }
}

/* --- large tiles --- */

template <class F>
__global__ void __launch_bounds__(F::THREADS, F::BLOCKS) attend_large_kernel(const struct attention_args a) {
    const uint32_t heads = a.pool.shape.kv_heads, all = a.d_list->n_large * heads;
    if (blockIdx.x >= all) /* there are other blocks enough */
        return;
    typename F::run run(a);
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0)
            run.found->flag = atomicAdd(&a.d_list->large_taken, 1);
        __syncthreads();
        const uint32_t n = run.found->flag;
        if (n >= all)
            return;
        struct attention_work w;
        w.t = a.d_large[(all - 1 - n) / heads];
        w.head = n % heads;
        w.leaf = 0;
        w.n_leaves = w.t.leaves;
        w.whole = true;
        run.run(w);
    }
}

/* --- launching --- */

/*                Q_TILES SHARES STAGE SLOTS DIM  ONLY   BLOCKS */
typedef tile_form<bf16_pages, 1, 8, 32, 4, 256, false, 2> small_to_256;
typedef tile_form<bf16_pages, 1, 8, 16, 2, 512, false, 1> small_to_512;
typedef tile_form<bf16_pages, 3, 2, 32, 2, 256, true, 2> large_256;
typedef tile_form<bf16_pages, 3, 2, 32, 2, 256, false, 1> large_to_256;
typedef tile_form<int8_pages, 1, 8, 64, 2, 256, true, 2> int8_small_256;
typedef tile_form<int8_pages, 1, 8, 64, 4, 256, true, 2> int8_small_256_deep;
typedef tile_form<int8_pages, 1, 8, 64, 2, 256, false, 2> int8_small_to_256;
typedef tile_form<int8_pages, 1, 8, 64, 2, 512, false, 1> int8_small_to_512;
typedef tile_form<int8_pages, 3, 2, 64, 2, 256, true, 2> int8_large_256;
typedef tile_form<int8_pages, 3, 2, 64, 2, 256, false, 1> int8_large_to_256;
/*               SLOTS PAGES MAKES */
typedef leaf_form<2, 1, false> leaf_256;
typedef leaf_form<3, 2, false> leaf_256_deep;
typedef leaf_form<2, 1, true> few_256;
typedef leaf_form<3, 2, true> few_256_deep;

static uint32_t smaller(uint64_t a, uint64_t b) {
    return (uint32_t)(a < b ? a : b);
}
/* Blocks that the device holds at once. */
template <class F> static uint32_t blocks_of(const struct attention_bounds &b, uint32_t shared) {
    const uint32_t fit = (uint32_t)(b.shared_of_sm / (shared + 1024));
    return b.sms * (fit < 1 ? 1 : fit < F::BLOCKS ? fit : F::BLOCKS);
}
template <class F>
static cudaError_t queue_small(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    const uint32_t shared = F::shared_bytes(a.pool.shape.head_dim);
    const uint64_t most = (uint64_t)b.small * a.pool.shape.kv_heads * b.leaves;
    return K_LAUNCH((attend_small_kernel<F>), smaller(most, blocks_of<F>(b, shared)), F::THREADS, shared, s,
            a, b.small, combine);
}
/* DEEP for a head size of 256, where an SM has room for as many of its blocks as it is for, else ONLY; TO_256 and
 * TO_512 for others. */
template <class DEEP, class ONLY, class TO_256, class TO_512>
static cudaError_t queue_small_form(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    const uint32_t d = a.pool.shape.head_dim;
    if (d > 256)
        return queue_small<TO_512>(s, a, b, combine);
    if (d < 256)
        return queue_small<TO_256>(s, a, b, combine);
    if (DEEP::BLOCKS * (DEEP::shared_bytes(d) + 1024) <= b.shared_of_sm)
        return queue_small<DEEP>(s, a, b, combine);
    return queue_small<ONLY>(s, a, b, combine);
}
static cudaError_t queue_small_tiles(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    if (a.pool.kv_dtype == K_F32)
        return queue_small<f32_form>(s, a, b, combine);
    if (a.pool.kv_dtype == K_INT8)
        return queue_small_form<int8_small_256_deep, int8_small_256, int8_small_to_256, int8_small_to_512>(
                s, a, b, combine);
    return queue_small_form<leaf_256_deep, leaf_256, small_to_256, small_to_512>(s, a, b, combine);
}
template <class F>
static cudaError_t queue_large(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b) {
    const uint32_t shared = F::shared_bytes(a.pool.shape.head_dim);
    return K_LAUNCH((attend_large_kernel<F>),
            smaller((uint64_t)b.large * a.pool.shape.kv_heads, blocks_of<F>(b, shared)), F::THREADS, shared,
            s, a);
}
static cudaError_t queue_large_tiles(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b) {
    const bool only = a.pool.shape.head_dim == 256;
    if (a.pool.kv_dtype == K_INT8)
        return only ? queue_large<int8_large_256>(s, a, b) : queue_large<int8_large_to_256>(s, a, b);
    return only ? queue_large<large_256>(s, a, b) : queue_large<large_to_256>(s, a, b);
}
template <class F>
static cudaError_t queue_few(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b) {
    const uint32_t shared = F::shared_bytes(a.pool.shape.head_dim);
    const uint64_t most = (uint64_t)b.small * a.pool.shape.kv_heads * b.leaves;
    return K_LAUNCH((attend_few_kernel<F>), smaller(most, blocks_of<F>(b, shared)), F::THREADS, shared, s, a,
            b.entries);
}
bool attend_is_few(const struct attention_args *a, const struct attention_bounds *b) {
    const struct k_shape *h = &a->pool.shape;
    return a->pool.kv_dtype == K_BF16 && h->head_dim == 256 && h->rotary_dim == 64 &&
           b->rows <= TOGETHER_ROWS && b->leaves <= COMBINE_LEAVES && b->small * h->kv_heads <= ARRIVALS_MAX;
}
cudaError_t queue_attend_few(
        cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b) {
    if (few_256_deep::shared_bytes(256) + 1024 <= b->shared_of_sm)
        return queue_few<few_256_deep>(s, *a, *b);
    return queue_few<few_256>(s, *a, *b);
}
cudaError_t queue_attend(cudaStream_t s, const struct attention_args *a, const struct attention_bounds *b) {
    const struct k_shape *h = &a->pool.shape;
    const bool combine_after = b->leaves > COMBINE_LEAVES;
    cudaError_t r = cudaSuccess;
    if (b->large)
        r = queue_large_tiles(s, *a, *b);
    if (r == cudaSuccess)
        r = queue_small_tiles(s, *a, *b, !combine_after);
    if (r == cudaSuccess && combine_after)
        r = K_LAUNCH(attend_combine_kernel, dim3(SMALL_QUERIES, h->kv_heads, smaller(b->small, 64)),
                FOLD_THREADS, 0, s, *a);
    return r;
}

template <class F> static cudaError_t prepare_small(int bytes) {
    return cudaFuncSetAttribute(attend_small_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
template <class F> static cudaError_t prepare_large(int bytes) {
    return cudaFuncSetAttribute(attend_large_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
cudaError_t attend_prepare(uint32_t shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const int bytes = (int)shared_of_block;
    const cudaError_t all[] = {prepare_small<leaf_256>(bytes), prepare_small<leaf_256_deep>(bytes),
            prepare_small<small_to_256>(bytes), prepare_small<small_to_512>(bytes),
            prepare_small<int8_small_256>(bytes), prepare_small<int8_small_256_deep>(bytes),
            prepare_small<int8_small_to_256>(bytes), prepare_small<int8_small_to_512>(bytes),
            prepare_large<large_256>(bytes), prepare_large<large_to_256>(bytes),
            prepare_large<int8_large_256>(bytes), prepare_large<int8_large_to_256>(bytes),
            cudaFuncSetAttribute(attend_small_kernel<f32_form>, most, bytes),
            cudaFuncSetAttribute(attend_few_kernel<few_256>, most, bytes),
            cudaFuncSetAttribute(attend_few_kernel<few_256_deep>, most, bytes)};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i];
    return r;
}
