/* queue.c - see queue.h. How fast the queue moves is measured where it leaves: the time since the one before it left,
 * or since it came itself if that was later, is what the server took for it. Averages forget an eighth each time. */
#include "daemon/engine/queue.h"

#include <errno.h>

#define MS_NS          1000000u
#define RETRY_LEAST_MS 100u
#define RETRY_MOST_MS  60000u
#define RETRY_UNKNOWN  1000u /* ms: nothing has left the queue yet */

int queue_enter(struct engine *g, struct sequence *s, uint32_t n, struct error *e) {
    uint64_t waiting = atomic_load(&g->queue.tokens), more = (uint64_t)n * s->n_prompt;
    uint64_t limit = g->o.max_queue_tokens;
    if (limit > 0 && waiting > 0 && n > 0 && waiting + more > limit)
        return error_set(e, -EAGAIN,
                "%llu prompt tokens wait, and with %llu more they were over the limit of %llu: try again later",
                (unsigned long long)waiting, (unsigned long long)more, (unsigned long long)limit);
    atomic_fetch_add(&g->queue.tokens, s->n_prompt);
    s->queued = true;
    return 0;
}

void queue_left(struct engine *g, struct sequence *s) {
    if (s->queued)
        atomic_fetch_sub(&g->queue.tokens, s->n_prompt);
    s->queued = false;
}

static void forget_an_eighth(_Atomic uint64_t *average, uint64_t value) {
    uint64_t before = atomic_load_explicit(average, memory_order_relaxed);
    uint64_t now = before == 0 ? value : before - before / 8 + value / 8;
    atomic_store_explicit(average, now > 0 ? now : 1, memory_order_relaxed);
}

void queue_begun(struct engine *g, struct sequence *s, uint64_t now_ns) {
    if (!s->queued)
        return;
    queue_left(g, s);
    uint64_t since = atomic_load_explicit(&s->stream->received_ns, memory_order_relaxed);
    since = since > g->queue.last_left_ns ? since : g->queue.last_left_ns;
    forget_an_eighth(&g->queue.gap_ns, now_ns > since ? now_ns - since : 0);
    forget_an_eighth(&g->queue.gap_tokens, s->n_prompt);
    g->queue.last_left_ns = now_ns;
    if (s->start_by_ns == 0)
        return;
    heap_remove(&g->deadlines, s);
    s->start_by_ns = 0;
    s->due_ns = s->deadline_ns;
    if (s->due_ns > 0)
        heap_push(&g->deadlines, s);
}

uint64_t queue_start_by(const struct engine_options *o, uint64_t received_ns, uint32_t queue_ms) {
    uint32_t ms = o->max_queue_ms;
    if (queue_ms > 0 && (ms == 0 || queue_ms < ms))
        ms = queue_ms;
    return ms > 0 ? received_ns + (uint64_t)ms * MS_NS : 0;
}

/* The lead may have ended, and its sequence be gone. */
static bool lead_reads(const struct sequence *s) {
    const struct sequence *lead = s->lead != NULL ? s->lead->sequence : NULL;
    return lead != NULL && lead->state != SEQUENCE_ENDING && lead->n_tokens == lead->n_prompt;
}

void queue_hold(struct engine *g, struct sequence *s) {
    if (g->prefix.n_units > 0 && s->n_prompt > PAGE_TOKENS && lead_reads(s)) {
        s->held = true;
        g->n_held++;
    }
}

void queue_unhold(struct engine *g, struct sequence *s) {
    g->n_held -= s->held;
    s->held = false;
}

void queue_release(struct engine *g) {
    bool look = g->n_held > 0 && g->look_at_held;
    g->look_at_held = false;
    for (uint32_t i = 0; look && g->n_held > 0 && i < g->waiting.n;) {
        struct sequence *s = g->waiting.items[i];
        if (s->held && !lead_reads(s)) {
            heap_remove(&g->waiting, s);
            queue_unhold(g, s);
            heap_push(&g->waiting, s);
            i = 0; /* the heap is another */
        } else {
            i++;
        }
    }
}

enum engine_finish queue_lateness(const struct sequence *s, uint64_t now_ns) {
    return s->deadline_ns > 0 && s->deadline_ns <= now_ns ? ENGINE_FINISH_DEADLINE : ENGINE_FINISH_QUEUE_TIME;
}

uint32_t engine_retry_ms(struct engine *g, uint32_t n_prompt) {
    double gap_ns = (double)atomic_load_explicit(&g->queue.gap_ns, memory_order_relaxed);
    double gap_tokens = (double)atomic_load_explicit(&g->queue.gap_tokens, memory_order_relaxed);
    double over = (double)atomic_load(&g->queue.tokens) + n_prompt - (double)g->o.max_queue_tokens;
    if (gap_ns == 0)
        return RETRY_UNKNOWN;
    double leaves = 1; /* requests that have to begin before there is room */
    if (g->o.max_queue_tokens > 0 && gap_tokens > 0 && over > gap_tokens)
        leaves = over / gap_tokens;
    double ms = leaves * gap_ns / MS_NS;
    return ms < RETRY_LEAST_MS ? RETRY_LEAST_MS : ms > RETRY_MOST_MS ? RETRY_MOST_MS : (uint32_t)ms;
}
