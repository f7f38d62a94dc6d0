/* gdn.cuh - what the kernels of a Gated DeltaNet mixer share: where an entry's state and rows lie, the convolution, dot
 * products and gates, each in the one order of kernels/cpu/isa (body_math.h, body_rows.h).
 *
 * DRAFTS: the pool takes drafts. Then a position lies at its place modulo the rows of the ring and of the window, and
 * S0 is the state before the first row's GDN block, since the step began with its fold (gdn_fold.cu). Without, that
 * block's rows are the ring's first ones, the window is oldest first, and an entry at the beginning of a block folds
 * the one before: what a model without a drafter does is not longer by what drafts need.
 *
 * S: what S0 is kept as, float or struct f16. */
#pragma once

#include "kernels/cuda/gdn.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/shared/constants.h"
#include "kernels/shared/drafts.h"
#include "kernels/shared/elementary.h"

#define ALL_LANES 0xffffffffu
#define CHAINS    16u /* of a dot product: lane l of half a warp takes elements l, l + 16, ... */

struct f16 {
    uint16_t bits;
};
static __device__ __forceinline__ float widen(float x) {
    return x;
}
static __device__ __forceinline__ float widen(struct f16 x) {
    return f32_of_f16(x.bits);
}
static __device__ __forceinline__ void narrow(float x, float *to) {
    *to = x;
}
static __device__ __forceinline__ void narrow(float x, struct f16 *to) {
    to->bits = f16_of_f32(x);
}
/* A number of a fold as S0 has it. */
template <class S> static __device__ __forceinline__ float as_kept(float x) {
    S s;
    narrow(x, &s);
    return widen(s);
}

/* One entry of the plan: its rows, and its slot's state in this layer (struct pool_layout). */
struct gdn_sequence {
    void *d_s0;                            /* [Hv][dk][dv] S */
    float *d_k;                            /* [rows][Hk][dk] */
    float *d_delta;                        /* [rows][Hv][dv] */
    float *d_decay;                        /* [rows][Hv] */
    float *d_window;                       /* [window rows][channels] */
    const float *d_in;                     /* [n_rows][width] qkv | z | b | a */
    float *d_out;                          /* [n_rows][Hv][dv] */
    uint32_t slot, n_rows, row_begin, pos; /* pos: of its first row */
    uint32_t channels, width;
    /* DRAFTS: row of the ring that has the first position of pos's GDN block, of the window that has the oldest
     * position in it; how many both have; rows that will be accepted whatever is sampled */
    uint32_t ring, window, ring_rows, window_rows, n_certain;
};
/* What its entry says of it. */
struct gdn_entry {
    uint32_t slot, n_rows, row_begin, n_certain;
};
static __device__ __forceinline__ struct gdn_entry entry_of(const struct gdn_args &a, uint32_t entry) {
    const struct k_entry &e = a.batch.d_entries[entry];
    return {e.slot, e.n_rows, e.row_begin, entry_certain_rows(&e)};
}
template <bool DRAFTS>
static __device__ __forceinline__ struct gdn_sequence sequence_of(
        const struct gdn_args &a, const struct gdn_entry &e) {
    const struct k_shape &h = a.pool.shape;
    const struct pool_layout &l = a.pool.layout;
    struct gdn_sequence q;
    q.slot = e.slot;
    q.n_rows = e.n_rows;
    q.row_begin = e.row_begin;
    q.pos = a.batch.d_row_pos[q.row_begin];
    q.channels = gdn_channels(&h);
    q.width = q.channels + h.gdn_v_heads * (h.gdn_v_dim + 2);
    float *d_state = a.pool.d_gdn + q.slot * l.gdn_slot_floats + a.layer * l.gdn_floats;
    q.d_s0 = d_state + l.s0_at;
    q.d_k = d_state + l.k_at;
    q.d_delta = d_state + l.delta_at;
    q.d_decay = d_state + l.decay_at;
    q.d_window = d_state + l.conv_at;
    q.d_in = a.d_in + (uint64_t)q.row_begin * q.width;
    q.d_out = a.d_out + (uint64_t)q.row_begin * h.gdn_v_heads * h.gdn_v_dim;
    if (DRAFTS) {
        q.ring = ring_at(a.rows, q.pos / GDN_BLOCK * GDN_BLOCK);
        q.window = ring_at(a.window, q.pos + a.window.rows - (h.conv_kernel - 1));
        q.ring_rows = a.rows.rows;
        q.window_rows = a.window.rows;
        q.n_certain = e.n_certain;
    }
    return q;
}
template <bool DRAFTS>
static __device__ __forceinline__ struct gdn_sequence sequence_of(const struct gdn_args &a, uint32_t entry) {
    return sequence_of<DRAFTS>(a, entry_of(a, entry));
}
/* Row `place` of those that begin at row `first` of a ring of so many. */
static __device__ __forceinline__ uint32_t around(uint32_t first, uint32_t place, uint32_t rows) {
    const uint32_t at = first + place;
    return at >= rows ? at - rows : at;
}
/* The ring's row for position i of the GDN block whose first one lies at row `ring`. */
template <bool DRAFTS>
static __device__ __forceinline__ uint32_t ring_row(const struct gdn_sequence &q, uint32_t ring, uint32_t i) {
    return DRAFTS ? around(ring, i, q.ring_rows) : i;
}

/* A channel of row i of the entry before convolution; negative i lie in the slot's window. */
template <bool DRAFTS>
static __device__ __forceinline__ float pre_conv(
        const struct gdn_sequence &q, uint32_t n_taps, int32_t i, uint32_t channel) {
    const uint32_t place = n_taps - 1 + i;
    return i < 0 ? q.d_window[(DRAFTS ? around(q.window, place, q.window_rows) : place) * q.channels +
                              channel]
                 : q.d_in[(uint64_t)i * q.width + channel];
}
/* One channel of what the window keeps, once the entry is through: the last rows that are certain, and all drafts.
 * Without drafts ascending: a row moves down onto one already read. */
template <bool DRAFTS>
static __device__ __forceinline__ void window_keep(
        const struct gdn_sequence &q, uint32_t n_taps, uint32_t channel) {
    if (DRAFTS) {
        uint32_t i = q.n_certain >= n_taps ? q.n_certain - (n_taps - 1) : 0;
        for (uint32_t at = (q.window + n_taps - 1 + i) % q.window_rows; i < q.n_rows;
                i++, at = around(at, 1, q.window_rows))
            q.d_window[(uint64_t)at * q.channels + channel] = q.d_in[(uint64_t)i * q.width + channel];
    } else {
        for (uint32_t i = 0; i + 1 < n_taps; i++)
            q.d_window[(uint64_t)i * q.channels + channel] =
                    pre_conv<DRAFTS>(q, n_taps, (int32_t)(q.n_rows + i + 1) - (int32_t)n_taps, channel);
    }
}

/* The convolution of one channel over rows that follow each other: up to MAX taps and values, newest last in both. */
template <uint32_t MAX> struct conv_channel { float tap[MAX], x[MAX]; };
template <bool DRAFTS, uint32_t MAX>
static __device__ __forceinline__ void conv_begin(struct conv_channel<MAX> &c, const struct gdn_args &a,
        const struct gdn_sequence &q, uint32_t row, uint32_t channel) {
    const uint32_t n_taps = a.pool.shape.conv_kernel, none = MAX - n_taps;
#pragma unroll
    for (uint32_t t = 0; t < MAX; t++) {
        c.tap[t] = t >= none ? load_read_only(a.w.conv + ((t - none) * q.channels + channel)) : 0.0f;
        c.x[t] = t > none ? pre_conv<DRAFTS>(q, n_taps, (int32_t)(row + t) - (int32_t)MAX, channel) : 0.0f;
    }
}
/* The next row, whose value before the convolution is x. */
template <uint32_t MAX>
static __device__ __forceinline__ float conv_next(struct conv_channel<MAX> &c, uint32_t n_taps, float x) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t t = 0; t + 1 < MAX; t++)
        c.x[t] = c.x[t + 1];
    c.x[MAX - 1] = x;
#pragma unroll
    for (uint32_t t = 0; t < MAX; t++)
        sum = t >= MAX - n_taps ? fmaf(c.tap[t], c.x[t], sum) : sum;
    return f32_silu(sum);
}

/* Sum of a[i] b[i], in every lane of this half of the warp; both halves call it. */
static __device__ __forceinline__ float chains_sum(float acc) {
#pragma unroll
    for (int d = CHAINS / 2; d > 0; d /= 2)
        acc = acc + __shfl_xor_sync(ALL_LANES, acc, d);
    return acc;
}
static __device__ __forceinline__ float half_warp_dot(const float *a, const float *b, uint32_t n) {
    float acc = 0.0f;
#pragma unroll 4
    for (uint32_t i = threadIdx.x % CHAINS; i < n; i += CHAINS)
        acc = fmaf(a[i], b[i], acc);
    return chains_sum(acc);
}
/* a_c = sum of a[i] c[i], b_c = sum of b[i] c[i] */
static __device__ __forceinline__ void half_warp_dots(
        const float *a, const float *b, const float *c, uint32_t n, float *a_c, float *b_c) {
    float sum_a = 0.0f, sum_b = 0.0f;
#pragma unroll 4
    for (uint32_t i = threadIdx.x % CHAINS; i < n; i += CHAINS) {
        sum_a = fmaf(a[i], c[i], sum_a);
        sum_b = fmaf(b[i], c[i], sum_b);
    }
    *a_c = chains_sum(sum_a);
    *b_c = chains_sum(sum_b);
}
/* x = x / sqrt(sum(x^2) + 1e-6) * scale, by half a warp; nothing where n is 0 */
static __device__ __forceinline__ void l2_row(float *x, uint32_t n, float scale) {
    const float inverse = 1.0f / sqrtf(half_warp_dot(x, x, n) + 1e-6f);
    for (uint32_t i = threadIdx.x % CHAINS; i < n; i += CHAINS)
        x[i] = x[i] * inverse * scale;
}
static __device__ __forceinline__ float q_scale(const struct gdn_args &a) {
    return 1.0f / sqrtf((float)a.pool.shape.gdn_k_dim);
}

/* Of a row and value head: g = -exp(a_log) softplus(a + dt_bias), beta = sigmoid(b) */
static __device__ __forceinline__ float gate_from(float a_log, float a, float dt_bias) {
    return 0.0f - f32_exp(a_log) * f32_softplus(a + dt_bias);
}
static __device__ __forceinline__ float gate_of(
        const struct gdn_args &a, const struct gdn_sequence &q, uint32_t row, uint32_t v) {
    const struct k_shape &h = a.pool.shape;
    const float *d_a = q.d_in + (uint64_t)row * q.width + q.channels + h.gdn_v_heads * (h.gdn_v_dim + 1);
    return gate_from(a.w.a_log[v], d_a[v], a.w.dt_bias[v]);
}
static __device__ __forceinline__ float beta_of(
        const struct gdn_args &a, const struct gdn_sequence &q, uint32_t row, uint32_t v) {
    const struct k_shape &h = a.pool.shape;
    return f32_sigmoid(q.d_in[(uint64_t)row * q.width + q.channels + h.gdn_v_heads * h.gdn_v_dim + v]);
}

/* to[n] in shared memory = from[n]; wide: both at multiples of 16 bytes, and n of 4: without waiting. */
static __device__ __forceinline__ void copy_row(
        float *to, const float *d_from, uint32_t n, bool wide, uint32_t thread, uint32_t threads) {
    if (wide)
        for (uint32_t i = thread * 4; i < n; i += threads * 4)
            copy_16(to + i, d_from + i);
    else
        for (uint32_t i = thread; i < n; i += threads)
            to[i] = d_from[i];
}

/* --- what the value heads of a key head share: the last of their blocks to have read it writes it --- */

static __device__ __forceinline__ uint32_t *arrivals_of(
        const struct gdn_args &a, const struct gdn_sequence &q, uint32_t key) {
    return a.pool.d_arrivals + q.slot * a.pool.shape.gdn_k_heads + key;
}
/* One thread, when this block has read all that it shares: how many of its key head's `group` had before? Nothing waits
 * for the answer until it is used. */
static __device__ __forceinline__ uint32_t arrive(
        const struct gdn_args &a, const struct gdn_sequence &q, uint32_t key, uint32_t group) {
    return group == 1 ? 0 : count_by_blocks(arrivals_of(a, q, key));
}
/* The same thread: was this block the last of its key head, which may write what they share? */
static __device__ __forceinline__ bool is_last(const struct gdn_args &a, const struct gdn_sequence &q,
        uint32_t key, uint32_t group, uint32_t before) {
    if (before + 1 < group)
        return false;
    *arrivals_of(a, q, key) = 0;
    return true;
}
