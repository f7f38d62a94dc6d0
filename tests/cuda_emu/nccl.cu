/* nccl.cu - the emulated twin of kernels/cuda/nccl.c: ranks in processes, which add in memory that they share, so that
 * what goes to the library and what comes from it is tested where there is no GPU. An id is the path of that memory. */
#include "kernels/cuda/nccl.h"

#include "base/clock.h"
#include "kernels/cuda/launch.cuh"
#include "tests/cuda_emu/emu_control.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANKS  8u
#define FLOATS (1u << 22) /* of one sum, at most */

struct room {
    uint32_t arrived; /* counts up, by all ranks, before and after they read */
    float parts[RANKS][FLOATS];
};
struct nccl {
    int fd; /* of the rank that made the id, or -1 */
    struct room *room;
    uint32_t tp, rank, *waited, ended;
    const atomic_uint *stopped;
    char text[64];
};

int nccl_open(struct nccl **ret, struct error *e) {
    if (getenv("CUDA_EMU_NO_NCCL"))
        return error_set(e, -ENOENT, "no libnccl.so.2 is found; the environment says so");
    *ret = (struct nccl *)calloc(1, sizeof **ret);
    (*ret)->fd = -1;
    const char *interface = getenv("NCCL_SOCKET_IFNAME"); /* that the library would listen on */
    snprintf((*ret)->text, sizeof(*ret)->text, "an emulated NCCL on %s",
            interface ? interface : "any interface");
    return 0;
}
struct nccl *nccl_close(struct nccl *n) {
    if (n && n->room)
        munmap(n->room, sizeof *n->room);
    if (n && n->fd >= 0)
        close(n->fd);
    if (n)
        free(n->waited);
    free(n);
    return NULL;
}
const char *nccl_describe(const struct nccl *n) {
    return n->text;
}
int nccl_new_id(struct nccl *n, uint8_t ret[NCCL_ID_BYTES], struct error *e) {
    n->fd = memfd_create("nccl", 0);
    if (n->fd < 0 || ftruncate(n->fd, sizeof *n->room) < 0)
        return error_set(e, -errno, "no memory that ranks share");
    snprintf((char *)ret, NCCL_ID_BYTES, "/proc/%d/fd/%d", (int)getpid(), n->fd);
    return 0;
}
int nccl_join(struct nccl *n, const uint8_t id[NCCL_ID_BYTES], uint32_t tp, uint32_t rank,
        const atomic_uint *stopped, uint64_t, struct error *e) {
    const int fd = open((const char *)id, O_RDWR);
    void *room = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *n->room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (room == MAP_FAILED)
        return error_set(e, -EIO, "rank %u does not find %s", rank, (const char *)id);
    n->room = (struct room *)room;
    n->waited = (uint32_t *)calloc(1, sizeof *n->waited);
    n->tp = tp;
    n->rank = rank;
    n->stopped = stopped;
    return 0;
}

/* A rank is where all are, or the group was stopped. */
static bool meet(const struct nccl *n, uint32_t *waited) {
    __atomic_fetch_add(&n->room->arrived, 1, __ATOMIC_ACQ_REL);
    *waited += n->tp;
    while (__atomic_load_n(&n->room->arrived, __ATOMIC_ACQUIRE) < *waited) {
        if (__atomic_load_n((const unsigned *)n->stopped, __ATOMIC_ACQUIRE))
            return false;
        sched_yield();
    }
    return true;
}
/* One thread. */
static void nccl_kernel(
        const struct nccl n, const float *d_from, float *d_to, uint64_t count, uint32_t gathers) {
    memcpy(n.room->parts[n.rank], d_from, count * sizeof *d_from);
    if (!meet(&n, n.waited))
        return;
    for (uint64_t i = 0; i < count; i++) {
        float sum = n.room->parts[0][i];
        for (uint32_t r = 0; r < n.tp && gathers; r++)
            d_to[r * count + i] = n.room->parts[r][i];
        for (uint32_t r = 1; r < n.tp; r++)
            sum += n.room->parts[r][i];
        if (!gathers)
            d_to[i] = sum;
    }
    meet(&n, n.waited);
}
static int queue(struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count,
        uint32_t gathers, struct error *e) {
    if (n->ended || count > FLOATS)
        return error_set(e, -ECANCELED, "the emulated NCCL has ended, or was asked for too much");
    const cudaError_t r = K_LAUNCH(nccl_kernel, 1, 1, 0, s, *n, d_from, d_to, (uint64_t)count, gathers);
    return r == cudaSuccess ? 0 : error_set(e, -EIO, "%s", cudaGetErrorString(r));
}
int nccl_sum(
        struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e) {
    return queue(n, s, d_from, d_to, count, 0, e);
}
int nccl_gather(
        struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e) {
    return queue(n, s, d_from, d_to, count, 1, e);
}
bool nccl_failed(struct nccl *) {
    return emu_breaks("CUDA_EMU_NCCL_FAULT");
}
void nccl_abort(struct nccl *n) {
    n->ended = 1;
}
