/* terms.cu - weights of any form times activations as bf16 terms: dense and FP8 weights, and INT4 and INT8 ones where
 * activations are to stay floats; three terms, or, rounded, one.
 *
 * The order of sums is that of terms.cuh, whatever the rows and the grid; terms_tile.cu is for more rows.
 *
 *   grid      (units, blocks of ROWS rows). As many of the first as the device holds at once
 *   block     8 warps; a warp is a leaf of a unit of STRIPS strips
 *   warp      a ring of its own in shared memory, as in stream.cu: a slot is 2 KB of codes (INT4: 1 KB) a strip
 *   the end   leaves meet in shared memory
 *
 * A row that is alone is brought into terms here where the weights are dense or FP8 (own_row.cuh), more were before.
 * One that does not fit into a block comes with FP8 weights through their ring, a run's terms behind its codes.
 * What is short with one row is the instructions: weights are unpacked once for all terms.
 *
 * Bytes moved: the panel once per ROWS rows, 2 bytes a term of x per unit from L2, 4 bytes per output. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/terms_input.cuh"
#include "kernels/shared/segments.h"

#define TERMS_THREADS 256u
#define WARPS         8u

/* ROWS of a block at most: 16 want the activations of L2 for two strips at once; 1 is made by the block, which has room
 * for it. X: the terms of 8 are in registers while a slot of weights is waited for. */
template <int FORM, int ROWS, int X> struct terms_size {
    static constexpr uint32_t TILES = ROWS == 16 ? 2 : 1, STRIPS = TILES,
                              SLOTS = ROWS == 16  ? 2
                                      : ROWS == 1 ? 3
                                                  : 4;
    static constexpr uint32_t BUFFERS = TILES == 1 ? 2 : 1;
    static constexpr bool MANY =
            ROWS == 16 || (ROWS == 8 && X * weight<FORM>::PAIRS * weight<FORM>::PLACES > 8);
    static constexpr uint32_t BLOCKS = MANY ? 2 : 3; /* that registers let an SM have */
};

/* --- a slot --- */

/* Segments that may begin and end anywhere; what they have is read where it lies. blocks: (leaf, strip) of each strip
 * in the panel; *segment: of the leaf, runs along. */
template <int FORM, class Input, int STRIPS, int TILES>
static __device__ __forceinline__ void slot_anyhow(const struct panel &w, const uint8_t *codes,
        const uint64_t *blocks, uint32_t leaf_first, uint32_t run, const Input &in, uint32_t *segment,
        sums<STRIPS, TILES> &leaf) {
    const uint32_t g = threadIdx.x % 32 / 4, begin = leaf_first + run * ACTIVATION_RUN,
                   left = w.leaf_columns - run * ACTIVATION_RUN,
                   n = left < ACTIVATION_RUN ? left : ACTIVATION_RUN,
                   pair_bytes = w.scale == QUANT_SCALE_F32 ? 8 : 4;
    for (uint32_t at = begin, end; at < begin + n; at = end, ++*segment) {
        end = segment_end(w.group, leaf_first, w.leaf_columns, at);
        const struct k_range range = {at - begin, end - begin};
        const uint32_t first = range.from / 32, behind = (range.to + 31) / 32;
        segment_of<STRIPS> of;
        float minimum[STRIPS][2] = {};
#pragma unroll
        for (uint32_t m = 0; m < STRIPS; m++) {
            const uint64_t pair = (blocks[m] * w.slots + *segment) * 8 + g;
            pair_load(w.d_scales + pair * pair_bytes, w.scale, of.scale[m]);
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                if (weight<FORM>::CODES)
                    zero_set(of.zeros[m], r, w.zeros ? w.d_zeros[pair * 2 + r] : weight<FORM>::MIDDLE);
                if (w.minimums)
                    minimum[m][r] = w.d_minimums[pair * 2 + r];
            }
        }
        sums<STRIPS, TILES> acc = {};
        chain_add<FORM, true, false>(acc, codes, weight<FORM>::BYTES, of.zeros, in, first, behind, range);
        chain_fold(acc, of, leaf);
        if (!w.minimums)
            continue;
        sums<1, TILES> x = {};
        chain_add<FORM, true, true>(x, codes, 0, of.zeros, in, first, behind, range);
#pragma unroll
        for (uint32_t m = 0; m < STRIPS; m++)
#pragma unroll
            for (uint32_t t = 0; t < TILES; t++)
#pragma unroll
                for (uint32_t e = 0; e < 4; e++)
                    leaf.of[m][t][e] = fmaf(-x.of[0][t][e], minimum[m][e >> 1], leaf.of[m][t][e]);
    }
}

/* --- the ring's filling side --- */

template <int STRIPS> struct terms_feed {
    const uint8_t *codes[STRIPS], *scales[STRIPS], *zeros[STRIPS]; /* of the next slot, this lane's */
    uint32_t unit, at, slot; /* at: slots of the unit so far; slot: of the ring */
};
/* Bytes of a slot of the ring. */
template <int FORM, bool ANY, class Size, int X, enum source SOURCE>
static __host__ __device__ __forceinline__ uint32_t ring_slot(const struct panel &w) {
    return Size::STRIPS * (weight<FORM>::BYTES + aux_of_slot<FORM, ANY>(w)) +
           (SOURCE == SOURCE_RING ? own_terms<X>::RUN_BYTES : 0);
}
/* The terms of the one row, of the slot's run, as own_input reads them. */
template <int X>
static __device__ __forceinline__ void feed_terms(uint8_t *to, const struct terms &x, uint32_t leaf_run) {
    constexpr uint32_t PIECES = own_terms<X>::RUN_BYTES / 16, OF_TERM = OWN_TERM_BYTES / 16;
    const uint8_t *d_run = x.d_terms + (uint64_t)leaf_run * x.row_tiles * (X * TERM_BYTES);
#pragma unroll
    for (uint32_t first = 0; first < PIECES; first += 32) {
        const uint32_t piece = first + threadIdx.x % 32;
        if (piece < PIECES)
            copy_16(to + piece * 16,
                    d_run + piece / OF_TERM * TERM_BYTES + piece % OF_TERM / 4 * 512 + piece % 4 * 16);
    }
}
/* Strips behind the last are the last one again, and are not stored. */
template <int STRIPS>
static __device__ __forceinline__ uint32_t strip_of(const struct panel &w, uint32_t unit, uint32_t m) {
    const uint32_t strip = unit * STRIPS + m;
    return strip < w.strips ? strip : w.strips - 1;
}
template <int FORM, int STRIPS>
static __device__ __forceinline__ void feed_seek(
        terms_feed<STRIPS> &f, const struct panel &w, uint32_t leaf) {
    const uint32_t lane = threadIdx.x % 32, slot_bytes = w.scale == QUANT_SCALE_F32 ? 64 : 32;
#pragma unroll
    for (uint32_t m = 0; m < STRIPS; m++) {
        const uint64_t block = (uint64_t)leaf * w.strips + strip_of<STRIPS>(w, f.unit, m);
        f.codes[m] = w.d_codes + block * w.runs * (4 / weight<FORM>::PAIRS * weight<FORM>::BYTES) + lane * 16;
        f.scales[m] = w.d_scales + block * w.slots * slot_bytes + lane * 16;
        f.zeros[m] = w.d_zeros + block * w.slots * STRIP_ROWS + lane * 16;
    }
}
/* Queues the next slot, or an empty group behind the last one. */
template <int FORM, bool ANY, class Size, int X, enum source SOURCE>
static __device__ __forceinline__ void feed_next(terms_feed<Size::STRIPS> &f,
        const struct terms_product_args &a, uint32_t units, uint8_t *ring, uint32_t leaf) {
    typedef weight<FORM> form;
    const uint32_t lane = threadIdx.x % 32, aux = aux_of_slot<FORM, ANY>(a.w),
                   scales = aux ? scale_bytes(a.w) : 0;
    if (f.unit < units) {
        uint8_t *to = ring + f.slot * ring_slot<FORM, ANY, Size, X, SOURCE>(a.w) + lane * 16;
#pragma unroll
        for (uint32_t m = 0; m < Size::STRIPS; m++, to += form::BYTES + aux) {
#pragma unroll
            for (uint32_t c = 0; c < form::BYTES; c += 512)
                copy_16_once(to + c, f.codes[m] + c);
            f.codes[m] += form::BYTES;
            if (lane * 16 < scales)
                copy_16_once(to + form::BYTES, f.scales[m]);
            if (aux && a.w.zeros && lane < a.w.segments)
                copy_16_once(to + form::BYTES + scales, f.zeros[m]);
            f.scales[m] += scales;
            f.zeros[m] += a.w.segments * STRIP_ROWS;
        }
        if constexpr (SOURCE == SOURCE_RING)
            feed_terms<X>(to - lane * 16, a.x, leaf * a.w.runs + f.at);
        if (++f.at == slots_of_leaf<FORM>(a.w)) {
            f.at = 0;
            f.unit += gridDim.x * (WARPS / a.w.leaves);
            if (f.unit < units)
                feed_seek<FORM>(f, a.w, leaf);
        }
    }
    copy_commit();
    f.slot = f.slot + 1 == Size::SLOTS ? 0 : f.slot + 1;
}

/* --- the kernel --- */

/* All outputs of the block's units: unit `first` + p of part p. */
template <int STRIPS>
static __device__ __forceinline__ void outputs_store(const struct terms_product_args &a, const float *all,
        uint32_t first_row, uint32_t rows, uint32_t first, uint32_t parts) {
    const uint32_t width = STRIPS * 16, stride = rows * width;
    for (uint32_t e = threadIdx.x; e < parts * rows * width; e += TERMS_THREADS) {
        const uint32_t o = e % width, row = e / width % rows, part = e / width / rows,
                       strip = (first + part) * STRIPS + o / 16;
        if (strip >= a.w.strips || o % 16 >= a.w.d_outputs[strip].n_valid)
            continue;
        const float y = leaves_tree(all + part * a.w.leaves * stride + row * width + o, stride, a.w.leaves);
        float *d_y = a.d_y + (uint64_t)(first_row + row) * a.ldy + a.w.d_outputs[strip].column + o % 16;
        *d_y = a.add ? *d_y + y : y;
    }
}

template <int FORM, bool ANY, int ROWS, int X, enum source SOURCE>
__global__ void __launch_bounds__(TERMS_THREADS, terms_size<FORM, ROWS, X>::BLOCKS)
        terms_product_kernel(const struct terms_product_args a) {
    typedef terms_size<FORM, ROWS, X> size;
    constexpr uint32_t TILES = size::TILES, STRIPS = size::STRIPS, PAIRS = weight<FORM>::PAIRS;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = WARPS / a.w.leaves,
                   leaf = warp % a.w.leaves, units = (a.w.strips + STRIPS - 1) / STRIPS,
                   slot_bytes = ring_slot<FORM, ANY, size, X, SOURCE>(a.w), from_row = blockIdx.y * ROWS,
                   n_rows = a.d_plan->n_rows;
    if (a.first_row + from_row >= n_rows)
        return;
    const uint32_t left = n_rows - a.first_row - from_row, rows = left < ROWS ? left : ROWS;
    uint8_t *ring = dynamic_shared() + warp * size::SLOTS * slot_bytes;
    float *meeting = (float *)(dynamic_shared() + WARPS * size::SLOTS * slot_bytes);
    [[maybe_unused]] struct norm_batch asked;
    if constexpr (SOURCE == SOURCE_NORM)
        own_norm_ask(a.in, leaf, asked);
    terms_feed<STRIPS> f = {};
    f.unit = blockIdx.x * parts + warp / a.w.leaves;
    if (f.unit < units)
        feed_seek<FORM>(f, a.w, leaf);
    for (uint32_t i = 0; i + 1 < size::SLOTS; i++)
        feed_next<FORM, ANY, size, X, SOURCE>(f, a, units, ring, leaf);

    [[maybe_unused]] own_terms<X> own;
    if constexpr (source_is_own(SOURCE)) {
        __shared__ float chains[NORM_CHAINS];
        own.terms =
                (uint8_t *)(meeting + size::BUFFERS * WARPS * STRIPS * 16) + warp * a.w.runs * own.RUN_BYTES;
        own_leaf_make<SOURCE == SOURCE_NORM>(a.in, leaf, own, chains, asked);
    }
    uint32_t slot = 0, buffer = 0;
    for (uint32_t first = blockIdx.x * parts; first < units; first += gridDim.x * parts) {
        const uint32_t unit = first + warp / a.w.leaves;
        sums<STRIPS, TILES> leaf_sums = {};
        uint32_t segment = 0;
        for (uint32_t at = 0; at < slots_of_leaf<FORM>(a.w) && unit < units; at++) {
            const uint32_t run = at * PAIRS / 4, first_pair = at * PAIRS % 4;
            [[maybe_unused]] terms_input<FORM, TILES, X, TILES == 1 && !ANY> in;
            if constexpr (SOURCE == SOURCE_READY)
                input_seek(in, a.x, leaf * a.w.runs + run, first_pair, from_row, rows);
            copy_wait<size::SLOTS - 2>();
            __syncwarp(); /* the slot has come for all lanes, and all have read the one that is filled next */
            feed_next<FORM, ANY, size, X, SOURCE>(f, a, units, ring, leaf);
            const uint8_t *codes = ring + slot * slot_bytes + lane * 16;
            if constexpr (SOURCE != SOURCE_READY) {
                const own_input<X> of_slot = {
                        (SOURCE == SOURCE_RING ? ring + (slot + 1) * slot_bytes - own.RUN_BYTES
                                               : own.terms + run * own.RUN_BYTES + first_pair * 64) +
                        lane % 4 * 16};
                slot_of<FORM>(a.w, codes, of_slot, leaf_sums);
            } else if constexpr (ANY) {
                uint64_t blocks[STRIPS];
                for (uint32_t m = 0; m < STRIPS; m++)
                    blocks[m] = (uint64_t)leaf * a.w.strips + strip_of<STRIPS>(a.w, unit, m);
                slot_anyhow<FORM>(a.w, codes, blocks, a.w.first_column + leaf * a.w.leaf_columns, run, in,
                        &segment, leaf_sums);
            } else {
                slot_of<FORM>(a.w, codes, in, leaf_sums);
            }
            slot = slot + 1 == size::SLOTS ? 0 : slot + 1;
        }
        float *all = meeting + buffer * (WARPS * rows * STRIPS * 16);
        if (size::BUFFERS == 1)
            __syncthreads(); /* all outputs of the units before were added up */
        leaves_put<STRIPS, TILES>(all + warp * rows * STRIPS * 16, rows, leaf_sums.of);
        __syncthreads();
        outputs_store<STRIPS>(a, all, a.first_row + from_row, rows, first, parts);
        buffer = size::BUFFERS - 1 - buffer;
    }
}

/* --- launching --- */

/* Forms of which a block makes a row that is alone. */
template <int FORM, bool ANY> static constexpr bool can_own() {
    return FORM >= FORM_FP8 && !ANY;
}
/* Forms, a slot of which is a run, with which the terms of a row that is alone come through the ring. */
template <int FORM, bool ANY> static constexpr bool can_ring() {
    return FORM == FORM_FP8 && !ANY;
}
static uint32_t divided(uint32_t n, uint32_t by) {
    return (n + by - 1) / by;
}
template <int FORM, bool ANY, int ROWS, int X, enum source SOURCE>
static cudaError_t queue_one(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    typedef terms_size<FORM, ROWS, X> size;
    const uint32_t of_block = rows < ROWS ? rows : ROWS,
                   own = source_is_own(SOURCE) ? a.w.runs * own_terms<X>::RUN_BYTES : 0;
    const size_t shared = WARPS * (size::SLOTS * ring_slot<FORM, ANY, size, X, SOURCE>(a.w) +
                                          size::STRIPS * size::BUFFERS * of_block * 16 * 4 + own);
    const uint32_t fit =
            (uint32_t)(d->shared_of_sm / (shared + 1024)); /* a block takes 1 KB beside its own */
    const uint32_t needed = divided(divided(a.w.strips, size::STRIPS), WARPS / a.w.leaves),
                   rounds = divided(needed, d->sms * (fit > 1 ? fit : 1));
    return K_LAUNCH_ONCE((terms_product_kernel<FORM, ANY, ROWS, X, SOURCE>),
            panel_once(a.w, 4 / weight<FORM>::PAIRS * weight<FORM>::BYTES, d),
            dim3(divided(needed, rounds), divided(rows, ROWS)), TERMS_THREADS, shared, s, a);
}
template <int FORM, bool ANY, int X>
static cudaError_t queue_terms_of(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    if constexpr (can_own<FORM, ANY>()) {
        if (a.own)
            return a.in.d_norm ? queue_one<FORM, ANY, 1, X, SOURCE_NORM>(s, a, rows, d)
                               : queue_one<FORM, ANY, 1, X, SOURCE_ROW>(s, a, rows, d);
    }
    if constexpr (can_ring<FORM, ANY>()) {
        if (rows == 1)
            return queue_one<FORM, ANY, 1, X, SOURCE_RING>(s, a, rows, d);
    }
    return rows <= 8 ? queue_one<FORM, ANY, 8, X, SOURCE_READY>(s, a, rows, d)
                     : queue_one<FORM, ANY, 16, X, SOURCE_READY>(s, a, rows, d);
}
template <int FORM, bool ANY>
static cudaError_t queue_panel(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    if constexpr (weight<FORM>::TAKES_BF16) {
        if (a.x.n == 1)
            return queue_terms_of<FORM, ANY, 1>(s, a, rows, d);
    }
    return queue_terms_of<FORM, ANY, TERMS>(s, a, rows, d);
}
template <int FORM>
static cudaError_t queue_quantised(
        cudaStream_t s, const struct terms_product_args &a, uint32_t rows, const struct device_size *d) {
    return a.w.segments == SEGMENTS_ANY ? queue_panel<FORM, true>(s, a, rows, d)
                                        : queue_panel<FORM, false>(s, a, rows, d);
}
cudaError_t queue_terms_product(cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound,
        const struct device_size *d) {
    const uint32_t left = rows_bound - a->first_row, rows = left < TERMS_ROWS ? left : TERMS_ROWS;
    switch (a->w.form) {
    case FORM_INT4:
        return queue_quantised<FORM_INT4>(s, *a, rows, d);
    case FORM_INT8:
        return queue_quantised<FORM_INT8>(s, *a, rows, d);
    case FORM_FP8:
        return queue_quantised<FORM_FP8>(s, *a, rows, d);
    case FORM_BF16:
        return queue_panel<FORM_BF16, false>(s, *a, rows, d);
    case FORM_F16:
        return queue_panel<FORM_F16, false>(s, *a, rows, d);
    default:
        return queue_panel<FORM_F32, false>(s, *a, rows, d);
    }
}

/* Of the row, in a block: what is left beside the ring where a block has 99 KB. */
#define OWN_BYTES_MOST (40u << 10)
bool terms_can_own(const struct panel *w, const struct input *in, uint32_t rows_bound) {
    return own_row_can(*in, rows_bound) && w->form >= FORM_FP8 && w->segments != SEGMENTS_ANY &&
           WARPS * w->runs * own_terms<TERMS>::RUN_BYTES <= OWN_BYTES_MOST;
}

template <int FORM, bool ANY, int ROWS, int X, enum source SOURCE = SOURCE_READY>
static cudaError_t prepare_one(int shared_of_block) {
    /* A norm's chains are beside it. */
    const int others = source_is_own(SOURCE) ? (int)(NORM_CHAINS * sizeof(float)) : 0;
    return cudaFuncSetAttribute(terms_product_kernel<FORM, ANY, ROWS, X, SOURCE>,
            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_of_block - others);
}
template <int FORM, bool ANY, int X> static cudaError_t prepare_terms(int shared_of_block) {
    cudaError_t r = prepare_one<FORM, ANY, 8, X>(shared_of_block);
    r = r == cudaSuccess ? prepare_one<FORM, ANY, 16, X>(shared_of_block) : r;
    if constexpr (can_own<FORM, ANY>()) {
        r = r == cudaSuccess ? prepare_one<FORM, ANY, 1, X, SOURCE_ROW>(shared_of_block) : r;
        r = r == cudaSuccess ? prepare_one<FORM, ANY, 1, X, SOURCE_NORM>(shared_of_block) : r;
    }
    if constexpr (can_ring<FORM, ANY>())
        r = r == cudaSuccess ? prepare_one<FORM, ANY, 1, X, SOURCE_RING>(shared_of_block) : r;
    return r;
}
template <int FORM, bool ANY> static cudaError_t prepare(int shared_of_block) {
    cudaError_t r = prepare_terms<FORM, ANY, TERMS>(shared_of_block);
    if constexpr (weight<FORM>::TAKES_BF16)
        r = r == cudaSuccess ? prepare_terms<FORM, ANY, 1>(shared_of_block) : r;
    return r;
}
cudaError_t terms_prepare(uint32_t shared_of_block) {
    cudaError_t (*const all[])(int) = {prepare<FORM_INT4, true>, prepare<FORM_INT4, false>,
            prepare<FORM_INT8, true>, prepare<FORM_INT8, false>, prepare<FORM_FP8, true>,
            prepare<FORM_FP8, false>, prepare<FORM_BF16, false>, prepare<FORM_F16, false>,
            prepare<FORM_F32, false>};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i]((int)shared_of_block);
    return r;
}
