/* masks.h - which ids the next samples of a sequence may be: those that its request allows, less those that would
 * complete a bad word. Engine thread only.
 *
 * A bad word is a sequence of ids. Its last one is masked where the ids before it are the tail of what was generated,
 * so every row of an entry with drafts has a mask of its own, and the host has to know every token before it plans such
 * a sequence. What no bad word concerns has no mask, unless the request allows some ids only. */
#pragma once

#include "daemon/engine/state.h"

/* Whether s can only be planned when all its tokens are on the host, drafts included. */
static inline bool masks_watch(const struct sequence *s) {
    return s->n_bad_words > 0;
}
/* Whether samples of s may have masks. */
static inline bool masks_possible(const struct sequence *s) {
    return s->mask != NULL || s->n_bad_words > 0;
}

/* Masks that a step may have, by their number and the room that they take in a record. */
uint32_t masks_most(const struct engine *g);
/* Masks for samples at 1 + n_drafts rows: 0: none of them needs one; 1: one for all of them. */
uint32_t masks_needed(const struct sequence *s, const uint32_t *drafts, uint32_t n_drafts);
/* Writes them into the plan. */
void masks_write(struct engine *g, const struct sequence *s, const uint32_t *drafts, uint32_t n_masks,
        struct step_entry *t);
