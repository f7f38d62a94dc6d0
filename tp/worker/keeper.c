/* keeper.c - see keeper.h. One thread, one loop over two sockets. */
#include "tp/worker/keeper.h"

#include "base/limits.h"
#include "base/log.h"
#include "proto/step/control.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct kept {
    int fd; /* -1 = nothing */
    uint64_t sum;
    char manifest[CONTROL_TEXT_MAX];
};
struct keeper {
    struct kept ranks[RANKS_MAX];
    int control; /* to the launcher */
    int link;    /* to the worker; -1 = none */
};

static void release(struct kept *k) {
    if (k->fd >= 0)
        close(k->fd);
    k->fd = -1;
}
static void unlink_worker(struct keeper *k) {
    if (k->link >= 0)
        close(k->link);
    k->link = -1;
}

/* The memory is the worker's then: if it dies with it, it is gone. */
static void give(struct keeper *k, struct kept *kept, const struct control_message *asked) {
    struct control_message m = {.kind = CONTROL_KEPT, .a = asked->a};
    struct error e;
    if (kept->fd >= 0 && strcmp(kept->manifest, asked->text) == 0) {
        m.b = kept->sum;
        m.n_fds = 1;
        m.fds[0] = kept->fd;
    }
    if (m.n_fds == 0) /* before the answer: the worker looks at what memory is free */
        release(kept);
    if (control_send(k->link, &m, &e) < 0)
        log_warning("cannot answer the worker: %s", e.text);
    release(kept);
}
static void take(struct kept *kept, struct control_message *m) {
    release(kept);
    kept->fd = m->fds[0];
    kept->sum = m->b;
    snprintf(kept->manifest, sizeof(kept->manifest), "%s", m->text);
    m->n_fds = 0;
    log_debug("keeping the weights of rank %llu: %s", (unsigned long long)m->a, kept->manifest);
}
static void on_worker(struct keeper *k, struct control_message *m) {
    struct kept *kept = m->a < RANKS_MAX ? &k->ranks[m->a] : NULL;
    if (kept && m->kind == CONTROL_TAKE)
        give(k, kept, m);
    else if (kept && m->kind == CONTROL_PUT && m->n_fds == 1)
        take(kept, m);
    else
        log_warning("the worker sent a message of kind %u for rank %llu: ignoring it", m->kind,
                (unsigned long long)m->a);
}
static void on_launcher(struct keeper *k, struct control_message *m) {
    if (m->kind != CONTROL_LINK || m->n_fds != 1) {
        log_warning("the launcher sent a message of kind %u: ignoring it", m->kind);
        return;
    }
    unlink_worker(k);
    k->link = m->fds[0];
    m->n_fds = 0;
    const struct control_message answer = {.kind = CONTROL_PONG, .a = m->a};
    (void)control_send(k->control, &answer, NULL); /* one that is gone is heard of */
}

/* All that waits. False: the other end is gone. */
static bool listen_to(struct keeper *k, int fd, void (*on)(struct keeper *, struct control_message *)) {
    struct control_message m;
    struct error e;
    for (;;) {
        int r = control_receive(fd, /* block= */ false, &m, &e);
        if (r == -EAGAIN)
            return true;
        if (r == -EBADMSG) {
            log_warning("ignoring a message: %s", e.text);
            continue;
        }
        if (r < 0)
            return false;
        on(k, &m);
        control_close_fds(&m);
    }
}

int keeper_run(int control_fd) {
    struct keeper k = {.control = control_fd, .link = -1};
    (void)prctl(PR_SET_NAME, "shardd-keeper"); /* for people, who see the worker's program */
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        k.ranks[i].fd = -1;
    for (;;) {
        struct pollfd fds[] = {
                {.fd = control_fd, .events = POLLIN}, {.fd = k.link, .events = POLLIN}}; /* -1 is skipped */
        if (poll(fds, 2, /* timeout= */ -1) < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            break;
        }
        /* What a worker said comes before what its launcher says of the next one. */
        if (fds[1].revents && !listen_to(&k, k.link, on_worker))
            unlink_worker(&k);
        if (fds[0].revents && !listen_to(&k, control_fd, on_launcher))
            break;
    }
    unlink_worker(&k);
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        release(&k.ranks[i]);
    return EXIT_SUCCESS;
}
