/* prefix_units.c - see prefix_units.h. */
#include "tp/worker/prefix_units.h"

#include "base/host_memory.h"
#include "base/sizes.h"

#include <stdio.h>
#include <string.h>

#define PART_DEFAULT 8u           /* of what is left: who reads files on this machine wants the rest */
#define MOST_DEFAULT (4ull << 30) /* pinning it for a GPU is a part of every start */
#define UNITS_MAX    4096u /* states; more are not looked through every time that one is to be given up */

/* What a rank may have of the host's memory, and how much of that is asked for. */
static uint64_t share(const struct rank_options *o, uint64_t room) {
    uint64_t chosen = room / PART_DEFAULT;
    if (o->prefix_bytes > 0)
        return o->prefix_bytes;
    if (o->prefix_fraction > 0)
        return (uint64_t)(o->prefix_fraction * (double)room);
    return chosen < MOST_DEFAULT ? chosen : MOST_DEFAULT;
}

void prefix_units_choose(struct rank *r, uint64_t left) {
    const struct rank_options *o = &r->options;
    struct budget *b = &r->budget;
    struct k_pool_cost cost;
    if (!o->prefix_cache || b->pool.slot_units > 0) /* none, or exactly so many were asked for */
        return;
    k_pool_cost(&r->shard.shape, &b->pool, &cost);
    uint64_t room = k_memory_shared(r->context) ? left : host_memory_free() / o->tp, bytes = share(o, room);
    bool clamped = bytes > room;
    uint64_t units = (clamped ? room : bytes) / cost.slot_unit_bytes;
    b->pool.slot_units = units < UNITS_MAX ? (uint32_t)units : UNITS_MAX;
    size_t n = strlen(b->text);
    snprintf(b->text + n, sizeof(b->text) - n, "; %u states of prefixes %s%s", b->pool.slot_units,
            SIZE_TEXT(b->pool.slot_units * cost.slot_unit_bytes), clamped ? ", all that is free" : "");
}
