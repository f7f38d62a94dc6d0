/* kept.h - weights that outlive their process, between kept.c and what loads weights; and their sum (kept.cu). */
#pragma once

#include "kernels/cuda/vmm.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of a context: the memory of k_keep_begin() or k_keep_adopt(). */
struct kept {
    struct vmm_memory memory;
    uint64_t bytes, used;
    int fd;             /* to hand out; -1 = none */
    uint64_t sum;       /* adopted */
    bool open, adopted; /* between begin and end; weights are there already */
};

/* Blocks, at most, that each leave a sum of theirs. */
#define KEPT_BLOCKS 1056u
/* Fills d_sums[KEPT_BLOCKS], which are zero; their sum is that of d_from[n], n even, at a multiple of 16 bytes. */
cudaError_t queue_kept_sums(cudaStream_t s, const uint64_t *d_from, uint64_t n, uint64_t *d_sums);

#ifdef __cplusplus
}
#endif
