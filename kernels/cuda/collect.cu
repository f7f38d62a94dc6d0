/* collect.cu - the rows of a step that somebody wants logits of, as rows of a round: which they are, and their hidden
 * vectors one after another.
 *
 *   collect  grid (rows of the round). Every block counts the wanted rows of all entries, a thread an entry, and copies
 *            the one that is its own: nothing has to be known before, and there are few entries. Block 0 also says how
 *            many rows the round has. Reads 60 bytes an entry in every block, moves 8 bytes an element of hidden. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/select.cuh"
#include "kernels/shared/drafts.h"

#define COPIED 10u /* elements of a thread that are loaded before the first is stored */

struct collect_shared {
    struct block_shared block;
    struct head_row row;
    uint32_t found;
};

static __device__ __forceinline__ uint32_t rows_asked(const struct k_entry &e) {
    return e.flags & K_ENTRY_LOGITS_ALL ? e.n_rows : e.flags & K_ENTRY_LOGITS ? 1 : 0;
}
/* The first rows of an entry that are wanted: scored, or of those whose logits find room. */
static __device__ __forceinline__ uint32_t first_wanted(const struct k_entry &e, uint32_t asked) {
    return e.flags & K_ENTRY_LOGITS_ALL && asked > e.n_scores ? asked : e.n_scores;
}
/* Rows of an entry that are wanted. asked: those whose logits find room, the first ones, or the last alone. */
static __device__ __forceinline__ uint32_t rows_wanted(const struct k_entry &e, uint32_t asked) {
    const uint32_t sampled = entry_samples(&e), first = first_wanted(e, asked), left = e.n_rows - first,
                   last = e.flags & K_ENTRY_LOGITS_ALL || sampled > asked ? sampled : asked;
    return first + (last < left ? last : left);
}
/* Row j of the `wanted` ones of an entry. logits_at: of the first of them whose logits are asked for. */
static __device__ struct head_row wanted_row(const struct collect_args &a, const struct k_entry &e,
        uint32_t entry, uint32_t j, uint32_t wanted, uint32_t asked, uint32_t logits_at) {
    const bool all = e.flags & K_ENTRY_LOGITS_ALL;
    const uint32_t in = j < first_wanted(e, asked) ? j : e.n_rows - (wanted - j),
                   unsampled = e.n_rows - entry_samples(&e);
    struct head_row r;
    r.row = e.row_begin + in;
    r.entry = entry;
    r.sampled = in >= unsampled;
    r.scored = in < e.n_scores;
    r.result = e.sample_at + (r.scored ? in - e.n_scores : in - unsampled);
    r.id = in + 1 == e.n_rows ? e.id_after : a.d_row_id[r.row + 1];
    r.mask = r.sampled ? entry_mask(&e, in - unsampled) : UINT32_MAX;
    r.position = entry_sample_position(&e, a.d_row_pos[r.row]);
    r.n_drafts = entry_drafts_before(&e, r.position, a.d_slots[e.slot].length);
    r.logits_at = all ? (in < asked ? logits_at + in : UINT32_MAX)
                      : (asked && in == e.n_rows - 1 ? logits_at : UINT32_MAX);
    return r;
}

/* Finds row number `wanted` of all; returns how many there are. */
static __device__ uint64_t find_row(
        const struct collect_args &a, uint32_t wanted, struct collect_shared *shared) {
    const uint32_t n = a.d_plan->n_entries;
    uint64_t asked_before = 0, rows_before = 0, total;
    for (uint32_t first = 0; first < n; first += BLOCK_THREADS) {
        const uint32_t i = first + threadIdx.x;
        struct k_entry e = {};
        if (i < n)
            e = a.d_entries[i];
        uint32_t asked = rows_asked(e);
        const uint64_t logits_at = asked_before + block_before(asked, &shared->block, &total),
                       room = logits_at < a.logits_rows_max ? a.logits_rows_max - logits_at : 0;
        asked_before += total;
        asked = asked < room ? asked : (uint32_t)room;
        const uint32_t rows = rows_wanted(e, asked);
        const uint64_t at = rows_before + block_before(rows, &shared->block, &total);
        rows_before += total;
        if (at <= wanted && wanted < at + rows) {
            shared->row = wanted_row(a, e, i, (uint32_t)(wanted - at), rows, asked, (uint32_t)logits_at);
            shared->found = 1;
        }
    }
    return rows_before;
}

__global__ void __launch_bounds__(BLOCK_THREADS) collect_kernel(const struct collect_args a) {
    struct collect_shared *shared = (struct collect_shared *)dynamic_shared();
    const uint32_t i = blockIdx.x;
    if (threadIdx.x == 0)
        shared->found = 0;
    __syncthreads();
    const uint64_t all = find_row(a, a.first + i, shared);
    __syncthreads();
    if (i == 0 && threadIdx.x == 0) {
        struct k_plan round = {};
        const uint64_t left = all > a.first ? all - a.first : 0;
        round.n_rows = left < HEAD_ROWS ? (uint32_t)left : HEAD_ROWS;
        *a.d_round = round;
    }
    if (!shared->found)
        return;
    if (threadIdx.x == 0) {
        const struct sample_state none = {};
        a.d_rows[i] = shared->row;
        a.d_states[i] = none;
    }
    for (uint32_t k = threadIdx.x; k < MASS_BINS && shared->row.sampled; k += BLOCK_THREADS)
        a.d_masses[(uint64_t)i * MASS_BINS + k] = 0;
    const float *d_from = a.d_hidden + (uint64_t)shared->row.row * a.hidden_size;
    float *d_to = a.d_x + (uint64_t)i * a.hidden_size;
    for (uint32_t first = threadIdx.x; first < a.hidden_size; first += COPIED * BLOCK_THREADS) {
        float x[COPIED];
#pragma unroll
        for (uint32_t c = 0; c < COPIED; c++)
            x[c] = first + c * BLOCK_THREADS < a.hidden_size ? d_from[first + c * BLOCK_THREADS] : 0.0f;
#pragma unroll
        for (uint32_t c = 0; c < COPIED; c++)
            if (first + c * BLOCK_THREADS < a.hidden_size)
                d_to[first + c * BLOCK_THREADS] = x[c];
    }
}
cudaError_t queue_collect(cudaStream_t s, const struct collect_args *a, uint32_t rows_bound) {
    return K_LAUNCH(collect_kernel, rows_bound, BLOCK_THREADS, sizeof(struct collect_shared), s, *a);
}
