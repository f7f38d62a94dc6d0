/* meeting.h - what the ranks of a group agree on while they load: each says some numbers, and goes on with the least of
 * everybody's.
 *
 * Called by rank.c. The meeting lies at the start of the region that all ranks of the group map, zeroed once, before
 * what the kernels library has there. A rank comes to every round once, in their order. Whoever fails or is told to
 * stop ends the meeting for all, so that nobody waits for a rank that will not come. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stddef.h>
#include <stdint.h>

enum meeting_round { /* in this order */
    MEETING_PRESENT, /* the rank's device is open: from now on its free memory is what is left */
    MEETING_ROWS,    /* of a step that it would have */
    MEETING_POOL,    /* pages, slots */
    MEETING_LOADED,  /* weights are loaded, pools are there */
    MEETING_ROUNDS,
};
#define MEETING_NUMBERS 5u

struct meeting;
size_t meeting_bytes(void);

/* Waits until all tp ranks have come to this round. Each of the n numbers becomes the least that any rank has said;
 * *ret_first (may be NULL) is the lowest rank that said the least of the first. -ECANCELED when the meeting has
 * ended. */
int meeting_least(struct meeting *m, enum meeting_round round, uint32_t tp, uint32_t rank, uint64_t *numbers,
        uint32_t n, uint32_t *ret_first, struct error *e);
/* Any thread, any time. */
void meeting_end(struct meeting *m);
