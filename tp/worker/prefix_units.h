/* prefix_units.h - host memory for the prefix cache: how many states of sequences, and how many pages that make room on
 * the device, a rank has room for beside its pools.
 *
 * Called by tp/worker/rank.c once the pools are sized. A state is what a slot holds besides pages (kernels.h, slot
 * units); the engine decides which are kept. */
#pragma once

#include "tp/worker/rank.h"

/* Sets budget.pool.slot_units and page_units, and says so in budget.text. left: bytes of the memory of this rank that
 * neither weights nor scratch nor pools take, where ranks compute in the host's memory. */
void prefix_units_choose(struct rank *r, uint64_t left);
/* Where there was no memory for what was chosen (what can be pinned may be less than what is free): half of it, down to
 * none. False where that changes nothing, since none were chosen. */
bool prefix_units_fewer(struct rank *r);
