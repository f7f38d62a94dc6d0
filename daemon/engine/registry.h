/* registry.h - the streams that have not ended, by request id. Any thread. */
#pragma once

#include "daemon/engine/state.h"

int registry_add(struct engine *g, struct engine_stream *s, struct error *e);
void registry_remove(struct engine *g, struct engine_stream *s);
