/* recovery.c - rank groups that die, hang, lie or come back as another: what their requests notice. */
#include "tests/unit/engine/harness.h"

#define N 12u

static uint32_t prompt[1024];
static uint32_t step_timeout_ms; /* 0 = the default, which no slow machine reaches */
static struct reading expected[N];

static struct engine_request request(uint32_t i) {
    struct engine_request q = harness_request(prompt + i, 20 + i * 9, 100 + i * 7, i);
    q.sampling.presence_penalty = 0.5f; /* so replayed rows must be marked as generated */
    return q;
}

static struct engine *start(struct harness_group *group, const struct null_rank_options *r) {
    struct engine_options o = harness_engine_options();
    o.step_timeout_ms = step_timeout_ms;
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
    struct engine *g = start(&group, &r);
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

static void submit_all(struct engine *g, struct reading *readings) {
    for (uint32_t i = 0; i < N; i++) {
        struct engine_request q = request(i);
        harness_submit(g, &q, &readings[i]);
    }
}

static void expect_all(const struct reading *readings) {
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(readings[i].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(readings[i].n, expected[i].n);
        assert_memory_equal(readings[i].ids, expected[i].ids, expected[i].n * sizeof(uint32_t));
    }
}

static void lose(struct engine *g, uint64_t group_epoch) {
    struct control_message m = {.kind = CONTROL_GROUP_LOST, .group_epoch = group_epoch, .coord_epoch = 1};
    assert_int_equal(engine_control(g, &m), 0);
}

static void wait_state(struct engine *g, const char *name) {
    struct engine_stats s;
    do {
        engine_stats(g, &s);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    } while (strcmp(s.state, name) != 0);
}

/* The group dies at a step; the tokens are those of a run in which nothing died. */
static void check_death(uint32_t tp, uint64_t step) {
    static struct reading readings[N];
    struct harness_group first, second;
    struct engine_stats s;
    struct null_rank_options r = harness_rank_options();
    r.tp = tp;
    r.die_at_step = step;
    r.fault_epochs = 1;
    struct engine *g = start(&first, &r);
    submit_all(g, readings);
    while (atomic_load(&first.ranks[tp - 1].result) == 0) {
        /* Readers must not be what holds it up. No waiting for a poke here: who had no token before the death gets
         * none until the loss is told, and that comes after this loop. */
        for (uint32_t i = 0; i < N; i++)
            harness_take(&readings[i]);
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    assert_int_equal(atomic_load(&first.ranks[tp - 1].result), -ECANCELED);
    lose(g, 1);
    wait_state(g, "recovering");
    harness_group_stop(&first);
    harness_group_start(&second, g, &r, 2);
    lose(g, 1); /* old news: about a group that is gone */
    harness_read(readings, N, 0);
    expect_all(readings);
    harness_unref(readings, N);
    harness_expect_quiet(g, &s);
    assert_string_equal(s.state, "serving");
    assert_int_equal(s.step_errors_total, 0);
    assert_int_equal(s.group_epoch, 2);
    assert_in_range(s.replays_total, 1, N);
    engine_free(g);
    assert_int_equal(atomic_load(&second.ranks[0].result), 0);
    harness_group_stop(&second);
}

static void test_death_while_decoding(void **state) {
    (void)state;
    check_death(1, 70);
}

static void test_death_of_one_rank_of_two(void **state) {
    (void)state;
    check_death(2, 61);
}

static void wait_death(const struct harness_group *group) {
    while (atomic_load(&group->ranks[0].result) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(atomic_load(&group->ranks[0].result), -ECANCELED);
}

/* Dies in the first epoch and again in the second, each time while it computes the request. */
static void test_suspect_ends(void **state) {
    (void)state;
    static struct reading guilty, innocent[3];
    struct harness_group group;
    struct engine_stats s;
    struct null_rank_options r = harness_rank_options();
    r.die_at_step = 1;
    r.fault_epochs = 2;
    struct engine *g = start(&group, &r);
    struct engine_request q = request(0);
    harness_submit(g, &q, &guilty);
    wait_death(&group);
    lose(g, 1);
    wait_state(g, "recovering");
    harness_group_stop(&group);
    for (uint32_t i = 0; i < 3; i++) { /* not in flight at any death */
        q = request(i);
        harness_submit(g, &q, &innocent[i]);
    }
    harness_group_start(&group, g, &r, 2); /* its first step is the replay of the suspect, which runs alone */
    wait_death(&group);
    lose(g, 2);
    harness_read(&guilty, 1, 0);
    assert_int_equal(guilty.finish, ENGINE_FINISH_FAULT);
    assert_non_null(strstr(engine_stream_error(guilty.stream), "alone"));
    harness_group_stop(&group);
    harness_group_start(&group, g, &r, 3);
    harness_read(innocent, 3, 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(innocent[i].finish, ENGINE_FINISH_LENGTH);
        assert_memory_equal(innocent[i].ids, expected[i].ids, expected[i].n * sizeof(uint32_t));
    }
    harness_unref(&guilty, 1);
    harness_unref(innocent, 3);
    harness_expect_quiet(g, &s);
    engine_free(g);
    harness_group_stop(&group);
}

/* Reads meanwhile, so that readers are not what holds it up. */
static void read_until_death(const struct harness_group *group, struct reading *readings) {
    while (atomic_load(&group->ranks[0].result) == 0) {
        for (uint32_t i = 0; i < N; i++)
            harness_take(&readings[i]);
    }
    assert_int_equal(atomic_load(&group->ranks[0].result), -ECANCELED);
}

/* Many suspects: each is tried alone, so a second death convicts one of them and the rest end well. All are submitted
 * while there is no group: to one that runs they may come so late that few or only one of them are in the step in
 * which it dies, and then step 5 of the next group is nobody's trial any more. */
static void test_one_suspect_at_a_time(void **state) {
    (void)state;
    static struct reading readings[N];
    struct harness_group group;
    struct engine_stats s;
    struct null_rank_options r = harness_rank_options();
    struct engine *g = start(&group, &r);
    lose(g, 1);
    wait_state(g, "recovering");
    harness_group_stop(&group);
    submit_all(g, readings);
    r.die_at_step = 60;
    r.fault_epochs = 3;
    harness_group_start(&group, g, &r, 2);
    read_until_death(&group, readings);
    lose(g, 2);
    wait_state(g, "recovering");
    engine_stats(g, &s);
    assert_int_equal(s.suspects, N);
    harness_group_stop(&group);
    r.die_at_step =
            5; /* a trial is a step of given rows, one of generated ones and one more token: the second one's */
    harness_group_start(&group, g, &r, 3);
    read_until_death(&group, readings);
    lose(g, 3);
    wait_state(g, "recovering");
    harness_group_stop(&group);
    harness_group_start(&group, g, &r, 4);
    harness_read(readings, N, 0);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(readings[i].finish, i == 1 ? ENGINE_FINISH_FAULT : ENGINE_FINISH_LENGTH);
        assert_memory_equal(readings[i].ids, expected[i].ids, readings[i].n * sizeof(uint32_t));
    }
    harness_unref(readings, N);
    harness_expect_quiet(g, &s);
    engine_free(g);
    harness_group_stop(&group);
}

/* A channel without a loss before it (a planned restart): all goes on. */
static void test_channel_replaced(void **state) {
    (void)state;
    static struct reading readings[N];
    struct harness_group first, second;
    struct null_rank_options r = harness_rank_options();
    struct engine *g = start(&first, &r);
    submit_all(g, readings);
    harness_read(readings, N, 2);
    harness_group_start(&second, g, &r, 2);
    harness_read(readings, N, 0);
    expect_all(readings);
    harness_unref(readings, N);
    engine_free(g);
    harness_group_stop(&first);
    harness_group_stop(&second);
}

/* A rank that reports a fault, lies about its checksum, or hangs: the launcher is told which and why, and the
 * requests go on with the next group. */
static void check_misbehaviour(const struct null_rank_options *r, const char *word) {
    static struct reading readings[N];
    struct harness_group first, second;
    struct engine_stats s;
    struct engine *g = start(&first, r);
    submit_all(g, readings);
    for (;;) {
        for (uint32_t i = 0; i < N; i++)
            harness_take(&readings[i]);
        engine_stats(g, &s);
        if (strcmp(s.state, "recovering") == 0)
            break;
    }
    struct control_message m = harness_wait_message(0);
    assert_int_equal(m.kind, CONTROL_STUCK);
    assert_int_equal(m.a, r->tp - 1);
    assert_int_equal(m.group_epoch, 1);
    if (strstr(m.text, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", m.text, word);
    lose(g, 1); /* the launcher's answer */
    harness_group_stop(&first);
    harness_group_start(&second, g, r, 2);
    harness_read(readings, N, 0);
    expect_all(readings);
    harness_unref(readings, N);
    harness_expect_quiet(g, &s);
    assert_int_equal(s.step_errors_total, 1);
    engine_free(g);
    harness_group_stop(&second);
}

/* A sequence whose logits are no numbers ends with the reason; the others do not notice, also the one that waits for
 * its slot and its pages, and the group goes on. */
static void test_damaged_sequence(void **state) {
    (void)state;
    static struct reading readings[N], damaged[2];
    static uint32_t ids[40];
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine_stats s;
    r.tp = 2;
    r.vocab_size = 1001;
    r.id_count = 1000; /* as the expected tokens were made */
    r.damaged_id = 1000;
    r.slots = N + 1;
    struct engine *g = start(&group, &r);
    for (uint32_t i = 0; i < 40; i++)
        ids[i] = i == 33 ? 1000 : i;
    for (uint32_t i = 0; i < 2; i++) {
        struct engine_request q = harness_request(ids, 40, 50, 1);
        harness_submit(g, &q, &damaged[i]);
    }
    submit_all(g, readings);
    harness_read(damaged, 2, 0);
    harness_read(readings, N, 0);
    expect_all(readings);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(damaged[i].finish, ENGINE_FINISH_FAULT);
        assert_int_equal(damaged[i].n, 0);
        assert_non_null(strstr(engine_stream_error(damaged[i].stream), "a logit is not a finite number"));
    }
    harness_unref(readings, N);
    harness_unref(damaged, 2);
    harness_expect_quiet(g, &s);
    assert_int_equal(s.step_errors_total, 0);
    assert_int_equal(s.group_epoch, 1);
    assert_int_equal(ear.n_messages, 0);
    engine_free(g);
    harness_group_stop(&group);
}

/* Stop ids that must not come yet leave no id at all. */
static void test_no_token_left(void **state) {
    (void)state;
    static struct reading reading;
    static const uint32_t stop[] = {7, 8, 9};
    struct null_rank_options r = harness_rank_options();
    struct harness_group group;
    struct engine_stats s;
    r.id_first = 7;
    r.id_count = 3;
    struct engine *g = start(&group, &r);
    struct engine_request q = harness_request(prompt, 40, 50, 1);
    q.stop_ids = stop;
    q.n_stop_ids = 3;
    q.min_tokens = 4;
    harness_submit(g, &q, &reading);
    harness_read(&reading, 1, 0);
    assert_int_equal(reading.finish, ENGINE_FINISH_NO_TOKEN);
    assert_int_equal(reading.n, 0);
    harness_unref(&reading, 1);
    harness_expect_quiet(g, &s);
    engine_free(g);
    harness_group_stop(&group);
}

static void test_fault_completion(void **state) {
    (void)state;
    struct null_rank_options r = harness_rank_options();
    r.tp = 2;
    r.fault_at_step = 40;
    r.fault_epochs = 1;
    check_misbehaviour(&r, "asked to report a fault at step 40");
}

static void test_checksum_mismatch(void **state) {
    (void)state;
    struct null_rank_options r = harness_rank_options();
    r.tp = 2;
    r.lie_at_step = 33;
    r.fault_epochs = 1;
    check_misbehaviour(&r, "checksum");
}

static void test_stuck(void **state) {
    (void)state;
    struct null_rank_options r = harness_rank_options();
    r.tp = 2;
    r.hang_at_step = 25;
    r.fault_epochs = 1;
    step_timeout_ms = 2000; /* nothing else may be that slow */
    check_misbehaviour(&r, "no progress for 2000 ms at step 25");
    step_timeout_ms = 0;
}

/* An idle group is pinged, so a rank that hangs with nothing to do is seen too. */
static void test_idle_ping(void **state) {
    (void)state;
    struct harness_group group;
    struct null_rank_options r = harness_rank_options();
    step_timeout_ms = 500; /* and RESET has four times as long */
    struct engine *g = start(&group, &r);
    step_timeout_ms = 0;
    harness_group_stop(&group);
    struct control_message m = harness_wait_message(0);
    assert_int_equal(m.kind, CONTROL_STUCK);
    engine_free(g);
}

static void test_other_weights_are_refused(void **state) {
    (void)state;
    static struct reading one;
    struct harness_group group;
    struct null_rank_options r = harness_rank_options();
    struct engine_stream *s = NULL;
    struct error e;
    struct engine *g = start(&group, &r);
    struct engine_request q = request(0);
    q.max_tokens = 800;
    harness_submit(g, &q, &one);
    harness_read(&one, 1, 3);
    lose(g, 1);
    wait_state(g, "recovering");
    harness_group_stop(&group);
    r.fingerprint++;
    harness_group_start(&group, g, &r, 2);
    harness_read(&one, 1, 0);
    assert_int_equal(one.finish, ENGINE_FINISH_FAULT);
    assert_non_null(strstr(engine_stream_error(one.stream), "other weights"));
    struct control_message m = harness_wait_message(0);
    assert_int_equal(m.kind, CONTROL_FAULT);
    wait_state(g, "failed");
    assert_int_equal(engine_submit(g, &q, &s, &e), -ESHUTDOWN);
    harness_unref(&one, 1);
    engine_free(g);
    harness_group_stop(&group);
}

static void test_smaller_pool_comes_back(void **state) {
    (void)state;
    static struct reading readings[2];
    struct harness_group group;
    struct null_rank_options r = harness_rank_options();
    struct engine *g = start(&group, &r);
    struct engine_request q = harness_request(prompt, 100, 100, 1),
                          big = harness_request(prompt, 100, 900, 1);
    harness_submit(g, &q, &readings[0]);
    harness_submit(g, &big, &readings[1]);
    harness_read(readings, 2, 3);
    lose(g, 1);
    wait_state(g, "recovering");
    harness_group_stop(&group);
    r.pages = 4;
    harness_group_start(&group, g, &r, 2);
    harness_read(readings, 2, 0);
    assert_int_equal(readings[0].finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(readings[1].finish, ENGINE_FINISH_FAULT);
    assert_non_null(strstr(engine_stream_error(readings[1].stream), "no longer fits"));
    harness_unref(readings, 2);
    engine_free(g);
    harness_group_stop(&group);
}

static void test_bad_channels(void **state) {
    (void)state;
    struct engine_options o = harness_engine_options();
    struct engine *g = harness_engine(&o);
    struct control_message m = {.kind = CONTROL_PING};
    assert_int_equal(engine_control(g, &m), -EINVAL);
    m.kind = CONTROL_CHANNEL;
    assert_int_equal(engine_control(g, &m), -EINVAL);
    m.n_fds = 1;
    m.fds[0] = -1;
    assert_int_equal(engine_control(g, &m), -EBADF);
    int p[2];
    assert_int_equal(pipe(p), 0);
    m.fds[0] = p[0];
    assert_int_equal(engine_control(g, &m), 0);
    assert_int_equal(harness_wait_message(0).kind, CONTROL_FAULT);
    close(p[0]);
    close(p[1]);
    int fd;
    assert_int_equal(step_ring_create(1, 4, 4, &fd, NULL), 0);
    m.fds[0] = fd;
    m.group_epoch = 3; /* not the ring's */
    m.coord_epoch = 4;
    assert_int_equal(engine_control(g, &m), 0);
    struct control_message answer = harness_wait_message(1);
    assert_int_equal(answer.kind, CONTROL_FAULT);
    assert_non_null(strstr(answer.text, "epochs 3/4"));
    close(fd);
    engine_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_death_while_decoding),
            cmocka_unit_test(test_death_of_one_rank_of_two),
            cmocka_unit_test(test_suspect_ends),
            cmocka_unit_test(test_one_suspect_at_a_time),
            cmocka_unit_test(test_channel_replaced),
            cmocka_unit_test(test_fault_completion),
            cmocka_unit_test(test_damaged_sequence),
            cmocka_unit_test(test_no_token_left),
            cmocka_unit_test(test_checksum_mismatch),
            cmocka_unit_test(test_stuck),
            cmocka_unit_test(test_idle_ping),
            cmocka_unit_test(test_other_weights_are_refused),
            cmocka_unit_test(test_smaller_pool_comes_back),
            cmocka_unit_test(test_bad_channels),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
