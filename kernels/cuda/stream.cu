/* stream.cu - INT4 and INT8 weights times INT8 activations for up to 16 rows: every byte of the weights is read once,
 * as a stream, and that is what it costs. A row that is alone is brought into INT8 here (own_row.cuh), more were
 * before.
 *
 * The sums are kernels.h's to the bit: a segment's sum is an exact integer, in whatever order; leaf = fma(n, scale_w *
 * scale_x, leaf), segments ascending; then the tree over leaves. m16n8k32: weights are the 16 rows, activation rows the
 * 8 columns.
 *
 *   grid      as many blocks as the device holds at once
 *   block     8 warps; a warp is a leaf of a unit. A unit is a strip, or a pair of a gate and an up strip; a block has
 *             8 / leaves of them at a time, and goes on by grid * that.
 *   warp      a ring of its own in shared memory: a slot is one run of its strips, codes and what belongs to them,
 *             one group of cp.async. Nobody else touches it, so __syncwarp() is its only barrier.
 *             The first of them may be for a small dense part of the linear (dense_part.cuh).
 *   the end   a unit's leaves meet in shared memory, of which there are two copies, and any thread adds one output's
 *             tree: one __syncthreads() a unit.
 *
 * Bytes moved: the panel's codes, scales, zeros and minimums once, the activations of a unit's leaves from L2 per unit,
 * 4 bytes per output. */
#include "kernels/cuda/ahead.cuh"
#include "kernels/cuda/dense_part.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/next_codes.cuh"
#include "kernels/cuda/own_row.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/shared/elementary.h"
#include "kernels/shared/segments.h"

#define STREAM_THREADS 256u
#define WARPS          8u

template <int BITS, enum cut CUT, bool PAIR, int TILES>
struct stream_size {
    static constexpr uint32_t STRIPS = PAIR ? 2 : 1; /* of a unit */
    static constexpr uint32_t CODES = codes_of_run<BITS>::BYTES;
    /* Of a ring: what hides the latency of memory, and leaves room for two blocks on an SM of 100 KB (INT8: one). */
    static constexpr uint32_t SLOTS = !PAIR       ? 4
                                      : BITS == 4 ? 3
                                                  : 2;
    static constexpr uint32_t BLOCKS = CUT == CUT_ANY || (PAIR && TILES == 2) ? 2
                                       : !PAIR && TILES == 1                  ? 4
                                                                              : 3;
};

/* --- the ring's filling side --- */

template <int STRIPS> struct feed {
    const uint8_t *codes[STRIPS], *scales[STRIPS], *zeros[STRIPS]; /* of the next run, this lane's */
    uint32_t unit, run, slot;
};

static __device__ __forceinline__ uint32_t strip_of(const struct product_args &a, uint32_t unit, uint32_t m) {
    return unit + m * (a.w.strips / 2);
}
template <int BITS, enum cut CUT, bool PAIR, int TILES>
static __device__ __forceinline__ void feed_seek(
        feed<PAIR ? 2 : 1> &f, const struct product_args &a, uint32_t leaf) {
    typedef stream_size<BITS, CUT, PAIR, TILES> size;
    const uint32_t lane = threadIdx.x % 32, slot_bytes = a.w.scale == QUANT_SCALE_F32 ? 64 : 32;
#pragma unroll
    for (uint32_t m = 0; m < size::STRIPS; m++) {
        const uint64_t block = (uint64_t)leaf * a.w.strips + strip_of(a, f.unit, m);
        f.codes[m] = a.w.d_codes + block * a.w.runs * size::CODES + lane * 16;
        f.scales[m] = a.w.d_scales + block * a.w.slots * slot_bytes + lane * 16;
        f.zeros[m] = a.w.d_zeros + block * a.w.slots * STRIP_ROWS + lane * 16;
    }
}
/* Queues the next run, or an empty group behind the last one. */
template <int BITS, enum cut CUT, bool PAIR, int TILES>
static __device__ __forceinline__ void feed_next(
        feed<PAIR ? 2 : 1> &f, const struct product_args &a, uint8_t *ring, uint32_t leaf, uint32_t step) {
    typedef stream_size<BITS, CUT, PAIR, TILES> size;
    const uint32_t lane = threadIdx.x % 32, aux = CUT == CUT_ANY ? 0 : aux_bytes(a.w),
                   scales = scale_bytes(a.w);
    if (f.unit < a.units) {
        uint8_t *to = ring + f.slot * size::STRIPS * (size::CODES + aux) + lane * 16;
#pragma unroll
        for (uint32_t m = 0; m < size::STRIPS; m++, to += size::CODES + aux) {
#pragma unroll
            for (uint32_t c = 0; c < size::CODES; c += 512)
                copy_16_once(to + c, f.codes[m] + c);
            f.codes[m] += size::CODES;
            if (CUT == CUT_ANY)
                continue;
            if (lane * 16 < scales)
                copy_16_once(to + size::CODES, f.scales[m]);
            if ((CUT & CUT_ZEROS) && lane < (CUT & CUT_SEGMENTS))
                copy_16_once(to + size::CODES + scales, f.zeros[m]);
            f.scales[m] += scales;
            f.zeros[m] += (CUT & CUT_SEGMENTS) * STRIP_ROWS;
        }
        if (++f.run == a.w.runs) {
            f.run = 0;
            f.unit += step;
            if (f.unit < a.units)
                feed_seek<BITS, CUT, PAIR, TILES>(f, a, leaf);
        }
    }
    copy_commit();
    f.slot = f.slot + 1 == size::SLOTS ? 0 : f.slot + 1;
}

/* --- a run of one strip --- */

template <int TILES>
static __device__ __forceinline__ void input_load(
        run_input<TILES> &in, const struct activations &x, uint32_t run, uint32_t first_row, uint32_t rows) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) {
        const uint32_t left = rows > n * 8 ? rows - n * 8 : 0,
                       tile = left ? first_row / 8 + n : first_row / 8;
        /* A row that is not there reads the tile's first one: its column is not stored. */
        const uint4 *d_codes = (const uint4 *)(x.d_codes + ((uint64_t)run * x.row_tiles + tile) * 1024) +
                               (g < left ? lane : i);
        const float2 scales =
                load_read_only((const float2 *)(x.d_scales + (uint64_t)run * x.row_tiles * 8 + tile * 8) + i);
        in.codes[n][0] = load_read_only(d_codes);
        in.codes[n][1] = load_read_only(d_codes + 32);
        in.scales[n][0] = scales.x;
        in.scales[n][1] = scales.y;
    }
}
/* The same of a row that is alone; it is every lane's, and only column 0 is stored. */
static __device__ __forceinline__ void input_load_own(
        run_input<1> &in, const struct own_codes &own, uint32_t run) {
    const uint4 *codes = (const uint4 *)(own.codes + run * OWN_CODES_BYTES) + threadIdx.x % 4;
    in.codes[0][0] = codes[0];
    in.codes[0][1] = codes[4];
    in.scales[0][0] = in.scales[0][1] = own.scales[run];
}
/* The bytes of k0 .. k0 + 3 that are within [from, to). */
static __device__ __forceinline__ uint32_t bytes_within(int32_t k0, int32_t from, int32_t to) {
    const int32_t low = from - k0 < 0   ? 0
                        : from - k0 > 4 ? 4
                                        : from - k0,
                  high = to - k0 < 0   ? 0
                         : to - k0 > 4 ? 4
                                       : to - k0;
    return (uint32_t)(((1ull << (8 * high)) - 1) & ~((1ull << (8 * low)) - 1));
}
/* CUT_ANY: a step in which segments meet is multiplied once for each, with the others' x as 0. block: (leaf, strip) in
 * the panel; *segment: of the leaf, runs along. */
template <int BITS, int TILES>
static __device__ __forceinline__ void run_anyhow(const struct panel &w, const uint8_t *slot, uint64_t block,
        uint32_t leaf_first, uint32_t run, const run_input<TILES> &in, uint32_t *segment, float (*leaf)[4]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, begin = leaf_first + run * ACTIVATION_RUN,
                   left = w.leaf_columns - run * ACTIVATION_RUN,
                   n_run = left < ACTIVATION_RUN ? left : ACTIVATION_RUN,
                   pair_bytes = w.scale == QUANT_SCALE_F32 ? 8 : 4;
    const bool with_x = w.zeros || w.minimums;
    run_codes<BITS> codes;
    codes_load(codes, slot + lane * 16);
    for (uint32_t at = begin, end; at < begin + n_run; at = end, ++*segment) {
        end = segment_end(w.group, leaf_first, w.leaf_columns, at);
        const int32_t from = (int32_t)(at - begin), to = (int32_t)(end - begin);
        const uint64_t pair = (block * w.slots + *segment) * 8 + g;
        segment_sums<TILES> sums;
        sums_begin(sums);
#pragma unroll
        for (int32_t step = 0; step < 4; step++) {
            const int32_t k = step * 32 + (int32_t)(lane % 4) * 8;
            uint32_t a[4], b[2];
            if (step * 32 >= to || step * 32 + 32 <= from)
                continue;
            codes_step(codes, (uint32_t)step, a);
#pragma unroll
            for (uint32_t n = 0; n < TILES; n++) {
                input_step(in, n, (uint32_t)step, b);
                b[0] &= bytes_within(k, from, to);
                b[1] &= bytes_within(k + 4, from, to);
                sums_add(sums, n, a, b, with_x);
            }
        }
        struct segment_scale of = {};
        pair_load(w.d_scales + pair * pair_bytes, w.scale, of.scale);
        if (w.zeros) {
            of.zero[0] = zero_of<BITS>(w.d_zeros[pair * 2]);
            of.zero[1] = zero_of<BITS>(w.d_zeros[pair * 2 + 1]);
        }
        if (w.minimums) {
            of.minimum[0] = w.d_minimums[pair * 2];
            of.minimum[1] = w.d_minimums[pair * 2 + 1];
        }
        sums_fold<BITS, TILES>(sums, of, in, with_x, w.minimums, leaf);
    }
}

/* --- the end of a unit --- */

/* The number of the exchange that a result is pushed for; 0: it is not. */
static __device__ __forceinline__ uint32_t push_begin(const struct push_view &p) {
    return p.n && !*p.d_poisoned ? *p.d_epoch + 1 : 0;
}
static __device__ __forceinline__ void push_output(
        const struct push_view &p, uint32_t epoch, uint32_t at, float y) {
    for (uint32_t i = 0; i < p.n; i++)
        store_to_peer((uint2 *)p.words[i][epoch & 1] + at, {bits_of_float(y), epoch});
}
/* All outputs of the block's units of a panel: unit `first` + p of part p. WORDS: what may be a result of one row,
 * which goes on from block to block. epoch: of push_begin(). */
template <bool PAIR, bool WORDS>
static __device__ __forceinline__ void outputs_store(const struct product_args &a, const struct panel &w,
        uint32_t units, const float *all, uint32_t rows, uint32_t first, uint32_t parts, uint32_t epoch) {
    const uint32_t width = PAIR ? 32 : 16, stride = rows * width;
    for (uint32_t e = threadIdx.x; e < parts * rows * 16; e += STREAM_THREADS) {
        const uint32_t o = e % 16, row = e / 16 % rows, part = e / 16 / rows, unit = first + part;
        const float *in = all + part * w.leaves * stride + row * width + o;
        if (unit >= units || o >= w.d_outputs[unit].n_valid)
            continue;
        float y = leaves_tree(in, stride, w.leaves);
        if (PAIR)
            y = f32_silu(y) * leaves_tree(in + 16, stride, w.leaves);
        const uint64_t at = (uint64_t)(a.first_row + row) * a.ldy + w.d_outputs[unit].column + o;
        if (!PAIR && epoch)
            push_output(a.push, epoch, (uint32_t)at, y);
        a.d_y[at] = a.add ? a.d_y[at] + y : y;
        if (WORDS && a.next.d_words)
            next_word_put(a.next, w.d_outputs[unit].column + o, y);
    }
}

/* The block's part of a result that the next product takes as INT8. */
template <int TILES, enum source SOURCE>
static __device__ __forceinline__ void result_round(
        const struct product_args &a, uint32_t rows, uint32_t first, uint32_t step, uint32_t *word) {
    if (SOURCE == SOURCE_READY && (TILES > 1 || !a.next.d_words))
        next_codes_finish(a.next, a.d_y, a.ldy, rows, first, step, a.units, word);
    else if (threadIdx.x < 32) /* the warp that has put the words */
        next_codes_finish_row(a.next, first, step, a.units);
}

/* Behind a block's units. After the norm of what is no pair comes a mixer: nothing is asked for. */
template <enum cut CUT, bool PAIR, int TILES, enum source SOURCE>
static __device__ __forceinline__ void block_end(
        const struct product_args &a, uint32_t rows, uint32_t block, uint32_t blocks, uint32_t *word) {
    if (PAIR || SOURCE != SOURCE_NORM)
        ahead_ask(a.ahead, WARPS, block, blocks);
    if (PAIR && CUT != CUT_ANY && a.next.d_arrived)
        result_round<TILES, SOURCE>(a, rows, block, blocks * (WARPS / a.w.leaves), word);
}

/* --- the kernel --- */

/* Strips of the dense part, as many as a block has leaves for. */
template <int TILES, enum source SOURCE>
static __device__ __forceinline__ void dense_block(
        const struct product_args &a, [[maybe_unused]] float *chains) {
    const struct panel &w = a.dense;
    const uint32_t warp = threadIdx.x / 32, parts = WARPS / w.leaves, leaf = warp % w.leaves,
                   first = blockIdx.x * parts, strip = first + warp / w.leaves;
    own_terms<TERMS> own = {dynamic_shared() + warp * w.runs * own_terms<TERMS>::RUN_BYTES};
    float *meeting = (float *)dynamic_shared();
    [[maybe_unused]] struct norm_batch asked;
    if constexpr (SOURCE == SOURCE_NORM)
        own_norm_ask(a.in, leaf, asked);
    if (strip < w.strips)
        dense_ask(w, leaf, strip);
    if constexpr (SOURCE != SOURCE_READY) {
        meeting += WARPS * w.runs * own_terms<TERMS>::RUN_BYTES / sizeof(float);
        own_leaf_make<SOURCE == SOURCE_NORM>(a.in, leaf, own, chains, asked);
    }
    const uint32_t n_rows = a.d_plan->n_rows, rows = n_rows < TILES * 8 ? n_rows : TILES * 8;
    sums<1, TILES> leaf_sums = {};
    if (strip < w.strips)
        dense_leaf<TILES, SOURCE>(w, leaf, strip, a.dense_x, own, rows, leaf_sums);
    leaves_put<1, TILES>(meeting + warp * rows * 16, rows, leaf_sums.of);
    __syncthreads();
    outputs_store<false, false>(a, w, w.strips, meeting, rows, first, parts, /* epoch= */ 0);
}

/* Where this warp's row is brought into INT8, of all warps from `shared` on. */
static __device__ __forceinline__ struct own_codes own_codes_of_warp(void *shared, uint32_t runs) {
    struct own_codes own;
    own.codes = (uint8_t *)shared + threadIdx.x / 32 * own_codes_bytes(runs);
    own.scales = (float *)(own.codes + runs * OWN_CODES_BYTES);
    return own;
}
/* Rows of the plan that are this kernel's, which is for `most`. */
static __device__ __forceinline__ uint32_t rows_left(const struct product_args &a, uint32_t most) {
    const uint32_t n = a.d_plan->n_rows, left = n > a.first_row ? n - a.first_row : 0;
    return left < most ? left : most;
}
template <int BITS, enum cut CUT, bool PAIR, int TILES, enum source SOURCE>
__global__ void __launch_bounds__(STREAM_THREADS, (stream_size<BITS, CUT, PAIR, TILES>::BLOCKS))
        stream_kernel(const struct product_args a) {
    typedef stream_size<BITS, CUT, PAIR, TILES> size;
    constexpr uint32_t STRIPS = size::STRIPS;
    __shared__ float chains[SOURCE == SOURCE_READY ? 1 : NORM_CHAINS];
    if (!PAIR && CUT != CUT_ANY && blockIdx.x < a.dense_blocks) {
        dense_block<TILES, SOURCE>(a, chains);
        return;
    }
    const uint32_t block = blockIdx.x - a.dense_blocks, blocks = gridDim.x - a.dense_blocks;
    const uint32_t warp = threadIdx.x / 32, parts = WARPS / a.w.leaves, leaf = warp % a.w.leaves,
                   step = blocks * parts, aux = CUT == CUT_ANY ? 0 : aux_bytes(a.w),
                   slot_bytes = STRIPS * (size::CODES + aux);
    uint8_t *ring = dynamic_shared() + warp * size::SLOTS * slot_bytes;
    float *meeting = (float *)(dynamic_shared() + WARPS * size::SLOTS * slot_bytes);
    [[maybe_unused]] struct norm_batch asked;
    if constexpr (SOURCE == SOURCE_NORM)
        own_norm_ask(a.in, leaf, asked);
    feed<STRIPS> f = {};
    f.unit = block * parts + warp / a.w.leaves;
    if (f.unit < a.units)
        feed_seek<BITS, CUT, PAIR, TILES>(f, a, leaf);
    for (uint32_t i = 0; i + 1 < size::SLOTS; i++)
        feed_next<BITS, CUT, PAIR, TILES>(f, a, ring, leaf, step);
    [[maybe_unused]] struct own_codes own;
    if constexpr (SOURCE != SOURCE_READY) {
        own = own_codes_of_warp(meeting + 2 * WARPS * STRIPS * 16, a.w.runs);
        own_leaf_make<SOURCE == SOURCE_NORM>(a.in, leaf, own, chains, asked);
    }
    /* How many rows there are is asked once weights are on their way, which do not depend on it. */
    const uint32_t rows = rows_left(a, TILES * 8), meeting_floats = WARPS * rows * STRIPS * 16,
                   epoch = PAIR ? 0 : push_begin(a.push);
    if (rows == 0) {
        copy_wait<0>();
        return;
    }
    uint32_t slot = 0, buffer = 0;
    for (uint32_t first = block * parts; first < a.units; first += step, buffer ^= 1) {
        const uint32_t unit = first + warp / a.w.leaves;
        float sums[STRIPS][TILES][4] = {};
        uint32_t segment[STRIPS] = {};
        for (uint32_t run = 0; run < a.w.runs && unit < a.units; run++) {
            run_input<TILES> in;
            if constexpr (SOURCE == SOURCE_READY)
                input_load(in, a.x, leaf * a.w.runs + run, a.first_row, rows);
            else
                input_load_own(in, own, run);
            copy_wait<size::SLOTS - 2>();
            __syncwarp(); /* the slot has come for all lanes, and all have read the one that is filled next */
            feed_next<BITS, CUT, PAIR, TILES>(f, a, ring, leaf, step);
            const uint8_t *from = ring + slot * slot_bytes;
#pragma unroll
            for (uint32_t m = 0; m < STRIPS; m++, from += size::CODES + aux) {
                if (CUT == CUT_ANY)
                    run_anyhow<BITS, TILES>(a.w, from, (uint64_t)leaf * a.w.strips + strip_of(a, unit, m),
                            a.w.first_column + leaf * a.w.leaf_columns, run, in, &segment[m], sums[m]);
                else
                    run_evenly<BITS, CUT, TILES>(a.w, from, from + codes_of_run<BITS>::BYTES, in, sums[m]);
            }
            slot = slot + 1 == size::SLOTS ? 0 : slot + 1;
        }
        float *all = meeting + buffer * meeting_floats;
        leaves_put<STRIPS, TILES>(all + warp * rows * STRIPS * 16, rows, sums);
        __syncthreads();
        outputs_store<PAIR, (PAIR && CUT != CUT_ANY && TILES == 1)>(
                a, a.w, a.units, all, rows, first, parts, epoch);
    }
    block_end<CUT, PAIR, TILES, SOURCE>(a, rows, block, blocks, (uint32_t *)meeting);
}

/* --- launching --- */

static uint32_t divided(uint32_t n, uint32_t by) {
    return (n + by - 1) / by;
}
template <int BITS, enum cut CUT, bool PAIR, int TILES, enum source SOURCE>
static cudaError_t queue_one(
        cudaStream_t s, struct product_args a, uint32_t rows, const struct device_size *d) {
    typedef stream_size<BITS, CUT, PAIR, TILES> size;
    const uint32_t parts = WARPS / a.w.leaves, aux = CUT == CUT_ANY ? 0 : aux_bytes(a.w),
                   own = SOURCE == SOURCE_READY ? 0 : own_codes_bytes(a.w.runs);
    size_t shared = WARPS * (size::STRIPS * (size::SLOTS * (size::CODES + aux) + 2 * rows * 16 * 4) + own);
    if (a.dense.strips) {
        const size_t dense = dense_shared_bytes(a.dense, rows, SOURCE != SOURCE_READY);
        shared = dense > shared ? dense : shared;
        a.dense_blocks = dense_blocks_of(a.dense);
    }
    const uint32_t fit =
            (uint32_t)(d->shared_of_sm / (shared + 1024)); /* a block takes 1 KB beside its own */
    const uint32_t all = d->sms * (fit < 1                     ? 1
                                          : fit < size::BLOCKS ? fit
                                                               : size::BLOCKS),
                   blocks = all > a.dense_blocks ? all - a.dense_blocks : 1;
    a.units = PAIR ? a.w.strips / 2 : a.w.strips;
    const uint32_t needed = divided(a.units, parts);
    return K_LAUNCH_ONCE((stream_kernel<BITS, CUT, PAIR, TILES, SOURCE>), panel_once(a.w, size::CODES, d),
            a.dense_blocks + (needed < blocks ? needed : blocks), STREAM_THREADS, shared, s, a);
}

template <int BITS, enum cut CUT, bool PAIR>
static cudaError_t queue_rows(
        cudaStream_t s, const struct product_args &a, uint32_t rows, const struct device_size *d) {
    if constexpr (CUT != CUT_ANY) {
        if (a.own && a.in.d_norm)
            return queue_one<BITS, CUT, PAIR, 1, SOURCE_NORM>(s, a, rows, d);
        if (a.own)
            return queue_one<BITS, CUT, PAIR, 1, SOURCE_ROW>(s, a, rows, d);
    }
    return rows <= 8 ? queue_one<BITS, CUT, PAIR, 1, SOURCE_READY>(s, a, rows, d)
                     : queue_one<BITS, CUT, PAIR, 2, SOURCE_READY>(s, a, rows, d);
}
template <int BITS, enum cut CUT>
static cudaError_t queue_form(
        cudaStream_t s, const struct product_args &a, uint32_t rows, const struct device_size *d) {
    return a.pair ? queue_rows<BITS, CUT, true>(s, a, rows, d) : queue_rows<BITS, CUT, false>(s, a, rows, d);
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
        return queue_form<BITS, CUT_ANY>(s, a, rows, d);
    }
}
cudaError_t queue_stream(
        cudaStream_t s, const struct product_args *a, uint32_t rows_bound, const struct device_size *d) {
    const uint32_t left = rows_bound - a->first_row, rows = left < STREAM_ROWS ? left : STREAM_ROWS;
    return a->w.form == FORM_INT4 ? queue_cut<4>(s, *a, rows, d) : queue_cut<8>(s, *a, rows, d);
}

/* Of the row, in a block. More takes longer here than a kernel before the product. */
#define OWN_BYTES_MOST (8u << 10)
bool stream_can_own(const struct panel *w, const struct input *in, uint32_t rows_bound) {
    return own_row_can(*in, rows_bound) && cut_of(*w) != CUT_ANY &&
           WARPS * own_codes_bytes(w->runs) <= OWN_BYTES_MOST;
}
bool stream_can_round(const struct panel *w, uint32_t rows_bound) {
    return rows_bound <= STREAM_ROWS && cut_of(*w) != CUT_ANY && w->leaves == WARPS;
}
bool stream_can_take(const struct panel *w, const struct panel *dense, uint32_t rows_bound) {
    return rows_bound <= STREAM_ROWS && cut_of(*w) != CUT_ANY && dense->form == FORM_BF16 &&
           dense_blocks_of(*dense) <= DENSE_BLOCKS;
}

template <int BITS, enum cut CUT, bool PAIR> static cudaError_t prepare_rows(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t r =
            cudaFuncSetAttribute(stream_kernel<BITS, CUT, PAIR, 1, SOURCE_READY>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(stream_kernel<BITS, CUT, PAIR, 2, SOURCE_READY>, most, shared_of_block);
    if constexpr (CUT != CUT_ANY) {
        const int less =
                shared_of_block - (int)(NORM_CHAINS * sizeof(float)); /* a norm's chains are beside it */
        if (r == cudaSuccess)
            r = cudaFuncSetAttribute(stream_kernel<BITS, CUT, PAIR, 1, SOURCE_ROW>, most, less);
        if (r == cudaSuccess)
            r = cudaFuncSetAttribute(stream_kernel<BITS, CUT, PAIR, 1, SOURCE_NORM>, most, less);
    }
    return r;
}
template <int BITS, enum cut CUT> static cudaError_t prepare(int shared_of_block) {
    const cudaError_t r = prepare_rows<BITS, CUT, false>(shared_of_block);
    return r == cudaSuccess ? prepare_rows<BITS, CUT, true>(shared_of_block) : r;
}
cudaError_t stream_prepare(uint32_t shared_of_block) {
    cudaError_t (*const all[])(int) = {prepare<4, CUT_ANY>, prepare<4, CUT_1>, prepare<4, CUT_2>,
            prepare<4, CUT_4>, prepare<4, CUT_1_ZEROS>, prepare<4, CUT_2_ZEROS>, prepare<4, CUT_4_ZEROS>,
            prepare<8, CUT_ANY>, prepare<8, CUT_1>, prepare<8, CUT_2>, prepare<8, CUT_4>,
            prepare<8, CUT_1_ZEROS>, prepare<8, CUT_2_ZEROS>, prepare<8, CUT_4_ZEROS>};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i]((int)shared_of_block);
    return r;
}
