/* prefix_units.c - see prefix_units.h. */
#include "tp/worker/prefix_units.h"

#include "base/host_memory.h"
#include "base/sizes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PART_DEFAULT 8u /* of what is left: who reads files on this machine wants the rest */
#define MOST_DEFAULT (4ull << 30)
#define MOST_PINNED  (2ull << 30) /* for a device it is pinned, and pages at every start */
#define PER_SEQUENCE 4u           /* by default; more serve only those who come back much later */
#define KEPT_FREE    4u           /* a part of the room that is left to others, whatever is asked for */
#define UNITS_MAX    4096u        /* more are not looked through every time that one is to be given up */
#define PAGES_MAX    (1u << 20)

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Bytes for states, and beside them for pages, of the host's memory that a rank may have. What is asked for is for both
 * alike. Where nobody asks, ranks whose pool is in the same memory have none for pages, which had better be there; but
 * they need some on their way to the disk. */
static void share(
        const struct rank *r, uint64_t room, uint64_t unit_bytes, uint64_t *ret_states, uint64_t *ret_pages) {
    const struct rank_options *o = &r->options;
    uint64_t most = k_memory_shared(r->context) ? MOST_DEFAULT : MOST_PINNED;
    uint64_t asked = o->prefix_fraction > 0 ? (uint64_t)(o->prefix_fraction * (double)room) : o->prefix_bytes;
    if (asked > 0) {
        *ret_states = asked / 2 > unit_bytes ? asked / 2 : asked;
        *ret_pages = asked - *ret_states;
        return;
    }
    *ret_states = least(
            least(room / PART_DEFAULT, most), (uint64_t)r->budget.pool.slots * PER_SEQUENCE * unit_bytes);
    *ret_pages = k_memory_shared(r->context) && !o->prefix_dir ? 0 : least(room / PART_DEFAULT, most);
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
    uint64_t states, pages, most = room - room / KEPT_FREE;
    share(r, room, cost.slot_unit_bytes, &states, &pages);
    bool clamped = states > most || pages > most - states;
    states = least(states, pages > 0 ? most / 2 : most);
    pages = least(pages, most - states);
    b->pool.slot_units = (uint32_t)least(states / cost.slot_unit_bytes, UNITS_MAX);
    b->pool.page_units =
            b->pool.slot_units > 0 ? (uint32_t)least(pages / cost.page_unit_bytes, PAGES_MAX) : 0;
    say(b, "; %u states of prefixes %s", b->pool.slot_units,
            SIZE_TEXT(b->pool.slot_units * cost.slot_unit_bytes));
    if (b->pool.page_units > 0)
        say(b, ", %u of their pages %s", b->pool.page_units,
                SIZE_TEXT(b->pool.page_units * cost.page_unit_bytes));
    if (clamped)
        say(b, ", the most that is free");
}

bool prefix_units_fewer(struct rank *r) {
    struct budget *b = &r->budget;
    if (!r->options.prefix_cache || r->options.slot_units > 0 || b->pool.slot_units == 0)
        return false;
    b->pool.slot_units /= 2;
    b->pool.page_units = b->pool.slot_units > 0 ? b->pool.page_units / 2 : 0;
    say(b, ", of which %u and %u at most could be had", b->pool.slot_units, b->pool.page_units);
    return true;
}
