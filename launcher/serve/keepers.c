/* keepers.c - see keepers.h. */
#include "launcher/serve/keepers.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define ANSWER_MS 1000 /* of a process that does nothing else */

void keepers_init(struct keepers *k, const struct service *service) {
    k->service = service;
    for (uint32_t i = 0; i < RANKS_MAX; i++) {
        char name[sizeof(k->items[i].name)];
        snprintf(name, sizeof(name), "keeper of rank %u", service->worker_rank[i]);
        child_init(&k->items[i], name);
    }
}

/* Until it has answered to that number. One that is stopped holds memory that the worker will want. */
static int wait_for_answer(struct child *c, uint64_t number, struct error *e) {
    const uint64_t end = clock_ns() + ANSWER_MS * CLOCK_MS;
    for (;;) {
        struct control_message m;
        struct pollfd fd = {.fd = c->control, .events = POLLIN};
        const uint64_t now = clock_ns();
        if (poll(&fd, 1, now < end ? (int)((end - now) / CLOCK_MS) + 1 : 0) == 0)
            return error_set(e, -ETIMEDOUT, "it does not answer in %d ms", ANSWER_MS);
        int rc = control_receive(c->control, /* block= */ false, &m, e);
        if (rc < 0 && rc != -EAGAIN && rc != -EBADMSG)
            return rc;
        if (rc < 0)
            continue;
        control_close_fds(&m);
        if (m.kind == CONTROL_PONG && m.a == number)
            return 0;
    }
}
/* Gives it one end of a socket. A keeper that is started here has all the time it takes. */
static int introduce(struct keepers *k, uint32_t worker, int fd, struct error *e) {
    struct child *c = &k->items[worker];
    const struct control_message m = {.kind = CONTROL_LINK, .n_fds = 1, .a = ++k->links, .fds = {fd}};
    const bool known = child_alive(c);
    int rc = 0;
    if (!known)
        rc = child_spawn(
                c, k->service->keeper_argv[worker], k->service->environment, (struct child_fds){.n = 0}, e);
    if (rc == 0)
        rc = control_send(c->control, &m, e);
    return rc == 0 && known ? wait_for_answer(c, m.a, e) : rc;
}
int keepers_link(struct keepers *k, uint32_t worker, int *ret_fd, struct error *e) {
    struct child *c = &k->items[worker];
    struct error why;
    int pair[2];
    *ret_fd = -1;
    if (!k->service->keeper_argv[worker])
        return 0;
    int rc = control_pair(pair, e);
    if (rc < 0)
        return rc;
    keepers_reap(k);
    for (int tries = 0; tries < 2 && introduce(k, worker, pair[1], &why) < 0; tries++) {
        log_warning("%s: %s; it is replaced, and the weights are loaded", c->name, why.text);
        child_end(c);
    }
    close(pair[1]);
    *ret_fd = pair[0];
    return 0;
}

nfds_t keepers_watch(const struct keepers *k, struct pollfd *fds) {
    nfds_t n = 0;
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        if (child_alive(&k->items[i]))
            fds[n++] = (struct pollfd){.fd = k->items[i].pidfd, .events = POLLIN};
    return n;
}
void keepers_reap(struct keepers *k) {
    char how[128];
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        if (child_reap(&k->items[i], how, sizeof(how)))
            log_warning("%s %s; a restart will load its weights", k->items[i].name, how);
}
void keepers_end(struct keepers *k) {
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        child_end(&k->items[i]);
}
