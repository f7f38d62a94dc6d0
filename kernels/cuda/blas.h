/* blas.h - products by NVIDIA's cuBLASLt, where a machine has it: it is opened at run time, nothing is linked with it.
 * Called by product.c for prompts of BF16 weights under fast numerics, and by tests/bench/cuda, whose ceiling it is.
 *
 * Which kernel it takes, and so how an output is rounded, depends on all sizes of a product, the number of rows too; of
 * equal sizes it is the same every time. */
#pragma once

#include "base/error.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct blas; /* of one device; used by one host thread at a time */

/* y[rows][outputs] = x[rows][columns] of the transposed w[outputs][columns]; y's rows are ldy apart. Addresses are
 * multiples of 16 bytes, and so are rows. */
struct blas_product {
    uint32_t outputs, columns, rows, ldy;
    bool floats; /* bf16 into fp32; otherwise INT8 into int32 */
    bool add;    /* y += instead of y = */
};

#define BLAS_WORKSPACE (8u << 20) /* bytes of scratch of a product */

/* Of the device that is the thread's; -ENOENT or -ENOTSUP, and why there is none. */
int blas_open(struct blas **ret, struct error *e);
struct blas *blas_close(struct blas *b);         /* NULL ok; returns NULL */
const char *blas_describe(const struct blas *b); /* "cuBLASLt 13.1.0"; owned by b */
/* Queues it, in a graph too; -EIO and why it cannot be. */
int blas_multiply(struct blas *b, cudaStream_t s, const struct blas_product *p, const void *d_w,
        const void *d_x, void *d_y, void *d_workspace, struct error *e);

#ifdef __cplusplus
}
#endif
