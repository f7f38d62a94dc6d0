/* clock.h - the one clock of this project: CLOCK_MONOTONIC in nanoseconds.
 *
 * Header only. Deadlines, watchdogs and measured times are all differences of it; it stands still while the machine is
 * suspended and never jumps. */
#pragma once

#include <stdint.h>
#include <time.h>

#define CLOCK_MS     1000000ull    /* nanoseconds of a millisecond */
#define CLOCK_SECOND 1000000000ull /* and of a second */

static inline uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * CLOCK_SECOND + (uint64_t)t.tv_nsec;
}
