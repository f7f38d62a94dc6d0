/* deaths.c - which deaths of a rank group count against which request, and what ends one. The test is the ranks:
 * it begins, answers or leaves each record as it likes, so every point of a death is hit exactly. */
#include "tests/unit/engine/harness.h"

#include <signal.h>

#define RANKS       2u
#define ANY_RANK    99u
#define CRASH       0u /* the process ended by itself or was hung */
#define TRIAL_STEPS 2u /* of a suspect at its first death: the replay with its sample, and one token more */

static struct engine *engine;
static struct step_ring *rings[RANKS];
static struct null_rank *ranks[RANKS];
static uint32_t n_ranks, prompt[1024];
static uint64_t epoch;

/* The next group: its channel is announced; RESET is answered by group_up() only. */
static void group_next(void) {
    int fd;
    assert_int_equal(step_ring_create(n_ranks, ++epoch, 1, &fd, NULL), 0);
    for (uint32_t i = 0; i < n_ranks; i++) {
        struct null_rank_options o = harness_rank_options();
        o.tp = n_ranks;
        o.rank = i;
        rings[i] = step_ring_free(rings[i]);
        ranks[i] = null_rank_free(ranks[i]);
        assert_int_equal(null_rank_create(&o, &ranks[i], NULL), 0);
        assert_int_equal(step_ring_attach(fd, i, &rings[i], NULL), 0);
    }
    struct control_message m = {
            .kind = CONTROL_CHANNEL, .n_fds = 1, .group_epoch = epoch, .coord_epoch = 1, .fds = {fd}};
    assert_int_equal(engine_control(engine, &m), 0);
    close(fd);
}

static struct engine_stats wait_state(const char *name) {
    struct engine_stats s;
    for (;;) {
        engine_stats(engine, &s);
        if (strcmp(s.state, name) == 0)
            return s;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static void answer(uint32_t rank) {
    struct error e = {0};
    if (null_rank_serve(ranks[rank], rings[rank], LONG_NS, &e) < 0)
        fail_msg("%s", e.text);
}

static void group_up(void) {
    group_next();
    for (uint32_t i = 0; i < n_ranks; i++)
        answer(i);
    wait_state("serving");
}

static void start(uint32_t tp) {
    struct engine_options o = harness_engine_options();
    engine = harness_engine(&o);
    n_ranks = tp;
    epoch = 0;
    group_up();
}

static int setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    engine = engine_free(engine);
    for (uint32_t i = 0; i < RANKS; i++) {
        rings[i] = step_ring_free(rings[i]);
        ranks[i] = null_rank_free(ranks[i]);
    }
    return 0;
}

/* The rank's next plan, read and no more; pings on the way are answered. */
static struct step_plan look(uint32_t rank) {
    const void *record;
    uint32_t bytes;
    struct step_plan p;
    for (;;) {
        int r = step_ring_next(rings[rank], &record, &bytes);
        if (r == -EAGAIN) {
            step_ring_wait(rings[rank], LONG_NS);
            continue;
        }
        assert_int_equal(r, 0);
        assert_int_equal(step_decode(record, bytes, &p, NULL), 0);
        if (p.header->type == STEP_TYPE_PLAN)
            return p;
        answer(rank);
    }
}

/* The same, and the rank says that it is at work on it, as it does before it computes. */
static struct step_plan begin(uint32_t rank) {
    struct step_plan p = look(rank);
    step_ring_progress(rings[rank], p.header->step, 0, 0, /* busy= */ true);
    return p;
}

static struct engine_stats lose(uint32_t rank, uint32_t end_signal) {
    struct control_message m = {
            .kind = CONTROL_GROUP_LOST, .group_epoch = epoch, .coord_epoch = 1, .a = rank, .b = end_signal};
    assert_int_equal(engine_control(engine, &m), 0);
    return wait_state("recovering");
}

static struct reading submit(uint32_t n_prompt, uint32_t max_tokens) {
    struct reading r;
    struct engine_request q = harness_request(prompt, n_prompt, max_tokens, n_prompt);
    harness_submit(engine, &q, &r);
    return r;
}

/* Answers whatever comes until the reading has ended. */
static void serve_until_end(struct reading *r) {
    while (r->finish == ENGINE_RUNNING) {
        for (uint32_t i = 0; i < n_ranks; i++) {
            int err = null_rank_serve(ranks[i], rings[i], 1000000u, NULL);
            assert_true(err == 0 || err == -ETIMEDOUT);
        }
        harness_take(r);
    }
}

static void expect_end(struct reading *r, enum engine_finish finish) {
    serve_until_end(r);
    assert_int_equal(r->finish, finish);
    if (finish == ENGINE_FINISH_FAULT)
        assert_non_null(strstr(engine_stream_error(r->stream), "alone"));
    harness_unref(r, 1);
}

/* Committed, but no rank has begun it: the group was dead before, or died of something else. */
static void test_plan_that_nobody_began(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 20);
    for (int i = 0; i < 4; i++) {
        look(0);
        assert_int_equal(lose(0, CRASH).suspects, 0);
        group_up();
    }
    expect_end(&a, ENGINE_FINISH_LENGTH);
}

static void test_once_among_others_then_alone(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 20);
    begin(0);
    assert_int_equal(lose(0, CRASH).suspects, 1);
    group_up();
    struct step_plan p = begin(0);
    assert_int_equal(p.n_entries, 1);
    assert_int_equal(lose(0, CRASH).suspects, 0);
    group_up();
    expect_end(&a, ENGINE_FINISH_FAULT);
    assert_int_equal(wait_state("serving").waiting, 0);
}

/* A group that dies while it starts kills nobody, however often, also a suspect that waits for its trial. */
static void test_deaths_during_reset(void **state) {
    (void)state;
    start(2);
    struct reading a = submit(50, 20);
    begin(0);
    begin(1);
    assert_int_equal(lose(1, CRASH).suspects, 1);
    for (int i = 0; i < 5; i++) {
        group_next();
        if (i % 2 == 0)
            answer(0); /* one of two */
        struct control_message m = {
                .kind = CONTROL_GROUP_LOST, .group_epoch = epoch, .coord_epoch = 1, .a = 1, .b = CRASH};
        assert_int_equal(engine_control(engine, &m), 0);
    }
    assert_int_equal(wait_state("recovering").suspects, 1);
    group_up();
    expect_end(&a, ENGINE_FINISH_LENGTH);
    assert_int_equal(wait_state("serving").suspects, 0);
}

static void test_killed_while_idle(void **state) {
    (void)state;
    start(2);
    struct reading a = submit(50, 3);
    serve_until_end(&a);
    struct reading b = submit(60, 3);
    for (uint32_t i = 0; i < 2; i++) { /* what is there is answered: nobody is at work at the death */
        look(i);
        answer(i);
    }
    assert_int_equal(lose(0, CRASH).suspects, 0);
    group_up();
    expect_end(&b, ENGINE_FINISH_LENGTH);
    harness_unref(&a, 1);
}

/* Two plans in flight: the first has `a` alone (its only token), the second `b` alone. tp 2: rank 0 has answered
 * the first and is at the second, rank 1 is at the first. */
static void two_flights(struct reading *a, struct reading *b) {
    start(2);
    *a = submit(50, 1);
    begin(1);
    look(0);
    *b = submit(60, 5);
    answer(0);
    struct step_plan second = begin(0);
    assert_int_equal(second.n_entries, 1);
    assert_int_equal(second.entries[0].n_rows, 60);
}

static void check_suspect_of_two(uint32_t dead_rank, uint32_t n_suspects, uint32_t first_rows) {
    struct reading a, b;
    two_flights(&a, &b);
    assert_int_equal(lose(dead_rank, CRASH).suspects, n_suspects);
    group_up();
    struct step_plan p = look(0);
    assert_int_equal(p.n_entries, 1); /* a suspect goes first, alone */
    assert_int_equal(p.entries[0].n_rows, first_rows);
    expect_end(&a, ENGINE_FINISH_LENGTH);
    expect_end(&b, ENGINE_FINISH_LENGTH);
    assert_int_equal(wait_state("serving").suspects, 0);
}

static void test_death_in_the_first_of_two(void **state) {
    (void)state;
    check_suspect_of_two(1, 1, 50);
}

static void test_death_in_the_second_of_two(void **state) {
    (void)state;
    check_suspect_of_two(0, 1, 60);
}

static void test_death_of_a_rank_not_named(void **state) {
    (void)state;
    check_suspect_of_two(ANY_RANK, 2, 50);
}

/* The rank had answered the first and not begun the second. */
static void test_death_between_two(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 30);
    look(0);
    answer(0);
    look(0);
    assert_int_equal(lose(0, CRASH).suspects, 0);
    group_up();
    expect_end(&a, ENGINE_FINISH_LENGTH);
}

/* Answers the trials of both, each alone, and then their first step together, which the rank begins. */
static void let_both_go(struct reading *a, struct reading *b) {
    for (;;) {
        struct step_plan p = begin(0);
        if (p.n_entries == 2)
            return;
        assert_int_equal(p.n_entries, 1);
        answer(0);
        harness_take(a);
        harness_take(b);
    }
}

/* Any number of deaths among others ends nobody; one alone does. Its companion lives through it all. */
static void test_often_among_others(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 900), b = submit(60, 900);
    let_both_go(&a, &b);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(lose(0, CRASH).suspects, 2);
        group_up();
        let_both_go(&a, &b);
    }
    assert_int_equal(lose(0, CRASH).suspects, 2);
    group_up();
    struct step_plan p = begin(0);
    assert_int_equal(p.n_entries, 1);
    assert_int_equal(lose(0, CRASH).suspects, 1);
    harness_take(&a);
    assert_int_equal(a.finish, ENGINE_FINISH_FAULT);
    group_up();
    harness_unref(&a, 1);
    expect_end(&b, ENGINE_FINISH_LENGTH);
}

/* What is let go is let go after TRIAL_STEPS at its first death, and after more at later ones. */
static void test_trials_grow(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 900);
    uint32_t longest = 0;
    for (uint32_t deaths = 1; deaths <= 8; deaths++) {
        begin(0);
        assert_int_equal(lose(0, SIGKILL).suspects, 1);
        group_up();
        uint32_t steps = 0;
        for (struct engine_stats s; engine_stats(engine, &s), s.suspects > 0; steps++) {
            struct engine_stats before = s;
            begin(0);
            answer(0);
            do
                engine_stats(engine, &s);
            while (s.steps_total == before.steps_total);
            harness_take(&a);
        }
        if (deaths == 1)
            assert_int_equal(steps, TRIAL_STEPS);
        assert_true(steps >= longest);
        longest = steps;
    }
    assert_in_range(longest, 60, 70);
    expect_end(&a, ENGINE_FINISH_LENGTH);
}

/* SIGKILL may come from anybody: alone it has to come twice, with no trial passed in between. */
static void test_killed_from_outside(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 200);
    for (uint32_t i = 0; i < 3;
            i++) { /* each time once in the step, once in the trial, and then the trial is passed */
        begin(0);
        assert_int_equal(lose(0, SIGKILL).suspects, 1);
        group_up();
        begin(0);
        assert_int_equal(lose(0, SIGKILL).suspects, 1);
        group_up();
        while (wait_state("serving").suspects > 0) {
            null_rank_serve(ranks[0], rings[0], 1000000u, NULL);
            harness_take(&a);
        }
    }
    begin(0);
    lose(0, SIGKILL);
    group_up();
    begin(0);
    lose(0, SIGKILL);
    group_up();
    begin(0);
    assert_int_equal(lose(0, SIGTERM).suspects, 0);
    group_up();
    expect_end(&a, ENGINE_FINISH_FAULT);
}

/* A rank that answers its step with a fault, or wrongly, has computed it: that counts as well. */
static void test_fault_answers(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 20);
    for (uint32_t i = 0; i < 2; i++) {
        struct step_plan p = look(0);
        struct step_completion c = {
                .type = STEP_TYPE_PLAN, .step = p.header->step, .status = STEP_STATUS_FAULT};
        c.n_outcomes = 4;
        assert_int_equal(step_ring_complete(rings[0], &c, "oops", 4), 0);
        assert_int_equal(wait_state("recovering").suspects, i == 0);
        group_up();
    }
    expect_end(&a, ENGINE_FINISH_FAULT);
}

/* a's rows are in the step that dies, and nobody reads a while b is served; then a goes on to its end. */
static void suspected_while_unread(struct reading *a) {
    begin(0);
    assert_int_equal(lose(0, CRASH).suspects, 1);
    struct reading b = submit(60, 20);
    group_up();
    serve_until_end(&b);
    assert_int_equal(b.finish, ENGINE_FINISH_LENGTH);
    harness_unref(&b, 1);
    expect_end(a, ENGINE_FINISH_LENGTH);
}

/* The reader of a suspect takes nothing: its trial ends all the same, and others run. */
static void test_trial_without_a_reader(void **state) {
    (void)state;
    start(1);
    struct reading a = submit(50, 900);
    struct engine_stats s;
    do { /* until the ring is as full as it gets */
        null_rank_serve(ranks[0], rings[0], 5000000u, NULL);
        engine_stats(engine, &s);
    } while (s.steps_total < STREAM_RING_TOKENS - 1);
    harness_take(&a);
    while (s.steps_total < STREAM_RING_TOKENS) {
        null_rank_serve(ranks[0], rings[0], 5000000u, NULL);
        engine_stats(engine, &s);
    }
    suspected_while_unread(&a);
}

/* The same where it is the prompt's logprobs that nobody reads, which are more than its reader has room for. */
static void test_trial_of_a_scored_prompt(void **state) {
    (void)state;
    start(1);
    struct reading a;
    struct engine_request q = harness_request(prompt, 500, 10, 500);
    q.prompt_logprobs = true;
    harness_submit(engine, &q, &a);
    suspected_while_unread(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_teardown(test_plan_that_nobody_began, teardown),
            cmocka_unit_test_teardown(test_once_among_others_then_alone, teardown),
            cmocka_unit_test_teardown(test_deaths_during_reset, teardown),
            cmocka_unit_test_teardown(test_killed_while_idle, teardown),
            cmocka_unit_test_teardown(test_death_in_the_first_of_two, teardown),
            cmocka_unit_test_teardown(test_death_in_the_second_of_two, teardown),
            cmocka_unit_test_teardown(test_death_of_a_rank_not_named, teardown),
            cmocka_unit_test_teardown(test_death_between_two, teardown),
            cmocka_unit_test_teardown(test_often_among_others, teardown),
            cmocka_unit_test_teardown(test_trials_grow, teardown),
            cmocka_unit_test_teardown(test_killed_from_outside, teardown),
            cmocka_unit_test_teardown(test_fault_answers, teardown),
            cmocka_unit_test_teardown(test_trial_without_a_reader, teardown),
            cmocka_unit_test_teardown(test_trial_of_a_scored_prompt, teardown),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
