/* inbox.h - events of streams on their way to the engine thread. */
#pragma once

#include "daemon/engine/state.h"

void inbox_post(
        struct engine *g, struct engine_stream *s, uint32_t event); /* any thread; then engine_wake() */
struct engine_stream *inbox_take_all(struct engine *g);             /* oldest first, linked by inbox_next */
