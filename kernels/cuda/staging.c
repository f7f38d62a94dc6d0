/* staging.c - what goes to the device at load: through a ring of pinned buffers, which are filled while the one before
 * is on the bus.
 *
 * A copy from memory that is not pinned is made by the driver, on one thread and at a third of the bus's speed. The
 * ring comes with the first large upload and goes with the context. One caller at a time. */
#include "kernels/cuda/internal.h"
#include "kernels/shared/parallel.h"

#include <string.h>

#define PART_BYTES (1u << 20) /* of a copy into a buffer, for one thread */

int staging_take(struct k_context *c, uint8_t **ret, struct error *e) {
    struct staging *g = &c->staging;
    const uint32_t i = g->next;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    if (!g->done[i])
        CUDA_TRY(c, cudaEventCreateWithFlags(&g->done[i], cudaEventDisableTiming), e);
    if (!g->buffer[i])
        CUDA_TRY(c, cudaHostAlloc((void **)&g->buffer[i], STAGING_BYTES, cudaHostAllocPortable), e);
    CUDA_TRY(c, cudaEventSynchronize(g->done[i]), e);
    *ret = g->buffer[i];
    return 0;
}
int staging_send(struct k_context *c, void *d_to, size_t bytes, struct error *e) {
    struct staging *g = &c->staging;
    const uint32_t i = g->next;
    g->next = (i + 1) % STAGING_BUFFERS;
    CUDA_TRY(c, cudaMemcpyAsync(d_to, g->buffer[i], bytes, cudaMemcpyHostToDevice, c->stream), e);
    CUDA_TRY(c, cudaEventRecord(g->done[i], c->stream), e);
    return 0;
}
int staging_finish(struct k_context *c, struct error *e) {
    CUDA_TRY(c, cudaStreamSynchronize(c->stream), e);
    return 0;
}
void staging_free(struct k_context *c) {
    struct staging *g = &c->staging;
    for (uint32_t i = 0; i < STAGING_BUFFERS; i++) {
        if (g->done[i])
            cudaEventDestroy(g->done[i]);
        cudaFreeHost(g->buffer[i]);
    }
}

struct fill {
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
};
static void fill_part(void *arg, uint32_t i) {
    const struct fill *f = arg;
    const size_t at = (size_t)i * PART_BYTES, left = f->bytes - at;
    memcpy(f->to + at, f->from + at, left < PART_BYTES ? left : PART_BYTES);
}

int context_send(struct k_context *c, void *d_to, const void *from, size_t bytes, struct error *e) {
    uint8_t *d_p = d_to;
    for (struct fill f = {.from = from}; bytes; bytes -= f.bytes, f.from += f.bytes, d_p += f.bytes) {
        int r = staging_take(c, &f.to, e);
        if (r < 0)
            return r;
        f.bytes = bytes < STAGING_BYTES ? bytes : STAGING_BYTES;
        parallel_run(c->threads, (uint32_t)((f.bytes + PART_BYTES - 1) / PART_BYTES), fill_part, &f);
        r = staging_send(c, d_p, f.bytes, e);
        if (r < 0)
            return r;
    }
    return 0;
}
int context_upload(struct k_context *c, void *d_to, const void *from, size_t bytes, struct error *e) {
    int r = context_send(c, d_to, from, bytes, e);
    return r < 0 ? r : staging_finish(c, e);
}
