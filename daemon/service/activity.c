/* activity.c - see activity.h. */
#include "daemon/service/activity.h"

#include <stdio.h>

static double per_second(uint64_t before, uint64_t now, double seconds) {
    return (double)(now - before) / seconds;
}

static void sum_drafts(const struct engine_stats *s, uint64_t *ret_proposed, uint64_t *ret_accepted) {
    *ret_proposed = *ret_accepted = 0;
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++) {
        for (uint32_t i = 0; i < DRAFT_MAX; i++) {
            *ret_proposed += s->drafters[k].proposed[i];
            *ret_accepted += s->drafters[k].accepted[i];
        }
    }
}

/* n: what snprintf returned for the text before. What does not fit is left out. */
static int append(char *text, size_t text_bytes, int n, const char *format, double value) {
    if (n < 0 || (size_t)n >= text_bytes)
        return n;
    int more = snprintf(text + n, text_bytes - (size_t)n, format, value);
    return more < 0 ? more : n + more;
}

bool activity_line(
        struct activity *a, const struct engine_stats *s, uint64_t now_ns, char *text, size_t text_bytes) {
    bool first = a->since_ns == 0, busy = s->steps_total != a->steps;
    double seconds = (double)(now_ns - a->since_ns) / 1e9;
    uint64_t proposed, accepted, preempted = s->preemptions_total - a->preemptions;
    sum_drafts(s, &proposed, &accepted);
    if (!first && now_ns - a->since_ns < ACTIVITY_PERIOD_NS)
        return false;
    if (!first && busy) {
        int n = snprintf(text, text_bytes,
                "prompts %.1f tokens/s, answers %.1f tokens/s, %u running, %u waiting, %.0f %% of KV pages in use",
                per_second(a->prompt_rows, s->prompt_rows_total, seconds),
                per_second(a->generated, s->generated_tokens_total, seconds), s->running, s->waiting,
                s->pages_total ? 100.0 * (s->pages_total - s->pages_free) / s->pages_total : 0.0);
        if (proposed > a->proposed)
            n = append(text, text_bytes, n, ", %.0f %% of drafts accepted",
                    100.0 * (double)(accepted - a->accepted) / (double)(proposed - a->proposed));
        if (preempted > 0)
            append(text, text_bytes, n, ", %.0f put back", (double)preempted);
    }
    *a = (struct activity){.since_ns = now_ns,
            .prompt_rows = s->prompt_rows_total,
            .generated = s->generated_tokens_total,
            .steps = s->steps_total,
            .preemptions = s->preemptions_total,
            .proposed = proposed,
            .accepted = accepted};
    return !first && busy;
}
