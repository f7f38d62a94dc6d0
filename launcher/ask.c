/* ask.c - see ask.h. */
#include "launcher/ask.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

struct answer {
    char *text; /* ASK_BYTES_MAX + 1 bytes */
    size_t bytes;
    bool late, too_long;
};

static const char *name_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* stdout is `out`; what we were given on stdin is not for it, and what it logs not for whoever reads our answer. */
static int start(char *const argv[], int out, pid_t *ret, struct error *e) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    int r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (r == 0)
        r = posix_spawn(ret, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return r ? error_set(e, -r, "%s cannot be run: %s", argv[0], strerror(r)) : 0;
}

/* Waits for fd until end_ns; false when that has passed. */
static bool wait_until(int fd, uint64_t end_ns) {
    for (uint64_t now = clock_ns(); now < end_ns; now = clock_ns()) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)((end_ns - now) / CLOCK_MS) + 1) > 0)
            return true;
    }
    return false;
}

/* Until the end of its output, or too much of it, or too late. */
static int listen_to(int fd, uint64_t end_ns, struct answer *a, struct error *e) {
    for (;;) {
        a->late = !wait_until(fd, end_ns);
        a->too_long = a->bytes > ASK_BYTES_MAX;
        if (a->late || a->too_long)
            return 0;
        ssize_t n = read(fd, a->text + a->bytes, ASK_BYTES_MAX + 1 - a->bytes);
        if (n < 0 && errno != EINTR)
            return error_set(e, -errno, "an answer cannot be read: %s", strerror(errno));
        if (n == 0)
            return 0;
        a->bytes += n > 0 ? (size_t)n : 0;
    }
}

/* One that has said all and does not end is as late as one that says nothing. */
static int reap(pid_t child, bool at_once, uint64_t end_ns, struct answer *a) {
    int status = 0, ended = pidfd_open(child, 0);
    a->late |= !at_once && (ended < 0 || !wait_until(ended, end_ns));
    if (at_once || a->late)
        kill(child, SIGKILL);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (ended >= 0)
        close(ended);
    return status;
}

static void how_it_ended(int status, char *text, size_t size) {
    if (WIFSIGNALED(status))
        snprintf(text, size, "it was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(text, size, "it ended with %d", WEXITSTATUS(status));
}

static int understand(const char *program, const struct answer *a, int status, uint64_t timeout_ms,
        json_t **ret, struct error *e) {
    char ended[128];
    if (a->late)
        return error_set(e, -ETIMEDOUT, "%s has not answered within %llu seconds", program,
                (unsigned long long)(timeout_ms / 1000));
    if (a->too_long)
        return error_set(e, -EPROTO, "%s answers with more than %u bytes", program, ASK_BYTES_MAX);
    json_t *o = json_loadb(a->text, a->bytes, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(o)) {
        *ret = o;
        return 0;
    }
    json_decref(o);
    how_it_ended(status, ended, sizeof(ended));
    return error_set(e, -EPROTO, "%s gives no answer that is understood; %s", program, ended);
}

int ask_program(char *const argv[], uint64_t timeout_ms, json_t **ret, struct error *e) {
    struct answer a = {.text = malloc(ASK_BYTES_MAX + 1)};
    int pipes[2];
    pid_t child;
    if (!a.text)
        return error_set(e, -ENOMEM, "no memory for an answer of %s", argv[0]);
    int r = pipe2(pipes, O_CLOEXEC);
    if (r < 0) {
        r = error_set(e, -errno, "no pipe: %s", strerror(errno));
        free(a.text);
        return r;
    }
    r = start(argv, pipes[1], &child, e);
    close(pipes[1]);
    if (r == 0) {
        const uint64_t end_ns = clock_ns() + timeout_ms * CLOCK_MS;
        r = listen_to(pipes[0], end_ns, &a, e);
        const int status = reap(child, r < 0 || a.late || a.too_long, end_ns, &a);
        if (r == 0)
            r = understand(name_of(argv[0]), &a, status, timeout_ms, ret, e);
    }
    close(pipes[0]);
    free(a.text);
    return r;
}
