/* flight.c - records that are on their way: sending them, matching the ranks' answers, handing out the
 * tokens.
 *
 * Answers come in the order of the records. One is taken when every rank has given it, so tokens are sent
 * only when all ranks agree about them. Nothing here allocates. */
#include "daemon/engine/flight.h"

#include "daemon/engine/disk.h"
#include "daemon/engine/draft.h"

#include "daemon/engine/poke.h"
#include "daemon/engine/report.h"
#include "daemon/engine/reuse.h"
#include "daemon/engine/sequence.h"
#include "daemon/engine/timing.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RESET_PATIENCE 4u

static struct flight *flight_at(struct engine *g, uint32_t i) {
    return &g->flights[(g->flight_first + i) % FLIGHTS_MAX];
}

static void watch_restart(struct engine *g, uint64_t now) {
    for (uint32_t i = 0; i < g->n_ranks; i++)
        g->watch[i].since_ns = now;
    g->watched_ns = now;
}

struct flight *flight_begin(struct engine *g, enum step_type type) {
    assert(g->n_flights < FLIGHTS_MAX);
    struct flight *f = flight_at(g, g->n_flights);
    f->step = type == STEP_TYPE_RESET ? 0 : g->step_next;
    f->type = type;
    f->draft_depth = 0;
    f->n_entries = f->n_outcomes = f->n_rows = f->n_prompt_rows = f->n_closes = 0;
    step_begin(g->writer, type, step_ring_group_epoch(g->ring), step_ring_coord_epoch(g->ring), f->step);
    return f;
}

int flight_commit(struct engine *g, struct flight *f, uint64_t now) {
    void *record;
    uint32_t bytes = step_writer_size(g->writer);
    int r = step_ring_reserve(g->ring, bytes, &record);
    if (r == 0)
        r = step_end(g->writer, record, bytes);
    if (r < 0) /* the ring holds four of the largest records and never as many are in flight */
        return r;
    step_ring_commit(g->ring, bytes);
    f->n_closes = f->type == STEP_TYPE_PLAN ? g->pools.n_to_close : 0;
    if (f->n_closes > 0) {
        memcpy(f->closes, g->pools.to_close, f->n_closes * sizeof(f->closes[0]));
        g->pools.n_to_close = 0;
    }
    if (f->type == STEP_TYPE_PLAN)
        pools_kept(&g->pools);
    if (g->n_flights == 0)
        watch_restart(g, now);
    g->n_flights++;
    g->n_plans += f->type == STEP_TYPE_PLAN;
    g->step_next = f->step + 1;
    g->last_record_ns = now;
    return 0;
}

int flight_send_bare(struct engine *g, enum step_type type, uint64_t now) {
    if (g->n_flights == FLIGHTS_MAX)
        return -EAGAIN;
    return flight_commit(g, flight_begin(g, type), now);
}

/* --- what came back --- */

static bool is_stop_id(const struct sequence *s, uint32_t id, uint32_t index) {
    if (index < s->min_tokens)
        return false;
    for (uint32_t i = 0; i < s->n_stop_ids; i++) {
        if (s->stop_ids[i] == id)
            return true;
    }
    return false;
}

static void take_token(struct engine *g, struct sequence *s, const struct step_sample *sample) {
    uint32_t index = s->n_tokens - s->n_prompt;
    timing_token(g, s);
    g->look_at_held |= index == 0;
    s->tokens[s->n_tokens++] = sample->id;
    g->now.generated_tokens_total++;
    if (!s->counted) {
        s->counted = true;
        g->now.prompt_tokens_total += s->n_prompt;
        g->now.cached_tokens_total += engine_stream_cached_tokens(s->stream);
    }
    if (stream_push(s->stream, sample, s->top_logprobs, /* of_prompt= */ false))
        poke_later(g, &s->stream->poke);
    if (is_stop_id(s, sample->id, index))
        sequence_finish(g, s, ENGINE_FINISH_STOP_ID, NULL);
    else if (index + 1 == s->max_tokens)
        sequence_finish(g, s, ENGINE_FINISH_LENGTH, NULL);
}

/* Without a token this sequence ends, and nobody else notices. */
static void end_without_token(struct engine *g, struct sequence *s, uint32_t status) {
    if (status == STEP_SAMPLE_NO_TOKEN) {
        sequence_finish(g, s, ENGINE_FINISH_NO_TOKEN, NULL);
        return;
    }
    const char *text = "a logit is not a finite number: the weights or this sequence's cache are damaged";
    engine_log(g, LOG_LEVEL_ERROR, "request \"%s\", token %u: %s", s->stream->request_id,
            s->n_tokens - s->n_prompt, text);
    sequence_finish(g, s, ENGINE_FINISH_FAULT, text);
}

static void take_scores(struct engine *g, const struct flight_entry *t, const struct step_outcome *o) {
    struct sequence *s = t->sequence;
    s->scoring -= t->n_scores;
    for (uint32_t i = 0; i < o->n_scores && s->state != SEQUENCE_ENDING; i++) {
        s->scored++;
        if (stream_push(s->stream, &step_outcome_scores(o)[i], s->score_top, /* of_prompt= */ true))
            poke_later(g, &s->stream->poke);
    }
    if (t->sample || o->status == STEP_SAMPLE_OK)
        return;
    reuse_distrust(g, s);
    s->answered = false;
    if (s->state != SEQUENCE_ENDING)
        end_without_token(g, s, o->status);
}

static bool has_outcome(const struct flight_entry *t) {
    return t->sample || t->n_scores > 0;
}

/* Whether an outcome is one that the entry can have. */
static bool answers_entry(
        const struct engine *g, const struct flight_entry *t, const struct step_outcome *o) {
    const struct step_sample *samples = step_outcome_scores(o);
    if (o->slot != t->slot || o->n_accepted > t->n_drafts ||
            (o->n_scores != t->n_scores && (o->status == STEP_SAMPLE_OK || o->n_scores != 0)) ||
            (!t->sample && o->n_samples > 0) ||
            (t->sample && o->n_samples != o->n_accepted + (o->status == STEP_SAMPLE_OK)))
        return false;
    for (uint32_t i = 0; i < o->n_scores; i++) {
        if (samples[i].id != t->sequence->tokens[t->score_first + 1 + i])
            return false;
    }
    for (uint32_t i = 0; i < o->n_scores + o->n_samples; i++) {
        if (samples[i].id >= g->geometry.vocab_size || samples[i].n_top > t->top_logprobs)
            return false;
    }
    return true;
}

/* Rank 0's outcomes against the plan and against every rank's checksum. */
static const char *check_outcomes(struct engine *g, const struct flight *f,
        const struct step_completion **answers, const struct step_outcome *o, uint32_t *ret_rank) {
    uint64_t sum = STEP_CHECKSUM_SEED;
    *ret_rank = 0;
    if (answers[0]->n_outcomes != f->n_outcomes)
        return "rank 0 answered with another number of outcomes than the plan asked for";
    for (uint32_t i = 0; i < f->n_entries; i++) {
        const struct flight_entry *t = &f->entries[i];
        if (!has_outcome(t))
            continue;
        if (!answers_entry(g, t, o))
            return "rank 0 answered with an outcome that the plan did not ask for";
        sum = step_checksum(sum, o, step_outcome_samples(o));
        o = step_outcome_next(o);
    }
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        *ret_rank = i;
        if (answers[i]->checksum != sum)
            return "the ranks do not agree about the sampled tokens (checksum)";
        if (i > 0 && answers[i]->n_outcomes != 0)
            return "a rank other than 0 answered with outcomes";
    }
    return NULL;
}

/* What an entry gave: its drafts are counted as they were taken, its tokens handed out up to the sequence's end, after
 * which the rest is nobody's. The step still names s, so s is there afterwards. */
static void take_outcome(struct engine *g, const struct flight_entry *t, const struct step_outcome *o) {
    struct sequence *s = t->sequence;
    uint32_t rejected = t->n_drafts - o->n_accepted;
    assert(s->n_tokens - s->n_prompt + 1 + t->n_drafts <= s->samples || s->state == SEQUENCE_ENDING);
    s->planned -= rejected;
    s->samples -= rejected;
    draft_retired(g, t, o->n_accepted);
    for (uint32_t i = 0; i < o->n_samples && s->state != SEQUENCE_ENDING; i++)
        take_token(g, s, &step_outcome_samples(o)[i]);
    if (o->status ==
            STEP_SAMPLE_NOT_FINITE) /* also behind its end: the damage may be older than what shows it */
        reuse_distrust(g, s);
    s->answered &= o->status == STEP_SAMPLE_OK; /* or nobody should go on from here */
    if (o->status != STEP_SAMPLE_OK && s->state != SEQUENCE_ENDING)
        end_without_token(g, s, o->status);
    if (s->state != SEQUENCE_ENDING)
        draft_read(g, s, s->n_tokens);
}

static void retire_plan(struct engine *g, struct flight *f, const struct step_outcome *next) {
    for (uint32_t i = 0; i < f->n_closes; i++)
        pools_slot_closed(&g->pools, f->closes[i]);
    for (uint32_t i = 0; i < f->n_entries; i++) {
        const struct flight_entry *t = &f->entries[i];
        if (has_outcome(t)) {
            take_scores(g, t, next);
            if (t->sample)
                take_outcome(g, t, next);
            next = step_outcome_next(next);
        }
        sequence_retired(g, t->sequence);
    }
}

static enum flight_event fault(struct flight_report *r, uint32_t rank, const char *text) {
    r->death = (struct death){.blame = BLAME_ANSWERED, .rank = rank};
    snprintf(r->text, sizeof(r->text), "%s", text);
    return FLIGHT_FAULT;
}

static enum flight_event finish_plan(struct engine *g, struct flight *f,
        const struct step_completion **answers, const struct step_outcome *outcomes,
        struct flight_report *ret) {
    uint32_t rank;
    const char *bad = check_outcomes(g, f, answers, outcomes, &rank);
    if (bad != NULL)
        return fault(ret, rank, bad);
    ret->compute_ns = 0;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        if (answers[i]->compute_ns > ret->compute_ns)
            ret->compute_ns = answers[i]->compute_ns;
    }
    ret->n_prompt_rows = f->n_prompt_rows;
    g->n_plans--;
    g->now.steps_total++;
    g->now.prompt_rows_total += f->n_prompt_rows;
    timing_step(g, f->n_rows);
    draft_measured(g, f, ret->compute_ns);
    retire_plan(g, f, outcomes);
    return FLIGHT_RETIRED;
}

static enum flight_event finish_reset(struct engine *g, const void **bodies, struct flight_report *ret) {
    for (uint32_t i = 0; i < g->n_ranks; i++)
        memcpy(&ret->geometries[i], bodies[i], sizeof(ret->geometries[i]));
    return FLIGHT_READY;
}

/* The rank's answer to the oldest record; answers of other epochs are dropped. */
static int next_answer(
        struct engine *g, uint32_t rank, const struct step_completion **ret, const void **ret_body) {
    for (;;) {
        int r = step_ring_completion(g->ring, rank, ret, ret_body);
        if (r < 0)
            return r;
        if ((*ret)->group_epoch == step_ring_group_epoch(g->ring) &&
                (*ret)->coord_epoch == step_ring_coord_epoch(g->ring))
            return 0;
        g->now.dropped_records_total++;
        step_ring_completion_release(g->ring, rank);
    }
}

/* The answers of all ranks to the oldest record: RETIRED, FAULT, or NONE when one of them has to be waited for. */
static enum flight_event gather(struct engine *g, const struct step_completion **answers, const void **bodies,
        struct flight_report *ret) {
    const struct flight *f = flight_at(g, 0);
    enum flight_event all = FLIGHT_RETIRED;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        int r = next_answer(g, i, &answers[i], &bodies[i]);
        if (r == -EAGAIN) {
            all = FLIGHT_NONE; /* look at the others all the same: a fault of one makes the rest wait for ever */
            continue;
        }
        char text[STEP_FAULT_TEXT_MAX + 1] = "the rank's answers are malformed";
        if (r == 0 && answers[i]->status == STEP_STATUS_FAULT)
            snprintf(text, sizeof(text), "%.*s", (int)answers[i]->n_outcomes, (const char *)bodies[i]);
        else if (r == 0 && (answers[i]->step != f->step || answers[i]->type != f->type))
            snprintf(text, sizeof(text), "the rank answered step %llu, step %llu was next",
                    (unsigned long long)answers[i]->step, (unsigned long long)f->step);
        else if (r == 0)
            continue;
        return fault(ret, i, text);
    }
    return all;
}

enum flight_event flight_next(struct engine *g, uint64_t now, struct flight_report *ret) {
    const struct step_completion *answers[RANKS_MAX];
    const void *bodies[RANKS_MAX];
    if (g->ring == NULL || g->n_flights == 0)
        return FLIGHT_NONE;
    enum flight_event event = gather(g, answers, bodies, ret);
    if (event != FLIGHT_RETIRED)
        return event;
    struct flight *f = flight_at(g, 0);
    watch_restart(g, now);
    g->work_done |= f->type == STEP_TYPE_PLAN;
    if (f->type == STEP_TYPE_INDEX)
        disk_learn(g, answers, bodies);
    if (f->type == STEP_TYPE_PLAN)
        event = finish_plan(g, f, answers, bodies[0], ret);
    else
        event = f->type == STEP_TYPE_RESET ? finish_reset(g, bodies, ret) : FLIGHT_PONG;
    if (event == FLIGHT_FAULT)
        return event; /* the flight stays: what was in it was in flight at the fault */
    g->flight_first = (g->flight_first + 1) % FLIGHTS_MAX;
    g->n_flights--;
    if (f->type != STEP_TYPE_RESET)
        disk_answered(g, answers);
    for (uint32_t i = 0; i < g->n_ranks; i++)
        step_ring_completion_release(g->ring, i);
    return event;
}

/* The last step that the rank has answered, of those that nobody has taken; 0 = none. Takes them. */
static uint64_t last_answered(struct engine *g, uint32_t rank) {
    const struct step_completion *c;
    const void *body;
    uint64_t step = 0;
    while (next_answer(g, rank, &c, &body) == 0) {
        step = c->step;
        step_ring_completion_release(g->ring, rank);
    }
    return step;
}

uint32_t flight_blame(struct engine *g, const struct death *death) {
    bool any = death->rank >= g->n_ranks, all_of_oldest = death->blame == BLAME_ANSWERED;
    uint64_t begun[RANKS_MAX] = {0}, answered[RANKS_MAX] = {0};
    uint32_t n = 0;
    for (uint32_t r = 0; death->blame == BLAME_EXECUTING && r < g->n_ranks; r++) {
        struct step_progress progress;
        if (!any && r != death->rank)
            continue;
        step_ring_progress_read(g->ring, r, &progress);
        begun[r] = progress.step;
        answered[r] = last_answered(g, r);
    }
    for (uint32_t i = 0; i < g->n_flights; i++) {
        struct flight *f = flight_at(g, i);
        bool at_work = all_of_oldest && i == 0;
        for (uint32_t r = 0; r < g->n_ranks; r++)
            at_work |= answered[r] < f->step && f->step <= begun[r];
        for (uint32_t k = 0; at_work && k < f->n_entries; k++) {
            n += !f->entries[k].sequence->blamed;
            f->entries[k].sequence->blamed = true;
        }
    }
    return n;
}

void flight_forget(struct engine *g) {
    g->n_flights = g->n_plans = 0;
    g->flight_first = 0;
}

/* --- stuck ranks --- */

static bool less_far(const struct step_progress *a, const struct step_progress *b) {
    if (a->step != b->step)
        return a->step < b->step;
    return a->layer != b->layer ? a->layer < b->layer : a->operation < b->operation;
}

/* Work is pending and no rank that owes an answer has moved for step_timeout_ms: the one that came least far
 * is it. A RESET may wait for a step that an earlier coordinator committed, whose progress is in another
 * ring: more time. */
enum flight_event flight_watch(struct engine *g, uint64_t now, struct flight_report *ret) {
    struct step_progress least = {.step = UINT64_MAX};
    uint32_t rank = RANKS_MAX;
    if (g->ring == NULL || g->n_flights == 0)
        return FLIGHT_NONE;
    uint32_t limit_ms = g->o.step_timeout_ms;
    if (flight_at(g, 0)->type == STEP_TYPE_RESET)
        limit_ms = limit_ms < UINT32_MAX / RESET_PATIENCE ? limit_ms * RESET_PATIENCE : UINT32_MAX;
    /* The engine looks four times within the step timeout. When it did not, it was not run itself (a paused machine, a
     * closed laptop), and nor were the ranks: that is no time in which they could have moved. */
    if (now - g->watched_ns > (uint64_t)g->o.step_timeout_ms * 1000000u / 2)
        watch_restart(g, now);
    g->watched_ns = now;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        const struct step_completion *c;
        const void *body;
        struct step_progress progress;
        if (step_ring_completion(g->ring, i, &c, &body) == 0)
            continue;
        step_ring_progress_read(g->ring, i, &progress);
        struct rank_watch *w = &g->watch[i];
        if (progress.changes != w->changes) {
            w->changes = progress.changes;
            w->since_ns = now;
        }
        if (now - w->since_ns >= (uint64_t)limit_ms * 1000000u && less_far(&progress, &least)) {
            least = progress;
            rank = i;
        }
    }
    if (rank == RANKS_MAX)
        return FLIGHT_NONE;
    ret->death = (struct death){.blame = BLAME_EXECUTING, .rank = rank};
    snprintf(ret->text, sizeof(ret->text), "no progress for %u ms at step %llu, layer %u, operation %u",
            limit_ms, (unsigned long long)least.step, least.layer, least.operation);
    return FLIGHT_FAULT;
}
