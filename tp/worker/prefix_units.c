/* prefix_units.c - see prefix_units.h. */
#include "tp/worker/prefix_units.h"

#include "base/host_memory.h"
#include "base/sizes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PART_DEFAULT 8u /* of what is left: who reads files on this machine wants the rest */
#define MOST_DEFAULT (4ull << 30)
#define MOST_PINNED  (2ull << 30) /* for a device it is pinned, which is a part of every start */
#define PER_SEQUENCE 4u           /* by default; more serve only those who come back much later */
#define KEPT_FREE    4u           /* a part of the room that is left to others, whatever is asked for */
#define UNITS_MAX    4096u        /* more are not looked through every time that one is to be given up */

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Bytes that are asked for, of the host's memory that a rank may have. */
static uint64_t share(const struct rank *r, uint64_t room, uint64_t unit_bytes) {
    const struct rank_options *o = &r->options;
    uint64_t most = k_memory_shared(r->context) ? MOST_DEFAULT : MOST_PINNED;
    if (o->prefix_bytes > 0)
        return o->prefix_bytes;
    if (o->prefix_fraction > 0)
        return (uint64_t)(o->prefix_fraction * (double)room);
    return least(
            least(room / PART_DEFAULT, most), (uint64_t)r->budget.pool.slots * PER_SEQUENCE * unit_bytes);
}

static void say(struct budget *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct budget *b, const char *format, ...) {
    va_list ap;
    size_t n = strlen(b->text);
    va_start(ap, format);
    vsnprintf(b->text + n, sizeof(b->text) - n, format, ap);
    va_end(ap);
}

void prefix_units_choose(struct rank *r, uint64_t left) {
    const struct rank_options *o = &r->options;
    struct budget *b = &r->budget;
    struct k_pool_cost cost;
    if (!o->prefix_cache || b->pool.slot_units > 0) /* none, or exactly so many were asked for */
        return;
    k_pool_cost(&r->shard.shape, &b->pool, &cost);
    uint64_t room = k_memory_shared(r->context) ? left : host_memory_free("") / o->tp;
    uint64_t bytes = share(r, room, cost.slot_unit_bytes);
    uint64_t most = room - room / KEPT_FREE;
    b->pool.slot_units = (uint32_t)least(least(bytes, most) / cost.slot_unit_bytes, UNITS_MAX);
    say(b, "; %u states of prefixes %s%s", b->pool.slot_units,
            SIZE_TEXT(b->pool.slot_units * cost.slot_unit_bytes),
            bytes > most ? ", the most that is free" : "");
}

bool prefix_units_fewer(struct rank *r) {
    struct budget *b = &r->budget;
    if (!r->options.prefix_cache || r->options.slot_units > 0 || b->pool.slot_units == 0)
        return false;
    b->pool.slot_units /= 2;
    say(b, ", of which %u at most could be had", b->pool.slot_units);
    return true;
}
