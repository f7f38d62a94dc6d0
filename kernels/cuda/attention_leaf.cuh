/* attention_leaf.cuh - small tiles over pages of bf16 with heads of 256, as every model of the family has them: a leaf
 * at a time, in as few instructions as that takes. A token's attention at some thousand positions is latency: of a
 * leaf's passes over its steps, of barriers, and of instructions, which weights have pushed out of every cache.
 *
 * The arithmetic is attention.h's, step by step, but three passes over a leaf's 256 positions: all scores, all p, all
 * of p v. Only the last has an order, and it is kept: a maximum is the same in any.
 *
 *   product    positions or columns are the 16 rows of a product, queries its 8 columns, so that the six queries of
 *              a token waste two columns and not ten rows; a tile of more than 8 takes two products
 *   scores     a warp has 16 positions of a page, all columns; s goes to shared memory, [query][position]
 *   p          a warp has a query, a lane 8 of the leaf's positions; p takes the place of s, as two bf16
 *   p v        a warp has 32 columns
 *   brought    K, then V of a leaf in stages of PAGES pages through a ring of SLOTS, by cp.async; 16 bytes lie where
 *              the low three bits of the row have exchanged them, so that eight rows meet no bank twice
 *   barriers   one for each stage that has come (it also frees the slot that is filled next), one for the scores
 *   moved      K and V once a tile; q from L2 once for every piece of work */
#pragma once

#include "kernels/cuda/attention_bf16.cuh"
#include "kernels/cuda/attention_heads.cuh"
#include "kernels/cuda/rounding.cuh"

#define LEAF_PAGES (ATTENTION_LEAF / PAGE_TOKENS)
#define FOLD_BATCH 8u /* leaves whose values a lane asks for at once */

template <class F> struct leaf_run;

/* MAKES: q, and K and V of the step's rows, are made here, out of `in`; else attention_rows.cu has left them. */
template <int SLOTS_, int PAGES_, bool MAKES_> struct leaf_form {
    typedef leaf_run<leaf_form> run;
    static constexpr uint32_t SLOTS = SLOTS_, PAGES = PAGES_;
    static constexpr bool MAKES = MAKES_;
    static constexpr uint32_t QUERIES = SMALL_QUERIES, DIM = 256, WARPS = 8, THREADS = WARPS * 32, BLOCKS = 1;
    static constexpr uint32_t STAGES = LEAF_PAGES / PAGES; /* of K, and of V, in a leaf */
    static constexpr uint32_t ROW_BYTES = DIM * 2, PAGE_BYTES = PAGE_TOKENS * ROW_BYTES;
    /* Of scores, and of high and low p: padded so that eight rows meet no bank twice. */
    static constexpr uint32_t SCORES = ATTENTION_LEAF + 4, LOW_BYTES = ATTENTION_LEAF * 2;
    static constexpr uint32_t Q_TILES = DIM / WARPS / 16; /* 16 columns of p v, of a warp */
    static __host__ __device__ __forceinline__ uint32_t shared_bytes(uint32_t) {
        return SLOTS * PAGES * PAGE_BYTES + 2 * QUERIES * ROW_BYTES +
               QUERIES * (SCORES * 4 + LEAF_PAGES * 4 + sizeof(struct fold_step) + 3 * 4) + FOUND_BYTES;
    }
};

template <class F> struct leaf_run {
    const struct attention_args &a;
    struct attention_work w;
    /* shared memory */
    uint8_t *ring, *q_high, *q_low;
    float *scores;            /* [query][SCORES]; p, high then low, lies in its query's row */
    float *scales;            /* [query][step of the leaf]: what o is scaled by before the step */
    struct fold_step *steps;  /* [query]: how this leaf enters, where leaves are combined here */
    float *all_max, *all_sum; /* [query]: of the leaves combined here */
    uint32_t *lasts;          /* [query] */
    struct found_tile *found;
    /* the ring's filling side */
    const uint8_t *d_pages;
    uint32_t begin, end, fed;       /* positions; stages */
    uint32_t numbers, numbers_next; /* of 32 pages of the piece, a lane each */
    /* this thread's columns and queries, of up to two products */
    float o[2][F::Q_TILES][4], all_o[2][F::Q_TILES][4];

    __device__ __forceinline__ leaf_run(const struct attention_args &args) : a(args) {
        ring = dynamic_shared();
        q_high = ring + F::SLOTS * F::PAGES * F::PAGE_BYTES;
        q_low = q_high + F::QUERIES * F::ROW_BYTES;
        scores = (float *)(q_low + F::QUERIES * F::ROW_BYTES);
        scales = scores + F::QUERIES * F::SCORES;
        steps = (struct fold_step *)(scales + F::QUERIES * LEAF_PAGES);
        all_max = (float *)(steps + F::QUERIES);
        all_sum = all_max + F::QUERIES;
        lasts = (uint32_t *)(all_sum + F::QUERIES);
        found = (struct found_tile *)(lasts + F::QUERIES);
    }
    static __device__ __forceinline__ uint32_t lane() {
        return threadIdx.x % 32;
    }
    static __device__ __forceinline__ uint32_t warp() {
        return threadIdx.x / 32;
    }
    /* Products that the tile's queries take. */
    __device__ __forceinline__ uint32_t halves() const {
        return w.t.n > 8 ? 2 : 1;
    }
    __device__ __forceinline__ bool sees(uint32_t query, uint32_t leaf) const {
        return query < w.t.n && lasts[query] >= leaf * ATTENTION_LEAF;
    }

    /* --- filling --- */

    __device__ __forceinline__ uint32_t numbers_of(uint32_t leaf) const {
        const uint32_t page = leaf * LEAF_PAGES + lane();
        return page * PAGE_TOKENS < end ? table_of(a, w.t)[page] : 0;
    }
    /* Queues the next stage, or an empty group where it has no position. */
    __device__ __forceinline__ void feed() {
        const uint32_t in_leaf = fed % (2 * F::STAGES), leaf = fed / (2 * F::STAGES),
                       in_numbers = leaf % (32 / LEAF_PAGES) * LEAF_PAGES + in_leaf % F::STAGES * F::PAGES;
        uint8_t *slot = ring + fed % F::SLOTS * (F::PAGES * F::PAGE_BYTES);
        if (in_leaf == 0 && in_numbers == 0) { /* they are read eight leaves before they are needed */
            numbers = numbers_next;
            numbers_next = numbers_of(w.leaf + leaf + 32 / LEAF_PAGES);
        }
#pragma unroll 1
        for (uint32_t p = 0; p < F::PAGES; p++) {
            const uint32_t page = __shfl_sync(ALL_LANES, numbers, in_numbers + p),
                           j0 = (w.leaf + leaf) * ATTENTION_LEAF +
                                (in_leaf % F::STAGES * F::PAGES + p) * PAGE_TOKENS;
            if (j0 < end)
                page_fill(slot + p * F::PAGE_BYTES,
                        d_pages + (uint64_t)page * a.pool.layout.page_bytes +
                                (in_leaf >= F::STAGES ? F::PAGE_BYTES : 0),
                        j0);
        }
        copy_commit();
        fed++;
    }
    /* K or V of a page: a warp has every eighth row. Positions that no query sees become zeros: there may be anything
     * in the page. */
    __device__ __forceinline__ void page_fill(uint8_t *to, const uint8_t *d_from, uint32_t j0) const {
        to += warp() * F::ROW_BYTES + (lane() ^ warp()) * 16;
        d_from += warp() * F::ROW_BYTES + lane() * 16;
        if (j0 >= a.shift && j0 + PAGE_TOKENS <= end) {
#pragma unroll
            for (uint32_t k = 0; k < PAGE_TOKENS; k += F::WARPS)
                copy_16(to + k * F::ROW_BYTES, d_from + k * F::ROW_BYTES);
            return;
        }
#pragma unroll 1
        for (uint32_t k = 0; k < PAGE_TOKENS; k += F::WARPS) {
            const uint32_t j = j0 + warp() + k;
            if (j >= a.shift && j < end)
                copy_16(to + k * F::ROW_BYTES, d_from + k * F::ROW_BYTES);
            else
                *(uint4 *)(to + k * F::ROW_BYTES) = {};
        }
    }
    /* Stage n of the piece has come, for all; the slot of the one before was read by all. */
    __device__ __forceinline__ const uint8_t *stage(uint32_t n) {
        if (n == 0)
            copy_wait<F::SLOTS - 1>();
        else
            copy_wait<F::SLOTS - 2>();
        __syncthreads();
        if (n > 0)
            feed();
        return ring + n % F::SLOTS * (F::PAGES * F::PAGE_BYTES);
    }

    __device__ __forceinline__ void work_begin(const struct attention_work &work) {
        w = work;
        d_pages = pages_of(a, w.head);
        begin = w.leaf * ATTENTION_LEAF;
        const uint32_t leaves_end = (w.leaf + w.n_leaves) * ATTENTION_LEAF;
        end = w.t.last < leaves_end ? w.t.last + 1 : leaves_end;
        fed = 0;
        numbers_next = numbers_of(w.leaf);
        if (F::MAKES)
            heads_make();
        else
            queries_load();
        if (threadIdx.x < F::QUERIES)
            lasts[threadIdx.x] = last_of(a, w.t, threadIdx.x);
    }
    __device__ __forceinline__ void feed_to(uint32_t stages) {
#pragma unroll 1
        while (fed < stages)
            feed();
    }
    /* Where column c of query i lies in q's parts: 2 bytes. */
    static __device__ __forceinline__ uint32_t query_at(uint32_t i, uint32_t c) {
        return i * F::ROW_BYTES + ((c / 8) ^ (i % 8)) * 16 + c % 8 * 2;
    }
    /* What is left there of queries that the tile has not enters no other query's numbers. */
    __device__ __forceinline__ void queries_load() {
        constexpr uint32_t FOURS = F::DIM / 4, ROWS = F::THREADS / FOURS, TIMES = F::QUERIES / ROWS;
        const uint32_t row = threadIdx.x / FOURS, c = threadIdx.x % FOURS * 4;
        float4 q[TIMES];
#pragma unroll
        for (uint32_t k = 0; k < TIMES; k++)
            if (row + k * ROWS < w.t.n)
                q[k] = load_read_only(
                        (const float4 *)((const float *)a.d_q +
                                         query_of(a, w.t, w.head, row + k * ROWS) * F::DIM + c));
        __syncthreads(); /* the work before it was read by all */
        feed_to(F::SLOTS);
#pragma unroll
        for (uint32_t k = 0; k < TIMES; k++) {
            const uint32_t i = row + k * ROWS, at = query_at(i, c);
            if (i >= w.t.n)
                continue;
            bf16_pages::split_put(q_high + at, q_low + at, q[k].x, q[k].y);
            bf16_pages::split_put(q_high + at + 4, q_low + at + 4, q[k].z, q[k].w);
        }
    }

    /* --- q, and K and V of the step's rows --- */

    /* A head of the tile's: queries, then K and V of every new row of the piece. */
    struct made_head {
        uint32_t row, from; /* column of `in` */
        uint32_t is;        /* 0: a query, 1: K, 2: V */
    };
    __device__ __forceinline__ struct made_head made_head_of(uint32_t n, uint32_t first_row) const {
        const struct k_shape &h = a.pool.shape;
        if (n < w.t.n) {
            const uint32_t rows = rows_behind(a, w.t, n);
            return {w.t.row + rows, (w.head * a.group + w.t.skipped + n - rows * a.group) * 2 * F::DIM, 0};
        }
        const uint32_t is_value = (n - w.t.n) % 2;
        return {first_row + (n - w.t.n) / 2, (2 * h.q_heads + is_value * h.kv_heads + w.head) * F::DIM,
                1 + is_value};
    }
    __device__ __forceinline__ void made_load(struct row_head<F::DIM> *x, const struct made_head &m) const {
        const struct k_shape &h = a.pool.shape;
        head_load(x, a.d_in + (uint64_t)m.row * ((2 * h.q_heads + 2 * h.kv_heads) * F::DIM) + m.from,
                m.is ? a.d_k_norm : a.d_q_norm, F::DIM);
    }
    /* angles: [cos | sin] of the row; frequency l is lane l's, and its pair are the lane's first two columns. */
    __device__ __forceinline__ void made_put(
            struct row_head<F::DIM> *x, const struct made_head &m, uint32_t n, const float *angles) {
        if (m.is != 2) {
            const float cosine = angles[lane()], sine = angles[32 + lane()];
            head_norm(x, F::DIM, a.pool.shape.rms_eps);
            const float first = x->x[0], second = x->x[1];
            x->x[0] = fmaf(-second, sine, first * cosine);
            x->x[1] = fmaf(first, sine, second * cosine);
        }
        const uint32_t index = w.t.last - (row_of(a, w.t, w.t.n - 1) - m.row);
        uint16_t *d_to = NULL;
        if (m.is)
            d_to = (uint16_t *)(a.pool.d_kv +
                                ((uint64_t)a.layer * a.pool.pages + table_of(a, w.t)[index / PAGE_TOKENS]) *
                                        a.pool.layout.page_bytes +
                                w.head * a.pool.layout.page_head_bytes) +
                   ((m.is - 1) * PAGE_TOKENS + index % PAGE_TOKENS) * F::DIM;
#pragma unroll
        for (uint32_t k = 0; k < F::DIM / 32; k++) {
            const float y = x->x[k];
            const uint16_t high = bf16_of(y);
            const uint32_t at = query_at(n, lane() + k * 32);
            if (m.is) {
                d_to[lane() + k * 32] = high;
            } else {
                *(uint16_t *)(q_high + at) = high;
                *(uint16_t *)(q_low + at) = bf16_of(y - float_of_bits((uint32_t)high << 16));
            }
        }
    }
    /* Stages before the first page that a new row lies in are asked for first. Every block that sees a new row of the
     * entry writes it, all the same. */
    __device__ __forceinline__ void heads_make() {
        static_assert(F::THREADS / 32 == F::WARPS, "a head is a warp's");
        static_assert(TOGETHER_ROWS * 64 <= F::QUERIES * F::SCORES,
                "the angles of a step have room where scores lie");
        float *angles = scores; /* [rows][64] */
        const uint32_t last_row = row_of(a, w.t, w.t.n - 1), first_pos = w.t.last - (last_row - w.row_begin),
                       first_new = first_pos > begin ? first_pos : begin,
                       n_new = first_new < end ? end - first_new : 0,
                       new_row = w.row_begin + (first_new - first_pos),
                       first_row = n_new && new_row < w.t.row ? new_row : w.t.row, heads = w.t.n + 2 * n_new;
        struct row_head<F::DIM> x;
        struct made_head m = made_head_of(warp(), new_row);
        if (warp() < heads)
            made_load(&x, m);
        __syncthreads(); /* the work before it was read by all */
        const uint32_t before = n_new ? (first_new - begin) / ATTENTION_LEAF * 2 * F::STAGES +
                                                first_new % ATTENTION_LEAF / PAGE_TOKENS / F::PAGES
                                      : F::SLOTS;
        feed_to(before < F::SLOTS ? before : F::SLOTS);
        for (uint32_t row = first_row + warp(); row <= last_row; row += F::WARPS)
            rope_angles(a, row, angles + (row - first_row) * 64);
        __syncthreads();
#pragma unroll 1
        for (uint32_t n = warp(); n < heads;) {
            made_put(&x, m, n, angles + (m.row - first_row) * 64);
            n += F::WARPS;
            m = made_head_of(n, new_row);
            if (n < heads)
                made_load(&x, m);
        }
        if (before < F::SLOTS) {
            __syncthreads(); /* K and V are in the pages */
            feed_to(F::SLOTS);
        }
    }

    /* --- q . k --- */

    /* A stage of K: 16 positions of a page and 8 queries at a time. */
    __device__ __forceinline__ void stage_scores(uint32_t first_page, const uint8_t *keys) {
        for (uint32_t item = warp(); item < 4 * F::PAGES * halves(); item += F::WARPS) {
            const uint32_t page = item / 4 % F::PAGES, half = item / (4 * F::PAGES);
            if ((first_page + page) * PAGE_TOKENS < end)
                scores_of(keys + page * F::PAGE_BYTES + item % 4 * 16 * F::ROW_BYTES, half * 8 * F::ROW_BYTES,
                        scores + half * 8 * F::SCORES +
                                ((first_page + page) % LEAF_PAGES * PAGE_TOKENS + item % 4 * 16));
        }
    }
    __device__ __forceinline__ void scores_of(const uint8_t *keys, uint32_t queries, float *to) const {
        const uint32_t l = lane(), k_at = l % 16 * F::ROW_BYTES + ((l / 16) ^ (l % 8)) * 16,
                       q_at = queries + l % 8 * F::ROW_BYTES + ((l / 8) ^ (l % 8)) * 16;
        float chain[4][4] = {};
#pragma unroll
        for (uint32_t c = 0; c < F::DIM; c += 32) {
            /* chunks of 16 bytes are exchanged within eight */
            const uint32_t at = c / 64 * 128, odd = c % 64 * 2;
            uint32_t high[4], low[4], k[2][4];
            ldmatrix_4(high, q_high + (q_at ^ odd) + at);
            ldmatrix_4(low, q_low + (q_at ^ odd) + at);
            ldmatrix_4(k[0], keys + (k_at ^ odd) + at);
            ldmatrix_4(k[1], keys + (k_at ^ odd ^ 32) + at);
            mma_bf16(chain[0], k[0], high[0], high[1], chain[0]);
            mma_bf16(chain[1], k[1], high[2], high[3], chain[1]);
            mma_bf16(chain[2], k[0], low[0], low[1], chain[2]);
            mma_bf16(chain[3], k[1], low[2], low[3], chain[3]);
        }
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            to[(l % 4 * 2 + e % 2) * F::SCORES + l / 4 + e / 2 * 8] =
                    (chain[0][e] + chain[1][e]) + (chain[2][e] + chain[3][e]);
    }

    /* --- p: a warp has query i, a lane positions 8 lane .. of the leaf, eight lanes a step --- */

    __device__ __forceinline__ void query_weights(uint32_t i, uint32_t leaf) {
        const float *row = scores + i * F::SCORES + lane() * 8;
        const float4 x = *(const float4 *)row, y = *(const float4 *)(row + 4);
        float s[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w}, top = -INFINITY;
        const uint32_t first = leaf * ATTENTION_LEAF + lane() * 8, last = lasts[i];
#pragma unroll
        for (uint32_t e = 0; e < 8; e++) {
            const bool seen = first + e >= a.shift && first + e <= last;
            s[e] = seen ? s[e] * (1.0f / sqrtf((float)F::DIM)) : -INFINITY;
            top = larger_of(top, s[e]);
        }
#pragma unroll
        for (uint32_t n = 1; n < 8; n *= 2)
            top = larger_of(top, __shfl_xor_sync(ALL_LANES, top, n));
            /* of all steps up to the lane's, and of those before it */
#pragma unroll
        for (uint32_t n = 8; n < 32; n *= 2) {
            const float before = __shfl_up_sync(ALL_LANES, top, n);
            top = lane() >= n ? larger_of(before, top) : top;
        }
        const float up = __shfl_up_sync(ALL_LANES, top, 8), before = lane() < 8 ? -INFINITY : up,
                    scale = top == before ? 1.0f : f32_exp(before - top);
        /* e^-inf is 0, for what the query does not see; nor has a step a maximum of which it sees nothing */
        const float from = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (uint32_t e = 0; e < 8; e++)
            s[e] = f32_exp(s[e] - from);
        float sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
#pragma unroll
        for (uint32_t n = 1; n < 8; n *= 2)
            sum = sum + __shfl_xor_sync(ALL_LANES, sum, n);
        weights_put((uint8_t *)(scores + i * F::SCORES) + lane() * 16, s);
        if (lane() % 8 == 0)
            scales[i * LEAF_PAGES + lane() / 8] = scale;
        leaf_sum(i, leaf, __shfl_sync(ALL_LANES, top, 31), scale, sum);
    }
    /* Where every lane of the warp has read its scores. */
    static __device__ __forceinline__ void weights_put(uint8_t *to, const float *p) {
        uint4 high, low;
        bf16_pages::split_put(&high.x, &low.x, p[0], p[1]);
        bf16_pages::split_put(&high.y, &low.y, p[2], p[3]);
        bf16_pages::split_put(&high.z, &low.z, p[4], p[5]);
        bf16_pages::split_put(&high.w, &low.w, p[6], p[7]);
        __syncwarp();
        *(uint4 *)to = high;
        *(uint4 *)(to + F::LOW_BYTES) = low;
    }
    /* The leaf's sum out of its steps', and with its maximum to where leaves are combined. */
    __device__ __forceinline__ void leaf_sum(
            uint32_t i, uint32_t leaf, float max, float scale, float step_sum) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t n = 0; n < 32; n += 8)
            sum = sum * __shfl_sync(ALL_LANES, scale, n) + __shfl_sync(ALL_LANES, step_sum, n);
        if (lane() > 0 || !sees(i, leaf))
            return;
        if (!w.whole) {
            const uint64_t part = part_of(a, w.t, w.head, leaf, i);
            a.d_sums[part * 2] = max;
            a.d_sums[part * 2 + 1] = sum;
            return;
        }
        const float top = leaf ? larger_of(all_max[i], max) : max;
        const struct fold_step first = {0.0f, 1.0f}, s = leaf ? fold_step_of(all_max[i], max, top) : first;
        all_sum[i] = leaf ? fold_sum(all_sum[i], sum, s) : sum;
        all_max[i] = top;
        steps[i] = s;
    }

    /* --- p v --- */

    __device__ __forceinline__ void page_values(uint32_t in_leaf, const uint8_t *values) {
        const uint32_t l = lane(), v_row = l / 16 * 8 + l % 8,
                       v_at = v_row * F::ROW_BYTES + ((warp() * 4 + l / 8 % 2) ^ (l % 8)) * 16;
        const uint8_t *p = (const uint8_t *)scores + l % 8 * F::SCORES * 4 + l / 16 * F::LOW_BYTES +
                           l / 8 % 2 * 16 + in_leaf * PAGE_TOKENS * 2;
        if (in_leaf > 0)
            values_scale(in_leaf);
#pragma unroll
        for (uint32_t j = 0; j < PAGE_TOKENS; j += 16) {
            uint32_t v[F::Q_TILES][4], weight[4]; /* high, high, low, low */
#pragma unroll
            for (uint32_t t = 0; t < F::Q_TILES; t++)
                ldmatrix_4_transposed(v[t], values + j * F::ROW_BYTES + (v_at ^ (t * 32)));
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                if (half >= halves())
                    continue;
                ldmatrix_4(weight, p + half * 8 * F::SCORES * 4 + j * 2);
#pragma unroll
                for (uint32_t t = 0; t < F::Q_TILES; t++)
                    mma_bf16(o[half][t], v[t], weight[0], weight[1], o[half][t]);
#pragma unroll
                for (uint32_t t = 0; t < F::Q_TILES; t++)
                    mma_bf16(o[half][t], v[t], weight[2], weight[3], o[half][t]);
            }
        }
    }
    /* Query of element e of o[half]; its column in the head. */
    static __device__ __forceinline__ uint32_t query_of_element(uint32_t half, uint32_t e) {
        return half * 8 + lane() % 4 * 2 + e % 2;
    }
    static __device__ __forceinline__ uint32_t column_of_element(uint32_t t, uint32_t e) {
        return (warp() * F::Q_TILES + t) * 16 + lane() / 4 + e / 2 * 8;
    }
    __device__ __forceinline__ void values_scale(uint32_t step) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (half >= halves())
                continue;
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const float scale = scales[query_of_element(half, e) * LEAF_PAGES + step];
#pragma unroll
                for (uint32_t t = 0; t < F::Q_TILES; t++)
                    o[half][t][e] = o[half][t][e] * scale;
            }
        }
    }

    /* --- leaves --- */

    __device__ __forceinline__ void leaf_fold(uint32_t leaf) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t i = query_of_element(half, e);
                if (half >= halves() || !sees(i, leaf))
                    continue;
                const struct fold_step s = steps[i];
#pragma unroll
                for (uint32_t t = 0; t < F::Q_TILES; t++)
                    all_o[half][t][e] = fold_value(all_o[half][t][e], o[half][t][e], s);
            }
        }
    }
    /* o, to where scores lay: [query][column]. */
    __device__ __forceinline__ void values_to_scores() {
        __syncthreads(); /* p was read by all */
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (half >= halves())
                continue;
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
#pragma unroll
                for (uint32_t t = 0; t < F::Q_TILES; t++)
                    scores[query_of_element(half, e) * F::SCORES + column_of_element(t, e)] = o[half][t][e];
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ void parts_put(uint32_t leaf) const {
#pragma unroll 1
        for (uint32_t i = warp(); i < w.t.n; i += F::WARPS) {
            const float *from = scores + i * F::SCORES + lane() * 4;
            float *d_part = a.d_values + (uint64_t)part_of(a, w.t, w.head, leaf, i) * F::DIM + lane() * 4;
            if (!sees(i, leaf))
                continue;
            *(float4 *)d_part = *(const float4 *)from;
            *(float4 *)(d_part + 128) = *(const float4 *)(from + 128);
        }
    }
    static __device__ __forceinline__ void fill(float (*x)[F::Q_TILES][4], float value) {
#pragma unroll
        for (uint32_t k = 0; k < 2 * F::Q_TILES * 4; k++)
            x[k / (F::Q_TILES * 4)][k / 4 % F::Q_TILES][k % 4] = value;
    }
    /* Stage k of a leaf, of K or of V; n: of the piece. */
    __device__ __forceinline__ void stage_use(uint32_t leaf, uint32_t k, uint32_t n) {
        const uint8_t *rows = stage(n);
        const uint32_t first = k % F::STAGES * F::PAGES; /* page of the leaf */
        if (k < F::STAGES) {
            stage_scores(leaf * LEAF_PAGES + first, rows);
            return;
        }
#pragma unroll 1
        for (uint32_t p = 0; p < F::PAGES; p++)
            if ((leaf * LEAF_PAGES + first + p) * PAGE_TOKENS < end)
                page_values(first + p, rows + p * F::PAGE_BYTES);
    }

    __device__ __forceinline__ void run(const struct attention_work &work) {
        uint32_t n = 0;
        work_begin(work);
        fill(all_o, -0.0f); /* see fold_lane() */
#pragma unroll 1
        for (uint32_t leaf = w.leaf; leaf < w.leaf + w.n_leaves; leaf++) {
            fill(o, 0.0f);
#pragma unroll 1
            for (uint32_t k = 0; k < 2 * F::STAGES; k++, n++) {
                stage_use(leaf, k, n);
                if (k + 1 != F::STAGES)
                    continue;
                __syncthreads();
#pragma unroll 1
                for (uint32_t i = warp(); i < w.t.n; i += F::WARPS)
                    query_weights(i, leaf);
            }
            if (w.whole)
                leaf_fold(leaf);
            if (w.whole && leaf + 1 < w.leaf + w.n_leaves)
                continue;
            if (w.whole)
                memcpy(o, all_o, sizeof o);
            values_to_scores();
            if (!w.whole)
                parts_put(leaf);
        }
        copy_wait<0>();
    }

    /* --- output: a warp has a query, a lane columns 4 lane .. and 128 + 4 lane .. --- */

    static __device__ __forceinline__ void values_fold(float4 *value, float4 o, const struct fold_step &s) {
        value->x = fold_value(value->x, o.x, s);
        value->y = fold_value(value->y, o.y, s);
        value->z = fold_value(value->z, o.z, s);
        value->w = fold_value(value->w, o.w, s);
    }
    /* All leaves of query i, out of their parts. */
    __device__ __forceinline__ void parts_fold(uint32_t i, float4 *value, float *sum) const {
        const uint32_t leaves = lasts[i] / ATTENTION_LEAF + 1;
        float max = -INFINITY, sums = 0.0f;
        struct fold_step of_lane = {};
        value[0] = value[1] = {-0.0f, -0.0f, -0.0f, -0.0f}; /* see fold_lane() */
        *sum = 0.0f;
#pragma unroll 1
        for (uint32_t first = 0; first < leaves; first += FOLD_BATCH) {
            const float *d_part =
                    a.d_values + (uint64_t)part_of(a, w.t, w.head, first, i) * F::DIM + lane() * 4;
            float4 o[FOLD_BATCH][2];
#pragma unroll
            for (uint32_t k = 0; k < FOLD_BATCH; k++) {
                if (first + k >= leaves)
                    break;
                o[k][0] = load_of_others((const float4 *)(d_part + (uint64_t)k * w.t.n * F::DIM));
                o[k][1] = load_of_others((const float4 *)(d_part + (uint64_t)k * w.t.n * F::DIM + 128));
            }
            if (first % 32 == 0)
                of_lane = fold_lane(a, w, i, first, leaves, &sums, &max);
#pragma unroll
            for (uint32_t k = 0; k < FOLD_BATCH; k++) {
                if (first + k >= leaves)
                    break;
                const struct fold_step s = fold_step_at(of_lane, (first + k) % 32);
                const float l = __shfl_sync(ALL_LANES, sums, (first + k) % 32);
                *sum = fold_sum(*sum, l, s);
                values_fold(&value[0], o[k][0], s);
                values_fold(&value[1], o[k][1], s);
            }
        }
    }
    /* A lane's four outputs, and INT8 of the 128 that the warp has for the product after it. */
    __device__ __forceinline__ void put(float *d_out, float4 out, uint32_t row, uint32_t run) const {
        *(float4 *)d_out = out;
        if (!F::MAKES || !a.codes.d_codes)
            return;
        const float x[4] = {out.x, out.y, out.z, out.w};
        run_codes_put(a.codes, x, row, run);
    }
    /* complete: all parts of the tile and kv head are there. */
    __device__ __forceinline__ void finish(bool complete) {
        if (!complete && !w.whole)
            return;
#pragma unroll 1
        for (uint32_t i = warp(); i < w.t.n; i += F::WARPS) {
            const uint64_t query = query_of(a, w.t, w.head, i);
            const uint32_t row = row_of(a, w.t, i),
                           run = (uint32_t)(query - (uint64_t)row * a.pool.shape.q_heads) *
                                 (F::DIM / ACTIVATION_RUN);
            const float *d_gates = gates_of(a, row, query) + lane() * 4;
            float *d_out = a.d_out + query * F::DIM + lane() * 4;
            float4 gate = load_read_only((const float4 *)d_gates), value[2];
            const float4 gate_after = load_read_only((const float4 *)(d_gates + 128));
            float sum;
            if (w.whole) {
                value[0] = *(const float4 *)(scores + i * F::SCORES + lane() * 4);
                value[1] = *(const float4 *)(scores + i * F::SCORES + lane() * 4 + 128);
                sum = all_sum[i];
            } else {
                parts_fold(i, value, &sum);
            }
#pragma unroll 1
            for (uint32_t k = 0; k < 2; k++, d_out += 128) {
                const float4 out = {output_of(value[0].x, sum, gate.x), output_of(value[0].y, sum, gate.y),
                        output_of(value[0].z, sum, gate.z), output_of(value[0].w, sum, gate.w)};
                put(d_out, out, row, run + k);
                value[0] = value[1];
                gate = gate_after;
            }
        }
    }
};
