/* exchange.h - what the ranks of a host tell each other inside a step: between comm.c (C), which owns all that this
 * points to, and exchange.cu.
 *
 * Every rank has an inbox in its own memory (or, staged, in memory of the host), which the others write into:
 *
 *   inbox  [parity of the epoch][from rank][EXCHANGE_FLOATS / 2] of 16 bytes: value, epoch, value, epoch
 *
 * Who reads waits until both epochs of a word are this exchange's, so that a word is its own signal and no barrier is
 * needed. Two sets are enough: a rank begins epoch e + 2 after it has everybody's words of e + 1, which they sent after
 * they had read e; so in every exchange everybody waits for everybody. All ranks queue the same exchanges in the same
 * order. */
#pragma once

#include "kernels/cuda/product.h"
#include "kernels/cuda/views.h"
#include "kernels/shared/constants.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXCHANGE_FLOATS     (1u << 19) /* of a rank in one exchange, at most */
#define EXCHANGE_WORD_BYTES 16u        /* of two floats */
#define EXCHANGE_INBOX(tp)  (2ull * (tp) * (EXCHANGE_FLOATS / 2) * EXCHANGE_WORD_BYTES)
#define EXCHANGE_BLOCKS     64u

/* Why a wait ended without its words. */
enum exchange_end { EXCHANGE_ABORTED = 1, EXCHANGE_LATE };

struct exchange_view {
    void *inbox[RANKS_MAX]; /* of every rank, as this one reaches it */
    /* [EXCHANGE_BLOCKS] the exchange that a block was in last; all equal between kernels */
    uint32_t *d_epochs;
    uint32_t *d_poisoned;             /* an exchange has failed: later ones do not begin */
    const volatile uint32_t *aborted; /* of the group, in memory of the host */
    struct fault_view fault;          /* of the stream */
    uint64_t deadline_ns;             /* of one wait */
    uint32_t rank, tp;
};

/* x[rows][columns] += the tree over ranks of part, of `rows` rows from first_row on as far as the plan has them;
 * rows * columns <= EXCHANGE_FLOATS. */
struct exchange_add_args {
    struct exchange_view view;
    const struct k_plan *d_plan;
    const float *d_part;
    float *d_x;
    uint32_t first_row, rows, columns;
};
cudaError_t queue_exchange_add(cudaStream_t s, const struct exchange_add_args *a);

/* The same of all rows that the plan has, up to `rows`, and then they are brought into the forms of the product that
 * is next, after its norm: `in`, of which d_x is not read. exchange_rows_can() says which. */
struct exchange_rows_args {
    struct exchange_view view;
    struct input in;
    const float *d_part;
    float *d_x;
    uint32_t rows;
    bool pushed;              /* the others have been sent part by who made it (push_view) */
    struct activations codes; /* d_codes NULL: not wanted */
    struct terms terms;       /* d_terms NULL: not wanted */
    enum terms_order order;
};
bool exchange_rows_can(uint32_t rows, uint32_t columns);
cudaError_t queue_exchange_rows(cudaStream_t s, const struct exchange_rows_args *a);

/* all[rows][columns] = everybody's part of it, side by side: rank r has n[r] columns from first[r] on; rows * most of n
 * <= EXCHANGE_FLOATS. */
struct exchange_gather_args {
    struct exchange_view view;
    const struct k_plan *d_plan;
    const float *d_part; /* [rows][n[rank]] */
    float *d_all;
    uint32_t first_row, rows, columns;
    uint32_t first[RANKS_MAX], n[RANKS_MAX], n_most;
};
cudaError_t queue_exchange_gather(cudaStream_t s, const struct exchange_gather_args *a);

#ifdef __cplusplus
}
#endif
