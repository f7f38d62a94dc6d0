/* private_service.c - see private_service.h. */
#include "launcher/client/private_service.h"

#include "launcher/argv.h"
#include "launcher/client/interrupt.h"
#include "launcher/programs.h"
#include "launcher/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOTICE_BYTES 2048
#define STOP_MS      15000

static int fail(const char *what) {
    fprintf(stderr, "shardd: cannot start a private service: %s: %s\n", what, strerror(errno));
    return EXIT_FAILED;
}

/* A folder only we can enter, with the socket that serve reports to. */
static int make_folder(struct private_service *p) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const char *base = getenv("XDG_RUNTIME_DIR");
    if (!base || strlen(base) > 32 || access(base, W_OK) < 0)
        base = "/tmp";
    snprintf(p->folder, sizeof(p->folder), "%s/shardd-XXXXXX", base);
    if (!mkdtemp(p->folder)) {
        p->folder[0] = '\0';
        return fail("its folder");
    }
    snprintf(p->address, sizeof(p->address), "unix:%s/grpc", p->folder);
    snprintf(to.sun_path, sizeof(to.sun_path), "%s/notify", p->folder);
    p->notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (p->notify < 0 || bind(p->notify, (struct sockaddr *)&to, sizeof(to)) < 0)
        return fail("its socket");
    return 0;
}

/* Settings that were given to us are handed on as they came. */
static void serve_command(struct argv *a, const struct private_service *p, const struct options *o) {
    argv_add(a, "serve");
    argv_add_flag(a, "--uds", "%s/grpc", p->folder);
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        const struct option_value *v = &o->values[i];
        if (!(info->verbs & VERB_SERVE) || !options_given(o, info->id) || info->id == OPT_HELP)
            continue;
        for (size_t k = 0; k < (v->n_texts ? v->n_texts : 1); k++)
            argv_add(a, "--%s=%s", info->name, v->n_texts ? v->texts[k] : v->text);
    }
    if (!options_given(o, OPT_LOG_LEVEL))
        argv_add(a, "--log-level=error");
    if (!options_given(o, OPT_SHUTDOWN_GRACE))
        argv_add(a, "--shutdown-grace=0s");
}

static void environment(struct argv *a, const struct private_service *p) {
    static const char *const drop[] = {"NOTIFY_SOCKET=", "WATCHDOG_PID=", "WATCHDOG_USEC=", "LISTEN_PID=",
            "LISTEN_FDS=", "LISTEN_FDNAMES=", "SHARDD_HOST=", "SHARDD_PORT=", "SHARDD_UDS="};
    argv_add(a, "NOTIFY_SOCKET=%s/notify", p->folder);
    for (char **at = environ; *at; at++) {
        bool dropped = false;
        for (size_t i = 0; i < sizeof(drop) / sizeof(drop[0]); i++)
            dropped |= strncmp(*at, drop[i], strlen(drop[i])) == 0;
        if (!dropped)
            argv_add(a, "%s", *at);
    }
}

/* In the child: stdout is ours to use, so it goes to /dev/null; a process group of its own keeps Ctrl-C from
 * it. */
static void become(const char *program, char *const argv[], char *const env[], pid_t parent) {
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent || null_fd < 0)
        return;
    (void)setpgid(0, 0);
    if (dup2(null_fd, STDIN_FILENO) >= 0 && dup2(null_fd, STDOUT_FILENO) >= 0)
        execve(program, argv, env);
}

static int spawn(struct private_service *p, const struct options *o) {
    struct argv words = {0}, env = {0};
    struct error e = {0};
    char program[PATH_MAX];
    int rc = 0;
    if (program_self(program, &e) < 0) {
        fprintf(stderr, "shardd: %s\n", e.text);
        return EXIT_FAILED;
    }
    argv_add(&words, "%s", program);
    serve_command(&words, p, o);
    environment(&env, p);
    pid_t parent = getpid();
    p->pid = words.failed || env.failed ? -1 : fork();
    if (p->pid == 0) {
        become(program, words.words, env.words, parent);
        _Exit(127);
    }
    if (p->pid < 0 || (p->pidfd = pidfd_open(p->pid, 0)) < 0)
        rc = fail(program);
    argv_done(&words);
    argv_done(&env);
    return rc;
}

/* The lines of one sd_notify message: READY=1 ends the wait, STATUS= is shown where somebody watches. */
static bool read_notice(struct private_service *p, bool watched) {
    char text[NOTICE_BYTES];
    ssize_t n = recv(p->notify, text, sizeof(text) - 1, MSG_DONTWAIT);
    if (n <= 0)
        return false;
    text[n] = '\0';
    bool ready = false;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n"))) {
        ready |= strcmp(line, "READY=1") == 0;
        if (strncmp(line, "STATUS=", 7) == 0 && watched && !ready)
            fprintf(stderr, "\r\033[K%s", line + 7);
    }
    if (ready && watched)
        fprintf(stderr, "\r\033[K");
    return ready;
}

/* Of the service that ended instead of becoming ready: a mistake in the settings is ours too. */
static int exit_code_of(const struct private_service *p) {
    siginfo_t info = {0};
    bool mistake = waitid(P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOWAIT) == 0 &&
                   info.si_code == CLD_EXITED && info.si_status == EXIT_USAGE;
    return mistake ? EXIT_USAGE : EXIT_FAILED;
}

static int wait_ready(struct private_service *p) {
    bool watched = isatty(STDERR_FILENO);
    for (;;) {
        struct pollfd fds[] = {{.fd = p->notify, .events = POLLIN}, {.fd = p->pidfd, .events = POLLIN},
                {.fd = interrupt_fd(), .events = POLLIN}};
        (void)poll(fds, 3, -1);
        if (interrupt_seen())
            return EXIT_INTERRUPTED;
        if (read_notice(p, watched))
            return 0;
        if (fds[1].revents) /* it said why on stderr */
            return exit_code_of(p);
    }
}

int private_service_start(struct private_service *p, const struct options *o) {
    *p = (struct private_service){.pidfd = -1, .notify = -1};
    int code = make_folder(p);
    if (code == 0)
        code = spawn(p, o);
    if (code == 0)
        code = wait_ready(p);
    if (code != 0)
        private_service_stop(p);
    return code;
}

static void reap(struct private_service *p) {
    struct pollfd end = {.fd = p->pidfd, .events = POLLIN};
    kill(p->pid, SIGTERM);
    if (p->pidfd >= 0 && poll(&end, 1, STOP_MS) == 0)
        kill(p->pid, SIGKILL);
    while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

void private_service_stop(struct private_service *p) {
    if (!p->folder[0])
        return;
    if (p->pid > 0)
        reap(p);
    if (p->pidfd >= 0)
        close(p->pidfd);
    if (p->notify >= 0)
        close(p->notify);
    char path[96];
    snprintf(path, sizeof(path), "%s/notify", p->folder);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/grpc", p->folder); /* left only by a service that was killed */
    (void)unlink(path);
    (void)rmdir(p->folder);
    p->folder[0] = '\0';
}
