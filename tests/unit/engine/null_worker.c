/* null_worker.c - shardd-worker-null as processes, over their control sockets, under an engine. */
#include "tests/unit/engine/harness.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>

extern char **environ;

struct process {
    pid_t pid;
    int control;
};

static struct process spawn(char *rank, char *tp, char *option, char *value) {
    struct process p;
    int s[2];
    posix_spawn_file_actions_t actions;
    char *argv[] = {BIN_DIR "/shardd-worker-null", "--ranks", rank, "--tensor-parallel-size", tp,
            "--control-fd", "3", "--vocab-size", "1000", "--max-model-len", "1024", option, value, NULL};
    assert_int_equal(control_pair(s, NULL), 0);
    int high = fcntl(
            s[1], F_DUPFD_CLOEXEC, 100); /* dup2 of a descriptor on itself would keep it close-on-exec */
    close(s[1]);
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    assert_int_equal(posix_spawn_file_actions_adddup2(&actions, high, CONTROL_FD), 0);
    assert_int_equal(posix_spawn(&p.pid, argv[0], &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(high);
    p.control = s[0];
    return p;
}

static int wait_exit(struct process *p) {
    int status;
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    if (p->control >= 0)
        close(p->control);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static struct control_message receive(struct process *p) {
    struct control_message m;
    struct error e = {0};
    if (control_receive(p->control, /* block= */ true, &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

static void connect_all(
        struct engine *g, struct process *all, uint32_t n, uint32_t tp, uint64_t group_epoch) {
    int fd;
    assert_int_equal(step_ring_create(tp, group_epoch, 1, &fd, NULL), 0);
    struct control_message m = {
            .kind = CONTROL_CHANNEL, .n_fds = 1, .group_epoch = group_epoch, .coord_epoch = 1, .fds = {fd}};
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(control_send(all[i].control, &m, NULL), 0);
    if (g != NULL)
        assert_int_equal(engine_control(g, &m), 0);
    close(fd);
}

static void test_control(void **state) {
    (void)state;
    struct process p = spawn("0", "1", NULL, NULL);
    assert_int_equal(receive(&p).kind, CONTROL_READY);
    struct control_message m = {.kind = CONTROL_PING, .a = 77};
    assert_int_equal(control_send(p.control, &m, NULL), 0);
    m = receive(&p);
    assert_int_equal(m.kind, CONTROL_PONG);
    assert_int_equal(m.a, 77);
    connect_all(NULL, &p, 1, 1, 1); /* one channel, then another in its place */
    connect_all(NULL, &p, 1, 1, 2);
    m.kind = CONTROL_STOP;
    assert_int_equal(control_send(p.control, &m, NULL), 0);
    assert_int_equal(wait_exit(&p), 0);

    p = spawn("0", "1", NULL, NULL); /* the launcher is gone: so is the worker */
    assert_int_equal(receive(&p).kind, CONTROL_READY);
    close(p.control);
    p.control = -1;
    assert_int_equal(wait_exit(&p), 0);
    p = spawn("0", "1", "--slots", "many");
    assert_int_equal(wait_exit(&p), 2);
    p = spawn("5", "1", NULL, NULL);
    assert_int_equal(wait_exit(&p), 1);
}

/* Two processes; one dies in the middle; two new ones take over and the tokens are those of one process with
 * two ranks in which nothing died. */
static void test_death_and_replay(void **state) {
    (void)state;
    static struct reading expected[4], readings[4];
    uint32_t prompt[64];
    for (uint32_t i = 0; i < 64; i++)
        prompt[i] = i;
    for (int round = 0; round < 2; round++) {
        struct engine_options o = harness_engine_options();
        struct engine *g = harness_engine(&o);
        struct reading *all = round == 0 ? expected : readings;
        struct process p[2];
        uint32_t n = round == 0 ? 1 : 2;
        p[0] = spawn(round == 0 ? "0,1" : "0", "2", NULL, NULL);
        if (round == 1)
            p[1] = spawn("1", "2", "--die-at-step", "50");
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(receive(&p[i]).kind, CONTROL_READY);
        connect_all(g, p, n, 2, 1);
        assert_int_equal(engine_wait_ready(g, LONG_NS), 0);
        for (uint32_t i = 0; i < 4; i++) {
            struct engine_request q = harness_request(prompt, 10 + i, 200, i);
            harness_submit(g, &q, &all[i]);
        }
        if (round == 1) {
            harness_read(all, 4, 20);
            assert_int_equal(wait_exit(&p[1]), 42);
            struct control_message m = {
                    .kind = CONTROL_GROUP_LOST, .a = 1, .group_epoch = 1, .coord_epoch = 1};
            assert_int_equal(engine_control(g, &m), 0);
            close(p[0].control);
            p[0].control = -1;
            assert_int_equal(wait_exit(&p[0]), 0);
            p[0] = spawn("0", "2", NULL, NULL);
            p[1] = spawn("1", "2", "--die-at-step", "50"); /* in the first group epoch only */
            for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(receive(&p[i]).kind, CONTROL_READY);
            connect_all(g, p, 2, 2, 2);
        }
        harness_read(all, 4, 0);
        harness_unref(all, 4);
        engine_free(g);
        for (uint32_t i = 0; i < n; i++) {
            struct control_message m = {.kind = CONTROL_STOP};
            assert_int_equal(control_send(p[i].control, &m, NULL), 0);
            assert_int_equal(wait_exit(&p[i]), 0);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(readings[i].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(readings[i].n, 200);
        assert_memory_equal(readings[i].ids, expected[i].ids, 200 * sizeof(uint32_t));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_control),
            cmocka_unit_test(test_death_and_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
