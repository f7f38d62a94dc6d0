/* slot.h - what a pool keeps of a sequence's slot beside its state, pages and counts: one record, on the device. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/portable.h"

struct slot {
    /* What is copied with a slot's state; the first three are 0 with a state of zeros. */
    uint32_t length;  /* positions whose rows were computed */
    uint32_t folded;  /* of these, in S0; a multiple of GDN_BLOCK: slot_folded() */
    uint32_t pending; /* 1: last_id was sampled at this length, so it is counted but not part of the state */
    uint32_t last_id; /* sampled, not yet computed */

    uint32_t open;
    uint32_t sample_index;      /* of the next sample */
    struct k_sampling sampling; /* its pointers lead into this slot's share of the pool */
    /* What the last step left for the next one; those of the step before end with it. */
    uint32_t n_drafts, drafts[DRAFT_MAX];
};

/* Rows of an entry that will be accepted whatever is sampled: all of a prompt, and the first of what goes on. */
K_INLINE uint32_t entry_certain_rows(const struct k_entry *e) {
    return e->kind == K_ENTRY_PROMPT ? e->n_rows : 1;
}
/* Positions that are in S0 after a step whose rows begin at `first`, of which `certain` are. */
K_INLINE uint32_t slot_folded(uint32_t first, uint32_t certain) {
    return (first + certain - 1) / GDN_BLOCK * GDN_BLOCK;
}
