/* gdn_fold.cu - what a step of a pool that takes drafts begins with: a GDN block that the slot's accepted rows have
 * completed goes into S0, in all layers at once. The step's own kernels (gdn.cu, gdn_blocks.cu) then find S0 as the
 * state before the block that their first row lies in.
 *
 * A block can be complete without being in S0 since only the next step knows that its last row, a draft, was accepted.
 * One step in 16 tokens of a sequence has something to do here, so the kernel is short where there is nothing: a block
 * reads an entry and its slot, and leaves.
 *
 *   fold  grid (Hk, layers, up to ENTRIES entries at a time): the value heads of a key head one after another, a thread
 *         a column of every (threads / columns)th k. Reads and writes S0 once, 3.1 MB each a layer of the 27B model;
 *         16 fused operations an element in the one order of a fold (kernels/cpu/isa/body_gdn.h). */
#include "kernels/cuda/gdn.cuh"
#include "kernels/cuda/launch.cuh"

#define FOLD_THREADS 256u
#define ENTRIES      16u

struct fold_shared {
    float w[GDN_BLOCK][GDN_DIM_MAX]; /* e^(G_15 - G_j) k_j */
    float fade[GDN_BLOCK];
    float e_g; /* e^G_15 */
};

/* One value head. S: what S0 is kept as (gdn.cuh). ring: row that has the first position of the block. */
template <class S>
static __device__ void fold_head(
        const struct fold_args &a, float *d_state, uint32_t ring, uint32_t v, struct fold_shared *m) {
    const struct k_shape &h = a.pool.shape;
    const struct pool_layout &l = a.pool.layout;
    const uint32_t dk = h.gdn_k_dim, dv = h.gdn_v_dim, key = v / (h.gdn_v_heads / h.gdn_k_heads),
                   columns = (dv + 31) / 32 * 32, column = threadIdx.x % columns,
                   together = FOLD_THREADS / columns;
    const float *d_decay = d_state + l.decay_at + v;
    __syncthreads(); /* the head before is through */
    if (threadIdx.x < GDN_BLOCK) {
        const float last = d_decay[(uint64_t)ring_at(a.rows, ring + GDN_BLOCK - 1) * h.gdn_v_heads],
                    own = d_decay[(uint64_t)ring_at(a.rows, ring + threadIdx.x) * h.gdn_v_heads];
        m->fade[threadIdx.x] = f32_exp(last - own);
        if (threadIdx.x == 0)
            m->e_g = f32_exp(last);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < GDN_BLOCK * dk; i += FOLD_THREADS) {
        const uint32_t j = i / dk, k = i % dk;
        m->w[j][k] = m->fade[j] *
                     d_state[l.k_at + ((uint64_t)ring_at(a.rows, ring + j) * h.gdn_k_heads + key) * dk + k];
    }
    __syncthreads();
    if (column >= dv || threadIdx.x >= together * columns)
        return;
    float delta[GDN_BLOCK];
    S *d_s0 = (S *)(d_state + l.s0_at) + ((uint64_t)v * dk * dv + column);
#pragma unroll
    for (uint32_t j = 0; j < GDN_BLOCK; j++)
        delta[j] =
                d_state[l.delta_at + ((uint64_t)ring_at(a.rows, ring + j) * h.gdn_v_heads + v) * dv + column];
#pragma unroll 4
    for (uint32_t k = threadIdx.x / columns; k < dk; k += together) {
        float s = m->e_g * widen(d_s0[(uint64_t)k * dv]);
#pragma unroll
        for (uint32_t j = 0; j < GDN_BLOCK; j++)
            s = fmaf(m->w[j][k], delta[j], s);
        narrow(s, d_s0 + (uint64_t)k * dv);
    }
}

template <class S> __global__ void __launch_bounds__(FOLD_THREADS) gdn_fold_kernel(const struct fold_args a) {
    const struct k_shape &h = a.pool.shape;
    const struct pool_layout &l = a.pool.layout;
    const uint32_t n_entries = a.batch.d_plan->n_entries, group = h.gdn_v_heads / h.gdn_k_heads;
    struct fold_shared *m = (struct fold_shared *)dynamic_shared();
    for (uint32_t n = blockIdx.z; n < n_entries; n += gridDim.z) {
        const struct k_entry *d_e = a.batch.d_entries + n;
        const uint32_t slot = d_e->slot, pos = a.batch.d_row_pos[d_e->row_begin],
                       folded = a.pool.d_slots[slot].folded;
        if (folded + GDN_BLOCK > pos)
            continue;
        float *d_state = a.pool.d_gdn + slot * l.gdn_slot_floats + blockIdx.y * l.gdn_floats;
        for (uint32_t v = blockIdx.x * group; v < (blockIdx.x + 1) * group; v++)
            fold_head<S>(a, d_state, ring_at(a.rows, folded), v, m);
    }
}
cudaError_t queue_gdn_fold(cudaStream_t s, const struct fold_args *a, uint32_t entries_bound) {
    const struct k_shape &h = a->pool.shape;
    const dim3 grid(h.gdn_k_heads, h.n_gdn_layers, entries_bound < ENTRIES ? entries_bound : ENTRIES);
    if (a->pool.state_dtype == K_F16)
        return K_LAUNCH(gdn_fold_kernel<struct f16>, grid, FOLD_THREADS, sizeof(struct fold_shared), s, *a);
    return K_LAUNCH(gdn_fold_kernel<float>, grid, FOLD_THREADS, sizeof(struct fold_shared), s, *a);
}
