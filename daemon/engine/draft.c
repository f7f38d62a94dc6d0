/* draft.c - see draft.h. */
#include "daemon/engine/draft.h"

#include "daemon/engine/masks.h"
#include "daemon/engine/report.h"

#include "base/log.h"

/* Tokens that all indexes together read between two plans: a long prompt, above all one that came from a cache, takes
 * turns. What a step has generated is read at once. */
#define READ_ROUND    2048u
#define READ_AT_ONCE  (2 * (1 + DRAFT_MAX))
#define SILENT_ROUNDS 512u /* a drafter that was not chosen for so many is said to be silent */
#define WAIT_MAX_NS   1e6f /* more than this between two rounds was not the wait for tokens */
#define WAIT_MEMORY   16.0f

static const char *const names[DRAFTERS] = {
        [DRAFTER_MODEL] = "mtp", [DRAFTER_LOOKUP] = "lookup", [DRAFTER_EXTERNAL] = "external"};

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static bool any_drafter(const struct engine *g) {
    bool any = false;
    for (uint32_t k = 0; k < DRAFTERS; k++)
        any |= g->speculation.most[k] > 0;
    return any;
}

static void tell_setup(struct engine *g) {
    const uint32_t *most = g->speculation.most;
    bool asked = g->o.speculative_tokens > 0 && (g->o.drafters != 0 || g->o.drafter.propose != NULL);
    if (any_drafter(g))
        engine_log(g, LOG_LEVEL_NOTICE, "speculation: up to %u drafts by mtp, %u by lookup%s",
                most[DRAFTER_MODEL], most[DRAFTER_LOOKUP],
                most[DRAFTER_EXTERNAL] > 0 ? ", and an external drafter" : "");
    else if (asked && g->geometry.drafts_max == 0)
        engine_log(g, LOG_LEVEL_NOTICE, "no speculation: the workers take no drafts");
    else if (asked)
        engine_log(g, LOG_LEVEL_WARNING,
                "no speculation: the workers run no MTP layer, and nobody else may make drafts");
}

void draft_setup(struct engine *g) {
    uint32_t most = least(g->o.speculative_tokens, g->geometry.drafts_max);
    bool model = (g->o.drafters & ENGINE_DRAFTS_OF_MODEL) != 0 && g->geometry.has_mtp != 0;
    g->speculation.most[DRAFTER_MODEL] = model ? most : 0;
    g->speculation.most[DRAFTER_LOOKUP] = (g->o.drafters & ENGINE_DRAFTS_OF_LOOKUP) != 0 ? most : 0;
    g->speculation.most[DRAFTER_EXTERNAL] = g->o.drafter.propose != NULL ? most : 0;
    tell_setup(g);
}

/* --- the choice --- */

static bool decodes(const struct sequence *s) {
    return s->state == SEQUENCE_RUNNING && s->planned >= s->prefill_end && s->samples < s->max_tokens;
}

static uint32_t match_of(const struct sequence *s) {
    return s->lookup.at > 0 && s->lookup.read == s->n_tokens ? s->lookup.length : 0;
}

/* Says once when a drafter is not worth its rows any more, and when it is again. */
static void tell_silence(struct engine *g) {
    const struct speculation *x = &g->speculation;
    for (uint32_t k = 0; k < DRAFTERS; k++) {
        bool silent = x->unused[k] >= SILENT_ROUNDS;
        if (silent == g->drafter_silent[k] || (!silent && x->unused[k] > 0))
            continue;
        g->drafter_silent[k] = silent;
        double percent = 100 * (double)speculation_odds(x, (enum drafter)k);
        if (silent)
            engine_log(g, LOG_LEVEL_NOTICE,
                    "drafts of %s are not worth their time now, %.0f of 100 are right: there are none until they are",
                    names[k], percent);
        else
            engine_log(g, LOG_LEVEL_NOTICE, "drafts of %s are worth their time again, %.0f of 100 are right",
                    names[k], percent);
    }
}

bool draft_round(struct engine *g) {
    struct speculation *x = &g->speculation;
    uint32_t n = 0;
    if (!any_drafter(g))
        return true;
    g->tokens_to_read = READ_ROUND;
    if (g->n_plans > 0 && x->synchronous)
        return false;
    for (uint32_t i = 0; i < g->n_running; i++) {
        struct sequence *s = g->running[i];
        if (!decodes(s))
            continue;
        struct draft_stream *t = &g->draft_streams[n++];
        t->d = &s->drafting;
        t->most = least(s->max_tokens - s->samples - 1, DRAFT_MAX);
        t->match = match_of(s);
        t->on_host = masks_watch(s);
    }
    speculation_choose(x, g->draft_streams, n);
    tell_silence(g);
    return g->n_plans == 0 || !x->synchronous;
}

/* --- one entry --- */

/* Drafts for the step after the next one, which gives a token at least. */
static uint32_t wanted_next(const struct engine *g, const struct sequence *s, uint32_t wanted) {
    uint32_t left = s->max_tokens - s->samples; /* with the next one's */
    return left < 3 ? 0 : least(least(wanted, g->speculation.most[DRAFTER_MODEL]), left - 2);
}

static uint32_t external(const struct engine *g, const struct sequence *s, uint32_t most, uint32_t *ret) {
    uint32_t n = g->o.drafter.propose(g->o.drafter.user, s->number, s->tokens, s->n_tokens, most, ret);
    for (uint32_t i = 0; i < n && i < most; i++) {
        if (ret[i] >= g->geometry.vocab_size)
            return i;
    }
    return least(n, most);
}

void draft_continue(const struct engine *g, const struct sequence *s, uint32_t most, struct draft *ret) {
    const struct drafting *d = &s->drafting;
    uint32_t n = least(least(d->n, g->speculation.most[d->drafter]), most - 1);
    bool known = sequence_known(s);
    ret->drafter = d->drafter;
    ret->n = ret->n_next = 0;
    if (d->drafter == DRAFTER_MODEL) {
        ret->n = least(n, s->drafts_left);
        ret->n_next = wanted_next(g, s, d->n);
    } else if (known && d->drafter == DRAFTER_LOOKUP && match_of(s) > 0) {
        ret->n = lookup_drafts(&s->lookup, s->tokens, n, ret->ids);
    } else if (known && d->drafter == DRAFTER_EXTERNAL && n > 0) {
        ret->n = external(g, s, n, ret->ids);
    }
}

void draft_first(const struct engine *g, const struct sequence *s, struct draft *ret) {
    const struct drafting *d = &s->drafting;
    ret->drafter = DRAFTER_MODEL;
    ret->n = 0;
    ret->n_next = d->drafter == DRAFTER_MODEL ? wanted_next(g, s, d->n) : 0;
}

/* --- what became of it --- */

void draft_read(struct engine *g, struct sequence *s, uint32_t end) {
    struct lookup *l = &s->lookup;
    if (l->table == NULL)
        return;
    uint32_t n = l->read < end ? end - l->read : 0;
    if (n > READ_AT_ONCE) {
        n = least(n, g->tokens_to_read);
        g->tokens_to_read -= n;
    }
    for (uint32_t i = 0; i < n; i++) {
        bool generated = l->read >= s->n_prompt;
        struct lookup_score score = lookup_read(l, s->tokens);
        if (generated)
            speculation_looked_up(&g->speculation, &s->drafting, &score);
    }
}

void draft_retired(struct engine *g, const struct flight_entry *t, uint32_t n_accepted) {
    struct engine_drafter_stats *stats = &g->now.drafters[t->drafter];
    if (t->n_drafts == 0)
        return;
    g->now.draft_rounds_total++;
    for (uint32_t i = 0; i < t->n_drafts; i++) {
        stats->proposed[i]++;
        stats->accepted[i] += i < n_accepted;
    }
    if (t->drafter != DRAFTER_LOOKUP) /* whose copies are compared token by token, drafts or not */
        speculation_accepted(&g->speculation, &t->sequence->drafting, t->drafter, t->n_drafts, n_accepted);
}

void draft_measured(struct engine *g, const struct flight *f, uint64_t compute_ns) {
    struct speculation *x = &g->speculation;
    float since = (float)(g->turn_ns - g->retired_ns), ns = (float)compute_ns;
    const uint32_t depth =
            g->retired_depth; /* a step is answered before its drafts are made: they delay the next */
    g->retired_ns = g->turn_ns;
    g->retired_depth = f->draft_depth;
    if (f->n_entries == 0 || f->n_prompt_rows > 0)
        return;
    speculation_measured(x, f->n_rows, depth, ns);
    if (f->waited && since >= ns && since - ns < WAIT_MAX_NS)
        x->wait_ns += (since - ns - x->wait_ns) / WAIT_MEMORY;
}

void draft_publish(struct engine *g) {
    for (uint32_t k = 0; k < DRAFTERS; k++) {
        struct engine_drafter_stats *s = &g->now.drafters[k];
        s->name = names[k];
        s->most = g->speculation.most[k];
        s->silent = g->drafter_silent[k];
    }
}
