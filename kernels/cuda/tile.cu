/* tile.cu - INT4 and INT8 weights times INT8 activations for many rows: a block is a tile of outputs and of 64 rows.
 *
 * The sums are those of stream.cu, to the bit: a warp has its outputs' leaves one after another, and adds them as the
 * tree does by keeping what waits for its right half.
 *
 *   grid      (tiles, groups of leaves); up to 8 blocks of rows of the same outputs are neighbours, so that weights are
 *             read from L2. Too few tiles may be there for all SMs: then groups of leaves are blocks of their own, and
 *             the last of a tile adds what all have left, as the tree does.
 *   block     2 warps over the outputs times 2 over the rows: a tile of 64 x 64
 *   warp      2 strips, or a gate and an up strip, times 32 rows
 *   ring      2 or 3 stages of the block in shared memory, a stage a run of all its strips and rows, by cp.async; one
 *             __syncthreads() a run: it says that a stage has come and that the one filled next was read. What a thread
 *             copies is always the same place of a run, so its addresses only step.
 *   run       one stretch without a branch: while the tensor cores have a strip's segment, the one before is scaled
 *             and added to its leaf. So all that a run may look like is known when the kernel is compiled.
 *   registers 128 with 4 blocks on an SM, and a run fills them: what a loop over runs carries is kept small. Places in
 *             arrays are counted in 16 bytes from a base that the launch has; no branch depends on how many rows there
 *             are; segments of all strips come before the next segments, so that activations are done with early.
 *
 * A stage with INT4: 4 * (1024 + 32) + 64 * 4 + 64 * 128 = 12.4 KB.
 * Bytes moved: weights once per 64 rows and activations once per tile, mostly from L2; 4 bytes per output. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/shared/elementary.h"

#define STAGES_MAX 3u
#define NEIGHBOURS 8u    /* blocks of rows */
#define RESERVED   1024u /* shared memory that every block of an SM takes besides */
#define WARPS_OUT  2u
#define WARPS_ROWS 2u
#define WARPS      (WARPS_OUT * WARPS_ROWS)
#define THREADS    (WARPS * 32u)
#define STRIPS     2u /* of a warp */
#define ROW_TILES  4  /* of a warp, 8 rows each */
#define X_BYTES    (TILE_ROWS * ACTIVATION_RUN)
#define X_CHUNKS   (X_BYTES / 16 / THREADS) /* of a thread */

/* What a kernel is made for: the form of the weights, how many blocks an SM should have, which is what registers are
 * for (rather many blocks that wait for nobody than much in one), and whether at most HALF the tile's rows are there:
 * then the warps of the others only copy. */
template <int BITS_, enum cut CUT, enum quant_scale SCALE_, int BLOCKS_, bool HALF_> struct tile {
    static constexpr int BITS = BITS_, BLOCKS = BLOCKS_;
    static constexpr enum quant_scale SCALE = SCALE_;
    static constexpr uint32_t SEGMENTS = CUT & CUT_SEGMENTS;
    static constexpr bool HALF = HALF_;
    static constexpr bool ZEROS = (CUT & CUT_ZEROS) != 0;
    static constexpr bool FIRSTS = BLOCKS <= 3; /* leaf_firsts are in registers */
    static constexpr uint32_t ALL_STRIPS = WARPS_OUT * STRIPS;
    /* A stage: codes, scales and zeros of all strips, scales of x, x. */
    static constexpr uint32_t CODES = codes_of_run<BITS>::BYTES; /* of a strip, as the next two */
    static constexpr uint32_t SCALE_BYTES = SEGMENTS * STRIP_ROWS * (SCALE == QUANT_SCALE_F32 ? 4 : 2);
    static constexpr uint32_t ZERO_BYTES = ZEROS ? SEGMENTS * STRIP_ROWS : 0;
    static constexpr uint32_t SCALES_AT = ALL_STRIPS * CODES;
    static constexpr uint32_t ZEROS_AT = SCALES_AT + ALL_STRIPS * SCALE_BYTES;
    static constexpr uint32_t X_SCALES_AT = ZEROS_AT + ALL_STRIPS * ZERO_BYTES;
    static constexpr uint32_t X_AT = X_SCALES_AT + TILE_ROWS * sizeof(float);
    static constexpr uint32_t STAGE = X_AT + X_BYTES;
    /* From SCALES_AT to X_AT, in chunks of 16 bytes; those of a thread. */
    static constexpr uint32_t AUX_ALL = (X_AT - SCALES_AT) / 16;
    static constexpr uint32_t AUX = (AUX_ALL + THREADS - 1) / THREADS;
    static constexpr uint32_t SUMS = STRIPS * ROW_TILES * 4; /* of a thread */
};

struct tile_launch {
    uint32_t row_blocks, stages, ring_bytes;
    uint32_t ahead; /* tile_feed.run when the run to be multiplied next is a leaf's first */
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
static __device__ __forceinline__ uint32_t strip_of(const struct product_args &a, uint32_t slot) {
    const uint32_t strip = a.pair ? slot / 2 + slot % 2 * (a.w.strips / 2) : slot;
    return strip < a.w.strips ? strip : a.w.strips - 1;
}

/* Where the next stage of the ring begins. */
template <class T>
static __device__ __forceinline__ uint32_t stage_after(uint32_t stage, const struct tile_launch &l) {
    return stage + T::STAGE == l.ring_bytes ? 0 : stage + T::STAGE;
}

/* --- the ring's filling side --- */

/* 16 bytes of every run: where the last run's were, and, in 16 bytes, how far it is to the next, and from a leaf's last
 * run to the next leaf's first besides. Addresses step before they are used: whoever steps one right behind a copy
 * waits until the copy has read it. */
struct tile_source {
    const uint4 *from;
    uint32_t step, besides;
};
template <class T> struct tile_feed {
    uint32_t codes[T::ALL_STRIPS / WARPS]; /* in d_codes, in 16 bytes; a warp copies whole strips */
    struct tile_source aux[T::AUX];
    uint32_t x;     /* in x.d_codes, in 16 bytes */
    uint32_t run;   /* the next one of its leaf */
    int32_t left;   /* runs of all leaves that are still to come; below 0: how often none came */
    uint32_t stage; /* bytes into the ring */
};
/* A chunk of an array of [leaf][strip][bytes_all], of which a run has `bytes`. */
static __device__ __forceinline__ struct tile_source source_of_strips(const struct product_args &a,
        const struct tile_place &p, const uint8_t *d_array, uint32_t chunk, uint32_t bytes,
        uint64_t bytes_all) {
    const uint32_t strip = strip_of(a, p.first_slot + chunk / (bytes / 16));
    struct tile_source s;
    s.step = bytes / 16;
    s.besides = (uint32_t)((a.w.strips * bytes_all - (uint64_t)a.w.runs * bytes) / 16);
    s.from = (const uint4 *)(d_array + ((uint64_t)p.first_leaf * a.w.strips + strip) * bytes_all) +
             chunk % (bytes / 16) - (uint64_t)s.step - s.besides;
    return s;
}
/* A chunk of what lies between the codes and x. */
template <class T>
static __device__ __forceinline__ struct tile_source aux_source(
        const struct product_args &a, const struct tile_place &p, uint32_t chunk) {
    constexpr uint32_t zeros_at = (T::ZEROS_AT - T::SCALES_AT) / 16,
                       x_at = (T::X_SCALES_AT - T::SCALES_AT) / 16;
    const struct panel &w = a.w;
    if (chunk < zeros_at)
        return source_of_strips(
                a, p, w.d_scales, chunk, T::SCALE_BYTES, (uint64_t)w.slots * (T::SCALE_BYTES / T::SEGMENTS));
    if (T::ZEROS && chunk < x_at)
        return source_of_strips(
                a, p, w.d_zeros, chunk - zeros_at, STRIP_ROWS * T::SEGMENTS, (uint64_t)w.slots * STRIP_ROWS);
    const uint64_t of_run = (uint64_t)a.x.row_tiles * 8;
    struct tile_source s;
    s.step = a.x.row_tiles * 2;
    s.besides = 0;
    s.from = (const uint4 *)(a.x.d_scales + (uint64_t)p.first_leaf * w.runs * of_run + p.first_row) +
             (chunk - x_at) - (uint64_t)s.step;
    return s;
}
template <class T> static __device__ __forceinline__ uint32_t codes_besides(const struct panel &w) {
    return (w.strips - 1) * w.runs * (T::CODES / 16);
}
template <class T>
static __device__ __forceinline__ void feed_begin(
        tile_feed<T> &f, const struct product_args &a, const struct tile_place &p) {
    const struct panel &w = a.w;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (uint32_t c = 0; c < T::ALL_STRIPS / WARPS; c++) {
        const uint32_t strip = strip_of(a, p.first_slot + c * WARPS + warp);
        f.codes[c] = (p.first_leaf * w.strips + strip) * w.runs * (T::CODES / 16) + lane -
                     (T::CODES / 16 + codes_besides<T>(w));
    }
#pragma unroll
    for (uint32_t c = 0; c < T::AUX; c++)
        f.aux[c] = aux_source<T>(a, p, threadIdx.x + c * THREADS);
    f.x = (p.first_leaf * w.runs * a.x.row_tiles + p.first_row / 8) * 64 + threadIdx.x - a.x.row_tiles * 64;
    f.run = 0;
    f.left = (int32_t)(p.leaves * w.runs);
    f.stage = 0;
}
/* Queues the next run, or an empty group behind the last one. */
template <class T>
static __device__ __forceinline__ void feed_next(
        tile_feed<T> &f, const struct product_args &a, const struct tile_launch &l) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint8_t *stage = dynamic_shared() + f.stage;
    if (f.left > 0) {
        const uint32_t besides = f.run == 0 ? codes_besides<T>(a.w) : 0;
#pragma unroll
        for (uint32_t c = 0; c < T::ALL_STRIPS / WARPS; c++) {
            f.codes[c] += T::CODES / 16 + besides;
            const uint4 *from = (const uint4 *)a.w.d_codes + f.codes[c];
#pragma unroll
            for (uint32_t at = 0; at < T::CODES / 16; at += 32)
                copy_16(stage + (c * WARPS + warp) * T::CODES + (lane + at) * 16, from + at);
        }
#pragma unroll
        for (uint32_t c = 0; c < T::AUX; c++) {
            f.aux[c].from += f.aux[c].step;
            if (f.run == 0)
                f.aux[c].from += f.aux[c].besides;
            if (threadIdx.x + c * THREADS < T::AUX_ALL)
                copy_16(stage + T::SCALES_AT + (threadIdx.x + c * THREADS) * 16, f.aux[c].from);
        }
        f.x += a.x.row_tiles * 64;
        const uint4 *x = (const uint4 *)a.x.d_codes + f.x;
#pragma unroll
        for (uint32_t c = 0; c < X_CHUNKS; c++)
            copy_16(stage + T::X_AT + (threadIdx.x + c * THREADS) * 16, x + c * THREADS);
    }
    f.left--;
    f.run = f.run + 1 == a.w.runs ? 0 : f.run + 1;
    copy_commit();
    f.stage = stage_after<T>(f.stage, l);
}

/* --- a warp's part of a run --- */

/* Rows 32 * `half` .. + 31 of a stage. */
template <class T>
static __device__ __forceinline__ void input_of_stage(
        run_input<ROW_TILES> &in, const uint8_t *stage, uint32_t half) {
    const uint32_t lane = threadIdx.x % 32, i = lane % 4;
    const uint4 *codes = (const uint4 *)(stage + T::X_AT + half * (ROW_TILES * 1024)) + lane;
    const float2 *scales = (const float2 *)(stage + T::X_SCALES_AT) + half * (ROW_TILES * 4) + i;
#pragma unroll
    for (uint32_t n = 0; n < ROW_TILES; n++) {
        const float2 scale = scales[n * 4];
        in.codes[n][0] = codes[n * 64];
        in.codes[n][1] = codes[n * 64 + 32];
        in.scales[n][0] = scale.x;
        in.scales[n][1] = scale.y;
    }
}
/* Sums of x itself over each segment, of columns 2i and 2i + 1: the product with a matrix of ones. */
template <class T> struct input_sums { int32_t x[T::SEGMENTS][ROW_TILES][2]; };
template <class T>
static __device__ __forceinline__ void input_sums_of(input_sums<T> &s, const run_input<ROW_TILES> &in) {
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
#pragma unroll
    for (uint32_t g = 0; g < T::SEGMENTS; g++) {
#pragma unroll
        for (uint32_t n = 0; n < ROW_TILES; n++) {
            int32_t d[4] = {};
#pragma unroll
            for (uint32_t step = g * 4 / T::SEGMENTS; step < (g + 1) * 4 / T::SEGMENTS; step++) {
                uint32_t b[2];
                input_step(in, n, step, b);
                mma_s8(d, ones, b[0], b[1], d);
            }
            s.x[g][n][0] = d[0];
            s.x[g][n][1] = d[1];
        }
    }
}

/* A segment of a strip on its way: exact sums, and what they are worth, of rows g and g + 8. */
struct tile_segment {
    int32_t acc[ROW_TILES][4];
    float scale[2];
};
template <class T>
static __device__ __forceinline__ void tile_segment_begin(struct tile_segment &s, const uint8_t *stage,
        uint32_t strip, uint32_t segment, const input_sums<T> &x) {
    constexpr uint32_t pair_bytes = T::SCALE == QUANT_SCALE_F32 ? 8 : 4;
    const uint32_t g = threadIdx.x % 32 / 4;
    int32_t zero[2] = {};
    pair_load(stage + T::SCALES_AT + strip * T::SCALE_BYTES + (segment * 8 + g) * pair_bytes, T::SCALE,
            s.scale);
    if (T::ZEROS) {
        const uint8_t *zeros = stage + T::ZEROS_AT + strip * T::ZERO_BYTES + (segment * 8 + g) * 2;
        zero[0] = zero_of<T::BITS>(zeros[0]);
        zero[1] = zero_of<T::BITS>(zeros[1]);
    }
#pragma unroll
    for (uint32_t n = 0; n < ROW_TILES; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            s.acc[n][e] = T::ZEROS ? MAGIC - zero[e >> 1] * x.x[segment][n][e & 1] : MAGIC;
    }
}
template <class T>
static __device__ __forceinline__ void tile_segment_fold(
        const struct tile_segment &s, const run_input<ROW_TILES> &in, float (*leaf)[4]) {
#pragma unroll
    for (uint32_t n = 0; n < ROW_TILES; n++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            leaf[n][e] =
                    fmaf(number<T::BITS>(s.acc[n][e]), s.scale[e >> 1] * in.scales[n][e & 1], leaf[n][e]);
    }
}
/* leaf += the run in a stage, of the warp's strips from `strip` on and its half of the rows. */
template <class T>
static __device__ __forceinline__ void tile_run(
        const uint8_t *stage, uint32_t strip, uint32_t half, float (*leaf)[ROW_TILES][4]) {
    constexpr uint32_t steps = 4 / T::SEGMENTS;
    run_input<ROW_TILES> in;
    input_sums<T> x;
    run_codes<T::BITS> codes[STRIPS];
    struct tile_segment two[2];
    input_of_stage<T>(in, stage, half);
    if (T::ZEROS)
        input_sums_of<T>(x, in);
#pragma unroll
    for (uint32_t q = 0; q < T::SEGMENTS * STRIPS; q++) {
        const uint32_t segment = q / STRIPS, m = q % STRIPS;
        struct tile_segment &now = two[q % 2];
        if (segment == 0)
            codes_load(codes[m], stage + (strip + m) * T::CODES + threadIdx.x % 32 * 16);
        tile_segment_begin<T>(now, stage, strip + m, segment, x);
#pragma unroll
        for (uint32_t step = segment * steps; step < (segment + 1) * steps; step++) {
            uint32_t a[4], b[2];
            codes_step(codes[m], step, a);
#pragma unroll
            for (uint32_t n = 0; n < ROW_TILES; n++) {
                input_step(in, n, step, b);
                mma_s8(now.acc[n], a, b[0], b[1], now.acc[n]);
            }
        }
        if (q > 0)
            tile_segment_fold<T>(two[(q - 1) % 2], in, leaf[(q - 1) % STRIPS]);
    }
    tile_segment_fold<T>(two[(T::SEGMENTS * STRIPS - 1) % 2], in, leaf[STRIPS - 1]);
}

/* --- leaves meet --- */

/* The tree over leaves that come one after another: sums of 1, 2 and 4 of them wait for their right half. Half of all
 * there is to keep are single leaves: they wait in registers, where a thread has enough. Which of the others is known
 * when it runs, so they are local memory: touched once or twice in two leaves. */
template <class T> struct leaf_firsts { float of[T::FIRSTS ? T::SUMS : 1]; };
template <class T> struct leaf_tree { float kept[3 - T::FIRSTS][T::SUMS]; };
/* sums = with every left half that waits for leaf number `leaf`; another leaf after it: they are kept, and 0. */
template <class T>
static __device__ __forceinline__ void tree_add(
        leaf_firsts<T> &first, leaf_tree<T> &t, uint32_t leaf, bool another, float (*sums)[ROW_TILES][4]) {
    float *all = &sums[0][0][0];
    const bool is_first = T::FIRSTS && leaf % 2 == 0;
    uint32_t level = 0;
    if (T::FIRSTS && !is_first) {
#pragma unroll
        for (uint32_t e = 0; e < T::SUMS; e++)
            all[e] = first.of[T::FIRSTS ? e : 0] + all[e];
    }
    for (; !is_first && leaf >> (level + T::FIRSTS) & 1; level++) {
#pragma unroll
        for (uint32_t e = 0; e < T::SUMS; e++)
            all[e] = t.kept[level][e] + all[e];
    }
    if (!another)
        return;
#pragma unroll
    for (uint32_t e = 0; e < T::SUMS; e++) {
        if (is_first)
            first.of[T::FIRSTS ? e : 0] = all[e];
        else
            t.kept[level][e] = all[e];
        all[e] = 0.0f;
    }
}

/* Leaves what this block's group of leaves is worth; true in the last block of the tile, whose sums are then of all. */
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

/* One output of a strip's row. */
static __device__ __forceinline__ void output_store(const struct product_args &a, uint32_t n_rows,
        const struct strip_output &out, uint32_t row, uint32_t o, float y) {
    float *d_y = a.d_y + (uint64_t)row * a.ldy + out.column + o;
    if (row < n_rows && o < out.n_valid)
        *d_y = a.add ? *d_y + y : y;
}
template <class T>
static __device__ __forceinline__ void tile_store(const struct product_args &a, uint32_t n_rows,
        uint32_t first_slot, uint32_t first_row, const float (*sums)[ROW_TILES][4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++) {
        const uint32_t unit = a.pair ? (first_slot + m) / 2 : first_slot + m;
        if (unit >= a.units || (a.pair && m % 2))
            continue;
        const struct strip_output out = a.w.d_outputs[unit];
#pragma unroll
        for (uint32_t n = 0; n < ROW_TILES; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const float y = a.pair ? f32_silu(sums[m][n][e]) * sums[m | 1][n][e] : sums[m][n][e];
                output_store(a, n_rows, out, first_row + n * 8 + 2 * i + (e & 1), g + (e >> 1) * 8, y);
            }
        }
    }
}

/* --- the kernel --- */

template <class T>
__global__ void __launch_bounds__(THREADS, T::BLOCKS)
        tile_kernel(const struct product_args a, const struct tile_launch l) {
    const struct tile_place p = place_of(a.w, l.row_blocks, T::ALL_STRIPS);
    const uint32_t warp = threadIdx.x / 32, strip = warp / WARPS_ROWS * STRIPS, half = warp % WARPS_ROWS,
                   n_rows = a.d_plan->n_rows;
    if (p.first_row >= n_rows)
        return;
    tile_feed<T> f;
    feed_begin<T>(f, a, p);
    for (uint32_t i = 0; i + 1 < l.stages; i++)
        feed_next<T>(f, a, l);
    float sums[STRIPS][ROW_TILES][4] = {};
    leaf_firsts<T> first;
    leaf_tree<T> tree;
    uint32_t from = 0;
    for (uint32_t leaf = 0; leaf < p.leaves; leaf++) {
        do {
            if (l.stages == STAGES_MAX)
                copy_wait<STAGES_MAX - 2>();
            else
                copy_wait<0>();
            __syncthreads();
            feed_next<T>(f, a, l);
            if (!T::HALF || half == 0)
                tile_run<T>(dynamic_shared() + from, strip, half, sums);
            from = stage_after<T>(from, l);
        } while (f.run != l.ahead);
        tree_add<T>(first, tree, leaf, leaf + 1 < p.leaves, sums);
    }
    if (gridDim.y > 1 && !groups_add(a, sums))
        return;
    tile_store<T>(a, n_rows, p.first_slot + strip, p.first_row + half * (ROW_TILES * 8), sums);
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

template <class T>
static cudaError_t queue_one(
        cudaStream_t s, struct product_args a, uint32_t rows, const struct device_size *d) {
    const uint32_t row_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS,
                   tiles = row_blocks * ((a.w.strips + T::ALL_STRIPS - 1) / T::ALL_STRIPS),
                   groups = groups_for(tiles, a.w.leaves, d->sms),
                   stages =
                           T::BLOCKS * (STAGES_MAX * T::STAGE + RESERVED) <= d->shared_of_sm ? STAGES_MAX : 2;
    a.units = a.pair ? a.w.strips / 2 : a.w.strips;
    return K_LAUNCH(tile_kernel<T>, dim3(tiles, groups), THREADS, stages * T::STAGE, s, a,
            (tile_launch{row_blocks, stages, stages * T::STAGE, (stages - 1) % a.w.runs}));
}

/* Up to 64 rows blocks are few, and each wants to be quick; with zeros, 4 blocks would lack registers. */
template <int BITS, enum cut CUT, enum quant_scale SCALE> struct tiles_of {
    typedef tile<BITS, CUT, SCALE, CUT & CUT_ZEROS ? 2 : 3, true> half;
    typedef tile<BITS, CUT, SCALE, CUT & CUT_ZEROS ? 2 : 3, false> few;
    typedef tile<BITS, CUT, SCALE, CUT & CUT_ZEROS ? 2 : 4, false> many;
};
template <int BITS, enum cut CUT, enum quant_scale SCALE>
static cudaError_t queue_form(
        cudaStream_t s, const struct product_args &a, uint32_t rows, const struct device_size *d) {
    typedef tiles_of<BITS, CUT, SCALE> of;
    if (rows <= TILE_ROWS / 2)
        return queue_one<typename of::half>(s, a, rows, d);
    return rows <= TILE_ROWS ? queue_one<typename of::few>(s, a, rows, d)
                             : queue_one<typename of::many>(s, a, rows, d);
}
template <int BITS, enum cut CUT, enum quant_scale SCALE>
static cudaError_t prepare_form(int shared_of_block) {
    typedef tiles_of<BITS, CUT, SCALE> of;
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t r = cudaFuncSetAttribute(tile_kernel<typename of::half>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(tile_kernel<typename of::few>, most, shared_of_block);
    return r != cudaSuccess ? r : cudaFuncSetAttribute(tile_kernel<typename of::many>, most, shared_of_block);
}

/* Every form that weights may have here. */
#define FORM(bits, cut, scale)                                                                               \
    { FORM_INT##bits, cut, scale, queue_form<bits, cut, scale>, prepare_form<bits, cut, scale> }
#define FORM_OF_SCALES(bits, cut)                                                                            \
    FORM(bits, cut, QUANT_SCALE_F32), FORM(bits, cut, QUANT_SCALE_BF16), FORM(bits, cut, QUANT_SCALE_F16)
#define FORM_OF_CUTS(bits)                                                                                   \
    FORM_OF_SCALES(bits, CUT_1), FORM_OF_SCALES(bits, CUT_2), FORM_OF_SCALES(bits, CUT_4),                   \
            FORM_OF_SCALES(bits, CUT_1_ZEROS), FORM_OF_SCALES(bits, CUT_2_ZEROS),                            \
            FORM_OF_SCALES(bits, CUT_4_ZEROS)
static const struct tile_form {
    uint8_t form;
    enum cut cut;
    enum quant_scale scale;
    cudaError_t (*queue)(cudaStream_t, const struct product_args &, uint32_t, const struct device_size *);
    cudaError_t (*prepare)(int shared_of_block);
} forms[] = {FORM_OF_CUTS(4), FORM_OF_CUTS(8)};
#define FORMS (sizeof forms / sizeof *forms)

cudaError_t queue_tiles(
        cudaStream_t s, const struct product_args *a, uint32_t rows_bound, const struct device_size *d) {
    for (uint32_t i = 0; i < FORMS; i++)
        if (forms[i].form == a->w.form && forms[i].cut == cut_of(a->w) && forms[i].scale == a->w.scale)
            return forms[i].queue(s, *a, rows_bound, d);
    return cudaErrorInvalidValue;
}
bool tiles_can(const struct panel *w) {
    return w->segments != SEGMENTS_ANY;
}
cudaError_t tiles_prepare(uint32_t shared_of_block) {
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < FORMS && r == cudaSuccess; i++)
        r = forms[i].prepare((int)shared_of_block);
    return r;
}
