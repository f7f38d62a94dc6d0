/* batching.c - the engine over one null rank: many streams, stops, cancels, limits and refusals. */
#include "tests/unit/engine/harness.h"

#include "base/clock.h"

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
    struct engine_stats s;
    harness_expect_quiet(engine, &s);
    assert_int_equal(s.step_errors_total, 0);
    assert_int_equal(s.dropped_records_total, 0);
    engine = engine_free(engine);
    assert_int_equal(atomic_load(&group.ranks[0].result), 0);
    harness_group_stop(&group);
    return 0;
}

static void test_one(void **state) {
    (void)state;
    struct reading r;
    struct engine_request q = harness_request(prompt, 5, 10, 1);
    struct engine_timing t;
    harness_submit(engine, &q, &r);
    harness_read(&r, 1, 0);
    assert_int_equal(r.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(r.n, 10);
    engine_stream_timing(r.stream, &t);
    assert_true(t.received_ns > 0 && t.first_step_ns >= t.received_ns && t.first_token_ns >= t.first_step_ns);
    harness_unref(&r, 1);

    struct engine_stats s;
    harness_expect_quiet(engine, &s);
    assert_string_equal(s.state, "serving");
    assert_int_equal(s.requests_total, 1);
    assert_int_equal(s.prompt_tokens_total, 5);
    assert_int_equal(s.generated_tokens_total, 10);
    assert_int_equal(s.max_model_len, 1024);
    assert_int_equal(s.vocab_size, 1000);
    assert_int_equal(s.tp, 1);
    assert_int_equal(s.weight_fingerprint, 0xabc);
    assert_non_null(strstr(s.devices[0], "null rank 0"));
}

/* What a request says does not depend on who else runs. */
static void test_many_equal_alone(void **state) {
    (void)state;
    static struct reading alone[16], together[64];
    for (uint32_t i = 0; i < 16; i++) {
        struct engine_request q = harness_request(prompt + i, 1 + i * 37, 30 + i, i);
        harness_submit(engine, &q, &alone[i]);
        harness_read(&alone[i], 1, 0);
        assert_int_equal(alone[i].n, 30 + i);
    }
    for (uint32_t i = 0; i < 64; i++) {
        struct engine_request q = harness_request(prompt + i % 16, 1 + i % 16 * 37, 30 + i % 16, i % 16);
        harness_submit(engine, &q, &together[i]);
    }
    harness_read(together, 64, 0);
    for (uint32_t i = 0; i < 64; i++) {
        assert_int_equal(together[i].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(together[i].n, alone[i % 16].n);
        assert_memory_equal(together[i].ids, alone[i % 16].ids, alone[i % 16].n * sizeof(uint32_t));
    }
    harness_unref(alone, 16);
    harness_unref(together, 64);
}

static void test_stop_id(void **state) {
    (void)state;
    static struct reading plain, stopped, late;
    struct engine_request q = harness_request(prompt, 9, 40, 3);
    harness_submit(engine, &q, &plain);
    harness_read(&plain, 1, 0);
    uint32_t at = 12,
             stops[3] = {999999, plain.ids[at], 5000}; /* ids past the vocabulary never come: no error */
    for (uint32_t i = 0; i < at; i++)
        assert_int_not_equal(plain.ids[i], plain.ids[at]);
    q.stop_ids = stops;
    q.n_stop_ids = 3;
    harness_submit(engine, &q, &stopped);
    harness_read(&stopped, 1, 0);
    assert_int_equal(stopped.finish, ENGINE_FINISH_STOP_ID);
    assert_int_equal(stopped.n, at + 1);
    assert_memory_equal(stopped.ids, plain.ids, (at + 1) * sizeof(uint32_t));

    q.min_tokens = at + 5; /* the stop id is suppressed until then, so the rest is another text */
    harness_submit(engine, &q, &late);
    harness_read(&late, 1, 0);
    assert_memory_equal(late.ids, plain.ids, at * sizeof(uint32_t));
    assert_int_not_equal(late.ids[at], plain.ids[at]);
    assert_true(late.n >= at + 5);
    harness_unref(&plain, 1);
    harness_unref(&stopped, 1);
    harness_unref(&late, 1);
}

static void test_one_token(void **state) {
    (void)state;
    struct reading r;
    struct engine_request q = harness_request(prompt, 1023, 1, 3); /* all of the context */
    harness_submit(engine, &q, &r);
    harness_read(&r, 1, 0);
    assert_int_equal(r.finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(r.n, 1);
    harness_unref(&r, 1);
    q = harness_request(prompt, 1, 1023, 3);
    static struct reading whole;
    harness_submit(engine, &q, &whole);
    harness_read(&whole, 1, 0);
    assert_int_equal(whole.n, 1023);
    harness_unref(&whole, 1);
}

static void test_logprobs(void **state) {
    (void)state;
    struct reading r;
    struct engine_token t[4];
    enum engine_finish finish = ENGINE_RUNNING;
    struct engine_request q = harness_request(prompt, 4, 3, 3);
    q.logprobs = true;
    q.top_logprobs = 5;
    harness_submit(engine, &q, &r);
    uint32_t n = 0;
    while (finish == ENGINE_RUNNING)
        n += engine_stream_take(r.stream, t + n, 1, &finish);
    assert_int_equal(n, 3);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(t[i].n_top, 5);
        assert_int_equal(t[i].top_ids[0], t[i].id);
        assert_true(t[i].top_logprobs[4] < t[i].top_logprobs[0]);
    }
    harness_unref(&r, 1);
}

static void test_cancel_finish_abort(void **state) {
    (void)state;
    static struct reading r[4];
    for (uint32_t i = 0; i < 4; i++) {
        struct engine_request q = harness_request(prompt, 20, 900, i);
        snprintf(q.request_id, sizeof(q.request_id), "request-%u", i);
        harness_submit(engine, &q, &r[i]);
    }
    struct engine_stream *unused;
    struct engine_request twin = harness_request(prompt, 20, 900, 0);
    snprintf(twin.request_id, sizeof(twin.request_id), "request-2");
    assert_int_equal(engine_submit(engine, &twin, &unused, NULL), -EEXIST);
    struct reading namesake; /* the same id of another caller is another request */
    snprintf(twin.caller, sizeof(twin.caller), "10.0.0.7");
    harness_submit(engine, &twin, &namesake);
    assert_true(engine_abort(engine, "10.0.0.7", "request-2"));
    harness_read(&namesake, 1, 0);
    assert_int_equal(namesake.finish, ENGINE_FINISH_ABORTED);
    assert_false(engine_abort(engine, "10.0.0.7", "request-3"));
    harness_unref(&namesake, 1);
    twin.caller[0] = 0;
    harness_read(r, 4, 3); /* all of them run */
    engine_cancel(engine, r[0].stream);
    engine_finish(engine, r[1].stream, 3);
    assert_true(engine_abort(engine, "", "request-2"));
    assert_false(engine_abort(engine, "", "request-9"));
    assert_false(engine_abort(engine, "", ""));
    harness_read(r, 3, 0);
    assert_int_equal(r[0].finish, ENGINE_FINISH_CANCELLED);
    assert_int_equal(r[1].finish, ENGINE_FINISH_REQUESTED);
    assert_int_equal(r[2].finish, ENGINE_FINISH_ABORTED);
    assert_true(engine_abort_all(engine) <= 1);
    harness_read(&r[3], 1, 0);
    assert_int_equal(r[3].finish, ENGINE_FINISH_ABORTED);
    for (uint32_t i = 0; i < 4; i++) { /* after the end these do nothing */
        engine_cancel(engine, r[i].stream);
        engine_finish(engine, r[i].stream, 0);
    }
    struct reading both[2]; /* two answers of one request have one id, and are aborted together */
    harness_submit(engine, &twin, &both[0]);
    twin.lead = both[0].stream;
    harness_submit(engine, &twin, &both[1]);
    engine_cancel(engine, both[0].stream);
    harness_read(both, 1, 0);
    twin.lead = NULL;
    assert_int_equal(engine_submit(engine, &twin, &unused, NULL), -EEXIST); /* one of them runs */
    twin.lead = both[0].stream;
    struct reading third;
    harness_submit(engine, &twin, &third);
    assert_true(engine_abort(engine, "", "request-2"));
    harness_read(&both[1], 1, 0);
    harness_read(&third, 1, 0);
    assert_int_equal(both[1].finish, ENGINE_FINISH_ABORTED);
    assert_int_equal(third.finish, ENGINE_FINISH_ABORTED);
    harness_unref(both, 2);
    harness_unref(&third, 1);
    twin.lead = NULL;

    struct reading again; /* and the id is free */
    twin.max_tokens = 2;
    harness_submit(engine, &twin, &again);
    harness_read(&again, 1, 0);
    assert_int_equal(again.n, 2);
    harness_unref(&again, 1);
    harness_unref(r, 4);
}

static void test_cancel_at_once(void **state) {
    (void)state;
    static struct reading r[32];
    for (uint32_t i = 0; i < 32; i++) {
        struct engine_request q = harness_request(prompt, 1 + i * 11, 500, i);
        harness_submit(engine, &q, &r[i]);
        engine_cancel(engine, r[i].stream);
    }
    harness_read(r, 32, 0);
    for (uint32_t i = 0; i < 32; i++)
        assert_int_equal(r[i].finish, ENGINE_FINISH_CANCELLED);
    harness_unref(r, 32);
}

static void test_deadline(void **state) {
    (void)state;
    static struct reading r[2];
    struct engine_request q = harness_request(prompt, 20, 900, 1);
    uint64_t now_ns = clock_ns();
    q.deadline_ns = now_ns - 1; /* passed already */
    harness_submit(engine, &q, &r[0]);
    q.deadline_ns = now_ns + 50000000u; /* nobody reads it meanwhile, so it stalls and waits */
    harness_submit(engine, &q, &r[1]);
    harness_read(r, 1, 0);
    assert_int_equal(r[0].finish, ENGINE_FINISH_DEADLINE);
    assert_int_equal(r[0].n, 0);
    struct engine_stats s;
    do
        engine_stats(engine, &s);
    while (s.requests_total < 2 || s.running + s.waiting > 0);
    harness_read(&r[1], 1, 0);
    assert_int_equal(r[1].finish, ENGINE_FINISH_DEADLINE);
    assert_true(r[1].n <= STREAM_RING_TOKENS);
    harness_unref(r, 2);
}

/* A reader that sleeps holds back its own stream only, and misses nothing. */
static void test_sleeping_reader(void **state) {
    (void)state;
    static struct reading slow, other;
    struct engine_request q = harness_request(prompt, 3, 500, 1);
    harness_submit(engine, &q, &slow);
    q.sampling.seed = 2;
    harness_submit(engine, &q, &other);
    harness_read(&other, 1, 0);
    assert_int_equal(other.n, 500);
    uint32_t first = harness_take(&slow);
    assert_true(first >= 1);
    assert_in_range(first, 1, 2 * STREAM_RING_TOKENS);
    harness_read(&slow, 1, 0);
    assert_int_equal(slow.n, 500);
    assert_int_equal(slow.finish, ENGINE_FINISH_LENGTH);
    harness_unref(&slow, 1);
    harness_unref(&other, 1);
}

static void refused(struct engine_request q, int code, const char *word) {
    struct engine_stream *s = NULL;
    struct error e = {0};
    assert_int_equal(engine_submit(engine, &q, &s, &e), code);
    assert_null(s);
    if (strstr(e.text, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, word);
}

static void test_refusals(void **state) {
    (void)state;
    const struct engine_request good = harness_request(prompt, 10, 10, 1);
    struct engine_request q = good;
    uint32_t bad_id = 1000;
    float bias = 0.0f / 0.0f;
#define REFUSED(field, value, code, word)                                                                    \
    q = good;                                                                                                \
    q.field = value;                                                                                         \
    refused(q, code, word)
    REFUSED(n_prompt, 0, -EINVAL, "prompt is empty");
    REFUSED(max_tokens, 0, -EINVAL, "max_tokens");
    REFUSED(max_tokens, UINT32_MAX, -EINVAL, "max_tokens");
    REFUSED(max_tokens, 1015, -E2BIG, "shorten the prompt");
    REFUSED(n_prompt, UINT32_MAX, -E2BIG, "shorten the prompt");
    REFUSED(min_tokens, 11, -EINVAL, "min_tokens");
    REFUSED(sampling.temperature, -1, -EINVAL, "temperature");
    REFUSED(sampling.temperature, bias, -EINVAL, "temperature");
    REFUSED(sampling.top_p, 0, -EINVAL, "top_p");
    REFUSED(sampling.min_p, 2, -EINVAL, "min_p");
    REFUSED(sampling.repetition_penalty, 0, -EINVAL, "repetition_penalty");
    REFUSED(sampling.presence_penalty, bias, -EINVAL, "presence_penalty");
    REFUSED(top_logprobs, 1, -EINVAL, "top_logprobs");
    REFUSED(n_bias, LOGIT_BIAS_MAX + 1, -EINVAL, "logit bias");
    REFUSED(n_stop_ids, STEP_SUPPRESS_MAX + 1, -EINVAL, "stop ids");
#undef REFUSED
    q = good;
    q.prompt_ids = &bad_id;
    q.n_prompt = 1;
    refused(q, -EINVAL, "prompt id 1000");
    q = good;
    q.n_bias = 1;
    q.bias_ids = prompt;
    q.bias = &bias;
    refused(q, -EINVAL, "logit_bias");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_one, setup, teardown),
            cmocka_unit_test_setup_teardown(test_many_equal_alone, setup, teardown),
            cmocka_unit_test_setup_teardown(test_stop_id, setup, teardown),
            cmocka_unit_test_setup_teardown(test_one_token, setup, teardown),
            cmocka_unit_test_setup_teardown(test_logprobs, setup, teardown),
            cmocka_unit_test_setup_teardown(test_cancel_finish_abort, setup, teardown),
            cmocka_unit_test_setup_teardown(test_cancel_at_once, setup, teardown),
            cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
            cmocka_unit_test_setup_teardown(test_sleeping_reader, setup, teardown),
            cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
