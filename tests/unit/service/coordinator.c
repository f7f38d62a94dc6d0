/* coordinator.c - shardd-coordinator as a process: bad flags and folders, and the launcher's side of its
 * socket. */
#include "base/file.h"
#include "daemon/rpc/rpc.h"
#include "proto/step/control.h"
#include "tests/unit/rpc/client.h"

#include "grpc/health/v1/health.pb-c.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PROGRAM BIN_DIR "/shardd-coordinator"

static char folder[] = "/tmp/shardd-coordinator-XXXXXX";

static void put_file(const char *name, const char *data, size_t bytes) {
    char path[256];
    struct error e = {0};
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    assert_int_equal(file_replace(path, data, bytes, 0600, &e), 0);
}

static void remove_file(const char *name) {
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

static void put_good_model(void) {
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    assert_int_equal(
            file_read(TESTS_DIR "/golden/tokenizer/tokenizer.json", 64u << 20, &text, &bytes, &e), 0);
    put_file("tokenizer.json", text, bytes);
    free(text);
    put_file("config.json", "{\"model_type\": \"qwen3_5\"}", 25);
    remove_file("generation_config.json");
}

static int set_up(void **state) {
    (void)state;
    assert_non_null(mkdtemp(folder));
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    remove_file("tokenizer.json");
    remove_file("config.json");
    remove_file("generation_config.json");
    rmdir(folder);
    return 0;
}

struct child {
    pid_t pid;
    int log; /* its stderr */
    int control;
};

/* argv[0] is filled in; control: with a launcher's socket as its descriptor 3. */
static struct child start(const char **argv, bool control) {
    struct child c = {.control = -1};
    int log[2], pair[2] = {-1, -1};
    struct error e = {0};
    assert_int_equal(pipe2(log, O_CLOEXEC), 0);
    if (control)
        assert_int_equal(control_pair(pair, &e), 0);
    argv[0] = PROGRAM;
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0) {
        dup2(log[1], STDERR_FILENO);
        dup2(log[1], STDOUT_FILENO);
        if (control && pair[1] != CONTROL_FD)
            dup2(pair[1], CONTROL_FD);
        else if (control)
            fcntl(CONTROL_FD, F_SETFD, 0);
        execv(PROGRAM, (char **)(uintptr_t)argv);
        _exit(126);
    }
    close(log[1]);
    if (control)
        close(pair[1]);
    c.log = log[0];
    c.control = pair[0];
    return c;
}

/* Reads its log to the end and returns its exit code. */
static int finish(struct child *c, char *text, size_t size) {
    size_t used = 0;
    int status = 0;
    for (ssize_t r; used < size - 1 && (r = read(c->log, text + used, size - 1 - used)) > 0;)
        used += (size_t)r;
    text[used] = '\0';
    close(c->log);
    if (c->control >= 0)
        close(c->control);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void refuses(const char **argv, int code, const char *word) {
    char text[4096];
    struct child c = start(argv, false);
    int got = finish(&c, text, sizeof(text));
    if (got != code || !strstr(text, word))
        print_message("%d: %s\n", got, text);
    assert_int_equal(got, code);
    assert_non_null(strstr(text, word));
}

static void test_flags(void **state) {
    (void)state;
    refuses((const char *[]){NULL, NULL}, 2, "--model DIR is missing");
    refuses((const char *[]){NULL, "--model", folder, NULL}, 2, "nowhere to listen");
    refuses((const char *[]){NULL, "--model", NULL}, 2, "--model");
    refuses((const char *[]){NULL, "--modell", "x", NULL}, 2, "--modell");
    refuses((const char *[]){NULL, "--model", "x", "extra", NULL}, 2, "'extra'");
    refuses((const char *[]){NULL, "--max-queue", "0", NULL}, 2,
            "--max-queue: '0' is out of range; it takes 1 to 16384");
    refuses((const char *[]){NULL, "--max-queue", "12x", NULL}, 2,
            "--max-queue: '12x' is not a whole number");
    refuses((const char *[]){NULL, "--grpc-threads", "-1", NULL}, 2, "--grpc-threads: '-1'");
    refuses((const char *[]){NULL, "--seed", "99999999999999999999", NULL}, 2, "--seed");
    refuses((const char *[]){NULL, "--log-level", "loud", NULL}, 2, "--log-level loud");
    refuses((const char *[]){NULL, "--help", NULL}, 0, "--served-model-name");
    refuses((const char *[]){NULL, "--version", NULL}, 0, SHARDD_VERSION);
}

static void test_folders(void **state) {
    (void)state;
    const char *argv[] = {NULL, "--model", folder, "--listen", "127.0.0.1:0", NULL};
    refuses((const char *[]){NULL, "--model", "/nowhere", "--listen", "127.0.0.1:0", NULL}, 1,
            "/nowhere/config.json");
    put_good_model();
    put_file("config.json", "{", 1);
    refuses(argv, 1, "config.json: line 1");
    put_good_model();
    put_file("tokenizer.json", "{\"model\": 7}", 12);
    refuses(argv, 1, "tokenizer.json");
    put_file("tokenizer.json", "", 0);
    refuses(argv, 1, "tokenizer.json");
    remove_file("tokenizer.json");
    refuses(argv, 1, "tokenizer.json");
    put_good_model();
    put_file("generation_config.json", "{\"top_p\": 7}", 12);
    refuses(argv, 1, "generation_config.json: top_p must be");
    put_good_model();
    refuses((const char *[]){NULL, "--model", folder, "--listen", "127.0.0.1", NULL}, 2,
            "'127.0.0.1' is not an address");
    refuses((const char *[]){NULL, "--model", folder, "--listen", "127.0.0.1:0", "--served-model-name", "",
                    NULL},
            2, "--served-model-name");
}

static void send_control(const struct child *c, struct control_message m) {
    struct error e = {0};
    assert_int_equal(control_send(c->control, &m, &e), 0);
}

static void test_launcher(void **state) {
    (void)state;
    put_good_model();
    struct child c = start((const char *[]){NULL, "--model", folder, "--control-fd", "3", NULL}, true);
    struct error e = {0};
    struct control_message m;
    char name[64], text[4096];
    int fd;
    assert_int_equal(rpc_listen("127.0.0.1:0", &fd, name, sizeof(name), &e), 0);
    send_control(&c, (struct control_message){.kind = CONTROL_LISTENERS, .n_fds = 1, .fds = {fd}});
    close(fd);
    send_control(&c, (struct control_message){.kind = CONTROL_PING, .a = 77, .coord_epoch = 5});
    assert_int_equal(control_receive(c.control, true, &m, &e), 0);
    assert_int_equal(m.kind, CONTROL_PONG);
    assert_int_equal(m.a, 77);
    assert_int_equal(m.coord_epoch, 5);
    /* It answers on the listener it was given: not serving, as there are no workers. */
    struct client client = client_open(name, NULL);
    struct client_call *call = client_call(&client, "/grpc.health.v1.Health/Check", "", 0, 60000);
    struct client_bytes b = client_next(call);
    Grpc__Health__V1__HealthCheckResponse *r =
            grpc__health__v1__health_check_response__unpack(NULL, b.n, (uint8_t *)b.data);
    assert_int_equal(r->status, GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING);
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    free(b.data);
    assert_int_equal(client_finish(call), GRPC_STATUS_OK);
    client_free(call);
    client_close(&client);
    send_control(&c, (struct control_message){.kind = CONTROL_STOP, .a = 1000});
    assert_int_equal(finish(&c, text, sizeof(text)), 0);
    assert_non_null(strstr(text, "stopped"));
}

/* The launcher's death is the end of the service. */
static void test_launcher_dies(void **state) {
    (void)state;
    char text[4096];
    put_good_model();
    struct child c = start((const char *[]){NULL, "--model", folder, "--control-fd", "3", NULL}, true);
    close(c.control);
    c.control = -1;
    assert_int_equal(finish(&c, text, sizeof(text)), 0);
    assert_non_null(strstr(text, "the launcher is gone"));
}

static void test_fault_is_told(void **state) {
    (void)state;
    char text[4096];
    struct error e = {0};
    struct control_message m;
    put_good_model();
    put_file("tokenizer.json", "{", 1);
    struct child c = start((const char *[]){NULL, "--model", folder, "--control-fd", "3", NULL}, true);
    assert_int_equal(control_receive(c.control, true, &m, &e), 0);
    assert_int_equal(m.kind, CONTROL_FAULT);
    assert_non_null(strstr(m.text, "tokenizer.json"));
    assert_int_equal(finish(&c, text, sizeof(text)), 1);
}

static void test_sigterm(void **state) {
    (void)state;
    char text[4096];
    struct error e = {0};
    struct control_message m;
    put_good_model();
    struct child c = start((const char *[]){NULL, "--model", folder, "--control-fd", "3", NULL}, true);
    send_control(&c, (struct control_message){.kind = CONTROL_PING, .a = 1});
    assert_int_equal(control_receive(c.control, true, &m, &e), 0); /* it is up */
    kill(c.pid, SIGTERM);
    assert_int_equal(finish(&c, text, sizeof(text)), 0);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_flags),
            cmocka_unit_test(test_folders),
            cmocka_unit_test(test_launcher),
            cmocka_unit_test(test_launcher_dies),
            cmocka_unit_test(test_fault_is_told),
            cmocka_unit_test(test_sigterm),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
