/* gdn_few.cuh - a Gated DeltaNet mixer for a token and the drafts behind it: an entry of 2 to FEW_ROWS rows of one GDN
 * block, in a pool that takes drafts, where heads are as gdn_row.cuh wants them. Part of gdn.cu.
 *
 * As there: a block is one value head, thread t of the first 4 warps has column t, all that the rows need is asked for
 * before anything is waited for, and S0 passes once. The rows' q and k are normalised by half a warp each; the dot
 * products of an earlier key with all rows are taken together; Delta and o take the earlier Deltas together and the
 * rows' own one after another. Four barriers. Rows that cross the end of a GDN block go the way of gdn.cu. */
#pragma once

#include "kernels/cuda/gdn_row.cuh"

#define FEW_ROWS 4u

/* Where row_shared has what the rows share: what one row needs has room for them, since `own` has a place for each of
 * at least 4 warps. q and k of row r are own[r]; k is in k, too, behind the earlier ones; o takes its place. */
template <class B> struct few_shared {
    static_assert(B::WARPS >= FEW_ROWS && 2 * DIM >= 2 * GDN_BLOCK * FEW_ROWS, "places of rows");
    struct row_shared<B> &m;
    /* [GDN_BLOCK][FEW_ROWS] e^(G_i - G_j) times the dot products of key j with row i - first */
    __device__ float *kk() const {
        return m.mixed[0];
    }
    __device__ float *qk() const {
        return m.mixed[1];
    }
    /* [FEW_ROWS] */
    __device__ float *gate() const {
        return m.z;
    }
    __device__ float *beta() const {
        return m.z + FEW_ROWS;
    }
    __device__ float *e_g() const {
        return m.z + 2 * FEW_ROWS;
    }
    __device__ float *decay() const { /* [GDN_BLOCK] G */
        return m.z + 4 * FEW_ROWS;
    }
};

/* What a thread asks for before it waits for anything. */
template <class B> struct few_asked {
    static constexpr uint32_t QK = 2 * DIM / (B::WARPS * 32);
    struct channel<FEW_ROWS> qk[QK], value; /* of q and k; v of its column */
    float z[FEW_ROWS], norm;                /* of a column */
    float a, b, a_log, dt_bias;             /* of the row whose gates it makes */
    float decay;                            /* G of row threadIdx.x of the GDN block */
};
/* Row whose gates this thread makes, if there is such a row: by the last threads, which have no column where some have
 * none. */
template <class B> static __device__ __forceinline__ uint32_t gates_row() {
    return B::WARPS * 32 - 1 - threadIdx.x;
}
template <class B>
static __device__ __forceinline__ void few_ask(struct few_asked<B> &x, struct row_shared<B> &m,
        const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h,
        const typename B::S *d_s0) {
    const uint32_t heads = a.pool.shape.gdn_v_heads, keys = a.pool.shape.gdn_k_heads;
    const float *d_z = q.d_in + q.channels, *d_b = d_z + heads * DIM;
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++) {
        const uint32_t i = element<B>(n);
        channel_taps(x.qk[n], a, q.channels, (i < DIM ? h.key : keys + h.key) * DIM + i % DIM);
        channel_values<true>(x.qk[n], q);
    }
    if (has_column<B>()) {
        channel_taps(x.value, a, q.channels, (2 * keys + h.v) * DIM + threadIdx.x);
        channel_values<true>(x.value, q);
        x.norm = a.w.norm[threadIdx.x];
#pragma unroll
        for (uint32_t r = 0; r < FEW_ROWS; r++)
            x.z[r] = r < q.n_rows ? d_z[(uint64_t)r * q.width + h.v * DIM + threadIdx.x] : 0.0f;
    }
    if (gates_row<B>() < q.n_rows) {
        x.a = d_b[(uint64_t)gates_row<B>() * q.width + heads + h.v];
        x.b = d_b[(uint64_t)gates_row<B>() * q.width + h.v];
        x.a_log = a.w.a_log[h.v];
        x.dt_bias = a.w.dt_bias[h.v];
    }
    if (threadIdx.x < h.first)
        x.decay = q.d_decay[ring_row<true>(q, q.ring, threadIdx.x) * heads + h.v];
    __syncwarp();
    if (has_column<B>())
        row_state_begin<B>(m, d_s0);
    row_rings_fetch<B, true>(m, a, q, h);
    __syncwarp();
}

/* --- before S0 --- */

/* q and k of all rows, not normalised yet, and their gates; v[r] of this thread's column. */
template <class B>
static __device__ __forceinline__ void few_mix(
        const struct few_shared<B> &f, const struct few_asked<B> &x, const struct row_head &h, float *v) {
    if (gates_row<B>() < FEW_ROWS) {
        f.gate()[gates_row<B>()] = gate_from(x.a_log, x.a, x.dt_bias);
        f.beta()[gates_row<B>()] = f32_sigmoid(x.b);
    }
    if (threadIdx.x < h.first)
        f.decay()[threadIdx.x] = x.decay;
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
#pragma unroll
        for (uint32_t n = 0; n < x.QK; n++)
            f.m.own[r][element<B>(n) / DIM][threadIdx.x % DIM] = channel_mix(x.qk[n], r);
        v[r] = has_column<B>() ? channel_mix(x.value, r) : 0.0f;
    }
    __syncthreads();
}
/* G of the rows, by one thread. */
template <class B>
static __device__ __forceinline__ void few_decay(const struct few_shared<B> &f, const struct gdn_args &a,
        const struct gdn_sequence &q, const struct row_head &h) {
#pragma unroll 1
    for (uint32_t r = 0, i = h.first; r < q.n_rows; r++, i++) {
        const float g = i == 0 ? f.gate()[r] : f.decay()[i - 1] + f.gate()[r];
        f.decay()[i] = g;
        f.e_g()[r] = f32_exp(g);
        q.d_decay[(uint64_t)ring_row<true>(q, q.ring, i) * a.pool.shape.gdn_v_heads + h.v] = g;
    }
}
/* Half a warp a vector. Another half writes over nothing that this one reads. */
template <class B>
static __device__ __forceinline__ void few_normalise(
        const struct few_shared<B> &f, const struct gdn_sequence &q, const struct row_head &h) {
    const uint32_t half = threadIdx.x / CHAINS, r = half / 2, of_k = half % 2, l = threadIdx.x % CHAINS;
    if (half >= 2 * FEW_ROWS) /* whole warps */
        return;
    float x[OF_LANE], *to = f.m.own[r][of_k] + l;
    const float inverse = 1.0f / sqrtf(sum_of_squares(f.m.own[r][of_k], x) + 1e-6f),
                scale = of_k ? 1.0f : 1.0f / sqrtf((float)DIM);
#pragma unroll
    for (uint32_t i = 0; i < OF_LANE; i++) {
        x[i] = x[i] * inverse * scale;
        to[i * CHAINS] = x[i];
    }
    if (of_k && r < q.n_rows)
#pragma unroll
        for (uint32_t i = 0; i < OF_LANE; i++)
            f.m.k[h.first + r][l + i * CHAINS] = x[i];
}

/* --- dot products --- */

/* Of acc[k or q][row]: the sums over half a warp in the order of chains_sum(), of q in lanes with bit 3, of rows 2
 * and 3 in those with bit 2, of 1 and 3 in those with bit 1. */
static __device__ __forceinline__ float few_sum(const float *acc) {
    const bool of_q = threadIdx.x & 8, upper = threadIdx.x & 4, odd = threadIdx.x & 2;
    float by_row[FEW_ROWS], by_two[2];
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++)
        by_row[r] = (of_q ? acc[FEW_ROWS + r] : acc[r]) +
                    __shfl_xor_sync(ALL_LANES, of_q ? acc[r] : acc[FEW_ROWS + r], 8);
#pragma unroll
    for (uint32_t r = 0; r < 2; r++)
        by_two[r] = (upper ? by_row[2 + r] : by_row[r]) +
                    __shfl_xor_sync(ALL_LANES, upper ? by_row[r] : by_row[2 + r], 4);
    const float sum =
            (odd ? by_two[1] : by_two[0]) + __shfl_xor_sync(ALL_LANES, odd ? by_two[0] : by_two[1], 2);
    return sum + __shfl_xor_sync(ALL_LANES, sum, 1);
}
/* Half a warp takes two keys, each with all rows: those that its warp has fetched, and the rows' own. */
template <class B>
static __device__ __forceinline__ void few_dots(
        const struct few_shared<B> &f, const struct gdn_sequence &q, const struct row_head &h) {
    const uint32_t lane = threadIdx.x % 32, l = lane % CHAINS, end = h.first + q.n_rows,
                   j[2] = {dots_warp<B>() + COLUMN_WARPS * (lane / CHAINS),
                           dots_warp<B>() + COLUMN_WARPS * (2 + lane / CHAINS)};
    const float *k_j[2] = {f.m.k[j[0] < end ? j[0] : h.first] + l, f.m.k[j[1] < end ? j[1] : h.first] + l};
    float acc[2][2 * FEW_ROWS] = {};
#pragma unroll
    for (uint32_t i = 0; i < DIM; i += CHAINS) {
        const float x = k_j[0][i], y = k_j[1][i];
#pragma unroll
        for (uint32_t r = 0; r < FEW_ROWS; r++) {
            const float of_q = f.m.own[r][0][i + l], of_k = f.m.own[r][1][i + l];
            acc[0][r] = fmaf(of_k, x, acc[0][r]);
            acc[0][FEW_ROWS + r] = fmaf(of_q, x, acc[0][FEW_ROWS + r]);
            acc[1][r] = fmaf(of_k, y, acc[1][r]);
            acc[1][FEW_ROWS + r] = fmaf(of_q, y, acc[1][FEW_ROWS + r]);
        }
    }
    const uint32_t r = lane / 2 % FEW_ROWS;
    float *to = lane & 8 ? f.qk() : f.kk();
#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
        const float sum = few_sum(acc[n]);
        if (lane % 2 == 0 && r < q.n_rows && j[n] <= h.first + r)
            to[j[n] * FEW_ROWS + r] = f32_exp(f.decay()[h.first + r] - f.decay()[j[n]]) * sum;
    }
}

/* --- Delta, o, the gated norm --- */

/* d[r] -= kk Delta_j, o[r] += qk Delta_j of rows first <= r < FEW_ROWS; delta: Delta_j of this column. */
template <class B>
static __device__ __forceinline__ void few_earlier(
        const struct few_shared<B> &f, uint32_t j, float delta, uint32_t first, float *d, float *o) {
    const float4 kk = *(const float4 *)(f.kk() + j * FEW_ROWS), qk = *(const float4 *)(f.qk() + j * FEW_ROWS);
    const float by_kk[FEW_ROWS] = {kk.x, kk.y, kk.z, kk.w}, by_qk[FEW_ROWS] = {qk.x, qk.y, qk.z, qk.w};
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        if (r >= first) {
            d[r] = fmaf(-by_kk[r], delta, d[r]);
            o[r] = fmaf(by_qk[r], delta, o[r]);
        }
    }
}
/* o[r] of this thread's column, which gets Delta of the rows written. k_s, v: S0^T k, v; o: S0^T q before. */
template <class B>
static __device__ __forceinline__ void few_delta(const struct few_shared<B> &f, const struct gdn_args &a,
        const struct gdn_sequence &q, const struct row_head &h, const float *k_s, const float *v, float *o) {
    const uint32_t heads = a.pool.shape.gdn_v_heads;
    float d[FEW_ROWS];
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        d[r] = fmaf(-f.e_g()[r], k_s[r], v[r]);
        o[r] = f.e_g()[r] * o[r];
    }
#pragma unroll 2
    for (uint32_t j = 0; j < h.first; j++)
        few_earlier(f, j, f.m.delta[j][threadIdx.x], 0, d, o);
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        if (r < q.n_rows) {
            const uint32_t i = h.first + r;
            d[r] = f.beta()[r] * d[r];
            o[r] = fmaf(f.qk()[i * FEW_ROWS + r], d[r], o[r]);
            few_earlier(f, i, d[r], r + 1, d, o);
            q.d_delta[((uint64_t)ring_row<true>(q, q.ring, i) * heads + h.v) * DIM + threadIdx.x] = d[r];
            f.m.own[r][1][threadIdx.x] = o[r];
        }
    }
}
template <class B>
static __device__ __forceinline__ void few_out(const struct few_shared<B> &f, const struct gdn_args &a,
        const struct gdn_sequence &q, const struct row_head &h, const struct few_asked<B> &x,
        const float *o) {
    float *d_out = q.d_out + (uint64_t)h.v * DIM + threadIdx.x;
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        if (r < q.n_rows) {
            float squares[OF_LANE];
            const float sum = sum_of_squares(f.m.own[r][1], squares),
                        scale = 1.0f / sqrtf(sum / (float)DIM + a.pool.shape.rms_eps);
            d_out[(uint64_t)r * a.pool.shape.gdn_v_heads * DIM] = o[r] * scale * x.norm * f32_silu(x.z[r]);
        }
    }
}

/* --- what is kept --- */

/* The window's rows of a channel: of those that are certain the last ones, and all drafts. */
static __device__ __forceinline__ void few_keep(
        const struct channel<FEW_ROWS> &c, const struct gdn_sequence &q) {
    uint32_t at = q.window;
    at = around(at, TAPS - 1, q.window_rows);
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        if (r < q.n_rows && (r > 0 || q.n_certain < TAPS))
            q.d_window[(uint64_t)at * q.channels + c.at] = c.x[TAPS - 1 + r];
        at = around(at, 1, q.window_rows);
    }
}
/* What the value heads of a key head share, by the last of them. */
template <class B>
static __device__ __forceinline__ void few_commit(const struct few_shared<B> &f, const struct few_asked<B> &x,
        const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h) {
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++) {
        few_keep(x.qk[n], q);
        if (element<B>(n) >= DIM)
            for (uint32_t r = 0; r < q.n_rows; r++)
                q.d_k[((uint64_t)ring_row<true>(q, q.ring, h.first + r) * a.pool.shape.gdn_k_heads + h.key) *
                                DIM +
                        threadIdx.x % DIM] = f.m.k[h.first + r][threadIdx.x % DIM];
    }
}

/* --- the rows --- */

/* Does an entry of a pool with drafts go this way? Its heads are as gdn_has_row() says. */
static __device__ __forceinline__ bool few_rows(const struct gdn_sequence &q) {
    return q.n_rows > 1 && q.n_rows <= FEW_ROWS && q.pos % GDN_BLOCK + q.n_rows <= GDN_BLOCK;
}
/* The entry's rows, for one value head. */
template <class B>
static __device__ __forceinline__ void few_entry(
        const struct gdn_args &a, const struct gdn_sequence &q, struct row_head &h) {
    const struct few_shared<B> f = { row_shared_of<B>() };
    typename B::S *d_s0 = (typename B::S *)q.d_s0 + h.v * DIM * DIM;
    float v[FEW_ROWS], k_s[FEW_ROWS] = {}, o[FEW_ROWS] = {};
    uint32_t before = 0;
    struct few_asked<B> x = {};
    h.first = q.pos % GDN_BLOCK;
    few_ask(x, f.m, a, q, h, d_s0);
    few_mix(f, x, h, v);
    if (leads<B>()) {
        before = arrive(a, q, h.key, h.group);
        few_decay(f, a, q, h);
    }
    __syncwarp();
    few_normalise(f, q, h);
    __syncthreads();
    if (has_column<B>())
        row_state_times<B, FEW_ROWS>(f.m, f.m.own, d_s0, /* fold= */ false, k_s, o);
    if (dots_warp<B>() < COLUMN_WARPS) {
        copy_wait<0>();
        __syncwarp();
        few_dots(f, q, h);
    }
    __syncthreads();
    if (has_column<B>())
        few_delta(f, a, q, h, k_s, v, o);
    if (leads<B>())
        f.m.last = is_last(a, q, h.key, h.group, before);
    __syncthreads();
    if (has_column<B>()) {
        few_out(f, a, q, h, x, o);
        few_keep(x.value, q);
    }
    if (f.m.last)
        few_commit(f, x, a, q, h);
}
