/* units.h - host units of a pool's slots: the states that the prefix cache keeps, and how they get there and back
 * without the step waiting for the bus.
 *
 * Between pool.c, which owns them, and slots.c. A unit goes through a stage, device memory that holds all of it: a
 * snapshot is written there in the stream's order, at the speed of the device's memory, and leaves for the host behind
 * the stream's back; a restore comes while the steps before it run, and is read from there in the stream's order. */
#pragma once

#include "kernels/cuda/internal.h"

/* Device memory for them: a snapshot may leave while the next is taken, or a state comes. */
#define UNIT_STAGES 2u

struct units;
int units_create(struct k_context *c, uint32_t n, uint64_t unit_bytes, struct units **ret, struct error *e);
struct units *units_free(struct units *u); /* NULL ok; returns NULL */

/* Where operations of s, queued until units_end(), may write all of a unit, or read what it holds. NULL: a fault was
 * kept. One at a time. */
uint8_t *units_write(struct units *u, struct k_stream *s, uint32_t unit);
uint8_t *units_read(struct units *u, struct k_stream *s, uint32_t unit);
void units_end(struct units *u, struct k_stream *s);
/* The unit's bytes, all of which have arrived; the host may write them, as long as nothing that names it is queued.
 * NULL: they cannot have. */
uint8_t *units_host(struct units *u, uint32_t unit);
