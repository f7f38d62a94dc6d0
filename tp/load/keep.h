/* keep.h - weights that survive their rank: what a rank says to the keeper of its GPU (tp/worker/keeper.h).
 *
 * Called by tp/worker/rank.c. The keeper holds the descriptor of the memory in which a rank has its weights, and the
 * rank's manifest: a line that says everything their bytes and places depend on. A rank that starts takes them under
 * the same manifest, so that it has to load nothing. Taking removes them from the keeper, and they are put back once
 * the rank is ready: weights with which a rank did not even get there are gone with it.
 *
 * A keeper that is dead, or does not answer in time, keeps nothing. */
#pragma once

#include "base/error.h"
#include "proto/step/control.h"

#include <pthread.h>
#include <stdint.h>

#define KEEP_MANIFEST_MAX CONTROL_TEXT_MAX
#define KEEP_ANSWER_MS    2000

/* The socket to the keeper, for all ranks of a process. */
struct keep_link {
    int fd;
    pthread_mutex_t lock;
};

struct keep {
    int fd;       /* of the memory; -1 = none */
    uint64_t sum; /* of what lies in it */
    char manifest[KEEP_MANIFEST_MAX];
};

/* ret->fd = the memory that is kept for k->manifest, then the caller's, or -1. What was kept for another one is
 * released before this returns. A negative errno: the keeper cannot be asked. */
int keep_take(struct keep_link *l, uint32_t rank, struct keep *k, struct error *e);
/* k->fd stays the caller's. */
int keep_put(struct keep_link *l, uint32_t rank, const struct keep *k, struct error *e);
