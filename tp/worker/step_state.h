/* step_state.h - what a rank knows on the host about its slots, to check a plan before anything is queued.
 *
 * Used by tp/worker/step_exec.c only. The device holds the same lengths. They follow from the plans alone but for
 * drafts, of which the host learns when a step is answered how many were accepted: until then a length is a range. A
 * plan is applied to a copy (next); a refused plan leaves no trace. */
#pragma once

#include "base/error.h"
#include "proto/step/step.h"

#include <stdbool.h>
#include <stdint.h>

struct slot_state {
    uint32_t least, length; /* tokens whose rows were computed: at least, at most */
    uint32_t granted;       /* page table entries [0, granted) are set */
    uint32_t n_drafts;      /* that its last step leaves in the slot */
    uint32_t life;          /* another one where the length does not go on from that before */
    bool open;
    bool sampled; /* has a last sampled id to continue from */
};

struct unit_state { /* a host unit with a slot's snapshot */
    uint32_t least, length;
    bool filled;
};

struct step_limits {
    uint32_t slots, pages, pages_per_slot, slot_units, page_units, stored[STEP_STORED_KINDS];
    uint32_t rows_max, entries_max, vocab_size, max_model_len, drafts_max;
    bool makes_drafts;        /* up to drafts_max, for entries that ask */
    uint32_t extra_positions; /* KV positions beyond a sequence's tokens */
};

struct step_state {
    struct step_limits limits;
    struct slot_state *slots, *next; /* [slots + 1]; 0 is the dummy */
    struct unit_state *units, *units_next;
};

int step_state_init(const struct step_limits *limits, struct step_state *ret, struct error *e);
void step_state_done(struct step_state *s);
void step_state_reset(struct step_state *s); /* everything closed and empty */

/* Checks a decoded plan against the pools and works out the states after it, in next. 0, or -EINVAL with a
 * sentence and *s as before. */
int step_state_check(struct step_state *s, const struct step_plan *p, struct error *e);
void step_state_commit(struct step_state *s); /* after a check that returned 0 */
/* Of an entry with drafts, answered now: it was committed in this life of its slot. */
void step_state_accepted(
        struct step_state *s, uint32_t slot, uint32_t life, uint32_t n_drafts, uint32_t n_accepted);

/* The i-th uint32 of a blob array. */
uint32_t step_blob_u32(const struct step_plan *p, uint32_t at, uint32_t i);
