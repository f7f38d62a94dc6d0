/* rank.h - one rank: its device, weights, pools, communicator and buffers.
 *
 * Created by worker.c (a process of a group) or offline.c (all ranks in one process); used by one host
 * thread, apart from rank_abort(). No globals: a process may hold any number of ranks. All memory that a step
 * needs exists when rank_create() returns; rank_free() takes a half-built rank too. */
#pragma once

#include "kernels/kernels.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/tensor_names.h"
#include "tp/load/keep.h"
#include "tp/load/shard.h"
#include "tp/load/weights.h"
#include "tp/worker/budget.h"
#include "tp/worker/cores.h"

#include <stdbool.h>

#define RANK_SLOTS_DEFAULT 64u
/* Rows of a step where nobody says how many: what the library likes, or fewer, down to these, until their scratch takes
 * no more than a part of what weights leave. */
#define RANK_ROWS_LEAST   512u
#define RANK_SCRATCH_PART 8u
/* Of the memory that weights and scratch leave; the coordinator, the page cache and the machine's owner want
 * some. The memory of a device is for the rank alone: it takes all but what graphs and the driver will want. */
#define RANK_POOL_FRACTION_DEFAULT        0.5
#define RANK_DEVICE_POOL_FRACTION_DEFAULT 1.0
#define RANK_DEVICE_RESERVE               MIB(256)
/* An allocation takes whole units of 2 MiB there: half of one is lost, on average. */
#define RANK_DEVICE_ALLOCATION_LOST MIB(1)
#define RANK_LAYER_LINEARS          4u

enum rank_kv_dtype { RANK_KV_AUTO, RANK_KV_BF16, RANK_KV_F32, RANK_KV_INT8 };
enum rank_packed {     /* what is done about packed files (packed.h) */
    RANK_PACKED_AUTO,  /* used where there is one that serves */
    RANK_PACKED_NEVER, /* --load-format safetensors */
    RANK_PACKED_MAKE,  /* --load-format packed: made where there is none that serves */
};

struct rank_options {
    const char *model_dir;
    uint32_t tp, rank;
    uint32_t threads;                /* of this rank; 0 = all the process may use */
    const char *isa;                 /* NULL = best */
    uint32_t devices[RANKS_MAX];     /* of each rank of the group; CUDA's ordinals, ignored on the CPU */
    enum cores_bind bind;            /* --numa-bind */
    uint32_t max_model_len;          /* 0 = the model's own */
    uint32_t max_num_seqs;           /* 0 = RANK_SLOTS_DEFAULT */
    uint32_t max_num_batched_tokens; /* rows of a step; 0 = chosen, at least max_num_seqs */
    enum rank_kv_dtype kv_dtype;
    enum k_dtype state_dtype; /* --recurrent-state-dtype: K_F32 or K_F16 */
    uint64_t kv_cache_bytes;  /* 0 = by fraction */
    double kv_cache_fraction; /* 0 = RANK_POOL_FRACTION_DEFAULT */
    uint64_t memory_bytes;    /* what this rank may use; 0 = what is free, a tp'th where ranks share memory */
    uint32_t pages;           /* of the KV cache, with max_num_seqs slots; 0 = as memory allows */
    uint32_t slot_units, page_units; /* exactly so many host units */
    bool prefix_cache;               /* with slot_units 0: as many of both as prefix_units.h chooses */
    uint64_t prefix_bytes;           /* of the host for them; 0 = by fraction */
    double prefix_fraction;          /* of what is free there; 0 = chosen */
    const char *prefix_dir;          /* --prefix-cache-dir, which outlives the rank; NULL = none */
    uint64_t prefix_disk_bytes;      /* of all ranks there */
    bool dummy;                      /* --load-format dummy: only config.json is read */
    /* What dummy linears, and the dummy head, are quantised like (dummy_form.h); NULL = as config.json says. */
    const struct quant_matrix *dummy_quant, *dummy_head_quant;
    enum rank_packed packed;
    const char *packed_cache; /* --packed-cache; NULL = beside the model, else the user's cache folder */
    bool verify_packed;       /* --verify-weights */
    enum k_activations activations; /* --activations */
    bool fast;                      /* --numerics fast */
    enum k_all_reduce all_reduce;   /* --all-reduce */
    uint64_t seed;
    bool mtp;                 /* load the MTP layer (if the checkpoint has it) and run it in every step */
    const char *draft_vocab;  /* file of the ids that drafts are chosen among; NULL = all */
    uint32_t drafts_max;      /* of a CONTINUE, up to DRAFT_MAX; what the library does not take is left out */
    bool eager;               /* queue each operation instead of replaying graphs */
    bool deferred;            /* k_context_options.deferred (tests) */
    uint32_t logits_rows;     /* rows whose raw logits can be kept (tests, offline use); 0 = none */
    struct keep_link *keeper; /* of this rank's weights; NULL = they end with it */
    void *comm_region; /* shared by all ranks, rank_comm_bytes() long, zeroed once; NULL when tp == 1 */
    size_t comm_bytes;
    void (*progress)(void *user, uint64_t bytes_done, uint64_t bytes_total, const char *what);
    void (*note)(void *user, const char *text); /* a sentence for the log; may be NULL */
    void *user;
};

/* What the start of a rank is made of, one after another. */
enum rank_stage {
    RANK_STAGE_FILES, /* configuration, and looking at the checkpoint */
    RANK_STAGE_CONTEXT,
    RANK_STAGE_WEIGHTS,
    RANK_STAGE_MEMORY,  /* scratch, pools */
    RANK_STAGE_MEETING, /* the other ranks are as far */
    RANK_STAGES,
};

struct rank {
    struct rank_options options; /* model_dir, packed_cache, draft_vocab, isa and dummy_... are not kept */
    struct model_config config;
    struct shard shard;
    struct checkpoint *checkpoint;     /* NULL for dummy */
    struct quant_config *quant_config; /* dummy: of the folder; NULL = none */
    struct model_tensors *tensors;
    struct packed *packed; /* NULL = none is used */
    struct weights weights;
    struct draft_vocab draft_vocab; /* n 0: drafts are chosen among all ids, or there are none */
    struct budget budget;
    uint32_t rows_max, entries_max, logits_rows, drafts_max;
    uint32_t samples_max; /* of a step: one per entry, and one for each draft */
    uint64_t fingerprint;
    char weights_from[ERROR_TEXT_MAX + 64]; /* the packed file used, or why the one there is not */
    struct keep keep;                       /* what its keeper gets; fd -1: nothing, or it has it */
    struct weights_places places;
    bool keeping, found; /* its weights lie where they can be kept; they were there already */
    uint64_t stage_ns[RANK_STAGES], stage_began_ns;

    struct k_context *context;
    struct k_stream *stream;
    struct k_pool *pool;
    struct k_comm *comm;
    struct k_batch *batch;
    struct k_batch *draft_batch; /* of the MTP layer where it makes drafts; NULL = it makes none */
    void *workspace;

    /* activations, [rows_max][...] fp32 */
    float *x;      /* [H] residual stream */
    float *in;     /* widest projection of a layer */
    float *mid;    /* mixer output or MLP activation */
    float *part;   /* [H] partial of a row-parallel product */
    float *hidden; /* [H] after the final norm */
    float *mtp_in; /* [2H], with MTP */
    float *logits; /* [logits_rows][vocab_rows] or NULL */
    float *mtp_logits;
    uint32_t *draft_place;          /* [V] of draft_vocab, where there is one */
    float *draft_hidden;            /* [entries_max][H] of the MTP layer, where it makes drafts */
    struct k_result *results;       /* [samples_max] */
    struct k_result *mtp_results;   /* [samples_max], with MTP logits */
    struct k_result *draft_results; /* [entries_max], where drafts are made */
    struct k_outcome *outcomes;     /* [entries_max], results behind them: both go down at once */
};
/* Can an entry ask for drafts of the rank's own making? */
static inline bool rank_makes_drafts(const struct rank *r) {
    return r->options.mtp && r->drafts_max > 0;
}

/* Bytes that all ranks of a group share. Depends on the configuration, tp and max_num_batched_tokens only, so
 * every rank computes the same number before any of them has loaded. 0 for tp == 1. */
int rank_comm_bytes(const struct rank_options *options, size_t *ret, struct error *e);

/* What a rank would take of options->memory_bytes of memory, decided as rank_create() decides it. */
struct rank_plan {
    uint64_t memory_bytes;    /* what was asked, less copied_bytes where these come out of the same memory */
    uint64_t weight_bytes;    /* on the device */
    uint64_t embedding_bytes; /* of these: the table's copy; 0 where it is used where the file is mapped */
    uint64_t mapped_bytes;    /* the table in the mapped file, once for all ranks; 0 where it is copied */
    uint64_t copied_bytes;    /* of a GGUF file, in the process's host memory; not in weight_bytes */
    uint64_t scratch_bytes;
    struct k_pool_cost pool;              /* for sequences of max_model_len tokens */
    uint32_t max_model_len, max_num_seqs; /* asked for, within the model's own limit */
    uint64_t least_bytes;  /* weights, scratch and one sequence of one page: with less no rank starts */
    uint64_t wanted_bytes; /* for all max_num_seqs sequences at their full length */
    bool fits;
    struct budget budget; /* where it fits */
    struct error why;     /* where it does not */
};
/* Reads headers only and touches no device. 0 also where it does not fit; negative where there is no such model. */
int rank_plan(const struct rank_options *options, struct rank_plan *ret, struct error *e);

int rank_create(const struct rank_options *options, struct rank **ret, struct error *e);
struct rank *rank_free(struct rank *r);
/* Whether the checkpoint has a whole MTP layer (dummy weights: whether config.json announces one); it is run where
 * rank_options.mtp asks for it, too. */
bool rank_model_has_mtp(const struct rank *r);
/* The rank is ready: whoever starts in its place may have its weights. Also where there is no keeper. */
void rank_keep(struct rank *r);
/* Any thread: ranks of this group that are being created, here or elsewhere, give up waiting for each other. */
void rank_stop_meeting(const struct rank_options *options);
void rank_abort(struct rank *r); /* any thread: gives up waiting in collectives, now and later */
