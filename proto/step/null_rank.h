/* null_rank.h - a rank that follows the step protocol to the letter and computes nothing.
 *
 * It is strict where a real worker can afford not to be: positions must be contiguous, every row needs a granted page
 * that it alone writes to, sample indices must count what was generated. A page remembers the ids whose rows were
 * written there and a host unit what its snapshot stands for, so that a sequence that goes on from a state and pages
 * which do not belong together is a fault. So it is the protocol's checker as well as the null worker. What it
 * "samples" is a hash of the seed, the sample index and every (position, id) the slot has seen: a replay gives equal
 * tokens exactly when it is a faithful one. It takes drafts, too: those that are what it would sample are accepted, so
 * drafts change no token. Used by shardd-worker-null, by tests and by benchmarks. One thread at a time. */
#pragma once

#include "proto/step/ring.h"

#include <stdbool.h>

struct null_rank;

/* What the rank's store has, which may outlive the rank. Its maker sets the numbers and, of states and pages, memory
 * for so many, zeroed. */
struct null_stored {
    bool used;
    struct step_record record;
    uint32_t ids[PAGE_TOKENS]; /* of a page */
    struct null_unit {         /* a host unit with a slot's snapshot */
        bool filled, damaged;
        uint32_t length;
        uint64_t hash;
    } state;
};
struct null_store {
    uint32_t n[STEP_STORED_KINDS];
    struct null_stored *places[STEP_STORED_KINDS];
    uint32_t failing; /* of 100 operations, so many at random */
};

#define NULL_UNITS_MAX 65536u
struct null_rank_options {
    uint32_t rank, tp;
    uint32_t slots, pages, max_model_len, rows_max, vocab_size;
    uint32_t slot_units,
            page_units;        /* host units for snapshots and for pages; up to NULL_UNITS_MAX of each */
    struct null_store *stores; /* [tp] of each rank, nobody else's while it serves; NULL = none */
    uint32_t id_first,
            id_count; /* sampled ids lie in [id_first, id_first + id_count); id_count 0 = the vocabulary */
    uint32_t has_mtp, model_has_mtp; /* as in struct step_geometry */
    uint32_t drafts_max;             /* up to DRAFT_MAX; 0 = takes and makes none */
    /* Of the drafts that it leaves in a slot, so many are right and the next ones wrong. */
    uint32_t drafts_right;
    uint32_t draft_odds; /* not 0: instead each is right in so many of 100 cases, at random */
    uint32_t damaged_id; /* a sequence that has read it gets STEP_SAMPLE_NOT_FINITE from then on; 0 = none */
    uint64_t fingerprint;
    uint64_t step_ns, row_ns; /* each plan takes step_ns + rows * row_ns */
    /* claimed_ns not 0: each plan is said to have taken claimed_ns + rows * claimed_row_ns, whatever it took. */
    uint64_t claimed_ns, claimed_row_ns;
    /* Faults, at the PLAN of this number since RESET (pings, which come as time passes, do not count) and in group
     * epochs up to fault_epochs (0 = never): */
    uint64_t die_at_step, hang_at_step, fault_at_step, lie_at_step;
    uint64_t fault_epochs;
};

int null_rank_create(const struct null_rank_options *options, struct null_rank **ret, struct error *e);
struct null_rank *null_rank_free(struct null_rank *n);
/* Answers the next record, waiting up to timeout_ns for one. 0; -ETIMEDOUT: none came; -ECANCELED:
 * die_at_step was reached (nothing was answered); -EDEADLK: hang_at_step was reached (busy for ever);
 * -ESHUTDOWN: STOP was answered; -EBADMSG: the ring or the record is malformed. */
int null_rank_serve(struct null_rank *n, struct step_ring *r, uint64_t timeout_ns, struct error *e);
