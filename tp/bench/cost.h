/* cost.h - what a step has to move and to multiply at least, computed from the sizes of the model.
 *
 * Bytes of a step of `batch` sequences, each of which holds n tokens, the new one included:
 *
 *     weights + batch * (kv * (n + 1) + state + embedding)
 *
 *   weights    the linears of all layers and of the head as they are packed, read once whatever the batch
 *   kv         K and V of one position in all attention layers: n are read, one is written
 *   state      of the recurrent layers: S0, half of the ring's rows (the mean) and the convolution's window are read;
 *              one row of the ring and of the window is written, and S0 at every 16th position
 *   embedding  one row
 *
 * Activations and vectors (norms, taps), some MB that stay in caches, are not counted. All sums are over all ranks. */
#pragma once

#include "tp/bench/group.h"

struct bench_cost {
    double weights, kv, state, embedding; /* bytes */
    double multiply_adds;                 /* of the layers' linears for one token; without the head */
};

struct bench_cost bench_cost_of(const struct group *g);
double bench_step_bytes(const struct bench_cost *c, uint32_t batch, double length);
