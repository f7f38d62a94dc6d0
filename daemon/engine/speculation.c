/* speculation.c - see speculation.h.
 *
 * A sequence's i-th draft is worth the chance that it and those before it are right. That falls with i, so the best
 * drafts for any number of rows are those above a common worth, whose sequence they are; and the best number of rows is
 * found by trying every worth, in steps of 1/LEVELS. */
#include "daemon/engine/speculation.h"

#include <string.h>

#define LEVELS        32u
#define CLEARLY       1.03f /* drafts must promise so much more than none, or the guesses below decide */
#define CHANGE        1.02f /* and another way to plan so much more than the one there is */
#define MEMORY_ONE    32.0f /* drafts at a position that a sequence's odds remember */
#define MEMORY_ALL    256.0f
#define WEIGHT_ALL    3.0f /* drafts that what all sequences do counts for, beside a sequence's own */
#define WEIGHT_GUESS  8.0f /* and what was known before there were any */
#define GUESS         0.7f
#define TRIAL_SHARE   0.01f /* of the time goes into trials */
#define TRIAL_CREDIT  4.0f  /* rounds' time that may be saved up for them */
#define TRIAL_DRAFTS  2u
#define TRIAL_ROUNDS  2u   /* one to leave drafts in the slot, one to verify them */
#define TRIAL_PAUSE   16u  /* rounds between the trials of a sequence */
#define PLAIN_ROUNDS  128u /* what a round without drafts takes is measured this often */
#define PLAIN_PAUSE   64u
#define WAIT_FIRST_NS 100000.0f

/* The two ways to plan a round: while the one before it runs, or when all its tokens are known. */
enum { OVERLAPPED, SYNCHRONOUS };

struct odds_table {
    float chance[DRAFTERS][DRAFT_MAX];
};

/* What drafts of each worth would make of a round, in one of the ways to plan it. */
struct prospect {
    uint32_t rows[LEVELS], depth[LEVELS];
};
struct choice {
    uint32_t level;   /* drafts worth this and more; LEVELS = none */
    uint32_t at_most; /* of this worth */
    float rate;       /* tokens per ns */
};

void speculation_init(struct speculation *x) {
    *x = (struct speculation){.wait_ns = WAIT_FIRST_NS};
}

void drafting_init(struct drafting *d) {
    *d = (struct drafting){.silent = TRIAL_PAUSE};
}

static void odds_add(struct odds *o, uint32_t i, bool right, float memory) {
    o->tried[i] += 1 - o->tried[i] / memory;
    o->right[i] += (right ? 1.0f : 0.0f) - o->right[i] / memory;
}

static void count(struct speculation *x, struct drafting *d, enum drafter k, uint32_t i, bool right) {
    odds_add(&d->odds[k], i, right, MEMORY_ONE);
    odds_add(&x->odds[k], i, right, MEMORY_ALL);
}

void speculation_accepted(
        struct speculation *x, struct drafting *d, enum drafter drafter, uint32_t n, uint32_t accepted) {
    for (uint32_t i = 0; i < n && i <= accepted; i++)
        count(x, d, drafter, i, i < accepted);
}

void speculation_looked_up(struct speculation *x, struct drafting *d, const struct lookup_score *score) {
    if (score->expected)
        count(x, d, DRAFTER_LOOKUP, lookup_class(score->length), score->right);
}

void speculation_measured(struct speculation *x, uint32_t rows, uint32_t depth, float ns) {
    round_cost_measured(&x->cost, x->round, rows, depth, ns);
}

/* --- what drafts are worth --- */

static float guess(enum drafter k, uint32_t i) {
    static const float copies[LOOKUP_CLASSES] = {0.3f, 0.4f, 0.6f, 0.75f, 0.9f, 0.95f};
    return k != DRAFTER_LOOKUP ? GUESS : copies[i < LOOKUP_CLASSES ? i : LOOKUP_CLASSES - 1];
}

static float chance_of_all(const struct speculation *x, enum drafter k, uint32_t i) {
    return (x->odds[k].right[i] + WEIGHT_GUESS * guess(k, i)) / (x->odds[k].tried[i] + WEIGHT_GUESS);
}

float speculation_odds(const struct speculation *x, enum drafter drafter) {
    float right = 0, tried = 0;
    for (uint32_t i = 0; i < (drafter == DRAFTER_LOOKUP ? LOOKUP_CLASSES : 1); i++) {
        right += x->odds[drafter].right[i];
        tried += x->odds[drafter].tried[i];
    }
    return tried > 0 ? right / tried : 0;
}

static void fill_table(const struct speculation *x, struct odds_table *t) {
    for (uint32_t k = 0; k < DRAFTERS; k++)
        for (uint32_t i = 0; i < DRAFT_MAX && x->most[k] > 0; i++)
            t->chance[k][i] = chance_of_all(x, (enum drafter)k, i);
}

/* What a drafter's next drafts for this sequence are worth. Returns their sum. */
static float offer_of(const struct speculation *x, const struct odds_table *t, const struct draft_stream *s,
        enum drafter k, struct draft_offer *ret) {
    const struct odds *o = &s->d->odds[k];
    uint32_t most = x->most[k] < s->most ? x->most[k] : s->most;
    float worth = 1, sum = 0;
    *ret = (struct draft_offer){.drafter = k};
    if ((k == DRAFTER_LOOKUP && s->match == 0) || (k == DRAFTER_MODEL && s->on_host))
        return 0;
    for (uint32_t i = 0; i < most; i++) {
        uint32_t at = i;
        if (k == DRAFTER_LOOKUP)
            at = lookup_class(s->match + i < LOOKUP_LENGTH_MAX ? s->match + i : LOOKUP_LENGTH_MAX);
        worth *= (o->right[at] + WEIGHT_ALL * t->chance[k][at]) / (o->tried[at] + WEIGHT_ALL);
        if (worth < 1.0f / LEVELS)
            break;
        uint32_t level = (uint32_t)((1 - worth) * LEVELS);
        ret->level[ret->n++] = (uint8_t)level;
        sum += worth;
    }
    return sum;
}

static float worth_of(uint32_t level) { /* its middle */
    return 1 - ((float)level + 0.5f) / LEVELS;
}

/* Adds an offer to what is promised. */
static void promise(struct prospect *p, const struct draft_offer *o) {
    for (uint32_t i = 0; i < o->n; i++) {
        uint32_t level = o->level[i];
        p->rows[level]++;
        if (o->drafter == DRAFTER_MODEL && p->depth[level] < i + 1)
            p->depth[level] = i + 1;
    }
}

static struct choice best_of(
        const struct speculation *x, const struct prospect *p, uint32_t n, float wait_ns) {
    struct choice best = {.level = LEVELS};
    uint32_t rows = n, depth = 0;
    float tokens = (float)n;
    for (uint32_t level = 0; level < LEVELS; level++) {
        uint32_t more = p->rows[level], stride = 1 + more / 8;
        float worth = worth_of(level);
        depth = depth > p->depth[level] ? depth : p->depth[level];
        for (uint32_t i = stride; i <= more; i += stride) {
            float ns = round_cost_of(&x->cost, rows + i, depth) + wait_ns;
            float rate = (tokens + (float)i * worth) / ns;
            if (rate > best.rate)
                best = (struct choice){level, i, rate};
        }
        rows += more;
        tokens += (float)more * worth;
    }
    return best;
}

/* --- the choice --- */

static void take_offer(struct draft_stream *s, uint32_t way, struct choice *c) {
    const struct draft_offer *o = &s->offers[way];
    s->d->drafter = o->drafter;
    for (; s->d->n < o->n && o->level[s->d->n] <= c->level; s->d->n++) {
        bool last = o->level[s->d->n] == c->level;
        if (last && c->at_most == 0)
            return;
        c->at_most -= last;
    }
}

/* Chooses the drafts that promise the most, if that is clearly more than a round without. */
static void choose_best(struct speculation *x, struct draft_stream *streams, uint32_t n, float plain_ns) {
    struct prospect prospects[2] = {0};
    struct odds_table table;
    fill_table(x, &table);
    for (uint32_t i = 0; i < n; i++) {
        struct draft_stream *s = &streams[i];
        float sum = offer_of(x, &table, s, DRAFTER_MODEL, &s->offers[OVERLAPPED]);
        s->offers[SYNCHRONOUS] = s->offers[OVERLAPPED];
        for (enum drafter k = DRAFTER_LOOKUP; k < DRAFTERS; k++) {
            struct draft_offer other;
            float sum_other = offer_of(x, &table, s, k, &other);
            if (sum_other > sum) {
                s->offers[SYNCHRONOUS] = other;
                sum = sum_other;
            }
        }
        promise(&prospects[OVERLAPPED], &s->offers[OVERLAPPED]);
        promise(&prospects[SYNCHRONOUS], &s->offers[SYNCHRONOUS]);
    }
    float plain = (float)n / plain_ns;
    struct choice overlapped = best_of(x, &prospects[OVERLAPPED], n, 0);
    struct choice waited = best_of(x, &prospects[SYNCHRONOUS], n, x->wait_ns);
    if (overlapped.rate < CLEARLY * plain)
        overlapped = (struct choice){.level = LEVELS, .rate = plain};
    float needed = overlapped.rate * (overlapped.level == LEVELS ? CLEARLY : x->synchronous ? 1 : CHANGE);
    x->synchronous = waited.rate > needed;
    uint32_t way = x->synchronous ? SYNCHRONOUS : OVERLAPPED;
    struct choice best = x->synchronous ? waited : overlapped;
    for (uint32_t i = 0; i < n && best.level < LEVELS; i++)
        take_offer(&streams[i], way, &best);
}

/* Whether this round goes without drafts, so that it is known what such a round takes now. */
static bool is_plain_trial(struct speculation *x, uint32_t n) {
    bool due = x->round >= x->plain_asked + PLAIN_PAUSE && x->round > PLAIN_ROUNDS &&
               !round_cost_known(&x->cost, n, x->round - PLAIN_ROUNDS);
    if (due)
        x->plain_asked = x->round;
    return due;
}

static enum drafter next_trial(struct speculation *x) {
    bool both = x->most[DRAFTER_MODEL] > 0 && x->most[DRAFTER_EXTERNAL] > 0;
    if (both)
        x->trial = x->trial == DRAFTER_MODEL ? DRAFTER_EXTERNAL : DRAFTER_MODEL;
    else
        x->trial = x->most[DRAFTER_MODEL] > 0 ? DRAFTER_MODEL : DRAFTER_EXTERNAL;
    return x->trial;
}

/* Lets the sequence that went without the longest have some drafts, if there is time for it. Copies need none: what
 * they would have been is known. */
static void begin_trial(struct speculation *x, struct draft_stream *streams, uint32_t n, float plain_ns) {
    struct draft_stream *longest = NULL;
    x->credit_ns += TRIAL_SHARE * plain_ns;
    if (x->credit_ns > TRIAL_CREDIT * plain_ns)
        x->credit_ns = TRIAL_CREDIT * plain_ns;
    float more = 2 * round_cost_of(&x->cost, n + TRIAL_DRAFTS, TRIAL_DRAFTS) -
                 round_cost_of(&x->cost, n + TRIAL_DRAFTS, 0) - plain_ns;
    if (x->credit_ns < more || (x->most[DRAFTER_MODEL] == 0 && x->most[DRAFTER_EXTERNAL] == 0))
        return;
    for (uint32_t i = 0; i < n; i++) {
        struct draft_stream *s = &streams[i];
        if (!s->on_host && s->d->n == 0 && s->d->trials == 0 && s->d->silent >= TRIAL_PAUSE &&
                s->most >= TRIAL_DRAFTS && (longest == NULL || s->d->silent > longest->d->silent))
            longest = s;
    }
    if (longest == NULL)
        return;
    x->credit_ns -= more;
    longest->d->trials = TRIAL_ROUNDS;
    longest->d->trial = next_trial(x);
}

static void run_trial(struct speculation *x, struct draft_stream *s) {
    struct drafting *d = s->d;
    uint32_t most = x->most[d->trial] < s->most ? x->most[d->trial] : s->most;
    d->trying = d->trials > 0 && d->n == 0; /* or it has drafts anyhow */
    d->trials -= d->trials > 0;
    if (!d->trying)
        return;
    d->drafter = d->trial;
    d->n = most < TRIAL_DRAFTS ? most : TRIAL_DRAFTS;
    x->synchronous |= d->trial == DRAFTER_EXTERNAL;
}

/* Remembers who was used. */
static void look_back(struct speculation *x, const struct draft_stream *streams, uint32_t n) {
    bool used[DRAFTERS] = {false}, usable[DRAFTERS] = {false};
    for (uint32_t i = 0; i < n; i++) {
        struct drafting *d = streams[i].d;
        d->silent = d->n > 0 && d->drafter != DRAFTER_LOOKUP ? 0 : d->silent + 1;
        used[d->drafter] |= d->n > 0 && !d->trying;
        usable[DRAFTER_MODEL] |= streams[i].most > 0;
        usable[DRAFTER_LOOKUP] |= streams[i].most > 0 && streams[i].match >= LOOKUP_GRAM_MAX;
    }
    usable[DRAFTER_EXTERNAL] = usable[DRAFTER_MODEL];
    for (uint32_t k = 0; k < DRAFTERS; k++) {
        if (used[k])
            x->unused[k] = 0;
        else if (usable[k] && x->most[k] > 0)
            x->unused[k]++;
    }
}

void speculation_choose(struct speculation *x, struct draft_stream *streams, uint32_t n) {
    float plain_ns = n > 0 ? round_cost_of(&x->cost, n, 0) : 0;
    for (uint32_t i = 0; i < n; i++)
        streams[i].d->n = 0;
    if (plain_ns <= 0) {
        x->synchronous = false;
        return;
    }
    x->round++;
    if (is_plain_trial(x, n)) {
        x->synchronous = false;
        return;
    }
    choose_best(x, streams, n, plain_ns);
    begin_trial(x, streams, n, plain_ns);
    for (uint32_t i = 0; i < n; i++)
        run_trial(x, &streams[i]);
    look_back(x, streams, n);
}
