/* interrupt.c - see interrupt.h. The state is the process's, as signal handlers are. */
#include "launcher/client/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

static volatile sig_atomic_t seen, ending;
static int event_fd = -1;

static void on_signal(int number) {
    int saved = errno;
    uint64_t one = 1;
    seen = 1;
    if (number != SIGINT)
        ending = 1;
    ssize_t written = write(event_fd, &one, sizeof(one));
    (void)written; /* full means readable */
    errno = saved;
}

/* nohup's choice, and a shell's for background jobs: it stays. */
static bool is_ignored(int number) {
    struct sigaction old;
    return number != SIGINT && sigaction(number, NULL, &old) == 0 && old.sa_handler == SIG_IGN;
}

int interrupt_catch(void) {
    /* All that ends a program which does nothing about it: a private service and its folder must go first. */
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    if (event_fd < 0)
        event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (event_fd < 0)
        return -errno;
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (!is_ignored(ends[i]) && sigaction(ends[i], &action, NULL) < 0)
            return -errno;
    return 0;
}

bool interrupt_seen(void) {
    return seen || ending;
}

bool interrupt_ends(void) {
    return ending != 0;
}

void interrupt_reset(void) {
    uint64_t count;
    ssize_t got = read(event_fd, &count, sizeof(count));
    (void)got; /* nothing to take is fine */
    seen = 0;
}

int interrupt_fd(void) {
    return event_fd;
}
