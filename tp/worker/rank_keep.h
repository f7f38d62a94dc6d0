/* rank_keep.h - a rank's weights in memory that outlives it; between rank.c and rank_keep.c, which also has
 * rank_keep(). */
#pragma once

#include "tp/worker/rank.h"

/* Before weights are loaded, and before anybody decides what else memory is for: takes over those of the rank before,
 * or has new ones come to lie where they can be kept. Where neither can be done they are loaded as ever, and a note
 * says why. *ret_bytes: of the device's memory, what the weights have from here on; 0 where it is not kept. */
int rank_keep_begin(struct rank *r, const struct rank_options *o, struct weights_options *wo,
        uint64_t *ret_bytes, struct error *e);
int rank_keep_end(struct rank *r, struct error *e); /* they are loaded */
void rank_keep_done(struct rank *r);
