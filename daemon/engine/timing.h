/* timing.h - what is measured of requests: the moments of a sequence's life go into the engine's histograms. Engine
 * thread only; the histograms are read by anybody (engine_histogram()).
 *
 * Moments are the beginning of the loop's turn (g->turn_ns): tokens of one step have one time, and no clock is asked
 * for a token. */
#pragma once

#include "daemon/engine/state.h"

void timing_init(struct engine *g);
void timing_begun(
        struct engine *g, struct sequence *s); /* it is in a plan; counts once, not after it was put back */
void timing_step(struct engine *g, uint32_t n_rows);     /* every rank has answered a plan */
void timing_token(struct engine *g, struct sequence *s); /* before the token is added to s */
/* n_tokens: generated ones that somebody sees. */
void timing_ended(struct engine *g, struct sequence *s, enum engine_finish finish, uint32_t n_tokens);
