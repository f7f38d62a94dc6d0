/* gdn.cu - a Gated DeltaNet mixer for entries of few rows: everything between the projections in one kernel.
 *
 *   gdn_rows_kernel  grid (Hv / Hk, Hk, entries): a block is one value head of an entry, a thread one column of it.
 *                    Groups of up to GROUP rows of one GDN block:
 *                    convolution and gates, L2 norms, then S0 once, from memory through a ring of each warp's own 32
 *                    columns, times q and k of all rows; then Delta and o row by row with the block's earlier Deltas in
 *                    registers; the gated norm. A group that begins a GDN block folds the block before into S0 as it
 *                    streams by, and writes it, or, behind a draft, does not, and the groups after it fold again. An
 *                    entry of one row goes another way, where heads are of the size that it is made for (gdn_row.cuh),
 *                    and so does one of a token and its drafts (gdn_few.cuh).
 *   gdn_row_kernel   the same grid, of a step that has one row: nothing but that way, so that its code is short.
 *
 * Bytes of a row of the 27B model (Hv 48, dk = dv = 128): S0 3.1 MB, rings of k and Delta 0.5 MB, window 0.2 MB, in and
 * out 0.1 MB. The chains over dk of the CPU's order cost nothing here: 2 fused operations for each 4 bytes.
 *
 * Who writes what others read: S0, Delta, G and the window of v are one block's. The ring of k and the window of q
 * and k are shared by the value heads of a key head: the last of their blocks to have read them writes them, found
 * through d_arrivals. */
#include "kernels/cuda/gdn.cuh"
#include "kernels/cuda/gdn_few.cuh"
#include "kernels/cuda/gdn_row.cuh"
#include "kernels/cuda/launch.cuh"

#define GROUP         4u /* rows that stream S0 together: a thread has 2 sums of each, and more would spill */
#define CHUNK         16u /* rows of S0 that are copied and waited for together */
#define WARP_COLUMN   32u
#define CHUNK_NUMBERS (CHUNK * WARP_COLUMN)
/* A block for each SM: all of S0 at once, and warps without columns. More: several blocks share an SM, and each has as
 * many slots as keep them there. */
#define SLOTS_FEW_BLOCKS  8u
#define SLOTS_MANY_BLOCKS 4u
#define SLOTS_MANY_DRAFTS 3u /* with drafts a block has more besides */

/* What a block has in shared memory. */
struct rows_shared {
    void *ring;    /* S [warp with columns][SLOTS][CHUNK][32] S0 on its way */
    float *k;      /* [C][pitch] of the GDN block's rows before this group */
    float *fold_k; /* [C][pitch] at a fold, the block's before times their fade; without drafts it is k */
    float *row_k, *row_q;      /* [GROUP][pitch] of this group; row_q is o afterwards */
    float *kk, *qk;            /* [GROUP][C] e^(G_i - G_j) times the dot products of row i with k_j */
    float *decay;              /* [C] G of the GDN block */
    float *fade;               /* [C] at a fold, and e^G_15 behind it */
    float *gate, *beta, *norm; /* [GROUP] */
    uint32_t *last;            /* is this the last block of its key head? */
    uint32_t pitch;
};
static __host__ __device__ __forceinline__ uint32_t pitch_of(const struct k_shape &h) {
    return ((h.gdn_k_dim > h.gdn_v_dim ? h.gdn_k_dim : h.gdn_v_dim) + 3) & ~3u;
}
/* Threads that have a column, in whole warps. */
static __host__ __device__ __forceinline__ uint32_t column_threads(uint32_t dv) {
    return (dv + WARP_COLUMN - 1) / WARP_COLUMN * WARP_COLUMN;
}
template <class S>
static __host__ __device__ __forceinline__ uint32_t ring_floats(const struct k_shape &h, uint32_t slots) {
    return column_threads(h.gdn_v_dim) * CHUNK * slots * (uint32_t)sizeof(S) / (uint32_t)sizeof(float);
}
template <class S>
static __host__ __device__ __forceinline__ uint32_t shared_floats(
        const struct k_shape &h, uint32_t slots, bool drafts) {
    return ring_floats<S>(h, slots) + ((drafts ? 2 : 1) * GDN_BLOCK + 2 * GROUP) * pitch_of(h) +
           2 * GROUP * GDN_BLOCK + 2 * GDN_BLOCK + 3 * GROUP + 4;
}
template <class S, uint32_t SLOTS, bool DRAFTS>
static __device__ __forceinline__ struct rows_shared lay_out_shared(const struct k_shape &h) {
    struct rows_shared m;
    m.pitch = pitch_of(h);
    m.ring = dynamic_shared();
    m.k = (float *)m.ring + ring_floats<S>(h, SLOTS);
    m.fold_k = DRAFTS ? m.k + GDN_BLOCK * m.pitch : m.k;
    m.row_k = m.fold_k + GDN_BLOCK * m.pitch;
    m.row_q = m.row_k + GROUP * m.pitch;
    m.kk = m.row_q + GROUP * m.pitch;
    m.qk = m.kk + GROUP * GDN_BLOCK;
    m.decay = m.qk + GROUP * GDN_BLOCK;
    m.fade = m.decay + GDN_BLOCK;
    m.gate = m.fade + GDN_BLOCK + 1;
    m.beta = m.gate + GROUP;
    m.norm = m.beta + GROUP;
    m.last = (uint32_t *)(m.norm + GROUP);
    return m;
}

/* This block's head, and this thread's column of it. */
struct head {
    uint32_t v, key, group; /* value head, key head, value heads of a key head */
    uint32_t dk, dv, column;
    void *d_s0; /* [dk][dv] S */
};
/* The rows [row, row + n) of the entry; first: position of the first in its GDN block. */
struct group {
    uint32_t row, n, first;
    bool fold;
    /* DRAFTS: where the ring has its GDN block, and the one before; whether that one is folded for this step alone,
     * since a draft completed it */
    uint32_t ring, ring_before;
    bool passing;
};

/* --- S0 on its way --- */

/* Columns that 16 bytes have, and rows that a warp copies with one instruction. */
template <class S> static __device__ __forceinline__ constexpr uint32_t piece_columns() {
    return 16 / sizeof(S);
}
template <class S> static __device__ __forceinline__ constexpr uint32_t piece_rows() {
    return 32 * piece_columns<S>() / WARP_COLUMN;
}
/* Each warp copies its own columns, so a chunk needs no barrier of the block. Only whole pieces. */
template <class S>
static __device__ __forceinline__ void chunk_fetch(
        const struct head &h, S *slot, uint32_t chunk, uint32_t chunks) {
    constexpr uint32_t columns = piece_columns<S>(), rows = piece_rows<S>();
    if (chunk < chunks) {
        const uint32_t lane = threadIdx.x % 32, r = lane / (32 / rows), c = lane % (32 / rows) * columns,
                       column = h.column - lane + c, k = chunk * CHUNK + r,
                       left = column < h.dv ? h.dk - k : 0;
        const S *d_from = (const S *)h.d_s0 + (k * h.dv + column);
        S *to = slot + r * WARP_COLUMN + c;
#pragma unroll
        for (uint32_t n = 0; n < CHUNK; n += rows, d_from += rows * h.dv)
            if ((int32_t)n < (int32_t)left)
                copy_16_once(to + n * WARP_COLUMN, d_from);
    }
    copy_commit();
}
template <class S, uint32_t SLOTS>
static __device__ __forceinline__ S *warp_ring(const struct rows_shared &m) {
    return (S *)m.ring + threadIdx.x / 32 * SLOTS * CHUNK_NUMBERS;
}
template <class S, uint32_t SLOTS, bool WIDE>
static __device__ __forceinline__ void state_begin(const struct head &h, const struct rows_shared &m) {
    if (WIDE)
#pragma unroll
        for (uint32_t i = 0; i < SLOTS; i++)
            chunk_fetch(h, warp_ring<S, SLOTS>(m) + i * CHUNK_NUMBERS, i, (h.dk + CHUNK - 1) / CHUNK);
}

/* --- S0 times k and q --- */

/* Four rows of this column's S0 from k on, the last of them perhaps not there. */
struct four {
    float s[4];
    uint32_t k, n; /* n: that are there */
};
/* Folded, and written where the slot keeps it, where a GDN block begins. */
template <class S>
static __device__ __forceinline__ void fold_four(
        const struct head &h, const struct rows_shared &m, const float *delta, bool keeps, struct four &f) {
    const float e_g = m.fade[GDN_BLOCK];
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        f.s[e] = e_g * f.s[e];
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++) {
        const float4 w = *(const float4 *)(m.fold_k + j * m.pitch + f.k);
        f.s[0] = fmaf(w.x, delta[j], f.s[0]);
        f.s[1] = fmaf(w.y, delta[j], f.s[1]);
        f.s[2] = fmaf(w.z, delta[j], f.s[2]);
        f.s[3] = fmaf(w.w, delta[j], f.s[3]);
    }
    S kept[4];
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        narrow(f.s[e], &kept[e]);
        f.s[e] = widen(kept[e]);
    }
    if (keeps && h.column < h.dv)
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            if (e < f.n)
                ((S *)h.d_s0)[(uint64_t)(f.k + e) * h.dv + h.column] = kept[e];
}
/* sum += the rows times x, k ascending */
template <bool ALL>
static __device__ __forceinline__ float add_four(const struct four &f, const float *x, float sum) {
    const float4 v = *(const float4 *)x;
    sum = fmaf(f.s[0], v.x, sum);
    if (ALL || f.n > 1)
        sum = fmaf(f.s[1], v.y, sum);
    if (ALL || f.n > 2)
        sum = fmaf(f.s[2], v.z, sum);
    return ALL ? fmaf(f.s[3], v.w, sum) : sum;
}
template <uint32_t ROWS, bool ALL>
static __device__ __forceinline__ void add_all(
        const struct rows_shared &m, const struct four &f, float *k_s, float *q_s) {
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        k_s[r] = add_four<ALL>(f, m.row_k + r * m.pitch + f.k, k_s[r]);
        q_s[r] = add_four<ALL>(f, m.row_q + r * m.pitch + f.k, q_s[r]);
    }
}
/* One chunk of them, from k on. WHOLE: all of its rows are there. */
template <class S, uint32_t ROWS, bool WIDE, bool FOLD, bool WHOLE>
static __device__ __forceinline__ void chunk_times(const struct head &h, const struct rows_shared &m,
        const float *delta, bool keeps, const S *slot, uint32_t k, float *k_s, float *q_s) {
    [[maybe_unused]] constexpr uint32_t together = WHOLE ? CHUNK / 4 : 1; /* more would take registers */
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll together
    for (uint32_t at = 0; at < CHUNK; at += 4) {
        struct four f;
        f.k = k + at;
        f.n = WHOLE ? 4 : h.dk - f.k;
        if (!WHOLE && f.k >= h.dk)
            break;
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            if (WIDE)
                f.s[e] = widen(slot[(at + e) * WARP_COLUMN + lane]);
            else
                f.s[e] = e < f.n && h.column < h.dv ? widen(((const S *)h.d_s0)[(f.k + e) * h.dv + h.column])
                                                    : 0.0f;
        if (FOLD)
            fold_four<S>(h, m, delta, keeps, f);
        if (WHOLE || f.n >= 4)
            add_all<ROWS, true>(m, f, k_s, q_s);
        else
            add_all<ROWS, false>(m, f, k_s, q_s);
    }
}
/* k_s[r], q_s[r] += S0^T k, S0^T q of this column, rows r < ROWS; rows that are not there give what nobody uses. */
template <class S, uint32_t ROWS, uint32_t SLOTS, bool WIDE, bool FOLD>
static __device__ __forceinline__ void state_times(const struct head &h, const struct rows_shared &m,
        const float *delta, bool keeps, float *k_s, float *q_s) {
    const uint32_t chunks = (h.dk + CHUNK - 1) / CHUNK;
#pragma unroll 1
    for (uint32_t chunk = 0, slot = 0; chunk < chunks; chunk++, slot = slot + 1 == SLOTS ? 0 : slot + 1) {
        S *ring = warp_ring<S, SLOTS>(m) + slot * CHUNK_NUMBERS;
        const uint32_t k = chunk * CHUNK;
        if (WIDE) {
            copy_wait<SLOTS - 1>();
            __syncwarp();
        }
        if (ROWS == 1 && WIDE && !FOLD && k + CHUNK <= h.dk)
            chunk_times<S, ROWS, WIDE, FOLD, ROWS == 1 && WIDE && !FOLD>(
                    h, m, delta, keeps, ring, k, k_s, q_s);
        else
            chunk_times<S, ROWS, WIDE, FOLD, false>(h, m, delta, keeps, ring, k, k_s, q_s);
        if (WIDE) {
            __syncwarp();
            chunk_fetch(h, ring, chunk + SLOTS, chunks);
        }
    }
}

/* --- before it: convolution, norms, gates, dot products --- */

/* e^(G_15 - G_j) k_j of the block before. */
static __device__ void fold_prepare(const struct head &h, const struct rows_shared &m) {
    const float last = m.decay[GDN_BLOCK - 1];
    if (threadIdx.x <= GDN_BLOCK)
        m.fade[threadIdx.x] = f32_exp(threadIdx.x < GDN_BLOCK ? last - m.decay[threadIdx.x] : last);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < GDN_BLOCK * h.dk; i += blockDim.x) {
        const uint32_t j = i / h.dk, k = i % h.dk;
        m.fold_k[j * m.pitch + k] = m.fade[j] * m.k[j * m.pitch + k];
    }
}
/* q and k of the group's rows, not normalised yet, and their gates. */
template <bool DRAFTS>
static __device__ void rows_mix(const struct gdn_args &a, const struct gdn_sequence &q, const struct head &h,
        const struct rows_shared &m, const struct group &g) {
    const struct k_shape &shape = a.pool.shape;
    for (uint32_t i = threadIdx.x; i < 2 * h.dk; i += blockDim.x) {
        const bool is_k = i >= h.dk;
        const uint32_t at = is_k ? i - h.dk : i,
                       channel = (is_k ? shape.gdn_k_heads + h.key : h.key) * h.dk + at;
        float *to = (is_k ? m.row_k : m.row_q) + at;
        struct conv_channel<CONV_KERNEL_MAX> c;
        conv_begin<DRAFTS>(c, a, q, g.row, channel);
#pragma unroll 1
        for (uint32_t r = 0; r < g.n; r++)
            to[r * m.pitch] =
                    conv_next(c, shape.conv_kernel, q.d_in[(uint64_t)(g.row + r) * q.width + channel]);
    }
    const uint32_t r = blockDim.x - 1 - threadIdx.x; /* threads with nothing else to do first */
    if (r < g.n) {
        m.gate[r] = gate_of(a, q, g.row + r, h.v);
        m.beta[r] = beta_of(a, q, g.row + r, h.v);
    }
}
template <bool DRAFTS>
static __device__ void rows_normalise(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m, const struct group &g) {
    const uint32_t halves = blockDim.x / CHAINS, half = threadIdx.x / CHAINS, vectors = 2 * g.n;
    for (uint32_t first = 0; first < vectors; first += halves) {
        const uint32_t i = first + half, r = i < g.n ? i : i - g.n;
        l2_row((i < g.n ? m.row_q : m.row_k) + (i < vectors ? r : 0) * m.pitch, i < vectors ? h.dk : 0,
                i < g.n ? q_scale(a) : 1.0f);
    }
    if (threadIdx.x == blockDim.x - 1) {
        for (uint32_t r = 0; r < g.n; r++) {
            const uint32_t i = g.first + r;
            m.decay[i] = i == 0 ? m.gate[r] : m.decay[i - 1] + m.gate[r];
            q.d_decay[(uint64_t)ring_row<DRAFTS>(q, g.ring, i) * a.pool.shape.gdn_v_heads + h.v] = m.decay[i];
        }
    }
}
static __device__ void rows_dots(const struct head &h, const struct rows_shared &m, const struct group &g) {
    const uint32_t halves = blockDim.x / CHAINS, half = threadIdx.x / CHAINS, pairs = g.n * GDN_BLOCK;
    for (uint32_t first = 0; first < pairs; first += halves) {
        const uint32_t r = (first + half) / GDN_BLOCK, j = (first + half) % GDN_BLOCK, i = g.first + r,
                       n = first + half < pairs && j <= i ? h.dk : 0;
        const float *k_j = j < g.first ? m.k + j * m.pitch : m.row_k + (j - g.first) * m.pitch;
        float kk, qk;
        half_warp_dots(m.row_k + r * m.pitch, m.row_q + r * m.pitch, k_j, n, &kk, &qk);
        if (n && threadIdx.x % CHAINS == 0) {
            const float fade = f32_exp(m.decay[i] - m.decay[j]);
            m.kk[r * GDN_BLOCK + j] = fade * kk;
            m.qk[r * GDN_BLOCK + j] = fade * qk;
        }
    }
}

/* --- a group --- */

/* Delta and o of row i, from its sums; delta[j < i] are the block's, and delta[i] is it afterwards. Returns o. */
static __device__ __forceinline__ float delta_row(const float *kk, const float *qk, float beta, float decay,
        uint32_t i, float k_s, float q_s, float v, float *delta) {
    const float e_g = f32_exp(decay);
    float d = fmaf(-e_g, k_s, v), o = e_g * q_s;
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++) {
        if (j < i) {
            d = fmaf(-kk[j], delta[j], d);
            o = fmaf(qk[j], delta[j], o);
        }
    }
    d = beta * d;
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++)
        delta[j] = j == i ? d : delta[j];
    return fmaf(qk[i], d, o);
}
/* o (in row_q) normalised, times silu(z). */
template <uint32_t ROWS>
static __device__ __forceinline__ void rows_out(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m, const struct group &g, const float *z) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t half = threadIdx.x / CHAINS, r = half < g.n ? half : 0;
    if (half / 2 * 2 < g.n) { /* whole warps */
        const float sum = half_warp_dot(m.row_q + r * m.pitch, m.row_q + r * m.pitch, half < g.n ? h.dv : 0);
        if (half < g.n && threadIdx.x % CHAINS == 0)
            m.norm[r] = 1.0f / sqrtf(sum / (float)h.dv + shape.rms_eps);
    }
    __syncthreads();
    if (h.column >= h.dv)
        return;
    const float w = load_read_only(a.w.norm + h.column);
    float *d_out = q.d_out + ((uint64_t)g.row * shape.gdn_v_heads + h.v) * h.dv + h.column;
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        if (i < g.n)
            d_out[(uint64_t)i * shape.gdn_v_heads * h.dv] =
                    m.row_q[i * m.pitch + h.column] * m.norm[i] * w * f32_silu(z[i]);
}

/* z of this column. */
template <uint32_t ROWS>
static __device__ __forceinline__ void column_gates(
        const struct gdn_sequence &q, const struct head &h, const struct group &g, float *z) {
    const float *d_z = q.d_in + (uint64_t)g.row * q.width + q.channels + h.v * h.dv + h.column;
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++)
        z[r] = r < g.n && h.column < h.dv ? d_z[(uint64_t)r * q.width] : 0.0f;
}

/* This column's Delta of rows i < n of the GDN block that the ring has from row `ring` on; 0 of the others. */
template <bool DRAFTS>
static __device__ __forceinline__ void column_deltas(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, uint32_t ring, uint32_t n, float *delta) {
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++)
        delta[j] = j < n && h.column < h.dv
                           ? q.d_delta[((uint64_t)ring_row<DRAFTS>(q, ring, j) * a.pool.shape.gdn_v_heads +
                                               h.v) *
                                               h.dv +
                                       h.column]
                           : 0.0f;
}

/* From S0 on: the group's rows are convolved and normalised. v: of this column. */
template <class S, uint32_t ROWS, uint32_t SLOTS, bool WIDE, bool DRAFTS>
static __device__ __forceinline__ void group_finish(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m, const struct group &g, const float *v,
        float *delta) {
    float k_s[ROWS] = {}, q_s[ROWS] = {}, z[ROWS];
    column_gates<ROWS>(q, h, g, z);
    if (DRAFTS && g.passing && g.first > 0) /* folded again for each group */
        column_deltas<DRAFTS>(a, q, h, g.ring_before, GDN_BLOCK, delta);
    if (h.column - threadIdx.x % 32 < h.dv) {
        if (g.fold)
            state_times<S, ROWS, SLOTS, WIDE, true>(h, m, delta, !DRAFTS || !g.passing, k_s, q_s);
        else
            state_times<S, ROWS, SLOTS, WIDE, false>(h, m, delta, /* keeps= */ false, k_s, q_s);
    }
    if (DRAFTS && g.passing && g.first > 0)
        column_deltas<DRAFTS>(a, q, h, g.ring, g.first, delta);
    __syncthreads(); /* all have used row_q, and the dot products are there */
    if (h.column < h.dv) {
        const uint64_t stride = (uint64_t)a.pool.shape.gdn_v_heads * h.dv;
        float *d_delta = q.d_delta + (DRAFTS ? 0 : g.first * stride) + h.v * h.dv + h.column;
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            if (r < g.n) {
                const uint32_t i = g.first + r;
                m.row_q[r * m.pitch + h.column] = delta_row(m.kk + r * GDN_BLOCK, m.qk + r * GDN_BLOCK,
                        m.beta[r], m.decay[i], i, k_s[r], q_s[r], v[r], delta);
                float d = delta[0];
#pragma unroll
                for (uint32_t j = 1; j < GDN_BLOCK; j++)
                    d = j == i ? delta[j] : d;
                d_delta[(DRAFTS ? ring_row<DRAFTS>(q, g.ring, i) : r) * stride] = d;
            }
        }
    }
    __syncthreads();
    rows_out<ROWS>(a, q, h, m, g, z);
}

/* This column's v of the group after the convolution. */
template <bool DRAFTS>
static __device__ __forceinline__ void column_mix(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct group &g, float *v) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t channel = 2 * shape.gdn_k_heads * h.dk + h.v * h.dv + h.column;
    struct conv_channel<CONV_KERNEL_MAX> c;
    if (h.column >= h.dv)
        return;
    const float *d_v = q.d_in + (uint64_t)g.row * q.width + channel;
    conv_begin<DRAFTS>(c, a, q, g.row, channel);
#pragma unroll
    for (uint32_t r = 0; r < GROUP; r++)
        if (r < g.n)
            v[r] = conv_next(c, shape.conv_kernel, d_v[(uint64_t)r * q.width]);
}

/* --- at the end --- */

/* The group's k into the ring, of an entry with drafts: nobody reads those rows in this step. */
static __device__ void commit_drafts(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m, const struct group &g) {
    if (h.v % h.group != 0)
        return;
    for (uint32_t i = threadIdx.x; i < g.n * h.dk; i += blockDim.x) {
        const uint32_t r = i / h.dk, k = i % h.dk;
        q.d_k[((uint64_t)ring_row<true>(q, g.ring, g.first + r) * a.pool.shape.gdn_k_heads + h.key) * h.dk +
                k] = m.row_k[r * m.pitch + k];
    }
}
/* The entry's rows of the last GDN block into the ring of k, where commit_drafts() has not put them, and the window. */
template <bool DRAFTS>
static __device__ void commit(const struct gdn_args &a, const struct gdn_sequence &q, const struct head &h,
        const struct rows_shared &m, uint32_t ring) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t end = q.pos + q.n_rows, block = (end - 1) / GDN_BLOCK,
                   from = block == q.pos / GDN_BLOCK ? q.pos % GDN_BLOCK : 0,
                   n = DRAFTS && q.n_certain < q.n_rows ? 0 : end - block * GDN_BLOCK - from;
    if (h.column < h.dv)
        window_keep<DRAFTS>(q, shape.conv_kernel, 2 * shape.gdn_k_heads * h.dk + h.v * h.dv + h.column);
    if (!*m.last)
        return;
    for (uint32_t i = threadIdx.x; i < n * h.dk; i += blockDim.x) {
        const uint32_t j = from + i / h.dk, k = i % h.dk;
        q.d_k[((uint64_t)ring_row<DRAFTS>(q, ring, j) * shape.gdn_k_heads + h.key) * h.dk + k] =
                m.k[j * m.pitch + k];
    }
    for (uint32_t i = threadIdx.x; i < 2 * h.dk; i += blockDim.x)
        window_keep<DRAFTS>(
                q, shape.conv_kernel, (i < h.dk ? h.key * h.dk : (shape.gdn_k_heads + h.key - 1) * h.dk) + i);
}

/* --- an entry of several rows --- */

/* The GDN block's earlier rows: k into shared memory (a group of copies), G, and this column's Delta. */
template <bool DRAFTS>
static __device__ __forceinline__ void block_fetch(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m, float *delta) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t first = q.pos % GDN_BLOCK, n = !DRAFTS && first == 0 && q.pos > 0 ? GDN_BLOCK : first;
    for (uint32_t j = threadIdx.x / 32; j < n; j += blockDim.x / 32)
        copy_row(m.k + j * m.pitch,
                q.d_k + ((uint64_t)ring_row<DRAFTS>(q, q.ring, j) * shape.gdn_k_heads + h.key) * h.dk, h.dk,
                h.dk % 4 == 0, threadIdx.x % 32, 32);
    copy_commit();
    if (threadIdx.x < n)
        m.decay[threadIdx.x] =
                q.d_decay[(uint64_t)ring_row<DRAFTS>(q, q.ring, threadIdx.x) * shape.gdn_v_heads + h.v];
    column_deltas<DRAFTS>(a, q, h, q.ring, n, delta);
}
/* The group that begins at row g.row. */
template <bool DRAFTS>
static __device__ __forceinline__ void group_begin(const struct gdn_sequence &q, struct group &g) {
    const uint32_t pos = q.pos + g.row, left = q.n_rows - g.row;
    g.first = pos % GDN_BLOCK;
    g.n = left < GDN_BLOCK - g.first ? left : GDN_BLOCK - g.first;
    g.n = g.n < GROUP ? g.n : GROUP;
    g.fold = g.first == 0 && pos > 0;
    if (!DRAFTS)
        return;
    const bool behind = pos / GDN_BLOCK != q.pos / GDN_BLOCK;
    if (g.first == 0 && g.row > 0) {
        g.ring_before = g.ring;
        g.ring = around(g.ring, GDN_BLOCK, q.ring_rows);
    }
    g.passing = behind && q.n_certain < q.n_rows;
    g.fold = g.passing || (g.first == 0 && behind);
}

/* All rows of an entry for one value head. */
template <class S, uint32_t SLOTS, bool WIDE, bool DRAFTS>
static __device__ __forceinline__ void entry_rows(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct head &h, const struct rows_shared &m) {
    float delta[GDN_BLOCK], v[GROUP];
    struct group g = {};
    if (DRAFTS)
        g.ring = q.ring;
    block_fetch<DRAFTS>(a, q, h, m, delta);
    for (; g.row < q.n_rows; g.row += g.n) {
        group_begin<DRAFTS>(q, g);
        state_begin<S, SLOTS, WIDE>(h, m);
        if (g.row == 0)
            copy_wait<(WIDE ? SLOTS : 0)>(); /* the earlier rows of k; S0 may still be on its way */
        if (g.fold && (!DRAFTS || g.first == 0)) {
            __syncthreads();
            fold_prepare(h, m);
        }
        rows_mix<DRAFTS>(a, q, h, m, g);
        column_mix<DRAFTS>(a, q, h, g, v);
        __syncthreads();
        rows_normalise<DRAFTS>(a, q, h, m, g);
        __syncthreads();
        if (g.row + g.n == q.n_rows && threadIdx.x == 0)
            *m.last = is_last(a, q, h.key, h.group, arrive(a, q, h.key, h.group));
        rows_dots(h, m, g);
        if (g.n == 1)
            group_finish<S, 1, SLOTS, WIDE, DRAFTS>(a, q, h, m, g, v, delta);
        else
            group_finish<S, GROUP, SLOTS, WIDE, DRAFTS>(a, q, h, m, g, v, delta);
        if (DRAFTS && q.n_certain < q.n_rows)
            commit_drafts(a, q, h, m, g);
        for (uint32_t i = threadIdx.x; i < g.n * h.dk; i += blockDim.x)
            m.k[(g.first + i / h.dk) * m.pitch + i % h.dk] = m.row_k[i / h.dk * m.pitch + i % h.dk];
        copy_wait<0>(); /* only empty groups are left */
        __syncthreads();
    }
    commit<DRAFTS>(a, q, h, m, g.ring);
}

/* --- the kernels --- */

static __device__ __forceinline__ struct row_head row_head_of_block() {
    return {blockIdx.y * gridDim.x + blockIdx.x, blockIdx.y, gridDim.x, 0, false};
}
/* How an entry of one row goes beside others: as many warps as its kernel has. */
template <class S, uint32_t SLOTS> struct row_blocks { typedef few_blocks<S> type; };
template <class S> struct row_blocks<S, SLOTS_MANY_BLOCKS> { typedef many_blocks<S> type; };
template <class S> struct row_blocks<S, SLOTS_MANY_DRAFTS> { typedef many_blocks<S> type; };

template <class S, uint32_t SLOTS, bool WIDE, bool DRAFTS>
__global__ void __launch_bounds__(256, (SLOTS == SLOTS_MANY_BLOCKS || SLOTS == SLOTS_MANY_DRAFTS ? 2 : 1))
        gdn_rows_kernel(const struct gdn_args a) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t n_entries = a.batch.d_plan->n_entries;
    const struct gdn_entry e = entry_of(a, blockIdx.z); /* there is one; does the step have it? */
    struct row_head r = row_head_of_block();
    __syncwarp(); /* what is above it is asked for before the branch */
    if (blockIdx.z >= n_entries || e.n_rows > a.rows_most)
        return;
    if (WIDE && e.n_rows == 1 && gdn_has_row(&shape)) {
        typedef typename row_blocks<S, SLOTS>::type blocks;
        struct row_asked<blocks> x = {};
        const struct gdn_sequence q = sequence_of<DRAFTS>(a, e);
        ask_weights<blocks>(x, a, r, q.channels);
        row_entry<blocks, DRAFTS>(x, a, q, r);
        return;
    }
    const struct gdn_sequence q = sequence_of<DRAFTS>(a, e);
    if (WIDE && DRAFTS && few_rows(q) && gdn_has_row(&shape)) {
        few_entry<typename row_blocks<S, SLOTS>::type>(a, q, r);
        return;
    }
    const struct head h = {r.v, r.key, r.group, shape.gdn_k_dim, shape.gdn_v_dim, threadIdx.x,
            (S *)q.d_s0 + (uint64_t)r.v * shape.gdn_k_dim * shape.gdn_v_dim};
    entry_rows<S, SLOTS, WIDE, DRAFTS>(a, q, h, lay_out_shared<S, SLOTS, DRAFTS>(shape));
}
template <class S, bool DRAFTS>
__global__ void __launch_bounds__(256, 1) gdn_row_kernel(const struct gdn_args a) {
    const uint32_t n_entries = a.batch.d_plan->n_entries;
    const struct gdn_sequence q = sequence_of<DRAFTS>(a, 0);
    struct row_head h = row_head_of_block();
    struct row_asked<few_blocks<S>> x = {};
    ask_weights<few_blocks<S>>(x, a, h, q.channels);
    if (n_entries > 0) {
        row_entry<few_blocks<S>, DRAFTS>(x, a, q, h);
        if (a.codes.d_codes)
            row_round<few_blocks<S>>(a, h.v);
    }
}

template <class S, uint32_t SLOTS, bool WIDE, bool DRAFTS>
static cudaError_t launch(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound) {
    const struct k_shape &h = a->pool.shape;
    const uint32_t threads = h.gdn_v_dim > 128 || SLOTS == SLOTS_FEW_BLOCKS ? 256 : 128;
    const size_t bytes = shared_floats<S>(h, SLOTS, DRAFTS) * sizeof(float),
                 of_row = WIDE && gdn_has_row(&h)
                                  ? sizeof(struct row_shared<typename row_blocks<S, SLOTS>::type>)
                                  : 0;
    return K_LAUNCH((gdn_rows_kernel<S, SLOTS, WIDE, DRAFTS>),
            dim3(h.gdn_v_heads / h.gdn_k_heads, h.gdn_k_heads, entries_bound), threads,
            bytes > of_row ? bytes : of_row, s, *a);
}
bool gdn_can_round(const struct k_shape *h, uint32_t rows_bound, const struct device_size *d) {
    return rows_bound == 1 && gdn_has_row(h) && h->gdn_v_heads <= d->sms;
}
template <class S, bool DRAFTS, uint32_t SLOTS_MANY>
static cudaError_t queue_rows(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d) {
    const struct k_shape &h = a->pool.shape;
    if (gdn_can_round(&h, rows_bound, d))
        return K_LAUNCH((gdn_row_kernel<S, DRAFTS>), dim3(h.gdn_v_heads / h.gdn_k_heads, h.gdn_k_heads), 256,
                sizeof(struct row_shared<few_blocks<S>>), s, *a);
    if (h.gdn_v_dim % (16 / sizeof(S)))
        return launch<S, 1, false, DRAFTS>(s, a, entries_bound);
    const size_t all_at_once = shared_floats<S>(h, SLOTS_FEW_BLOCKS, DRAFTS) * sizeof(float);
    if (h.gdn_v_dim <= 128 && (uint64_t)h.gdn_v_heads * entries_bound <= d->sms &&
            all_at_once <= d->shared_of_block)
        return launch<S, SLOTS_FEW_BLOCKS, true, DRAFTS>(s, a, entries_bound);
    return launch<S, SLOTS_MANY, true, DRAFTS>(s, a, entries_bound);
}
template <class S>
static cudaError_t queue_rows_of(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d) {
    if (a->rows.rows)
        return queue_rows<S, true, SLOTS_MANY_DRAFTS>(s, a, entries_bound, rows_bound, d);
    return queue_rows<S, false, SLOTS_MANY_BLOCKS>(s, a, entries_bound, rows_bound, d);
}
cudaError_t queue_gdn_rows(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d) {
    if (a->pool.state_dtype == K_F16)
        return queue_rows_of<struct f16>(s, a, entries_bound, rows_bound, d);
    return queue_rows_of<float>(s, a, entries_bound, rows_bound, d);
}
template <class S, bool DRAFTS, uint32_t SLOTS_MANY> static cudaError_t prepare(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t r = cudaFuncSetAttribute(gdn_rows_kernel<S, 1, false, DRAFTS>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(gdn_rows_kernel<S, SLOTS_FEW_BLOCKS, true, DRAFTS>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(gdn_rows_kernel<S, SLOTS_MANY, true, DRAFTS>, most, shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(gdn_row_kernel<S, DRAFTS>, most, shared_of_block);
    return r;
}
template <class S> static cudaError_t prepare_all(int shared_of_block) {
    const cudaError_t r = prepare<S, false, SLOTS_MANY_BLOCKS>(shared_of_block);
    return r == cudaSuccess ? prepare<S, true, SLOTS_MANY_DRAFTS>(shared_of_block) : r;
}
cudaError_t gdn_prepare(uint32_t shared_of_block) {
    const cudaError_t r = prepare_all<float>((int)shared_of_block);
    return r == cudaSuccess ? prepare_all<struct f16>((int)shared_of_block) : r;
}
