/* attention_bf16.cuh - leaves of a tile over pages of bf16, on tensor cores.
 *
 * A block has 16 * Q_TILES queries as rows of m16n8k16, and brings K and V of a step of 64 positions as stages of
 * STAGE positions through a ring of SLOTS in shared memory, by cp.async. Its warps are Q_TILES times SHARES: those
 * that share 16 queries each have some of the positions for q . k and some of the columns for p v, and exchange p
 * through shared memory. A thread (g, i) of a warp has queries g and g + 8.
 *
 *   barriers   one for each stage that has come (it also frees the slot that is filled next), one for the maxima
 *   moved      K and V once a tile; q from L2 once for every piece of work */
#pragma once

#include "kernels/cuda/attention_parts.cuh"

#define STEP     64u /* positions; a page */
#define P_STRIDE (STEP + 8u)
static_assert(STEP == PAGE_TOKENS, "a step lies in one page");

/* DIM: largest head size; ONLY: there is no other. */
template <int Q_TILES_, int SHARES_, int STAGE_, int SLOTS_, int DIM_, bool ONLY_, int BLOCKS_>
struct bf16_form {
    static constexpr uint32_t Q_TILES = Q_TILES_, SHARES = SHARES_, STAGE = STAGE_, SLOTS = SLOTS_,
                              DIM = DIM_, BLOCKS = BLOCKS_;
    static constexpr bool ONLY = ONLY_;
    static constexpr uint32_t QUERIES = Q_TILES * 16, THREADS = Q_TILES * SHARES * 32;
    static constexpr uint32_t STAGES = STEP / STAGE;                    /* of K, and of V, in a step */
    static constexpr uint32_t EIGHTS = STEP / 8 / SHARES;               /* of positions, of a warp */
    static constexpr uint32_t PAIRS = (DIM / 16 + SHARES - 1) / SHARES; /* of eights of columns, of a warp */
    /* Leaves that are combined here stay in registers, where there are enough; else in the output. */
    static constexpr bool KEEPS = PAIRS <= 4 && BLOCKS == 1;
    /* Columns of a row in shared memory: padded to 32, and 16 bytes more so that eight rows meet no bank twice. */
    static __host__ __device__ __forceinline__ uint32_t columns(uint32_t d) {
        return ONLY ? DIM : (d + 31) & ~31u;
    }
    static __host__ __device__ __forceinline__ uint32_t row_bytes(uint32_t d) {
        return columns(d) * 2 + 16;
    }
    static __host__ __device__ __forceinline__ uint32_t ring_bytes(uint32_t d) {
        return SLOTS * STAGE * row_bytes(d);
    }
    static __host__ __device__ __forceinline__ uint32_t shared_bytes(uint32_t d) {
        return ring_bytes(d) + 2 * QUERIES * row_bytes(d) + 2 * QUERIES * P_STRIDE * 2 +
               QUERIES * (SHARES + STEP / 8 + 1) * 4 + FOUND_BYTES;
    }
};

template <class F> struct bf16_run {
    const struct attention_args &a;
    struct attention_work w;
    /* shared memory */
    uint8_t *ring, *q_high, *q_low;
    uint16_t *p_high, *p_low; /* [query][P_STRIDE] */
    float *maxima, *sums;     /* [query][SHARES], [query][eight of positions] */
    uint32_t *lasts, *flag;   /* [query]; FOUND_BYTES */
    /* the ring's filling side */
    const uint8_t *d_pages;
    const uint32_t *d_table;
    uint32_t begin, end, fed; /* positions; stages */
    uint32_t page, page_next;
    /* this thread's two queries */
    uint32_t last[2];
    float max[2], sum[2], all_max[2],
            all_sum[2]; /* of the leaf; of the leaves combined, where that is done here */
    float o[2 * F::PAIRS][4], all_o[F::KEEPS ? 2 * F::PAIRS : 1][4];

    __device__ __forceinline__ bf16_run(const struct attention_args &args) : a(args) {
        const uint32_t d = dim();
        ring = dynamic_shared();
        q_high = ring + F::ring_bytes(d);
        q_low = q_high + F::QUERIES * F::row_bytes(d);
        p_high = (uint16_t *)(q_low + F::QUERIES * F::row_bytes(d));
        p_low = p_high + F::QUERIES * P_STRIDE;
        maxima = (float *)(p_low + F::QUERIES * P_STRIDE);
        sums = maxima + F::QUERIES * F::SHARES;
        lasts = (uint32_t *)(sums + F::QUERIES * (STEP / 8));
        flag = lasts + F::QUERIES;
    }
    __device__ __forceinline__ uint32_t dim() const {
        return F::ONLY ? F::DIM : a.pool.shape.head_dim;
    }
    static __device__ __forceinline__ uint32_t lane() {
        return threadIdx.x % 32;
    }
    static __device__ __forceinline__ uint32_t share() {
        return threadIdx.x / 32 % F::SHARES;
    }
    /* Of the warp, in the tile. */
    static __device__ __forceinline__ uint32_t first_query() {
        return threadIdx.x / 32 / F::SHARES * 16;
    }
    __device__ __forceinline__ struct fold_room room(uint32_t n) const {
        return fold_room_in(ring, F::ring_bytes(dim()) + 2 * F::QUERIES * F::row_bytes(dim()), n);
    }

    /* --- filling --- */

    /* Positions that no query sees become zeros: there may be anything in the page. */
    __device__ __forceinline__ void fill(uint8_t *slot, const uint8_t *d_rows, uint32_t j0) {
        const uint32_t d = dim(), chunks = F::columns(d) / 8;
        if (F::ONLY && F::Q_TILES == 1) { /* more have no registers left for it */
            fill_only(slot, d_rows + j0 % PAGE_TOKENS * F::DIM * 2, j0);
            return;
        }
        if (d % 8) {
            fill_unaligned(slot, d_rows, j0);
            return;
        }
#pragma unroll 4
        for (uint32_t c = threadIdx.x; c < F::STAGE * chunks; c += F::THREADS) {
            const uint32_t r = c / chunks, column = c % chunks * 8, j = j0 + r;
            uint8_t *to = slot + r * F::row_bytes(d) + column * 2;
            if (j >= a.shift && j < end && column < d)
                copy_16(to, d_rows + ((j % PAGE_TOKENS) * d + column) * 2);
            else
                *(uint4 *)to = {};
        }
    }
    /* Where the head size is known: a thread has one column of rows at constant distances. */
    __device__ __forceinline__ void fill_only(uint8_t *slot, const uint8_t *d_rows, uint32_t j0) {
        constexpr uint32_t CHUNKS = F::DIM / 8, ROWS = F::THREADS / CHUNKS;
        const uint32_t row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
        uint8_t *to = slot + row * F::row_bytes(F::DIM) + column * 2;
        const uint8_t *d_from = d_rows + (row * F::DIM + column) * 2;
#pragma unroll
        for (uint32_t k = 0; k < F::STAGE; k += ROWS) {
            const uint32_t j = j0 + row + k;
            if (F::STAGE % ROWS && row + k >= F::STAGE)
                continue;
            if (j >= a.shift && j < end)
                copy_16(to + k * F::row_bytes(F::DIM), d_from + k * F::DIM * 2);
            else
                *(uint4 *)(to + k * F::row_bytes(F::DIM)) = {};
        }
    }
    __device__ void fill_unaligned(uint8_t *slot, const uint8_t *d_rows, uint32_t j0) {
        const uint32_t d = dim(), columns = F::columns(d);
        for (uint32_t c = threadIdx.x; c < F::STAGE * columns; c += F::THREADS) {
            const uint32_t r = c / columns, column = c % columns, j = j0 + r;
            const bool there = j >= a.shift && j < end && column < d;
            ((uint16_t *)(slot + r * F::row_bytes(d)))[column] =
                    there ? ((const uint16_t *)d_rows)[(j % PAGE_TOKENS) * d + column] : 0;
        }
    }
    /* Queues the next stage, or an empty group where it has no position: stages of K, then of V, of each step. */
    __device__ __forceinline__ void feed() {
        const uint32_t in_step = fed % (2 * F::STAGES), step = begin + fed / (2 * F::STAGES) * STEP,
                       j0 = step + in_step % F::STAGES * F::STAGE;
        if (in_step == 0) { /* the next page's number is read a step before it is needed */
            page = page_next;
            if (step + STEP < end)
                page_next = d_table[(step + STEP) / PAGE_TOKENS];
        }
        if (j0 < end) {
            const uint64_t at = (uint64_t)page * a.pool.layout.page_bytes +
                                (in_step < F::STAGES ? 0 : PAGE_TOKENS * dim() * 2);
            fill(ring + fed % F::SLOTS * (F::STAGE * F::row_bytes(dim())), d_pages + at, j0);
        }
        copy_commit();
        fed++;
    }
    /* Stage n has come, for all; the slot that is filled next was read by all. */
    __device__ __forceinline__ const uint8_t *stage(uint32_t n) {
        copy_wait<F::SLOTS - 2>();
        __syncthreads();
        feed();
        return ring + n % F::SLOTS * (F::STAGE * F::row_bytes(dim()));
    }

    /* --- a piece of work --- */

    /* Four columns of a query; 0 behind the last column. */
    __device__ __forceinline__ float4 query_columns(const float *d_q, uint32_t c) const {
        const uint32_t d = dim();
        float4 x = {};
        if (d % 4 == 0)
            return c < d ? load_read_only((const float4 *)(d_q + c)) : x;
        x.x = c < d ? load_read_only(d_q + c) : 0.0f;
        x.y = c + 1 < d ? load_read_only(d_q + c + 1) : 0.0f;
        x.z = c + 2 < d ? load_read_only(d_q + c + 2) : 0.0f;
        x.w = c + 3 < d ? load_read_only(d_q + c + 3) : 0.0f;
        return x;
    }
    __device__ __forceinline__ void queries_load() {
        const uint32_t d = dim(), fours = F::columns(d) / 4, all = F::QUERIES * fours;
#pragma unroll 4
        for (uint32_t first = 0; first < all; first += F::THREADS) {
            const uint32_t e = first + threadIdx.x;
            if (all % F::THREADS && e >= all)
                break;
            const uint32_t i = e / fours, c = e % fours * 4, at = i * F::row_bytes(d) + c * 2;
            /* no branch between the loads of several e: a query there is, if not this one */
            float4 x = query_columns(a.d_q + query_of(a, w.t, w.head, i < w.t.n ? i : 0) * d, c);
            if (i >= w.t.n)
                x = {};
            split_put(q_high + at, q_low + at, x.x, x.y);
            split_put(q_high + at + 4, q_low + at + 4, x.z, x.w);
        }
        static_assert(F::QUERIES <= F::THREADS, "a thread has at most one query's last position");
        if (threadIdx.x < F::QUERIES)
            lasts[threadIdx.x] = last_of(a, w.t, threadIdx.x);
    }
    static __device__ __forceinline__ void split_put(void *high, void *low, float x, float y) {
        const uint32_t h = bf16_pair(x, y);
        *(uint32_t *)high = h;
        *(uint32_t *)low = bf16_pair(x - float_of_bits(h << 16), y - float_of_bits(h & 0xffff0000u));
    }
    __device__ __forceinline__ void work_begin(const struct attention_work &work) {
        w = work;
        d_pages = pages_of(a, w.head);
        d_table = table_of(a, w.t);
        begin = w.leaf * ATTENTION_LEAF;
        const uint32_t leaves_end = (w.leaf + w.n_leaves) * ATTENTION_LEAF;
        end = w.t.last < leaves_end ? w.t.last + 1 : leaves_end;
        fed = 0;
        page_next = d_table[begin / PAGE_TOKENS];
        __syncthreads(); /* the work before it was read by all */
        for (uint32_t n = 0; n + 1 < F::SLOTS; n++)
            feed();
        queries_load();
        __syncthreads();
        last[0] = lasts[first_query() + lane() / 4];
        last[1] = lasts[first_query() + lane() / 4 + 8];
    }

    /* --- q . k --- */

    static constexpr uint32_t STAGE_EIGHTS = F::STAGE / 8;
    static constexpr bool EACH_STAGE = STAGE_EIGHTS >= F::SHARES; /* a warp has eights in each; else in one */
    static constexpr uint32_t PER_STAGE = EACH_STAGE ? STAGE_EIGHTS / F::SHARES : 1;

    /* The warp's eights of positions of a stage: share, share + SHARES, .. */
    __device__ __forceinline__ void scores(const uint8_t *keys, float (*s)[4]) const {
        const uint32_t bytes = F::row_bytes(dim()),
                       q_at = (first_query() + lane() % 16) * bytes + lane() / 16 * 16,
                       k_at = (share() % STAGE_EIGHTS * 8 + lane() % 8) * bytes + lane() / 8 * 16;
        float chain[PER_STAGE][4][4] = {};
        for (uint32_t c = 0; c < F::columns(dim()); c += 32) {
            uint32_t high[2][4], low[2][4];
            ldmatrix_4(high[0], q_high + q_at + c * 2);
            ldmatrix_4(high[1], q_high + q_at + c * 2 + 32);
            ldmatrix_4(low[0], q_low + q_at + c * 2);
            ldmatrix_4(low[1], q_low + q_at + c * 2 + 32);
#pragma unroll
            for (uint32_t t = 0; t < PER_STAGE; t++) {
                uint32_t k[4];
                ldmatrix_4(k, keys + k_at + t * F::SHARES * 8 * bytes + c * 2);
                mma_bf16(chain[t][0], high[0], k[0], k[1], chain[t][0]);
                mma_bf16(chain[t][1], high[1], k[2], k[3], chain[t][1]);
                mma_bf16(chain[t][2], low[0], k[0], k[1], chain[t][2]);
                mma_bf16(chain[t][3], low[1], k[2], k[3], chain[t][3]);
            }
        }
#pragma unroll
        for (uint32_t t = 0; t < PER_STAGE; t++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                s[t][e] = (chain[t][0][e] + chain[t][1][e]) + (chain[t][2][e] + chain[t][3][e]);
        }
    }
    /* Those of position `step` on: of all stages of K. */
    __device__ __forceinline__ void step_scores(uint32_t step, uint32_t *n, float (*s)[4]) {
#pragma unroll
        for (uint32_t k = 0; k < F::STAGES; k++, ++*n) {
            const uint8_t *keys = stage(*n);
            if (step + k * F::STAGE < end && (EACH_STAGE || share() / STAGE_EIGHTS == k))
                scores(keys, s + (EACH_STAGE ? k * PER_STAGE : 0));
        }
    }

    /* --- p --- */

    /* The position of element e of the warp's eight t. */
    static __device__ __forceinline__ uint32_t position_of(uint32_t t, uint32_t e) {
        return (share() + t * F::SHARES) * 8 + lane() % 4 * 2 + (e & 1);
    }
    /* s = scaled scores, -infinity where the query does not see the position; their maxima go to shared memory. */
    __device__ __forceinline__ void step_maxima(uint32_t step, float (*s)[4]) {
        const float scale = 1.0f / sqrtf((float)dim());
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (uint32_t t = 0; t < F::EIGHTS; t++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t j = step + position_of(t, e);
                s[t][e] = j >= a.shift && j <= last[e / 2] ? s[t][e] * scale : -INFINITY;
                top[e / 2] = larger_of(top[e / 2], s[t][e]);
            }
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            top[h] = larger_of(top[h], __shfl_xor_sync(ALL_LANES, top[h], 1));
            top[h] = larger_of(top[h], __shfl_xor_sync(ALL_LANES, top[h], 2));
            if (lane() % 4 == 0)
                maxima[(first_query() + lane() / 4 + h * 8) * F::SHARES + share()] = top[h];
        }
    }
    /* p of the warp's positions and the sums of its eights, to shared memory; o and sum are scaled for the new
     * maximum. */
    __device__ __forceinline__ void step_weights(const float (*s)[4]) {
        float before[2] = {max[0], max[1]};
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t query = first_query() + lane() / 4 + h * 8;
#pragma unroll
            for (uint32_t k = 0; k < F::SHARES; k++)
                max[h] = larger_of(max[h], maxima[query * F::SHARES + k]);
            const float scale = max[h] == before[h] ? 1.0f : f32_exp(before[h] - max[h]);
            sum[h] = sum[h] * scale;
#pragma unroll
            for (uint32_t t = 0; t < F::EIGHTS; t++) {
                const float x = weight_of(s[t][2 * h], max[h]), y = weight_of(s[t][2 * h + 1], max[h]);
                const uint32_t at = query * P_STRIDE + position_of(t, 0);
                split_put(p_high + at, p_low + at, x, y);
                float eight = x + y;
                eight = eight + __shfl_xor_sync(ALL_LANES, eight, 1);
                eight = eight + __shfl_xor_sync(ALL_LANES, eight, 2);
                if (lane() % 4 == 0)
                    sums[query * (STEP / 8) + share() + t * F::SHARES] = eight;
            }
#pragma unroll
            for (uint32_t k = 0; k < 2 * F::PAIRS; k++) {
                o[k][2 * h] = o[k][2 * h] * scale;
                o[k][2 * h + 1] = o[k][2 * h + 1] * scale;
            }
        }
    }
    static __device__ __forceinline__ float weight_of(float s, float max) {
        return s == -INFINITY ? 0.0f : f32_exp(s - max);
    }
    __device__ __forceinline__ void step_sums() {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const float *v = sums + (first_query() + lane() / 4 + h * 8) * (STEP / 8);
            sum[h] = sum[h] + (((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
        }
    }

    /* --- p v --- */

    /* Positions `from` .. of the step, in a stage of V, times the warp's columns. */
    __device__ __forceinline__ void values(const uint8_t *stage_rows, uint32_t from) {
        const uint32_t bytes = F::row_bytes(dim()), first_pair = share() * F::PAIRS;
        if (!F::ONLY && first_pair * 16 >= F::columns(dim()))
            return;
#pragma unroll
        for (uint32_t j = 0; j < F::STAGE; j += 16) {
            uint32_t high[4], low[4];
            const uint32_t p_at = (first_query() + lane() % 16) * P_STRIDE + from + j + lane() / 16 * 8;
            ldmatrix_4(high, p_high + p_at);
            ldmatrix_4(low, p_low + p_at);
#pragma unroll
            for (uint32_t k = 0; k < F::PAIRS; k++) {
                uint32_t v[4];
                if (!F::ONLY && (first_pair + k) * 16 >= F::columns(dim()))
                    continue;
                ldmatrix_4_transposed(
                        v, stage_rows + (j + lane() % 16) * bytes + (first_pair + k) * 32 + lane() / 16 * 16);
                mma_bf16(o[2 * k], high, v[0], v[1], o[2 * k]);
                mma_bf16(o[2 * k + 1], high, v[2], v[3], o[2 * k + 1]);
                mma_bf16(o[2 * k], low, v[0], v[1], o[2 * k]);
                mma_bf16(o[2 * k + 1], low, v[2], v[3], o[2 * k + 1]);
            }
        }
    }
    __device__ __forceinline__ void step_values(uint32_t step, uint32_t *n) {
#pragma unroll
        for (uint32_t k = 0; k < F::STAGES; k++, ++*n) {
            const uint8_t *rows = stage(*n);
            if (k == 0)
                step_sums();
            if (step + k * F::STAGE < end)
                values(rows, k * F::STAGE);
        }
    }

    /* --- leaves --- */

    __device__ __forceinline__ void leaf_begin() {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            max[h] = -INFINITY;
            sum[h] = 0.0f;
        }
#pragma unroll
        for (uint32_t k = 0; k < 2 * F::PAIRS; k++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                o[k][e] = 0.0f;
        }
    }
    /* Column of element e of o[k]; may be behind the last. */
    static __device__ __forceinline__ uint32_t column_of(uint32_t k, uint32_t e) {
        return (share() * F::PAIRS + k / 2) * 16 + k % 2 * 8 + lane() % 4 * 2 + (e & 1);
    }
    __device__ __forceinline__ bool sees(uint32_t h, uint32_t leaf) const {
        return first_query() + lane() / 4 + h * 8 < w.t.n && last[h] >= leaf * ATTENTION_LEAF;
    }
    __device__ __forceinline__ void leaf_to_part(uint32_t leaf) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            if (!sees(h, leaf))
                continue;
            const uint64_t part = part_of(a, w.t, w.head, leaf, first_query() + lane() / 4 + h * 8);
            if (share() == 0 && lane() % 4 == 0) {
                a.d_sums[part * 2] = max[h];
                a.d_sums[part * 2 + 1] = sum[h];
            }
#pragma unroll
            for (uint32_t k = 0; k < 2 * F::PAIRS; k++) {
#pragma unroll
                for (uint32_t e = 0; e < 2; e++)
                    if (column_of(k, e) < dim())
                        a.d_values[part * dim() + column_of(k, e)] = o[k][2 * h + e];
            }
        }
    }
    /* What was combined before lies in registers, or in the output: each element is one thread's. */
    __device__ __forceinline__ void leaf_to_output(uint32_t leaf) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            if (!sees(h, leaf))
                continue;
            const uint32_t i = first_query() + lane() / 4 + h * 8, row = row_of(a, w.t, i);
            const uint64_t query = query_of(a, w.t, w.head, i);
            float *d_out = a.d_out + query * dim();
            const float top = leaf ? larger_of(all_max[h], max[h]) : max[h];
            const struct fold_step s = fold_step_of(all_max[h], max[h], top);
            all_max[h] = top;
            all_sum[h] = leaf ? fold_sum(all_sum[h], sum[h], s) : sum[h];
            const bool is_last = last[h] / ATTENTION_LEAF == leaf;
            const float *d_gates = gates_of(a, row, query);
#pragma unroll
            for (uint32_t k = 0; k < 2 * F::PAIRS; k++) {
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    const uint32_t c = column_of(k, e);
                    if (c >= dim())
                        continue;
                    float *before = F::KEEPS ? &all_o[F::KEEPS ? k : 0][2 * h + e] : d_out + c;
                    const float x = o[k][2 * h + e], value = leaf ? fold_value(*before, x, s) : x;
                    if (is_last)
                        d_out[c] = output_of(value, all_sum[h], load_read_only(d_gates + c));
                    else
                        *before = value;
                }
            }
        }
    }

    /* All of a piece of work; split: its leaves become parts. */
    __device__ __forceinline__ void run(const struct attention_work &work, bool split) {
        uint32_t n = 0;
        work_begin(work);
        all_max[0] = all_max[1] = all_sum[0] = all_sum[1] = 0.0f;
        for (uint32_t step = begin; step < end; step += STEP) {
            float s[F::EIGHTS][4] = {};
            if (step % ATTENTION_LEAF == 0)
                leaf_begin();
            step_scores(step, &n, s);
            step_maxima(step, s);
            __syncthreads();
            step_weights(s);
            step_values(step, &n);
            if ((step + STEP) % ATTENTION_LEAF != 0 && step + STEP < end)
                continue;
            if (split)
                leaf_to_part(step / ATTENTION_LEAF);
            else
                leaf_to_output(step / ATTENTION_LEAF);
        }
        copy_wait<0>();
    }
};
