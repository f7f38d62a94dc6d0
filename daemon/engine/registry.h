/* registry.h - the streams that have not ended, by request id. Any thread. */
#pragma once

#include "daemon/engine/state.h"

/* Refused (-EAGAIN) where there is no room for n_answers: those of its request, of which the first asks for all and the
 * others (n_answers 0) only have to find a place in the tables. */
int registry_add(struct engine *g, struct engine_stream *s, uint32_t n_answers, struct error *e);
void registry_remove(struct engine *g, struct engine_stream *s);
