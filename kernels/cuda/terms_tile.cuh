/* terms_tile.cuh - weights times activations as terms of bf16 for many rows: a block is a tile of outputs and of rows.
 *
 * The sums are those of terms.cu, to the bit, by the same functions (terms.cuh). A warp has its outputs' leaves one
 * after another, and adds them as the tree does by keeping what waits for its right half.
 *
 *   grid      (tiles, groups of leaves); the blocks of rows of the same outputs are neighbours, so that weights come
 *             from L2. Where there are too few tiles for all SMs, groups of leaves are blocks of their own, and the
 *             last of a tile adds what all have left, as the tree does.
 *   block     2 warps over the outputs times 2 over the rows: tiles of 128 x 64, and of 128 x 32 where those were few
 *   warp      4 strips times 32 or 16 rows. Quantised weights are unpacked once for all terms of x, two strips at a
 *             time
 *   ring      2 to 4 stages of the block in shared memory, a stage a slot of all its strips and rows, by cp.async; one
 *             __syncthreads() a slot: it says that a stage has come and that the one filled next was read
 *
 * Terms are 6 bytes an activation, so a tile reads much of L2: in BF16 a stage of 128 x 64 is 16 KB of weights and
 * 24 KB of terms for 1536 mma. Two blocks an SM hide each other's barriers; tiles of 256 x 64, one an SM, did not.
 * Three terms of x are terms_tile.cu's, x rounded to one terms_tile_bf16.cu's, which are compiled side by side.
 * Bytes moved: weights once per 64 rows and terms once per tile, mostly from L2; 4 bytes per output. */
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/terms.cuh"

#define STRIPS     4 /* of a warp */
#define WARPS_OUT  2u
#define WARPS_ROWS 2u
#define THREADS    (WARPS_OUT * WARPS_ROWS * 32u)
#define BLOCKS     2u /* that registers let an SM have */
#define STAGES_MAX 4u

/* TILES: eights of rows of a warp. */
template <int FORM, int TILES, int X> struct tile_size {
    static constexpr uint32_t ALL_STRIPS = WARPS_OUT * STRIPS, ROWS = WARPS_ROWS * TILES * 8;
    static constexpr uint32_t CODE_CHUNKS = ALL_STRIPS * weight<FORM>::BYTES / 16 / THREADS; /* of a thread */
    static constexpr uint32_t CODE_STRIPS = THREADS * 16 / weight<FORM>::BYTES; /* from chunk to chunk */
    static constexpr uint32_t TERM_SLOT = weight<FORM>::PAIRS * 512; /* bytes of a term of eight rows */
    static constexpr uint32_t X_BYTES = ROWS / 8 * X * TERM_SLOT, X_CHUNKS = X_BYTES / 16 / THREADS;
    static constexpr uint32_t X_TERMS = THREADS * 16 / TERM_SLOT; /* terms of eights from chunk to chunk */
    static constexpr uint32_t X_TILE = X * TERM_BYTES;            /* eight rows of a run */
    static constexpr uint32_t PARTS = STRIPS * TILES * 4;         /* outputs of a thread */
    static_assert(CODE_CHUNKS * CODE_STRIPS == ALL_STRIPS && X_CHUNKS * X_TERMS == ROWS / 8 * X, "whole");
};
template <int FORM> static __host__ __device__ __forceinline__ uint32_t strip_bytes(const struct panel &w) {
    return weight<FORM>::BYTES + aux_of_slot<FORM, false>(w);
}
template <int FORM, int TILES, int X>
static __host__ __device__ __forceinline__ uint32_t stage_bytes(const struct panel &w) {
    typedef tile_size<FORM, TILES, X> size;
    return size::ALL_STRIPS * strip_bytes<FORM>(w) + size::X_BYTES;
}

struct tile_launch {
    uint32_t row_blocks, stages;
};
/* Which outputs, rows and leaves a block has. */
struct tile_place {
    uint32_t first_strip, first_row, first_leaf, leaves;
};
template <class size>
static __device__ __forceinline__ struct tile_place place_of(const struct panel &w, uint32_t row_blocks) {
    struct tile_place p;
    p.first_strip = blockIdx.x / row_blocks * size::ALL_STRIPS;
    p.first_row = blockIdx.x % row_blocks * size::ROWS;
    p.leaves = w.leaves / gridDim.y;
    p.first_leaf = blockIdx.y * p.leaves;
    return p;
}

/* --- the ring's filling side --- */

/* A thread copies the same places of every stage. Strips behind the last are the last one again, and are not stored. */
template <int CODE_CHUNKS> struct tile_feed {
    const uint8_t *codes, *scales, *zeros, *x; /* of the next slot */
    uint32_t code_at[CODE_CHUNKS];             /* of this thread's chunks, from codes on */
    uint32_t code_to;                          /* of the first one, in a stage */
    uint32_t scale_at, zero_at; /* of what this thread copies of them, from scales and zeros on */
    uint32_t scale_to, zero_to; /* in a stage; UINT32_MAX: none */
    uint32_t leaf, at, leaves;  /* at: slots of the leaf so far */
    uint8_t *stage, *end;
};
template <int FORM, class size>
static __device__ __forceinline__ void feed_leaf(
        tile_feed<size::CODE_CHUNKS> &f, const struct terms_product_args &a, uint32_t first_row) {
    const struct panel &w = a.w;
    const uint64_t blocks = (uint64_t)f.leaf * w.strips;
    f.codes = w.d_codes + blocks * w.runs * (4 / weight<FORM>::PAIRS * weight<FORM>::BYTES);
    f.scales = w.d_scales + blocks * w.slots * (w.scale == QUANT_SCALE_F32 ? 64 : 32);
    f.zeros = w.d_zeros + blocks * w.slots * STRIP_ROWS;
    f.x = a.x.d_terms + ((uint64_t)f.leaf * w.runs * a.x.row_tiles + first_row / 8) * size::X_TILE;
    f.at = 0;
}
/* Where a thread's 16 bytes of a strip's scales or zeros go, of `bytes` a strip that begin at `first` behind its codes;
 * *ret_at: where they are, from the leaf's first on. */
template <int FORM, class size>
static __device__ __forceinline__ uint32_t aux_place(
        const struct panel &w, uint32_t first_strip, uint32_t bytes, uint32_t first, uint32_t *ret_at) {
    const uint32_t per = bytes / 16, m = per ? threadIdx.x / per : size::ALL_STRIPS,
                   piece = per ? threadIdx.x % per : 0,
                   strip = first_strip + m < w.strips ? first_strip + m : w.strips - 1;
    *ret_at = strip * w.slots * (bytes / w.segments) + piece * 16;
    return m < size::ALL_STRIPS ? m * strip_bytes<FORM>(w) + weight<FORM>::BYTES + first + piece * 16
                                : UINT32_MAX;
}
template <int FORM, class size>
static __device__ __forceinline__ void feed_begin(tile_feed<size::CODE_CHUNKS> &f,
        const struct terms_product_args &a, const struct tile_place &p, uint32_t all_stages_bytes) {
    constexpr uint32_t PER = weight<FORM>::BYTES / 16; /* chunks of a strip */
    const struct panel &w = a.w;
    const uint32_t of_strip = w.runs * (4 / weight<FORM>::PAIRS * weight<FORM>::BYTES),
                   first = threadIdx.x / PER;
#pragma unroll
    for (uint32_t c = 0; c < size::CODE_CHUNKS; c++) {
        const uint32_t strip = p.first_strip + first + c * size::CODE_STRIPS;
        f.code_at[c] = (strip < w.strips ? strip : w.strips - 1) * of_strip + threadIdx.x % PER * 16;
    }
    f.code_to = first * strip_bytes<FORM>(w) + threadIdx.x % PER * 16;
    f.scale_to = f.zero_to = UINT32_MAX;
    if (!weight<FORM>::DENSE) {
        f.scale_to = aux_place<FORM, size>(w, p.first_strip, scale_bytes(w), 0, &f.scale_at);
        f.zero_to = aux_place<FORM, size>(
                w, p.first_strip, aux_bytes(w) - scale_bytes(w), scale_bytes(w), &f.zero_at);
    }
    f.leaf = p.first_leaf;
    f.leaves = p.leaves;
    f.stage = dynamic_shared();
    f.end = f.stage + all_stages_bytes;
    feed_leaf<FORM, size>(f, a, p.first_row);
}
/* Queues the next slot, or an empty group behind the last one. */
template <int FORM, class size>
static __device__ __forceinline__ void feed_next(tile_feed<size::CODE_CHUNKS> &f,
        const struct terms_product_args &a, uint32_t first_row, uint32_t bytes) {
    constexpr uint32_t PER = size::TERM_SLOT / 16, SLOTS = 4 / weight<FORM>::PAIRS; /* of a run */
    const struct panel &w = a.w;
    if (f.leaves) {
        uint8_t *to = f.stage + f.code_to, *x_to = f.stage + bytes - size::X_BYTES + threadIdx.x * 16;
        const uint8_t *x = f.x + threadIdx.x / PER * TERM_BYTES + threadIdx.x % PER * 16;
#pragma unroll
        for (uint32_t c = 0; c < size::CODE_CHUNKS; c++)
            copy_16(to + c * (size::CODE_STRIPS * strip_bytes<FORM>(w)), f.codes + f.code_at[c]);
        if (f.scale_to != UINT32_MAX)
            copy_16(f.stage + f.scale_to, f.scales + f.scale_at);
        if (f.zero_to != UINT32_MAX)
            copy_16(f.stage + f.zero_to, f.zeros + f.zero_at);
#pragma unroll
        for (uint32_t c = 0; c < size::X_CHUNKS; c++)
            copy_16(x_to + c * (THREADS * 16), x + c * (size::X_TERMS * TERM_BYTES));
        f.codes += weight<FORM>::BYTES;
        f.scales += scale_bytes(w);
        f.zeros += w.segments * STRIP_ROWS;
        f.x += ++f.at % SLOTS ? size::TERM_SLOT
                              : (uint64_t)a.x.row_tiles * size::X_TILE - (SLOTS - 1) * size::TERM_SLOT;
        if (f.at == slots_of_leaf<FORM>(w) && --f.leaves) {
            f.leaf++;
            feed_leaf<FORM, size>(f, a, first_row);
        }
    }
    copy_commit();
    f.stage += bytes;
    f.stage = f.stage == f.end ? dynamic_shared() : f.stage;
}

/* --- a warp's part --- */

template <int FORM, int TERMS_OF_X> struct stage_input {
    static constexpr int X = TERMS_OF_X;
    static constexpr int UNROLL = TERMS;
    const uint4 *lane; /* this lane's fragments of the warp's rows in a stage */
    __device__ __forceinline__ uint4 load(uint32_t n, uint32_t term, uint32_t pair) const {
        return lane[((n * X + term) * weight<FORM>::PAIRS + pair) * 32];
    }
};

/* A warp's leaves: BF16 has all strips at once, which loads terms once; what is unpacked, two. */
template <int FORM, int TILES> struct warp_sums {
    static constexpr int AT_ONCE = FORM == FORM_BF16 ? STRIPS : 2;
    sums<AT_ONCE, TILES> of[STRIPS / AT_ONCE];
    __device__ __forceinline__ float *all() {
        return &of[0].of[0][0][0];
    }
};
template <int FORM, int TILES, int X>
static __device__ __forceinline__ void slot_add(const struct panel &w, const uint8_t *codes,
        const stage_input<FORM, X> &in, warp_sums<FORM, TILES> &leaf) {
    constexpr int AT_ONCE = warp_sums<FORM, TILES>::AT_ONCE;
#pragma unroll
    for (uint32_t h = 0; h < STRIPS / AT_ONCE; h++, codes += AT_ONCE * strip_bytes<FORM>(w))
        slot_of<FORM>(w, codes, in, leaf.of[h]);
}

/* The tree over leaves that come one after another: sums of 1, 2 and 4 of them wait for their right half. Which of them
 * is known when it runs, so they are local memory: touched once a leaf. */
template <int PARTS> struct leaf_tree { float kept[3][PARTS]; };
/* all = with every left half that waits for leaf number `leaf`; another leaf after it: they are kept, and 0. */
template <int PARTS>
static __device__ __forceinline__ void tree_add(
        leaf_tree<PARTS> &t, uint32_t leaf, bool another, float *all) {
    uint32_t level = 0;
    for (; leaf >> level & 1; level++) {
#pragma unroll
        for (uint32_t e = 0; e < PARTS; e++)
            all[e] = t.kept[level][e] + all[e];
    }
    if (!another)
        return;
#pragma unroll
    for (uint32_t e = 0; e < PARTS; e++) {
        t.kept[level][e] = all[e];
        all[e] = 0.0f;
    }
}

/* Leaves what this block's group of leaves is worth; true in the last block of the tile, whose sums are then of all. */
template <class size> static __device__ bool groups_add(const struct terms_product_args &a, float *all) {
    constexpr uint32_t QUADS = size::PARTS / 4;
    float4 *mine = (float4 *)a.d_parts + (uint64_t)blockIdx.x * gridDim.y * QUADS * THREADS + threadIdx.x;
    uint32_t *last = (uint32_t *)dynamic_shared();
    copy_wait<0>();
#pragma unroll
    for (uint32_t e = 0; e < QUADS; e++)
        mine[(blockIdx.y * QUADS + e) * THREADS] =
                float4{all[e * 4], all[e * 4 + 1], all[e * 4 + 2], all[e * 4 + 3]};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *last = atomicAdd(a.d_counters + blockIdx.x, 1u) == gridDim.y - 1;
        if (*last)
            a.d_counters[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!*last)
        return false;
    __threadfence();
#pragma unroll
    for (uint32_t e = 0; e < QUADS; e++) {
        float v[8][4];
#pragma unroll
        for (uint32_t p = 0; p < 8; p++)
            if (p < gridDim.y)
                *(float4 *)v[p] = load_of_others(mine + (p * QUADS + e) * THREADS);
#pragma unroll
        for (uint32_t d = 1; d < 8; d *= 2) {
#pragma unroll
            for (uint32_t p = 0; p < 8; p += 2 * d) {
#pragma unroll
                for (uint32_t k = 0; k < 4 && p + d < gridDim.y; k++)
                    v[p][k] = v[p][k] + v[p + d][k];
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            all[e * 4 + k] = v[0][k];
    }
    return true;
}

template <int TILES>
static __device__ __forceinline__ void tile_store(const struct terms_product_args &a, uint32_t n_rows,
        uint32_t first_strip, uint32_t first_row, const float *all) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++) {
        if (first_strip + m >= a.w.strips)
            continue;
        const struct strip_output out = a.w.d_outputs[first_strip + m];
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t row = first_row + n * 8 + 2 * i + (e & 1), o = g + (e >> 1) * 8;
                const float y = all[(m * TILES + n) * 4 + e];
                float *d_y = a.d_y + (uint64_t)(a.first_row + row) * a.ldy + out.column + o;
                if (row < n_rows && o < out.n_valid)
                    *d_y = a.add ? *d_y + y : y;
            }
        }
    }
}

/* --- the kernel --- */

template <int STAGES_LEFT> static __device__ __forceinline__ void stage_wait(uint32_t stages) {
    if constexpr (STAGES_LEFT > 0) {
        if (stages < STAGES_LEFT + 2)
            return stage_wait<STAGES_LEFT - 1>(stages);
    }
    copy_wait<STAGES_LEFT>();
}

template <int FORM, int TILES, int X>
__global__ void __launch_bounds__(THREADS, BLOCKS)
        terms_tile_kernel(const struct terms_product_args a, const struct tile_launch l) {
    typedef tile_size<FORM, TILES, X> size;
    const struct tile_place p = place_of<size>(a.w, l.row_blocks);
    const uint32_t warp = threadIdx.x / 32, strip = warp / WARPS_ROWS * STRIPS,
                   row = warp % WARPS_ROWS * (TILES * 8), bytes = stage_bytes<FORM, TILES, X>(a.w),
                   all_rows = a.d_plan->n_rows;
    if (a.first_row + p.first_row >= all_rows)
        return;
    const uint32_t n_rows = all_rows - a.first_row;
    const bool rows_here = p.first_row + row < n_rows;
    tile_feed<size::CODE_CHUNKS> f;
    feed_begin<FORM, size>(f, a, p, l.stages * bytes);
    for (uint32_t i = 0; i + 1 < l.stages; i++)
        feed_next<FORM, size>(f, a, p.first_row, bytes);
    warp_sums<FORM, TILES> sums = {};
    leaf_tree<size::PARTS> tree;
    const uint8_t *from = dynamic_shared();
    for (uint32_t leaf = 0; leaf < p.leaves; leaf++) {
        for (uint32_t at = 0; at < slots_of_leaf<FORM>(a.w); at++) {
            stage_wait<STAGES_MAX - 2>(l.stages);
            __syncthreads();
            feed_next<FORM, size>(f, a, p.first_row, bytes);
            if (rows_here) {
                const stage_input<FORM, X> in = {(const uint4 *)(from + bytes - size::X_BYTES) +
                                                 row / 8 * (X * size::TERM_SLOT / 16) + threadIdx.x % 32};
                slot_add<FORM, TILES, X>(
                        a.w, from + strip * strip_bytes<FORM>(a.w) + threadIdx.x % 32 * 16, in, sums);
            }
            from += bytes;
            from = from == f.end ? dynamic_shared() : from;
        }
        tree_add<size::PARTS>(tree, leaf, leaf + 1 < p.leaves, sums.all());
    }
    if (gridDim.y > 1 && !groups_add<size>(a, sums.all()))
        return;
    tile_store<TILES>(a, n_rows, p.first_strip + strip, p.first_row + row, sums.all());
}

/* --- launching --- */

static inline uint32_t divided(uint32_t n, uint32_t by) {
    return (n + by - 1) / by;
}
/* How many stages of how many blocks an SM holds: 0 = too few for this shape. */
struct tile_fit {
    uint32_t stages, blocks;
};
template <int FORM, int TILES, int X>
static struct tile_fit fit_of(const struct panel &w, const struct device_size *d) {
    const size_t stage = stage_bytes<FORM, TILES, X>(w);
    for (uint32_t blocks = BLOCKS; blocks > 0; blocks--)
        for (uint32_t stages = STAGES_MAX; stages > 1; stages--)
            if (blocks * (stages * stage + 1024) <= d->shared_of_sm) /* a block takes 1 KB beside its own */
                return tile_fit{stages, blocks};
    return tile_fit{0, 0};
}
template <int FORM, int TILES, int X> static uint32_t tiles_of(const struct panel &w, uint32_t rows) {
    typedef tile_size<FORM, TILES, X> size;
    return divided(w.strips, size::ALL_STRIPS) * divided(rows, size::ROWS);
}
template <int FORM, int TILES, int X>
static cudaError_t queue_one(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    typedef tile_size<FORM, TILES, X> size;
    const struct tile_fit fit = fit_of<FORM, TILES, X>(a.w, d);
    const uint32_t tiles = tiles_of<FORM, TILES, X>(a.w, rows), room = TERMS_PARTS / (size::PARTS * THREADS),
                   most = fit.blocks * d->sms < room ? fit.blocks * d->sms : room;
    uint32_t groups = 1;
    while (groups < a.w.leaves && tiles * groups * 2 <= most)
        groups *= 2;
    return K_LAUNCH((terms_tile_kernel<FORM, TILES, X>), dim3(tiles, groups), THREADS,
            fit.stages * stage_bytes<FORM, TILES, X>(a.w), s, a,
            (tile_launch{divided(rows, size::ROWS), fit.stages}));
}
/* Tiles of 64 rows, which read less of L2, where there are enough of them for an even end. */
template <int FORM, int X>
static cudaError_t queue_form(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    const uint32_t at_once = fit_of<FORM, 4, X>(a.w, d).blocks * d->sms;
    if (at_once && tiles_of<FORM, 4, X>(a.w, rows) * 2 >= at_once * 3)
        return queue_one<FORM, 4, X>(s, a, rows, d);
    return queue_one<FORM, 2, X>(s, a, rows, d);
}

template <int FORM, int X> static cudaError_t prepare_form(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t r = cudaFuncSetAttribute(terms_tile_kernel<FORM, 4, X>, most, shared_of_block);
    return r == cudaSuccess ? cudaFuncSetAttribute(terms_tile_kernel<FORM, 2, X>, most, shared_of_block) : r;
}
static inline uint32_t rows_of(const struct terms_product_args *a, uint32_t rows_bound) {
    const uint32_t left = rows_bound - a->first_row;
    return left < TERMS_ROWS ? left : TERMS_ROWS;
}
