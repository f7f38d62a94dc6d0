/* chaos.c - requests come, go, are cancelled and stopped while pages run out and groups die, all at random
 * from a fixed seed: whatever a stream says is what the request says on an idle machine without speculation, and
 * nothing is left behind. */
#include "tests/unit/engine/harness.h"

#include <stdio.h>

#define KINDS 40u  /* different requests */
#define LIVE  24u  /* at a time */
#define TURNS 600u /* events in a run */
#define STOPS 24u  /* stop ids of every third request */

static uint32_t prompt[1024], stop_ids[STOPS];
static struct reading expected[KINDS];

struct client {
    struct reading reading;
    uint32_t kind;
    bool active;
    enum engine_finish asked;
};

static uint64_t random_state;
static bool groups_die; /* in this run */
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 20) % n;
}

static struct engine_request request(uint32_t kind) {
    struct engine_request q = harness_request(prompt + kind, 1 + kind * 7, 5 + kind * 4, kind);
    q.priority = (int32_t)(kind % 3);
    q.logprobs = kind % 2 == 0;
    q.top_logprobs = kind % 2 == 0 ? kind % 5 : 0;
    if (kind % 3 == 0) {
        q.stop_ids = stop_ids;
        q.n_stop_ids = STOPS;
        q.min_tokens = kind % 2 == 0 ? kind : 0;
    }
    return q;
}

/* With as many drafts as the ranks take. */
static struct engine *start(struct harness_group *group, const struct null_rank_options *r) {
    struct engine_options o = harness_engine_options();
    o.max_num_batched_tokens = 96;
    o.speculative_tokens = r->drafts_max;
    o.drafters = ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP;
    struct engine *g = harness_engine(&o);
    harness_group_start(group, g, r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    return g;
}

static int group_setup(void **state) {
    (void)state;
    struct harness_group group;
    struct null_rank_options r = harness_rank_options();
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    for (uint32_t i = 0; i < STOPS; i++)
        stop_ids[i] = i * 37;
    struct engine *g = start(&group, &r);
    uint32_t stopped = 0;
    for (uint32_t i = 0; i < KINDS; i++) {
        struct engine_request q = request(i);
        harness_submit(g, &q, &expected[i]);
        harness_read(&expected[i], 1, 0);
        assert_true(expected[i].n == 5 + i * 4 || expected[i].finish == ENGINE_FINISH_STOP_ID);
        stopped += expected[i].finish == ENGINE_FINISH_STOP_ID && expected[i].n < 5 + i * 4;
    }
    assert_true(stopped >= 3); /* or nothing is tested */
    harness_unref(expected, KINDS);
    engine_free(g);
    harness_group_stop(&group);
    return 0;
}

static void check_tokens(const struct client *c) {
    const struct reading *r = &c->reading, *x = &expected[c->kind];
    assert_true(r->n <= x->n);
    assert_memory_equal(r->ids, x->ids, r->n * sizeof(uint32_t));
    assert_memory_equal(r->logprobs, x->logprobs, r->n * sizeof(float));
}

static void end_client(struct client *c) {
    check_tokens(c);
    if (c->reading.finish == expected[c->kind].finish)
        assert_int_equal(c->reading.n, expected[c->kind].n);
    else if (!groups_die || c->reading.finish != ENGINE_FINISH_FAULT)
        assert_int_equal(c->reading.finish, c->asked);
    harness_unref(&c->reading, 1);
    c->active = false;
}

static void act(struct engine *g, struct client *c) {
    if (!c->active) {
        c->kind = random_below(KINDS);
        struct engine_request q = request(c->kind);
        harness_submit(g, &q, &c->reading);
        c->active = true;
        c->asked = ENGINE_RUNNING;
        return;
    }
    uint32_t what = random_below(12);
    if (what == 0 && c->asked == ENGINE_RUNNING) {
        engine_cancel(g, c->reading.stream);
        c->asked = ENGINE_FINISH_CANCELLED;
    } else if (what == 1 && c->asked == ENGINE_RUNNING) {
        engine_finish(g, c->reading.stream, c->reading.n);
        c->asked = ENGINE_FINISH_REQUESTED;
    } else {
        harness_take(&c->reading);
        check_tokens(c);
        if (c->reading.finish != ENGINE_RUNNING)
            end_client(c);
    }
}

/* odds: in 100 that a draft is right; 0 = no drafts. */
static void run(uint64_t seed, uint32_t tp, uint32_t pages, uint32_t slots, uint32_t deaths, uint32_t odds) {
    static struct client clients[LIVE];
    struct harness_group groups[8];
    struct engine_stats s;
    struct null_rank_options r = harness_rank_options();
    r.tp = tp;
    r.pages = pages;
    r.slots = slots;
    r.has_mtp = odds > 0;
    r.drafts_max = odds > 0 ? 1 + (uint32_t)(seed % DRAFT_MAX) : 0;
    r.draft_odds = odds;
    random_state = seed;
    groups_die = deaths > 0;
    memset(clients, 0, sizeof(clients));
    struct engine *g = start(&groups[0], &r);
    uint32_t epoch = 1;
    for (uint32_t turn = 1; turn <= TURNS; turn++) {
        act(g, &clients[random_below(LIVE)]);
        if (random_below(8) == 0)
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        if (deaths > 0 && turn % (TURNS / (deaths + 1)) == 0 && epoch <= deaths) {
            struct control_message m = {.kind = CONTROL_GROUP_LOST, .group_epoch = epoch, .coord_epoch = 1};
            assert_int_equal(engine_control(g, &m), 0);
            harness_group_start(&groups[epoch], g, &r, epoch + 1);
            epoch++;
        }
    }
    for (uint32_t left = 1; left > 0;) { /* all together: one that is not read holds its pages */
        left = 0;
        for (uint32_t i = 0; i < LIVE; i++) {
            if (!clients[i].active)
                continue;
            left++;
            harness_take(&clients[i].reading);
            if (clients[i].reading.finish != ENGINE_RUNNING)
                end_client(&clients[i]);
        }
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    harness_expect_quiet(g, &s);
    assert_int_equal(s.step_errors_total, 0);
    assert_int_equal(s.group_epoch, epoch);
    engine_free(g);
    for (uint32_t i = 0; i < epoch; i++)
        harness_group_stop(&groups[i]);
}

static void test_plain(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        run(seed * 7777777, 1, 256, 64, 0, 0);
}

static void test_pressure(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++)
        run(seed * 1234567, 1 + seed % 2, 9, seed % 3 == 0 ? 4 : 64, 0, 0);
}

static void test_deaths(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++)
        run(seed * 7654321, 1 + seed % 3, seed % 2 == 0 ? 10 : 256, 8, 5, 0);
}

/* The same with drafts of every quality: no token changes, and every count comes out even. */
static void test_drafts(void **state) {
    (void)state;
    const uint32_t odds[] = {100, 85, 50, 1};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        run(seed * 7777777, 1, 256, 64, 0, odds[seed % 4]);
        run(seed * 1234567, 1 + seed % 2, 9, seed % 3 == 0 ? 4 : 64, 0, odds[seed % 4]);
        run(seed * 7654321, 1 + seed % 3, seed % 2 == 0 ? 10 : 256, 8, 5, odds[seed % 4]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_plain),
            cmocka_unit_test(test_pressure),
            cmocka_unit_test(test_deaths),
            cmocka_unit_test(test_drafts),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
