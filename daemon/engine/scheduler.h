/* scheduler.h - decides what each step runs. Engine thread only. */
#pragma once

#include "daemon/engine/state.h"

/* 1: a plan was committed; 0: there is nothing to plan now; negative: the ring is damaged (flight_commit). */
int scheduler_plan(struct engine *g, uint64_t now);
/* Tells what a step with so many prompt rows took. */
void scheduler_measured(struct engine *g, uint32_t n_prompt_rows, uint64_t compute_ns);
