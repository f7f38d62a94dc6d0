/* attention_tile.cuh - leaves of a tile on tensor cores, whatever the pages hold: what attention_bf16.cuh and
 * attention_int8.cuh, which say how q . k and p v are multiplied, have in common.
 *
 * A block has 16 * Q_TILES queries as rows of a product, and brings K and V of a step of 64 positions as stages of
 * STAGE positions through a ring of SLOTS in shared memory, by cp.async. Its warps are Q_TILES times SHARES: those
 * that share 16 queries each have some of the positions for q . k and some of the columns for p v, and exchange p
 * through shared memory. A thread (g, i) of a warp has queries g and g + 8.
 *
 *   barriers   one for each stage that has come (it also frees the slot that is filled next), one for the maxima
 *   moved      K and V once a tile; q from L2 once for every piece of work */
#pragma once

#include "kernels/cuda/attention_parts.cuh"

#define STEP 64u /* positions; a page */
static_assert(STEP == PAGE_TOKENS, "a step lies in one page");

template <class F> struct tile_run;

/* PAGES: what is in them, bf16_pages or int8_pages; DIM: largest head size; ONLY: there is no other. */
template <class PAGES_, int Q_TILES_, int SHARES_, int STAGE_, int SLOTS_, int DIM_, bool ONLY_, int BLOCKS_>
struct tile_form {
    typedef tile_run<tile_form> run;
    typedef PAGES_ PAGES;
    static constexpr uint32_t Q_TILES = Q_TILES_, SHARES = SHARES_, STAGE = STAGE_, SLOTS = SLOTS_,
                              DIM = DIM_, BLOCKS = BLOCKS_;
    static constexpr bool ONLY = ONLY_;
    static constexpr uint32_t QUERIES = Q_TILES * 16, THREADS = Q_TILES * SHARES * 32;
    static constexpr uint32_t STAGES = STEP / STAGE;                    /* of K, and of V, in a step */
    static constexpr uint32_t EIGHTS = STEP / 8 / SHARES;               /* of positions, of a warp */
    static constexpr uint32_t PAIRS = (DIM / 16 + SHARES - 1) / SHARES; /* of eights of columns, of a warp */
    /* Leaves that are combined here stay in registers, where there are enough; else in the output. */
    static constexpr bool KEEPS = PAIRS <= 4 && BLOCKS == 1;
    /* Columns of a row in shared memory: padded, and 16 bytes more so that eight rows meet no bank twice; the same of
     * q's two parts, and of p's. */
    static __host__ __device__ __forceinline__ uint32_t columns(uint32_t d) {
        return ONLY ? DIM : (d + PAGES::PADDED - 1) & ~(PAGES::PADDED - 1);
    }
    static __host__ __device__ __forceinline__ uint32_t row_bytes(uint32_t d) {
        return columns(d) * PAGES::BYTES + 16;
    }
    static constexpr uint32_t P_BYTES = STEP * PAGES::BYTES + 16;
    static __host__ __device__ __forceinline__ uint32_t stage_bytes(uint32_t d) {
        return STAGE * row_bytes(d) + PAGES::stage_more(STAGE);
    }
    static __host__ __device__ __forceinline__ uint32_t ring_bytes(uint32_t d) {
        return SLOTS * stage_bytes(d);
    }
    static __host__ __device__ __forceinline__ uint32_t shared_bytes(uint32_t d) {
        return ring_bytes(d) + 2 * QUERIES * row_bytes(d) + 2 * QUERIES * P_BYTES +
               QUERIES * (SHARES + STEP / 8 + 1 + PAGES::floats_more(SHARES)) * 4 + FOUND_BYTES;
    }
};

template <class F> struct tile_run {
    typedef typename F::PAGES PAGES;
    const struct attention_args &a;
    struct attention_work w;
    /* shared memory */
    uint8_t *ring, *q_high, *q_low;
    uint8_t *p_high, *p_low; /* [query][P_BYTES] */
    float *maxima, *sums;    /* [query][SHARES], [query][eight of positions] */
    float *more;             /* [query][floats_more] */
    uint32_t *lasts;         /* [query] */
    struct found_tile *found;
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
    typename PAGES::template of_thread<F> own;

    __device__ __forceinline__ tile_run(const struct attention_args &args) : a(args), own() {
        const uint32_t d = dim();
        ring = dynamic_shared();
        q_high = ring + F::ring_bytes(d);
        q_low = q_high + F::QUERIES * F::row_bytes(d);
        p_high = q_low + F::QUERIES * F::row_bytes(d);
        p_low = p_high + F::QUERIES * F::P_BYTES;
        maxima = (float *)(p_low + F::QUERIES * F::P_BYTES);
        sums = maxima + F::QUERIES * F::SHARES;
        more = sums + F::QUERIES * (STEP / 8);
        lasts = (uint32_t *)(more + F::QUERIES * PAGES::floats_more(F::SHARES));
        found = (struct found_tile *)(lasts + F::QUERIES);
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
    /* Query h of the thread's two. */
    static __device__ __forceinline__ uint32_t query(uint32_t h) {
        return first_query() + lane() / 4 + h * 8;
    }

    /* --- filling --- */

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
            const bool is_value = in_step >= F::STAGES;
            const uint64_t at = (uint64_t)page * a.pool.layout.page_bytes +
                                (is_value ? PAGE_TOKENS * dim() * PAGES::BYTES : 0);
            PAGES::fill(*this, ring + fed % F::SLOTS * F::stage_bytes(dim()), d_pages + at, is_value, j0);
        }
        copy_commit();
        fed++;
    }
    /* Stage n has come, for all; the slot that is filled next was read by all. */
    __device__ __forceinline__ const uint8_t *stage(uint32_t n) {
        copy_wait<F::SLOTS - 2>();
        __syncthreads();
        feed();
        return ring + n % F::SLOTS * F::stage_bytes(dim());
    }

    /* --- a piece of work --- */

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
        PAGES::queries_load(*this);
        static_assert(F::QUERIES <= F::THREADS, "a thread has at most one query's last position");
        if (threadIdx.x < F::QUERIES)
            lasts[threadIdx.x] = last_of(a, w.t, threadIdx.x);
        __syncthreads();
        last[0] = lasts[query(0)];
        last[1] = lasts[query(1)];
        PAGES::queries_loaded(*this);
    }

    /* --- q . k --- */

    static constexpr uint32_t STAGE_EIGHTS = F::STAGE / 8;
    static constexpr bool EACH_STAGE = STAGE_EIGHTS >= F::SHARES; /* a warp has eights in each; else in one */
    static constexpr uint32_t PER_STAGE = EACH_STAGE ? STAGE_EIGHTS / F::SHARES : 1;

    /* Those of position `step` on: of all stages of K. */
    __device__ __forceinline__ void step_scores(uint32_t step, uint32_t *n, float (*s)[4]) {
#pragma unroll
        for (uint32_t k = 0; k < F::STAGES; k++, ++*n) {
            const uint8_t *keys = stage(*n);
            if (step + k * F::STAGE < end && (EACH_STAGE || share() / STAGE_EIGHTS == k))
                PAGES::scores(*this, keys, EACH_STAGE ? k * PER_STAGE : 0, s);
        }
    }

    /* --- p --- */

    /* The position of element e of the warp's eight t. */
    static __device__ __forceinline__ uint32_t position_of(uint32_t t, uint32_t e) {
        return (share() + t * F::SHARES) * 8 + lane() % 4 * 2 + (e & 1);
    }
    __device__ __forceinline__ bool sees_position(uint32_t h, uint32_t j) const {
        return j >= a.shift && j <= last[h];
    }
    /* s = scaled scores, -infinity where the query does not see the position; their maxima go to shared memory. */
    __device__ __forceinline__ void step_maxima(uint32_t step, float (*s)[4]) {
        const float scale = PAGES::SCALED ? 1.0f : 1.0f / sqrtf((float)dim());
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (uint32_t t = 0; t < F::EIGHTS; t++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t j = step + position_of(t, e);
                s[t][e] = sees_position(e / 2, j) ? s[t][e] * scale : -INFINITY;
                top[e / 2] = larger_of(top[e / 2], s[t][e]);
            }
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            top[h] = larger_of(top[h], __shfl_xor_sync(ALL_LANES, top[h], 1));
            top[h] = larger_of(top[h], __shfl_xor_sync(ALL_LANES, top[h], 2));
            if (lane() % 4 == 0)
                maxima[query(h) * F::SHARES + share()] = top[h];
        }
        PAGES::maxima(*this, step);
    }
    /* p of the warp's positions and the sums of its eights, to shared memory; o and sum are scaled for the new
     * maximum. */
    __device__ __forceinline__ void step_weights(const float (*s)[4]) {
        float before[2] = {max[0], max[1]};
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t k = 0; k < F::SHARES; k++)
                max[h] = larger_of(max[h], maxima[query(h) * F::SHARES + k]);
            PAGES::weights_begin(*this, h);
            const float scale = max[h] == before[h] ? 1.0f : f32_exp(before[h] - max[h]);
            sum[h] = sum[h] * scale;
#pragma unroll
            for (uint32_t t = 0; t < F::EIGHTS; t++) {
                const float x = weight_of(s[t][2 * h], max[h]), y = weight_of(s[t][2 * h + 1], max[h]);
                PAGES::weights_put(*this, h, t, x, y);
                float eight = x + y;
                eight = eight + __shfl_xor_sync(ALL_LANES, eight, 1);
                eight = eight + __shfl_xor_sync(ALL_LANES, eight, 2);
                if (lane() % 4 == 0)
                    sums[query(h) * (STEP / 8) + share() + t * F::SHARES] = eight;
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
            const float *v = sums + query(h) * (STEP / 8);
            sum[h] = sum[h] + (((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
        }
    }

    /* --- p v --- */

    __device__ __forceinline__ void step_values(uint32_t step, uint32_t *n) {
#pragma unroll
        for (uint32_t k = 0; k < F::STAGES; k++, ++*n) {
            const uint8_t *rows = stage(*n);
            if (k == 0)
                step_sums();
            if (step + k * F::STAGE < end)
                PAGES::values(*this, rows, k * F::STAGE);
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
        return (share() * F::PAIRS + k / 2) * 16 + PAGES::column_in_pair(k % 2, e & 1);
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

    __device__ __forceinline__ void run(const struct attention_work &work) {
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
            if (w.whole)
                leaf_to_output(step / ATTENTION_LEAF);
            else
                leaf_to_part(step / ATTENTION_LEAF);
        }
        copy_wait<0>();
    }
    /* complete: all parts of the tile and kv head are there. */
    __device__ __forceinline__ void finish(bool complete) const {
        if (complete)
            fold_queries<F::DIM>(
                    a, w, dim(), ring, F::ring_bytes(dim()) + 2 * F::QUERIES * F::row_bytes(dim()));
    }
};
