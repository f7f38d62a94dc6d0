/* draft.cu - the batch in which the MTP layer makes drafts, and what it leaves in the slots; the meaning is
 * kernels/cpu/draft.c's.
 *
 *   begin  grid (rows of the drafts' batch): a block finds its entry among the step's, as collect.cu does, and copies a
 *          hidden row of 20 KB. Block 0 also says how many there are.
 *   take   a thread a row.
 *   widen  grid (1024 ids each, rows of a round): four ids a thread. Reads 4 bytes an id and writes as many; what it
 *          looks up, some 100 KB a row, stays in L2. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/select.cuh"
#include "kernels/cuda/step.h"
#include "kernels/shared/drafts.h"

struct draft_shared {
    struct block_shared block;
    uint32_t entry; /* of the step, that row blockIdx.x goes on behind; UINT32_MAX: there are fewer */
};

/* Finds this block's entry; returns how many there are. */
static __device__ uint32_t find_entry(const struct draft_args &a, struct draft_shared *shared) {
    const uint32_t n = a.b.d_plan->n_entries;
    uint64_t before = 0, total;
    for (uint32_t first = 0; first < n; first += BLOCK_THREADS) {
        const uint32_t i = first + threadIdx.x;
        const bool asks =
                i < n && a.b.d_entries[i].n_draft_next > 0 && a.b.d_entries[i].flags & K_ENTRY_SAMPLE;
        const uint64_t at = before + block_before(asks, &shared->block, &total);
        before += total;
        if (asks && at == blockIdx.x)
            shared->entry = i;
    }
    __syncthreads();
    return (uint32_t)before;
}

/* Row `row` of the drafts goes on behind row `from` of the step, the last accepted one of entry e. */
static __device__ void begin_row(
        const struct draft_args &a, const struct k_entry &e, uint32_t row, uint32_t from) {
    const struct slot *d_slot = a.p.d_slots + e.slot;
    struct k_entry draft = {};
    draft.slot = e.slot;
    draft.kind = K_ENTRY_CONTINUE;
    draft.flags = K_ENTRY_SAMPLE | K_ENTRY_DRAFT;
    draft.n_rows = 1;
    draft.row_begin = draft.sample_at = row;
    draft.id_after = draft.rope_at = draft.top_logprobs = draft.drafts_at = UINT32_MAX;
    draft.n_draft_next = e.n_draft_next;
    a.d.d_entries[row] = draft;
    a.d.d_row_id[row] = d_slot->last_id;
    a.d.d_row_pos[row] = d_slot->length - 1;
    a.d.d_row_entry[row] = row;
    for (uint32_t axis = 0; axis < 3; axis++)
        a.d.d_row_rope[3 * row + axis] = a.b.d_row_rope[3 * from + axis];
}

__global__ void __launch_bounds__(BLOCK_THREADS) draft_begin_kernel(const struct draft_args a) {
    struct draft_shared *shared = (struct draft_shared *)dynamic_shared();
    const uint32_t row = blockIdx.x, h = a.p.shape.hidden_size;
    if (threadIdx.x == 0)
        shared->entry = UINT32_MAX;
    __syncthreads();
    const uint32_t all = find_entry(a, shared), n = all < a.drafts_max ? all : a.drafts_max;
    if (row == 0 && threadIdx.x == 0) {
        struct k_plan plan = {};
        plan.n_entries = plan.n_rows = plan.n_samples = n;
        *a.d.d_plan = plan;
    }
    if (row >= n)
        return;
    const struct k_entry e = a.b.d_entries[shared->entry];
    const uint32_t from =
            e.row_begin + entry_accepted_row(&e, a.d_outcomes ? a.d_outcomes + e.outcome_at : NULL);
    if (threadIdx.x == 0)
        begin_row(a, e, row, from);
    for (uint32_t k = threadIdx.x; k < h; k += BLOCK_THREADS)
        a.d_draft_hidden[(uint64_t)row * h + k] = a.d_hidden[(uint64_t)from * h + k];
}
cudaError_t queue_draft_begin(cudaStream_t s, const struct draft_args *a) {
    return K_LAUNCH(
            draft_begin_kernel, dim3(a->drafts_max), BLOCK_THREADS, sizeof(struct draft_shared), s, *a);
}

/* Whether the MTP layer may store an entry at this index. */
static __device__ bool has_page(const struct pool_view &p, uint32_t slot, uint32_t index) {
    const uint32_t page = index / PAGE_TOKENS, n = p.pages_per_slot;
    return page < n && p.d_tables[(uint64_t)slot * n + page] != 0;
}
/* The row is nobody's from here on: the layer stores what it makes of it in the dummy page. Where it stood its entry
 * would be put over one of a token that is known. */
static __device__ void park(const struct draft_args &a, uint32_t row) {
    a.d.d_entries[row].slot = a.d.d_entries[row].n_draft_next = 0;
    a.d.d_row_pos[row] = 0;
    for (uint32_t axis = 0; axis < 3; axis++)
        a.d.d_row_rope[3 * row + axis] = 0;
}
__global__ void __launch_bounds__(BLOCK_THREADS) draft_take_kernel(const struct draft_args a) {
    const uint32_t row = blockIdx.x * BLOCK_THREADS + threadIdx.x;
    if (row >= a.d.d_plan->n_rows)
        return;
    const struct k_entry *d_e = a.d.d_entries + row;
    struct slot *d_slot = a.p.d_slots + d_e->slot;
    const uint32_t most = d_e->n_draft_next < DRAFT_MAX ? d_e->n_draft_next : DRAFT_MAX;
    const uint32_t n = d_slot->n_drafts, id = a.d_results[row].id;
    if (n >= most)
        return;
    d_slot->drafts[n] = a.d.d_row_id[row] = id;
    if (!has_page(a.p, d_e->slot, a.d.d_row_pos[row] + 2)) {
        for (uint32_t k = n + 1; k < most; k++)
            d_slot->drafts[k] = id;
        d_slot->n_drafts = most;
        park(a, row);
        return;
    }
    d_slot->n_drafts = n + 1;
    a.d.d_row_pos[row]++;
    for (uint32_t axis = 0; axis < 3; axis++)
        a.d.d_row_rope[3 * row + axis]++;
}
#define WIDEN_IDS (4 * BLOCK_THREADS) /* of a block */
__global__ void __launch_bounds__(BLOCK_THREADS) widen_kernel(const struct widen_args a) {
    const uint32_t row = blockIdx.y, first = blockIdx.x * WIDEN_IDS + threadIdx.x;
    if (row >= a.d_round->n_rows)
        return;
    const float *d_from = a.d_from + (uint64_t)row * a.n;
    float *d_to = a.d_to + (uint64_t)row * a.vocab;
#pragma unroll
    for (uint32_t id = first; id < first + WIDEN_IDS; id += BLOCK_THREADS) {
        const uint32_t place = id < a.vocab ? a.d_place[id] : UINT32_MAX;
        if (id < a.vocab)
            d_to[id] = place < a.n ? d_from[place] : K_DRAFT_ABSENT;
    }
}
cudaError_t queue_widen(cudaStream_t s, const struct widen_args *a, uint32_t rows_bound) {
    return K_LAUNCH(
            widen_kernel, dim3((a->vocab + WIDEN_IDS - 1) / WIDEN_IDS, rows_bound), BLOCK_THREADS, 0, s, *a);
}

cudaError_t queue_draft_take(cudaStream_t s, const struct draft_args *a) {
    return K_LAUNCH(draft_take_kernel, dim3((a->drafts_max + BLOCK_THREADS - 1) / BLOCK_THREADS),
            BLOCK_THREADS, 0, s, *a);
}
