/* kept.c - weights in memory that outlives their process: what loads them takes it piece by piece from one allocation
 * that has a descriptor, and finds them there where a process before has left them.
 *
 * Called by tp/ around loading. The context owns the mapping; whoever holds a descriptor, the memory. */
#include "kernels/cuda/kept.h"

#include "kernels/cuda/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int begin_check(const struct k_context *c, uint64_t bytes, struct error *e) {
    if (c->kept.memory.d_p)
        return error_set(e, -EBUSY, "device %d: this context keeps weights already", c->device);
    if (bytes == 0)
        return error_set(e, -EINVAL, "device %d: no weights to keep", c->device);
    return 0;
}
static int zero(struct k_context *c, struct error *e) {
    CUDA_TRY(c, cudaMemsetAsync(c->kept.memory.d_p, 0, c->kept.memory.bytes, c->stream), e);
    CUDA_TRY(c, cudaStreamSynchronize(c->stream), e);
    return 0;
}
int k_keep_begin(struct k_context *c, uint64_t bytes, struct error *e) {
    struct kept k = {.bytes = bytes, .fd = -1, .open = true};
    int r = begin_check(c, bytes, e);
    r = r < 0 ? r : vmm_create(c, bytes, &k.memory, &k.fd, e);
    if (r < 0)
        return r;
    c->kept = k;
    r = zero(c, e);
    if (r < 0)
        kept_done(c);
    return r;
}

static int sum_of(struct k_context *c, uint64_t *d_sums, uint64_t sums[KEPT_BLOCKS], struct error *e) {
    const struct vmm_memory *m = &c->kept.memory;
    CUDA_TRY(c, queue_kept_sums(c->stream, m->d_p, m->bytes / sizeof *sums, d_sums), e);
    CUDA_TRY(c, cudaMemcpyAsync(sums, d_sums, KEPT_BLOCKS * sizeof *sums, cudaMemcpyDeviceToHost, c->stream),
            e);
    CUDA_TRY(c, cudaStreamSynchronize(c->stream), e);
    return 0;
}
static int kept_sum(struct k_context *c, uint64_t *ret, struct error *e) {
    uint64_t *d_sums = k_alloc(c, KEPT_BLOCKS * sizeof *d_sums), sums[KEPT_BLOCKS], sum = 0;
    int r = d_sums ? sum_of(c, d_sums, sums, e)
                   : error_set(e, -ENOMEM, "device %d: no memory for the sum of kept weights", c->device);
    k_free(c, d_sums);
    for (uint32_t i = 0; i < KEPT_BLOCKS && r == 0; i++)
        sum += sums[i];
    *ret = sum;
    return r;
}

int k_keep_adopt(struct k_context *c, uint64_t bytes, int fd, uint64_t sum, struct error *e) {
    struct kept k = {.bytes = bytes, .fd = -1, .sum = sum, .open = true, .adopted = true};
    uint64_t found;
    int r = begin_check(c, bytes, e);
    r = r < 0 ? r : vmm_open(c, bytes, fd, VMM_READ, &k.memory, e);
    if (r < 0)
        return r;
    c->kept = k;
    r = kept_sum(c, &found, e);
    if (r == 0 && found != sum)
        r = error_set(e, -ESTALE,
                "device %d: kept weights are not as they were left: something wrote to them", c->device);
    if (r < 0)
        kept_done(c);
    return r;
}

int k_keep_end(struct k_context *c, struct k_kept *ret, struct error *e) {
    struct kept *k = &c->kept;
    int r = staging_finish(c, e);
    if (r < 0)
        return r;
    if (!k->open || k->used != k->bytes)
        return error_set(e, -EINVAL, "device %d: weights took %llu bytes, and %llu were announced", c->device,
                (unsigned long long)k->used, (unsigned long long)k->bytes);
    if (!k->adopted) {
        r = vmm_set_access(c, &k->memory, VMM_READ, e);
        r = r < 0 ? r : kept_sum(c, &k->sum, e);
        if (r < 0)
            return r;
    }
    k->open = false;
    *ret = (struct k_kept){.fd = k->fd, .sum = k->sum};
    k->fd = -1;
    return 0;
}

void kept_done(struct k_context *c) {
    if (c->kept.memory.d_p && c->kept.fd >= 0)
        close(c->kept.fd);
    vmm_close(c, &c->kept.memory);
    c->kept = (struct kept){.fd = -1};
}

/* --- for what loads weights --- */

void *weights_alloc(struct k_context *c, size_t bytes) {
    struct kept *k = &c->kept;
    const uint64_t taken = k_keep_bytes(bytes);
    if (!k->open)
        return k_alloc(c, bytes);
    if (taken > k->bytes - k->used)
        return NULL;
    k->used += taken;
    return (uint8_t *)k->memory.d_p + k->used - taken;
}
bool weights_there(const struct k_context *c) {
    return c->kept.open && c->kept.adopted;
}
bool weights_kept(const struct k_context *c, const void *d_p) {
    const uint8_t *first = c->kept.memory.d_p, *p = d_p;
    return first && p >= first && p < first + c->kept.memory.bytes;
}
