/* speculation.c - the controller against scripted machines and drafters: it finds what pays, it never makes a number of
 * streams slower than they are without, and it falls silent when drafts stop being right. No engine, no clock. */
#include "daemon/engine/speculation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#define STREAMS_MAX 64u
#define ROUNDS      3000u
#define WARM        1000u /* rounds that are not counted: it knows nothing yet */

/* A machine: what a step of so many rows takes, and each draft that it makes itself. */
struct machine {
    const char *name;
    float step_ns, row_ns;
    uint32_t free_rows; /* rows that cost nothing */
    float knee_ns;      /* what each costs beyond */
    float draft_ns, wait_ns;
};
static const struct machine machines[] = {
        {"a GPU", 7e6f, 0.02e6f, 8, 0.25e6f, 0.3e6f, 0.1e6f},
        {"a CPU", 15e6f, 8e6f, 0, 0, 2e6f, 0.1e6f},
        {"a machine whose rows are all it does", 0, 10e6f, 0, 0, 1e6f, 0.1e6f},
        {"a machine with a cliff after 8 rows", 5e6f, 0, 8, 4e6f, 0.1e6f, 0.1e6f},
};

static float step_of(const struct machine *m, uint32_t rows, uint32_t depth) {
    float beyond = rows > m->free_rows && m->knee_ns > 0 ? (float)(rows - m->free_rows) : 0;
    return m->step_ns + (float)rows * m->row_ns + beyond * m->knee_ns + (float)depth * m->draft_ns;
}

static uint64_t random_state;
static float random_part(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(random_state >> 40) / (float)(1u << 24);
}

struct world {
    const struct machine *machine;
    struct speculation x;
    struct drafting d[STREAMS_MAX];
    uint32_t left[STREAMS_MAX];  /* drafts in its slot */
    uint32_t match[STREAMS_MAX]; /* lookup */
    uint32_t n;
    float right[DRAFTERS]; /* chance of each draft */
    uint64_t drafts[DRAFTERS];
    float ns;
    double tokens, all_ns;
};

static void open_world(struct world *w, const struct machine *m, uint32_t n) {
    *w = (struct world){.machine = m, .n = n};
    random_state = 88172645463325252ull + n;
    speculation_init(&w->x);
    w->x.wait_ns = m->wait_ns;
    for (uint32_t i = 0; i < n; i++)
        drafting_init(&w->d[i]);
}

/* The sequence's next token: whether its lookup had expected it, and what it expects after it. */
static void look_up(struct world *w, uint32_t i) {
    struct lookup_score score = {.expected = w->match[i] > 0, .length = w->match[i]};
    score.right = score.expected && random_part() < w->right[DRAFTER_LOOKUP];
    speculation_looked_up(&w->x, &w->d[i], &score);
    if (score.right)
        w->match[i] += w->match[i] < LOOKUP_LENGTH_MAX;
    else
        w->match[i] = w->x.most[DRAFTER_LOOKUP] > 0 && random_part() < 0.5f ? LOOKUP_GRAM_MAX : 0;
}

static void run_stream(struct world *w, uint32_t i, uint32_t *rows, uint32_t *depth) {
    struct drafting *d = &w->d[i];
    uint32_t drafts = d->drafter == DRAFTER_MODEL && w->left[i] < d->n ? w->left[i] : d->n, accepted = 0;
    while (accepted < drafts && random_part() < w->right[d->drafter])
        accepted++;
    if (d->drafter != DRAFTER_LOOKUP)
        speculation_accepted(&w->x, d, d->drafter, drafts, accepted);
    look_up(w, i);
    w->left[i] = d->drafter == DRAFTER_MODEL ? d->n : 0;
    w->drafts[d->drafter] += drafts;
    w->tokens += 1 + accepted;
    *rows += 1 + drafts;
    *depth = w->left[i] > *depth ? w->left[i] : *depth;
}

static void run(struct world *w, uint32_t rounds) {
    for (uint32_t round = 0; round < rounds; round++) {
        struct draft_stream streams[STREAMS_MAX];
        uint32_t rows = 0, depth = 0;
        for (uint32_t i = 0; i < w->n; i++)
            streams[i] = (struct draft_stream){.d = &w->d[i], .most = DRAFT_MAX, .match = w->match[i]};
        speculation_choose(&w->x, streams, w->n);
        for (uint32_t i = 0; i < w->n; i++)
            run_stream(w, i, &rows, &depth);
        float ns = step_of(w->machine, rows, depth);
        speculation_measured(&w->x, rows, depth, ns * (0.97f + 0.06f * random_part()));
        w->all_ns += ns + (w->x.synchronous ? w->machine->wait_ns : 0);
    }
}

/* Tokens in a given time, as a multiple of what there are without speculation. */
static double speed_up(struct world *w) {
    run(w, WARM);
    w->tokens = w->all_ns = 0;
    for (uint32_t k = 0; k < DRAFTERS; k++)
        w->drafts[k] = 0;
    run(w, ROUNDS);
    return w->tokens / w->all_ns * step_of(w->machine, w->n, 0) / w->n;
}

/* The best that a fixed number of drafts for all would do. */
static double best_fixed(const struct world *w, float right) {
    double best = 1;
    for (uint32_t k = 1; k <= w->x.most[DRAFTER_MODEL]; k++) {
        double tokens = 1, chance = 1;
        for (uint32_t i = 0; i < k; i++)
            tokens += chance *= right;
        double rate = tokens * step_of(w->machine, w->n, 0) / step_of(w->machine, w->n * (1 + k), k);
        best = rate > best ? rate : best;
    }
    return best;
}

static void test_never_slower(void **state) {
    (void)state;
    const uint32_t streams[] = {1, 2, 4, 8, 16, 61};
    const float rights[] = {0, 0.3f, 0.6f, 0.8f, 0.95f};
    for (uint32_t m = 0; m < 4; m++)
        for (uint32_t i = 0; i < 6; i++)
            for (uint32_t r = 0; r < 5; r++) {
                struct world w;
                open_world(&w, &machines[m], streams[i]);
                w.x.most[DRAFTER_MODEL] = 7;
                w.right[DRAFTER_MODEL] = rights[r];
                double up = speed_up(&w), best = best_fixed(&w, rights[r]);
                if (up < 0.98 || up < 0.85 * best)
                    fail_msg("%s, %u streams, %.2f right: %.3f times as fast, %.3f is possible",
                            machines[m].name, streams[i], (double)rights[r], up, best);
            }
}

/* Copies need a round that waits: never slower either, and much faster where they are right. */
static void test_copies(void **state) {
    (void)state;
    const uint32_t streams[] = {1, 2, 4, 8, 16, 61};
    const float rights[] = {0, 0.3f, 0.8f, 0.98f};
    for (uint32_t m = 0; m < 4; m++)
        for (uint32_t i = 0; i < 6; i++)
            for (uint32_t r = 0; r < 4; r++) {
                struct world w;
                open_world(&w, &machines[m], streams[i]);
                w.x.most[DRAFTER_LOOKUP] =
                        r < 2 ? 1 + i % 3 : 15; /* fewer than there are lengths of matches, too */
                w.x.most[DRAFTER_MODEL] = r % 2 == 0 ? 4 : 0;
                w.right[DRAFTER_MODEL] = 0.4f;
                w.right[DRAFTER_LOOKUP] = rights[r];
                double up = speed_up(&w);
                if (up < 0.98 || (m == 0 && i == 0 && r == 3 && up < 3))
                    fail_msg("%s, %u streams, %.2f right: %.3f times as fast", machines[m].name, streams[i],
                            (double)rights[r], up);
            }
}

/* Drafts that were right and are not any more are given up, and taken up again when they are. */
static void test_rot(void **state) {
    (void)state;
    struct world w;
    open_world(&w, &machines[0], 4);
    w.x.most[DRAFTER_MODEL] = 7;
    w.right[DRAFTER_MODEL] = 0.85f;
    assert_true(speed_up(&w) > 1.5);
    assert_int_equal(w.x.unused[DRAFTER_MODEL], 0);
    assert_true(speculation_odds(&w.x, DRAFTER_MODEL) > 0.75f);
    w.right[DRAFTER_MODEL] = 0;
    run(&w, 1000);
    w.drafts[DRAFTER_MODEL] = 0;
    run(&w, 1000);
    assert_true(w.x.unused[DRAFTER_MODEL] >= 64);
    assert_in_range(w.drafts[DRAFTER_MODEL], 1, 400);
    assert_true(speculation_odds(&w.x, DRAFTER_MODEL) < 0.4f);
    w.right[DRAFTER_MODEL] = 0.85f;
    run(&w, 2000);
    assert_true(w.x.unused[DRAFTER_MODEL] < 64);
}

/* A machine that gets slower with depth of context is measured again, and one stream's luck is not the other's. */
static void test_own_odds(void **state) {
    (void)state;
    struct world w;
    open_world(&w, &machines[0], 8);
    w.x.most[DRAFTER_MODEL] = 7;
    uint64_t good = 0, bad = 0;
    for (uint32_t round = 0; round < 3000; round++) {
        struct draft_stream streams[8];
        for (uint32_t i = 0; i < 8; i++)
            streams[i] = (struct draft_stream){.d = &w.d[i], .most = 7};
        speculation_choose(&w.x, streams, 8);
        uint32_t rows = 0, depth = 0;
        for (uint32_t i = 0; i < 8; i++) {
            w.right[DRAFTER_MODEL] = i < 2 ? 0.9f : 0.1f;
            run_stream(&w, i, &rows, &depth);
            *(i < 2 ? &good : &bad) += round >= 1000 ? w.d[i].n : 0;
        }
        speculation_measured(&w.x, rows, depth, step_of(w.machine, rows, depth));
    }
    assert_true(good / 2 > 5 * (bad / 6));
}

static void test_cost(void **state) {
    (void)state;
    struct round_cost c = {0};
    assert_true(round_cost_of(&c, 5, 0) == 0);
    round_cost_measured(&c, 1, 4, 0, 1e9f); /* a graph was recorded */
    assert_true(round_cost_of(&c, 4, 0) == 0);
    round_cost_measured(&c, 1, 4, 0, 100);
    assert_true(round_cost_of(&c, 1, 0) == 100); /* fewer rows cost no more, as far as is known */
    assert_true(round_cost_of(&c, 8, 0) > 100 && round_cost_of(&c, 8, 0) < 150);
    round_cost_measured(&c, 2, 8, 0, 1);
    round_cost_measured(&c, 2, 8, 0, 200);
    assert_true(round_cost_of(&c, 6, 0) == 125);
    round_cost_measured(&c, 3, 8000, 0, 1);
    round_cost_measured(&c, 3, 8000, 0, 1000);
    assert_true(round_cost_of(&c, 100, 0) > 200 && round_cost_of(&c, 100, 0) < 300);
    for (uint64_t i = 0; i < 200; i++)
        round_cost_measured(&c, 4, 4, 2, 130);
    assert_true(round_cost_of(&c, 4, 0) == 100); /* what drafts take is not what rows take */
    assert_true(round_cost_of(&c, 4, 2) > 128 && round_cost_of(&c, 4, 2) < 132);
    assert_true(round_cost_known(&c, 8, 2) && !round_cost_known(&c, 8, 3) && !round_cost_known(&c, 4, 4));
    round_cost_measured(&c, 5, 8, 0, 1e9f); /* a machine that was paused says little */
    assert_true(round_cost_of(&c, 8, 0) <= 600);
    for (uint64_t i = 6; i < 40000; i++) /* what is not measured any more is forgotten */
        round_cost_measured(&c, i, 4, 0, 300);
    assert_true(round_cost_of(&c, 8, 0) < 400 && round_cost_of(&c, 8000, 0) > 400);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_never_slower),
            cmocka_unit_test(test_copies),
            cmocka_unit_test(test_rot),
            cmocka_unit_test(test_own_odds),
            cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
