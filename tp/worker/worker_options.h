/* worker_options.h - the worker's command line.
 *
 * Parsed once by worker_main.c. The names are those of `shardd serve`, which passes them on; people use
 * --generate-ids to run a model without a service. */
#pragma once

#include "base/error.h"
#include "base/limits.h"
#include "tp/worker/rank.h"

#define WORKER_PROMPT_MAX 65536u /* ids of --generate-ids */

struct worker_options {
    struct rank_options rank; /* what all ranks of this process have in common; rank.tp is the group's size */
    uint32_t ranks[RANKS_MAX], n_ranks; /* hosted here */
    uint32_t n_devices;                 /* that --devices named; rank.devices has them */
    int control_fd;                     /* the launcher's socket; -1 = none */
    int comm_fd;                        /* memfd shared by all workers of the group; -1 = none */
    int keeper_fd;                      /* socket to the keeper of its weights; -1 = none */
    bool keeper;                        /* to be one (keeper.h) */
    int log_level;
    bool help, probe;
    const char *probe_list; /* of the command line: GPUs to open then; NULL = all */

    /* --generate-ids */
    uint32_t *prompt; /* malloc'ed; NULL = serve */
    uint32_t n_prompt;
    uint32_t max_tokens, top_k;
    float temperature, top_p, min_p;
};

/* --plan SIZE: that is rank.memory_bytes, which no other flag sets. */
static inline bool worker_only_plans(const struct worker_options *o) {
    return o->rank.memory_bytes != 0;
}

extern const char worker_help[];

/* Fills *ret with defaults and argv. -EINVAL with a sentence that names the flag. worker_options_done()
 * afterwards, whatever came back. Strings point into argv. */
int worker_options_parse(int argc, char **argv, struct worker_options *ret, struct error *e);
/* The same for a program that does neither of what the worker does, serving and --generate-ids: it asks for a model. */
int worker_options_read(int argc, char **argv, struct worker_options *ret, struct error *e);
void worker_options_done(struct worker_options *o);
