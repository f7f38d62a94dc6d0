/* gdn_row.cuh - a Gated DeltaNet mixer for an entry of one row, a token of an answer, where heads are 128 x 128 and the
 * convolution has 4 taps: every Qwen3.5. Part of gdn.cu, whose kernels have the grid: a block is one value head.
 *
 * Thread t of the first 4 warps has column t. All that the row needs is asked for before anything is waited for; then
 * convolutions and gates; each warp normalises q and k for itself; S0 from memory through a ring of each warp's own 32
 * columns, times q and k; beside it the dot products with the block's earlier keys, by 4 more warps where an SM has one
 * block; then Delta and o, and the gated norm. A row that begins a GDN block folds the block before into S0 as it
 * passes through the ring, and writes it, unless the step began with that (DRAFTS).
 *
 * In a decoded token this code comes once a layer, out of L2 if not out of memory, since the weights of a layer have
 * passed: a row takes as long as its instructions. So sizes are constants, what a loop can do is a loop, what one row
 * of 16 needs is out of the way, and there are three barriers. */
#pragma once

#include "kernels/cuda/gdn.cuh"
#include "kernels/cuda/rounding.cuh"

static_assert(GDN_ROW_DIM == ACTIVATION_RUN, "a head is a run");
#define DIM          GDN_ROW_DIM
#define TAPS         GDN_ROW_TAPS
#define COLUMN_WARPS (DIM / 32)
#define K_PITCH      (DIM + 16) /* two rows side by side in all banks */

/* A block for each SM: all of S0 at once, and warps without columns. */
template <class STATE> struct few_blocks {
    typedef STATE S;
    static constexpr uint32_t WARPS = 8, ROWS = 16, SLOTS = DIM / ROWS;
};
/* Four share an SM of 228 KB, two one of 100 KB. */
template <class STATE> struct many_blocks {
    typedef STATE S;
    static constexpr uint32_t WARPS = 4, ROWS = 16, SLOTS = 3;
};

/* What a block has in shared memory. */
template <class B> struct row_shared {
    typename B::S state[B::SLOTS][B::ROWS]
                       [DIM];    /* S0 on its way: column t is thread t's, and copied by its warp */
    float k[GDN_BLOCK][K_PITCH]; /* of the block's earlier rows; at a fold, times their fade */
    float delta[GDN_BLOCK][DIM];
    float own[B::WARPS][2][DIM]; /* q and k normalised, for each warp */
    float mixed[2][DIM];         /* q and k after the convolution */
    float z[DIM], o[DIM];
    float kk[GDN_BLOCK], qk[GDN_BLOCK]; /* e^(G_i - G_j) times the dot products with the earlier k_j */
    float fade[GDN_BLOCK + 1];          /* at a fold: e^(G_15 - G_j), and e^G_15 */
    float gate, beta, own_qk, e_g;      /* own_qk: q . k of the row itself */
    uint32_t last;                      /* is this the last block of its key head? */
};
template <class B> static __device__ __forceinline__ struct row_shared<B> &row_shared_of() {
    return *(struct row_shared<B> *)dynamic_shared();
}
/* A block's head, and the place of its row. */
struct row_head {
    uint32_t v, key, group; /* value head, key head, value heads of a key head */
    uint32_t first;         /* place in its GDN block */
    bool fold;
};
static __device__ __forceinline__ uint32_t warp_of() {
    return threadIdx.x / 32;
}
/* Of the 4 warps that take the dot products: which? The others get more than 3. */
template <class B> static __device__ __forceinline__ uint32_t dots_warp() {
    return warp_of() - (B::WARPS - COLUMN_WARPS);
}

/* --- what is asked for --- */

/* A channel of the convolution: taps, and values before the rows and of them, newest last in both. */
template <uint32_t ROWS> struct channel {
    uint32_t at;
    float tap[TAPS], x[TAPS - 1 + ROWS];
};
template <uint32_t ROWS>
static __device__ __forceinline__ void channel_taps(
        struct channel<ROWS> &c, const struct gdn_args &a, uint32_t channels, uint32_t at) {
    c.at = at;
#pragma unroll
    for (uint32_t t = 0; t < TAPS; t++)
        c.tap[t] = a.w.conv[t * channels + at];
}
/* 0 of rows that the entry does not have. */
template <bool DRAFTS, uint32_t ROWS>
static __device__ __forceinline__ void channel_values(struct channel<ROWS> &c, const struct gdn_sequence &q) {
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++)
        c.x[TAPS - 1 + r] = r == 0 || r < q.n_rows ? q.d_in[(uint64_t)r * q.width + c.at] : 0.0f;
    const float *d_x = q.d_window + c.at;
#pragma unroll
    for (uint32_t t = 0; t + 1 < TAPS; t++, d_x += DRAFTS ? 0 : q.channels)
        c.x[t] = d_x[DRAFTS ? around(q.window, t, q.window_rows) * q.channels : 0];
}
template <uint32_t ROWS>
static __device__ __forceinline__ float channel_mix(const struct channel<ROWS> &c, uint32_t row) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t t = 0; t < TAPS; t++)
        sum = fmaf(c.tap[t], c.x[row + t], sum);
    return f32_silu(sum);
}
/* The window after an entry of one row. */
template <bool DRAFTS>
static __device__ __forceinline__ void channel_keep(
        const struct channel<1> &c, const struct gdn_sequence &q) {
    if (DRAFTS)
        q.d_window[around(q.window, TAPS - 1, q.window_rows) * q.channels + c.at] = c.x[TAPS - 1];
#pragma unroll
    for (uint32_t t = 1; t < TAPS && !DRAFTS; t++)
        q.d_window[(t - 1) * q.channels + c.at] = c.x[t];
}

/* Where this lane's piece of a chunk of S0 is, in memory and in the ring: a warp copies some rows of its 32 columns
 * with one instruction, 4 of fp32. */
template <class S> static __device__ __forceinline__ uint32_t state_piece() {
    constexpr uint32_t columns = 16 / sizeof(S), lanes = 32 / columns; /* of a piece; of a row */
    const uint32_t lane = threadIdx.x % 32;
    return lane / lanes * DIM + warp_of() * 32 + lane % lanes * columns;
}
template <class B>
static __device__ __forceinline__ void row_chunk_fetch(typename B::S *slot, const typename B::S *d_from) {
    constexpr uint32_t rows = 16 / sizeof(typename B::S);
#pragma unroll
    for (uint32_t n = 0; n < B::ROWS; n += rows)
        copy_16_once(slot + n * DIM, d_from + n * DIM);
}
/* The chunks that the ring holds, a group of copies each; the last is open still. */
template <class B>
static __device__ __forceinline__ void row_state_begin(struct row_shared<B> &m, const typename B::S *d_s0) {
    typedef typename B::S S;
    S *to = m.state[0][0] + state_piece<S>();
    const S *d_from = d_s0 + state_piece<S>();
#pragma unroll 1
    for (uint32_t s = 1; s < B::SLOTS; s++, to += B::ROWS * DIM, d_from += B::ROWS * DIM) {
        row_chunk_fetch<B>(to, d_from);
        copy_commit();
    }
    row_chunk_fetch<B>(to, d_from);
}
/* The earlier rows of Delta, each warp its own columns, and of k, each warp those that it multiplies. */
template <class B, bool DRAFTS>
static __device__ __forceinline__ void row_rings_fetch(struct row_shared<B> &m, const struct gdn_args &a,
        const struct gdn_sequence &q, const struct row_head &h) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t n = h.fold ? GDN_BLOCK : h.first, lane = threadIdx.x % 32;
    if (warp_of() < COLUMN_WARPS) {
        const uint32_t j = lane / 8, column = warp_of() * 32 + lane % 8 * 4, row = shape.gdn_v_heads * DIM;
        const float *d_from = q.d_delta + ((DRAFTS ? 0 : j * row) + h.v * DIM + column);
        float *to = &m.delta[j][column];
#pragma unroll 1
        for (uint32_t i = j; i < n; i += 4, to += 4 * DIM, d_from += DRAFTS ? 0 : 4 * row)
            copy_16(to, d_from + (DRAFTS ? ring_row<true>(q, q.ring, i) * row : 0));
    }
    if (dots_warp<B>() < COLUMN_WARPS) {
        const uint32_t j = dots_warp<B>(), row = shape.gdn_k_heads * DIM;
        const float *d_from = q.d_k + ((DRAFTS ? 0 : j * row) + h.key * DIM + lane * 4);
        float *to = &m.k[j][lane * 4];
#pragma unroll 1
        for (uint32_t i = j; i < n;
                i += COLUMN_WARPS, to += COLUMN_WARPS * K_PITCH, d_from += DRAFTS ? 0 : COLUMN_WARPS * row)
            copy_16(to, d_from + (DRAFTS ? ring_row<true>(q, q.ring, i) * row : 0));
    }
    copy_commit();
}

/* --- q and k --- */

/* Elements of a vector that a lane of half a warp takes: l, l + 16, ... */
#define OF_LANE (DIM / CHAINS)
/* x of this lane, and the sum of squares in the order of half_warp_dot(). */
static __device__ __forceinline__ float sum_of_squares(const float *from, float *x) {
    float acc = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < OF_LANE; i++) {
        x[i] = from[threadIdx.x % CHAINS + i * CHAINS];
        acc = fmaf(x[i], x[i], acc);
    }
    return chains_sum(acc);
}
/* This warp's own copy of both, normalised. */
template <class B> static __device__ __forceinline__ void normalise(struct row_shared<B> &m) {
    const uint32_t of_k = threadIdx.x / CHAINS % 2;
    float x[OF_LANE], *to = m.own[warp_of()][of_k] + threadIdx.x % CHAINS;
    const float inverse = 1.0f / sqrtf(sum_of_squares(m.mixed[of_k], x) + 1e-6f),
                scale = of_k ? 1.0f : 1.0f / sqrtf((float)DIM);
#pragma unroll
    for (uint32_t i = 0; i < OF_LANE; i++)
        to[i * CHAINS] = x[i] * inverse * scale;
    __syncwarp();
}

/* e^(G_15 - G_j) k_j of the block before, in place. d_decay: G of this head, `heads` apart. One row of 16 comes here:
 * out of the way of the others. */
template <class B>
static __device__ __noinline__ void row_fold_prepare(const float *d_decay, uint32_t heads) {
    struct row_shared<B> &m = row_shared_of<B>();
    copy_wait<0>();
    if (threadIdx.x <= GDN_BLOCK) {
        const float last = d_decay[(GDN_BLOCK - 1) * heads];
        m.fade[threadIdx.x] = f32_exp(threadIdx.x < GDN_BLOCK ? last - d_decay[threadIdx.x * heads] : last);
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < GDN_BLOCK * DIM; i += B::WARPS * 32)
        m.k[i / DIM][i % DIM] = m.fade[i / DIM] * m.k[i / DIM][i % DIM];
    __syncthreads();
}

/* What a lane of a warp of dot products knows of G before. Its own key, in the end: row j. */
struct dots {
    uint32_t j;
    float decay, before; /* G of row j and of the row before */
};
template <class B, bool DRAFTS>
static __device__ __forceinline__ void row_dots_fetch(
        struct dots &d, const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h) {
    const uint32_t lane = threadIdx.x % 32, heads = a.pool.shape.gdn_v_heads;
    d.j = dots_warp<B>() + COLUMN_WARPS * (lane / 4 % 2 * 2 + lane / CHAINS);
    d.decay = d.j < h.first ? q.d_decay[ring_row<DRAFTS>(q, q.ring, d.j) * heads + h.v] : 0.0f;
    d.before = h.first > 0 ? q.d_decay[ring_row<DRAFTS>(q, q.ring, h.first - 1) * heads + h.v] : 0.0f;
}
/* Half a warp takes two keys. Their four sums are added up together, in the order of chains_sum(): of a key, lanes
 * with bit 3 keep q . k_j and those without k . k_j; of the two keys, lanes with bit 2 keep the second. */
template <class B>
static __device__ __forceinline__ float dots_sum(
        const struct row_shared<B> &m, const float (*own)[DIM], uint32_t first) {
    const uint32_t l = threadIdx.x % CHAINS, half = threadIdx.x / CHAINS % 2;
    const bool of_q = l & 8, second = l & 4;
    float of[2];
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t j = dots_warp<B>() + COLUMN_WARPS * (2 * r + half);
        const float *k_j = j < first ? m.k[j] : own[1];
        float kk = 0.0f, qk = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < DIM; i += CHAINS) {
            const float x = k_j[i + l];
            kk = fmaf(own[1][i + l], x, kk);
            qk = fmaf(own[0][i + l], x, qk);
        }
        of[r] = (of_q ? qk : kk) + __shfl_xor_sync(ALL_LANES, of_q ? kk : qk, 8);
    }
    float sum = (second ? of[1] : of[0]) + __shfl_xor_sync(ALL_LANES, second ? of[0] : of[1], 4);
    sum = sum + __shfl_xor_sync(ALL_LANES, sum, 2);
    return sum + __shfl_xor_sync(ALL_LANES, sum, 1);
}
/* The dot products with the earlier keys and its own; G of the row. */
template <class B, bool DRAFTS>
static __device__ __forceinline__ void row_dots(struct row_shared<B> &m, const struct dots &d,
        const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h) {
    const uint32_t lane = threadIdx.x % 32;
    const bool of_q = lane & 8;
    const float sum = dots_sum<B>(m, m.own[warp_of()], h.first),
                g = h.first == 0 ? m.gate : d.before + m.gate,
                e = f32_exp(lane % 4 == 1 ? g : g - (d.j == h.first ? g : d.decay));
    if (lane % 4 == 0 && d.j < h.first)
        (of_q ? m.qk : m.kk)[d.j] = e * sum;
    if (lane % 4 == 0 && d.j == h.first && of_q)
        m.own_qk = e * sum;
    if (lane == 1 && dots_warp<B>() == 0) {
        m.e_g = e;
        q.d_decay[ring_row<DRAFTS>(q, q.ring, h.first) * a.pool.shape.gdn_v_heads + h.v] = g;
    }
}

/* --- S0 times k and q --- */

/* A chunk of this thread's column, rows from k on, folded in place, and written. */
template <class B>
static __device__ __noinline__ void row_fold_chunk(uint32_t k, uint32_t n_slot, typename B::S *d_s0) {
    struct row_shared<B> &m = row_shared_of<B>();
    typename B::S(*slot)[DIM] = m.state[n_slot];
    float delta[GDN_BLOCK];
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++)
        delta[j] = m.delta[j][threadIdx.x];
#pragma unroll 1
    for (uint32_t at = 0; at < B::ROWS; at += 4) {
        float s[4];
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            s[e] = m.fade[GDN_BLOCK] * widen(slot[at + e][threadIdx.x]);
#pragma unroll
        for (uint32_t j = 0; j < GDN_BLOCK; j++) {
            const float4 w = *(const float4 *)&m.k[j][k + at];
            s[0] = fmaf(w.x, delta[j], s[0]);
            s[1] = fmaf(w.y, delta[j], s[1]);
            s[2] = fmaf(w.z, delta[j], s[2]);
            s[3] = fmaf(w.w, delta[j], s[3]);
        }
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            narrow(s[e], &slot[at + e][threadIdx.x]);
            narrow(s[e], &d_s0[(k + at + e) * DIM + threadIdx.x]);
        }
    }
}
/* k_s[r], q_s[r] += S0^T k, S0^T q of this thread's column, k ascending. own: q and k of the rows. */
template <class B, uint32_t ROWS>
static __device__ __forceinline__ void row_state_times(struct row_shared<B> &m, const float (*own)[2][DIM],
        typename B::S *d_s0, bool fold, float *k_s, float *q_s) {
#pragma unroll 1
    for (uint32_t k = 0, slot = 0; k < DIM; k += B::ROWS, slot = slot + 1 == B::SLOTS ? 0 : slot + 1) {
        typename B::S(*s)[DIM] = m.state[slot];
        copy_wait<B::SLOTS - 1>();
        __syncwarp();
        if (fold)
            row_fold_chunk<B>(k, slot, d_s0);
#pragma unroll
        for (uint32_t at = 0; at < B::ROWS; at += 4) {
            float s_e[4];
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                s_e[e] = widen(s[at + e][threadIdx.x]);
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) {
                const float4 x = *(const float4 *)&own[r][1][k + at], y = *(const float4 *)&own[r][0][k + at];
#pragma unroll
                for (uint32_t e = 0; e < 4; e++) {
                    k_s[r] = fmaf(s_e[e], e == 0 ? x.x : e == 1 ? x.y : e == 2 ? x.z : x.w, k_s[r]);
                    q_s[r] = fmaf(s_e[e], e == 0 ? y.x : e == 1 ? y.y : e == 2 ? y.z : y.w, q_s[r]);
                }
            }
        }
        if (B::SLOTS * B::ROWS < DIM) {
            const uint32_t next = k + B::SLOTS * B::ROWS;
            __syncwarp();
            if (next < DIM)
                row_chunk_fetch<B>(s[0] + state_piece<typename B::S>(),
                        d_s0 + (next * DIM + state_piece<typename B::S>()));
        }
        copy_commit();
    }
}

/* --- Delta, o, the gated norm --- */

/* o of this thread's column; its Delta is written. */
template <class B>
static __device__ __forceinline__ float row_delta(const struct row_shared<B> &m, const struct row_head &h,
        float k_s, float q_s, float v, float *d_delta) {
    float d = fmaf(-m.e_g, k_s, v), o = m.e_g * q_s;
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++) {
        const float before = m.delta[j][threadIdx.x];
        if (j < h.first) {
            d = fmaf(-m.kk[j], before, d);
            o = fmaf(m.qk[j], before, o);
        }
    }
    d = m.beta * d;
    *d_delta = d;
    return fmaf(m.own_qk, d, o);
}

/* --- the row --- */

/* What a thread asks for before it waits for anything. */
template <class B> struct row_asked {
    static constexpr uint32_t THREADS = B::WARPS * 32, QK = 2 * DIM / THREADS;
    struct channel<1> qk[QK], value; /* of q and k; v of its column */
    float z, norm;                   /* of a column */
    float a, b, a_log, dt_bias;      /* of the head */
    struct dots dots;
};
/* Element of q (< DIM) or k of this thread's channel n. */
template <class B> static __device__ __forceinline__ uint32_t element(uint32_t n) {
    return threadIdx.x + n * B::WARPS * 32;
}
template <class B> static __device__ __forceinline__ bool has_column() {
    return B::WARPS == COLUMN_WARPS || threadIdx.x < DIM;
}
/* The last threads: those without a column, where there are such. */
template <class B> static __device__ __forceinline__ bool has_gate() {
    return B::WARPS == COLUMN_WARPS || threadIdx.x >= DIM;
}
template <class B> static __device__ __forceinline__ bool leads() {
    return threadIdx.x == B::WARPS * 32 - 1;
}

/* What does not depend on the entry. */
template <class B>
static __device__ __forceinline__ void ask_weights(
        struct row_asked<B> &x, const struct gdn_args &a, const struct row_head &h, uint32_t channels) {
    const uint32_t keys = a.pool.shape.gdn_k_heads;
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++) {
        const uint32_t i = element<B>(n);
        channel_taps(x.qk[n], a, channels, (i < DIM ? h.key : keys + h.key) * DIM + i % DIM);
    }
    if (has_column<B>()) {
        channel_taps(x.value, a, channels, (2 * keys + h.v) * DIM + threadIdx.x);
        x.norm = a.w.norm[threadIdx.x];
    }
    x.a_log = a.w.a_log[h.v];
    x.dt_bias = a.w.dt_bias[h.v];
    __syncwarp();
}
/* What depends on it, S0 and the rings last: all else is used before them. */
template <class B, bool DRAFTS>
static __device__ __forceinline__ void ask_inputs(struct row_asked<B> &x, struct row_shared<B> &m,
        const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h,
        const typename B::S *d_s0) {
    const uint32_t heads = a.pool.shape.gdn_v_heads;
    const float *d_z = q.d_in + q.channels, *d_b = d_z + heads * DIM;
    x.a = d_b[heads + h.v];
    x.b = d_b[h.v];
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++)
        channel_values<DRAFTS>(x.qk[n], q);
    if (has_column<B>())
        channel_values<DRAFTS>(x.value, q);
    if (has_gate<B>())
        x.z = d_z[h.v * DIM + threadIdx.x % DIM];
    __syncwarp();
    if (has_column<B>())
        row_state_begin<B>(m, d_s0);
    row_rings_fetch<B, DRAFTS>(m, a, q, h);
    if (dots_warp<B>() < COLUMN_WARPS)
        row_dots_fetch<B, DRAFTS>(x.dots, a, q, h);
    __syncwarp();
}
/* q, k and the head's gates, for all; returns v of this thread's column. */
template <class B>
static __device__ __forceinline__ float row_mix(struct row_shared<B> &m, const struct row_asked<B> &x) {
    if (leads<B>()) {
        m.gate = gate_from(x.a_log, x.a, x.dt_bias);
        m.beta = f32_sigmoid(x.b);
    }
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++)
        m.mixed[element<B>(n) / DIM][threadIdx.x % DIM] = channel_mix(x.qk[n], 0);
    const float v = has_column<B>() ? channel_mix(x.value, 0) : 0.0f;
    __syncthreads();
    return v;
}
/* The gated norm. */
template <class B>
static __device__ __forceinline__ float row_out(
        const struct row_shared<B> &m, float o, float norm, float rms_eps) {
    float x[OF_LANE];
    const float scale = 1.0f / sqrtf(sum_of_squares(m.o, x) / (float)DIM + rms_eps);
    return o * scale * norm * m.z[threadIdx.x];
}
/* What the value heads of a key head share, by the last of them. */
template <class B, bool DRAFTS>
static __device__ __forceinline__ void row_commit(const struct row_shared<B> &m, const struct row_asked<B> &x,
        const struct gdn_args &a, const struct gdn_sequence &q, const struct row_head &h) {
    float *d_k = q.d_k + (ring_row<DRAFTS>(q, q.ring, h.first) * a.pool.shape.gdn_k_heads + h.key) * DIM;
#pragma unroll
    for (uint32_t n = 0; n < x.QK; n++) {
        channel_keep<DRAFTS>(x.qk[n], q);
        if (element<B>(n) >= DIM)
            d_k[element<B>(n) - DIM] = m.own[0][1][threadIdx.x % DIM];
    }
}

/* The entry's row, for one value head. x: its weights are asked for. */
template <class B, bool DRAFTS>
static __device__ __forceinline__ void row_entry(
        struct row_asked<B> &x, const struct gdn_args &a, const struct gdn_sequence &q, struct row_head &h) {
    const uint32_t heads = a.pool.shape.gdn_v_heads;
    struct row_shared<B> &m = row_shared_of<B>();
    typename B::S *d_s0 = (typename B::S *)q.d_s0 + h.v * DIM * DIM;
    float k_s = 0.0f, q_s = 0.0f, o = 0.0f;
    uint32_t before = 0;
    h.first = q.pos % GDN_BLOCK;
    h.fold = !DRAFTS && h.first == 0 && q.pos > 0;
    ask_inputs<B, DRAFTS>(x, m, a, q, h, d_s0);
    const float v = row_mix<B>(m, x);
    if (!DRAFTS && h.fold)
        row_fold_prepare<B>(q.d_decay + h.v, heads);
    if (leads<B>())
        before = arrive(a, q, h.key, h.group);
    normalise<B>(m);
    if (has_column<B>())
        row_state_times<B, 1>(m, m.own + warp_of(), d_s0, !DRAFTS && h.fold, &k_s, &q_s);
    if (dots_warp<B>() < COLUMN_WARPS) {
        copy_wait<0>();
        __syncwarp();
        row_dots<B, DRAFTS>(m, x.dots, a, q, h);
    }
    if (has_gate<B>())
        m.z[threadIdx.x % DIM] = f32_silu(x.z);
    __syncthreads();
    const uint64_t out = (uint64_t)h.v * DIM + threadIdx.x;
    if (has_column<B>()) {
        o = row_delta<B>(m, h, k_s, q_s, v,
                q.d_delta + ((uint64_t)ring_row<DRAFTS>(q, q.ring, h.first) * heads * DIM + out));
        m.o[threadIdx.x] = o;
    }
    if (leads<B>())
        m.last = is_last(a, q, h.key, h.group, before);
    __syncthreads();
    if (has_column<B>()) {
        const float y = row_out<B>(m, o, x.norm, a.pool.shape.rms_eps);
        q.d_out[out] = y;
        m.z[threadIdx.x] = y; /* for row_round() */
        channel_keep<DRAFTS>(x.value, q);
    }
    if (m.last)
        row_commit<B, DRAFTS>(m, x, a, q, h);
}
/* What a step's only row_entry() has put out, as INT8: a head is a run of the product after it. By all of the block. */
template <class B> static __device__ __forceinline__ void row_round(const struct gdn_args &a, uint32_t v) {
    const struct row_shared<B> &m = row_shared_of<B>();
    __syncthreads();
    if (warp_of() == B::WARPS - 1)
        run_codes_put(a.codes, m.z + threadIdx.x % 32 * 4, /* row= */ 0, /* run= */ v);
}
