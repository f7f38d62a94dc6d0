/* activity.c - see activity.h. */
#include "daemon/service/activity.h"

#include <stdio.h>

static double per_second(uint64_t before, uint64_t now, double seconds) {
    return now > before ? (double)(now - before) / seconds
                        : 0; /* tokens behind a stop string are taken back */
}

bool activity_line(
        struct activity *a, const struct engine_stats *s, uint64_t now_ns, char *text, size_t text_bytes) {
    bool first = a->since_ns == 0, busy = s->steps_total != a->steps;
    double seconds = (double)(now_ns - a->since_ns) / 1e9;
    if (!first && now_ns - a->since_ns < ACTIVITY_PERIOD_NS)
        return false;
    if (!first && busy) {
        int n = snprintf(text, text_bytes,
                "prompts %.1f tokens/s, answers %.1f tokens/s, %u running, %u waiting, %.0f %% of KV pages in use",
                per_second(a->prompt_rows, s->prompt_rows_total, seconds),
                per_second(a->generated, s->generated_tokens_total, seconds), s->running, s->waiting,
                s->pages_total ? 100.0 * (s->pages_total - s->pages_free) / s->pages_total : 0.0);
        uint64_t preempted = s->preemptions_total - a->preemptions;
        if (preempted > 0 && n > 0 && (size_t)n < text_bytes)
            snprintf(text + n, text_bytes - (size_t)n, ", %llu put back", (unsigned long long)preempted);
    }
    *a = (struct activity){.since_ns = now_ns,
            .prompt_rows = s->prompt_rows_total,
            .generated = s->generated_tokens_total,
            .steps = s->steps_total,
            .preemptions = s->preemptions_total};
    return !first && busy;
}
