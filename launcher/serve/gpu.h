/* gpu.h - whether a GPU can serve here, and if not, why: a sentence, so that nobody is served by a CPU without knowing.
 *
 * Called by serve.c. Asks shardd-worker-cuda itself (ask.h): its driver, its build and its cards are what counts. */
#pragma once

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

struct gpu {
    char worker[PATH_MAX]; /* shardd-worker-cuda */
    uint64_t memory_free;  /* of the device that rank 0 takes */
};

/* Does this machine show an NVIDIA GPU, with or without a driver? */
bool gpu_seen(void);
/* 0 when the CUDA worker could start on device 0; else negative and why it cannot. */
int gpu_find(const char *libexec_dir, struct gpu *ret, struct error *e);
/* 0 when the model would fit: argv is the CUDA worker's command line with --plan. -ENOMEM and what is missing. An
 * answer that is none is not an error: loading says what is wrong. */
int gpu_fits(char *const argv[], struct error *e);
