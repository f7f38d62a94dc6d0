/* draft.h - what the next step of a sequence carries beside its one row: drafts to verify, and how many the ranks' own
 * drafter leaves for the step after it. Engine thread only; called by the scheduler. */
#pragma once

#include "daemon/engine/state.h"

struct draft {
    uint32_t n;      /* rows beside the first */
    uint32_t n_next; /* of the ranks' own drafter, for the step after this one */
};

/* For a CONTINUE of s, of at most `most` rows (1 and more). */
struct draft draft_continue(const struct engine *g, const struct sequence *s, uint32_t most);
/* For the rows that give the first token of s in its slot: only n_next can be other than 0. */
struct draft draft_first(const struct engine *g, const struct sequence *s);
