/* group.h - the ranks of a model in this process, driven as the coordinator drives them: a rank thread that serves a
 * step ring, records of the step protocol in it, two of them in flight.
 *
 * Used by run.c. So what is measured has the host's part of a step in it: encoding a plan, the ring, checking and
 * queueing it on every rank, and the way back. The coordinator's own planning is not there; bench-engine-step_cost
 * measures that. One caller's thread. */
#pragma once

#include "proto/step/ring.h"
#include "tp/worker/worker_rank.h"

#define GROUP_IN_FLIGHT 2u

struct group {
    struct worker_rank ranks[RANKS_MAX];
    uint32_t tp, n_started;
    int event_fd;
    void *comm;
    size_t comm_bytes;
    struct step_ring *ring;
    struct step_writer *writer;
    struct step_geometry geometry; /* what every rank can do */
    uint64_t step;                 /* of the last record */
    uint32_t in_flight;
    uint64_t accepted; /* drafts in all answers taken since the caller set it */
};

/* Loads; rank and comm_... of the options are filled in here. group_stop() afterwards, whatever came back. */
int group_start(const struct rank_options *options, struct group *g, struct error *e);
void group_stop(struct group *g);
const struct rank *group_rank(
        const struct group *g, uint32_t rank); /* for sizes; nothing runs meanwhile or not */

/* The next plan: what is added to the writer until group_send(), of which GROUP_IN_FLIGHT may be out. */
struct step_writer *group_plan(struct group *g);
int group_send(struct group *g, struct error *e);
/* Waits for the oldest plan that is out. What a rank refuses, a sample without a token and ranks that disagree are
 * errors. *ret_compute_ns (may be NULL): how long rank 0 had it. */
int group_take(struct group *g, uint64_t *ret_compute_ns, struct error *e);
