/* devices.h - which GPU each rank takes: those that --devices names, or the first that can be used, so that pairs with
 * NVLink between them are ranks 0 and 1, 2 and 3, and so on: those are siblings in the tree of sums.
 *
 * Called by serve, bench and doctor with what the CUDA worker answered to --probe, which may be anything. A GPU's
 * number is the worker's own, so CUDA's: what CUDA_VISIBLE_DEVICES leaves, counted from 0. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct devices {
    uint32_t n;             /* ranks */
    uint32_t at[RANKS_MAX]; /* the GPU of each */
};

/* GPUs that a list such as "0,GPU-8c25" names, with the mistakes in it; 0 for NULL. */
uint32_t devices_named(const char *list);
/* GPUs for n ranks. list: --devices, or NULL. -EINVAL where the list is wrong, -ENODEV where too few can be used; *ret
 * then has as many as can, and behind them the first of the others. */
int devices_choose(const json_t *probe, const char *list, uint32_t n, struct devices *ret, struct error *e);
/* Is there an order of the same GPUs in which more siblings have NVLink between them? */
bool devices_better(const json_t *probe, const struct devices *d, struct devices *ret);
/* Ranks that have this GPU. */
uint32_t devices_sharers(const struct devices *d, uint32_t gpu);
/* Free bytes of the rank with the least, its part where ranks share a GPU; 0 = nothing is known. */
uint64_t devices_memory_least(const json_t *probe, const struct devices *d);
/* "0,2", as the worker takes it. */
#define DEVICES_TEXT (RANKS_MAX * 12u)
const char *devices_text(const struct devices *d, char text[DEVICES_TEXT]);
