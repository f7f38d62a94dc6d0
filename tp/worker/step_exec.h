/* step_exec.h - executes records of the step protocol on one rank.
 *
 * Called by the rank's thread (worker.c from the ring, offline.c in process). A record is decoded, checked
 * completely against the pools, applied in the protocol's order (CLOSE, OPEN, MEMORY, grants, compute) and
 * answered. A record that is refused changes nothing and the rank goes on; a fault of the device is final:
 * this and all later records are answered with its sentence. */
#pragma once

#include "proto/step/step.h"
#include "tp/worker/forward.h"
#include "tp/worker/rank.h"

struct step_exec;

int step_exec_create(struct rank *r, struct step_exec **ret, struct error *e);
struct step_exec *step_exec_free(struct step_exec *x); /* not the rank */

/* Records in flight: the next is queued behind the one that runs, so that the device never waits for the host. Each has
 * host arrays of its own. */
#define STEP_EXEC_IN_FLIGHT 2u

struct step_answer { /* body belongs to the step_exec; valid until the next submit */
    struct step_completion completion;
    const void *body;
    uint32_t body_bytes;
};
/* Checks and queues a record; fewer than STEP_EXEC_IN_FLIGHT may be in flight. record is 8-byte aligned and not needed
 * afterwards. On a CPU an operation runs when it is queued, so this returns when the record has been executed, but for
 * the drafts that are to follow it: the next plan makes those. */
void step_exec_submit(struct step_exec *x, const void *record, uint32_t bytes);
uint32_t step_exec_in_flight(const struct step_exec *x);
/* The answer to the oldest record in flight, of which there must be one; a refused one is answered in its place, too.
 * Rank 0 answers a plan with outcomes, other ranks with the checksum alone. Waits up to timeout_ns (0 = looks); 0 or
 * -EAGAIN. A fault of the device is the answer to all in flight. */
int step_exec_collect(struct step_exec *x, uint64_t timeout_ns, struct step_answer *ret);
/* Both, for whoever has one record at a time: blocks until it has been executed. */
void step_exec_record(struct step_exec *x, const void *record, uint32_t bytes, struct step_answer *ret);
/* Has the device failed? Then the rank is of no more use; *e (may be NULL) gets the sentence. */
bool step_exec_failed(const struct step_exec *x, struct error *e);

/* --- for watchdogs, tests and offline use; set between records --- */

void step_exec_hooks(struct step_exec *x, const struct forward_hooks *hooks); /* copied; NULL = none */
/* On a device, which works behind the back of who submits: the step in flight that it has begun last, and at or behind
 * which layer it is (forward.h). False where it has begun none of them, or the hooks tell. */
bool step_exec_place(const struct step_exec *x, uint64_t *ret_step, uint32_t *ret_layer);
uint64_t step_exec_graph_bytes(const struct step_exec *x); /* device memory, as forward_graph_bytes() */
/* What the thread has done for all records so far: checking and queueing them, writing answers; it did not wait in it,
 * but for the operations of a CPU, which run when they are queued. */
uint64_t step_exec_host_ns(const struct step_exec *x);
uint32_t step_exec_graph_nodes(const struct step_exec *x); /* as forward_graph_nodes() */

enum step_exec_logits {
    STEP_EXEC_LOGITS_NONE,
    STEP_EXEC_LOGITS_LAST, /* of the last row of each entry */
    STEP_EXEC_LOGITS_ALL,  /* of every row */
};
void step_exec_want_logits(
        struct step_exec *x, enum step_exec_logits what); /* needs rank_options.logits_rows */
/* After a record: [rows asked for][vocab_rows] of this rank, and of the MTP head (NULL without). Owned by x. */
const float *step_exec_logits_main(const struct step_exec *x);
const float *step_exec_logits_mtp(const struct step_exec *x);
