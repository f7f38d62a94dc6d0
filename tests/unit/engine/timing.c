/* timing.c - what the engine measures of requests: each is counted once, at the moments that the words name. */
#include "tests/unit/engine/harness.h"

static struct engine *engine;
static struct harness_group group;
static uint32_t prompt[1024];

static int setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    engine = harness_engine(&o);
    harness_group_start(&group, engine, &r, 1);
    assert_int_equal(engine_wait_ready(engine, LONG_NS), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    engine = engine_free(engine);
    harness_group_stop(&group);
    return 0;
}

static struct histogram_reading reading_of(enum engine_histogram which) {
    struct histogram_reading r;
    histogram_read(engine_histogram(engine, which), &r);
    return r;
}

static void expect_count(enum engine_histogram which, uint64_t count) {
    assert_int_equal(reading_of(which).count, count);
}

/* Prompts of 1, 38, 75 ... tokens and answers of 30, 31 ...: whatever the batches were, the sums are these. */
static void test_ended_well(void **state) {
    (void)state;
    enum { N = 13 };
    static struct reading r[N];
    struct engine_stats s;
    uint64_t prompts = 0, answers = 0;
    for (uint32_t i = 0; i < N; i++) {
        struct engine_request q = harness_request(prompt + i, 1 + i * 37, 30 + i, i);
        harness_submit(engine, &q, &r[i]);
        prompts += q.n_prompt;
        answers += q.max_tokens;
    }
    harness_read(r, N, 0);
    harness_expect_quiet(engine, &s);
    expect_count(ENGINE_FIRST_TOKEN_NS, N);
    expect_count(ENGINE_INTER_TOKEN_NS, answers - N);
    expect_count(ENGINE_QUEUE_NS, N);
    expect_count(ENGINE_PROMPT_NS, N);
    expect_count(ENGINE_ANSWER_NS, N);
    expect_count(ENGINE_TOTAL_NS, N);
    expect_count(ENGINE_PROMPT_TOKENS, N);
    assert_int_equal(reading_of(ENGINE_PROMPT_TOKENS).sum, prompts);
    assert_int_equal(reading_of(ENGINE_ANSWER_TOKENS).sum, answers);
    assert_int_equal(reading_of(ENGINE_MAX_TOKENS).sum, answers);
    assert_true(
            reading_of(ENGINE_STEP_ROWS).sum >= prompts + answers - N); /* the last token is not computed */
    assert_int_equal(s.prompt_rows_total, prompts);
    assert_int_equal(s.finished_total[ENGINE_FINISH_LENGTH], N);
    /* Parts of the whole; the clock is asked once more for first tokens, so by a moment of each request. */
    assert_true(reading_of(ENGINE_QUEUE_NS).sum <= reading_of(ENGINE_TOTAL_NS).sum);
    assert_true(reading_of(ENGINE_FIRST_TOKEN_NS).sum <= reading_of(ENGINE_TOTAL_NS).sum);
    assert_true(reading_of(ENGINE_INTER_TOKEN_NS).sum + reading_of(ENGINE_FIRST_TOKEN_NS).sum ==
                reading_of(ENGINE_TOTAL_NS).sum);
    harness_unref(r, N);
}

/* Those that did not come to an end are counted by what ended them, and in no distribution of whole requests; tokens
 * behind a stop string are nobody's. */
static void test_ended_otherwise(void **state) {
    (void)state;
    static struct reading r[4];
    struct engine_stats s;
    for (uint32_t i = 0; i < 4; i++) {
        struct engine_request q = harness_request(prompt, 20, 900, i);
        snprintf(q.request_id, sizeof(q.request_id), "r%u", i);
        q.deadline_ns = i == 3 ? 1 : 0; /* long ago */
        harness_submit(engine, &q, &r[i]);
    }
    harness_read(r, 3, 5);
    engine_cancel(engine, r[0].stream);
    engine_finish(engine, r[1].stream, 3);
    assert_true(engine_abort(engine, "", "r2"));
    harness_read(r, 4, 0);
    harness_expect_quiet(engine, &s);
    assert_int_equal(s.finished_total[ENGINE_FINISH_CANCELLED], 1);
    assert_int_equal(s.finished_total[ENGINE_FINISH_REQUESTED], 1);
    assert_int_equal(s.finished_total[ENGINE_FINISH_ABORTED], 1);
    assert_int_equal(s.finished_total[ENGINE_FINISH_DEADLINE], 1);
    expect_count(ENGINE_TOTAL_NS, 1);
    assert_int_equal(reading_of(ENGINE_PROMPT_TOKENS).sum, 20);
    assert_int_equal(reading_of(ENGINE_ANSWER_TOKENS).sum, 3);
    expect_count(ENGINE_QUEUE_NS, 3);
    harness_unref(r, 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_ended_well, setup, teardown),
            cmocka_unit_test_setup_teardown(test_ended_otherwise, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
