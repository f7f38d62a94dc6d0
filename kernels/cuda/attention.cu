/* attention.cu - attention of tiles of queries over their sequences' pages. The arithmetic is attention.h's.
 *
 *   small     as many blocks as the device holds at once. The leaves of all tiles and kv heads that are split, in
 *             order, are cut into as many equal runs as there are blocks; then tiles that are not split, a block
 *             each. A block that brings the last leaf of a tile and kv head combines them, in leaf order.
 *   combine   the same for many leaves, as a kernel of its own: a block combines one query.
 *   large     a block takes a tile and kv head, the longest first, combines as it goes, and takes another.
 *
 * A block of `small` over pages of bf16 has 8 warps for 16 queries. At D = 256 its stages are 64 positions: a ring
 * of two is 66 KB and the block 88 KB, of four, where an SM has room for it, 154 KB. `large` has 6 warps for 48
 * queries and stages of 32: 98 KB. Over pages of INT8 a ring of four is 70 KB and the block 83 KB, so that an SM that
 * has room for two has twice the bytes on their way; of two 48 KB; `large`, with stages of 64, 73 KB. */
#include "kernels/cuda/attention_bf16.cuh"
#include "kernels/cuda/attention_f32.cuh"
#include "kernels/cuda/attention_int8.cuh"
#include "kernels/cuda/launch.cuh"

#define COMBINE_LEAVES 16u /* more: a kernel of its own combines, since one block would read for too long */

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
/* A block that has all leaves of a tile and kv head needs no parts; where a kernel of its own combines, that has to
 * know it too. */
static __device__ __forceinline__ bool is_whole(const struct attention_work &w, bool combine) {
    return w.n_leaves == w.t.leaves && (combine || w.t.leaves == 1);
}
template <class R, uint32_t FOLDED>
static __device__ void run_split(R &run, const struct attention_args &a, const struct attention_list &list,
        const struct attention_tile &mine, bool combine) {
    const uint32_t heads = a.pool.shape.kv_heads, all = list.split_leaves * heads;
    const uint32_t each = all / gridDim.x, longer = all % gridDim.x, /* blocks have one more */
            begin = each * blockIdx.x + (blockIdx.x < longer ? blockIdx.x : longer),
                   end = begin + each + (blockIdx.x < longer);
    if (begin >= end)
        return;
    struct found_tile *found = (struct found_tile *)run.flag;
    tile_find(a, list, mine, begin, found);
    uint32_t n = found->n;
    for (uint32_t at = begin; at < end;) {
        struct attention_work w;
        w.t = at == begin ? found->t : a.d_small[n];
        const uint32_t in_tile = at - w.t.first_leaf * heads;
        w.head = in_tile / w.t.leaves;
        w.leaf = in_tile % w.t.leaves;
        w.n_leaves = w.t.leaves - w.leaf < end - at ? w.t.leaves - w.leaf : end - at;
        const bool whole = is_whole(w, combine);
        run.run(w, /* split= */ !whole);
        const bool complete = combine && !whole && parts_arrived(a, w, n, run.flag);
        for (uint32_t i = complete ? 0 : w.t.n; i < w.t.n; i += FOLDED) {
            const uint32_t left = w.t.n - i, n_queries = left < FOLDED ? left : FOLDED;
            fold_parts<FOLD_VALUES>(a, w, run.dim(), i, n_queries, run.room(n_queries));
        }
        at += w.n_leaves;
        n += in_tile + w.n_leaves == w.t.leaves * heads;
    }
}
template <class R, class F>
__global__ void __launch_bounds__(F::THREADS, F::BLOCKS)
        attend_small_kernel(const struct attention_args a, uint32_t tiles, bool combine) {
    const uint32_t heads = a.pool.shape.kv_heads;
    struct attention_tile mine = {};
    if (threadIdx.x < tiles) /* there is room for it, if no tile: it comes with the list */
        mine = a.d_small[threadIdx.x];
    ask_above();
    const struct attention_list list = *a.d_list;
    R run(a);
    run_split<R, (FOLD_VALUES * FOLD_THREADS / F::DIM)>(run, a, list, mine, combine);
    for (uint32_t n = blockIdx.x; n < (list.n_small - list.n_split) * heads; n += gridDim.x) {
        struct attention_work w;
        w.t = a.d_small[list.n_split + n / heads];
        w.head = n % heads;
        w.leaf = 0;
        w.n_leaves = w.t.leaves;
        run.run(w, /* split= */ false);
    }
}

/* --- combine: grid (query of the tile, kv head, tiles), the last as many as there are, going around --- */

#define COMBINE_BYTES (66u << 10) /* two times 32 leaves at D = 256 */
__global__ void __launch_bounds__(FOLD_THREADS) attend_combine_kernel(const struct attention_args a) {
    struct attention_work w;
    w.head = blockIdx.y;
    w.leaf = w.n_leaves = 0;
    for (uint32_t n = blockIdx.z; n < a.d_list->n_split; n += gridDim.z) {
        w.t = a.d_small[n];
        if (blockIdx.x < w.t.n && w.t.leaves > 1)
            fold_parts<HEAD_DIM_MAX / FOLD_THREADS>(a, w, a.pool.shape.head_dim, blockIdx.x, 1,
                    fold_room_in(dynamic_shared(), COMBINE_BYTES, 1));
    }
}

/* --- large tiles --- */

template <class F>
__global__ void __launch_bounds__(F::THREADS, F::BLOCKS) attend_large_kernel(const struct attention_args a) {
    const uint32_t heads = a.pool.shape.kv_heads, all = a.d_list->n_large * heads;
    if (blockIdx.x >= all) /* there are other blocks enough */
        return;
    tile_run<F> run(a);
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0)
            *run.flag = atomicAdd(&a.d_list->large_taken, 1);
        __syncthreads();
        const uint32_t n = *run.flag;
        if (n >= all)
            return;
        struct attention_work w;
        w.t = a.d_large[(all - 1 - n) / heads];
        w.head = n % heads;
        w.leaf = 0;
        w.n_leaves = w.t.leaves;
        run.run(w, /* split= */ false);
    }
}

/* --- launching --- */

/*                Q_TILES SHARES STAGE SLOTS DIM  ONLY   BLOCKS */
typedef tile_form<bf16_pages, 1, 8, 64, 2, 256, true, 2> small_256;
typedef tile_form<bf16_pages, 1, 8, 64, 4, 256, true, 1> small_256_deep;
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

static uint32_t smaller(uint64_t a, uint64_t b) {
    return (uint32_t)(a < b ? a : b);
}
/* Blocks that the device holds at once. */
template <class F> static uint32_t blocks_of(const struct attention_bounds &b, uint32_t shared) {
    const uint32_t fit = (uint32_t)(b.shared_of_sm / (shared + 1024));
    return b.sms * (fit < 1 ? 1 : fit < F::BLOCKS ? fit : F::BLOCKS);
}
template <class R, class F>
static cudaError_t queue_small(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    const uint32_t shared = F::shared_bytes(a.pool.shape.head_dim);
    const uint64_t most = (uint64_t)b.small * a.pool.shape.kv_heads * b.leaves;
    return K_LAUNCH((attend_small_kernel<R, F>), smaller(most, blocks_of<F>(b, shared)), F::THREADS, shared,
            s, a, b.small, combine);
}
/* DEEP for a head size of 256, where an SM has room for as many of its blocks as it is for, else ONLY; TO_256 and
 * TO_512 for others. */
template <class DEEP, class ONLY, class TO_256, class TO_512>
static cudaError_t queue_small_form(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    const uint32_t d = a.pool.shape.head_dim;
    if (d > 256)
        return queue_small<tile_run<TO_512>, TO_512>(s, a, b, combine);
    if (d < 256)
        return queue_small<tile_run<TO_256>, TO_256>(s, a, b, combine);
    if (DEEP::BLOCKS * (DEEP::shared_bytes(d) + 1024) <= b.shared_of_sm)
        return queue_small<tile_run<DEEP>, DEEP>(s, a, b, combine);
    return queue_small<tile_run<ONLY>, ONLY>(s, a, b, combine);
}
static cudaError_t queue_small_tiles(
        cudaStream_t s, const struct attention_args &a, const struct attention_bounds &b, bool combine) {
    if (a.pool.kv_dtype == K_F32)
        return queue_small<f32_run, f32_form>(s, a, b, combine);
    if (a.pool.kv_dtype == K_INT8)
        return queue_small_form<int8_small_256_deep, int8_small_256, int8_small_to_256, int8_small_to_512>(
                s, a, b, combine);
    return queue_small_form<small_256_deep, small_256, small_to_256, small_to_512>(s, a, b, combine);
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
                FOLD_THREADS, COMBINE_BYTES, s, *a);
    return r;
}

template <class F> static cudaError_t prepare_small(int bytes) {
    return cudaFuncSetAttribute(
            attend_small_kernel<tile_run<F>, F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
template <class F> static cudaError_t prepare_large(int bytes) {
    return cudaFuncSetAttribute(attend_large_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
cudaError_t attend_prepare(uint32_t shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const int bytes = (int)shared_of_block;
    const cudaError_t all[] = {prepare_small<small_256>(bytes), prepare_small<small_256_deep>(bytes),
            prepare_small<small_to_256>(bytes), prepare_small<small_to_512>(bytes),
            prepare_small<int8_small_256>(bytes), prepare_small<int8_small_256_deep>(bytes),
            prepare_small<int8_small_to_256>(bytes), prepare_small<int8_small_to_512>(bytes),
            prepare_large<large_256>(bytes), prepare_large<large_to_256>(bytes),
            prepare_large<int8_large_256>(bytes), prepare_large<int8_large_to_256>(bytes),
            cudaFuncSetAttribute(attend_small_kernel<f32_run, f32_form>, most, bytes),
            cudaFuncSetAttribute(attend_combine_kernel, most, bytes)};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i];
    return r;
}
