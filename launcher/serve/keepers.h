/* keepers.h - the keepers of weights (tp/worker/keeper.h), one beside each worker of a GPU.
 *
 * Used by the supervisor's single thread. A keeper is started before its worker, and stays while workers come and go.
 * Nothing depends on it: one that is dead is started anew with the next worker, which then loads its weights. */
#pragma once

#include "launcher/serve/child.h"
#include "launcher/serve/supervisor.h"

#include <poll.h>

struct keepers {
    const struct service *service;
    struct child items[RANKS_MAX]; /* of each worker; those without keeper_argv stay empty */
    uint64_t links;                /* made so far */
};

void keepers_init(struct keepers *k, const struct service *service);
/* *ret_fd = a socket to the keeper of a worker that is about to start, the caller's; -1: it is to have none. Nobody is
 * at its other end where no keeper can be started. */
int keepers_link(struct keepers *k, uint32_t worker, int *ret_fd, struct error *e);
/* What to poll() for, to call keepers_reap() then; returns how many of fds, RANKS_MAX at most, were written. */
nfds_t keepers_watch(const struct keepers *k, struct pollfd *fds);
void keepers_reap(struct keepers *k);
/* Ends all of them, and with them what they keep. */
void keepers_end(struct keepers *k);
