/* attention_bf16.cuh - q . k and p v over pages of bf16 (m16n8k16). q and p are two bf16 each. */
#pragma once

#include "kernels/cuda/attention_tile.cuh"

struct bf16_pages {
    static constexpr uint32_t BYTES = 2, PADDED = 32;
    static constexpr bool SCALED = false; /* scores, by scores() */
    template <class F> struct of_thread {};
    static __host__ __device__ __forceinline__ constexpr uint32_t stage_more(uint32_t) {
        return 0;
    }
    static __host__ __device__ __forceinline__ constexpr uint32_t floats_more(uint32_t) {
        return 0;
    }

    /* --- filling --- */

    /* A stage of K or V, of positions j0 .. of a page. Positions that no query sees become zeros: there may be
     * anything in the page. */
    template <class F>
    static __device__ __forceinline__ void fill(
            const tile_run<F> &r, uint8_t *slot, const uint8_t *d_rows, bool, uint32_t j0) {
        const uint32_t d = r.dim(), chunks = F::columns(d) / 8;
        if (F::ONLY && F::Q_TILES == 1) { /* more have no registers left for it */
            fill_only(r, slot, d_rows + j0 % PAGE_TOKENS * F::DIM * 2, j0);
            return;
        }
        if (d % 8) {
            fill_unaligned(r, slot, d_rows, j0);
            return;
        }
#pragma unroll 4
        for (uint32_t c = threadIdx.x; c < F::STAGE * chunks; c += F::THREADS) {
            const uint32_t row = c / chunks, column = c % chunks * 8, j = j0 + row;
            uint8_t *to = slot + row * F::row_bytes(d) + column * 2;
            if (j >= r.a.shift && j < r.end && column < d)
                copy_16(to, d_rows + ((j % PAGE_TOKENS) * d + column) * 2);
            else
                *(uint4 *)to = {};
        }
    }
    /* Where the head size is known: a thread has one column of rows at constant distances. */
    template <class F>
    static __device__ __forceinline__ void fill_only(
            const tile_run<F> &r, uint8_t *slot, const uint8_t *d_rows, uint32_t j0) {
        constexpr uint32_t CHUNKS = F::DIM / 8, ROWS = F::THREADS / CHUNKS;
        const uint32_t row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
        uint8_t *to = slot + row * F::row_bytes(F::DIM) + column * 2;
        const uint8_t *d_from = d_rows + (row * F::DIM + column) * 2;
#pragma unroll
        for (uint32_t k = 0; k < F::STAGE; k += ROWS) {
            const uint32_t j = j0 + row + k;
            if (F::STAGE % ROWS && row + k >= F::STAGE)
                continue;
            if (j >= r.a.shift && j < r.end)
                copy_16(to + k * F::row_bytes(F::DIM), d_from + k * F::DIM * 2);
            else
                *(uint4 *)(to + k * F::row_bytes(F::DIM)) = {};
        }
    }
    template <class F>
    static __device__ void fill_unaligned(
            const tile_run<F> &r, uint8_t *slot, const uint8_t *d_rows, uint32_t j0) {
        const uint32_t d = r.dim(), columns = F::columns(d);
        for (uint32_t c = threadIdx.x; c < F::STAGE * columns; c += F::THREADS) {
            const uint32_t row = c / columns, column = c % columns, j = j0 + row;
            const bool there = j >= r.a.shift && j < r.end && column < d;
            ((uint16_t *)(slot + row * F::row_bytes(d)))[column] =
                    there ? ((const uint16_t *)d_rows)[(j % PAGE_TOKENS) * d + column] : 0;
        }
    }

    /* --- q --- */

    /* Four columns of a query; 0 behind the last column. */
    static __device__ __forceinline__ float4 query_columns(const float *d_q, uint32_t d, uint32_t c) {
        float4 x = {};
        if (d % 4 == 0)
            return c < d ? load_read_only((const float4 *)(d_q + c)) : x;
        x.x = c < d ? load_read_only(d_q + c) : 0.0f;
        x.y = c + 1 < d ? load_read_only(d_q + c + 1) : 0.0f;
        x.z = c + 2 < d ? load_read_only(d_q + c + 2) : 0.0f;
        x.w = c + 3 < d ? load_read_only(d_q + c + 3) : 0.0f;
        return x;
    }
    template <class F> static __device__ __forceinline__ void queries_load(const tile_run<F> &r) {
        const uint32_t d = r.dim(), fours = F::columns(d) / 4, all = F::QUERIES * fours;
#pragma unroll 4
        for (uint32_t first = 0; first < all; first += F::THREADS) {
            const uint32_t e = first + threadIdx.x;
            if (all % F::THREADS && e >= all)
                break;
            const uint32_t i = e / fours, c = e % fours * 4, at = i * F::row_bytes(d) + c * 2;
            /* no branch between the loads of several e: a query there is, if not this one */
            float4 x = query_columns(
                    (const float *)r.a.d_q + query_of(r.a, r.w.t, r.w.head, i < r.w.t.n ? i : 0) * d, d, c);
            if (i >= r.w.t.n)
                x = {};
            split_put(r.q_high + at, r.q_low + at, x.x, x.y);
            split_put(r.q_high + at + 4, r.q_low + at + 4, x.z, x.w);
        }
    }
    template <class F> static __device__ __forceinline__ void queries_loaded(const tile_run<F> &) {}
    static __device__ __forceinline__ void split_put(void *high, void *low, float x, float y) {
        const uint32_t h = bf16_pair(x, y);
        *(uint32_t *)high = h;
        *(uint32_t *)low = bf16_pair(x - float_of_bits(h << 16), y - float_of_bits(h & 0xffff0000u));
    }

    /* --- q . k --- */

    /* The warp's eights of positions of a stage: share, share + SHARES, ..; to s[first] .. */
    template <class F>
    static __device__ __forceinline__ void scores(
            const tile_run<F> &r, const uint8_t *keys, uint32_t first, float (*s)[4]) {
        typedef tile_run<F> run;
        const uint32_t lane = run::lane(), bytes = F::row_bytes(r.dim()),
                       q_at = (run::first_query() + lane % 16) * bytes + lane / 16 * 16,
                       k_at = (run::share() % run::STAGE_EIGHTS * 8 + lane % 8) * bytes + lane / 8 * 16;
        float chain[run::PER_STAGE][4][4] = {};
        for (uint32_t c = 0; c < F::columns(r.dim()); c += 32) {
            uint32_t high[2][4], low[2][4];
            ldmatrix_4(high[0], r.q_high + q_at + c * 2);
            ldmatrix_4(high[1], r.q_high + q_at + c * 2 + 32);
            ldmatrix_4(low[0], r.q_low + q_at + c * 2);
            ldmatrix_4(low[1], r.q_low + q_at + c * 2 + 32);
#pragma unroll
            for (uint32_t t = 0; t < run::PER_STAGE; t++) {
                uint32_t k[4];
                ldmatrix_4(k, keys + k_at + t * F::SHARES * 8 * bytes + c * 2);
                mma_bf16(chain[t][0], high[0], k[0], k[1], chain[t][0]);
                mma_bf16(chain[t][1], high[1], k[2], k[3], chain[t][1]);
                mma_bf16(chain[t][2], low[0], k[0], k[1], chain[t][2]);
                mma_bf16(chain[t][3], low[1], k[2], k[3], chain[t][3]);
            }
        }
#pragma unroll
        for (uint32_t t = 0; t < run::PER_STAGE; t++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                s[first + t][e] = (chain[t][0][e] + chain[t][1][e]) + (chain[t][2][e] + chain[t][3][e]);
        }
    }
    template <class F> static __device__ __forceinline__ void maxima(const tile_run<F> &, uint32_t) {}

    /* --- p v --- */

    template <class F> static __device__ __forceinline__ void weights_begin(const tile_run<F> &, uint32_t) {}
    /* p of the first two positions of the warp's eight t that this thread has. */
    template <class F>
    static __device__ __forceinline__ void weights_put(
            const tile_run<F> &r, uint32_t h, uint32_t t, float x, float y) {
        const uint32_t at = r.query(h) * F::P_BYTES + r.position_of(t, 0) * 2;
        split_put(r.p_high + at, r.p_low + at, x, y);
    }
    /* Positions `from` .. of the step, in a stage of V, times the warp's columns. */
    template <class F>
    static __device__ __forceinline__ void values(tile_run<F> &r, const uint8_t *rows, uint32_t from) {
        typedef tile_run<F> run;
        const uint32_t lane = run::lane(), bytes = F::row_bytes(r.dim()),
                       first_pair = run::share() * F::PAIRS;
        if (!F::ONLY && first_pair * 16 >= F::columns(r.dim()))
            return;
#pragma unroll
        for (uint32_t j = 0; j < F::STAGE; j += 16) {
            uint32_t high[4], low[4];
            const uint32_t p_at =
                    (run::first_query() + lane % 16) * F::P_BYTES + (from + j + lane / 16 * 8) * 2;
            ldmatrix_4(high, r.p_high + p_at);
            ldmatrix_4(low, r.p_low + p_at);
#pragma unroll
            for (uint32_t k = 0; k < F::PAIRS; k++) {
                uint32_t v[4];
                if (!F::ONLY && (first_pair + k) * 16 >= F::columns(r.dim()))
                    continue;
                ldmatrix_4_transposed(
                        v, rows + (j + lane % 16) * bytes + (first_pair + k) * 32 + lane / 16 * 16);
                mma_bf16(r.o[2 * k], high, v[0], v[1], r.o[2 * k]);
                mma_bf16(r.o[2 * k + 1], high, v[2], v[3], r.o[2 * k + 1]);
                mma_bf16(r.o[2 * k], low, v[0], v[1], r.o[2 * k]);
                mma_bf16(r.o[2 * k + 1], low, v[2], v[3], r.o[2 * k + 1]);
            }
        }
    }
    /* Column of a pair of eights of columns: of the first or second of o's two products, and of its two elements. */
    static __device__ __forceinline__ uint32_t column_in_pair(uint32_t second, uint32_t e) {
        return second * 8 + threadIdx.x % 4 * 2 + e;
    }
};
