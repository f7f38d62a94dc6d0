/* interrupt.c - see interrupt.h. The state is the process's, as signal handlers are. */
#include "launcher/client/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

static volatile sig_atomic_t seen;
static int event_fd = -1;

static void on_signal(int number) {
    int saved = errno;
    uint64_t one = 1;
    (void)number;
    seen = 1;
    ssize_t written = write(event_fd, &one, sizeof(one));
    (void)written; /* full means readable */
    errno = saved;
}

int interrupt_catch(void) {
    if (event_fd < 0)
        event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (event_fd < 0 || sigaction(SIGINT, &action, NULL) < 0 || sigaction(SIGTERM, &action, NULL) < 0)
        return -errno;
    return 0;
}

bool interrupt_seen(void) {
    return seen != 0;
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
