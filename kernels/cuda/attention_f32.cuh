/* attention_f32.cuh - leaves of a small tile over pages of fp32, in plain arithmetic: for comparisons, not for speed.
 *
 * A block of 256 threads, in steps of 64 positions. q . k: a thread has one position and four of 16 queries. p: a warp
 * has two queries. p v: a thread has every 256th column, of all queries. K and V are read where they lie. */
#pragma once

#include "kernels/cuda/attention_parts.cuh"

struct f32_run;
struct f32_form {
    typedef f32_run run;
    static constexpr uint32_t QUERIES = SMALL_QUERIES, THREADS = FOLD_THREADS, DIM = HEAD_DIM_MAX, BLOCKS = 1,
                              POSITIONS = PAGE_TOKENS;
    static constexpr uint32_t COLUMNS = DIM / THREADS;            /* of a thread */
    static constexpr uint32_t OF_WARP = QUERIES / (THREADS / 32); /* queries */
    static constexpr uint32_t OF_THREAD = QUERIES * POSITIONS / THREADS;
    static constexpr uint32_t ROOM = QUERIES * DIM * 4 + FOLD_STEP_BYTES(QUERIES);
    static __host__ __device__ __forceinline__ uint32_t shared_bytes(uint32_t d) {
        (void)d;
        return ROOM + QUERIES * (POSITIONS + 4) * 4 + FOUND_BYTES;
    }
};

struct f32_run {
    typedef f32_form F;
    const struct attention_args &a;
    struct attention_work w;
    /* shared memory */
    float *q, *p; /* [query][D]; [query][POSITIONS]: scores, then p */
    struct fold_step *steps;
    float *sums; /* [query]: of all leaves so far */
    uint32_t *lasts;
    struct found_tile *found;
    uint32_t begin, end;
    /* of this warp's queries warp and warp + 8, in every lane */
    float max[F::OF_WARP], sum[F::OF_WARP], all_max[F::OF_WARP];
    float o[F::COLUMNS][F::QUERIES]; /* of this thread's columns */

    __device__ __forceinline__ f32_run(const struct attention_args &args) : a(args) {
        q = (float *)dynamic_shared();
        p = (float *)(dynamic_shared() + F::ROOM);
        steps = (struct fold_step *)(p + F::QUERIES * F::POSITIONS);
        sums = (float *)(steps + F::QUERIES);
        lasts = (uint32_t *)(sums + F::QUERIES);
        found = (struct found_tile *)(lasts + F::QUERIES);
    }
    __device__ __forceinline__ uint32_t dim() const {
        return a.pool.shape.head_dim;
    }
    static __device__ __forceinline__ uint32_t query_of_warp(uint32_t k) {
        return threadIdx.x / 32 + k * (F::THREADS / 32);
    }

    __device__ void work_begin(const struct attention_work &work) {
        const uint32_t d = dim();
        w = work;
        begin = w.leaf * ATTENTION_LEAF;
        const uint32_t leaves_end = (w.leaf + w.n_leaves) * ATTENTION_LEAF;
        end = w.t.last < leaves_end ? w.t.last + 1 : leaves_end;
        __syncthreads(); /* the work before it was read by all */
        for (uint32_t e = threadIdx.x; e < w.t.n * d; e += F::THREADS)
            q[e] = ((const float *)a.d_q)[query_of(a, w.t, w.head, e / d) * d + e % d];
        if (threadIdx.x < F::QUERIES)
            lasts[threadIdx.x] = last_of(a, w.t, threadIdx.x);
        __syncthreads();
    }
    __device__ __forceinline__ const float *page_of(uint32_t step) const {
        const uint32_t page = table_of(a, w.t)[step / PAGE_TOKENS];
        return (const float *)(pages_of(a, w.head) + (uint64_t)page * a.pool.layout.page_bytes);
    }

    __device__ void step_scores(uint32_t step, const float *d_keys) {
        const uint32_t d = dim(), at = threadIdx.x % F::POSITIONS, j = step + at,
                       first = threadIdx.x / F::POSITIONS * F::OF_THREAD;
        const float *d_k = d_keys + at * d, scale = 1.0f / sqrtf((float)d);
        float s[F::OF_THREAD] = {};
        if (j >= a.shift && j < end) {
            for (uint32_t c = 0; c < d; c++) {
                const float k = d_k[c];
#pragma unroll
                for (uint32_t i = 0; i < F::OF_THREAD; i++)
                    s[i] = first + i < w.t.n ? fmaf(q[(first + i) * d + c], k, s[i]) : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < F::OF_THREAD; i++)
            p[(first + i) * F::POSITIONS + at] =
                    j >= a.shift && j <= lasts[first + i] ? s[i] * scale : -INFINITY;
    }
    static __device__ __forceinline__ float weight_of(float s, float max) {
        return s == -INFINITY ? 0.0f : f32_exp(s - max);
    }
    __device__ void step_weights() {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t k = 0; k < F::OF_WARP; k++) {
            float *s = p + query_of_warp(k) * F::POSITIONS, top = larger_of(s[lane], s[lane + 32]);
#pragma unroll
            for (int n = 16; n > 0; n /= 2)
                top = larger_of(top, __shfl_xor_sync(ALL_LANES, top, n));
            top = larger_of(max[k], top);
            const float scale = top == max[k] ? 1.0f : f32_exp(max[k] - top);
            const float x = weight_of(s[lane], top), y = weight_of(s[lane + 32], top);
            float both = x + y;
#pragma unroll
            for (int n = 16; n > 0; n /= 2)
                both = both + __shfl_xor_sync(ALL_LANES, both, n);
            max[k] = top;
            sum[k] = sum[k] * scale + both;
            s[lane] = x;
            s[lane + 32] = y;
            steps[query_of_warp(k)].keep = scale;
        }
    }
    __device__ void step_values(uint32_t step, const float *d_rows) {
        const uint32_t d = dim(), from = a.shift > step ? a.shift - step : 0,
                       to = end - step < F::POSITIONS ? end - step : F::POSITIONS;
#pragma unroll
        for (uint32_t k = 0; k < F::COLUMNS; k++) {
            const uint32_t c = threadIdx.x + k * F::THREADS;
            if (c >= d)
                continue;
#pragma unroll
            for (uint32_t i = 0; i < F::QUERIES; i++)
                o[k][i] = o[k][i] * steps[i].keep;
            for (uint32_t j = from; j < to; j++) {
                const float v = d_rows[j * d + c];
#pragma unroll
                for (uint32_t i = 0; i < F::QUERIES; i++)
                    o[k][i] = fmaf(p[i * F::POSITIONS + j], v, o[k][i]);
            }
        }
    }

    __device__ __forceinline__ void leaf_begin() {
#pragma unroll
        for (uint32_t k = 0; k < F::OF_WARP; k++) {
            max[k] = -INFINITY;
            sum[k] = 0.0f;
        }
#pragma unroll
        for (uint32_t k = 0; k < F::COLUMNS; k++) {
#pragma unroll
            for (uint32_t i = 0; i < F::QUERIES; i++)
                o[k][i] = 0.0f;
        }
    }
    __device__ __forceinline__ bool sees(uint32_t i, uint32_t leaf) const {
        return i < w.t.n && lasts[i] >= leaf * ATTENTION_LEAF;
    }
    __device__ void leaf_to_part(uint32_t leaf) {
#pragma unroll
        for (uint32_t k = 0; k < F::OF_WARP; k++) {
            const uint64_t part = part_of(a, w.t, w.head, leaf, query_of_warp(k));
            if (!sees(query_of_warp(k), leaf) || threadIdx.x % 32 != 0)
                continue;
            a.d_sums[part * 2] = max[k];
            a.d_sums[part * 2 + 1] = sum[k];
        }
#pragma unroll
        for (uint32_t k = 0; k < F::COLUMNS; k++) {
#pragma unroll
            for (uint32_t i = 0; i < F::QUERIES; i++) {
                const uint32_t c = threadIdx.x + k * F::THREADS;
                if (c < dim() && sees(i, leaf))
                    a.d_values[(uint64_t)part_of(a, w.t, w.head, leaf, i) * dim() + c] = o[k][i];
            }
        }
    }
    __device__ void leaf_to_output(uint32_t leaf) {
        __syncthreads(); /* the last step's scales were read */
#pragma unroll
        for (uint32_t k = 0; k < F::OF_WARP; k++) {
            const uint32_t i = query_of_warp(k);
            const float top = leaf ? larger_of(all_max[k], max[k]) : max[k];
            const struct fold_step s = fold_step_of(all_max[k], max[k], top);
            if (!sees(i, leaf) || threadIdx.x % 32 != 0)
                continue;
            all_max[k] = top;
            steps[i] = s;
            sums[i] = leaf ? fold_sum(sums[i], sum[k], s) : sum[k];
        }
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < F::COLUMNS; k++) {
#pragma unroll
            for (uint32_t i = 0; i < F::QUERIES; i++) {
                const uint32_t c = threadIdx.x + k * F::THREADS;
                if (c >= dim() || !sees(i, leaf))
                    continue;
                const uint64_t query = query_of(a, w.t, w.head, i);
                float *d_out = a.d_out + query * dim() + c;
                const float value = leaf ? fold_value(*d_out, o[k][i], steps[i]) : o[k][i];
                if (lasts[i] / ATTENTION_LEAF == leaf)
                    output_put(a, row_of(a, w.t, i), query, c, value, sums[i]);
                else
                    *d_out = value;
            }
        }
        __syncthreads(); /* steps and sums were read */
    }

    __device__ void run(const struct attention_work &work) {
        work_begin(work);
#pragma unroll
        for (uint32_t k = 0; k < F::OF_WARP; k++)
            all_max[k] = 0.0f;
        for (uint32_t step = begin; step < end; step += F::POSITIONS) {
            const float *d_page = page_of(step);
            if (step % ATTENTION_LEAF == 0)
                leaf_begin();
            step_scores(step, d_page);
            __syncthreads();
            step_weights();
            __syncthreads();
            step_values(step, d_page + PAGE_TOKENS * dim());
            __syncthreads();
            if ((step + F::POSITIONS) % ATTENTION_LEAF != 0 && step + F::POSITIONS < end)
                continue;
            if (w.whole)
                leaf_to_output(step / ATTENTION_LEAF);
            else
                leaf_to_part(step / ATTENTION_LEAF);
        }
    }
    /* complete: all parts of the tile and kv head are there. */
    __device__ void finish(bool complete) const {
        if (complete)
            fold_queries<F::DIM>(a, w, dim(), (uint8_t *)q, F::ROOM);
    }
};
