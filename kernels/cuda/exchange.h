/* exchange.h - what the ranks of a host tell each other inside a step: between comm.c (C), which owns all that this
 * points to, and exchange.cu.
 *
 * Every rank has an inbox in its own memory (or, staged, in memory of the host), which the others write into:
 *
 *   words   [parity of the epoch][from rank][EXCHANGE_FLOATS / 2] of 16 bytes: value, epoch, value, epoch
 *   large   [parity of the epoch]: signals [parts, sums][from rank][EXCHANGE_GROUPS], the epoch of what has come;
 *           behind them values as they are, in chunks (exchange_large.cu)
 *
 * Who reads words waits until both epochs of a word are this exchange's, so that a word is its own signal and no
 * barrier is needed. Two sets are enough: a rank begins epoch e + 2 after it has heard of e + 1 from everybody, who
 * said it after they had read e; so in every exchange everybody waits for everybody. All ranks queue the same
 * exchanges in the same order. Words and large ones have epochs of their own. */
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
#define EXCHANGE_BLOCKS     64u

#define EXCHANGE_LARGE_FLOATS (1u << 22) /* of a large one, at most */
#define EXCHANGE_GROUPS       512u       /* of chunks; each has signals */
#define EXCHANGE_CHUNK_MOST   16384u     /* floats */
#define EXCHANGE_LARGE_BLOCKS 192u
#define EXCHANGE_SIGNAL_BYTES (2u * RANKS_MAX * EXCHANGE_GROUPS * 4u)
/* Of two ranks each sends the other all it has; of more, parts to their owner, and the owner the sums. */
#define EXCHANGE_LARGE_SENT(tp)                                                                              \
    ((tp) == 2 ? EXCHANGE_LARGE_FLOATS + EXCHANGE_CHUNK_MOST                                                 \
               : 2ull * (EXCHANGE_LARGE_FLOATS + RANKS_MAX * EXCHANGE_CHUNK_MOST))

/* Bytes of an inbox. */
#define EXCHANGE_WORDS(tp) (2ull * (tp) * (EXCHANGE_FLOATS / 2) * EXCHANGE_WORD_BYTES)
#define EXCHANGE_LARGE(tp) (EXCHANGE_SIGNAL_BYTES + EXCHANGE_LARGE_SENT(tp) * 4ull) /* of a parity */
#define EXCHANGE_INBOX(tp) (EXCHANGE_WORDS(tp) + 2 * EXCHANGE_LARGE(tp))

/* Why a wait ended without its words. */
enum exchange_end { EXCHANGE_ABORTED = 1, EXCHANGE_LATE };

struct exchange_view {
    void *inbox[RANKS_MAX]; /* of every rank, as this one reaches it */
    /* [EXCHANGE_BLOCKS] the exchange that a block was in last; all equal between kernels */
    uint32_t *d_epochs;
    uint32_t *d_large_epochs; /* [EXCHANGE_LARGE_BLOCKS] the same of large ones, which count for themselves */
    uint32_t *d_poisoned;     /* an exchange has failed: later ones do not begin */
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
/* The same of rows * columns <= EXCHANGE_LARGE_FLOATS; columns are a multiple of 4, and d_part and d_x of 16 bytes. */
cudaError_t queue_exchange_large(cudaStream_t s, const struct exchange_add_args *a);
/* x += the tree over d_sums[n][rows][columns], which a library has brought, where the group was not stopped meanwhile;
 * n 1: over ranks already. columns and addresses as for a large one; d_part is not read. */
struct exchange_sums_args {
    struct exchange_add_args add;
    const float *d_sums;
    uint32_t n;
};
cudaError_t queue_exchange_sums(cudaStream_t s, const struct exchange_sums_args *a);

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
