/* reuse.c - see reuse.h. */
#include "daemon/engine/reuse.h"

#include "daemon/engine/disk.h"

#include "base/clock.h"
#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define SNAPSHOT_EVERY  4096u /* tokens of a long prompt */
#define SNAPSHOT_ANSWER 1024u /* tokens of a long answer, and up to as many more: not all in the same step */
#define SNAPSHOT_GAP    PAGE_TOKENS /* rows that a snapshot has to save, to be worth its unit and its step */
#define COPIES_MAX      64u /* pages that a step moves between device and host: some ms of a large model */

static const uint32_t no_salt[PAGE_TOKENS];

static const uint32_t *salt_of(const struct sequence *s) {
    return s->salt != NULL ? s->salt : no_salt;
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* The first step that not every rank has completed; one that is being planned counts. */
static uint64_t oldest_step(const struct engine *g) {
    return g->n_flights > 0 ? g->flights[g->flight_first].step : g->step_next;
}

int reuse_begin(struct engine *g) {
    uint64_t seed;
    if (!g->o.prefix_cache)
        return 0;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = splitmix64(clock_ns()); /* worse only against who makes ids that collide */
    int r = prefix_init(&g->prefix, &g->geometry, seed);
    g->now.snapshots_max = g->prefix.n_units;
    g->now.host_pages_max = g->prefix.n_page_units;
    return r;
}

static bool caches(const struct engine *g) {
    return g->prefix.n_units > 0;
}

/* A suspect is tried with what it computes itself; rows that were not computed have no scores. */
static bool computes_all(const struct sequence *s) {
    return s->suspect || (s->scores && s->scored + 1 < s->n_prompt);
}

/* --- coming --- */

/* Rows that s may take from the cache: at least its last one is computed, and where output is counted apart from input
 * all that it has generated. */
static uint32_t rows_most(const struct sequence *s) {
    bool counts = s->sampling.presence_penalty != 0 || s->sampling.frequency_penalty != 0;
    return counts ? least(s->n_prompt, s->n_tokens - 1) : s->n_tokens - 1;
}

/* What the cache has for s. Looked up once for each change there: one that waits is asked about in every step. */
static void find(const struct engine *g, struct sequence *s) {
    const struct prefix *x = &g->prefix;
    if (s->found_changes == x->changes)
        return;
    s->found = prefix_find(x, salt_of(s), s->tokens, s->n_tokens, rows_most(s));
    s->found_changes = x->changes;
}

bool reuse_fits(const struct engine *g, struct sequence *s, uint32_t spare, struct prefix_hit *ret) {
    uint32_t pages = pools_pages_for(&g->pools, s->n_tokens) + spare;
    uint32_t available = pools_available(&g->pools);
    *ret = (struct prefix_hit){.snapshot = PREFIX_NONE};
    if (!caches(g) || computes_all(s))
        return pages <= available;
    find(g, s);
    *ret = s->found;
    if (pages - ret->n_pages <= available &&
            pages - ret->n_pages + prefix_idle_pages(&g->prefix, &g->pools, ret) <= available)
        return true;
    /* The page to copy is one more than without the cache, which does not keep anybody out. */
    *ret = (struct prefix_hit){.snapshot = PREFIX_NONE};
    return pages <= available;
}

/* Whether r will leave a state after rows that s begins with, too. */
static bool leaves_for(const struct sequence *r, const struct sequence *s, uint32_t least_rows) {
    uint32_t most = rows_most(s);
    for (uint32_t i = 0; i < r->n_marks; i++) {
        uint32_t mark = r->marks[i];
        if (mark > r->kept_at && mark >= r->planned && mark >= least_rows && mark <= most &&
                memcmp(r->tokens, s->tokens, mark * sizeof(s->tokens[0])) == 0)
            return true;
    }
    return false;
}

bool reuse_is_coming(const struct engine *g, const struct sequence *s, const struct prefix_hit *hit) {
    for (uint32_t i = 0; caches(g) && !computes_all(s) && i < g->n_running; i++) {
        const struct sequence *r = g->running[i];
        /* One whose prompt is scored gets on as its reader reads. */
        if (r->state == SEQUENCE_RUNNING && !computes_all(r) && sequence_before(r, s) &&
                leaves_for(r, s, hit->length + SNAPSHOT_GAP) &&
                memcmp(salt_of(r), salt_of(s), sizeof(no_salt)) == 0)
            return true;
    }
    return false;
}

static void add_mark(struct sequence *s, uint32_t at, uint32_t last) {
    uint32_t before = s->n_marks > 0 ? s->marks[s->n_marks - 1] : s->kept_at;
    if (at >= before + SNAPSHOT_GAP && (at == last || at + SNAPSHOT_GAP <= last))
        s->marks[s->n_marks++] = at;
}

/* At least one row is left after the last, so that an equal prompt can go on from it, too; a boundary of a block costs
 * least. */
static void set_marks(struct sequence *s, const struct prefix_hit *hit) {
    uint32_t last = (s->n_prompt - 1) / GDN_BLOCK * GDN_BLOCK;
    if (s->turn_end > 0 && s->turn_end < s->n_prompt && s->n_prompt - s->turn_end <= PAGE_TOKENS)
        last = s->turn_end;
    uint32_t a = s->shared_end, b = hit->matched;
    if (b < a + SNAPSHOT_GAP && a < b + SNAPSHOT_GAP && a > s->kept_at)
        b = 0; /* as good as the other, which somebody knew */
    s->n_marks = 0;
    add_mark(s, least(a, b), last);
    add_mark(s, a > b ? a : b, last);
    if (s->n_marks == 0 || s->marks[s->n_marks - 1] < last)
        add_mark(s, last, last);
}

void reuse_admitted(struct engine *g, struct sequence *s, const struct prefix_hit *hit) {
    s->planned = s->kept_at = hit->length;
    s->restore = hit->snapshot;
    if (s->n_tokens == s->n_prompt)
        atomic_store_explicit(&s->stream->cached_tokens, hit->length, memory_order_relaxed);
    if (!caches(g) || s->suspect)
        return;
    prefix_enter(&g->prefix, &g->pools, s->slot, salt_of(s), hit, &s->path);
    set_marks(s, hit);
    g->now.prefix_hits_total += hit->snapshot != PREFIX_NONE;
}

/* --- pages --- */

/* The pages of what others have computed twice, where the nodes have those that nobody uses. Looked for once after
 * somebody has left such a node. */
static bool settle(struct engine *g) {
    bool any = false;
    if (!g->prefix.unsettled)
        return false;
    g->prefix.unsettled = g->pools.n_to_keep > 0; /* who waits to be kept has its pages until then */
    for (uint32_t i = 0; i < g->n_running; i++) {
        const struct sequence *s = g->running[i];
        any |= prefix_settle(&g->prefix, &g->pools, s->slot, &s->path);
    }
    return any;
}

static enum reuse_room make_free(struct engine *g, uint32_t pages) {
    if (pages > pools_available(&g->pools))
        return ROOM_NONE;
    while (g->pools.n_free_pages < pages) {
        struct prefix_copy copy;
        bool may_copy = g->n_copies < COPIES_MAX;
        if (!prefix_evict(&g->prefix, &g->pools, oldest_step(g), may_copy, &copy) && !settle(g))
            return ROOM_SOON;
        if (copy.unit == PREFIX_NONE)
            continue;
        step_add_memory(g->writer, STEP_MEMORY_PAGE_OUT, copy.page, copy.unit);
        g->n_copies++;
        g->now.host_pages_out_total++;
    }
    return ROOM_READY;
}

void reuse_begin_plan(struct engine *g) {
    g->prefix.step = g->step_next;
    g->n_copies = 0;
}

bool reuse_has_moved(const struct engine *g) {
    return g->n_copies > 0;
}

/* Brings what is missing of a hit to the device, from its beginning. */
static bool bring(struct engine *g, const struct prefix_hit *hit) {
    uint32_t nodes[STEP_SLOT_PAGES_MAX], n, page;
    uint32_t node = g->prefix.snapshots[hit->snapshot].node;
    prefix_missing(&g->prefix, hit, &n);
    assert(n <= STEP_SLOT_PAGES_MAX);
    for (uint32_t i = n; i > 0; node = g->prefix.nodes[node].parent)
        nodes[--i] = node;
    for (uint32_t i = 0; i < n; i++) {
        if (g->n_copies >= COPIES_MAX || make_free(g, 1) != ROOM_READY)
            return false;
        uint32_t unit = prefix_bring(&g->prefix, &g->pools, nodes[i], &page);
        step_add_memory(g->writer, STEP_MEMORY_PAGE_IN, unit, page);
        g->n_copies++;
        g->now.host_pages_in_total++;
    }
    return true;
}

bool reuse_is_away(struct engine *g, const struct sequence *s, struct prefix_hit *hit) {
    uint32_t n;
    if (caches(g) && !computes_all(s) && disk_is_coming(g, s, salt_of(s), hit))
        return true;
    if (prefix_missing(&g->prefix, hit, &n) == 0)
        return false;
    prefix_hold(&g->prefix, &g->pools, hit->snapshot); /* or it might be what makes room for itself */
    bool there = bring(g, hit);
    prefix_unhold(&g->prefix, &g->pools, hit->snapshot);
    if (there || g->n_copies > 0 || g->n_flights > 0 || g->n_running > 0 ||
            pools_pages_for(&g->pools, s->n_tokens) > pools_available(&g->pools))
        return !there;
    *hit = (struct prefix_hit){.snapshot = PREFIX_NONE}; /* nothing will happen that makes room */
    return false;
}

enum reuse_room reuse_grant(
        struct engine *g, struct sequence *s, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n) {
    enum reuse_room room = make_free(g, pools_lacks(&g->pools, s->slot, rows));
    if (room != ROOM_READY)
        return room;
    pools_grant(&g->pools, s->slot, rows, ret_first, ret_n);
    if (!s->opened) { /* what came from the cache as well */
        *ret_first = 0;
        *ret_n = g->pools.table_len[s->slot];
    }
    return room;
}

/* --- in the plan --- */

void reuse_open(struct engine *g, struct sequence *s) {
    if (s->restore == PREFIX_NONE) {
        step_add_memory(g->writer, STEP_MEMORY_ZERO_SLOT, s->slot, 0);
        return;
    }
    struct prefix_snapshot *from = &g->prefix.snapshots[s->restore];
    step_add_memory(g->writer, STEP_MEMORY_RESTORE_SLOT, s->restore, s->slot);
    if (from->tail != 0) {
        const struct prefix_node *tail = &g->prefix.nodes[from->tail];
        bool on_device = tail->page != 0;
        step_add_memory(g->writer, on_device ? STEP_MEMORY_COPY_PAGE : STEP_MEMORY_PAGE_IN,
                on_device ? tail->page : tail->unit, pools_table(&g->pools, s->slot)[s->path.n_pages]);
        g->now.host_pages_in_total += !on_device;
        if (!on_device)
            g->prefix.unit_steps[tail->unit] = g->step_next;
    }
    from->step = g->step_next;
    prefix_unpin(&g->prefix, &g->pools, s->restore);
    s->restore = PREFIX_NONE;
}

/* The first position above `at` where a snapshot is wanted; length 0 = none. */
static struct prefix_place next_mark(const struct sequence *s, uint32_t at) {
    uint32_t next = 0, last = s->n_marks > 0 ? s->marks[s->n_marks - 1] : 0;
    for (uint32_t i = s->n_marks; i > 0 && s->marks[i - 1] > at; i--)
        next = s->marks[i - 1];
    uint32_t every = (at / SNAPSHOT_EVERY + 1) * SNAPSHOT_EVERY;
    for (uint32_t i = s->n_message_ends; i > 0 && s->message_ends[i - 1] > at; i--)
        every = least(every, s->message_ends[i - 1]);
    bool replayed = s->n_tokens > s->n_prompt && at >= last && every + SNAPSHOT_GAP <= s->prefill_end;
    if (every < next || replayed)
        return (struct prefix_place){.length = every, .passing = true};
    return (struct prefix_place){.length = next};
}

uint32_t reuse_stop(const struct sequence *s, uint32_t stop) {
    uint32_t mark = next_mark(s, s->planned).length;
    if (mark > 0 && stop >= mark)
        return mark;
    if (stop < s->prefill_end && stop != s->n_prompt && stop - stop % GDN_BLOCK > s->planned)
        stop -= stop % GDN_BLOCK; /* a cut at a block boundary costs the least */
    return stop;
}

/* A unit for the state after the planned rows, all of known tokens. */
static uint32_t keep(struct engine *g, struct sequence *s, bool passing) {
    assert(s->planned <= s->n_tokens);
    struct prefix_place at = {.length = s->planned, .passing = passing};
    s->kept_at = s->planned;
    prefix_extend(&g->prefix, &g->pools, s->slot, s->tokens, s->planned / PAGE_TOKENS, &s->path);
    uint32_t unit = prefix_keep(&g->prefix, &g->pools, s->slot, s->tokens, at, &s->path, oldest_step(g));
    g->now.snapshots_total += unit != PREFIX_NONE;
    return unit;
}

static void plan_snapshot(struct engine *g, uint32_t slot, uint32_t unit) {
    step_add_memory(g->writer, STEP_MEMORY_SNAPSHOT_SLOT, slot, unit);
    g->prefix.snapshots[unit].step = g->step_next;
}

/* Whether an answer is long enough for the next one. */
static bool is_due(const struct sequence *s) {
    uint32_t apart = (uint32_t)(s->number % (SNAPSHOT_ANSWER / GDN_BLOCK)) * GDN_BLOCK;
    return s->path.node != 0 && s->planned >= s->prefill_end &&
           s->planned >= s->kept_at + SNAPSHOT_ANSWER + apart;
}

bool reuse_wants_no_drafts(const struct sequence *s) {
    return is_due(s) && s->planned > s->n_tokens; /* as if all drafts on their way were accepted */
}

static bool is_marked(const struct sequence *s, bool *ret_passing) {
    if (s->planned >= s->prefill_end) {
        *ret_passing = true;
        return is_due(s) && s->planned <= s->n_tokens;
    }
    if (s->path.node == 0 || s->planned == 0 || s->planned <= s->kept_at)
        return false;
    struct prefix_place mark = next_mark(s, s->planned - 1);
    *ret_passing = mark.passing;
    return mark.length == s->planned;
}

void reuse_mark(struct engine *g, struct sequence *s) {
    bool passing;
    if (!is_marked(s, &passing))
        return;
    uint32_t unit = keep(g, s, passing);
    if (unit != PREFIX_NONE)
        plan_snapshot(g, s->slot, unit);
}

uint32_t reuse_keep_left(struct engine *g, uint32_t n) {
    for (; n < g->pools.n_to_keep; n++)
        plan_snapshot(g, g->pools.to_keep[n].slot, g->pools.to_keep[n].unit);
    return n;
}

/* --- going --- */

void reuse_leave(struct engine *g, struct sequence *s, bool keep_state) {
    uint32_t unit = POOLS_NO_UNIT;
    if (s->restore != PREFIX_NONE)
        prefix_unpin(&g->prefix, &g->pools, s->restore);
    /* A row of the last token may have been computed before its end was known; none after that, since ranks accept no
     * draft behind a token that ends the sequence. */
    if (keep_state && s->opened && s->path.node != 0 && s->planned >= s->kept_at + SNAPSHOT_GAP)
        unit = keep(g, s, /* passing= */ false);
    pools_release(&g->pools, s->slot, s->opened, unit);
    if (s->path.node != 0)
        prefix_leave(&g->prefix, &g->pools, &s->path);
    reuse_forget(s);
}

void reuse_forget(struct sequence *s) {
    s->path = (struct prefix_path){0};
    s->restore = PREFIX_NONE;
    s->n_marks = 0;
    s->found_changes = 0; /* it may know more tokens now */
}

void reuse_distrust(struct engine *g, const struct sequence *s) {
    if (s->path.node == 0)
        return;
    prefix_hide(&g->prefix, &s->path);
    disk_distrust(g, s->path.node);
}
