/* fingerprint.h - a number that tells whether two ranks, or two starts, hold the same model.
 *
 * Called by tp/worker/rank.c. Cheap: configuration, and every tensor's name, type, shape and a sample of its bytes.
 * It is of the whole model, not of a shard, so it is the same on every rank. */
#pragma once

#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/safetensors.h"

/* checkpoint NULL: dummy weights, which the seed decides. */
uint64_t fingerprint_model(const struct model_config *m, const struct checkpoint *checkpoint, uint64_t seed);
