/* scheduler.c - decides what each step runs. Called by the engine thread only; never blocks and never
 * allocates.
 *
 * Decode rows first (they are what people wait for), then chunks of prompts up to the budget, in serving
 * order: priority, then arrival. A waiting sequence is admitted when there is a slot and there are pages for
 * all its known tokens; nothing overtakes the first one that waits, so nothing starves. Generation takes
 * pages one by one; when they run out the youngest running sequence is put back to waiting and replayed
 * later. The oldest is never put back for pages, so somebody always gets to the end. One whose reader does not read
 * gives its slot up when somebody waits for it.
 *
 * A plan is made while the one before it runs: a CONTINUE row takes its id from the slot, and what the host
 * does not know yet (a stop id) costs at most the rows of one step that nobody sees. Drafts (draft.h) are rows beside
 * it: they take what room there is and put nobody back, and nobody's own row or prompt has to wait for them.
 *
 * While there are suspects (sequences that were being computed when the rank group died) each runs alone before
 * anything else does, through its replay and a few tokens more: a second death then hits the guilty one and
 * nobody else. */
#include "daemon/engine/scheduler.h"

#include "daemon/engine/disk.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/flight.h"
#include "daemon/engine/masks.h"
#include "daemon/engine/queue.h"
#include "daemon/engine/reuse.h"
#include "daemon/engine/sequence.h"
#include "daemon/engine/timing.h"

#include <assert.h>

#define PREFILL_ROWS_MIN 16u
#define SET_BACK_NS      200000000u /* a reader that pauses for less keeps its slot: a replay costs more */
/* Tokens that a suspect generates alone: twice as many after each death, so that one which kills some tokens after
 * it was let go is found in the end. */
#define TRIAL_TOKENS(deaths) (1u << ((deaths) < 6 ? (deaths) : 6))

struct plan {
    struct engine *g;
    struct flight *f;
    uint64_t now;
    uint32_t rows_left, prompt_left, entries_left, drafts_left, masks_left, scores_left;
    uint32_t masks_kept; /* of masks_left, for the first tokens of those that come */
};

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static bool serving(const struct sequence *s) {
    return s->state == SEQUENCE_RUNNING;
}

/* Tokens that the reader has room for beside those that may be on their way. */
static uint32_t reader_room(struct plan *p, struct sequence *s) {
    uint32_t coming = s->samples - (s->n_tokens - s->n_prompt) + s->scoring;
    uint32_t taken = coming + (s == p->g->quarantine ? 0 : STREAM_RESERVE);
    uint32_t places = stream_free_places(s->stream);
    if (places > taken) {
        s->stalled_since_ns = 0;
        return places - taken;
    }
    if (s->stalled_since_ns == 0)
        s->stalled_since_ns = p->now;
    p->g->n_stalled++;
    return 0;
}

static void add_open(struct engine *g, struct sequence *s) {
    struct step_open o = {
            .slot = s->slot,
            .sequence = s->number,
            .temperature = s->sampling.temperature,
            .top_p = s->sampling.top_p,
            .min_p = s->sampling.min_p,
            .top_k = s->sampling.top_k,
            .repetition_penalty = s->sampling.repetition_penalty,
            .presence_penalty = s->sampling.presence_penalty,
            .frequency_penalty = s->sampling.frequency_penalty,
            .min_tokens = s->min_tokens,
            .seed = s->sampling.seed,
            .first_sample_index = s->samples,
    };
    struct bias {
        uint32_t id;
        float bias;
    } bias[LOGIT_BIAS_MAX];
    for (uint32_t i = 0; i < s->n_bias; i++)
        bias[i] = (struct bias){s->bias_ids[i], s->bias[i]};
    if (s->n_bias > 0) {
        o.n_bias = s->n_bias;
        o.bias_at = step_blob(g->writer, bias, s->n_bias * (uint32_t)sizeof(bias[0]));
    }
    if (s->n_stop_ids > 0) {
        o.n_suppress = s->n_stop_ids;
        o.suppress_at = step_blob(g->writer, s->stop_ids, s->n_stop_ids * (uint32_t)sizeof(uint32_t));
    }
    step_add_open(g->writer, &o);
    reuse_open(g, s);
    s->opened = true;
    timing_begun(g, s);
    queue_begun(g, s, g->turn_ns);
}

/* What is reported of an entry's samples and scores: one list, long enough for both. */
static void ask_logprobs(const struct sequence *s, bool sample, struct step_entry *t) {
    bool of_sample = sample && s->logprobs;
    t->top_logprobs = of_sample ? s->top_logprobs : 0;
    if (t->n_scores > 0 && s->score_top > t->top_logprobs)
        t->top_logprobs = s->score_top;
    if (of_sample || t->n_scores > 0)
        t->flags |= STEP_ENTRY_LOGPROB;
}

/* Writes the entry; its pages are there already or granted by it. */
static void add_entry(struct plan *p, struct sequence *s, struct step_entry *t, const struct draft *d,
        uint32_t first, uint32_t n_pages) {
    struct engine *g = p->g;
    bool sample = (t->flags & STEP_ENTRY_SAMPLE) != 0;
    t->slot = s->slot;
    t->rope_at = t->drafts_at = STEP_NONE;
    t->n_draft_next = sample ? d->n_next : 0;
    if (d->n > 0 && d->drafter != DRAFTER_MODEL)
        t->drafts_at = step_blob(g->writer, d->ids, d->n * (uint32_t)sizeof(d->ids[0]));
    t->page_first = first;
    t->n_pages = n_pages;
    if (n_pages > 0) {
        const uint32_t *table = pools_table(&g->pools, s->slot);
        t->pages_at = step_blob(g->writer, table + first, n_pages * (uint32_t)sizeof(uint32_t));
    }
    masks_write(g, s, d->ids, sample ? masks_needed(s, d->ids, d->n) : 0, t);
    ask_logprobs(s, sample, t);
    t->replay = s->planned < s->computed_before;
    step_add_entry(g->writer, t);

    struct flight *f = p->f;
    f->entries[f->n_entries++] = (struct flight_entry){
            .sequence = s,
            .slot = s->slot,
            .top_logprobs = t->top_logprobs,
            .score_first = s->planned,
            .n_scores = t->n_scores,
            .n_drafts = d->n,
            .drafter = d->drafter,
            .sample = sample,
    };
    f->n_rows += t->n_rows;
    f->n_outcomes += sample || t->n_scores > 0;
    f->draft_depth = t->n_draft_next > f->draft_depth ? t->n_draft_next : f->draft_depth;
    s->in_flight++;
    s->planned += t->n_rows;
    s->scoring += t->n_scores;
    s->samples += sample ? 1 + d->n : 0;
    s->drafts_left = t->n_draft_next;
    p->rows_left -= t->n_rows;
    p->entries_left--;
    p->masks_left -= t->n_masks;
    p->scores_left -= t->n_scores;
}

/* Marks the youngest that may be put back. Its pages come when its steps have retired. */
static bool preempt_youngest(struct engine *g) {
    for (uint32_t i = g->n_running; i > 0; i--) {
        struct sequence *s = g->running[i - 1];
        if (serving(s) && s != g->quarantine) {
            sequence_enter(s, SEQUENCE_PREEMPTING);
            g->now.preemptions_total++;
            return true;
        }
    }
    return false;
}

/* --- slots of those that do not read --- */

/* Those that were set back and have read half their ring wait like the others again. */
static void take_up_readers(struct engine *g) {
    for (uint32_t i = 0; g->n_set_back > 0 && i < g->waiting.n;) {
        struct sequence *s = g->waiting.items[i];
        if (s->set_back && stream_free_places(s->stream) >= STREAM_RING_TOKENS / 2) {
            sequence_read_on(g, s);
            i = 0; /* the heap is another */
        } else {
            i++;
        }
    }
}

/* When somebody waits for a slot, one that only waits for its reader gives its own up: a client that does not read
 * must not keep out those that do. Its pages come with it. */
static void set_one_back(struct plan *p) {
    struct engine *g = p->g;
    uint32_t most = least(least(g->o.max_num_seqs, SEQS_MAX), g->pools.n_slots);
    if (g->waiting.n == 0 || g->waiting.items[0]->set_back || g->waiting.items[0]->held ||
            g->n_running < most)
        return;
    for (uint32_t i = 0; i < g->n_running; i++)
        if (g->running[i]->state == SEQUENCE_PREEMPTING)
            return; /* a slot is on its way */
    for (uint32_t i = g->n_running; i > 0; i--) {
        struct sequence *s = g->running[i - 1];
        if (serving(s) && s->stalled_since_ns > 0 && p->now - s->stalled_since_ns >= SET_BACK_NS) {
            sequence_set_back(g, s);
            return;
        }
    }
}

/* Sees to it that `pages` will be free: those that are on their way count, then others are put back for it. */
static void make_room(struct engine *g, uint32_t pages) {
    for (;;) {
        uint32_t coming = pools_available(&g->pools) + pools_coming(&g->pools);
        for (uint32_t i = 0; i < g->n_running; i++) {
            if (!serving(g->running[i]))
                coming += g->pools.table_len[g->running[i]->slot];
        }
        if (coming >= pages || !preempt_youngest(g))
            return;
    }
}

/* Whether the step has the masks that the next samples need, with fewer drafts where it has not enough for all. */
static bool masks_fit(struct plan *p, const struct sequence *s, struct draft *d) {
    uint32_t needed = masks_needed(s, d->ids, d->n),
             left = p->masks_left - least(p->masks_kept, p->masks_left);
    if (needed > left) {
        d->n = 0;
        needed = masks_needed(s, d->ids, 0);
    }
    p->g->short_of_masks |= needed > left;
    return needed <= left;
}

/* Pages for the entry's rows and, where there are some, for the drafts that the model's layer makes behind them. */
static enum reuse_room grant_decode(
        struct engine *g, struct sequence *s, struct draft *d, uint32_t *ret_first, uint32_t *ret_n) {
    uint32_t rows = s->planned + 1 + d->n, most = s->n_prompt + s->max_tokens - 1;
    uint32_t behind = d->n_next > 0 ? d->n_next - 1 : 0;
    if (behind > 0 && reuse_grant(g, s, least(rows + behind, most), ret_first, ret_n) == ROOM_READY)
        return ROOM_READY;
    enum reuse_room pages = reuse_grant(g, s, rows, ret_first, ret_n);
    if (pages == ROOM_READY || d->n == 0)
        return pages;
    d->n = 0; /* nobody waits for the sake of drafts */
    return reuse_grant(g, s, s->planned + 1, ret_first, ret_n);
}

static void plan_decode(struct plan *p, struct sequence *s) {
    struct engine *g = p->g;
    uint32_t first, n, room;
    if (!serving(s) || s->planned < s->prefill_end || s->samples >= s->max_tokens ||
            (masks_watch(s) && !sequence_known(s)) || (room = reader_room(p, s)) == 0)
        return;
    uint32_t most = least(least(room, s->max_tokens - s->samples), 1 + p->drafts_left);
    struct draft d;
    draft_continue(g, s, most, &d);
    if (!masks_fit(p, s, &d))
        return;
    if (d.n > 0 && reuse_wants_no_drafts(s))
        d.n = 0;
    enum reuse_room pages = grant_decode(g, s, &d, &first, &n);
    if (pages == ROOM_NONE)
        make_room(g, 1);
    if (pages != ROOM_READY)
        return;
    struct step_entry t = {
            .kind = STEP_ENTRY_CONTINUE,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = 1 + d.n,
            .first_pos = s->planned,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
    };
    p->drafts_left -= d.n;
    reuse_mark(g, s);
    add_entry(p, s, &t, &d, first, n);
}

/* Masks that the first tokens of prompts may need, as far as they are few: those that decode would take them all. */
static uint32_t masks_of_prompts(const struct engine *g) {
    uint32_t n = g->waiting.n > 0 && masks_possible(g->waiting.items[0]);
    for (uint32_t i = 0; i < g->n_running; i++)
        n += masks_possible(g->running[i]) && g->running[i]->planned < g->running[i]->prefill_end;
    return least(n, (masks_most(g) + 7) / 8);
}

static void plan_decodes(struct plan *p) {
    struct engine *g = p->g;
    /* When not all fit a step they take turns; else the order is the serving order. */
    bool turns = g->n_running > p->rows_left || g->n_running > p->entries_left || g->short_of_masks;
    uint32_t start = turns ? g->rotor : 0, i, refused = UINT32_MAX;
    /* Drafts share half of what one row of each leaves: the other half is for prompts. */
    p->drafts_left = p->rows_left > g->n_running ? (p->rows_left - g->n_running) / 2 : 0;
    g->short_of_masks = false;
    p->masks_kept = masks_of_prompts(g);
    for (i = 0; i < g->n_running && p->rows_left > 0 && p->entries_left > 0; i++) {
        plan_decode(p, g->running[(start + i) % g->n_running]);
        if (g->short_of_masks && refused == UINT32_MAX)
            refused = i; /* is the first of the next step */
    }
    g->rotor = g->n_running > 0 ? (start + (refused < i ? refused : i)) % g->n_running : 0;
}

/* The next chunk of a prompt whose rows are scored: as many as the reader has room for; what a replay computes again is
 * not scored again. False: there is no room. */
static bool scored_part(struct plan *p, struct sequence *s, uint32_t *room, uint32_t *end, bool *ret_scores) {
    uint32_t done = s->scored + s->scoring;
    if (s->planned < done) {
        *end = least(*end, done);
        return true;
    }
    *ret_scores = s->planned + 1 < s->n_prompt;
    if (*ret_scores)
        *room = least(*room, least(p->scores_left, reader_room(p, s)));
    return *room > 0;
}

/* The next chunk of what the host knows. False: nothing more of it can be planned now. */
static bool plan_prompt(struct plan *p, struct sequence *s) {
    struct engine *g = p->g;
    uint32_t room = least(p->prompt_left, p->rows_left), first, n_pages;
    if (!serving(s) || s->planned >= s->prefill_end || room == 0 || p->entries_left == 0)
        return false;
    /* Rows of an entry are all given or all generated. */
    uint32_t end = s->planned < s->n_prompt ? s->n_prompt : s->prefill_end;
    bool scores = false;
    if (s->scores && !scored_part(p, s, &room, &end, &scores))
        return false;
    uint32_t stop = reuse_stop(s, s->planned + least(room, end - s->planned));
    bool sample = stop == s->prefill_end;
    if (sample && (reader_room(p, s) == 0 || masks_needed(s, NULL, 0) > p->masks_left))
        return false;
    /* All pages of what is known are taken with the first chunk: a prompt never waits half way. */
    if (reuse_grant(g, s, s->prefill_end, &first, &n_pages) != ROOM_READY)
        return false;
    if (!s->opened)
        add_open(g, s);
    reuse_mark(g, s);
    struct step_entry t = {
            .kind = STEP_ENTRY_PROMPT,
            .flags = (sample ? STEP_ENTRY_SAMPLE : 0u) |
                     (s->planned >= s->n_prompt ? STEP_ENTRY_GENERATED : 0u),
            .n_rows = stop - s->planned,
            .first_pos = s->planned,
            .ids_at = step_blob(
                    g->writer, s->tokens + s->planned, (stop - s->planned) * (uint32_t)sizeof(uint32_t)),
            .id_after = stop < s->n_tokens ? s->tokens[stop] : STEP_NONE,
            .n_scores = scores ? least(stop, s->n_prompt - 1) - s->planned : 0,
    };
    p->prompt_left -= t.n_rows;
    p->f->n_prompt_rows += t.n_rows;
    draft_read(g, s, stop);
    struct draft d;
    draft_first(g, s, &d);
    add_entry(p, s, &t, &d, first, n_pages);
    return true;
}

/* One that was admitted has its pages to come, when steps in flight retire: nobody is admitted to those. */
static bool awaits_pages(const struct engine *g) {
    for (uint32_t i = 0; i < g->n_running; i++) {
        const struct sequence *s = g->running[i];
        if (serving(s) && !s->opened && s->stalled_since_ns == 0)
            return true;
    }
    return false;
}

/* The first of those that wait, if it can be admitted now. */
static struct sequence *admit(struct plan *p) {
    struct engine *g = p->g;
    if (g->waiting.n == 0 || g->n_running >= least(g->o.max_num_seqs, SEQS_MAX) || awaits_pages(g))
        return NULL;
    struct sequence *s = g->waiting.items[0];
    if (s->set_back || s->held)
        return NULL;
    struct prefix_hit hit;
    /* Some pages are left to those that generate, or the newcomer would soon be put back again. */
    if (g->pools.n_free_slots == 0 || !reuse_fits(g, s, (g->n_running + 15) / 16, &hit) ||
            reuse_is_coming(g, s, &hit) || reuse_is_away(g, s, &hit))
        return NULL;
    sequence_admit(g, s, pools_take_slot(&g->pools));
    reuse_admitted(g, s, &hit);
    return s;
}

static void plan_all(struct plan *p) {
    struct engine *g = p->g;
    set_one_back(p);
    plan_decodes(p);
    for (uint32_t i = 0; i < g->n_running; i++)
        plan_prompt(p, g->running[i]);
    /* A quarter of a record is far more than one sequence adds, its mask apart, so the record never overflows. */
    while (p->prompt_left > 0 && p->rows_left > 0 && p->entries_left > 0 &&
            step_writer_size(g->writer) < STEP_RECORD_MAX / 4 * 3) {
        struct sequence *s = admit(p);
        if (s == NULL || !plan_prompt(p, s))
            break;
    }
}

/* Makes the first suspect the quarantine, once nothing else is in flight and there is room for it. */
static void begin_quarantine(struct engine *g) {
    if (g->n_plans > 0 || g->waiting.n == 0)
        return;
    struct sequence *s = g->waiting.items[0]; /* suspects come first */
    if (!s->suspect)
        return;
    uint32_t pages = pools_pages_for(&g->pools, s->n_tokens);
    uint32_t slot = 0;
    struct prefix_hit hit;
    bool fits = reuse_fits(g, s, 0, &hit);
    if (fits && g->n_running < least(g->o.max_num_seqs, SEQS_MAX))
        slot = pools_take_slot(&g->pools);
    if (slot == 0) {
        if (!fits)
            make_room(g, pages);
        else if (g->pools.n_to_close + g->pools.n_to_keep == 0)
            preempt_youngest(g);
        return;
    }
    sequence_admit(g, s, slot);
    reuse_admitted(g, s, &hit);
    s->trial_end = s->samples + TRIAL_TOKENS(s->deaths);
    g->quarantine = s;
}

/* Returns whether the trial is over with nothing planned, so that somebody else's turn has come. */
static bool plan_quarantine(struct plan *p) {
    struct engine *g = p->g;
    if (g->quarantine == NULL)
        begin_quarantine(g);
    struct sequence *s = g->quarantine;
    if (s == NULL)
        return false;
    if (s->planned < s->prefill_end)
        plan_prompt(p, s);
    else if (s->samples < s->trial_end)
        plan_decode(p, s);
    assert(p->f->n_entries <= 1);
    bool held_up = s->stalled_since_ns > 0; /* by its reader, also where its prompt is scored; not by pages */
    if (p->f->n_entries > 0 || s->in_flight > 0 || !held_up)
        return false;
    sequence_cleared(g, s); /* it has done what can be done now, and others wait */
    return true;
}

/* Those that are to be put back and have nothing in flight. Whether there were any. */
static bool put_back(struct engine *g) {
    bool any = false;
    for (uint32_t i = g->n_running; i > 0; i--) {
        struct sequence *s = g->running[i - 1];
        if (s->state == SEQUENCE_PREEMPTING && s->in_flight == 0) {
            sequence_to_waiting(g, s);
            any = true;
        }
    }
    return any;
}

static uint32_t rows_most(const struct engine *g) {
    return least(least(g->o.max_num_batched_tokens, g->geometry.rows_max), STEP_ROWS_MAX);
}

static void prepare(struct plan *p) {
    struct engine *g = p->g;
    p->rows_left = rows_most(g);
    p->prompt_left = g->o.prefill_target_ms > 0 ? least(p->rows_left, g->prefill_rows) : p->rows_left;
    p->entries_left = least(g->geometry.entries_max, SEQS_MAX);
    p->drafts_left = p->rows_left > 0 ? p->rows_left - 1 : 0; /* of one that runs alone */
    p->masks_left = masks_most(g);
    p->scores_left = SCORES_MAX;
    g->n_stalled = g->n_set_back;
}

int scheduler_plan(struct engine *g, uint64_t now) {
    if (g->n_plans >= PLANS_IN_FLIGHT || g->n_flights >= FLIGHTS_MAX)
        return 0;
    if (g->n_running == 0 && g->waiting.n == 0 && g->pools.n_to_close + g->pools.n_to_keep == 0 &&
            !disk_has_work(g)) {
        g->n_stalled = 0;
        return 0;
    }
    if (!draft_round(g))
        return 0;
    struct plan p = {.g = g, .now = now, .f = flight_begin(g, STEP_TYPE_PLAN)};
    p.f->waited = g->speculation.synchronous;
    reuse_begin_plan(g);
    bool stores = disk_plan(g);
    put_back(g);
    take_up_readers(g);
    queue_release(g);
    bool again;
    uint32_t kept = 0;
    do {
        kept = reuse_keep_left(g, kept);
        prepare(&p);
        again = false;
        if (g->n_suspects > 0)
            again = plan_quarantine(&p);
        else
            plan_all(&p);
        /* Nothing fits, and somebody with nothing in flight was chosen to make room: try again without it. */
    } while (p.f->n_entries == 0 && (again || put_back(g)));
    for (uint32_t i = 0; i < g->pools.n_to_close; i++)
        step_add_close(g->writer, g->pools.to_close[i]);
    if (p.f->n_entries == 0 && g->pools.n_to_close == 0 && kept == 0 && !stores && !reuse_has_moved(g))
        return 0;
    int r = flight_commit(g, p.f, now);
    return r < 0 ? r : 1;
}

/* Prompt rows of the next steps, so that a step takes about the target: scaled by what a step of about this
 * size took, at most doubled or halved at once. Steps with few prompt rows say little and count only when
 * they were too slow. */
void scheduler_measured(struct engine *g, uint32_t n_prompt_rows, uint64_t compute_ns) {
    uint64_t target = (uint64_t)g->o.prefill_target_ms * 1000000u;
    if (target == 0 || n_prompt_rows == 0 || compute_ns == 0)
        return;
    if (n_prompt_rows < g->prefill_rows / 2 && compute_ns < target)
        return;
    double scale = (double)target / (double)compute_ns;
    scale = scale > 2 ? 2 : scale < 0.5 ? 0.5 : scale;
    double rows = (double)n_prompt_rows * scale;
    uint32_t most = rows_most(g);
    g->prefill_rows = rows > most ? most : rows < PREFILL_ROWS_MIN ? PREFILL_ROWS_MIN : (uint32_t)rows;
}
