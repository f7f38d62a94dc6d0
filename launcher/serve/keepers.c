/* keepers.c - see keepers.h. */
#include "launcher/serve/keepers.h"

#include "base/log.h"

#include <stdio.h>
#include <unistd.h>

void keepers_init(struct keepers *k, const struct service *service) {
    k->service = service;
    for (uint32_t i = 0; i < RANKS_MAX; i++) {
        char name[sizeof(k->items[i].name)];
        snprintf(name, sizeof(name), "keeper of rank %u", service->worker_rank[i]);
        child_init(&k->items[i], name);
    }
}

/* Gives it one end of a socket. */
static int introduce(
        struct child *c, char *const argv[], char *const environment[], int fd, struct error *e) {
    const struct control_message m = {.kind = CONTROL_LINK, .n_fds = 1, .fds = {fd}};
    int rc = child_alive(c) ? 0 : child_spawn(c, argv, environment, (struct child_fds){.n = 0}, e);
    return rc < 0 ? rc : control_send(c->control, &m, e);
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
    if (introduce(c, k->service->keeper_argv[worker], k->service->environment, pair[1], &why) < 0) {
        log_warning("%s: %s; a restart will load its weights", c->name, why.text);
        child_end(c); /* the next worker has another try */
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
