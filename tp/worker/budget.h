/* budget.h - how much memory a rank's weights, pools and scratch take, decided before anything is allocated.
 *
 * Called by tp/worker/rank.c at load. What was asked for with flags is clamped to what fits and the result is a
 * sentence for people; only a model that does not fit at all is refused. Never fails later: everything that
 * is sized here is allocated right afterwards and does not grow. */
#pragma once

#include "kernels/kernels.h"

struct budget_request {
    uint64_t memory_bytes;      /* what this rank may use in all */
    uint64_t weight_bytes;      /* packed weights */
    uint64_t embedding_bytes;   /* of these, the embedding table's copy */
    bool kept;                  /* they outlive the rank */
    uint64_t scratch_bytes;     /* workspace, activations, communicator */
    uint64_t unit_stages_bytes; /* of it, what states of prefixes are moved through */
    uint32_t rows;              /* of a step, which it is for */
    uint64_t reserve_bytes;     /* a device's: graphs, and what its driver takes */
    uint64_t pool_bytes;        /* --kv-cache-memory as bytes; 0 = use pool_fraction */
    bool fraction_asked;        /* pool_fraction is --kv-cache-memory, not a default */
    double pool_fraction;       /* of what weights and scratch leave; (0, 1] */
    uint32_t max_num_seqs;      /* wanted slots, 1..SEQS_MAX */
    uint32_t max_model_len;     /* wanted tokens of one sequence, already within the model's own limit */
    uint32_t pages;           /* exactly so many, with all slots, as far as they fit; 0 = as memory allows */
    uint32_t extra_positions; /* KV positions of a sequence beyond its tokens: 1 with the MTP layer */
    uint32_t slot_units, page_units;
    uint32_t drafts_max; /* of a CONTINUE: a slot has room for them */
    enum k_dtype kv_dtype, state_dtype;
};

struct budget {
    struct k_pool_options pool;
    uint32_t max_model_len; /* tokens of one sequence after clamping */
    uint64_t pool_bytes, slot_bytes, page_bytes;
    uint64_t pool_clamped; /* what --kv-cache-memory was clamped to, bytes; 0 = it was not */
    char text[512];        /* "7.90 GB usable: weights 1.50 GB, KV 2048 pages 1.61 GB, ..." */
};

/* Bytes of a pool, the dummies, slot 0 and page 0, in them: they take as much as the others. */
uint64_t budget_pool_bytes(
        const struct k_shape *shape, const struct k_pool_options *options, struct k_pool_cost *ret_cost);

/* -ENOMEM with a sentence that names the sizes when not even one sequence of one page fits; -EDOM when the memory
 * would do, but --kv-cache-memory asks for less than that. */
int budget_make(const struct k_shape *shape, const struct budget_request *request, struct budget *ret,
        struct error *e);
/* Takes less of the same memory: no more of anything than `pool` and max_model_len say, as `rank` has it. */
void budget_lessen(const struct k_shape *shape, const struct budget_request *request,
        const struct k_pool_options *pool, uint32_t max_model_len, uint32_t rank, struct budget *b);
