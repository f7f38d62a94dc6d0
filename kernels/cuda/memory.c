/* memory.c - device memory, pinned host memory, and copies between them.
 *
 * Called by tp/ at load, and per step for what goes up and down. Nothing is allocated while a step runs. */
#include "kernels/cuda/internal.h"

#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SPEED_COPIES 16

uint32_t k_step_rows(void) {
    return 2048; /* of 512 a matrix is four tiles of 128 rows high, too few for all SMs to end at the same time */
}
uint32_t k_drafts_max(void) {
    return DRAFT_MAX;
}
bool k_memory_shared(const struct k_context *c) {
    (void)c;
    return false;
}
uint64_t k_memory_free(const struct k_context *c) {
    size_t bytes_free = 0, total = 0;
    if (context_enter(c, NULL) < 0 || cudaMemGetInfo(&bytes_free, &total) != cudaSuccess)
        return 0;
    return bytes_free;
}

static int alloc(struct k_context *c, size_t bytes, void **ret, struct error *e) {
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    CUDA_TRY(c, cudaMalloc(ret, bytes ? bytes : 1), e);
    CUDA_TRY(c, cudaMemsetAsync(*ret, 0, bytes ? bytes : 1, c->stream), e);
    CUDA_TRY(c, cudaStreamSynchronize(c->stream), e);
    return 0;
}
void *k_alloc(struct k_context *c, size_t bytes) {
    void *d_p = NULL;
    if (alloc(c, bytes, &d_p, NULL) == 0)
        return d_p;
    cudaFree(d_p);
    return NULL;
}
void k_free(struct k_context *c, void *p) {
    if (p && !weights_kept(c, p) && context_enter(c, NULL) == 0)
        cudaFree(p);
}

void *k_host_alloc(struct k_context *c, size_t bytes) {
    void *p = NULL;
    if (context_enter(c, NULL) < 0 ||
            cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError(); /* it is told here, and is not the next call's */
        return NULL;
    }
    return memset(p, 0, bytes);
}
void k_host_free(struct k_context *c, void *p) {
    if (p && context_enter(c, NULL) == 0)
        cudaFreeHost(p);
}

void k_upload(struct k_stream *s, void *device_to, const void *host_from, size_t bytes) {
    if (bytes)
        CUDA_QUEUED(s, cudaMemcpyAsync(device_to, host_from, bytes, cudaMemcpyHostToDevice, s->stream));
}
void k_download(struct k_stream *s, void *host_to, const void *device_from, size_t bytes) {
    if (bytes)
        CUDA_QUEUED(s, cudaMemcpyAsync(host_to, device_from, bytes, cudaMemcpyDeviceToHost, s->stream));
}

double k_memory_speed(struct k_stream *s, void *memory, size_t bytes) {
    const size_t half = bytes / 2;
    uint64_t begin = 0;
    for (int i = -2; i < SPEED_COPIES && half; i++) {
        if (i == 0) { /* after those that warm up */
            CUDA_QUEUED(s, cudaStreamSynchronize(s->stream));
            begin = clock_ns();
        }
        CUDA_QUEUED(
                s, cudaMemcpyAsync((char *)memory + half, memory, half, cudaMemcpyDeviceToDevice, s->stream));
    }
    CUDA_QUEUED(s, cudaStreamSynchronize(s->stream));
    const uint64_t took = clock_ns() - begin;
    return k_stream_error(s, NULL) < 0 || !took ? 0 : 2.0 * SPEED_COPIES * (double)half * 1e9 / (double)took;
}
