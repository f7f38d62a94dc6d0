/* run.c - see run.h. */
#include "tp/bench/run.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/statistics.h"
#include "tp/worker/offline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runner {
    const struct bench_run *run;
    const struct bench_options *o;
    struct group *g;
    uint32_t source; /* its slot; the tests' slots are 1.. */
    uint32_t depth;  /* tokens that the source holds */
    bool source_open;
    uint32_t open;     /* slots of a test that are open: 1..open */
    uint32_t stride;   /* pages of each of them */
    uint32_t copied;   /* of them hold the source's pages already */
    uint64_t seed;     /* of the ids */
    uint32_t *scratch; /* [STEP_ROWS_MAX] ids, or [STEP_SLOT_PAGES_MAX] pages of a plan being made */
    double *seconds;   /* [repeat] */
    double *host;      /* [steps_max] seconds of the host for each step of a measurement, see take() */
    uint32_t steps_max, n_host;
    uint64_t host_ns; /* of rank 0 as worker_rank.h has it, when the last answer was taken */
};

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
static uint32_t pages_of(uint32_t tokens) {
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

/* --- what fits --- */

/* Positions that a sequence's pages reach to after `tokens` steps. Rows of drafts need pages, too; and until it is
 * known that those of a step in flight are wrong, the next one's may lie behind them. */
static uint32_t reach_of(const struct bench_test *t, uint32_t tokens) {
    return t->depth + 1 + tokens + (GROUP_IN_FLIGHT + 1) * t->drafts;
}
/* A sequence that decodes holds one token more than it generates: it begins with one. */
static uint32_t length_of(const struct bench_test *t) {
    return t->kind == BENCH_DECODE ? reach_of(t, t->tokens) : t->depth + t->tokens;
}
/* The source's pages are the first slot's as well, where they are whole. */
static uint64_t test_pages(const struct bench_test *t) {
    return (uint64_t)pages_of(t->depth) + (uint64_t)t->batch * pages_of(length_of(t)) -
           t->depth / PAGE_TOKENS;
}

/* Calls visit for every test: depths ascending, of each the prompts first. */
static int each_test(
        const struct bench_options *o, int (*visit)(void *user, struct bench_test *t), void *user) {
    for (uint32_t d = 0; d < o->depths.n; d++) {
        for (uint32_t i = 0; i < o->prompts.n; i++) {
            struct bench_test t = {
                    .kind = BENCH_PROMPT, .tokens = o->prompts.at[i], .depth = o->depths.at[d], .batch = 1};
            int r = visit(user, &t);
            if (r < 0)
                return r;
        }
        for (uint32_t i = 0; i < o->batches.n * o->drafts.n && o->decode; i++) {
            struct bench_test t = {.kind = BENCH_DECODE,
                    .tokens = o->decode,
                    .depth = o->depths.at[d],
                    .batch = o->batches.at[i / o->drafts.n],
                    .drafts = o->drafts.at[i % o->drafts.n]};
            int r = visit(user, &t);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static uint32_t rows_of(const struct bench_test *t) {
    return t->batch * (1 + t->drafts);
}
static int add_needs(void *user, struct bench_test *t) {
    struct bench_needs *n = user;
    const uint64_t pages = test_pages(t);
    n->drafts = t->drafts > n->drafts ? t->drafts : n->drafts;
    n->slots = t->batch + 1 > n->slots ? t->batch + 1 : n->slots;
    n->tokens = length_of(t) > n->tokens ? length_of(t) : n->tokens;
    n->rows = rows_of(t) > n->rows ? rows_of(t) : n->rows;
    if (pages > n->pages)
        n->pages = pages > UINT32_MAX ? UINT32_MAX : (uint32_t)pages;
    return 0;
}

struct bench_needs bench_needs_of(const struct bench_options *o) {
    struct bench_needs n = {0};
    each_test(o, add_needs, &n);
    return n;
}

static bool fits(const struct runner *r, struct bench_test *t) {
    const struct step_geometry *g = &r->g->geometry;
    if (length_of(t) > g->max_model_len)
        snprintf(t->skipped, sizeof(t->skipped), "%u tokens, a sequence can have %u", length_of(t),
                g->max_model_len);
    else if (test_pages(t) > g->pages)
        snprintf(t->skipped, sizeof(t->skipped), "needs %llu pages of KV cache, there is room for %u",
                (unsigned long long)test_pages(t), g->pages);
    else if (t->batch >= g->slots)
        snprintf(t->skipped, sizeof(t->skipped), "needs %u slots, there is room for %u", t->batch + 1,
                g->slots);
    else if (t->drafts > g->drafts_max)
        snprintf(t->skipped, sizeof(t->skipped), "%u drafts, a step takes %u of a sequence", t->drafts,
                g->drafts_max);
    else if (t->kind == BENCH_DECODE && rows_of(t) > g->rows_max)
        snprintf(t->skipped, sizeof(t->skipped), "%u rows, a step has at most %u", rows_of(t), g->rows_max);
    return !t->skipped[0];
}

/* --- pieces of plans --- */

/* The source's pages are the last ones, downwards; the slots' the first ones. */
static uint32_t page_of(const struct runner *r, uint32_t slot, uint32_t k) {
    const uint32_t shared = r->depth / PAGE_TOKENS;
    if (slot == r->source || (slot == 1 && k < shared))
        return r->g->geometry.pages - k;
    return slot == 1 ? 1 + k - shared : 1 + (slot - 1) * r->stride - shared + k;
}

#define WRONG_ID 0u /* a draft; suppressed, so that it is never sampled */
static void add_open(struct runner *r, struct step_writer *w, uint32_t slot, bool drafts) {
    const uint32_t wrong = WRONG_ID;
    const struct worker_options *o = &r->o->worker;
    struct step_open open = offline_greedy();
    open.slot = slot;
    open.sequence = slot;
    open.temperature = o->temperature;
    open.top_k = o->top_k;
    open.top_p = o->top_p;
    open.min_p = o->min_p;
    open.seed = o->rank.seed + slot;
    if (drafts) {
        open.n_suppress = 1;
        open.suppress_at = step_blob(w, &wrong, sizeof(wrong));
        open.min_tokens = NEW_TOKENS_MAX;
    }
    step_add_open(w, &open);
}

/* Rows first_pos.. of a prompt of random ids, with the pages that they need beyond those of `granted` tokens. */
static void add_prompt(struct runner *r, struct step_writer *w, uint32_t slot, uint32_t first_pos,
        uint32_t rows, uint32_t granted, bool sample) {
    struct step_entry t = {.slot = slot,
            .kind = STEP_ENTRY_PROMPT,
            .flags = sample ? STEP_ENTRY_SAMPLE : 0,
            .n_rows = rows,
            .first_pos = first_pos,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE,
            .page_first = pages_of(granted)};
    t.n_pages = pages_of(first_pos + rows) - t.page_first;
    for (uint32_t i = 0; i < t.n_pages; i++)
        r->scratch[i] = page_of(r, slot, t.page_first + i);
    if (t.n_pages)
        t.pages_at = step_blob(w, r->scratch, t.n_pages * 4);
    for (uint32_t i = 0; i < rows; i++)
        r->scratch[i] = (uint32_t)(splitmix64_next(&r->seed) % r->g->geometry.vocab_size);
    t.ids_at = step_blob(w, r->scratch, rows * 4);
    step_add_entry(w, &t);
}

/* Takes the oldest plan back, and notes what the host did since the one before was: for a step that is queued, and one
 * that is answered. */
static int take(struct runner *r, struct error *e) {
    const int rc = group_take(r->g, NULL, e);
    const uint64_t now = atomic_load(&r->g->ranks[0].host_ns);
    if (r->n_host < r->steps_max)
        r->host[r->n_host++] = (double)(now - r->host_ns) / 1e9;
    r->host_ns = now;
    return rc;
}
static int take_all(struct runner *r, struct error *e) {
    int rc = 0;
    while (r->g->in_flight > 0 && rc == 0)
        rc = take(r, e);
    return rc;
}

/* Sends the plan, and takes one back where that fills the way. */
static int pass(struct runner *r, struct error *e) {
    int rc = group_send(r->g, e);
    return rc == 0 && r->g->in_flight == GROUP_IN_FLIGHT ? take(r, e) : rc;
}

/* A prompt of n tokens after what the slot holds; granted: tokens that it has pages for. */
static int process(struct runner *r, uint32_t slot, uint32_t first_pos, uint32_t n, uint32_t granted,
        bool sample, struct error *e) {
    const uint32_t most = r->g->geometry.rows_max;
    for (uint32_t at = 0, rows; at < n; at += rows) {
        rows = least(most, n - at);
        add_prompt(r, group_plan(r->g), slot, first_pos + at, rows, at ? first_pos + at : granted,
                sample && at + rows == n);
        int rc = pass(r, e);
        if (rc < 0)
            return rc;
    }
    return take_all(r, e);
}

/* --- the source and its copies --- */

static int deepen_source(struct runner *r, uint32_t depth, struct error *e) {
    struct step_writer *w;
    if (!r->source_open) {
        w = group_plan(r->g);
        add_open(r, w, r->source, /* drafts= */ false);
        int rc = group_send(r->g, e);
        if (rc < 0)
            return rc;
        r->source_open = true;
    }
    r->copied = 0;
    int rc = process(r, r->source, r->depth, depth - r->depth, r->depth, false, e);
    r->depth = depth;
    return rc;
}

/* The source's tokens into the pages of a test's slot. */
static int copy_pages(struct runner *r, uint32_t slot, struct error *e) {
    const uint32_t n = pages_of(r->depth);
    for (uint32_t k = slot == 1 ? r->depth / PAGE_TOKENS : 0; k < n;) {
        struct step_writer *w = group_plan(r->g);
        for (uint32_t i = 0; i < STEP_MEMORY_MAX && k < n; i++, k++)
            step_add_memory(w, STEP_MEMORY_COPY_PAGE, page_of(r, r->source, k), page_of(r, slot, k));
        int rc = pass(r, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Slots 1..batch anew, each holding what the source holds; nothing is in flight afterwards. */
static int open_slots(struct runner *r, const struct bench_test *t, struct error *e) {
    struct step_writer *w = group_plan(r->g);
    if (r->stride != pages_of(length_of(t)))
        r->copied = 0;
    r->stride = pages_of(length_of(t));
    for (uint32_t i = 1; i <= r->open; i++)
        step_add_close(w, i);
    for (uint32_t i = 1; i <= t->batch; i++) {
        add_open(r, w, i, t->drafts > 0);
        if (r->depth)
            step_add_memory(w, STEP_MEMORY_COPY_SLOT, r->source, i);
    }
    int rc = group_send(r->g, e);
    r->open = t->batch;
    for (; r->copied < t->batch && rc == 0; r->copied++)
        rc = copy_pages(r, r->copied + 1, e);
    return rc == 0 ? take_all(r, e) : rc;
}

/* --- one measurement --- */

static void begin_measurement(struct runner *r) {
    r->n_host = 0;
    r->host_ns = atomic_load(&r->g->ranks[0].host_ns);
}

static int measure_prompt(
        struct runner *r, const struct bench_test *t, double *ret_seconds, struct error *e) {
    int rc = open_slots(r, t, e);
    if (rc < 0)
        return rc;
    begin_measurement(r);
    const uint64_t begin = clock_ns();
    rc = process(r, 1, t->depth, t->tokens, 0, /* sample= */ true, e);
    *ret_seconds = (double)(clock_ns() - begin) / 1e9;
    return rc;
}

/* One token for every slot, each another one, and the pages of what it holds. */
static int first_tokens(struct runner *r, const struct bench_test *t, struct error *e) {
    struct step_writer *w = group_plan(r->g);
    for (uint32_t i = 1; i <= t->batch; i++)
        add_prompt(r, w, i, t->depth, 1, 0, /* sample= */ true);
    int rc = group_send(r->g, e);
    return rc == 0 ? take(r, e) : rc;
}

/* The step after i others. */
static void add_continue(
        struct runner *r, struct step_writer *w, uint32_t slot, const struct bench_test *test, uint32_t i) {
    static const uint32_t drafts[DRAFT_MAX]; /* WRONG_ID */
    const uint32_t granted = pages_of(i ? reach_of(test, i) : test->depth + 1),
                   n_pages = pages_of(reach_of(test, i + 1)) - granted;
    struct step_entry t = {.slot = slot,
            .kind = STEP_ENTRY_CONTINUE,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = 1 + test->drafts,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE,
            .page_first = granted,
            .n_pages = n_pages};
    for (uint32_t k = 0; k < n_pages; k++)
        r->scratch[k] = page_of(r, slot, granted + k);
    if (n_pages)
        t.pages_at = step_blob(w, r->scratch, n_pages * 4);
    if (test->drafts)
        t.drafts_at = step_blob(w, drafts, test->drafts * 4);
    step_add_entry(w, &t);
}

static int measure_decode(
        struct runner *r, const struct bench_test *t, double *ret_seconds, struct error *e) {
    int rc = open_slots(r, t, e);
    if (rc == 0)
        rc = first_tokens(r, t, e);
    begin_measurement(r);
    const uint64_t begin = clock_ns();
    for (uint32_t i = 0; i < t->tokens && rc == 0; i++) {
        struct step_writer *w = group_plan(r->g);
        for (uint32_t slot = 1; slot <= t->batch; slot++)
            add_continue(r, w, slot, t, i);
        rc = pass(r, e);
    }
    if (rc == 0)
        rc = take_all(r, e);
    *ret_seconds = (double)(clock_ns() - begin) / 1e9;
    return rc;
}

/* --- tests --- */

static int run_test(struct runner *r, struct bench_test *t, struct error *e) {
    const bool prompt = t->kind == BENCH_PROMPT;
    int (*const measure)(struct runner *, const struct bench_test *, double *, struct error *) =
            prompt ? measure_prompt : measure_decode;
    const uint32_t rows = r->g->geometry.rows_max;
    double unused, before = 0;
    t->steps = prompt ? (t->tokens + rows - 1) / rows : t->tokens;
    /* The lengths of a sequence's steps are 1 token apart, the new one included. */
    if (!prompt)
        t->step_bytes = bench_step_bytes(&r->run->cost, t->batch, t->depth + 1 + (t->tokens + 1) / 2.0);
    int rc = measure(r, t, &unused, e); /* warms up: clocks, caches, graphs */
    if (rc == 0 && r->run->memory_rate)
        before = r->run->memory_rate(r->run->user);
    for (t->n = 0; t->n < r->o->repeat && rc == 0; t->n++)
        rc = measure(r, t, &r->seconds[t->n], e);
    t->behind = k_runs_behind(group_rank(r->g, 0)->context);
    t->host_mean = statistics_mean(r->host, r->n_host);
    statistics_sort(r->host, r->n_host);
    t->host_seconds = statistics_percentile(r->host, r->n_host, 0.5);
    t->graph_nodes = atomic_load(&r->g->ranks[0].graph_nodes);
    if (rc == 0 && r->run->measured)
        r->run->measured(r->run->user);
    if (rc == 0 && r->run->memory_rate)
        t->memory_rate = (before + r->run->memory_rate(r->run->user)) / 2;
    return rc;
}

struct visit {
    struct runner *r;
    struct error *e;
};

static int visit_test(void *user, struct bench_test *t) {
    struct visit *v = user;
    struct runner *r = v->r;
    int rc = 0;
    t->seconds = r->seconds;
    if (fits(r, t)) {
        if (t->depth > r->depth)
            rc = deepen_source(r, t->depth, v->e);
        if (rc == 0)
            rc = run_test(r, t, v->e);
    }
    if (rc == 0)
        r->run->on_test(r->run->user, t);
    return rc;
}

static uint32_t most_steps(const struct bench_run *run) {
    const uint32_t rows = run->group->geometry.rows_max;
    uint32_t most = run->options->decode + 1;
    for (uint32_t i = 0; i < run->options->prompts.n; i++)
        if (run->options->prompts.at[i] / rows + 1 > most)
            most = run->options->prompts.at[i] / rows + 1;
    return most;
}

int bench_run_all(const struct bench_run *run, struct error *e) {
    const uint32_t ids = STEP_ROWS_MAX, pages = STEP_SLOT_PAGES_MAX;
    struct runner r = {.run = run,
            .o = run->options,
            .g = run->group,
            .source = run->group->geometry.slots,
            .seed = run->options->worker.rank.seed,
            .scratch = calloc(ids > pages ? ids : pages, sizeof(r.scratch[0])),
            .seconds = calloc(run->options->repeat, sizeof(r.seconds[0]))};
    r.steps_max = most_steps(run);
    r.host = calloc(r.steps_max, sizeof(r.host[0]));
    struct visit v = {&r, e};
    int rc = r.scratch && r.seconds && r.host ? each_test(run->options, visit_test, &v)
                                              : error_set(e, -ENOMEM, "out of memory for the tests");
    free(r.scratch);
    free(r.seconds);
    free(r.host);
    return rc;
}
