/* activity.h - the line that the log has every few seconds while requests are served, and not when none are.
 *
 * coordinator_main looks often and logs what it is given. */
#pragma once

#include "daemon/engine/engine.h"

#define ACTIVITY_PERIOD_NS 5000000000ull

struct activity {
    uint64_t since_ns; /* when the counts below were read; 0 = nothing has been looked at */
    uint64_t prompt_rows, generated, steps, preemptions, proposed, accepted;
};

/* Whether there is a line to log: a period is over in which steps were made. text holds it then. */
bool activity_line(
        struct activity *a, const struct engine_stats *s, uint64_t now_ns, char *text, size_t text_bytes);
