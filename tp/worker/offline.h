/* offline.h - all ranks of a model in one process, driven directly: no ring, no coordinator, no sockets.
 *
 * Used by `shardd-worker-cpu --generate-ids`, tests and benchmarks. Each rank has a thread; what they execute
 * are records of the step protocol, the same as in a service, so what holds here holds there. One caller's
 * thread. */
#pragma once

#include "proto/step/step.h"
#include "tp/worker/rank.h"
#include "tp/worker/step_exec.h"

struct offline;

/* rank and comm_* of the options are filled in here for every rank. Answers of a RESET are checked: geometry
 * known. */
int offline_create(const struct rank_options *options, struct offline **ret, struct error *e);
struct offline *offline_free(struct offline *o);
const struct step_geometry *offline_geometry(const struct offline *o); /* what every rank can do */
struct rank *offline_rank(struct offline *o, uint32_t rank);           /* while no record runs */
struct step_exec *offline_exec(struct offline *o, uint32_t rank);      /* while no record runs */

/* Executes one record on every rank. 0, or what the first rank that refused or failed said; the ranks'
 * checksums are compared. The answers stay valid until the next record. */
int offline_record(struct offline *o, const void *record, uint32_t bytes, struct error *e);
const struct step_answer *offline_answer(const struct offline *o, uint32_t rank);
int offline_reset(struct offline *o, struct error *e); /* closes everything, also what offline_run kept */

struct offline_sequence {
    const uint32_t *prompt; /* [n_prompt] */
    uint32_t n_prompt;
    uint32_t n_generated; /* the last so many of prompt are the sequence's own earlier output (replay) */
    /* [n_chunks] rows per step while the prompt lasts, used in turn; NULL = as many as fit. */
    const uint32_t *chunks;
    uint32_t n_chunks;
    uint32_t start_step;       /* joins at this step of the run */
    uint32_t max_tokens;       /* may be 0: only the prompt */
    uint32_t stop_id;          /* STEP_NONE = none */
    struct step_open sampling; /* slot, bias_at and suppress_at are ignored */
    const uint32_t *bias_ids;  /* [sampling.n_bias] */
    const float *bias;
    const uint32_t *suppress; /* [sampling.n_suppress] */
    bool logprobs;
    uint32_t top_logprobs;
    uint32_t drafts; /* of the rank's own making in each step, at most; no token depends on it */
    bool keep;       /* leave the slot open (offline_reset closes it) */

    /* results; the caller's memory */
    struct step_sample *samples; /* [max_tokens] */
    float *logits,
            *mtp_logits; /* [n_prompt + max_tokens][V] by position, or NULL; need rank_options.logits_rows */
    uint32_t n_tokens;   /* samples filled */
    uint32_t n_drafted, n_accepted;
    uint32_t slot;
};

/* Neutral parameters: greedy, nothing filtered. */
struct step_open offline_greedy(void);
/* Runs all sequences to their ends, batched as their chunks and start steps say; at most `slots` of the
 * geometry. */
int offline_run(struct offline *o, struct offline_sequence *sequences, uint32_t n, struct error *e);
