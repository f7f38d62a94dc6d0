/* step.cu - what every row of a step is, and what the step leaves in its slots; rows of embedding tables.
 *
 * The meaning is kernels/cpu/batch.c's. All that is written depends on the plan on the device; bounds only make grids
 * large enough.
 *
 *   begin   a thread a row, 256 a block. Every block looks at all entries for itself, as that is little: 56 bytes an
 *           entry and the length of its slot. A plan beyond its bounds is emptied by the first block; the others see it
 *           as it was or empty, and do nothing either way. Writes 24 bytes a row and a count.
 *   end     a thread an entry.
 *   embed   grid (rows, blocks of 1024 columns), four columns a thread: reads 2 or 4 bytes an element, writes 4.
 *   norms   a block a row: reads it twice, from L2 the second time. The MTP input has two blocks a row, one for each
 *           half. */
#include "kernels/cuda/fault.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/step.h"
#include "kernels/shared/bounds.h"
#include "kernels/shared/counts.h"
#include "kernels/shared/drafts.h"

#define BEGIN_THREADS 256u
#define END_THREADS   64u
#define EMBED_THREADS 256u
#define EMBED_COLUMNS (4u * EMBED_THREADS)

static uint32_t blocks_for(uint32_t n, uint32_t each) {
    return n > each ? (n - 1) / each + 1 : 1;
}

/* --- token counts --- */

/* The id occurred once more. Two counts share a word, and several rows may have one id. */
static __device__ void count_once_more_of(
        const struct pool_view &p, uint32_t slot, uint32_t id, bool generated) {
    const uint64_t at = (uint64_t)slot * p.shape.vocab_size + id;
    uint32_t *d_word = (uint32_t *)p.d_counts + at / 2;
    const uint32_t shift = at % 2 * 16;
    if (!generated) {
        atomicOr(d_word, COUNT_PROMPT << shift);
        return;
    }
    for (uint32_t seen = *d_word, found;; seen = found) {
        const uint32_t count = count_once_more((uint16_t)(seen >> shift), /* generated= */ true);
        found = atomicCAS(d_word, seen, (seen & ~(0xffffu << shift)) | count << shift);
        if (found == seen)
            return;
    }
}

/* --- begin --- */

struct begin_shared {
    struct k_plan plan;
    unsigned long long too_deep; /* 0: nothing is */
    uint32_t too_many; /* the first entry with more drafts than the pool takes; UINT32_MAX: there is none */
};

/* Whether the plan is within its bounds, the same in every thread; otherwise it is a fault, and empty. */
static __device__ bool plan_within(const struct begin_args &a, struct begin_shared *shared) {
    const struct k_plan plan = shared->plan;
    const bool first = blockIdx.x == 0 && threadIdx.x == 0;
    if (plan.n_rows > a.bounds.rows || plan.n_entries > a.bounds.entries) {
        if (first) {
            fault_tell(
                    a.fault, DEVICE_FAULT_ROWS, plan.n_entries, plan.n_rows, a.bounds.entries, a.bounds.rows);
            *a.b.d_plan = {};
        }
        return false;
    }
    unsigned long long deepest = 0;
    for (uint32_t i = threadIdx.x; i < plan.n_entries; i += BEGIN_THREADS) {
        const struct k_entry *d_e = a.b.d_entries + i;
        const uint64_t depth = entry_depth(d_e, a.p.d_slots[d_e->slot].length);
        deepest = depth > deepest ? depth : deepest;
        if (d_e->kind == K_ENTRY_CONTINUE && d_e->n_rows > 1 + a.drafts_max)
            atomicMin(&shared->too_many, i);
    }
    if (deepest > a.bounds.context)
        atomicMax(&shared->too_deep, deepest);
    __syncthreads();
    if (shared->too_deep == 0 && shared->too_many == UINT32_MAX)
        return true;
    if (first) {
        const struct k_entry *d_e = a.b.d_entries + shared->too_many;
        if (shared->too_deep)
            fault_tell(a.fault, DEVICE_FAULT_DEPTH, shared->too_deep, a.bounds.context, 0, 0);
        else
            fault_tell(a.fault, DEVICE_FAULT_DRAFTS, d_e->slot, d_e->n_rows - 1, a.drafts_max, 0);
        *a.b.d_plan = {};
    }
    return false;
}

/* The last entry that begins at the row or before. */
static __device__ uint32_t entry_of_row(const struct batch_view &b, uint32_t n_entries, uint32_t row) {
    uint32_t first = 0, n = n_entries;
    while (n > 1) {
        const uint32_t half = n / 2;
        if (b.d_entries[first + half].row_begin <= row) {
            first += half;
            n -= half;
        } else
            n = half;
    }
    return first;
}

/* The id of row i of an entry. */
static __device__ __forceinline__ uint32_t id_of_row(
        const struct begin_args &a, const struct k_entry &entry, const struct slot *d_slot, uint32_t i) {
    if (entry.kind == K_ENTRY_PROMPT)
        return a.b.d_ids[entry.ids_at + i];
    if (i == 0)
        return d_slot->last_id;
    if (entry.drafts_at != UINT32_MAX)
        return a.b.d_ids[entry.drafts_at + i - 1];
    if (i > d_slot->n_drafts)
        fault_tell(a.fault, DEVICE_FAULT_LEFT, entry.slot, entry.n_rows - 1, d_slot->n_drafts, 0);
    return d_slot->drafts[i - 1];
}
static __device__ void begin_row(const struct begin_args &a, uint32_t row, uint32_t e) {
    const struct k_entry entry = a.b.d_entries[e];
    struct slot *d_slot = a.p.d_slots + entry.slot;
    const bool prompt = entry.kind == K_ENTRY_PROMPT;
    const uint32_t i = row - entry.row_begin, pos = (prompt ? entry.first_pos : d_slot->length) + i;
    uint32_t id = id_of_row(a, entry, d_slot, i);
    if (id >= a.p.shape.vocab_size) {
        fault_tell(a.fault, DEVICE_FAULT_ID, id, a.p.shape.vocab_size, entry.slot, 0);
        id = 0;
    }
    if (prompt)
        count_once_more_of(a.p, entry.slot, id, entry.flags & K_ENTRY_GENERATED);
    else if (i > 0)
        d_slot->drafts[i - 1] = id;
    a.b.d_row_id[row] = id;
    a.b.d_row_pos[row] = pos;
    a.b.d_row_entry[row] = e;
    for (uint32_t j = 0; j < 3; j++)
        a.b.d_row_rope[row * 3 + j] =
                entry.rope_at == UINT32_MAX ? pos : a.b.d_rope[entry.rope_at + i * 3 + j];
}

__global__ void __launch_bounds__(BEGIN_THREADS) begin_kernel(const struct begin_args a) {
    struct begin_shared *shared = (struct begin_shared *)dynamic_shared();
    const uint32_t row = blockIdx.x * BEGIN_THREADS + threadIdx.x;
    if (threadIdx.x == 0) {
        shared->plan = *a.b.d_plan; /* once for all of the block: it may be emptied now */
        shared->too_deep = 0;
        shared->too_many = UINT32_MAX;
    }
    __syncthreads();
    if (!plan_within(a, shared) || row >= shared->plan.n_rows || shared->plan.n_entries == 0)
        return;
    begin_row(a, row, entry_of_row(a.b, shared->plan.n_entries, row));
}
cudaError_t queue_begin(cudaStream_t s, const struct begin_args *a) {
    return K_LAUNCH(begin_kernel, dim3(blocks_for(a->bounds.rows, BEGIN_THREADS)), BEGIN_THREADS,
            sizeof(struct begin_shared), s, *a);
}

/* --- end --- */

__global__ void __launch_bounds__(END_THREADS) end_kernel(const struct end_args a) {
    const uint32_t e = blockIdx.x * END_THREADS + threadIdx.x;
    if (e >= a.b.d_plan->n_entries)
        return;
    const struct k_entry entry = a.b.d_entries[e];
    struct slot *d_slot = a.p.d_slots + entry.slot;
    const bool sampled = entry.flags & K_ENTRY_SAMPLE && a.d_results;
    const uint32_t pos = a.b.d_row_pos[entry.row_begin];
    struct k_outcome outcome = {};
    if (sampled)
        outcome = a.d_outcomes[entry.outcome_at];
    d_slot->length = pos + entry_accepted_row(&entry, &outcome) + 1;
    d_slot->folded = slot_folded(pos, entry_certain_rows(&entry));
    d_slot->pending = sampled;
    d_slot->n_drafts = 0;
    if (!sampled)
        return;
    const struct k_result *d_results = a.d_results + entry.sample_at;
    d_slot->last_id = d_results[outcome.n_accepted].id;
    d_slot->sample_index += outcome.n_samples;
    for (uint32_t i = 0; i <= outcome.n_accepted; i++)
        count_once_more_of(a.p, entry.slot, d_results[i].id, /* generated= */ true);
}
cudaError_t queue_end(cudaStream_t s, const struct end_args *a, uint32_t entries_bound) {
    return K_LAUNCH(end_kernel, dim3(blocks_for(entries_bound, END_THREADS)), END_THREADS, 0, s, *a);
}

/* --- rows of tables --- */

static __device__ __forceinline__ float table_at(const struct table_view &t, uint64_t i) {
    if (t.dtype == K_F32)
        return load_read_only((const float *)t.d_data + i);
    const uint16_t half = load_read_only((const uint16_t *)t.d_data + i);
    return t.dtype == K_BF16 ? float_of_bf16(half) : float_of_f16(half);
}

__global__ void __launch_bounds__(EMBED_THREADS) embed_kernel(const struct embed_args a) {
    const uint32_t row = blockIdx.x, n = a.table.columns;
    if (row >= a.b.d_plan->n_rows)
        return;
    const uint64_t from = (uint64_t)a.b.d_row_id[row] * n;
    float *d_to = a.d_x + (uint64_t)row * n;
#pragma unroll
    for (uint32_t j = 0; j < EMBED_COLUMNS / EMBED_THREADS; j++) {
        const uint32_t k = blockIdx.y * EMBED_COLUMNS + j * EMBED_THREADS + threadIdx.x;
        if (k < n)
            d_to[k] = table_at(a.table, from + k);
    }
}
cudaError_t queue_embed(cudaStream_t s, const struct embed_args *a, uint32_t rows_bound) {
    const dim3 grid(blocks_for(rows_bound, 1), blocks_for(a->table.columns, EMBED_COLUMNS));
    return K_LAUNCH(embed_kernel, grid, EMBED_THREADS, 0, s, *a);
}

/* --- norms of rows --- */

/* d_y[n] = norm(d_x), which may be the same, and d_also[n] if it is not NULL; all of the block call it. */
static __device__ void norm_row(
        const float *d_x, const float *d_norm, float eps, uint32_t n, float *d_y, float *d_also) {
    const float scale = norm_scale(d_x, n, eps, (float *)dynamic_shared());
    for (uint32_t first = threadIdx.x; first < n; first += NORM_BATCH * NORM_THREADS) {
        float y[NORM_BATCH];
#pragma unroll
        for (uint32_t i = 0; i < NORM_BATCH; i++) {
            const uint32_t k = first + i * NORM_THREADS;
            y[i] = k < n ? d_x[k] * scale * load_read_only(d_norm + k) : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < NORM_BATCH; i++) {
            const uint32_t k = first + i * NORM_THREADS;
            if (k < n)
                d_y[k] = y[i];
            if (k < n && d_also)
                d_also[k] = y[i];
        }
    }
}

__global__ void __launch_bounds__(NORM_THREADS) final_norm_kernel(const struct final_args a) {
    const uint32_t row = blockIdx.x, n = a.p.shape.hidden_size;
    if (row >= a.b.d_plan->n_rows)
        return;
    const struct k_entry *d_e = a.b.d_entries + a.b.d_row_entry[row];
    float *d_y = a.d_y + (uint64_t)row * n, *d_hidden = a.p.d_hidden + (uint64_t)d_e->slot * n;
    const bool last = row == d_e->row_begin + d_e->n_rows - 1;
    norm_row(a.d_x + (uint64_t)row * n, a.d_norm, a.eps, n, d_y, last && a.keep ? d_hidden : NULL);
}
cudaError_t queue_final_norm(cudaStream_t s, const struct final_args *a, uint32_t rows_bound) {
    return K_LAUNCH(final_norm_kernel, dim3(blocks_for(rows_bound, 1)), NORM_THREADS,
            NORM_THREADS * sizeof(float), s, *a);
}

/* The id after a row's. */
static __device__ uint32_t next_id(const struct mtp_args &a, uint32_t row) {
    const struct k_entry entry = a.b.d_entries[a.b.d_row_entry[row]];
    const uint32_t i = row - entry.row_begin, from = entry_sampled_from(&entry);
    const bool last = i + 1 == entry.n_rows;
    uint32_t id = last ? 0 : a.b.d_row_id[row + (last ? 0 : 1)];
    if (last && entry.id_after != UINT32_MAX)
        id = entry.id_after;
    else if (entry_samples(&entry) > 0 && i >= from && a.d_results)
        id = a.d_results[entry.sample_at + i - from].id;
    if (id < a.p.shape.vocab_size)
        return id;
    if (threadIdx.x == 0)
        fault_tell(a.fault, DEVICE_FAULT_ID, id, a.p.shape.vocab_size, entry.slot, 0);
    return 0;
}

/* grid (rows, 2): the embedding's half, the hidden row's */
__global__ void __launch_bounds__(NORM_THREADS) mtp_input_kernel(const struct mtp_args a) {
    const uint32_t row = blockIdx.x, n = a.p.shape.hidden_size;
    if (row >= a.b.d_plan->n_rows)
        return;
    float *d_y = a.d_y + (uint64_t)row * 2 * n;
    if (blockIdx.y == 1) {
        norm_row(a.d_hidden + (uint64_t)row * n, a.d_norm_hidden, a.eps, n, d_y + n, NULL);
        return;
    }
    const uint64_t from = (uint64_t)next_id(a, row) * n;
    for (uint32_t k = threadIdx.x; k < n; k += NORM_THREADS)
        d_y[k] = table_at(a.table, from + k);
    __syncthreads();
    norm_row(d_y, a.d_norm_embedding, a.eps, n, d_y, NULL);
}
cudaError_t queue_mtp_input(cudaStream_t s, const struct mtp_args *a, uint32_t rows_bound) {
    return K_LAUNCH(mtp_input_kernel, dim3(blocks_for(rows_bound, 1), 2), NORM_THREADS,
            NORM_THREADS * sizeof(float), s, *a);
}
