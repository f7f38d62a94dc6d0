/* rank_keep.h - a rank's weights in memory that outlives it; between rank.c and rank_keep.c, which also has
 * rank_keep(). */
#pragma once

#include "tp/worker/rank.h"

/* Takes over the weights of the rank before, which were loaded by the same walk over the same model: then r->found is
 * set, and wo->there. It has only to have been looked at. */
int rank_keep_take(struct rank *r, const struct rank_options *o, struct weights_options *wo, struct error *e);
/* Otherwise has those that will be loaded come to lie where they can be kept, before anybody decides what else memory
 * is for: then r->keeping is set. Where that cannot be done they are loaded as ever, and a note says why. */
int rank_keep_begin(
        struct rank *r, const struct rank_options *o, const struct weights_options *wo, struct error *e);
int rank_keep_end(struct rank *r, struct error *e); /* they are loaded */
void rank_keep_done(struct rank *r);
