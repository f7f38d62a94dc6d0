/* gdn_blocks.cu - a Gated DeltaNet mixer for entries of many rows (prompts): what is parallel over rows, and a walk
 * over GDN blocks of 16 positions for each value head with its state in shared memory. Bits are those of gdn.cu.
 *
 *   gdn_mix_kernel     grid (16 rows, Hk): the GDN blocks that begin in these rows, of one key head: convolution,
 *                      norms, dot products inside the block, gates; to scratch, v to d_out.
 *   gdn_walk_kernel    grid (long entries, Hv, 32 columns): block by block S0^T [q | k] (a 32 x dk x 32 product, by
 *                      half of the threads, 4 rows and 2 columns each, k ascending; the other half asks for the next
 *                      block's 20 KB and fades meanwhile), the triangle of Deltas (a warp, a lane a column), o, and
 *                      the fold. 3 fused operations for each element of S0 and row: at 48 heads of 128 x 128, 2.4
 *                      million a row.
 *   gdn_norm_kernel    grid (rows, 8 value heads): the gated norm of o, in place.
 *   gdn_keep_kernel    grid (long entries, Hk): rings of k and G and the window, when all have read them.
 *
 * Delta's ring and S0 belong to one block of the walk. */
#include "kernels/cuda/gdn.cuh"
#include "kernels/cuda/launch.cuh"

#define C          GDN_BLOCK
#define COLUMNS    32u /* of a value head, of one block of the walk */
#define X_PITCH    36u /* floats between two k of q | k in shared memory: 16 bytes further in the banks */
#define WALK       256u
#define PRODUCTS   128u /* threads of the walk that multiply; the others fetch and fade meanwhile */
#define FETCH      (WALK - PRODUCTS)
#define MIX        256u
#define NORM_HEADS 8u
#define DOTS       (2 * C * C)

/* The n-th entry that is long; n_entries where there are not as many. In whole warps. */
static __device__ uint32_t long_entry(const struct gdn_args &a, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32, n_entries = a.batch.d_plan->n_entries;
    for (uint32_t first = 0; first < n_entries; first += 32) {
        const bool is_long = first + lane < n_entries && a.batch.d_entries[first + lane].n_rows > a.rows_most;
        uint32_t votes = __ballot_sync(ALL_LANES, is_long);
        const uint32_t here = (uint32_t)__popc(votes);
        if (n >= here) {
            n -= here;
            continue;
        }
        for (; n > 0; n--)
            votes &= votes - 1;
        return first + (uint32_t)__ffs((int)votes) - 1;
    }
    return n_entries;
}
/* One GDN block of an entry: its rows [row, row + n) are positions [first, first + n) of it. */
struct block {
    uint32_t row, first, n;
    uint32_t at; /* in scratch */
};
static __device__ __forceinline__ struct block block_of(const struct gdn_sequence &q, uint32_t row) {
    struct block b;
    b.row = row;
    b.first = (q.pos + row) % C;
    b.n = q.n_rows - row < C - b.first ? q.n_rows - row : C - b.first;
    b.at = GDN_BLOCKS_OF(q.row_begin) + (q.pos + row) / C - q.pos / C;
    return b;
}

/* --- rows --- */

struct mix_shared {
    float *q, *k; /* [C][pitch] by position; pitch is odd: a column of them is all banks */
    float *g;     /* [C][value heads of this key head] */
    uint32_t pitch;
};
static uint32_t mix_shared_floats(const struct k_shape &h) {
    return 2 * C * (h.gdn_k_dim | 1) + C * (h.gdn_v_heads / h.gdn_k_heads);
}

/* One channel of the block's rows: position i to to[i * stride]. All rows are asked for before the first is used. */
template <bool DRAFTS, uint32_t MAX>
static __device__ __forceinline__ void mix_channel(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct block &b, uint32_t channel, float *to, uint32_t stride) {
    const float *d_x = q.d_in + (uint64_t)b.row * q.width + channel;
    struct conv_channel<MAX> c;
    float x[C];
    conv_begin<DRAFTS>(c, a, q, b.row, channel);
#pragma unroll
    for (uint32_t r = 0; r < C; r++, d_x += q.width)
        x[r] = r < b.n ? *d_x : 0.0f;
#pragma unroll
    for (uint32_t r = 0; r < C; r++, to += stride)
        if (r < b.n)
            *to = conv_next(c, a.pool.shape.conv_kernel, x[r]);
}
/* All channels of a key head: q, k and v of its value heads. */
template <bool DRAFTS, uint32_t MAX>
static __device__ __forceinline__ void mix_channels(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct mix_shared &m, const struct block &b, uint32_t key) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t dk = h.gdn_k_dim, n_v = h.gdn_v_heads / h.gdn_k_heads * h.gdn_v_dim,
                   stride = h.gdn_v_heads * h.gdn_v_dim;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < 2 * dk + n_v; i += MIX) {
        if (i < 2 * dk) {
            const uint32_t is_k = i >= dk, at = i - is_k * dk;
            mix_channel<DRAFTS, MAX>(a, q, b, (is_k * h.gdn_k_heads + key) * dk + at,
                    (is_k ? m.k : m.q) + b.first * m.pitch + at, m.pitch);
        } else {
            const uint32_t at = key * n_v + i - 2 * dk;
            mix_channel<DRAFTS, MAX>(
                    a, q, b, 2 * h.gdn_k_heads * dk + at, q.d_out + (uint64_t)b.row * stride + at, stride);
        }
    }
}
static __device__ void mix_normalise(
        const struct gdn_args &a, const struct mix_shared &m, const struct block &b) {
    const uint32_t dk = a.pool.shape.gdn_k_dim, half = threadIdx.x / CHAINS, halves = MIX / CHAINS;
    for (uint32_t first = 0; first < 2 * b.n; first += halves) {
        const uint32_t i = first + half;
        const bool there = i < 2 * b.n, is_q = i < b.n;
        float *x = (is_q ? m.q : m.k) + (b.first + (there ? i % b.n : 0)) * m.pitch;
        l2_row(x, there ? dk : 0, is_q ? q_scale(a) : 1.0f);
    }
}
/* A step of chains_sums(): of 4 D sums, a lane keeps half and gives the other half to the lane D away. */
template <uint32_t D> static __device__ __forceinline__ void give_half(float *sum) {
    const bool high = threadIdx.x & D;
#pragma unroll
    for (uint32_t i = 0; i < 2 * D; i++) {
        const float keep = high ? sum[2 * D + i] : sum[i], give = high ? sum[i] : sum[2 * D + i];
        sum[i] = keep + __shfl_xor_sync(ALL_LANES, give, (int)D);
    }
}
/* chains_sum() of 2 C sums at once: lane l of the half warp has those of 2 l and 2 l + 1, in the first two. */
static __device__ __forceinline__ void chains_sums(float *sum) {
    give_half<8>(sum);
    give_half<4>(sum);
    give_half<2>(sum);
    give_half<1>(sum);
}
/* Half a warp has k_j and adds its products with every q_i and k_i. */
static __device__ void mix_dots(
        const struct gdn_args &a, const struct mix_shared &m, const struct block &b, uint32_t key) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t j = threadIdx.x / CHAINS, i = threadIdx.x % CHAINS;
    float *d_dots = a.scratch.d_dots + ((uint64_t)b.at * h.gdn_k_heads + key) * DOTS + i * C + j;
    float sum[2 * C] = {};
    static_assert(MIX / CHAINS == C && CHAINS == C, "half a warp for each j, and a lane for each i");
#pragma unroll 1
    for (uint32_t e = i; e < h.gdn_k_dim; e += CHAINS) {
        const float k_j = m.k[j * m.pitch + e];
#pragma unroll
        for (uint32_t n = 0; n < C; n++) {
            sum[2 * n] = fmaf(m.q[n * m.pitch + e], k_j, sum[2 * n]);
            sum[2 * n + 1] = fmaf(m.k[n * m.pitch + e], k_j, sum[2 * n + 1]);
        }
    }
    chains_sums(sum);
    const bool there = i >= b.first && i < b.first + b.n && j <= i;
    d_dots[0] = there ? sum[0] : 0.0f;
    d_dots[C * C] = there ? sum[1] : 0.0f;
}
/* g and beta of each position and value head; by the threads that have the fewest channels. */
static __device__ void mix_gates(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct mix_shared &m, const struct block &b, uint32_t key) {
    const uint32_t heads = a.pool.shape.gdn_v_heads, n = heads / a.pool.shape.gdn_k_heads;
    for (uint32_t i = MIX - 1 - threadIdx.x; i < C * n; i += MIX) {
        const uint32_t p = i / n, v = key * n + i % n, row = b.row + p - b.first;
        const bool there = p >= b.first && p < b.first + b.n;
        m.g[i] = there ? gate_of(a, q, row, v) : 0.0f;
        a.scratch.d_gates[((uint64_t)b.at * heads + v) * 2 * C + C + p] =
                there ? beta_of(a, q, row, v) : 0.0f;
    }
}
/* G, from g of all positions. */
template <bool DRAFTS>
static __device__ void mix_decays(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct mix_shared &m, const struct block &b, uint32_t key) {
    const uint32_t heads = a.pool.shape.gdn_v_heads, n = heads / a.pool.shape.gdn_k_heads;
    for (uint32_t i = threadIdx.x; i < n; i += MIX) {
        float *d_g = a.scratch.d_gates + ((uint64_t)b.at * heads + key * n + i) * 2 * C;
        const float *d_decay = q.d_decay + key * n + i; /* of the entry's first block; others begin with 0 */
        float g = b.first > 0 ? d_decay[(uint64_t)ring_row<DRAFTS>(q, q.ring, b.first - 1) * heads] : 0.0f;
        for (uint32_t p = 0; p < C; p++) {
            if (p >= b.first)
                g = p == 0 ? m.g[p * n + i] : g + m.g[p * n + i];
            const float before = p < b.first ? d_decay[(uint64_t)ring_row<DRAFTS>(q, q.ring, p) * heads] : g;
            d_g[p] = p < b.first + b.n ? before : 0.0f;
        }
    }
}
/* One block of one key head. */
template <bool DRAFTS>
static __device__ void mix_block(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct mix_shared &m, const struct block &b, uint32_t key) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t dk = h.gdn_k_dim;
    for (uint32_t j = 0; j < b.first; j++)
        copy_row(m.k + j * m.pitch,
                q.d_k + ((uint64_t)ring_row<DRAFTS>(q, q.ring, j) * h.gdn_k_heads + key) * dk, dk, false,
                threadIdx.x, MIX);
    if (h.conv_kernel <= 4)
        mix_channels<DRAFTS, 4>(a, q, m, b, key);
    else
        mix_channels<DRAFTS, CONV_KERNEL_MAX>(a, q, m, b, key);
    mix_gates(a, q, m, b, key);
    __syncthreads();
    mix_normalise(a, m, b);
    mix_decays<DRAFTS>(a, q, m, b, key);
    __syncthreads();
    mix_dots(a, m, b, key);
    float *d_x = a.scratch.d_x + ((uint64_t)b.at * h.gdn_k_heads + key) * dk * 2 * C;
    for (uint32_t i = threadIdx.x; i < dk * 2 * C; i += MIX) {
        const uint32_t k = i / (2 * C), p = i % C, is_k = i / C % 2;
        const bool there = p < b.first + b.n && (is_k || p >= b.first);
        d_x[i] = there ? (is_k ? m.k : m.q)[p * m.pitch + k] : 0.0f;
    }
    __syncthreads();
}
template <bool DRAFTS> __global__ void __launch_bounds__(MIX, 3) gdn_mix_kernel(const struct gdn_args a) {
    const uint32_t n_rows = a.batch.d_plan->n_rows;
    struct mix_shared m;
    m.pitch = a.pool.shape.gdn_k_dim | 1;
    m.q = (float *)dynamic_shared();
    m.k = m.q + C * m.pitch;
    m.g = m.k + C * m.pitch;
    for (uint32_t first = blockIdx.x * C; first < n_rows; first += gridDim.x * C) {
        const uint32_t row = first + threadIdx.x % C;
        bool begins = false;
        if (row < n_rows) {
            const struct k_entry &e = a.batch.d_entries[a.batch.d_row_entry[row]];
            begins = e.n_rows > a.rows_most && (row == e.row_begin || a.batch.d_row_pos[row] % C == 0);
        }
        for (uint32_t votes = __ballot_sync(ALL_LANES, begins) & 0xffffu; votes; votes &= votes - 1) {
            const uint32_t at = first + (uint32_t)__ffs((int)votes) - 1;
            const struct gdn_sequence q = sequence_of<DRAFTS>(a, a.batch.d_row_entry[at]);
            mix_block<DRAFTS>(a, q, m, block_of(q, at - q.row_begin), blockIdx.y);
        }
    }
}

/* --- the walk --- */

struct stage {    /* of one GDN block, on its way */
    float *x;     /* [dk][X_PITCH] q of 16 i | k of 16 j */
    float *dots;  /* [2][C][C] */
    float *v;     /* [C][COLUMNS], by row */
    float *gates; /* [G of 16 | beta of 16] */
};
struct walk_shared {
    float *s;          /* [dk][COLUMNS] */
    float *products;   /* [q of 16 i | k of 16 i][COLUMNS] S0^T q, S0^T k */
    float *delta;      /* [C][COLUMNS] */
    float *kk, *qk;    /* [j][i], [i][j] of the block, faded */
    float *e_g, *fade; /* [C] e^G_i; at a fold e^(G_15 - G_j) */
};
static __host__ __device__ __forceinline__ uint32_t stage_floats(uint32_t dk) {
    return dk * X_PITCH + DOTS + C * COLUMNS + 2 * C;
}
static __host__ __device__ __forceinline__ uint32_t walk_floats(uint32_t dk) {
    return dk * COLUMNS + 3 * C * COLUMNS + DOTS + 2 * C;
}
static __device__ __forceinline__ struct walk_shared lay_out_walk(float *from, uint32_t dk) {
    struct walk_shared m;
    m.s = from;
    m.products = m.s + dk * COLUMNS;
    m.delta = m.products + 2 * C * COLUMNS;
    m.kk = m.delta + C * COLUMNS;
    m.qk = m.kk + C * C;
    m.e_g = m.qk + C * C;
    m.fade = m.e_g + C;
    return m;
}
static __device__ __forceinline__ struct stage stage_at(float *from, uint32_t dk) {
    struct stage g;
    g.x = from;
    g.dots = g.x + dk * X_PITCH;
    g.v = g.dots + DOTS;
    g.gates = g.v + C * COLUMNS;
    return g;
}

/* This block's head and columns. */
struct walk_head {
    uint32_t v, key, dk, dv, column; /* column: its first */
    void *d_s0;                      /* [dk][dv] S */
};

/* By the threads that do not multiply. */
static __device__ void stage_fetch(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct walk_head &h, const struct block &b, const struct stage &to) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t thread = threadIdx.x - PRODUCTS;
    const uint64_t at = (uint64_t)b.at * shape.gdn_k_heads + h.key;
    const float *d_x = a.scratch.d_x + at * h.dk * 2 * C;
    for (uint32_t i = thread * 4; i < h.dk * 2 * C; i += FETCH * 4)
        copy_16(to.x + i / (2 * C) * X_PITCH + i % (2 * C), d_x + i);
    copy_row(to.dots, a.scratch.d_dots + at * DOTS, DOTS, true, thread, FETCH);
    copy_row(to.gates, a.scratch.d_gates + ((uint64_t)b.at * shape.gdn_v_heads + h.v) * 2 * C, 2 * C, true,
            thread, FETCH);
    const uint32_t stride = shape.gdn_v_heads * h.dv,
                   n = h.dv - h.column < COLUMNS ? h.dv - h.column : COLUMNS;
    for (uint32_t r = thread / 8; r < b.n; r += FETCH / 8)
        copy_row(to.v + r * COLUMNS, q.d_out + (uint64_t)(b.row + r) * stride + h.v * h.dv + h.column, n,
                h.dv % 4 == 0, thread % 8, 8);
}

/* products[row][column] = sum over k of x[k][row] s[k][column] */
static __device__ void walk_products(const struct walk_shared &m, const struct stage &g, uint32_t dk) {
    const uint32_t row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 2;
    float acc[4][2] = {};
#pragma unroll 8
    for (uint32_t k = 0; k < dk; k++) {
        const float4 x = *(const float4 *)(g.x + k * X_PITCH + row);
        const float2 s = *(const float2 *)(m.s + k * COLUMNS + column);
        const float each[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            acc[r][0] = fmaf(s.x, each[r], acc[r][0]);
            acc[r][1] = fmaf(s.y, each[r], acc[r][1]);
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < 4; r++) {
        m.products[(row + r) * COLUMNS + column] = acc[r][0];
        m.products[(row + r) * COLUMNS + column + 1] = acc[r][1];
    }
}
/* What the block's rows have of each other; kk with its row behind, as walk_deltas() takes it. */
static __device__ void walk_fades(const struct walk_shared &m, const struct stage &g) {
    const uint32_t thread = threadIdx.x - PRODUCTS;
    for (uint32_t t = thread; t < C * C; t += FETCH) {
        const uint32_t i = t / C, j = t % C;
        const float fade = j <= i ? f32_exp(g.gates[i] - g.gates[j]) : 0.0f;
        m.qk[t] = fade * g.dots[t];
        m.kk[j * C + i] = fade * g.dots[C * C + t];
    }
    if (thread < C) {
        m.e_g[thread] = f32_exp(g.gates[thread]);
        m.fade[thread] = f32_exp(g.gates[C - 1] - g.gates[thread]);
    }
}
/* Deltas of one column, j by j: as soon as Delta_j is there, every later row takes it. Rows that are not there give
 * what nobody uses. */
static __device__ void walk_deltas(
        const struct walk_shared &m, const struct stage &g, const struct block &b) {
    const uint32_t lane = threadIdx.x;
    float d[C], before[C];
#pragma unroll
    for (uint32_t i = 0; i < C; i++) {
        const uint32_t r = i - b.first;
        before[i] = m.delta[i * COLUMNS + lane];
        const float v = i >= b.first && r < b.n ? g.v[r * COLUMNS + lane] : 0.0f;
        d[i] = fmaf(-m.e_g[i], m.products[(C + i) * COLUMNS + lane], v);
    }
#pragma unroll
    for (uint32_t j = 0; j < C; j++) {
        d[j] = j < b.first ? before[j] : g.gates[C + j] * d[j];
#pragma unroll
        for (uint32_t i = j + 1; i < C; i++)
            d[i] = fmaf(-m.kk[j * C + i], d[j], d[i]);
    }
#pragma unroll
    for (uint32_t j = 0; j < C; j++) /* stored only now, so that all that is read may be read before */
        m.delta[j * COLUMNS + lane] = d[j];
}
/* o of the block's rows; a warp has rows w, w + WARPS, ... */
#define WARPS (WALK / 32)
template <bool DRAFTS>
static __device__ void walk_out(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct walk_head &h, const struct walk_shared &m, const struct block &b) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = h.column + lane;
    const uint64_t stride = (uint64_t)a.pool.shape.gdn_v_heads * h.dv;
    float o[C / WARPS];
#pragma unroll
    for (uint32_t n = 0; n < C / WARPS; n++)
        o[n] = m.e_g[warp + WARPS * n] * m.products[(warp + WARPS * n) * COLUMNS + lane];
#pragma unroll
    for (uint32_t j = 0; j < C; j++) {
        const float delta = m.delta[j * COLUMNS + lane];
#pragma unroll
        for (uint32_t n = j / WARPS; n < C / WARPS; n++)
            if (j <= warp + WARPS * n)
                o[n] = fmaf(m.qk[(warp + WARPS * n) * C + j], delta, o[n]);
    }
    if (column >= h.dv)
        return;
#pragma unroll
    for (uint32_t n = 0; n < C / WARPS; n++) {
        const uint32_t i = warp + WARPS * n, r = b.row + i - b.first;
        if (i < b.first || i >= b.first + b.n)
            continue;
        q.d_out[r * stride + h.v * h.dv + column] = o[n];
        if (r + C >= q.n_rows)
            q.d_delta[(DRAFTS ? ring_at(a.rows, q.pos + r) : i) * stride + h.v * h.dv + column] =
                    m.delta[i * COLUMNS + lane];
    }
}
/* s = e^G_15 s + sum_j (e^(G_15 - G_j) k_j) Delta_j; a thread 4 columns of every 16th k, two of them at a time, both
 * read before the first is written. */
#define FOLD_STRIDE (WALK / 8)
template <class S>
static __device__ void walk_fold(const struct walk_shared &m, const struct stage &g, uint32_t dk) {
    const uint32_t column = threadIdx.x % 8 * 4;
    float4 delta[C];
    float fade[C];
#pragma unroll
    for (uint32_t j = 0; j < C; j++) {
        delta[j] = *(const float4 *)(m.delta + j * COLUMNS + column);
        fade[j] = m.fade[j];
    }
    const float e_g = m.e_g[C - 1];
#pragma unroll 1
    for (uint32_t k = threadIdx.x / 8; k < dk; k += 2 * FOLD_STRIDE) {
        const uint32_t at[2] = {k, k + FOLD_STRIDE < dk ? k + FOLD_STRIDE : k};
        float4 s[2];
        float w[2][C];
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            s[n] = *(const float4 *)(m.s + at[n] * COLUMNS + column);
#pragma unroll
            for (uint32_t j = 0; j < C; j += 4) {
                const float4 x = *(const float4 *)(g.x + at[n] * X_PITCH + C + j);
                w[n][j] = fade[j] * x.x;
                w[n][j + 1] = fade[j + 1] * x.y;
                w[n][j + 2] = fade[j + 2] * x.z;
                w[n][j + 3] = fade[j + 3] * x.w;
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            s[n].x = e_g * s[n].x;
            s[n].y = e_g * s[n].y;
            s[n].z = e_g * s[n].z;
            s[n].w = e_g * s[n].w;
#pragma unroll
            for (uint32_t j = 0; j < C; j++) {
                s[n].x = fmaf(w[n][j], delta[j].x, s[n].x);
                s[n].y = fmaf(w[n][j], delta[j].y, s[n].y);
                s[n].z = fmaf(w[n][j], delta[j].z, s[n].z);
                s[n].w = fmaf(w[n][j], delta[j].w, s[n].w);
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) /* the same again where there is no second */
            *(float4 *)(m.s + at[n] * COLUMNS + column) = {
                    as_kept<S>(s[n].x), as_kept<S>(s[n].y), as_kept<S>(s[n].z), as_kept<S>(s[n].w)};
    }
}

/* The block before the first row, whole, into S0; g: the stage that is not fetched yet, for its k. */
template <class S>
static __device__ void walk_before(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct walk_head &h, const struct walk_shared &m, const struct stage &g) {
    const struct k_shape &shape = a.pool.shape;
    for (uint32_t i = threadIdx.x; i < C * h.dk; i += WALK) {
        const uint32_t j = i / h.dk, k = i % h.dk;
        g.x[k * X_PITCH + C + j] = q.d_k[((uint64_t)j * shape.gdn_k_heads + h.key) * h.dk + k];
    }
    if (threadIdx.x < C) {
        const float last = q.d_decay[(uint64_t)(C - 1) * shape.gdn_v_heads + h.v],
                    own = q.d_decay[(uint64_t)threadIdx.x * shape.gdn_v_heads + h.v];
        m.fade[threadIdx.x] = f32_exp(last - own);
        m.e_g[threadIdx.x] = f32_exp(own);
    }
    __syncthreads();
    walk_fold<S>(m, g, h.dk);
    __syncthreads();
}
/* S0, and the Deltas that the slot has of the first row's block, or, where that begins with it, of the one before. */
template <class S, bool DRAFTS>
static __device__ void walk_begin(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct walk_head &h, const struct walk_shared &m, const struct stage &g) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t first = q.pos % C, lane = threadIdx.x % 32, column = h.column + lane;
    const bool whole = !DRAFTS && first == 0 && q.pos > 0;
    for (uint32_t k = threadIdx.x / 32; k < h.dk; k += WALK / 32)
        m.s[k * COLUMNS + lane] = column < h.dv ? widen(((S *)h.d_s0)[(uint64_t)k * h.dv + column]) : 0.0f;
    for (uint32_t j = threadIdx.x / 32; j < C; j += WALK / 32)
        m.delta[j * COLUMNS + lane] =
                (whole || j < first) && column < h.dv
                        ? q.d_delta[((uint64_t)ring_row<DRAFTS>(q, q.ring, j) * shape.gdn_v_heads + h.v) *
                                            h.dv +
                                    column]
                        : 0.0f;
    if (whole)
        walk_before<S>(a, q, h, m, g);
}
template <class S> static __device__ void walk_end(const struct walk_head &h, const struct walk_shared &m) {
    const uint32_t lane = threadIdx.x % 32, column = h.column + lane;
    if (column < h.dv)
        for (uint32_t k = threadIdx.x / 32; k < h.dk; k += WALK / 32)
            narrow(m.s[k * COLUMNS + lane], (S *)h.d_s0 + ((uint64_t)k * h.dv + column));
}

template <class S, uint32_t STAGES, bool DRAFTS>
static __device__ __forceinline__ void walk(const struct gdn_args &a, const struct gdn_sequence &q,
        const struct walk_head &h, const struct walk_shared &m, float *stages) {
    struct block b = block_of(q, 0);
    walk_begin<S, DRAFTS>(a, q, h, m, stage_at(stages, h.dk));
    bool folded = !DRAFTS && q.pos > 0 && b.first == 0;
    const bool multiplies = threadIdx.x < PRODUCTS;
    if (!multiplies)
        stage_fetch(a, q, h, b, stage_at(stages, h.dk));
    copy_commit();
    for (uint32_t n = 0;; n++) {
        const struct stage g = stage_at(stages + n % STAGES * stage_floats(h.dk), h.dk);
        const uint32_t next = b.row + b.n;
        const bool more = next < q.n_rows;
        copy_wait<0>();
        __syncthreads(); /* this stage is there, and the other one and the Deltas before are used */
        if (!multiplies && STAGES > 1 && more)
            stage_fetch(a, q, h, block_of(q, next),
                    stage_at(stages + (n + 1) % STAGES * stage_floats(h.dk), h.dk));
        copy_commit();
        if (multiplies)
            walk_products(m, g, h.dk);
        else
            walk_fades(m, g);
        __syncthreads();
        if (threadIdx.x < 32)
            walk_deltas(m, g, b);
        __syncthreads();
        walk_out<DRAFTS>(a, q, h, m, b);
        if (!more)
            break;
        walk_fold<S>(m, g, h.dk);
        folded = true;
        b = block_of(q, next);
        if (STAGES == 1) {
            __syncthreads();
            if (!multiplies)
                stage_fetch(a, q, h, b, g);
            copy_commit();
        }
    }
    if (folded)
        walk_end<S>(h, m);
}
template <class S, uint32_t STAGES, bool DRAFTS>
__global__ void __launch_bounds__(WALK, 2) gdn_walk_kernel(const struct gdn_args a) {
    const struct k_shape &shape = a.pool.shape;
    const uint32_t dk = shape.gdn_k_dim, v = blockIdx.y, n_entries = a.batch.d_plan->n_entries;
    float *shared = (float *)dynamic_shared();
    const struct walk_shared m = lay_out_walk(shared, dk);
    for (uint32_t n = blockIdx.x;; n += gridDim.x) {
        const uint32_t entry = long_entry(a, n);
        if (entry >= n_entries)
            return;
        const struct gdn_sequence q = sequence_of<DRAFTS>(a, entry);
        const struct walk_head h = {v, v / (shape.gdn_v_heads / shape.gdn_k_heads), dk, shape.gdn_v_dim,
                blockIdx.z * COLUMNS, (S *)q.d_s0 + (uint64_t)v * dk * shape.gdn_v_dim};
        walk<S, STAGES, DRAFTS>(a, q, h, m, shared + walk_floats(dk));
        __syncthreads();
    }
}

/* --- after it --- */

/* A warp a row and value head; PARTS: of CHAINS columns, at most. Both halves of a warp have all of o, as the sum's
 * order wants it, and write every other part. */
template <uint32_t PARTS>
__global__ void __launch_bounds__(NORM_HEADS * 32) gdn_norm_kernel(const struct gdn_args a) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t v = blockIdx.y * NORM_HEADS + threadIdx.x / 32, lane = threadIdx.x % 32, dv = h.gdn_v_dim,
                   channels = gdn_channels(&h), width = channels + h.gdn_v_heads * (dv + 2),
                   n_rows = a.batch.d_plan->n_rows;
    for (uint32_t row = blockIdx.x; row < n_rows && v < h.gdn_v_heads; row += gridDim.x) {
        float *d_o = a.d_out + ((uint64_t)row * h.gdn_v_heads + v) * dv;
        const float *d_z = a.d_in + (uint64_t)row * width + channels + v * dv;
        const uint32_t entry = a.batch.d_row_entry[row];
        float o[PARTS], z[PARTS / 2], w[PARTS / 2], acc = 0.0f;
#pragma unroll
        for (uint32_t t = 0; t < PARTS; t++)
            o[t] = lane % CHAINS + t * CHAINS < dv ? d_o[lane % CHAINS + t * CHAINS] : 0.0f;
#pragma unroll
        for (uint32_t t = 0; t < PARTS / 2; t++) {
            z[t] = lane + t * 32 < dv ? d_z[lane + t * 32] : 0.0f;
            w[t] = lane + t * 32 < dv ? load_read_only(a.w.norm + lane + t * 32) : 0.0f;
        }
        ask_above();
        if (a.batch.d_entries[entry].n_rows <= a.rows_most)
            continue;
#pragma unroll
        for (uint32_t t = 0; t < PARTS; t++)
            acc = fmaf(o[t], o[t], acc);
        const float scale = 1.0f / sqrtf(chains_sum(acc) / (float)dv + h.rms_eps);
#pragma unroll
        for (uint32_t t = 0; t < PARTS / 2; t++)
            if (lane + t * 32 < dv)
                d_o[lane + t * 32] =
                        (lane < CHAINS ? o[2 * t] : o[2 * t + 1]) * scale * w[t] * f32_silu(z[t]);
    }
}

/* The last rows of a long entry into the rings of k and G, and the window. */
template <bool DRAFTS>
static __device__ void keep(const struct gdn_args &a, const struct gdn_sequence &q, uint32_t key) {
    const struct k_shape &h = a.pool.shape;
    const uint32_t dk = h.gdn_k_dim, per_key = h.gdn_v_heads / h.gdn_k_heads, n_v = per_key * h.gdn_v_dim;
    for (uint32_t t = 0; t < C; t++) {
        const uint32_t row = q.n_rows - C + t, i = (q.pos + row) % C, at = block_of(q, row).at,
                       to = DRAFTS ? ring_at(a.rows, q.pos + row) : i;
        const float *d_x = a.scratch.d_x + ((uint64_t)at * h.gdn_k_heads + key) * dk * 2 * C + C + i;
        for (uint32_t k = threadIdx.x; k < dk; k += blockDim.x)
            q.d_k[((uint64_t)to * h.gdn_k_heads + key) * dk + k] = d_x[k * 2 * C];
        for (uint32_t v = key * per_key + threadIdx.x; v < (key + 1) * per_key; v += blockDim.x)
            q.d_decay[(uint64_t)to * h.gdn_v_heads + v] =
                    a.scratch.d_gates[((uint64_t)at * h.gdn_v_heads + v) * 2 * C + i];
    }
    for (uint32_t c = threadIdx.x; c < dk; c += blockDim.x) {
        window_keep<DRAFTS>(q, h.conv_kernel, key * dk + c);
        window_keep<DRAFTS>(q, h.conv_kernel, (h.gdn_k_heads + key) * dk + c);
    }
    for (uint32_t c = threadIdx.x; c < n_v; c += blockDim.x)
        window_keep<DRAFTS>(q, h.conv_kernel, 2 * h.gdn_k_heads * dk + key * n_v + c);
}
template <bool DRAFTS> __global__ void gdn_keep_kernel(const struct gdn_args a) {
    const uint32_t n_entries = a.batch.d_plan->n_entries;
    for (uint32_t n = blockIdx.x;; n += gridDim.x) {
        const uint32_t entry = long_entry(a, n);
        if (entry >= n_entries)
            return;
        keep<DRAFTS>(a, sequence_of<DRAFTS>(a, entry), blockIdx.y);
    }
}

/* --- launches: blocks go around where a step may have more than the device --- */

static uint32_t at_most(uint32_t n, uint32_t most) {
    return n < most ? n : most;
}

template <uint32_t STAGES> static uint32_t walk_bytes(const struct k_shape &h) {
    return (walk_floats(h.gdn_k_dim) + STAGES * stage_floats(h.gdn_k_dim)) * (uint32_t)sizeof(float);
}
#define WALK_RESERVED 1024u /* shared memory that every block of an SM takes besides */
/* Two blocks on an SM hide each other's latencies; where there is room for it, the next block's arrival as well. */
template <class S, bool DRAFTS>
static cudaError_t queue_walk(
        cudaStream_t s, const struct gdn_args *a, uint32_t longs, const struct device_size *d) {
    const struct k_shape &h = a->pool.shape;
    const dim3 grid(longs, h.gdn_v_heads, (h.gdn_v_dim + COLUMNS - 1) / COLUMNS);
    if (2 * (walk_bytes<2>(h) + WALK_RESERVED) <= d->shared_of_sm)
        return K_LAUNCH((gdn_walk_kernel<S, 2, DRAFTS>), grid, WALK, walk_bytes<2>(h), s, *a);
    return K_LAUNCH((gdn_walk_kernel<S, 1, DRAFTS>), grid, WALK, walk_bytes<1>(h), s, *a);
}
static cudaError_t queue_norm(cudaStream_t s, const struct gdn_args *a, uint32_t rows) {
    const struct k_shape &h = a->pool.shape;
    const dim3 grid(rows, (h.gdn_v_heads + NORM_HEADS - 1) / NORM_HEADS);
    if (h.gdn_v_dim <= 8 * CHAINS)
        return K_LAUNCH(gdn_norm_kernel<8>, grid, NORM_HEADS * 32, 0, s, *a);
    return K_LAUNCH(gdn_norm_kernel<GDN_DIM_MAX / CHAINS>, grid, NORM_HEADS * 32, 0, s, *a);
}
template <bool DRAFTS>
static cudaError_t queue_blocks(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d) {
    const struct k_shape &h = a->pool.shape;
    const uint32_t longs = at_most(rows_bound / (GDN_LONG + 1), at_most(entries_bound, d->sms));
    cudaError_t r =
            K_LAUNCH(gdn_mix_kernel<DRAFTS>, dim3(at_most((rows_bound + C - 1) / C, d->sms), h.gdn_k_heads),
                    MIX, mix_shared_floats(h) * sizeof(float), s, *a);
    if (r == cudaSuccess)
        r = a->pool.state_dtype == K_F16 ? queue_walk<struct f16, DRAFTS>(s, a, longs, d)
                                         : queue_walk<float, DRAFTS>(s, a, longs, d);
    if (r == cudaSuccess)
        r = queue_norm(s, a, at_most(rows_bound, 4 * d->sms));
    if (r == cudaSuccess)
        r = K_LAUNCH(gdn_keep_kernel<DRAFTS>, dim3(longs, h.gdn_k_heads), 128, 0, s, *a);
    return r;
}
cudaError_t queue_gdn_blocks(cudaStream_t s, const struct gdn_args *a, uint32_t entries_bound,
        uint32_t rows_bound, const struct device_size *d) {
    if (a->rows.rows)
        return queue_blocks<true>(s, a, entries_bound, rows_bound, d);
    return queue_blocks<false>(s, a, entries_bound, rows_bound, d);
}
template <class S, bool DRAFTS> static cudaError_t prepare_walk(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t r = cudaFuncSetAttribute(gdn_walk_kernel<S, 1, DRAFTS>, most, shared_of_block);
    return r == cudaSuccess ? cudaFuncSetAttribute(gdn_walk_kernel<S, 2, DRAFTS>, most, shared_of_block) : r;
}
template <bool DRAFTS> static cudaError_t prepare(int shared_of_block) {
    const enum cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t r = prepare_walk<float, DRAFTS>(shared_of_block);
    if (r == cudaSuccess)
        r = prepare_walk<struct f16, DRAFTS>(shared_of_block);
    if (r == cudaSuccess)
        r = cudaFuncSetAttribute(gdn_mix_kernel<DRAFTS>, most, shared_of_block);
    return r;
}
cudaError_t gdn_blocks_prepare(uint32_t shared_of_block) {
    const cudaError_t r = prepare<false>((int)shared_of_block);
    return r == cudaSuccess ? prepare<true>((int)shared_of_block) : r;
}
