/* The keeper of weights and what ranks say to it: what is put is found once, under its own manifest alone; what nobody
 * wants is released. The write end of a pipe stands for memory: its other end tells when nobody has it any more. */
#include "tp/worker/keeper.h"
#include "tp/load/keep.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static struct {
    pthread_t thread;
    int control; /* the launcher's end */
    int status;
} keeper;

static void *run(void *arg) {
    keeper.status = keeper_run(*(int *)arg);
    return arg;
}
static int set_up(void **state) {
    static int child_end;
    int pair[2];
    (void)state;
    assert_int_equal(control_pair(pair, NULL), 0);
    keeper.control = pair[0];
    child_end = pair[1];
    return pthread_create(&keeper.thread, NULL, run, &child_end);
}
static int tear_down(void **state) {
    (void)state;
    close(keeper.control);
    assert_int_equal(pthread_join(keeper.thread, NULL), 0);
    assert_int_equal(keeper.status, EXIT_SUCCESS);
    return 0;
}

/* As the launcher does for a worker that starts. */
static void link_open(struct keep_link *l) {
    struct control_message m = {.kind = CONTROL_LINK, .n_fds = 1};
    int pair[2];
    assert_int_equal(control_pair(pair, NULL), 0);
    m.fds[0] = pair[1];
    m.a = 40 + (uint64_t)pair[0];
    assert_int_equal(control_send(keeper.control, &m, NULL), 0);
    close(pair[1]);
    assert_int_equal(control_receive(keeper.control, /* block= */ true, &m, NULL), 0);
    assert_int_equal(m.kind, CONTROL_PONG);
    assert_int_equal(m.a, 40 + pair[0]);
    l->fd = pair[0];
    pthread_mutex_init(&l->lock, NULL);
}
static void link_close(struct keep_link *l) {
    close(l->fd);
    pthread_mutex_destroy(&l->lock);
}

static int memory_new(int *ret_watch) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    *ret_watch = ends[0];
    return ends[1];
}
static bool memory_is_released(int watch, int timeout_ms) {
    struct pollfd p = {.fd = watch};
    return poll(&p, 1, timeout_ms) == 1 && (p.revents & POLLHUP);
}
static void put(struct keep_link *l, uint32_t rank, const char *manifest, uint64_t sum, int fd) {
    struct keep k = {.fd = fd, .sum = sum};
    struct error e;
    snprintf(k.manifest, sizeof(k.manifest), "%s", manifest);
    assert_int_equal(keep_put(l, rank, &k, &e), 0);
    close(fd);
}
static struct keep take(struct keep_link *l, uint32_t rank, const char *manifest) {
    struct keep k = {.fd = -1};
    struct error e = {0};
    snprintf(k.manifest, sizeof(k.manifest), "%s", manifest);
    if (keep_take(l, rank, &k, &e) < 0)
        fail_msg("%s", e.text);
    return k;
}

static void test_from_worker_to_worker(void **state) {
    struct keep_link first, second;
    int watch[2];
    (void)state;
    link_open(&first);
    assert_int_equal(take(&first, 0, "a model").fd, -1); /* nothing yet */
    put(&first, 0, "a model", 11, memory_new(&watch[0]));
    put(&first, 3, "a model", 33, memory_new(&watch[1]));
    link_close(&first); /* it died */
    link_open(&second);
    const struct keep k = take(&second, 3, "a model"), other = take(&second, 0, "a model");
    assert_true(k.fd >= 0 && other.fd >= 0);
    assert_int_equal(k.sum, 33);
    assert_int_equal(other.sum, 11);
    assert_false(memory_is_released(watch[1], 0));
    /* Given once: with a worker that does not come to serve its memory is gone. */
    assert_int_equal(take(&second, 3, "a model").fd, -1);
    close(k.fd);
    assert_true(memory_is_released(watch[1], -1));
    put(&second, 0, "a model", other.sum, other.fd);
    link_close(&second);
    assert_false(memory_is_released(watch[0], 0));
    close(watch[0]);
    close(watch[1]);
}

static void test_of_something_else(void **state) {
    struct keep_link l;
    int watch[2];
    (void)state;
    link_open(&l);
    put(&l, 0, "a model", 1, memory_new(&watch[0]));
    assert_int_equal(take(&l, 0, "another model").fd, -1);
    assert_true(memory_is_released(watch[0], 0)); /* before the answer */
    assert_int_equal(take(&l, 0, "a model").fd, -1);
    put(&l, 0, "a model", 1, memory_new(&watch[1]));
    close(watch[0]);
    put(&l, 0, "a newer model", 2, memory_new(&watch[0]));
    assert_true(memory_is_released(watch[1], -1));
    const struct keep k = take(&l, 0, "a newer model");
    assert_true(k.fd >= 0);
    assert_int_equal(k.sum, 2);
    close(k.fd);
    link_close(&l);
    close(watch[0]);
    close(watch[1]);
}

/* What nobody should send changes nothing. */
static void test_nonsense(void **state) {
    struct keep_link l;
    struct control_message m = {.kind = CONTROL_PUT, .a = UINT64_MAX};
    int watch;
    (void)state;
    link_open(&l);
    put(&l, 0, "a model", 7, memory_new(&watch));
    assert_int_equal(control_send(l.fd, &m, NULL), 0); /* no such rank */
    m.a = 0;
    assert_int_equal(control_send(l.fd, &m, NULL), 0); /* without memory */
    m.kind = CONTROL_PING;
    assert_int_equal(control_send(l.fd, &m, NULL), 0);
    assert_int_equal(control_send(keeper.control, &m, NULL), 0);
    assert_int_equal(write(l.fd, "nonsense", 8), 8);
    const struct keep k = take(&l, 0, "a model");
    assert_true(k.fd >= 0);
    assert_int_equal(k.sum, 7);
    close(k.fd);
    link_close(&l);
    close(watch);
}

static void test_dead_keeper(void **state) {
    struct keep_link l;
    struct keep k = {.manifest = "a model"};
    struct error e;
    int pair[2];
    (void)state;
    assert_int_equal(control_pair(pair, NULL), 0);
    close(pair[1]);
    l.fd = pair[0];
    pthread_mutex_init(&l.lock, NULL);
    assert_int_equal(keep_take(&l, 0, &k, &e), -EPIPE);
    assert_int_equal(k.fd, -1);
    link_close(&l);
}

/* A keeper that was stopped and goes on later finds nobody there, and releases what it would have given. */
static void test_silent_keeper(void **state) {
    struct keep_link l;
    struct keep k = {.manifest = "a model"};
    struct control_message m = {.kind = CONTROL_KEPT};
    struct error e;
    int pair[2];
    (void)state;
    assert_int_equal(control_pair(pair, NULL), 0);
    l.fd = pair[0];
    pthread_mutex_init(&l.lock, NULL);
    assert_int_equal(keep_take(&l, 0, &k, &e), -ETIMEDOUT);
    assert_int_equal(k.fd, -1);
    assert_int_equal(control_send(pair[1], &m, NULL), -EPIPE);
    link_close(&l);
    close(pair[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_from_worker_to_worker, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_of_something_else, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_nonsense, set_up, tear_down),
            cmocka_unit_test(test_dead_keeper),
            cmocka_unit_test(test_silent_keeper),
    };
    log_open("keeper-test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
