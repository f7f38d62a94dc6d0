/* gpu.h - whether GPUs can serve here, and if not, why: a sentence, so that nobody is served by a CPU without knowing.
 *
 * Called by serve.c and bench.c. Asks shardd-worker-cuda itself (ask.h): its driver, its build and its cards are what
 * counts. */
#pragma once

#include "launcher/devices.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

struct gpu {
    char worker[PATH_MAX]; /* shardd-worker-cuda */
    json_t *probe;         /* what it found; owned */
    struct devices ranks;  /* the GPU of each */
    uint64_t memory_free;  /* of the rank that has the least */
};

/* Does this machine show an NVIDIA GPU, with or without a driver? */
bool gpu_seen(void);
/* 0 when the CUDA worker could start n ranks, on the GPUs of this list or the first ones; else negative and why it
 * cannot. gpu_done() afterwards, whatever came back. */
int gpu_find(const char *libexec_dir, const char *list, uint32_t n, struct gpu *ret, struct error *e);
void gpu_done(struct gpu *g);
/* Into the log: the GPU of each rank and who else uses it. */
void gpu_tell(const struct gpu *g);
/* 0 when the model would fit: argv is the CUDA worker's command line with --plan. -ENOMEM and what is missing. An
 * answer that is none is not an error: loading says what is wrong. */
int gpu_fits(char *const argv[], struct error *e);
