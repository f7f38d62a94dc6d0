/* timing.c - see timing.h. The bounds hold those of vLLM's histograms, so that its dashboards read ours, and finer ones
 * where a GPU is faster than they are: daemon/service/metrics_text.c shows both. */
#include "daemon/engine/timing.h"

#include "base/clock.h"

#define MS(n) ((n)*1000000ull)
#define S(n)  ((n)*1000000000ull)

static const uint64_t first_token_bounds[] = {MS(1), MS(5), MS(10), MS(20), MS(40), MS(60), MS(80), MS(100),
        MS(250), MS(500), MS(750), S(1), MS(2500), S(5), MS(7500), S(10), S(20), S(40), S(80), S(160), S(640),
        S(2560)};
static const uint64_t token_bounds[] = {MS(1) / 2, MS(1), MS(2), MS(3), MS(4), MS(5), MS(6), MS(8), MS(10),
        MS(15), MS(20), MS(25), MS(30), MS(40), MS(50), MS(75), MS(100), MS(150), MS(200), MS(300), MS(400),
        MS(500), MS(750), S(1), MS(2500), S(5), MS(7500), S(10), S(20), S(40), S(80)};
static const uint64_t request_bounds[] = {MS(1), MS(5), MS(10), MS(25), MS(50), MS(100), MS(200), MS(300),
        MS(500), MS(800), S(1), MS(1500), S(2), MS(2500), S(5), S(10), S(15), S(20), S(30), S(40), S(50),
        S(60), S(120), S(240), S(480), S(960), S(1920), S(7680)};
static const uint64_t length_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000,
        50000, 100000, 200000, 500000, 1000000};
static const uint64_t step_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

#undef MS
#undef S

#define BOUNDS(list) list, sizeof(list) / sizeof((list)[0])
static const struct {
    const uint64_t *bounds;
    uint32_t n;
} ranges[ENGINE_HISTOGRAMS] = {
        [ENGINE_FIRST_TOKEN_NS] = {BOUNDS(first_token_bounds)},
        [ENGINE_INTER_TOKEN_NS] = {BOUNDS(token_bounds)},
        [ENGINE_QUEUE_NS] = {BOUNDS(request_bounds)},
        [ENGINE_PROMPT_NS] = {BOUNDS(request_bounds)},
        [ENGINE_ANSWER_NS] = {BOUNDS(request_bounds)},
        [ENGINE_TOTAL_NS] = {BOUNDS(request_bounds)},
        [ENGINE_PROMPT_TOKENS] = {BOUNDS(length_bounds)},
        [ENGINE_ANSWER_TOKENS] = {BOUNDS(length_bounds)},
        [ENGINE_MAX_TOKENS] = {BOUNDS(length_bounds)},
        [ENGINE_STEP_ROWS] = {BOUNDS(step_bounds)},
};
_Static_assert(sizeof(token_bounds) / sizeof(uint64_t) <= HISTOGRAM_BOUNDS_MAX, "the longest list fits");

void timing_init(struct engine *g) {
    for (uint32_t i = 0; i < ENGINE_HISTOGRAMS; i++)
        histogram_init(&g->histograms[i], ranges[i].bounds, ranges[i].n);
}

const struct histogram *engine_histogram(const struct engine *g, enum engine_histogram which) {
    return &g->histograms[which];
}

static void add(struct engine *g, enum engine_histogram which, uint64_t from_ns, uint64_t to_ns) {
    histogram_add(&g->histograms[which], to_ns > from_ns ? to_ns - from_ns : 0);
}

static uint64_t moment(const _Atomic uint64_t *ns) {
    return atomic_load_explicit(ns, memory_order_relaxed);
}

void timing_begun(struct engine *g, struct sequence *s) {
    if (moment(&s->stream->first_step_ns) != 0)
        return;
    uint64_t now = clock_ns(); /* once a request: readers of engine_timing see it later than received_ns */
    atomic_store_explicit(&s->stream->first_step_ns, now, memory_order_relaxed);
    add(g, ENGINE_QUEUE_NS, moment(&s->stream->received_ns), now);
}

void timing_step(struct engine *g, uint32_t n_rows) {
    if (n_rows > 0) /* plans that only close slots are none that anybody waits for */
        histogram_add(&g->histograms[ENGINE_STEP_ROWS], n_rows);
}

void timing_token(struct engine *g, struct sequence *s) {
    if (s->n_tokens == s->n_prompt)
        add(g, ENGINE_FIRST_TOKEN_NS, moment(&s->stream->received_ns), g->turn_ns);
    else
        add(g, ENGINE_INTER_TOKEN_NS, s->last_token_ns, g->turn_ns);
    s->last_token_ns = g->turn_ns;
}

void timing_ended(struct engine *g, struct sequence *s, enum engine_finish finish, uint32_t n_tokens) {
    g->now.finished_total[finish]++;
    if (finish != ENGINE_FINISH_STOP_ID && finish != ENGINE_FINISH_LENGTH &&
            finish != ENGINE_FINISH_REQUESTED)
        return; /* how long somebody waited before he went away says nothing of the service */
    uint64_t first = moment(&s->stream->first_token_ns);
    add(g, ENGINE_PROMPT_NS, moment(&s->stream->first_step_ns), first);
    add(g, ENGINE_ANSWER_NS, first, s->last_token_ns);
    add(g, ENGINE_TOTAL_NS, moment(&s->stream->received_ns), g->turn_ns);
    histogram_add(&g->histograms[ENGINE_PROMPT_TOKENS], s->n_prompt);
    histogram_add(&g->histograms[ENGINE_ANSWER_TOKENS], n_tokens);
    histogram_add(&g->histograms[ENGINE_MAX_TOKENS], s->max_tokens);
}
