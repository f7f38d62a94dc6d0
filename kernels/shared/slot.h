/* slot.h - what a pool keeps of a sequence's slot beside its state, pages and counts: one record, on the device. */
#pragma once

#include "kernels/kernels.h"

struct slot {
    /* What is copied with a slot's state; the first four are 0 with a state of zeros. */
    uint32_t length;  /* positions whose rows were computed */
    uint32_t folded;  /* of these, in S0; a multiple of GDN_BLOCK: slot_folded() of kernels/shared/drafts.h */
    uint32_t pending; /* 1: last_id was sampled at this length, so it is counted but not part of the state */
    uint32_t n_drafts;          /* that the last step left for the next one */
    uint32_t last_id;           /* sampled, not yet computed */
    uint32_t drafts[DRAFT_MAX]; /* those, and in a step those of its rows */

    uint32_t open;
    uint32_t sample_index;      /* of the next sample */
    struct k_sampling sampling; /* its pointers lead into this slot's share of the pool */
};
