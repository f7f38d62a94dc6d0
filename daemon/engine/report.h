/* report.h - what the engine says: lines for the log, and messages for the launcher. Engine thread only. */
#pragma once

#include "daemon/engine/state.h"

#include "base/log.h"

void engine_log(struct engine *g, int level, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* kind: CONTROL_STUCK with a = rank, or CONTROL_FAULT; the epochs are those of the ring that is attached. */
void engine_tell_launcher(struct engine *g, uint32_t kind, uint64_t a, const char *text);
