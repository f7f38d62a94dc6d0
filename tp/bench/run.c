/* run.c - see run.h. */
#include "tp/bench/run.h"

#include "base/clock.h"
#include "base/hash.h"
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
};

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
static uint32_t pages_of(uint32_t tokens) {
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

/* --- what fits --- */

/* A sequence that decodes holds one token more than it generates: it begins with one. */
static uint32_t length_of(const struct bench_test *t) {
    return t->depth + t->tokens + (t->kind == BENCH_DECODE ? 1 : 0);
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
        for (uint32_t i = 0; i < o->batches.n && o->decode; i++) {
            struct bench_test t = {.kind = BENCH_DECODE,
                    .tokens = o->decode,
                    .depth = o->depths.at[d],
                    .batch = o->batches.at[i]};
            int r = visit(user, &t);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

static int add_needs(void *user, struct bench_test *t) {
    struct bench_needs *n = user;
    const uint64_t pages = test_pages(t);
    n->slots = t->batch + 1 > n->slots ? t->batch + 1 : n->slots;
    n->tokens = length_of(t) > n->tokens ? length_of(t) : n->tokens;
    n->rows = t->batch > n->rows ? t->batch : n->rows;
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

static void add_open(struct runner *r, struct step_writer *w, uint32_t slot) {
    const struct worker_options *o = &r->o->worker;
    struct step_open open = offline_greedy();
    open.slot = slot;
    open.sequence = slot;
    open.temperature = o->temperature;
    open.top_k = o->top_k;
    open.top_p = o->top_p;
    open.min_p = o->min_p;
    open.seed = o->rank.seed + slot;
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

/* Sends the plan, and takes one back where that fills the way. */
static int pass(struct runner *r, struct error *e) {
    int rc = group_send(r->g, e);
    return rc == 0 && r->g->in_flight == GROUP_IN_FLIGHT ? group_take(r->g, NULL, e) : rc;
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
    return group_take_all(r->g, e);
}

/* --- the source and its copies --- */

static int deepen_source(struct runner *r, uint32_t depth, struct error *e) {
    struct step_writer *w;
    if (!r->source_open) {
        w = group_plan(r->g);
        add_open(r, w, r->source);
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
        add_open(r, w, i);
        if (r->depth)
            step_add_memory(w, STEP_MEMORY_COPY_SLOT, r->source, i);
    }
    int rc = group_send(r->g, e);
    r->open = t->batch;
    for (; r->copied < t->batch && rc == 0; r->copied++)
        rc = copy_pages(r, r->copied + 1, e);
    return rc == 0 ? group_take_all(r->g, e) : rc;
}

/* --- one measurement --- */

struct times {
    uint64_t wall_ns, host_ns; /* of rank 0, as worker_rank.h */
};

static struct times times_now(const struct runner *r) {
    return (struct times){clock_ns(), atomic_load(&r->g->ranks[0].host_ns)};
}
static struct times times_since(const struct runner *r, struct times begin) {
    const struct times now = times_now(r);
    return (struct times){now.wall_ns - begin.wall_ns, now.host_ns - begin.host_ns};
}

static int measure_prompt(struct runner *r, const struct bench_test *t, struct times *ret, struct error *e) {
    int rc = open_slots(r, t, e);
    if (rc < 0)
        return rc;
    const struct times begin = times_now(r);
    rc = process(r, 1, t->depth, t->tokens, 0, /* sample= */ true, e);
    *ret = times_since(r, begin);
    return rc;
}

/* One token for every slot, each another one, and the pages of what it holds. */
static int first_tokens(struct runner *r, const struct bench_test *t, struct error *e) {
    struct step_writer *w = group_plan(r->g);
    for (uint32_t i = 1; i <= t->batch; i++)
        add_prompt(r, w, i, t->depth, 1, 0, /* sample= */ true);
    int rc = group_send(r->g, e);
    return rc == 0 ? group_take(r->g, NULL, e) : rc;
}

static void add_continue(struct runner *r, struct step_writer *w, uint32_t slot, uint32_t length) {
    struct step_entry t = {.slot = slot,
            .kind = STEP_ENTRY_CONTINUE,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = 1,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
    if (length % PAGE_TOKENS == 0) { /* its row is the first of a page */
        const uint32_t page = page_of(r, slot, length / PAGE_TOKENS);
        t.page_first = length / PAGE_TOKENS;
        t.n_pages = 1;
        t.pages_at = step_blob(w, &page, 4);
    }
    step_add_entry(w, &t);
}

static int measure_decode(struct runner *r, const struct bench_test *t, struct times *ret, struct error *e) {
    int rc = open_slots(r, t, e);
    if (rc == 0)
        rc = first_tokens(r, t, e);
    const struct times begin = times_now(r);
    for (uint32_t i = 0; i < t->tokens && rc == 0; i++) {
        struct step_writer *w = group_plan(r->g);
        for (uint32_t slot = 1; slot <= t->batch; slot++)
            add_continue(r, w, slot, t->depth + 1 + i);
        rc = pass(r, e);
    }
    if (rc == 0)
        rc = group_take_all(r->g, e);
    *ret = times_since(r, begin);
    return rc;
}

/* --- tests --- */

static int run_test(struct runner *r, struct bench_test *t, struct error *e) {
    const bool prompt = t->kind == BENCH_PROMPT;
    int (*const measure)(struct runner *, const struct bench_test *, struct times *, struct error *) =
            prompt ? measure_prompt : measure_decode;
    const uint32_t rows = r->g->geometry.rows_max;
    struct times times = {0};
    double before = 0;
    t->steps = prompt ? (t->tokens + rows - 1) / rows : t->tokens;
    /* The lengths of a sequence's steps are 1 token apart, the new one included. */
    if (!prompt)
        t->step_bytes = bench_step_bytes(&r->run->cost, t->batch, t->depth + 1 + (t->tokens + 1) / 2.0);
    int rc = measure(r, t, &times, e); /* warms up: clocks, caches, graphs */
    if (rc == 0 && r->run->memory_rate)
        before = r->run->memory_rate(r->run->user);
    for (t->n = 0; t->n < r->o->repeat && rc == 0; t->n++) {
        rc = measure(r, t, &times, e);
        r->seconds[t->n] = (double)times.wall_ns / 1e9;
    }
    t->behind = k_runs_behind(group_rank(r->g, 0)->context);
    t->host_seconds = (double)times.host_ns / 1e9 / t->steps;
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

int bench_run_all(const struct bench_run *run, struct error *e) {
    const uint32_t ids = STEP_ROWS_MAX, pages = STEP_SLOT_PAGES_MAX;
    struct runner r = {.run = run,
            .o = run->options,
            .g = run->group,
            .source = run->group->geometry.slots,
            .seed = run->options->worker.rank.seed,
            .scratch = calloc(ids > pages ? ids : pages, sizeof(r.scratch[0])),
            .seconds = calloc(run->options->repeat, sizeof(r.seconds[0]))};
    struct visit v = {&r, e};
    int rc = r.scratch && r.seconds ? each_test(run->options, visit_test, &v)
                                    : error_set(e, -ENOMEM, "out of memory for the tests");
    free(r.scratch);
    free(r.seconds);
    return rc;
}
