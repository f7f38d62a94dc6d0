/* control.c - control messages with descriptors; malformed ones are refused and leak nothing. */
#include "proto/step/control.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static unsigned open_fds(void) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

static void test_round_trip(void **state) {
    (void)state;
    int s[2], pipes[2];
    unsigned before = open_fds();
    assert_int_equal(control_pair(s, NULL), 0);
    assert_int_equal(pipe(pipes), 0);
    struct control_message m = {.kind = CONTROL_LISTENERS,
            .n_fds = 2,
            .group_epoch = 3,
            .coord_epoch = 4,
            .a = 5,
            .b = UINT64_MAX,
            .text = "tcp\nunix",
            .fds = {pipes[0], pipes[1]}};
    assert_int_equal(control_send(s[0], &m, NULL), 0);
    close(pipes[0]);
    close(pipes[1]);
    struct control_message got;
    memset(&got, 0x5a, sizeof(got));
    assert_int_equal(control_receive(s[1], /* block= */ true, &got, NULL), 0);
    assert_int_equal(got.kind, CONTROL_LISTENERS);
    assert_int_equal(got.group_epoch, 3);
    assert_int_equal(got.coord_epoch, 4);
    assert_int_equal(got.a, 5);
    assert_true(got.b == UINT64_MAX);
    assert_string_equal(got.text, "tcp\nunix");
    assert_int_equal(got.n_fds, 2);
    for (int i = 0; i < 2; i++)
        assert_true(fcntl(got.fds[i], F_GETFD) & FD_CLOEXEC);
    char c = 'x';
    assert_int_equal(write(got.fds[1], &c, 1), 1);
    assert_int_equal(read(got.fds[0], &c, 1), 1);
    control_close_fds(&got);
    assert_int_equal(got.n_fds, 0);
    control_close_fds(&got);
    assert_int_equal(control_receive(s[1], /* block= */ false, &got, NULL), -EAGAIN);
    close(s[0]);
    assert_int_equal(control_receive(s[1], /* block= */ true, &got, NULL), -EPIPE);
    assert_int_equal(control_send(s[1], &m, NULL), -EBADF); /* its descriptors are closed by now */
    m.n_fds = 0;
    assert_int_equal(control_send(s[1], &m, NULL), -EPIPE);
    close(s[1]);
    assert_int_equal(open_fds(), before);
}

static void test_text_limits(void **state) {
    (void)state;
    int s[2];
    struct control_message m = {.kind = CONTROL_FAULT}, got;
    assert_int_equal(control_pair(s, NULL), 0);
    memset(m.text, 'a', sizeof(m.text)); /* no terminator: cut, never read past */
    assert_int_equal(control_send(s[0], &m, NULL), 0);
    assert_int_equal(control_receive(s[1], true, &got, NULL), 0);
    assert_int_equal(strlen(got.text), CONTROL_TEXT_MAX - 1);
    m.kind = 0;
    assert_int_equal(control_send(s[0], &m, NULL), -EINVAL);
    m.kind = CONTROL_KINDS;
    assert_int_equal(control_send(s[0], &m, NULL), -EINVAL);
    m.kind = CONTROL_PING;
    m.n_fds = CONTROL_FDS_MAX + 1;
    assert_int_equal(control_send(s[0], &m, NULL), -EINVAL);
    close(s[0]);
    close(s[1]);
}

/* Sends raw bytes with n copies of the socket itself beside them. */
static void send_raw(int fd, const void *data, size_t bytes, unsigned n_fds) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(32 * sizeof(int))];
    } space = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds > 0) {
        h.msg_control = &space;
        h.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &h, 0), bytes);
}

static void test_malformed(void **state) {
    (void)state;
    int s[2];
    unsigned before = open_fds();
    struct control_message m = {.kind = CONTROL_CHANNEL, .text = "hello"}, got;
    uint8_t good[1024], bad[1024];
    assert_int_equal(control_pair(s, NULL), 0);
    assert_int_equal(control_send(s[0], &m, NULL), 0);
    ssize_t n = recv(s[1], good, sizeof(good), 0);
    assert_true(n > 40);

    for (ssize_t cut = 1; cut < n; cut++) { /* every shorter one */
        send_raw(s[0], good, (size_t)cut, 1);
        assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    }
    send_raw(s[0], good, (size_t)n, 2); /* descriptors that nobody announced */
    assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    send_raw(s[0], good, (size_t)n, CONTROL_FDS_MAX + 3); /* more than fit */
    assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    memset(bad, 0, sizeof(bad));
    memcpy(bad, good, (size_t)n);
    send_raw(s[0], bad, sizeof(bad), 1); /* too long */
    assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    for (int at = 0; at < 16; at++) { /* magic, version, kind, number of descriptors, length of the text */
        memcpy(bad, good, (size_t)n);
        bad[at] ^= 0x40;
        send_raw(s[0], bad, (size_t)n, 1);
        assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    }
    memcpy(bad, good, (size_t)n);
    bad[n - 2] = 0; /* a text with a terminator inside */
    send_raw(s[0], bad, (size_t)n, 0);
    assert_int_equal(control_receive(s[1], true, &got, NULL), -EBADMSG);
    send_raw(s[0], good, (size_t)n, 0); /* and the channel still works */
    assert_int_equal(control_receive(s[1], true, &got, NULL), 0);
    assert_string_equal(got.text, "hello");
    close(s[0]);
    close(s[1]);
    assert_int_equal(open_fds(), before);
}

static void test_block_on_nonblocking(void **state) {
    (void)state;
    int s[2];
    struct control_message m = {.kind = CONTROL_PING, .a = 9}, got;
    assert_int_equal(control_pair(s, NULL), 0);
    assert_int_equal(fcntl(s[1], F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(control_send(s[0], &m, NULL), 0);
    assert_int_equal(control_receive(s[1], true, &got, NULL), 0);
    assert_int_equal(got.a, 9);
    close(s[0]);
    assert_int_equal(control_receive(s[1], true, &got, NULL), -EPIPE);
    close(s[1]);
}

/* A process that fails at once never reads what it was sent: its last words arrive all the same. */
static void last_words_of_who_did_not_listen(void **state) {
    (void)state;
    int fds[2];
    struct error e = {0};
    struct control_message m = {.kind = CONTROL_PING}, got = {0};
    assert_int_equal(control_pair(fds, &e), 0);
    assert_int_equal(control_send(fds[0], &m, &e), 0);
    m.kind = CONTROL_FAULT;
    snprintf(m.text, sizeof(m.text), "the disk is gone");
    assert_int_equal(control_send(fds[1], &m, &e), 0);
    close(fds[1]);
    assert_int_equal(control_receive(fds[0], /* block= */ false, &got, &e), 0);
    assert_int_equal(got.kind, CONTROL_FAULT);
    assert_string_equal(got.text, "the disk is gone");
    assert_int_equal(control_receive(fds[0], /* block= */ false, &got, &e), -EPIPE);
    close(fds[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(last_words_of_who_did_not_listen),
            cmocka_unit_test(test_round_trip),
            cmocka_unit_test(test_text_limits),
            cmocka_unit_test(test_malformed),
            cmocka_unit_test(test_block_on_nonblocking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
