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

#define RIGHT_ID 1u /* which every sample of a slot with drafts is */
#define WRONG_ID 0u
#define WHOLE    1000u /* of bench_options.acceptance */

struct runner {
    const struct bench_run *run;
    const struct bench_options *o;
    struct group *g;
    uint32_t source; /* its slot; the tests' slots are 1.. */
    uint32_t depth;  /* tokens that the source holds */
    bool source_open;
    bool mtp;          /* the ranks run the MTP layer */
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

/* Drafts of a slot that are right in the first `steps` rounds: the given part of all, each slot at another place of the
 * pattern. */
static uint32_t accepted_of(const struct bench_test *t, uint32_t slot, uint32_t steps) {
    const uint64_t phase = slot * UINT64_C(618) % WHOLE;
    return (uint32_t)((phase + (uint64_t)steps * t->drafts * t->acceptance) / WHOLE);
}

/* The MTP layer has an entry for the token after the last row, and for those behind the drafts that it makes. */
static uint32_t positions_behind(const struct bench_test *t) {
    return t->mtp ? 1 + t->drafts : 0;
}
/* Positions that the pages of a sequence of so many tokens reach to. Rows of drafts need pages, too; and until it is
 * known which of a step in flight are right, the next one's may lie behind all of them. */
static uint32_t reach_of(const struct bench_test *t, uint32_t length) {
    return length + (GROUP_IN_FLIGHT + 1) * t->drafts + positions_behind(t);
}
/* Tokens of a slot after so many steps. It holds one more than it generates: it begins with one. */
static uint32_t tokens_of(const struct bench_test *t, uint32_t slot, uint32_t steps) {
    return t->depth + 1 + steps + accepted_of(t, slot, steps);
}
/* Of any slot, the most. */
static uint32_t length_of(const struct bench_test *t) {
    const uint64_t right = ((uint64_t)t->tokens * t->drafts * t->acceptance + WHOLE - 1) / WHOLE;
    return t->kind == BENCH_DECODE ? reach_of(t, t->depth + 1 + t->tokens + (uint32_t)right)
                                   : reach_of(t, t->depth + t->tokens);
}
/* Of a slot that has processed so many tokens in prompts alone. */
static uint32_t prompt_pages(uint32_t tokens, bool mtp) {
    return tokens ? pages_of(tokens + mtp) : 0;
}
/* The source's pages are the first slot's as well, where they are whole. */
static uint64_t test_pages(const struct bench_test *t) {
    return (uint64_t)prompt_pages(t->depth, t->mtp) + (uint64_t)t->batch * pages_of(length_of(t)) -
           t->depth / PAGE_TOKENS;
}

/* Calls visit for every test: depths ascending, of each the prompts first. */
static int each_test(
        const struct bench_options *o, int (*visit)(void *user, struct bench_test *t), void *user) {
    for (uint32_t d = 0; d < o->depths.n; d++) {
        for (uint32_t i = 0; i < o->prompts.n; i++) {
            struct bench_test t = {.kind = BENCH_PROMPT,
                    .tokens = o->prompts.at[i],
                    .depth = o->depths.at[d],
                    .batch = 1,
                    .mtp = o->worker.rank.mtp};
            int r = visit(user, &t);
            if (r < 0)
                return r;
        }
        for (uint32_t i = 0; i < o->batches.n * o->drafts.n && o->decode; i++) {
            struct bench_test t = {.kind = BENCH_DECODE,
                    .tokens = o->decode,
                    .depth = o->depths.at[d],
                    .batch = o->batches.at[i / o->drafts.n],
                    .drafts = o->drafts.at[i % o->drafts.n],
                    .mtp = o->worker.rank.mtp};
            t.acceptance = t.drafts ? o->acceptance : 0;
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

static void add_open(struct runner *r, struct step_writer *w, uint32_t slot, bool drafts) {
    const struct {
        uint32_t id;
        float bias;
    } forced = {RIGHT_ID, 1e6f};
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
        open.n_bias = 1;
        open.bias_at = step_blob(w, &forced, sizeof(forced));
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
            .page_first = prompt_pages(granted, r->mtp)};
    t.n_pages = prompt_pages(first_pos + rows, r->mtp) - t.page_first;
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
    r->g->accepted = 0;
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
    const uint32_t length = tokens_of(test, slot, i), next = tokens_of(test, slot, i + 1),
                   granted = i ? pages_of(reach_of(test, length)) : prompt_pages(length, r->mtp),
                   n_pages = pages_of(reach_of(test, next)) - granted;
    uint32_t drafts[DRAFT_MAX];
    for (uint32_t k = 0; k < test->drafts; k++)
        drafts[k] = k < next - length - 1 ? RIGHT_ID : WRONG_ID;
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
            .n_pages = n_pages,
            .n_draft_next = test->mtp ? test->drafts : 0};
    for (uint32_t k = 0; k < n_pages; k++)
        r->scratch[k] = page_of(r, slot, granted + k);
    if (n_pages)
        t.pages_at = step_blob(w, r->scratch, n_pages * 4);
    if (test->drafts)
        t.drafts_at = step_blob(w, drafts, test->drafts * 4);
    step_add_entry(w, &t);
}

static uint64_t accepted_of_all(const struct bench_test *t) {
    uint64_t n = 0;
    for (uint32_t slot = 1; slot <= t->batch; slot++)
        n += accepted_of(t, slot, t->tokens);
    return n;
}
static int check_accepted(const struct runner *r, const struct bench_test *t, struct error *e) {
    const uint64_t n = accepted_of_all(t);
    if (r->g->accepted == n)
        return 0;
    return error_set(e, -EBADMSG, "the ranks accepted %llu drafts, of which %llu were right",
            (unsigned long long)r->g->accepted, (unsigned long long)n);
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
    return rc == 0 ? check_accepted(r, t, e) : rc;
}

/* --- tests --- */

static int run_test(struct runner *r, struct bench_test *t, struct error *e) {
    const bool prompt = t->kind == BENCH_PROMPT;
    int (*const measure)(struct runner *, const struct bench_test *, double *, struct error *) =
            prompt ? measure_prompt : measure_decode;
    const uint32_t rows = r->g->geometry.rows_max;
    double unused, before = 0;
    t->steps = prompt ? (t->tokens + rows - 1) / rows : t->tokens;
    t->n_tokens = (double)t->tokens * t->batch + (double)accepted_of_all(t);
    /* The lengths of a sequence's steps are as many tokens apart as it gets in each, the new one included. */
    if (!prompt) {
        const double each = t->n_tokens / ((double)t->tokens * t->batch);
        t->step_bytes = bench_step_bytes(&r->run->cost, t->batch, t->depth + 1 + each * (t->tokens + 1) / 2);
    }
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
            .mtp = run->group->geometry.has_mtp != 0,
            .seed = run->options->worker.rank.seed,
            .scratch = calloc(ids > pages ? ids : pages, sizeof(r.scratch[0])),
            .seconds = calloc(run->options->repeat, sizeof(r.seconds[0]))};
    r.steps_max = most_steps(run);
    r.host = calloc(r.steps_max, sizeof(r.host[0]));
    struct visit v = {&r, e};
    int rc = 0;
    if (run->options->worker.rank.mtp && !r.mtp)
        rc = error_set(e, -EINVAL, "--mtp on: this model has no MTP layer; --mtp off measures without");
    else if (!r.scratch || !r.seconds || !r.host)
        rc = error_set(e, -ENOMEM, "out of memory for the tests");
    if (rc == 0)
        rc = each_test(run->options, visit_test, &v);
    free(r.scratch);
    free(r.seconds);
    free(r.host);
    return rc;
}
