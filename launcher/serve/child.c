/* child.c - see child.h. */
#include "launcher/serve/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ABOVE_STANDARD_FDS 16 /* fds are parked here before they take their places */

void child_init(struct child *c, const char *name) {
    *c = (struct child){.pidfd = -1, .control = -1};
    snprintf(c->name, sizeof(c->name), "%s", name);
}

/* Between fork and exec, as all of become(). -1: cannot be. */
static int park(int fd) {
    return fcntl(fd, F_DUPFD_CLOEXEC, ABOVE_STANDARD_FDS);
}

/* Between fork and exec: async-signal-safe calls only. Returns when something failed, with errno. */
static void become(char *const argv[], char *const environment[], struct child_fds more, int control,
        int report, pid_t parent) {
    sigset_t none;
    sigemptyset(&none);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return;
    if (getppid() != parent) /* it died before the line above took effect */
        _Exit(1);
    (void)setpgid(0, 0);
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    control = park(control);
    report = park(report);
    if (null_fd < 0 || control < 0 || report < 0)
        return;
    for (uint32_t i = 0; i < more.n; i++)
        if ((more.fds[i] = park(more.fds[i])) < 0)
            return;
    if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0 ||
            dup2(control, CONTROL_FD) < 0)
        return;
    for (uint32_t i = 0; i < more.n; i++)
        if (dup2(more.fds[i], CHILD_FIRST_FD + (int)i) < 0)
            return;
    if (close_range(CHILD_FIRST_FD + more.n, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        return;
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    if (sigprocmask(SIG_SETMASK, &none, NULL) == 0)
        execve(argv[0], argv, environment);
    int failed = errno;
    ssize_t written = write(report, &failed, sizeof(failed));
    (void)written;
    _Exit(127);
}

/* Waits until the child has called exec (0) or has failed to (its errno). */
static int wait_for_exec(int report) {
    int failed = 0;
    ssize_t n;
    do {
        n = read(report, &failed, sizeof(failed));
    } while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(failed) ? failed : 0;
}

int child_spawn(struct child *c, char *const argv[], char *const environment[], struct child_fds fds,
        struct error *e) {
    int control[2] = {-1, -1}, report[2] = {-1, -1}, rc = 0;
    pid_t parent = getpid(), pid = -1;
    char name[sizeof(c->name)];
    memcpy(name, c->name, sizeof(name));
    child_init(c, name);
    if (control_pair(control, NULL) < 0 || pipe2(report, O_CLOEXEC) < 0 ||
            fcntl(control[0], F_SETFL, O_NONBLOCK) < 0 || (pid = fork()) < 0) {
        rc = error_set(e, -errno, "cannot start the %s: %s", c->name, strerror(errno));
        goto done;
    }
    if (pid == 0) {
        become(argv, environment, fds, control[1], report[1], parent);
        _Exit(127);
    }
    close(report[1]);
    report[1] = -1;
    int failed = wait_for_exec(report[0]);
    c->pid = pid;
    c->pidfd = pidfd_open(pid, 0);
    if (c->pidfd < 0) {
        rc = error_set(e, -errno, "cannot watch the %s: %s", c->name, strerror(errno));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        child_init(c, name);
        goto done;
    }
    c->control = control[0];
    control[0] = -1;
    if (failed) {
        char how[128];
        siginfo_t info;
        waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED | WNOWAIT);
        (void)child_reap(c, how, sizeof(how));
        rc = error_set(e, -failed, "cannot run %s: %s", argv[0], strerror(failed));
    }
done:
    for (int i = 0; i < 2; i++) {
        if (control[i] >= 0)
            close(control[i]);
        if (report[i] >= 0)
            close(report[i]);
    }
    return rc;
}

bool child_send(struct child *c, const struct control_message *m) {
    return c->control >= 0 && control_send(c->control, m, NULL) == 0;
}

void child_kill(struct child *c) {
    if (c->pidfd < 0)
        return;
    c->killed = true;
    (void)pidfd_send_signal(c->pidfd, SIGKILL, NULL, 0);
}

void child_end(struct child *c) {
    char how[128];
    child_kill(c);
    while (child_alive(c) && !child_reap(c, how, sizeof(how))) {
        struct pollfd end = {.fd = c->pidfd, .events = POLLIN};
        (void)poll(&end, 1, /* timeout= */ -1);
    }
}

static void describe_end(const siginfo_t *info, char *text, size_t size) {
    if (info->si_code == CLD_EXITED)
        snprintf(text, size, "ended with exit code %d", info->si_status);
    else if (info->si_status == SIGKILL)
        snprintf(text, size, "was killed by SIGKILL (if nobody did that, the kernel ran out of memory)");
    else
        snprintf(text, size, "was killed by SIG%s%s",
                sigabbrev_np(info->si_status) ? sigabbrev_np(info->si_status) : "?",
                info->si_code == CLD_DUMPED ? " (core dumped)" : "");
}

bool child_ended(const struct child *c) {
    siginfo_t info = {0};
    return c->pidfd >= 0 && waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
}

bool child_reap(struct child *c, char *text, size_t size) {
    siginfo_t info = {0};
    if (c->pidfd < 0 || waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
        return false;
    describe_end(&info, text, size);
    c->end_signal = info.si_code == CLD_EXITED || c->killed ? 0 : (uint32_t)info.si_status;
    c->exit_code = info.si_code == CLD_EXITED ? info.si_status : -1;
    close(c->pidfd);
    if (c->control >= 0)
        close(c->control);
    c->pid = 0;
    c->pidfd = c->control = -1;
    return true;
}
