/* chaos.c - requests come, go, are cancelled and stopped while pages run out and groups die, all at random
 * from a fixed seed: whatever a stream says is what the request says on an idle machine without speculation and without
 * a prefix cache, and nothing is left behind. */
#include "tests/unit/engine/harness.h"

#include <stdio.h>

#define KINDS 40u  /* different requests */
#define LIVE  24u  /* at a time */
#define TURNS 600u /* events in a run */
#define STOPS 24u  /* stop ids of every third request */

#define TURN2 24u /* kinds from here on are the next turn of others */

static uint32_t stop_ids[STOPS];
/* Of what the vocabulary gives, and of three ids, which repeat themselves: drafts can be copied. */
enum alphabet { ALL_IDS, THREE_IDS, ALPHABETS };
static struct reading expected_all[ALPHABETS][KINDS], *expected;
static struct prompt { uint32_t n, ids[512]; } prompts_all[ALPHABETS][KINDS], *prompts;

struct client {
    struct reading reading;
    uint32_t kind;
    bool active;
    enum engine_finish asked;
};

static uint64_t random_state;
static bool groups_die;                  /* in this run */
static uint64_t drafts[ENGINE_DRAFTERS]; /* first ones, in all runs */
static uint64_t hits, brought;           /* of the prefix cache, and pages from the host, in all runs */
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 20) % n;
}

static struct engine_request request(uint32_t kind) {
    const struct prompt *p = &prompts[kind];
    struct engine_request q = harness_request(p->ids, p->n, 5 + kind * 4, kind);
    q.priority = (int32_t)(kind % 3);
    q.logprobs = kind % 2 == 0;
    q.top_logprobs = kind % 2 == 0 ? kind % 5 : 0;
    q.cache_salt = "somebody's";
    q.n_cache_salt = kind % 5 == 0 ? 4 + kind % 2 : 0;
    q.turn_end = p->n > 5 ? p->n - 5 : 0;
    q.shared_end = 70;
    if (kind % 3 == 0) {
        q.stop_ids = stop_ids;
        q.n_stop_ids = STOPS;
        q.min_tokens = kind % 2 == 0 ? kind : 0;
    }
    return q;
}

/* Prompts that have a beginning in common, up to half of them, in two families; and next turns: the prompt and the
 * answer of another, and some more. */
static void make_prompt(uint32_t kind) {
    struct prompt *p = &prompts[kind];
    uint32_t at = 0;
    p->n = 1 + kind * 7;
    if (kind >= TURN2) {
        const struct prompt *before = &prompts[kind - 16];
        const struct reading *answer = &expected[kind - 16];
        at = before->n + answer->n;
        memcpy(p->ids, before->ids, before->n * sizeof(p->ids[0]));
        memcpy(p->ids + before->n, answer->ids, answer->n * sizeof(p->ids[0]));
        p->n = at + 1 + kind * 7 % 50;
    }
    assert_true(p->n <= 512);
    for (; at < p->n; at++)
        p->ids[at] = (at * 7919 + (at < p->n / 2 ? kind % 2 : kind) * 13) % 1000;
}

/* With as many drafts as the ranks take, and a prefix cache where they have units for it. */
static struct engine *start(struct harness_group *group, const struct null_rank_options *r) {
    struct engine_options o = harness_engine_options();
    o.max_num_batched_tokens = 96;
    o.speculative_tokens = r->drafts_max;
    o.prefix_cache = true;
    o.drafters = ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP;
    struct engine *g = harness_engine(&o);
    harness_group_start(group, g, r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    return g;
}

static void set_alphabet(struct null_rank_options *r, enum alphabet a) {
    r->id_first = a == THREE_IDS ? 1 : 0;
    r->id_count = a == THREE_IDS ? 3 : 0;
    expected = expected_all[a];
    prompts = prompts_all[a];
}

static void fill_expected(enum alphabet a) {
    struct harness_group group;
    struct null_rank_options r = harness_rank_options();
    set_alphabet(&r, a);
    struct engine *g = start(&group, &r);
    uint32_t stopped = 0;
    for (uint32_t i = 0; i < KINDS; i++) {
        make_prompt(i);
        struct engine_request q = request(i);
        harness_submit(g, &q, &expected[i]);
        harness_read(&expected[i], 1, 0);
        assert_true(expected[i].n == 5 + i * 4 || expected[i].finish == ENGINE_FINISH_STOP_ID);
        stopped += expected[i].finish == ENGINE_FINISH_STOP_ID && expected[i].n < 5 + i * 4;
    }
    assert_true(a == THREE_IDS || stopped >= 3); /* or nothing is tested */
    harness_unref(expected, KINDS);
    engine_free(g);
    harness_group_stop(&group);
}

static int group_setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < STOPS; i++)
        stop_ids[i] = i * 37;
    for (enum alphabet a = ALL_IDS; a < ALPHABETS; a++)
        fill_expected(a);
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

/* Some follow another one, whoever that is: they are held until it has spoken or is gone. */
static void act(struct engine *g, struct client *c, const struct client *other) {
    if (!c->active) {
        c->kind = random_below(KINDS);
        struct engine_request q = request(c->kind);
        q.lead = other->active && random_below(3) == 0 ? other->reading.stream : NULL;
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

struct run {
    uint64_t seed;
    uint32_t tp, pages, slots;
    uint32_t deaths; /* of groups */
    uint32_t odds;   /* in 100 that a draft of the model is right; 0 = no speculation */
    enum alphabet alphabet;
    uint32_t units; /* for snapshots; 0 = no prefix cache */
    uint32_t page_units;
};

static void run(const struct run *c) {
    static struct client clients[LIVE];
    struct harness_group groups[8];
    struct engine_stats s;
    struct null_rank_options r = harness_rank_options();
    r.tp = c->tp;
    r.pages = c->pages;
    r.slots = c->slots;
    r.has_mtp = c->odds > 0;
    r.drafts_max = c->odds > 0 ? 1 + (uint32_t)(c->seed % DRAFT_MAX) : 0;
    r.draft_odds = c->odds;
    r.slot_units = c->units;
    r.page_units = c->page_units;
    r.claimed_ns = 1000000000u; /* so that drafts are worth it, and the wait for tokens, too */
    set_alphabet(&r, c->alphabet);
    random_state = c->seed;
    groups_die = c->deaths > 0;
    memset(clients, 0, sizeof(clients));
    struct engine *g = start(&groups[0], &r);
    uint32_t epoch = 1;
    for (uint32_t turn = 1; turn <= TURNS; turn++) {
        act(g, &clients[random_below(LIVE)], &clients[random_below(LIVE)]);
        if (random_below(8) == 0)
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        if (c->deaths > 0 && turn % (TURNS / (c->deaths + 1)) == 0 && epoch <= c->deaths) {
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
    assert_true(s.snapshots <= c->units);
    hits += s.prefix_hits_total;
    brought += s.host_pages_in_total;
    assert_true(s.host_pages <= c->page_units);
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++) {
        drafts[k] += s.drafters[k].proposed[0];
        for (uint32_t i = 0; i < DRAFT_MAX; i++)
            assert_true(s.drafters[k].accepted[i] <= s.drafters[k].proposed[i]);
    }
    engine_free(g);
    for (uint32_t i = 0; i < epoch; i++)
        harness_group_stop(&groups[i]);
}

static struct run plain_run(uint64_t seed) {
    return (struct run){.seed = seed * 7777777, .tp = 1, .pages = 256, .slots = 64};
}

static struct run pressed_run(uint64_t seed) {
    return (struct run){.seed = seed * 1234567,
            .tp = 1 + (uint32_t)seed % 2,
            .pages = 9,
            .slots = seed % 3 == 0 ? 4 : 64};
}

static struct run deadly_run(uint64_t seed) {
    return (struct run){.seed = seed * 7654321,
            .tp = 1 + (uint32_t)seed % 3,
            .pages = seed % 2 == 0 ? 10 : 256,
            .slots = 8,
            .deaths = 5};
}

static struct run (*const kinds_of_run[])(uint64_t) = {plain_run, pressed_run, deadly_run};

static void run_without(uint32_t kind, uint64_t seeds) {
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        struct run c = kinds_of_run[kind](seed);
        run(&c);
    }
}

static void test_plain(void **state) {
    (void)state;
    run_without(0, 4);
}

static void test_pressure(void **state) {
    (void)state;
    run_without(1, 6);
}

static void test_deaths(void **state) {
    (void)state;
    run_without(2, 6);
}

/* The same with drafts of every source and quality: no token changes, and every count comes out even. */
static void test_drafts(void **state) {
    (void)state;
    const uint32_t odds[] = {100, 85, 50, 1};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        for (uint32_t kind = 0; kind < 3; kind++) {
            struct run c = kinds_of_run[kind](seed);
            c.odds = odds[seed % 4];
            c.alphabet = seed % 2 == 0 ? ALL_IDS : THREE_IDS;
            run(&c);
        }
    }
    for (uint32_t k = 0; k < 2; k++) /* of the model and of lookup */
        assert_true(drafts[k] > 100);
}

/* All of it with a prefix cache, of one unit to more than are ever kept, with drafts and without. The ranks compare
 * what a slot is restored from with the pages that it gets, and refuse what is written into a page of others. */
static void test_prefix_cache(void **state) {
    (void)state;
    const uint32_t odds[] = {0, 85, 0, 40}, units[] = {300, 1, 13, 2, 5};
    for (uint64_t seed = 1; seed <= 10; seed++) {
        for (uint32_t kind = 0; kind < 3; kind++) {
            struct run c = kinds_of_run[kind](seed);
            c.odds = odds[seed % 4];
            c.alphabet = seed % 3 == 0 ? THREE_IDS : ALL_IDS;
            c.units = units[seed % 5];
            c.page_units = seed % 2 == 0 ? 0 : 4 + (uint32_t)seed;
            run(&c);
        }
    }
    assert_true(hits > 100 && brought > 20); /* or nothing is tested */
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_plain),
            cmocka_unit_test(test_pressure),
            cmocka_unit_test(test_deaths),
            cmocka_unit_test(test_drafts),
            cmocka_unit_test(test_prefix_cache),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
