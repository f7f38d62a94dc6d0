/* listener.c - the accept loop: descriptors that run out and come back, too many connections, addresses. */
#include "daemon/rpc/rpc.h"

#include "base/log.h"
#include "tests/unit/rpc/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define FDS_MAX 4096

static void echo_on_call(struct rpc_call *c) {
    size_t n = 0;
    const void *data = rpc_call_request(c, &n);
    void *out = rpc_call_message(c, n);
    if (n > 0)
        memcpy(out, data, n);
    rpc_call_finish(c, NULL);
}

static void peer_on_call(struct rpc_call *c) {
    memcpy(rpc_call_message(c, 5), rpc_call_peer_is_local(c) ? "local" : "other", 5);
    rpc_call_finish(c, NULL);
}

static const struct rpc_method methods[] = {
        {.path = "/t/Echo", .on_call = echo_on_call},
        {.path = "/t/Peer", .on_call = peer_on_call},
};

static struct rpc_server *serve(const char *address, uint32_t connections_max, char *ret_name, size_t bytes) {
    struct rpc_server *s = NULL;
    struct error e = {0};
    int fd;
    struct rpc_server_options o = {.n_workers = 1, .connections_max = connections_max};
    assert_int_equal(rpc_server_create(&o, methods, 2, &s, &e), 0);
    assert_int_equal(rpc_server_start(s, &e), 0);
    assert_int_equal(rpc_listen(address, &fd, ret_name, bytes, &e), 0);
    assert_int_equal(rpc_server_add_listener(s, fd, &e), 0);
    return s;
}

static void assert_echoes(const char *address) {
    struct client client = client_open(address, NULL);
    struct client_call *c = client_call(&client, "/t/Echo", "hi", 2, 30000);
    struct client_bytes b = client_next(c);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    assert_string_equal(b.data, "hi");
    free(b.data);
    client_free(c);
    client_close(&client);
}

static struct sockaddr_in inet_address(const char *name) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[32];
    unsigned port;
    assert_int_equal(sscanf(name, "%31[0-9.]:%u", host, &port), 2);
    inet_pton(AF_INET, host, &a.sin_addr);
    a.sin_port = htons((uint16_t)port);
    return a;
}

/* A socket whose server side speaks HTTP/2: its SETTINGS frame comes at once when somebody accepted. */
static void assert_accepted(int fd) {
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    unsigned char head[9];
    assert_int_equal(send(fd, preface, sizeof(preface) - 1, MSG_NOSIGNAL), sizeof(preface) - 1);
    assert_int_equal(recv(fd, head, sizeof(head), MSG_WAITALL), sizeof(head));
    assert_int_equal(head[3], 4);
}

/* Reads the log until a line holds this text. */
static void wait_for_line(int fd, const char *text) {
    char all[8192] = {0};
    size_t n = 0;
    while (!strstr(all, text)) {
        assert_true(n < sizeof(all) - 1);
        ssize_t r = read(fd, all + n, sizeof(all) - 1 - n);
        assert_true(r > 0);
        n += (size_t)r;
    }
}

static void test_out_of_descriptors_and_back(void **state) {
    (void)state;
    char name[64];
    struct rpc_server *s = serve("127.0.0.1:0", 0, name, sizeof(name));
    assert_echoes(name);
    struct sockaddr_in a = inet_address(name);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), saved = dup(STDERR_FILENO), log[2],
        fds[FDS_MAX], n = 0;
    assert_true(client >= 0 && saved >= 0 && pipe2(log, O_CLOEXEC) == 0);
    dup2(log[1], STDERR_FILENO);
    while (n < FDS_MAX && (fds[n] = dup(log[0])) >= 0)
        n++;
    assert_int_equal(errno, EMFILE);
    assert_int_equal(connect(client, (struct sockaddr *)&a, sizeof(a)), 0);
    wait_for_line(log[0], "cannot accept");
    for (int i = 0; i < n; i++)
        close(fds[i]);
    wait_for_line(log[0], "accepting connections again");
    dup2(saved, STDERR_FILENO);
    assert_accepted(client); /* the one that came meanwhile */
    assert_echoes(name);     /* and those after it */
    close(client);
    close(saved);
    close(log[0]);
    close(log[1]);
    rpc_server_free(s);
}

static void test_too_many_connections(void **state) {
    (void)state;
    char name[64], byte;
    struct rpc_server *s = serve("127.0.0.1:0", 2, name, sizeof(name));
    struct sockaddr_in a = inet_address(name);
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&a, sizeof(a)), 0);
        if (i < 2)
            assert_accepted(fds[i]);
    }
    assert_true(recv(fds[2], &byte, 1, 0) <= 0); /* closed */
    assert_int_equal(rpc_server_connections(s), 2);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    while (rpc_server_connections(s) > 0)
        usleep(1000);
    assert_echoes(name); /* their places are free again */
    rpc_server_free(s);
}

static void test_unix_socket(void **state) {
    (void)state;
    char folder[] = "/tmp/shardd-unit-XXXXXX", path[64], address[80], name[80];
    struct error e = {0};
    struct stat st;
    int fd;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/s", folder);
    snprintf(address, sizeof(address), "unix:%s", path);
    assert_int_equal(rpc_listen(address, &fd, name, sizeof(name), &e), 0);
    assert_string_equal(name, address);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    int again;
    assert_int_equal(rpc_listen(address, &again, name, sizeof(name), &e), -EADDRINUSE);
    assert_non_null(strstr(e.text, "in use"));
    close(fd); /* the file stays, as after a kill */
    struct rpc_server *s = serve(address, 0, name, sizeof(name));
    assert_echoes(address);
    struct client client = client_open(address, NULL);
    struct client_call *c = client_call(&client, "/t/Peer", "x", 1, 0);
    struct client_bytes b = client_next(c);
    assert_string_equal(b.data, "local");
    free(b.data);
    client_finish(c);
    client_free(c);
    client_close(&client);
    rpc_server_free(s);
    unlink(path);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    assert_int_equal(rpc_listen(address, &fd, name, sizeof(name), &e), -EEXIST);
    unlink(path);
    rmdir(folder);
}

/* An address of this machine that is not loopback; false when it has none. */
static bool outside_address(char *ret, size_t bytes) {
    struct ifaddrs *list = NULL;
    bool found = false;
    assert_int_equal(getifaddrs(&list), 0);
    for (const struct ifaddrs *i = list; i && !found; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || (i->ifa_flags & IFF_LOOPBACK) ||
                !(i->ifa_flags & IFF_UP))
            continue;
        struct sockaddr_in a;
        memcpy(&a, i->ifa_addr, sizeof(a));
        found = inet_ntop(AF_INET, &a.sin_addr, ret, (socklen_t)bytes) != NULL;
    }
    freeifaddrs(list);
    return found;
}

static void assert_peer(const char *address, const char *what) {
    struct client client = client_open(address, NULL);
    struct client_call *c = client_call(&client, "/t/Peer", "x", 1, 30000);
    struct client_bytes b = client_next(c);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    assert_string_equal(b.data, what);
    free(b.data);
    client_free(c);
    client_close(&client);
}

/* Trust must not be lent by a descriptor's number that is used again: local and other peers take turns. */
static void test_who_is_local(void **state) {
    (void)state;
    char outside[INET_ADDRSTRLEN], name[64], local[80], other[80];
    unsigned port;
    if (!outside_address(outside, sizeof(outside)))
        skip();
    struct rpc_server *s = serve("0.0.0.0:0", 0, name, sizeof(name));
    assert_int_equal(sscanf(name, "0.0.0.0:%u", &port), 1);
    snprintf(local, sizeof(local), "127.0.0.1:%u", port);
    snprintf(other, sizeof(other), "%s:%u", outside, port);
    for (int i = 0; i < 8; i++) {
        assert_peer(local, "local");
        assert_peer(other, "other");
    }
    rpc_server_free(s);
}

static void test_addresses(void **state) {
    (void)state;
    static const char *const wrong[] = {
            "", "127.0.0.1", "127.0.0.1:", ":1", "[]:1", "127.0.0.1:99999", "127.0.0.1:http!", "unix:"};
    struct error e = {0};
    char name[64], other[64];
    int fd, second;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(rpc_listen(wrong[i], &fd, name, sizeof(name), &e), -EINVAL);
    char path[300];
    memset(path, 'x', sizeof(path));
    memcpy(path, "unix:", 5);
    path[299] = '\0';
    assert_int_equal(rpc_listen(path, &fd, name, sizeof(name), &e), -EINVAL);
    assert_int_equal(rpc_listen("127.0.0.1:0", &fd, name, sizeof(name), &e), 0);
    assert_int_equal(rpc_listen(name, &second, other, sizeof(other), &e), -EADDRINUSE);
    assert_non_null(strstr(e.text, name));
    close(fd);
}

static void test_what_is_no_listener(void **state) {
    (void)state;
    char name[64];
    struct error e = {0};
    struct rpc_server *s = serve("127.0.0.1:0", 0, name, sizeof(name));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(rpc_server_add_listener(s, fd, &e), -ENOTSOCK);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed */
    rpc_server_free(s);
}

int main(void) {
    log_open("unit-rpc-listener", LOG_LEVEL_NOTICE);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit = {.rlim_cur = 512, .rlim_max = 512};
    setrlimit(RLIMIT_NOFILE, &limit);
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_out_of_descriptors_and_back),
            cmocka_unit_test(test_too_many_connections),
            cmocka_unit_test(test_unix_socket),
            cmocka_unit_test(test_who_is_local),
            cmocka_unit_test(test_addresses),
            cmocka_unit_test(test_what_is_no_listener),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
