/* tile.cu - INT4 and INT8 weights times INT8 activations for many rows: a block is a tile of outputs and of 64 rows.
 *
 * The sums are those of stream.cu, to the bit: a warp has its outputs' leaves one after another, and adds them as the
 * tree does by keeping what waits for its right half.
 *
 *   grid      tiles; up to 8 blocks of rows of the same outputs are neighbours, so that weights are read from L2
 *   block     2 warps over the rows times 2 (up to 64 rows) or 4 over the outputs: tiles of 64 x 64 or 128 x 64
 *   warp      2 strips, or a gate and an up strip, times 32 rows
 *   ring      3 stages of the block in shared memory, a stage a run of all its strips and rows, by cp.async; one
 *             __syncthreads() a run: it says that a stage has come and that the one filled next was read
 *
 * A stage of 128 x 64 with INT4: 8 * (1024 + 32) + 64 * 128 + 64 * 4 = 16.5 KB, three are 50 KB.
 * Bytes moved: weights once per 64 rows and activations once per tile, mostly from L2; 4 bytes per output. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/shared/elementary.h"

#define STAGES     3u
#define NEIGHBOURS 8u /* blocks of rows */
#define WARPS_ROWS 2u
#define STRIPS     2u /* of a warp */
#define ROW_TILES  4  /* of a warp, 8 rows each */
#define X_BYTES    (TILE_ROWS * ACTIVATION_RUN)

template <int BITS, int WARPS_OUT> struct tile_size {
    static constexpr uint32_t CODES = codes_of_run<BITS>::BYTES;
    static constexpr uint32_t ALL_STRIPS = WARPS_OUT * STRIPS;
    static constexpr uint32_t THREADS = WARPS_OUT * WARPS_ROWS * 32;
    static constexpr uint32_t CHUNKS = ALL_STRIPS * CODES / 16 / THREADS; /* of codes, of a thread */
    static constexpr uint32_t BLOCKS = WARPS_OUT == 2 ? 3 : 2;
};
static __host__ __device__ __forceinline__ uint32_t stage_bytes(uint32_t strips, uint32_t strip_bytes) {
    return strips * strip_bytes + X_BYTES + TILE_ROWS * sizeof(float);
}

/* Which outputs and rows a block has. */
struct tile_place {
    uint32_t first_slot; /* of its strips: a pair is two slots, gate and up */
    uint32_t first_row;
};
static __device__ __forceinline__ struct tile_place place_of(uint32_t row_blocks, uint32_t strips) {
    const uint32_t column_blocks = gridDim.x / row_blocks, per = NEIGHBOURS * column_blocks,
                   first = blockIdx.x / per * NEIGHBOURS, in = blockIdx.x % per,
                   width = row_blocks - first < NEIGHBOURS ? row_blocks - first : NEIGHBOURS;
    struct tile_place p;
    p.first_slot = in / width * strips;
    p.first_row = (first + in % width) * TILE_ROWS;
    return p;
}
/* The strip of a slot; slots behind the last are the last one again, and are not stored. */
template <bool PAIR>
static __device__ __forceinline__ uint32_t strip_of(const struct panel &w, uint32_t slot) {
    const uint32_t strip = PAIR ? slot / 2 + slot % 2 * (w.strips / 2) : slot;
    return strip < w.strips ? strip : w.strips - 1;
}

/* --- the ring's filling side --- */

template <int CHUNKS> struct tile_feed {
    const uint8_t *codes[CHUNKS]; /* this thread's chunks of run 0 of leaf 0 */
    uint32_t leaf, run, stage;
};
template <int BITS, bool PAIR, int WARPS_OUT>
static __device__ __forceinline__ void feed_begin(
        tile_feed<tile_size<BITS, WARPS_OUT>::CHUNKS> &f, const struct panel &w, uint32_t first_slot) {
    typedef tile_size<BITS, WARPS_OUT> size;
#pragma unroll
    for (uint32_t c = 0; c < size::CHUNKS; c++) {
        const uint32_t chunk = threadIdx.x + c * size::THREADS, slot = chunk / (size::CODES / 16),
                       at = chunk % (size::CODES / 16) * 16;
        f.codes[c] = w.d_codes + (uint64_t)strip_of<PAIR>(w, first_slot + slot) * w.runs * size::CODES + at;
    }
    f.leaf = f.run = f.stage = 0;
}
/* Scales and zeros of a run of all strips, behind each strip's codes. */
template <int BITS, bool PAIR, int WARPS_OUT>
static __device__ __forceinline__ void feed_aux(
        const struct panel &w, uint32_t first_slot, uint32_t leaf, uint32_t run, uint8_t *stage) {
    typedef tile_size<BITS, WARPS_OUT> size;
    const uint32_t aux = aux_bytes(w), scales = scale_bytes(w), per = aux / 16;
    for (uint32_t chunk = threadIdx.x; chunk < size::ALL_STRIPS * per; chunk += size::THREADS) {
        const uint32_t s = chunk / per, at = chunk % per * 16;
        const uint64_t slot =
                ((uint64_t)leaf * w.strips + strip_of<PAIR>(w, first_slot + s)) * w.slots + run * w.segments;
        const uint8_t *from = at < scales ? w.d_scales + slot * (scales / w.segments) + at
                                          : w.d_zeros + slot * STRIP_ROWS + (at - scales);
        copy_16(stage + s * (size::CODES + aux) + size::CODES + at, from);
    }
}
/* Queues the next run, or an empty group behind the last one. */
template <int BITS, bool PAIR, int WARPS_OUT>
static __device__ __forceinline__ void feed_next(tile_feed<tile_size<BITS, WARPS_OUT>::CHUNKS> &f,
        const struct product_args &a, const struct tile_place &p) {
    typedef tile_size<BITS, WARPS_OUT> size;
    const struct panel &w = a.w;
    const uint32_t strip_bytes = size::CODES + aux_bytes(w);
    if (f.leaf < w.leaves) {
        uint8_t *stage = dynamic_shared() + f.stage * stage_bytes(size::ALL_STRIPS, strip_bytes);
        uint8_t *x = stage + size::ALL_STRIPS * strip_bytes;
        const uint64_t codes_at = ((uint64_t)f.leaf * w.strips * w.runs + f.run) * size::CODES,
                       x_run = (uint64_t)(f.leaf * w.runs + f.run) * a.x.row_tiles + p.first_row / 8;
#pragma unroll
        for (uint32_t c = 0; c < size::CHUNKS; c++) {
            const uint32_t chunk = threadIdx.x + c * size::THREADS;
            copy_16(stage + chunk / (size::CODES / 16) * strip_bytes + chunk % (size::CODES / 16) * 16,
                    f.codes[c] + codes_at);
        }
        feed_aux<BITS, PAIR, WARPS_OUT>(w, p.first_slot, f.leaf, f.run, stage);
#pragma unroll
        for (uint32_t c = threadIdx.x; c < X_BYTES / 16; c += size::THREADS)
            copy_16(x + c * 16, a.x.d_codes + x_run * 1024 + c * 16);
        if (threadIdx.x < TILE_ROWS / 4)
            copy_16(x + X_BYTES + threadIdx.x * 16, a.x.d_scales + x_run * 8 + threadIdx.x * 4);
        if (++f.run == w.runs) {
            f.run = 0;
            f.leaf++;
        }
    }
    copy_commit();
    f.stage = f.stage + 1 == STAGES ? 0 : f.stage + 1;
}

/* --- a warp's part --- */

/* Rows 32 * `half` .. + 31 of a stage. */
static __device__ __forceinline__ void input_of_stage(
        run_input<ROW_TILES> &in, const uint8_t *x, uint32_t half) {
    const uint32_t lane = threadIdx.x % 32, i = lane % 4;
    const float2 *scales = (const float2 *)(x + X_BYTES) + half * (ROW_TILES * 4) + i;
#pragma unroll
    for (uint32_t n = 0; n < ROW_TILES; n++) {
        const uint4 *codes = (const uint4 *)(x + (half * ROW_TILES + n) * 1024) + lane;
        in.codes[n][0] = codes[0];
        in.codes[n][1] = codes[32];
        in.scales[n][0] = scales[n * 4].x;
        in.scales[n][1] = scales[n * 4].y;
    }
}

/* The tree over leaves that come one after another: sums of 1, 2 and 4 of them wait for their right half. */
struct leaf_tree {
    float kept[3][STRIPS * ROW_TILES * 4];
};
/* sums = with every left half that waits for leaf number `leaf`; another leaf after it: they are kept, and 0. */
static __device__ __forceinline__ void tree_add(
        struct leaf_tree &t, uint32_t leaf, bool another, float (*sums)[ROW_TILES][4]) {
    float *all = &sums[0][0][0];
    uint32_t level = 0;
    for (; leaf >> level & 1; level++) {
#pragma unroll
        for (uint32_t e = 0; e < STRIPS * ROW_TILES * 4; e++)
            all[e] = t.kept[level][e] + all[e];
    }
    if (!another)
        return;
#pragma unroll
    for (uint32_t e = 0; e < STRIPS * ROW_TILES * 4; e++) {
        t.kept[level][e] = all[e];
        all[e] = 0.0f;
    }
}

template <bool PAIR>
static __device__ __forceinline__ void tile_store(const struct product_args &a, uint32_t n_rows,
        uint32_t first_slot, uint32_t first_row, const float (*sums)[ROW_TILES][4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m += PAIR ? 2 : 1) {
        const uint32_t unit = PAIR ? first_slot / 2 : first_slot + m;
        if (unit >= a.units)
            continue;
        const struct strip_output out = a.w.d_outputs[unit];
#pragma unroll
        for (uint32_t n = 0; n < ROW_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t row = first_row + n * 8 + 2 * i + (e & 1), o = g + (e >> 1) * 8;
                const float y = PAIR ? f32_silu(sums[0][n][e]) * sums[1][n][e] : sums[m][n][e];
                if (row < n_rows && o < out.n_valid)
                    a.d_y[(uint64_t)row * a.ldy + out.column + o] = y;
            }
        }
    }
}

/* --- the kernel --- */

template <int BITS, enum cut CUT, bool PAIR, int WARPS_OUT>
__global__ void __launch_bounds__((tile_size<BITS, WARPS_OUT>::THREADS), (tile_size<BITS, WARPS_OUT>::BLOCKS))
        tile_kernel(const struct product_args a, uint32_t row_blocks) {
    typedef tile_size<BITS, WARPS_OUT> size;
    const struct tile_place p = place_of(row_blocks, size::ALL_STRIPS);
    const uint32_t warp = threadIdx.x / 32, strip = warp / WARPS_ROWS * STRIPS, half = warp % WARPS_ROWS,
                   strip_bytes = size::CODES + aux_bytes(a.w), n_rows = a.d_plan->n_rows;
    if (p.first_row >= n_rows)
        return;
    tile_feed<size::CHUNKS> f;
    feed_begin<BITS, PAIR, WARPS_OUT>(f, a.w, p.first_slot);
    for (uint32_t i = 0; i + 1 < STAGES; i++)
        feed_next<BITS, PAIR, WARPS_OUT>(f, a, p);
    float sums[STRIPS][ROW_TILES][4] = {};
    struct leaf_tree tree;
    uint32_t stage = 0;
    for (uint32_t leaf = 0; leaf < a.w.leaves; leaf++) {
        for (uint32_t run = 0; run < a.w.runs; run++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            feed_next<BITS, PAIR, WARPS_OUT>(f, a, p);
            const uint8_t *from = dynamic_shared() + stage * stage_bytes(size::ALL_STRIPS, strip_bytes);
            run_input<ROW_TILES> in;
            input_of_stage(in, from + size::ALL_STRIPS * strip_bytes, half);
#pragma unroll
            for (uint32_t m = 0; m < STRIPS; m++)
                run_evenly<BITS, CUT, ROW_TILES>(a.w, from + (strip + m) * strip_bytes, in, sums[m]);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        tree_add(tree, leaf, leaf + 1 < a.w.leaves, sums);
    }
    tile_store<PAIR>(a, n_rows, p.first_slot + strip, p.first_row + half * (ROW_TILES * 8), sums);
}

/* --- launching --- */

template <int BITS, enum cut CUT, bool PAIR, int WARPS_OUT>
static cudaError_t queue_one(cudaStream_t s, struct product_args a, uint32_t rows) {
    typedef tile_size<BITS, WARPS_OUT> size;
    const uint32_t row_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS,
                   column_blocks = (a.w.strips + size::ALL_STRIPS - 1) / size::ALL_STRIPS;
    const size_t shared = STAGES * stage_bytes(size::ALL_STRIPS, size::CODES + aux_bytes(a.w));
    a.units = PAIR ? a.w.strips / 2 : a.w.strips;
    return K_LAUNCH((tile_kernel<BITS, CUT, PAIR, WARPS_OUT>), row_blocks * column_blocks, size::THREADS,
            shared, s, a, row_blocks);
}

template <int BITS, enum cut CUT>
static cudaError_t queue_form(cudaStream_t s, const struct product_args &a, uint32_t rows) {
    if (a.pair)
        return rows <= TILE_ROWS ? queue_one<BITS, CUT, true, 2>(s, a, rows)
                                 : queue_one<BITS, CUT, true, 4>(s, a, rows);
    return rows <= TILE_ROWS ? queue_one<BITS, CUT, false, 2>(s, a, rows)
                             : queue_one<BITS, CUT, false, 4>(s, a, rows);
}
template <int BITS>
static cudaError_t queue_cut(cudaStream_t s, const struct product_args &a, uint32_t rows) {
    switch (cut_of(a.w)) {
    case CUT_1:
        return queue_form<BITS, CUT_1>(s, a, rows);
    case CUT_2:
        return queue_form<BITS, CUT_2>(s, a, rows);
    case CUT_4:
        return queue_form<BITS, CUT_4>(s, a, rows);
    case CUT_1_ZEROS:
        return queue_form<BITS, CUT_1_ZEROS>(s, a, rows);
    case CUT_2_ZEROS:
        return queue_form<BITS, CUT_2_ZEROS>(s, a, rows);
    case CUT_4_ZEROS:
        return queue_form<BITS, CUT_4_ZEROS>(s, a, rows);
    default:
        return cudaErrorInvalidValue;
    }
}
cudaError_t queue_tiles(cudaStream_t s, const struct product_args *a, uint32_t rows_bound) {
    return a->w.format == QUANT_INT4 ? queue_cut<4>(s, *a, rows_bound) : queue_cut<8>(s, *a, rows_bound);
}

template <int BITS, enum cut CUT> static cudaError_t prepare(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t r = cudaFuncSetAttribute(tile_kernel<BITS, CUT, false, 2>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(tile_kernel<BITS, CUT, false, 4>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(tile_kernel<BITS, CUT, true, 2>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(tile_kernel<BITS, CUT, true, 4>, most, shared_of_block);
    return r;
}
cudaError_t tiles_prepare(uint32_t shared_of_block) {
    cudaError_t (*const all[])(int) = {prepare<4, CUT_1>, prepare<4, CUT_2>, prepare<4, CUT_4>,
            prepare<4, CUT_1_ZEROS>, prepare<4, CUT_2_ZEROS>, prepare<4, CUT_4_ZEROS>, prepare<8, CUT_1>,
            prepare<8, CUT_2>, prepare<8, CUT_4>, prepare<8, CUT_1_ZEROS>, prepare<8, CUT_2_ZEROS>,
            prepare<8, CUT_4_ZEROS>};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i]((int)shared_of_block);
    return r;
}
