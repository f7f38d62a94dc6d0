/* slots.cu - kernels between steps: what a snapshot says of a slot, pages and page units.
 *
 * Page units are pinned memory that a kernel reads and writes over the bus, 16 bytes a thread, so that an operation is
 * one node and not a copy for every layer.
 *
 *   snapshot  a thread 32 ids: reads 64 bytes of counts, writes one word of the unit
 *   restore   the same, the other way around
 *   page      grid (SPREAD, layers): 32 KB to 1 MB a layer */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/slots.h"
#include "kernels/shared/counts.h"

#define SLOT_THREADS 256u
#define SPREAD       8u /* blocks that share a layer of a page */

/* --- snapshots --- */

static uint32_t seen_words(const struct pool_view *p) {
    return (uint32_t)((p->layout.unit_gdn_at - p->layout.unit_seen_at) / sizeof(uint32_t));
}

__global__ void snapshot_kernel(const struct unit_args a, uint32_t n_words) {
    const uint32_t word = blockIdx.x * SLOT_THREADS + threadIdx.x, v = a.p.shape.vocab_size;
    const struct slot *d_slot = a.p.d_slots + a.slot;
    const uint16_t *d_counts = a.p.d_counts + (uint64_t)a.slot * v;
    uint32_t bits = 0;
    if (word >= n_words)
        return;
    for (uint32_t i = 0; i < 32 && word * 32 + i < v; i++) {
        const uint32_t id = word * 32 + i;
        const bool pending = d_slot->pending && id == d_slot->last_id;
        bits |= (uint32_t)count_seen(d_counts[id], pending) << i;
    }
    ((uint32_t *)(a.d_unit + a.p.layout.unit_seen_at))[word] = bits;
    if (word == 0)
        *(struct pool_unit_header *)a.d_unit = {d_slot->length, d_slot->folded, {}};
}
cudaError_t queue_snapshot(cudaStream_t s, const struct unit_args *a) {
    const uint32_t n = seen_words(&a->p);
    return K_LAUNCH(snapshot_kernel, dim3((n + SLOT_THREADS - 1) / SLOT_THREADS), SLOT_THREADS, 0, s, *a, n);
}

/* What the snapshot had seen is prompt to the sequence that goes on from it. */
__global__ void restore_kernel(const struct unit_args a, uint32_t n_words) {
    const uint32_t word = blockIdx.x * SLOT_THREADS + threadIdx.x, v = a.p.shape.vocab_size;
    uint16_t *d_counts = a.p.d_counts + (uint64_t)a.slot * v;
    if (word >= n_words)
        return;
    const uint32_t bits = ((const uint32_t *)(a.d_unit + a.p.layout.unit_seen_at))[word];
    for (uint32_t i = 0; bits && i < 32 && word * 32 + i < v; i++)
        if (bits >> i & 1)
            d_counts[word * 32 + i] = count_once_more(d_counts[word * 32 + i], /* generated= */ false);
    if (word == 0) {
        const struct pool_unit_header *header = (const struct pool_unit_header *)a.d_unit;
        a.p.d_slots[a.slot].length = header->length;
        a.p.d_slots[a.slot].folded = header->folded;
        a.p.d_slots[a.slot].pending = a.p.d_slots[a.slot].n_drafts = 0;
    }
}
cudaError_t queue_restore(cudaStream_t s, const struct unit_args *a) {
    const uint32_t n = seen_words(&a->p);
    return K_LAUNCH(restore_kernel, dim3((n + SLOT_THREADS - 1) / SLOT_THREADS), SLOT_THREADS, 0, s, *a, n);
}

/* --- pages --- */

__global__ void page_kernel(const struct page_args a) {
    const uint4 *from = (const uint4 *)(a.from + blockIdx.y * a.from_stride);
    uint4 *to = (uint4 *)(a.to + blockIdx.y * a.to_stride);
    const uint64_t n = a.bytes / sizeof(uint4);
#pragma unroll 4
    for (uint64_t i = blockIdx.x * SLOT_THREADS + threadIdx.x; i < n; i += SPREAD * SLOT_THREADS)
        to[i] = from[i];
}
cudaError_t queue_page(cudaStream_t s, const struct page_args *a) {
    return K_LAUNCH(page_kernel, dim3(SPREAD, a->layers), SLOT_THREADS, 0, s, *a);
}
