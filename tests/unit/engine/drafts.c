/* drafts.c - an engine that speculates says what one that does not says, in fewer steps, and its counts are right. */
#include "tests/unit/engine/harness.h"

#include <stdio.h>

#define TOKENS 300u
/* Steps are said to take long, and as long whatever their rows: drafts are worth it, and so is any wait for tokens. */
#define STEP_NS 1000000000u

static uint32_t prompt[1024], stop_ids[1];

enum source { NOBODY, MODEL, LOOKUP, EXTERNAL };

/* A drafter from outside that knows the answers, right in `odds` of 100 cases. */
struct oracle {
    const uint32_t *answer;
    uint32_t n_prompt, odds;
    _Atomic uint32_t asked, ended;
};

static uint32_t oracle_propose(void *user, uint64_t sequence, const uint32_t *tokens, uint32_t n_tokens,
        uint32_t most, uint32_t *ret) {
    struct oracle *o = user;
    uint32_t made = n_tokens - o->n_prompt;
    (void)tokens;
    o->asked++;
    for (uint32_t i = 0; i < most; i++) {
        bool right = (uint32_t)(sequence + (made + i) * 7919) % 100 < o->odds;
        ret[i] = made + i < TOKENS ? o->answer[made + i] + !right : 5000; /* which is no id */
    }
    return most;
}

static void oracle_ended(void *user, uint64_t sequence) {
    struct oracle *o = user;
    (void)sequence;
    o->ended++;
}

struct world {
    struct engine *g;
    struct harness_group group;
    struct engine_stats s;
};

static void start_with_rows(struct world *w, enum source source, uint32_t odds, uint32_t pages, uint32_t rows,
        struct oracle *oracle) {
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    o.speculative_tokens = source != NOBODY ? DRAFT_MAX : 0;
    o.drafters = source == MODEL ? ENGINE_DRAFTS_OF_MODEL : source == LOOKUP ? ENGINE_DRAFTS_OF_LOOKUP : 0;
    if (source == EXTERNAL)
        o.drafter = (struct engine_drafter){oracle_propose, oracle_ended, oracle};
    r.drafts_max = DRAFT_MAX;
    r.has_mtp = 1;
    r.draft_odds = odds;
    r.pages = pages;
    r.rows_max = rows;
    r.claimed_ns = STEP_NS;
    r.id_count = source == LOOKUP || odds == 0 ? 2 : 0; /* an answer of two ids repeats itself all the time */
    w->g = harness_engine(&o);
    harness_group_start(&w->group, w->g, &r, 1);
    assert_int_equal(engine_wait_ready(w->g, LONG_NS), 0);
}

static void start(struct world *w, enum source source, uint32_t odds, uint32_t pages, struct oracle *oracle) {
    start_with_rows(w, source, odds, pages, 512, oracle);
}

static void stop(struct world *w) {
    harness_expect_quiet(w->g, &w->s);
    assert_int_equal(w->s.step_errors_total, 0);
    engine_free(w->g);
    harness_group_stop(&w->group);
}

static void run_one(struct world *w, const struct engine_request *q, struct reading *r) {
    harness_submit(w->g, q, r);
    harness_read(r, 1, 0);
    harness_unref(r, 1);
}

static uint64_t sum(const uint64_t *all) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < DRAFT_MAX; i++)
        n += all[i];
    return n;
}

/* odds: of the model's drafts; 0 = ids that repeat themselves. */
static void plain_tokens(uint32_t odds, const struct engine_request *q, struct reading *ret) {
    struct world w;
    start(&w, NOBODY, odds, 256, NULL);
    run_one(&w, q, ret);
    stop(&w);
}

/* Fewer steps, the same tokens; and a token is a step's own or an accepted draft. */
static void expect_fewer_steps(enum source source, uint32_t odds, uint32_t steps_max) {
    static struct reading expected, r;
    struct engine_request q = harness_request(prompt, 20, TOKENS, 3);
    struct oracle oracle = {.answer = expected.ids, .n_prompt = 20, .odds = 90};
    struct world w;
    q.logprobs = true;
    plain_tokens(odds, &q, &expected);
    assert_int_equal(expected.n, TOKENS);
    start(&w, source, odds, 256, &oracle);
    run_one(&w, &q, &r);
    stop(&w);
    assert_int_equal(r.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(r.n, TOKENS);
    assert_memory_equal(r.ids, expected.ids, TOKENS * sizeof(r.ids[0]));
    assert_memory_equal(r.logprobs, expected.logprobs, TOKENS * sizeof(r.logprobs[0]));
    const struct engine_drafter_stats *d = &w.s.drafters[source - MODEL];
    uint64_t accepted = sum(d->accepted);
    if (w.s.steps_total > steps_max)
        fail_msg("%llu steps, %llu drafts and %llu accepted", (unsigned long long)w.s.steps_total,
                (unsigned long long)sum(d->proposed), (unsigned long long)accepted);
    assert_true(accepted <= sum(d->proposed));
    for (uint32_t i = 1; i < DRAFT_MAX; i++)
        assert_true(d->proposed[i] <= d->proposed[i - 1] && d->accepted[i] <= d->accepted[i - 1]);
    /* One step closes the slot; it may do so beside others' rows, and there are none. */
    assert_int_equal(w.s.steps_total - 1 + accepted, TOKENS);
    assert_int_equal(w.s.generated_tokens_total, TOKENS);
    assert_int_equal(w.s.drafts_max, DRAFT_MAX);
    if (source == EXTERNAL) {
        assert_true(oracle.asked > 0);
        assert_int_equal(oracle.ended, 1);
    }
}

static void test_of_model(void **state) {
    (void)state;
    expect_fewer_steps(MODEL, 100, TOKENS / 3);
    expect_fewer_steps(MODEL, 80, TOKENS * 2 / 3);
}

static void test_of_lookup(void **state) {
    (void)state;
    expect_fewer_steps(LOOKUP, 0, TOKENS * 9 / 10);
}

static void test_from_outside(void **state) {
    (void)state;
    expect_fewer_steps(EXTERNAL, 1, TOKENS / 2);
}

/* Wherever the end comes in a run of accepted drafts: what is after it is neither shown nor counted. */
static void test_ends(void **state) {
    (void)state;
    static struct reading expected, r;
    struct engine_request q = harness_request(prompt, 20, TOKENS, 3);
    struct world w;
    uint64_t generated = 0;
    plain_tokens(100, &q, &expected);
    start(&w, MODEL, 100, 256, NULL);
    run_one(&w, &q, &r); /* it has seen by then that drafts are right */
    generated += r.n;
    for (uint32_t end = 1; end <= 40; end++) {
        q.max_tokens = end;
        run_one(&w, &q, &r);
        assert_int_equal(r.finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(r.n, end);
        generated += r.n;
        q.max_tokens = TOKENS;
        q.stop_ids = stop_ids;
        q.n_stop_ids = 1;
        stop_ids[0] = expected.ids[end - 1];
        uint32_t first = 0;
        while (expected.ids[first] != stop_ids[0])
            first++;
        run_one(&w, &q, &r);
        assert_int_equal(r.finish, ENGINE_FINISH_STOP_ID);
        assert_int_equal(r.n, first + 1);
        assert_memory_equal(r.ids, expected.ids, r.n * sizeof(r.ids[0]));
        generated += r.n;
        q.n_stop_ids = 0;
    }
    stop(&w);
    assert_int_equal(w.s.generated_tokens_total, generated);
    assert_true(sum(w.s.drafters[0].accepted) > 500);
}

/* The stop id is suppressed and not looked for up to min_tokens, which may lie within a run. */
static void test_min_tokens(void **state) {
    (void)state;
    static struct reading expected, r;
    struct engine_request q = harness_request(prompt, 20, 100, 9);
    stop_ids[0] = 0;
    q.stop_ids = stop_ids;
    q.n_stop_ids = 1;
    struct world plain, w;
    start(&plain, NOBODY, 0, 256, NULL);
    start(&w, LOOKUP, 0, 256, NULL);
    for (uint32_t least = 0; least <= 40; least++) {
        q.min_tokens = least;
        run_one(&plain, &q, &expected);
        run_one(&w, &q, &r);
        assert_int_equal(r.finish, expected.finish);
        assert_int_equal(r.n, expected.n);
        assert_true(r.n > least);
        assert_memory_equal(r.ids, expected.ids, r.n * sizeof(r.ids[0]));
    }
    stop(&plain);
    stop(&w);
}

/* Nobody reads until the ring is full: it never overflows, and nothing is lost. */
static void test_full_ring(void **state) {
    (void)state;
    static struct reading expected, r;
    struct engine_request q = harness_request(prompt, 20, TOKENS, 3);
    struct engine_stats s;
    struct world w;
    plain_tokens(100, &q, &expected);
    start(&w, MODEL, 100, 256, NULL);
    harness_submit(w.g, &q, &r);
    do {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        engine_stats(w.g, &s);
    } while (s.generated_tokens_total < STREAM_RING_TOKENS - 1);
    harness_read(&r, 1, 0);
    assert_int_equal(r.n, TOKENS);
    assert_memory_equal(r.ids, expected.ids, TOKENS * sizeof(r.ids[0]));
    harness_unref(&r, 1);
    stop(&w);
}

/* Drafts need pages, too, and there are hardly any: they go without and put nobody back that plain rows would not. */
static void test_few_pages(void **state) {
    (void)state;
    static struct reading expected, all[3];
    struct engine_request q = harness_request(prompt, 20, TOKENS, 3);
    struct world w;
    plain_tokens(100, &q, &expected);
    start(&w, MODEL, 100, 6, NULL); /* one sequence just fits: 319 rows and the MTP layer's one further */
    for (uint32_t i = 0; i < 3; i++)
        harness_submit(w.g, &q, &all[i]);
    harness_read(all, 3, 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(all[i].n, TOKENS);
        assert_memory_equal(all[i].ids, expected.ids, TOKENS * sizeof(expected.ids[0]));
    }
    harness_unref(all, 3);
    stop(&w);
    assert_true(sum(w.s.drafters[0].accepted) > 0);
}

/* Steps of hardly more rows than there are sequences, which the rank refuses to pass: nobody's own row waits for
 * drafts, and prompts go on. */
static void test_few_rows(void **state) {
    (void)state;
    static struct reading expected, all[8];
    struct engine_request q = harness_request(prompt, 20, TOKENS, 3);
    plain_tokens(100, &q, &expected);
    for (uint32_t n = 1; n <= 8; n += 3) {
        struct world w;
        start_with_rows(&w, MODEL, 100, 256, 5, NULL);
        for (uint32_t i = 0; i < n; i++)
            harness_submit(w.g, &q, &all[i]);
        harness_read(all, n, 0);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(all[i].n, TOKENS);
            assert_memory_equal(all[i].ids, expected.ids, TOKENS * sizeof(expected.ids[0]));
        }
        harness_unref(all, n);
        stop(&w);
        assert_true(n > 1 || sum(w.s.drafters[0].accepted) > 0);
    }
}

static void count_silence(void *user, int level, const char *text) {
    uint32_t *lines = user;
    (void)level;
    lines[0] += strstr(text, "drafts of mtp are not worth their time now") != NULL;
    lines[1] += strstr(text, "drafts of") != NULL;
}

/* Drafts that are hardly ever right, on a machine where rows cost: the drafter falls silent and that is said once. */
static void test_silence(void **state) {
    (void)state;
    static struct reading r;
    uint32_t lines[2] = {0};
    struct engine_options o = harness_engine_options();
    struct null_rank_options n = harness_rank_options();
    struct engine_request q = harness_request(prompt, 20, 950, 3);
    struct world w;
    o.speculative_tokens = DRAFT_MAX;
    o.drafters = ENGINE_DRAFTS_OF_MODEL;
    o.log = count_silence;
    o.log_user = lines;
    n.has_mtp = n.draft_odds = 1;
    n.drafts_max = 3;
    n.claimed_ns = STEP_NS;
    n.claimed_row_ns = STEP_NS / 4;
    w.g = harness_engine(&o);
    harness_group_start(&w.group, w.g, &n, 1);
    assert_int_equal(engine_wait_ready(w.g, LONG_NS), 0);
    run_one(&w, &q, &r);
    engine_stats(w.g, &w.s);
    assert_true(w.s.drafters[0].silent);
    run_one(&w, &q, &r);
    stop(&w);
    assert_true(w.s.drafters[0].silent);
    assert_int_equal(lines[0], 1);
    assert_int_equal(lines[1], 1);
    assert_true(sum(w.s.drafters[0].proposed) < w.s.generated_tokens_total / 5);
    assert_true(w.s.drafters[0].proposed[0] > 10); /* it is tried now and then */
}

static int setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_of_model),
            cmocka_unit_test(test_of_lookup),
            cmocka_unit_test(test_from_outside),
            cmocka_unit_test(test_ends),
            cmocka_unit_test(test_min_tokens),
            cmocka_unit_test(test_full_ring),
            cmocka_unit_test(test_few_pages),
            cmocka_unit_test(test_few_rows),
            cmocka_unit_test(test_silence),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
