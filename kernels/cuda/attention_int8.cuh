/* attention_int8.cuh - q . k and p v over pages of INT8, as exact sums of integers (m16n8k32).
 *
 * Codes are multiplied as they lie: q and p are integers of 16 bits instead, each two signed bytes, 256 high + low.
 * That is half of the products that two bf16 would take, and no code is converted. The scales of K and V come with a
 * stage of K. A thread's words of V hold two columns of two positions; two of them are put in order by a byte
 * permutation, so that the positions of a product are in the order 2i, 2i + 1, 8 + 2i, 9 + 2i, in which p is stored
 * too. */
#pragma once

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/shared/integers.h"

struct int8_pages {
    static constexpr uint32_t BYTES = 1, PADDED = 64;
    static constexpr bool SCALED = true; /* scores, by scores() */
    template <class F> struct of_thread {
        float q_unit[2];             /* of the thread's queries, with 1 / sqrt(D) */
        float v_scale[F::EIGHTS][2]; /* of its positions */
        float y_unit[2], y_inverse[2];
    };
    /* Behind a stage of K: scales of its K, then of V of the same positions. */
    static __host__ __device__ __forceinline__ constexpr uint32_t stage_more(uint32_t stage) {
        return 2 * stage * 4;
    }
    /* Of a query: each share's largest scale of V; the unit of q. */
    static __host__ __device__ __forceinline__ constexpr uint32_t floats_more(uint32_t shares) {
        return shares + 1;
    }
    template <class F> static __device__ __forceinline__ float *tops(const tile_run<F> &r, uint32_t query) {
        return r.more + query * F::SHARES;
    }
    template <class F> static __device__ __forceinline__ float *units(const tile_run<F> &r) {
        return r.more + F::QUERIES * F::SHARES;
    }

    /* --- filling: whole stages, since what no query sees enters with an integer 0 --- */

    template <class F>
    static __device__ __forceinline__ void fill(
            const tile_run<F> &r, uint8_t *slot, const uint8_t *d_part, bool is_value, uint32_t j0) {
        const uint32_t d = r.dim(), chunks = d / 16, first = j0 % PAGE_TOKENS;
        const uint8_t *d_rows = d_part + first * d;
        if (!F::ONLY && d % 16) {
            for (uint32_t c = threadIdx.x; c < F::STAGE * d; c += F::THREADS)
                slot[c / d * F::row_bytes(d) + c % d] = d_rows[c];
        } else {
#pragma unroll 4
            for (uint32_t c = threadIdx.x; c < F::STAGE * chunks; c += F::THREADS)
                copy_16(slot + c / chunks * F::row_bytes(d) + c % chunks * 16, d_rows + c * 16);
        }
        constexpr uint32_t FOURS = F::STAGE / 4;
        static_assert(2 * FOURS <= F::THREADS, "a thread has at most one piece of the scales");
        if (!is_value && threadIdx.x < 2 * FOURS) {
            const uint8_t *d_scales = d_part + page_scales_at(d); /* K's part is the first */
            copy_16(slot + F::STAGE * F::row_bytes(d) + threadIdx.x * 16,
                    d_scales + (threadIdx.x / FOURS * PAGE_TOKENS + first) * 4 + threadIdx.x % FOURS * 16);
        }
    }

    /* --- q: as attention_rows.cu left it --- */

    template <class F> static __device__ __forceinline__ void queries_load(const tile_run<F> &r) {
        const uint32_t d = r.dim(), columns = F::columns(d), chunks = columns / 16,
                       all = F::QUERIES * chunks * 2;
#pragma unroll 4
        for (uint32_t e = threadIdx.x; e < all; e += F::THREADS) {
            const uint32_t i = e / (chunks * 2), c = e % (chunks * 2);
            const uint8_t *d_q = query_words(r, i < r.w.t.n ? i : 0, columns);
            uint4 x = load_read_only((const uint4 *)(d_q + c * 16));
            if (i >= r.w.t.n)
                x = {};
            *(uint4 *)((c < chunks ? r.q_high : r.q_low) + i * F::row_bytes(d) + c % chunks * 16) = x;
        }
        if (threadIdx.x < F::QUERIES)
            units(r)[threadIdx.x] =
                    threadIdx.x < r.w.t.n
                            ? load_read_only(
                                      (const float *)(query_words(r, threadIdx.x, columns) + 2 * columns))
                            : 0.0f;
    }
    template <class F>
    static __device__ __forceinline__ const uint8_t *query_words(
            const tile_run<F> &r, uint32_t i, uint32_t columns) {
        return (const uint8_t *)r.a.d_q +
               query_of(r.a, r.w.t, r.w.head, i) * (uint64_t)word_query_bytes(columns);
    }
    template <class F> static __device__ __forceinline__ void queries_loaded(tile_run<F> &r) {
        r.own.q_unit[0] = units(r)[r.query(0)];
        r.own.q_unit[1] = units(r)[r.query(1)];
    }

    /* --- q . k --- */

    /* The warp's eights of positions of a stage: share, share + SHARES, ..; to s[first] .. */
    template <class F>
    static __device__ __forceinline__ void scores(
            tile_run<F> &r, const uint8_t *keys, uint32_t first, float (*s)[4]) {
        typedef tile_run<F> run;
        const uint32_t lane = run::lane(), bytes = F::row_bytes(r.dim()),
                       q_at = (run::first_query() + lane % 16) * bytes + lane / 16 * 16,
                       k_at = (run::share() % run::STAGE_EIGHTS * 8 + lane % 8) * bytes + lane / 8 * 16;
        int32_t high_sum[run::PER_STAGE][4] = {}, low_sum[run::PER_STAGE][4] = {};
        for (uint32_t c = 0; c < F::columns(r.dim()); c += 64) {
            uint32_t high[2][4], low[2][4];
            ldmatrix_4(high[0], r.q_high + q_at + c);
            ldmatrix_4(high[1], r.q_high + q_at + c + 32);
            ldmatrix_4(low[0], r.q_low + q_at + c);
            ldmatrix_4(low[1], r.q_low + q_at + c + 32);
#pragma unroll
            for (uint32_t t = 0; t < run::PER_STAGE; t++) {
                uint32_t k[4];
                ldmatrix_4(k, keys + k_at + t * F::SHARES * 8 * bytes + c);
                mma_s8(high_sum[t], high[0], k[0], k[1], high_sum[t]);
                mma_s8(low_sum[t], low[0], k[0], k[1], low_sum[t]);
                mma_s8(high_sum[t], high[1], k[2], k[3], high_sum[t]);
                mma_s8(low_sum[t], low[1], k[2], k[3], low_sum[t]);
            }
        }
        const float *scales = (const float *)(keys + F::STAGE * bytes);
#pragma unroll
        for (uint32_t t = 0; t < run::PER_STAGE; t++) {
            const uint32_t at = run::position_of(first + t, 0) % F::STAGE;
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                s[first + t][e] = (float)(high_sum[t][e] * 256 + low_sum[t][e]) *
                                  (r.own.q_unit[e / 2] * scales[at + (e & 1)]);
            r.own.v_scale[first + t][0] = scales[F::STAGE + at];
            r.own.v_scale[first + t][1] = scales[F::STAGE + at + 1];
        }
    }
    /* The largest scales of V that the thread's queries see, as bits: what is no number is more than any. */
    template <class F> static __device__ __forceinline__ void maxima(const tile_run<F> &r, uint32_t step) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t top = 0;
#pragma unroll
            for (uint32_t t = 0; t < F::EIGHTS; t++) {
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    const uint32_t scale = bits_of_float(r.own.v_scale[t][e]);
                    if (r.sees_position(h, step + r.position_of(t, e)) && scale > top)
                        top = scale;
                }
            }
            top = larger_bits(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = larger_bits(top, __shfl_xor_sync(ALL_LANES, top, 2));
            if (r.lane() % 4 == 0)
                tops(r, r.query(h))[r.share()] = float_of_bits(top);
        }
    }
    static __device__ __forceinline__ uint32_t larger_bits(uint32_t a, uint32_t b) {
        return a > b ? a : b;
    }

    /* --- p v --- */

    /* The unit of y in this step: y = p times V's scale is at most the largest scale. */
    template <class F> static __device__ __forceinline__ void weights_begin(tile_run<F> &r, uint32_t h) {
        uint32_t top = 0;
#pragma unroll
        for (uint32_t k = 0; k < F::SHARES; k++)
            top = larger_bits(top, bits_of_float(tops(r, r.query(h))[k]));
        const float unit = float_of_bits(top) * (1.0f / WORD_STEPS);
        r.own.y_unit[h] = unit;
        r.own.y_inverse[h] = unit >= SMALLEST_UNIT ? WORD_STEPS / float_of_bits(top) : 0.0f;
    }
    /* y of the first two positions of the warp's eight t that this thread has. */
    template <class F>
    static __device__ __forceinline__ void weights_put(
            const tile_run<F> &r, uint32_t h, uint32_t t, float x, float y) {
        const uint32_t eight = r.share() + t * F::SHARES,
                       at = r.query(h) * F::P_BYTES + eight / 2 * 16 + r.lane() % 4 * 4 + eight % 2 * 2;
        const int32_t a = word_of(x, r.own.v_scale[t][0], r.own.y_inverse[h]),
                      b = word_of(y, r.own.v_scale[t][1], r.own.y_inverse[h]);
        *(uint16_t *)(r.p_high + at) = (uint16_t)((word_high(a) & 255) | (uint32_t)word_high(b) << 8);
        *(uint16_t *)(r.p_low + at) = (uint16_t)((word_low(a) & 255) | (uint32_t)word_low(b) << 8);
    }
    static __device__ __forceinline__ int32_t word_of(float p, float scale, float inverse) {
        float q = p == 0.0f ? 0.0f : p * (scale * inverse);
        q = q < WORD_STEPS ? q : inverse == 0.0f ? 0.0f : WORD_STEPS;
        return (int32_t)(bits_of_float(q + ROUND_MAGIC) - bits_of_float(ROUND_MAGIC));
    }
    /* The step's positions, a stage of V, times the warp's columns. */
    template <class F>
    static __device__ __forceinline__ void values(tile_run<F> &r, const uint8_t *rows, uint32_t) {
        typedef tile_run<F> run;
        static_assert(F::STAGE == STEP, "what is scaled once is a step's");
        const uint32_t lane = run::lane(), bytes = F::row_bytes(r.dim()),
                       first_pair = run::share() * F::PAIRS;
        if (!F::ONLY && first_pair * 16 >= F::columns(r.dim()))
            return;
        uint32_t high[2][4], low[2][4];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t p_at = (run::first_query() + lane % 16) * F::P_BYTES + half * 32 + lane / 16 * 16;
            ldmatrix_4(high[half], r.p_high + p_at);
            ldmatrix_4(low[half], r.p_low + p_at);
        }
#pragma unroll
        for (uint32_t k = 0; k < F::PAIRS; k++) {
            int32_t high_sum[2][4] = {}, low_sum[2][4] = {};
            if (!F::ONLY && (first_pair + k) * 16 >= F::columns(r.dim()))
                continue;
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                uint32_t v[4];
                ldmatrix_4_transposed(v, rows + (half * 32 + lane) * bytes + (first_pair + k) * 16);
#pragma unroll
                for (uint32_t odd = 0; odd < 2; odd++) {
                    const uint32_t bytes_of = odd ? 0x7531 : 0x6420, v0 = __byte_perm(v[0], v[1], bytes_of),
                                   v1 = __byte_perm(v[2], v[3], bytes_of);
                    mma_s8(high_sum[odd], high[half], v0, v1, high_sum[odd]);
                    mma_s8(low_sum[odd], low[half], v0, v1, low_sum[odd]);
                }
            }
#pragma unroll
            for (uint32_t e = 0; e < 8; e++)
                r.o[2 * k + e / 4][e % 4] =
                        fmaf((float)(high_sum[e / 4][e % 4] * 256 + low_sum[e / 4][e % 4]),
                                r.own.y_unit[e % 4 / 2], r.o[2 * k + e / 4][e % 4]);
        }
    }
    /* Of 16 columns, the first of o's two products has the even ones. */
    static __device__ __forceinline__ uint32_t column_in_pair(uint32_t second, uint32_t e) {
        return threadIdx.x % 4 * 4 + e * 2 + second;
    }
};
