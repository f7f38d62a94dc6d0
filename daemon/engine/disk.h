/* disk.h - the prefix cache's third tier: what the ranks' stores (step.h) have of it. Engine thread only.
 *
 * An index of the stores' places by keys: SHA-256, cut to 128 bits, of the salt and all ids up to the end of what is
 * there, chained from page to page; so neither ids nor salts are on the disk, and a prefix is found by its keys alone.
 * The ranks tell what they have when a group begins; a place counts if all of them have the same there.
 *
 * In the background, a few copies at a time: snapshots that are kept are written, page by page from the beginning and
 * then the state; and where the one that waits first begins with more than is in memory, that is read into units of
 * the host and becomes a snapshot there, before it is let in. What is written or read fails without a word here (the
 * worker has one): then it is computed, as without a disk. Who was not used for the longest time makes room. */
#pragma once

#include "daemon/engine/state.h"

/* For a group that has answered RESET. -ENOMEM. */
int disk_begin(struct engine *g);
void disk_end(struct engine *g);
/* INDEX has to be sent, and answered, before the first plan. */
bool disk_is_learning(const struct engine *g);
void disk_learn(struct engine *g, const struct step_completion **answers, const void **bodies);
/* After every record that all ranks have answered. */
void disk_answered(struct engine *g, const struct step_completion **answers);

/* Goes on with what is on its way, in the plan that is being made. Whether that has to be committed. */
bool disk_plan(struct engine *g);
/* Whether a plan would have something to do for the disk; or to ask the ranks how far they are. */
bool disk_has_work(const struct engine *g);
bool disk_waits(const struct engine *g);
/* Whether more of what s begins with than `hit` is being read, or is from now on: it is to be asked about again. */
bool disk_is_coming(
        struct engine *g, const struct sequence *s, const uint32_t *salt, const struct prefix_hit *hit);
/* What the path to this node left on the disk is not found there any more, as long as the group lives: the places are
 * the next to be used. */
void disk_distrust(struct engine *g, uint32_t node);
