/* pressure.c - too few pages, slots, rows or places: everybody still gets the tokens that an empty machine
 * gives. */
#include "tests/unit/engine/harness.h"

#define N 24u

static uint32_t prompt[1024];
static struct reading expected[N];

static struct engine_request request(uint32_t i) {
    return harness_request(prompt + i, 20 + i * 9, 100 + i * 7, i);
}

/* What each request says when it has a roomy machine to itself. */
static int group_setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine *g = harness_engine(&o);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    for (uint32_t i = 0; i < N; i++) {
        struct engine_request q = request(i);
        harness_submit(g, &q, &expected[i]);
        harness_read(&expected[i], 1, 0);
    }
    harness_unref(expected, N);
    engine_free(g);
    harness_group_stop(&group);
    return 0;
}

/* All of them at once on the machine described; returns the statistics at the end. */
static struct engine_stats run(const struct engine_options *o, const struct null_rank_options *r) {
    static struct reading readings[N];
    struct harness_group group;
    struct engine_stats s;
    struct engine *g = harness_engine(o);
    harness_group_start(&group, g, r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    for (uint32_t i = 0; i < N; i++) {
        struct engine_request q = request(i);
        harness_submit(g, &q, &readings[i]);
    }
    harness_read(readings, N, 0);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(readings[i].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(readings[i].n, expected[i].n);
        assert_memory_equal(readings[i].ids, expected[i].ids, expected[i].n * sizeof(uint32_t));
    }
    harness_unref(readings, N);
    harness_expect_quiet(g, &s);
    assert_int_equal(s.step_errors_total, 0);
    assert_int_equal(s.requests_total, N);
    engine_free(g);
    for (uint32_t i = 0; i < group.n; i++)
        assert_int_equal(atomic_load(&group.ranks[i].result), 0);
    harness_group_stop(&group);
    return s;
}

static void test_few_pages(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    r.pages = 12; /* the longest request alone needs 8 */
    struct engine_stats s = run(&o, &r);
    assert_true(s.preemptions_total > 0);
    assert_int_equal(s.pages_total, 12);
    assert_int_equal(s.replays_total, 0);
    uint64_t generated = 0;
    for (uint32_t i = 0; i < N; i++)
        generated += expected[i].n;
    assert_int_equal(s.generated_tokens_total, generated);
}

static void test_few_pages_with_mtp(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    r.pages = 9;
    r.has_mtp = 1;
    struct engine_stats s = run(&o, &r);
    assert_true(s.preemptions_total > 0);
}

static void test_few_slots(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    r.slots = 3;
    struct engine_stats s = run(&o, &r);
    assert_int_equal(s.max_num_seqs, 3);
    r.slots = 1;
    run(&o, &r);
    r.slots = 64;
    o.max_num_seqs = 2;
    run(&o, &r);
}

static void test_few_rows(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    r.rows_max = 7; /* fewer rows than sequences: they take turns */
    struct engine_stats s = run(&o, &r);
    assert_int_equal(s.max_num_batched_tokens, 7);
    r.rows_max = 512;
    o.max_num_batched_tokens = 1;
    run(&o, &r);
}

static void test_prefill_target(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    o.prefill_target_ms = 1;
    r.row_ns = 20000;
    run(&o, &r);
}

static void test_two_ranks(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    r.tp = 2;
    r.pages = 14;
    struct engine_stats s = run(&o, &r);
    assert_int_equal(s.tp, 2);
}

static void test_queue_full(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    static struct reading readings[5];
    struct harness_group group;
    struct engine_stats s;
    struct engine_stream *more = NULL;
    struct error e;
    o.max_num_seqs = 2;
    o.max_queue = 3;
    struct engine *g = harness_engine(&o);
    struct engine_request q = harness_request(prompt, 10, 900, 1);
    assert_int_equal(engine_submit(g, &q, &more, &e), -EAGAIN); /* still loading */
    assert_non_null(strstr(e.text, "loading"));
    assert_int_equal(engine_wait_ready(g, 1000), -ETIMEDOUT);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    for (uint32_t i = 0; i < 5; i++) /* nobody reads, so none of them ends */
        harness_submit(g, &q, &readings[i]);
    assert_int_equal(engine_submit(g, &q, &more, &e), -EAGAIN);
    assert_non_null(strstr(e.text, "try again"));
    engine_cancel(g, readings[4].stream);
    harness_read(&readings[4], 1, 0);
    harness_unref(&readings[4], 1);
    harness_submit(g, &q, &readings[4]);
    engine_drain(g);
    assert_int_equal(engine_submit(g, &q, &more, &e), -ESHUTDOWN);
    engine_stats(g, &s);
    assert_int_equal(engine_abort_all(g), 5);
    harness_read(readings, 5, 0);
    harness_expect_quiet(g, &s);
    assert_string_equal(s.state, "draining");
    assert_null(more);
    harness_unref(readings, 5);
    engine_free(g);
    harness_group_stop(&group);
}

static void test_too_big_for_the_pool(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine_stream *s = NULL;
    struct error e;
    r.pages = 4;
    struct engine *g = harness_engine(&o);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    struct engine_request q = harness_request(prompt, 200, 58, 1);
    assert_int_equal(engine_submit(g, &q, &s, &e), -E2BIG);
    assert_non_null(strstr(e.text, "the workers have 4"));
    q.max_tokens = 57; /* 256 rows: fits to the last */
    static struct reading one;
    harness_submit(g, &q, &one);
    harness_read(&one, 1, 0);
    assert_int_equal(one.n, 57);
    harness_unref(&one, 1);
    engine_free(g);
    harness_group_stop(&group);
}

static void test_slow_reader_ends(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine_stats s;
    static struct reading one;
    o.slow_reader_ms = 20;
    struct engine *g = harness_engine(&o);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    struct engine_request q = harness_request(prompt, 5, 900, 1);
    harness_submit(g, &q, &one);
    do
        engine_stats(g, &s);
    while (s.running + s.waiting > 0 || s.requests_total == 0);
    harness_read(&one, 1, 0);
    assert_int_equal(one.finish, ENGINE_FINISH_SLOW);
    assert_in_range(one.n, STREAM_RING_TOKENS - 2, STREAM_RING_TOKENS);
    harness_unref(&one, 1);
    harness_expect_quiet(g, &s);
    engine_free(g);
    harness_group_stop(&group);
}

/* Those that nobody reads have all slots: who comes later gets one all the same, and they lose nothing. */
static void test_slow_readers_give_slots(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine_stats s;
    static struct reading alone, slow[3], other[2];
    o.max_num_seqs = 3;
    o.slow_reader_ms = 3600000;
    struct engine *g = harness_engine(&o);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    struct engine_request q = harness_request(prompt, 5, 900, 1);
    harness_submit(g, &q, &alone);
    harness_read(&alone, 1, 0);
    for (uint32_t i = 0; i < 3; i++)
        harness_submit(g, &q, &slow[i]);
    for (uint32_t i = 0; i < 2; i++) {
        harness_submit(g, &q, &other[i]);
        harness_read(&other[i], 1, 0);
        assert_int_equal(other[i].finish, ENGINE_FINISH_LENGTH);
    }
    harness_read(slow, 3, 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(slow[i].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(slow[i].n, alone.n);
        assert_memory_equal(slow[i].ids, alone.ids, alone.n * sizeof(alone.ids[0]));
    }
    harness_unref(slow, 3);
    harness_unref(other, 2);
    harness_unref(&alone, 1);
    harness_expect_quiet(g, &s);
    assert_true(s.preemptions_total > 0);
    engine_free(g);
    harness_group_stop(&group);
}

/* Ends with streams alive: they are told, and their readers can go on reading what they hold. */
static void test_free_with_streams(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    static struct reading readings[8];
    o.max_num_seqs = 4;
    struct engine *g = harness_engine(&o);
    harness_group_start(&group, g, &r, 1);
    assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
    for (uint32_t i = 0; i < 8; i++) {
        struct engine_request q = harness_request(prompt, 5, 900, 1);
        harness_submit(g, &q, &readings[i]);
    }
    harness_read(readings, 4, 2);
    engine_free(g);
    harness_read(readings, 8, 0);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(readings[i].finish, ENGINE_FINISH_ABORTED);
    harness_unref(readings, 8);
    harness_group_stop(&group);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_few_pages),
            cmocka_unit_test(test_few_pages_with_mtp),
            cmocka_unit_test(test_few_slots),
            cmocka_unit_test(test_few_rows),
            cmocka_unit_test(test_prefill_target),
            cmocka_unit_test(test_two_ranks),
            cmocka_unit_test(test_queue_full),
            cmocka_unit_test(test_too_big_for_the_pool),
            cmocka_unit_test(test_slow_reader_ends),
            cmocka_unit_test(test_slow_readers_give_slots),
            cmocka_unit_test(test_free_with_streams),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
