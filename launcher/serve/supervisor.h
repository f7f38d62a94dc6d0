/* supervisor.h - keeps one coordinator and one group of workers alive: `shardd serve` after its checks.
 *
 * One thread, one loop over pidfds, control sockets and signals. The supervisor alone issues epochs:
 * group_epoch per start of the rank group, coord_epoch per start of the coordinator. The old process is
 * reaped before a new epoch's ring is made, so nobody of the old epoch can still write. It logs what it
 * decides. */
#pragma once

#include "base/error.h"
#include "base/limits.h"
#include "launcher/serve/listeners.h"

#include <stdint.h>

struct service {
    char **worker_argv[RANKS_MAX];   /* NULL-terminated, one per worker process; argv[0]: the path */
    uint32_t worker_rank[RANKS_MAX]; /* first rank of each worker process */
    uint32_t n_workers;
    char **keeper_argv
            [RANKS_MAX]; /* of the keeper of each worker's weights; NULL: they end with the worker */
    char **coordinator_argv;
    char **environment;          /* of all children */
    struct listeners *listeners; /* open; stay the caller's */
    uint32_t tp;
    uint64_t step_timeout_ms, grace_ms;
    /* Of a part, within restart_window_ms and without serving in between: then give up. */
    uint32_t max_restarts;
    uint64_t restart_window_ms;
    const char *title;  /* "MODEL on ADDRESS (tp 2, cpu)": said when serving */
    const char *try_it; /* a command line that asks this service */
};

/* Runs until SIGTERM or SIGINT (0) or until it has to give up: a negative errno with a sentence,
 * -EINVAL when a process said that the settings are wrong. No child is
 * left when it returns. Blocks SIGTERM, SIGINT and SIGHUP in the calling thread, the only one there may be. */
int supervisor_run(const struct service *service, struct error *e);
