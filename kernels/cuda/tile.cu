/* tile.cu - INT4 and INT8 weights times INT8 activations for many rows: a block is a tile of outputs and of 64 rows.
 *
 * The sums are those of stream.cu, to the bit: a warp has its outputs' leaves one after another, and adds them as the
 * tree does by keeping what waits for its right half.
 *
 *   grid      (tiles, groups of leaves); up to 8 blocks of rows of the same outputs are neighbours, so that weights are
 *             read from L2. Up to 64 rows too few tiles may be there for all SMs: then groups of leaves are blocks of
 *             their own, and the last of a tile adds what all have left, as the tree does.
 *   block     2 warps over the outputs times 2 over the rows: tiles of 64 x 64 (up to 64 rows) or 128 x 64
 *   warp      2 or 4 strips, or gate and up strips of half as many, times 32 rows
 *   ring      2 or 3 stages of the block in shared memory, a stage a run of all its strips and rows, by cp.async; one
 *             __syncthreads() a run: it says that a stage has come and that the one filled next was read. What a thread
 *             copies is always the same place of a run, so its addresses only step.
 *
 * A stage of 128 x 64 with INT4: 8 * (1024 + 32) + 64 * 128 + 64 * 4 = 16.5 KB.
 * Bytes moved: weights once per 64 rows and activations once per tile, mostly from L2; 4 bytes per output. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/shared/elementary.h"

#define STAGES_MAX 3u
#define NEIGHBOURS 8u /* blocks of rows */
#define WARPS_OUT  2u
#define WARPS_ROWS 2u
#define THREADS    (WARPS_OUT * WARPS_ROWS * 32u)
#define ROW_TILES  4 /* of a warp, 8 rows each */
#define X_BYTES    (TILE_ROWS * ACTIVATION_RUN)
#define X_CHUNKS   (X_BYTES / 16 / THREADS) /* of a thread */

template <int BITS, int STRIPS> struct tile_size { /* STRIPS: of a warp */
    static constexpr uint32_t CODES = codes_of_run<BITS>::BYTES;
    static constexpr uint32_t ALL_STRIPS = WARPS_OUT * STRIPS;
    static constexpr uint32_t CHUNKS = ALL_STRIPS * CODES / 16 / THREADS; /* of codes, of a thread */
    static constexpr uint32_t AUX_AT = ALL_STRIPS * CODES;
};
template <int BITS, int STRIPS>
static __host__ __device__ __forceinline__ uint32_t stage_bytes(const struct panel &w) {
    typedef tile_size<BITS, STRIPS> size;
    return size::AUX_AT + size::ALL_STRIPS * aux_bytes(w) + X_BYTES + TILE_ROWS * sizeof(float);
}

/* Blocks that registers should let an SM have. */
static constexpr uint32_t blocks_of(enum cut cut) {
    return cut & CUT_ZEROS ? 2 : 3;
}

struct tile_launch {
    uint32_t row_blocks, stages;
};

/* Which outputs and rows a block has. */
struct tile_place {
    uint32_t first_slot; /* of its strips: a pair is two slots, gate and up */
    uint32_t first_row;
    uint32_t first_leaf, leaves;
};
static __device__ __forceinline__ struct tile_place place_of(
        const struct panel &w, uint32_t row_blocks, uint32_t strips) {
    const uint32_t column_blocks = gridDim.x / row_blocks, per = NEIGHBOURS * column_blocks,
                   first = blockIdx.x / per * NEIGHBOURS, in = blockIdx.x % per,
                   width = row_blocks - first < NEIGHBOURS ? row_blocks - first : NEIGHBOURS;
    struct tile_place p;
    p.first_slot = in / width * strips;
    p.first_row = (first + in % width) * TILE_ROWS;
    p.leaves = w.leaves / gridDim.y;
    p.first_leaf = blockIdx.y * p.leaves;
    return p;
}
/* The strip of a slot; slots behind the last are the last one again, and are not stored. */
template <bool PAIR>
static __device__ __forceinline__ uint32_t strip_of(const struct panel &w, uint32_t slot) {
    const uint32_t strip = PAIR ? slot / 2 + slot % 2 * (w.strips / 2) : slot;
    return strip < w.strips ? strip : w.strips - 1;
}

/* --- the ring's filling side --- */

/* One array's share of a thread: where the next run's is, and how far it is to the one after. */
struct tile_source {
    const uint8_t *from;
    uint64_t jump; /* from a leaf's last run to the next leaf's first */
    uint32_t step;
};
static __device__ __forceinline__ void source_begin(struct tile_source &s, const uint8_t *array, uint64_t at,
        uint64_t of_leaf, uint32_t of_run, const struct panel &w, uint32_t first_leaf) {
    s.from = array + first_leaf * of_leaf + at;
    s.step = of_run;
    s.jump = of_leaf - (uint64_t)of_run * (w.runs - 1);
}
static __device__ __forceinline__ void source_step(struct tile_source &s, bool last_run) {
    s.from += last_run ? s.jump : s.step;
}

template <int CHUNKS> struct tile_feed {
    struct tile_source codes, scales, zeros;
    const uint8_t *x, *x_scales;
    uint32_t code_at[CHUNKS];   /* of this thread's chunks, from codes.from on */
    uint32_t scale_to, zero_to; /* among a stage's scales and zeros; UINT32_MAX: this thread copies none */
    uint32_t run, left;         /* runs of all leaves that are still to come */
    uint8_t *stage, *end;
};
/* Scales and zeros: every 16 bytes of a strip's are a thread's. */
template <bool PAIR>
static __device__ __forceinline__ uint32_t aux_begin(struct tile_source &s, const uint8_t *array,
        uint32_t bytes, uint32_t all_strips, const struct panel &w, const struct tile_place &p) {
    const uint32_t per = bytes / 16, strip = per ? threadIdx.x / per : all_strips;
    if (strip >= all_strips)
        return UINT32_MAX;
    const uint64_t of_strip = (uint64_t)w.slots * (bytes / w.segments);
    source_begin(s, array, strip_of<PAIR>(w, p.first_slot + strip) * of_strip + threadIdx.x % per * 16,
            w.strips * of_strip, bytes, w, p.first_leaf);
    return strip * aux_bytes(w) + threadIdx.x % per * 16;
}
template <int BITS, bool PAIR, int STRIPS>
static __device__ __forceinline__ void feed_begin(tile_feed<tile_size<BITS, STRIPS>::CHUNKS> &f,
        const struct product_args &a, const struct tile_place &p, uint32_t stages) {
    typedef tile_size<BITS, STRIPS> size;
    const struct panel &w = a.w;
    const uint64_t first_run = (uint64_t)p.first_leaf * w.runs;
    source_begin(
            f.codes, w.d_codes, 0, (uint64_t)w.strips * w.runs * size::CODES, size::CODES, w, p.first_leaf);
#pragma unroll
    for (uint32_t c = 0; c < size::CHUNKS; c++) {
        const uint32_t chunk = threadIdx.x + c * THREADS, slot = p.first_slot + chunk / (size::CODES / 16);
        f.code_at[c] = strip_of<PAIR>(w, slot) * w.runs * size::CODES + chunk % (size::CODES / 16) * 16;
    }
    f.scale_to = aux_begin<PAIR>(f.scales, w.d_scales, scale_bytes(w), size::ALL_STRIPS, w, p);
    f.zero_to = aux_begin<PAIR>(f.zeros, w.d_zeros, aux_bytes(w) - scale_bytes(w), size::ALL_STRIPS, w, p);
    f.x = a.x.d_codes + (first_run * a.x.row_tiles + p.first_row / 8) * 1024 + threadIdx.x * 16;
    f.x_scales =
            (const uint8_t *)(a.x.d_scales + first_run * a.x.row_tiles * 8 + p.first_row) + threadIdx.x * 16;
    f.run = 0;
    f.left = p.leaves * w.runs;
    f.stage = dynamic_shared();
    f.end = f.stage + stages * stage_bytes<BITS, STRIPS>(w);
}
/* Queues the next run, or an empty group behind the last one. */
template <int BITS, int STRIPS>
static __device__ __forceinline__ void feed_next(
        tile_feed<tile_size<BITS, STRIPS>::CHUNKS> &f, const struct product_args &a) {
    typedef tile_size<BITS, STRIPS> size;
    const struct panel &w = a.w;
    const uint32_t bytes = stage_bytes<BITS, STRIPS>(w);
    if (f.left) {
        uint8_t *aux = f.stage + size::AUX_AT, *x = f.stage + bytes - X_BYTES - TILE_ROWS * sizeof(float);
        const bool last_run = ++f.run == w.runs;
#pragma unroll
        for (uint32_t c = 0; c < size::CHUNKS; c++)
            copy_16(f.stage + (threadIdx.x + c * THREADS) * 16, f.codes.from + f.code_at[c]);
        source_step(f.codes, last_run);
        if (f.scale_to != UINT32_MAX) {
            copy_16(aux + f.scale_to, f.scales.from);
            source_step(f.scales, last_run);
        }
        if (f.zero_to != UINT32_MAX) {
            copy_16(aux + scale_bytes(w) + f.zero_to, f.zeros.from);
            source_step(f.zeros, last_run);
        }
#pragma unroll
        for (uint32_t c = 0; c < X_CHUNKS; c++)
            copy_16(x + (threadIdx.x + c * THREADS) * 16, f.x + c * THREADS * 16);
        f.x += (uint64_t)a.x.row_tiles * 1024;
        if (threadIdx.x < TILE_ROWS / 4)
            copy_16(x + X_BYTES + threadIdx.x * 16, f.x_scales);
        f.x_scales += (uint64_t)a.x.row_tiles * 8 * sizeof(float);
        f.run = last_run ? 0 : f.run;
        f.left--;
    }
    copy_commit();
    f.stage += bytes;
    f.stage = f.stage == f.end ? dynamic_shared() : f.stage;
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
        const float2 scale = scales[n * 4];
        in.codes[n][0] = codes[0];
        in.codes[n][1] = codes[32];
        in.scales[n][0] = scale.x;
        in.scales[n][1] = scale.y;
    }
}

/* The tree over leaves that come one after another: sums of 1, 2 and 4 of them wait for their right half. Which of them
 * is known when it runs, so they are local memory: touched once a leaf. */
template <int STRIPS> struct leaf_tree { float kept[3][STRIPS * ROW_TILES * 4]; };
/* sums = with every left half that waits for leaf number `leaf`; another leaf after it: they are kept, and 0. */
template <int STRIPS>
static __device__ __forceinline__ void tree_add(
        leaf_tree<STRIPS> &t, uint32_t leaf, bool another, float (*sums)[ROW_TILES][4]) {
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

/* Leaves what this block's group of leaves is worth; true in the last block of the tile, whose sums are then of all. */
template <int STRIPS>
static __device__ bool groups_add(const struct product_args &a, float (*sums)[ROW_TILES][4]) {
    constexpr uint32_t QUADS = STRIPS * ROW_TILES;
    static_assert(QUADS * 4 * THREADS == TILE_PARTS, "tiles of 64 x 64");
    float4 *mine = (float4 *)(a.d_parts + (uint64_t)blockIdx.x * gridDim.y * TILE_PARTS) + threadIdx.x, v[8];
    uint32_t *last = (uint32_t *)dynamic_shared();
    copy_wait<0>();
#pragma unroll
    for (uint32_t e = 0; e < QUADS; e++) {
        const float *q = (&sums[0][0][0]) + e * 4;
        mine[(blockIdx.y * QUADS + e) * THREADS] = float4{q[0], q[1], q[2], q[3]};
    }
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
        float *q = (&sums[0][0][0]) + e * 4;
#pragma unroll
        for (uint32_t p = 0; p < 8; p++)
            if (p < gridDim.y)
                v[p] = load_of_others(mine + (p * QUADS + e) * THREADS);
#pragma unroll
        for (uint32_t d = 1; d < 8; d *= 2) {
#pragma unroll
            for (uint32_t p = 0; p < 8; p += 2 * d) {
                if (p + d < gridDim.y) {
                    v[p].x = v[p].x + v[p + d].x;
                    v[p].y = v[p].y + v[p + d].y;
                    v[p].z = v[p].z + v[p + d].z;
                    v[p].w = v[p].w + v[p + d].w;
                }
            }
        }
        q[0] = v[0].x;
        q[1] = v[0].y;
        q[2] = v[0].z;
        q[3] = v[0].w;
    }
    return true;
}

template <bool PAIR, int STRIPS>
static __device__ __forceinline__ void tile_store(const struct product_args &a, uint32_t n_rows,
        uint32_t first_slot, uint32_t first_row, const float (*sums)[ROW_TILES][4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m += PAIR ? 2 : 1) {
        const uint32_t unit = PAIR ? (first_slot + m) / 2 : first_slot + m;
        if (unit >= a.units)
            continue;
        const struct strip_output out = a.w.d_outputs[unit];
#pragma unroll
        for (uint32_t n = 0; n < ROW_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t row = first_row + n * 8 + 2 * i + (e & 1), o = g + (e >> 1) * 8;
                const float y = PAIR ? f32_silu(sums[m][n][e]) * sums[m + 1][n][e] : sums[m][n][e];
                float *d_y = a.d_y + (uint64_t)row * a.ldy + out.column + o;
                if (row < n_rows && o < out.n_valid)
                    *d_y = a.add ? *d_y + y : y;
            }
        }
    }
}

/* --- the kernel --- */

template <int BITS, enum cut CUT, bool PAIR, int STRIPS>
__global__ void __launch_bounds__(THREADS, blocks_of(CUT))
        tile_kernel(const struct product_args a, const struct tile_launch l) {
    typedef tile_size<BITS, STRIPS> size;
    const struct tile_place p = place_of(a.w, l.row_blocks, size::ALL_STRIPS);
    const uint32_t warp = threadIdx.x / 32, strip = warp / WARPS_ROWS * STRIPS, half = warp % WARPS_ROWS,
                   n_rows = a.d_plan->n_rows, aux = aux_bytes(a.w), bytes = stage_bytes<BITS, STRIPS>(a.w);
    const bool rows_here = p.first_row + half * (ROW_TILES * 8) < n_rows;
    if (p.first_row >= n_rows)
        return;
    tile_feed<size::CHUNKS> f;
    feed_begin<BITS, PAIR, STRIPS>(f, a, p, l.stages);
    for (uint32_t i = 0; i + 1 < l.stages; i++)
        feed_next<BITS, STRIPS>(f, a);
    float sums[STRIPS][ROW_TILES][4] = {};
    leaf_tree<STRIPS> tree;
    const uint8_t *from = dynamic_shared();
    for (uint32_t leaf = 0; leaf < p.leaves; leaf++) {
        for (uint32_t run = 0; run < a.w.runs; run++) {
            if (l.stages == STAGES_MAX)
                copy_wait<STAGES_MAX - 2>();
            else
                copy_wait<0>();
            __syncthreads();
            feed_next<BITS, STRIPS>(f, a);
            if (rows_here) {
                run_input<ROW_TILES> in;
                input_of_stage(in, from + size::AUX_AT + size::ALL_STRIPS * aux, half);
#pragma unroll
                for (uint32_t m = 0; m < STRIPS; m++)
                    run_evenly<BITS, CUT, ROW_TILES>(a.w, from + (strip + m) * size::CODES,
                            from + size::AUX_AT + (strip + m) * aux, in, sums[m]);
            }
            from += bytes;
            from = from == f.end ? dynamic_shared() : from;
        }
        tree_add<STRIPS>(tree, leaf, leaf + 1 < p.leaves, sums);
    }
    if constexpr (STRIPS == 2) {
        if (gridDim.y > 1 && !groups_add<STRIPS>(a, sums))
            return;
    }
    tile_store<PAIR, STRIPS>(a, n_rows, p.first_slot + strip, p.first_row + half * (ROW_TILES * 8), sums);
}

/* --- launching --- */

/* Groups of leaves that make up for too few tiles. */
static uint32_t groups_for(uint32_t tiles, uint32_t leaves, uint32_t sms) {
    const uint32_t most = 3 * sms < SPLIT_BLOCKS_MAX ? 3 * sms : SPLIT_BLOCKS_MAX;
    uint32_t groups = 1;
    while (groups < leaves && tiles * groups * 2 <= most)
        groups *= 2;
    return groups;
}

template <int BITS, enum cut CUT, bool PAIR, int STRIPS>
static cudaError_t queue_one(
        cudaStream_t s, struct product_args a, uint32_t rows, const struct device_size *d) {
    typedef tile_size<BITS, STRIPS> size;
    const uint32_t row_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, stage = stage_bytes<BITS, STRIPS>(a.w),
                   tiles = row_blocks * ((a.w.strips + size::ALL_STRIPS - 1) / size::ALL_STRIPS),
                   groups = STRIPS == 2 ? groups_for(tiles, a.w.leaves, d->sms) : 1,
                   stages = 2 * (STAGES_MAX * stage + 1024) <= d->shared_of_sm ? STAGES_MAX : 2;
    a.units = PAIR ? a.w.strips / 2 : a.w.strips;
    return K_LAUNCH((tile_kernel<BITS, CUT, PAIR, STRIPS>), dim3(tiles, groups), THREADS, stages * stage, s,
            a, (tile_launch{row_blocks, stages}));
}

template <int BITS, enum cut CUT>
static cudaError_t queue_form(
        cudaStream_t s, const struct product_args &a, uint32_t rows, const struct device_size *d) {
    if (a.pair)
        return rows <= TILE_ROWS ? queue_one<BITS, CUT, true, 2>(s, a, rows, d)
                                 : queue_one<BITS, CUT, true, 4>(s, a, rows, d);
    return rows <= TILE_ROWS ? queue_one<BITS, CUT, false, 2>(s, a, rows, d)
                             : queue_one<BITS, CUT, false, 4>(s, a, rows, d);
}
template <int BITS>
static cudaError_t queue_cut(
        cudaStream_t s, const struct product_args &a, uint32_t rows, const struct device_size *d) {
    switch (cut_of(a.w)) {
    case CUT_1:
        return queue_form<BITS, CUT_1>(s, a, rows, d);
    case CUT_2:
        return queue_form<BITS, CUT_2>(s, a, rows, d);
    case CUT_4:
        return queue_form<BITS, CUT_4>(s, a, rows, d);
    case CUT_1_ZEROS:
        return queue_form<BITS, CUT_1_ZEROS>(s, a, rows, d);
    case CUT_2_ZEROS:
        return queue_form<BITS, CUT_2_ZEROS>(s, a, rows, d);
    case CUT_4_ZEROS:
        return queue_form<BITS, CUT_4_ZEROS>(s, a, rows, d);
    default:
        return cudaErrorInvalidValue;
    }
}
cudaError_t queue_tiles(
        cudaStream_t s, const struct product_args *a, uint32_t rows_bound, const struct device_size *d) {
    return a->w.form == FORM_INT4 ? queue_cut<4>(s, *a, rows_bound, d) : queue_cut<8>(s, *a, rows_bound, d);
}
/* A thread counts a leaf's codes in 32 bits. */
bool tiles_can(const struct panel *w) {
    const uint64_t run = w->form == FORM_INT4 ? codes_of_run<4>::BYTES : codes_of_run<8>::BYTES;
    return w->segments != SEGMENTS_ANY && w->strips * (uint64_t)w->runs * run <= UINT32_MAX;
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
