/* wake.h - how the engine thread sleeps and who wakes it.
 *
 * It sleeps in the step ring (a completion wakes it there) or, without a ring, on a condition. Who wants it to
 * look at something first makes that something visible (inbox, control queue, a flag) and then calls
 * engine_wake(); the thread looks at everything between two sleeps, so what was made visible before a wake is
 * seen after it. */
#pragma once

#include "daemon/engine/state.h"

void engine_wake(struct engine *g); /* any thread */
/* Engine thread: sleeps for ns at most, or until a rank answers or somebody calls engine_wake(). */
void wake_wait(struct engine *g, uint64_t ns);
/* Engine thread: replaces the ring (NULL = none) and frees the one before. */
void wake_set_ring(struct engine *g, struct step_ring *ring);
struct timespec wake_timespec(uint64_t ns);
