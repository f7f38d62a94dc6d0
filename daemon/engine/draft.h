/* draft.h - drafts in the engine: between the sequences, whose tokens they are, and the controller (speculation.h),
 * which chooses. Engine thread only; allocates nothing.
 *
 *   scheduler --draft_round--> the controller chooses for all sequences that decode
 *             --draft_continue / draft_first--> what one entry carries beside its row
 *   flight    --draft_retired, draft_read, draft_measured--> what became of it */
#pragma once

#include "daemon/engine/state.h"

struct draft {
    enum drafter drafter;
    uint32_t n;              /* rows beside the first */
    uint32_t n_next;         /* of the ranks' own drafter, for the step after this one */
    uint32_t ids[DRAFT_MAX]; /* [n]; not of DRAFTER_MODEL, whose drafts lie in the slot */
};

void draft_setup(struct engine *g); /* a group is there: what it takes */
/* Chooses for the next round. False: it has to wait until the plans in flight have retired. */
bool draft_round(struct engine *g);
/* For a CONTINUE of s, of at most `most` rows (1 and more). */
void draft_continue(const struct engine *g, const struct sequence *s, uint32_t most, struct draft *ret);
/* For the rows that give the first token of s in its slot: only n_next can be other than 0. */
void draft_first(const struct engine *g, const struct sequence *s, struct draft *ret);
/* The lookup index of s reads its tokens below `end`, or some of them. */
void draft_read(struct engine *g, struct sequence *s, uint32_t end);
void draft_retired(struct engine *g, const struct flight_entry *t, uint32_t n_accepted);
void draft_measured(struct engine *g, const struct flight *f, uint64_t compute_ns);
void draft_publish(struct engine *g); /* into g->now */
