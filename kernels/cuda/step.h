/* step.h - what opens and closes a step, and rows of embeddings and norms: arguments of the kernels of step.cu, and the
 * functions that queue them. Arguments are copied when a kernel is queued. */
#pragma once

#include "kernels/cuda/views.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

struct table_view {
    const void *d_data; /* [rows][columns] of dtype */
    enum k_dtype dtype;
    uint32_t rows, columns;
};

struct begin_args {
    struct batch_view b;
    struct pool_view p;
    struct k_bounds bounds;
    uint32_t drafts_max; /* of the pool */
    struct fault_view fault;
};
cudaError_t queue_begin(cudaStream_t s, const struct begin_args *a);

struct end_args {
    struct batch_view b;
    struct pool_view p;
    const struct k_result *d_results; /* NULL: no entry samples */
    const struct k_outcome *d_outcomes;
};
cudaError_t queue_end(cudaStream_t s, const struct end_args *a, uint32_t entries_bound);

/* Logits of the whole vocabulary from those of the ids that have a place: draft.cu. */
struct widen_args {
    const struct k_plan *d_round;
    const uint32_t *d_place; /* [vocab] */
    const float *d_from;     /* [rows][n] */
    float *d_to;             /* [rows][vocab] */
    uint32_t vocab, n;
};
cudaError_t queue_widen(cudaStream_t s, const struct widen_args *a, uint32_t rows_bound);

/* The batch in which the MTP layer makes drafts: draft.cu. */
struct draft_args {
    struct pool_view p;
    struct batch_view b, d; /* the step's, and the drafts' */
    const struct k_outcome *d_outcomes;
    const struct k_result *d_results; /* of d */
    const float *d_hidden;            /* [rows of b][H] */
    float *d_draft_hidden;            /* [rows of d][H] */
    uint32_t drafts_max;              /* rows of d at most */
};
cudaError_t queue_draft_begin(cudaStream_t s, const struct draft_args *a);
cudaError_t queue_draft_take(cudaStream_t s, const struct draft_args *a);

struct embed_args {
    struct batch_view b;
    struct table_view table;
    float *d_x; /* [rows][columns] */
};
cudaError_t queue_embed(cudaStream_t s, const struct embed_args *a, uint32_t rows_bound);

struct final_args {
    struct batch_view b;
    struct pool_view p;
    const float *d_x, *d_norm; /* [rows][H], [H] */
    float *d_y, eps;
    bool keep; /* as the slots' hidden rows */
};
cudaError_t queue_final_norm(cudaStream_t s, const struct final_args *a, uint32_t rows_bound);

struct mtp_args {
    struct batch_view b;
    struct pool_view p;
    struct table_view table;
    const float *d_hidden, *d_norm_embedding, *d_norm_hidden;
    const struct k_result *d_results; /* NULL: no entry sampled */
    float *d_y, eps;                  /* [rows][2H] */
    struct fault_view fault;
};
cudaError_t queue_mtp_input(cudaStream_t s, const struct mtp_args *a, uint32_t rows_bound);

#ifdef __cplusplus
}
#endif
