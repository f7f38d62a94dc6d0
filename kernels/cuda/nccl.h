/* nccl.h - sums over ranks by NVIDIA's NCCL, where a machine has it: it is opened at run time, nothing is linked with
 * it. Called by comm.c; tests/cuda_emu has a twin of nccl.c.
 *
 * Every wait has a limit, and ends when the group is stopped. Who stops it makes the library's kernels end, too. */
#pragma once

#include "base/error.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>
#ifdef __cplusplus
typedef unsigned atomic_uint; /* the twin's */
extern "C" {
#else
#include <stdatomic.h>
#endif

#define NCCL_ID_BYTES 128u

struct nccl; /* a rank's communicator, of the device that was the thread's; used by one host thread at a time */

/* The library; -ENOENT or -ENOTSUP, and why there is none. */
int nccl_open(struct nccl **ret, struct error *e);
struct nccl *nccl_close(
        struct nccl *n); /* NULL ok; returns NULL. Graphs that have its sums are freed before */
const char *nccl_describe(const struct nccl *n); /* "NCCL 2.28.9"; owned by n */
/* What all ranks of a group join with; one of them makes it. */
int nccl_new_id(struct nccl *n, uint8_t ret[NCCL_ID_BYTES], struct error *e);
/* -ETIMEDOUT after limit_ns, -ECANCELED once *stopped is not 0. */
int nccl_join(struct nccl *n, const uint8_t id[NCCL_ID_BYTES], uint32_t tp, uint32_t rank,
        const atomic_uint *stopped, uint64_t limit_ns, struct error *e);
/* Queues it, in a graph too. d_to[count] = the sum over ranks of d_from[count], in the library's order of ranks; of two
 * ranks there is one. */
int nccl_sum(struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e);
/* d_to[tp][count] = everybody's d_from[count]. */
int nccl_gather(
        struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e);
/* Has the library found that something is wrong since? Any thread. */
bool nccl_failed(struct nccl *n);
/* Ends what is running and will not end by itself; then sums are refused. Any thread. */
void nccl_abort(struct nccl *n);

#ifdef __cplusplus
}
#endif
