/* private_service.h - a service for one command: `shardd generate --model DIR` and `shardd chat --model DIR`.
 *
 * Runs `shardd serve` of this same program on a Unix socket in a folder of its own, waits until it serves (it
 * tells so as it would tell systemd) and stops it. Must be started before the first use of gRPC: it forks.
 * The service dies with the command, however that ends. */
#pragma once

#include "launcher/options/options.h"

#include <sys/types.h>

struct private_service {
    char folder[64]; /* "" = none is running */
    char address[96];
    pid_t pid;
    int pidfd, notify;
};

/* Returns 0, or an exit code of verbs.h; what was wrong is on stderr already. */
int private_service_start(struct private_service *p, const struct options *o);
void private_service_stop(struct private_service *p); /* also of one that was never started */
