/* prefix.c - see prefix.h. */
#include "daemon/engine/prefix.h"

#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (PAGE_TOKENS * sizeof(uint32_t))

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

int prefix_init(struct prefix *x, const struct step_geometry *g, uint64_t seed) {
    *x = (struct prefix){.seed = seed,
            .changes = x->changes + 1,
            .n_units = least(g->slot_units, PREFIX_UNITS_MAX),
            .free_unit = PREFIX_NONE,
            .oldest = PREFIX_NONE,
            .youngest = PREFIX_NONE,
            .last_passing = PREFIX_NONE};
    if (x->n_units == 0)
        return 0;
    x->n_page_units = least(g->page_units, PREFIX_PAGES_MAX);
    /* A root is kept by a running sequence or by a snapshot, a tail by its snapshot, any other node by its rows. */
    x->n_nodes =
            g->pages + x->n_page_units + g->slots + 2 * x->n_units + 1; /* one that is read from a disk */
    for (x->mask = 1; x->mask < x->n_nodes; x->mask = 2 * x->mask + 1)
        ;
    x->nodes = calloc((size_t)x->n_nodes + 1, sizeof(x->nodes[0]));
    x->snapshots = calloc(x->n_units, sizeof(x->snapshots[0]));
    x->buckets = calloc((size_t)x->mask + 1, sizeof(x->buckets[0]));
    x->free_page_units = calloc((size_t)x->n_page_units + 1, sizeof(x->free_page_units[0]));
    x->unit_steps = calloc((size_t)x->n_page_units + 1, sizeof(x->unit_steps[0]));
    if (x->nodes == NULL || x->snapshots == NULL || x->buckets == NULL || x->free_page_units == NULL ||
            x->unit_steps == NULL) {
        prefix_done(x);
        return -ENOMEM;
    }
    for (uint32_t i = x->n_units; i > 0; i--) {
        x->snapshots[i - 1].sibling = x->free_unit;
        x->free_unit = i - 1;
    }
    for (uint32_t i = x->n_page_units; i > 0; i--)
        x->free_page_units[x->n_free_page_units++] = i - 1;
    return 0;
}

void prefix_done(struct prefix *x) {
    free(x->nodes);
    free(x->snapshots);
    free(x->buckets);
    free(x->free_page_units);
    free(x->unit_steps);
    *x = (struct prefix){.changes = x->changes + 1};
}

/* --- which nodes may leave a tier --- */

static void link_node(struct prefix *x, enum prefix_tier t, uint32_t n, bool youngest) {
    struct prefix_list *l = &x->lists[t];
    struct prefix_node *at = &x->nodes[n];
    at->older[t] = youngest ? l->youngest : 0;
    at->younger[t] = youngest ? 0 : l->oldest;
    *(at->older[t] == 0 ? &l->oldest : &x->nodes[at->older[t]].younger[t]) = n;
    *(at->younger[t] == 0 ? &l->youngest : &x->nodes[at->younger[t]].older[t]) = n;
    at->listed[t] = true;
}

static void unlink_node(struct prefix *x, enum prefix_tier t, uint32_t n) {
    struct prefix_list *l = &x->lists[t];
    struct prefix_node *at = &x->nodes[n];
    *(at->older[t] == 0 ? &l->oldest : &x->nodes[at->older[t]].younger[t]) = at->younger[t];
    *(at->younger[t] == 0 ? &l->youngest : &x->nodes[at->younger[t]].older[t]) = at->older[t];
    at->listed[t] = false;
}

/* Sees to it that the node is in the lists that it belongs in. One that comes in because what was below it has gone was
 * mostly used with that and goes next. */
static void list(struct prefix *x, uint32_t n) {
    struct prefix_node *at = &x->nodes[n];
    const bool may[PREFIX_TIERS] = {
            at->page != 0 && at->refs == 0 && at->n_below[PREFIX_DEVICE] == 0,
            at->page == 0 && at->unit != PREFIX_NONE && at->refs == 0 && at->n_below[PREFIX_HOST] == 0 &&
                    at->n_busy == 0,
    };
    for (enum prefix_tier t = 0; t < PREFIX_TIERS; t++) {
        uint32_t oldest = x->lists[t].oldest;
        if (may[t] && !at->listed[t])
            link_node(x, t, n, /* youngest= */ oldest == 0 || at->used > x->nodes[oldest].used);
        else if (!may[t] && at->listed[t])
            unlink_node(x, t, n);
    }
}

/* The node's rows are there now; page 0, unit PREFIX_NONE: not there. Holding pages and freeing units is the
 * caller's. */
static void place(struct prefix *x, uint32_t n, uint32_t page, uint32_t unit) {
    struct prefix_node *at = &x->nodes[n];
    bool on_device = at->page != 0, on_any = on_device || at->unit != PREFIX_NONE;
    at->page = page;
    at->unit = unit;
    list(x, n);
    if (at->parent == 0)
        return;
    struct prefix_node *parent = &x->nodes[at->parent];
    parent->n_below[PREFIX_DEVICE] += (uint32_t)(page != 0) - (uint32_t)on_device;
    parent->n_below[PREFIX_HOST] += (uint32_t)(page != 0 || unit != PREFIX_NONE) - (uint32_t)on_any;
    list(x, at->parent);
}

static void free_page_unit(struct prefix *x, uint32_t unit) {
    x->free_page_units[x->n_free_page_units++] = unit;
}

/* The rows are on the device: their unit is free, if no disk has to do with it. */
static void leave_unit(struct prefix *x, uint32_t n) {
    struct prefix_node *at = &x->nodes[n];
    uint32_t unit = at->unit;
    if (at->page == 0 || unit == PREFIX_NONE || at->n_busy > 0)
        return;
    place(x, n, at->page, PREFIX_NONE);
    free_page_unit(x, unit);
}

static void refer(struct prefix *x, uint32_t n) {
    x->nodes[n].refs++;
    list(x, n);
}

static void unrefer(struct prefix *x, uint32_t n) {
    assert(x->nodes[n].refs > 0);
    x->nodes[n].refs--;
    x->unsettled |= x->nodes[n].refs > 0;
    x->nodes[n].used = x->uses;
    list(x, n);
}

/* --- nodes --- */

static uint64_t hash_of(const struct prefix *x, uint32_t parent, const uint32_t *ids) {
    uint64_t h = x->seed ^ parent;
    for (uint32_t i = 0; i < PAGE_TOKENS; i += 2) {
        h = (h ^ ids[i] ^ (uint64_t)ids[i + 1] << 32) * SPLITMIX_GAMMA;
        h ^= h >> 29;
    }
    return hash_mix(h);
}

static uint32_t find_child(const struct prefix *x, uint32_t parent, const uint32_t *ids, uint64_t hash) {
    uint32_t n = x->buckets[hash & x->mask];
    for (; n != 0; n = x->nodes[n].next) {
        const struct prefix_node *at = &x->nodes[n];
        if (at->hash == hash && at->parent == parent && memcmp(at->ids, ids, BLOCK_BYTES) == 0)
            return n;
    }
    return 0;
}

/* A node whose rows are in this page; 0: a root. Who looks for it has to put it into its bucket. */
static uint32_t make_child(struct prefix *x, struct pools *p, uint32_t parent, const uint32_t *ids,
        uint32_t n_ids, uint32_t page) {
    uint32_t n = x->free_node;
    assert(n != 0 || x->n_touched < x->n_nodes);
    if (n == 0)
        n = ++x->n_touched;
    else
        x->free_node = x->nodes[n].next;
    struct prefix_node *at = &x->nodes[n];
    x->changes++;
    *at = (struct prefix_node){
            .parent = parent, .unit = PREFIX_NONE, .snapshots = PREFIX_NONE, .used = x->uses};
    memcpy(at->ids, ids, n_ids * sizeof(ids[0]));
    if (parent != 0)
        x->nodes[parent].n_children++;
    if (page != 0) {
        pools_hold(p, page);
        place(x, n, page, PREFIX_NONE);
    }
    return n;
}

static void enter_bucket(struct prefix *x, uint32_t n, uint64_t hash) {
    struct prefix_node *at = &x->nodes[n];
    at->hash = hash;
    at->next = x->buckets[hash & x->mask];
    at->found = true;
    x->buckets[hash & x->mask] = n;
}

static void leave_bucket(struct prefix *x, uint32_t n) {
    uint32_t *at = &x->buckets[x->nodes[n].hash & x->mask];
    while (*at != n)
        at = &x->nodes[*at].next;
    *at = x->nodes[n].next;
    x->nodes[n].found = false;
}

/* The node and those above it, as far as nothing keeps them. */
static void prune(struct prefix *x, struct pools *p, uint32_t n) {
    while (n != 0) {
        struct prefix_node *at = &x->nodes[n];
        if (at->refs > 0 || at->n_children > 0 || at->snapshots != PREFIX_NONE || at->n_busy > 0)
            return;
        uint32_t parent = at->parent, page = at->page, unit = at->unit;
        x->changes++;
        if (at->found)
            leave_bucket(x, n);
        place(x, n, 0, PREFIX_NONE);
        if (page != 0)
            pools_unhold(p, page);
        if (unit != PREFIX_NONE)
            free_page_unit(x, unit);
        at->next = x->free_node;
        x->free_node = n;
        if (parent != 0)
            x->nodes[parent].n_children--;
        n = parent;
    }
}

/* The node's rows are in this page of a sequence as well, and nobody uses where they were. */
static void replace_page(struct prefix *x, struct pools *p, uint32_t n, uint32_t page) {
    uint32_t old = x->nodes[n].page;
    pools_hold(p, page);
    place(x, n, page, x->nodes[n].unit);
    if (old != 0)
        pools_unhold(p, old);
    leave_unit(x, n);
}

/* --- snapshots: a list by last use, and one for each node --- */

static void unlink_use(struct prefix *x, uint32_t u) {
    const struct prefix_snapshot *s = &x->snapshots[u];
    if (u == x->last_passing)
        x->last_passing = s->older != PREFIX_NONE && x->snapshots[s->older].passing ? s->older : PREFIX_NONE;
    *(s->older == PREFIX_NONE ? &x->oldest : &x->snapshots[s->older].younger) = s->younger;
    *(s->younger == PREFIX_NONE ? &x->youngest : &x->snapshots[s->younger].older) = s->older;
}

static void link_youngest(struct prefix *x, uint32_t u) {
    struct prefix_snapshot *s = &x->snapshots[u];
    s->passing = false;
    s->older = x->youngest;
    s->younger = PREFIX_NONE;
    *(s->older == PREFIX_NONE ? &x->oldest : &x->snapshots[s->older].younger) = u;
    x->youngest = u;
}

static void link_oldest(struct prefix *x, uint32_t u) {
    struct prefix_snapshot *s = &x->snapshots[u];
    s->younger = x->oldest;
    s->older = PREFIX_NONE;
    *(s->younger == PREFIX_NONE ? &x->youngest : &x->snapshots[s->younger].older) = u;
    x->oldest = u;
}

/* Behind the others of its kind, before all that are not. */
static void link_passing(struct prefix *x, uint32_t u) {
    struct prefix_snapshot *s = &x->snapshots[u];
    uint32_t before = x->last_passing;
    s->passing = true;
    x->last_passing = u;
    if (before == PREFIX_NONE) {
        link_oldest(x, u);
        return;
    }
    s->older = before;
    s->younger = x->snapshots[before].younger;
    x->snapshots[before].younger = u;
    *(s->younger == PREFIX_NONE ? &x->youngest : &x->snapshots[s->younger].older) = u;
}

static void give_up(struct prefix *x, struct pools *p, uint32_t u) {
    struct prefix_snapshot *s = &x->snapshots[u];
    uint32_t *at = &x->nodes[s->node].snapshots;
    while (*at != u)
        at = &x->snapshots[*at].sibling;
    *at = s->sibling;
    unlink_use(x, u);
    s->number = 0;
    s->sibling = x->free_unit;
    x->free_unit = u;
    x->n_kept--;
    x->evictions++;
    x->changes++;
    if (s->tail != 0)
        x->nodes[s->tail].snapshots = PREFIX_NONE;
    prune(x, p, s->tail != 0 ? s->tail : s->node);
}

static bool may_be_given_up(const struct prefix_snapshot *s, uint64_t oldest_step) {
    return s->pins == 0 && s->step < oldest_step;
}

static uint32_t take_unit(struct prefix *x, struct pools *p, uint64_t oldest_step) {
    uint32_t u = x->oldest;
    while (x->free_unit == PREFIX_NONE && u != PREFIX_NONE && !may_be_given_up(&x->snapshots[u], oldest_step))
        u = x->snapshots[u].younger;
    if (x->free_unit == PREFIX_NONE && u != PREFIX_NONE)
        give_up(x, p, u);
    u = x->free_unit;
    if (u != PREFIX_NONE)
        x->free_unit = x->snapshots[u].sibling;
    return u;
}

/* The node's snapshot of exactly these ids after its page. */
static uint32_t find_snapshot(const struct prefix *x, uint32_t node, const uint32_t *tail, uint32_t length) {
    uint32_t u = x->nodes[node].snapshots;
    for (; u != PREFIX_NONE; u = x->snapshots[u].sibling) {
        const struct prefix_snapshot *s = &x->snapshots[u];
        if (s->length == length &&
                memcmp(x->nodes[s->tail].ids, tail, length % PAGE_TOKENS * sizeof(tail[0])) == 0)
            return u;
    }
    return PREFIX_NONE;
}

uint32_t prefix_keep(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *ids,
        struct prefix_place at, const struct prefix_path *path, uint64_t oldest_step) {
    assert(path->n_pages == at.length / PAGE_TOKENS);
    uint32_t n_tail = at.length % PAGE_TOKENS;
    const uint32_t *tail = ids + at.length - n_tail;
    uint32_t u = find_snapshot(x, path->node, tail, at.length);
    if (u != PREFIX_NONE && !at.passing) {
        unlink_use(x, u);
        link_youngest(x, u);
    }
    if (u != PREFIX_NONE)
        return PREFIX_NONE;
    u = take_unit(x, p, oldest_step);
    if (u == PREFIX_NONE)
        return u;
    struct prefix_snapshot *s = &x->snapshots[u];
    *s = (struct prefix_snapshot){.node = path->node,
            .length = at.length,
            .sibling = x->nodes[path->node].snapshots,
            .number = ++x->numbers,
            .step = UINT64_MAX};
    x->uses++;
    if (n_tail > 0) {
        s->tail = make_child(x, p, path->node, tail, n_tail, pools_table(p, slot)[path->n_pages]);
        x->nodes[s->tail].snapshots = u;
    }
    x->nodes[path->node].snapshots = u;
    if (at.passing)
        link_passing(x, u);
    else
        link_youngest(x, u);
    x->n_kept++;
    x->changes++;
    return u;
}

/* --- looking for a prefix --- */

/* The longest snapshot of the node that the ids go through. */
static void look_at_snapshots(const struct prefix *x, uint32_t node, uint32_t n_pages, const uint32_t *ids,
        uint32_t n, uint32_t most, struct prefix_hit *best) {
    uint32_t u = x->nodes[node].snapshots, at = n_pages * PAGE_TOKENS;
    for (; u != PREFIX_NONE; u = x->snapshots[u].sibling) {
        const struct prefix_snapshot *s = &x->snapshots[u];
        if (s->length <= best->length || s->length > most || s->length > n ||
                memcmp(x->nodes[s->tail].ids, ids + at, (s->length - at) * sizeof(ids[0])) != 0)
            continue;
        best->snapshot = u;
        best->length = s->length;
        best->n_pages = n_pages;
    }
}

struct prefix_hit prefix_find(
        const struct prefix *x, const uint32_t *salt, const uint32_t *ids, uint32_t n, uint32_t most) {
    struct prefix_hit best = {.snapshot = PREFIX_NONE};
    uint32_t n_pages = 0, node = find_child(x, 0, salt, hash_of(x, 0, salt));
    while (node != 0) {
        best.matched = n_pages * PAGE_TOKENS;
        look_at_snapshots(x, node, n_pages, ids, n, most, &best);
        if (n - n_pages * PAGE_TOKENS < PAGE_TOKENS)
            break;
        const uint32_t *block = ids + n_pages++ * PAGE_TOKENS;
        node = find_child(x, node, block, hash_of(x, node, block));
    }
    return best;
}

uint32_t prefix_idle_pages(const struct prefix *x, const struct pools *p, const struct prefix_hit *hit) {
    if (hit->snapshot == PREFIX_NONE)
        return 0;
    const struct prefix_snapshot *s = &x->snapshots[hit->snapshot];
    uint32_t tail = x->nodes[s->tail].page, n = tail != 0 && p->users[tail] == 0;
    for (uint32_t node = s->node; x->nodes[node].parent != 0; node = x->nodes[node].parent)
        n += x->nodes[node].page == 0 || p->users[x->nodes[node].page] == 0;
    return n;
}

uint32_t prefix_missing(const struct prefix *x, const struct prefix_hit *hit, uint32_t *ret_n) {
    uint32_t first = 0, n = 0;
    if (hit->snapshot != PREFIX_NONE) {
        uint32_t node = x->snapshots[hit->snapshot].node;
        for (; x->nodes[node].parent != 0 && x->nodes[node].page == 0; node = x->nodes[node].parent, n++)
            first = node;
    }
    *ret_n = n;
    return first;
}

uint32_t prefix_bring(struct prefix *x, struct pools *p, uint32_t node, uint32_t *ret_page) {
    uint32_t unit = x->nodes[node].unit;
    assert(x->nodes[node].page == 0 && unit != PREFIX_NONE);
    *ret_page = pools_take_page(p);
    place(x, node, *ret_page, unit);
    x->unit_steps[unit] = x->step;
    leave_unit(x, node);
    x->changes++;
    return unit;
}

/* --- evicting --- */

/* Loses what the host has of a node that has nothing below it. False: nothing may be lost, or nothing is. */
static bool lose(struct prefix *x, struct pools *p, uint32_t n, uint64_t oldest_step) {
    if (x->nodes[n].snapshots == PREFIX_NONE)
        return false;
    for (uint32_t u = x->nodes[n].snapshots; u != PREFIX_NONE; u = x->snapshots[u].sibling)
        if (!may_be_given_up(&x->snapshots[u], oldest_step))
            return false;
    while (x->nodes[n].snapshots != PREFIX_NONE)
        give_up(x, p, x->nodes[n].snapshots);
    return true;
}

/* A unit for the rows of n, for which those of a node that was used before may have to make room; that may end n. */
static uint32_t take_page_unit(struct prefix *x, struct pools *p, uint32_t n, uint64_t oldest_step) {
    uint32_t younger;
    for (uint32_t h = x->lists[PREFIX_HOST].oldest; h != 0 && x->n_free_page_units == 0; h = younger) {
        younger = x->nodes[h].younger[PREFIX_HOST];
        if (x->nodes[h].used > x->nodes[n].used && x->nodes[n].n_below[PREFIX_HOST] == 0)
            break;
        if (lose(x, p, h, oldest_step))
            break;
    }
    if (x->n_free_page_units == 0 || !x->nodes[n].listed[PREFIX_DEVICE])
        return PREFIX_NONE;
    return x->free_page_units[--x->n_free_page_units];
}

/* Whether a tail's page is that of a node as well, since what the sequence did after it went on there. */
static bool shares_page(const struct prefix *x, const struct pools *p, uint32_t tail) {
    const struct prefix_node *at = &x->nodes[tail];
    uint32_t n = 0;
    for (uint32_t u = x->nodes[at->parent].snapshots; u != PREFIX_NONE; u = x->snapshots[u].sibling)
        n += x->nodes[x->snapshots[u].tail].page == at->page;
    return p->holds[at->page] > n;
}

/* Whether the rows of n leave the device. */
static bool evict(struct prefix *x, struct pools *p, uint32_t n, uint64_t oldest_step, bool may_copy,
        struct prefix_copy *ret) {
    struct prefix_node *at = &x->nodes[n];
    if (!at->found && !at->hidden && shares_page(x, p, n))
        return false;
    if (at->reading)
        return false;
    if (at->unit != PREFIX_NONE) { /* on its way to a disk */
        uint32_t page = at->page;
        place(x, n, 0, at->unit);
        pools_unhold(p, page);
        x->changes++;
        return true;
    }
    bool lost = x->n_page_units == 0 || (at->hidden && at->n_below[PREFIX_HOST] == 0);
    if (!lost && !may_copy)
        return false;
    uint32_t unit = lost ? PREFIX_NONE : take_page_unit(x, p, n, oldest_step);
    if (!at->listed[PREFIX_DEVICE])
        return true;
    if (unit == PREFIX_NONE)
        return at->n_below[PREFIX_HOST] == 0 && lose(x, p, n, oldest_step);
    *ret = (struct prefix_copy){.page = at->page, .unit = unit};
    x->unit_steps[unit] = x->step;
    place(x, n, 0, unit);
    pools_unhold(p, ret->page);
    x->changes++;
    return true;
}

bool prefix_evict(
        struct prefix *x, struct pools *p, uint64_t oldest_step, bool may_copy, struct prefix_copy *ret) {
    *ret = (struct prefix_copy){.unit = PREFIX_NONE};
    uint32_t n = x->n_units > 0 ? x->lists[PREFIX_DEVICE].oldest : 0;
    while (n != 0) {
        uint32_t younger = x->nodes[n].younger[PREFIX_DEVICE];
        if (p->users[x->nodes[n].page] == 0 && evict(x, p, n, oldest_step, may_copy, ret))
            return true;
        n = younger;
    }
    return false;
}

/* --- the path of a sequence --- */

/* The root of a salt, referred to. */
static uint32_t take_root(struct prefix *x, struct pools *p, const uint32_t *salt) {
    uint64_t hash = hash_of(x, 0, salt);
    uint32_t root = find_child(x, 0, salt, hash);
    if (root == 0) {
        root = make_child(x, p, /* parent= */ 0, salt, PAGE_TOKENS, /* page= */ 0);
        enter_bucket(x, root, hash);
    }
    refer(x, root);
    return root;
}

void prefix_pin(struct prefix *x, struct pools *p, uint32_t snapshot) {
    struct prefix_snapshot *s = &x->snapshots[snapshot];
    s->pins++;
    if (s->tail == 0)
        return;
    refer(x, s->tail);
    if (x->nodes[s->tail].page != 0)
        pools_use(p, x->nodes[s->tail].page);
}

void prefix_enter(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *salt,
        const struct prefix_hit *hit, struct prefix_path *ret) {
    assert(p->table_len[slot] == 0);
    if (hit->snapshot == PREFIX_NONE) {
        *ret = (struct prefix_path){take_root(x, p, salt), 0};
        return;
    }
    struct prefix_snapshot *s = &x->snapshots[hit->snapshot];
    uint32_t n_pages = hit->n_pages;
    for (uint32_t node = s->node; node != 0; node = x->nodes[node].parent) {
        refer(x, node);
        if (x->nodes[node].parent != 0)
            pools_share(p, slot, --n_pages, x->nodes[node].page);
    }
    assert(n_pages == 0);
    *ret = (struct prefix_path){s->node, hit->n_pages};
    prefix_pin(x, p, hit->snapshot);
    unlink_use(x, hit->snapshot);
    link_youngest(x, hit->snapshot);
}

void prefix_unpin(struct prefix *x, struct pools *p, uint32_t snapshot) {
    struct prefix_snapshot *s = &x->snapshots[snapshot];
    assert(s->pins > 0);
    s->pins--;
    x->uses++;
    if (s->tail == 0)
        return;
    if (x->nodes[s->tail].page != 0)
        pools_unuse(p, x->nodes[s->tail].page);
    unrefer(x, s->tail);
}

void prefix_hold(struct prefix *x, struct pools *p, uint32_t snapshot) {
    for (uint32_t node = x->snapshots[snapshot].node; node != 0; node = x->nodes[node].parent)
        refer(x, node);
    prefix_pin(x, p, snapshot);
}

void prefix_unhold(struct prefix *x, struct pools *p, uint32_t snapshot) {
    prefix_unpin(x, p, snapshot);
    for (uint32_t node = x->snapshots[snapshot].node; node != 0; node = x->nodes[node].parent)
        unrefer(x, node);
}

void prefix_extend(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *ids, uint32_t n_pages,
        struct prefix_path *path) {
    const uint32_t *table = pools_table(p, slot);
    while (path->n_pages < n_pages) {
        const uint32_t *block = ids + (size_t)path->n_pages * PAGE_TOKENS;
        uint32_t page = table[path->n_pages++];
        uint64_t hash = hash_of(x, path->node, block);
        uint32_t node = find_child(x, path->node, block, hash);
        if (node == 0) {
            node = make_child(x, p, path->node, block, PAGE_TOKENS, page);
            enter_bucket(x, node, hash);
        } else if (x->nodes[node].page == 0 || p->users[x->nodes[node].page] == 0) {
            replace_page(x, p, node, page);
        }
        refer(x, node);
        path->node = node;
    }
}

bool prefix_settle(struct prefix *x, struct pools *p, uint32_t slot, const struct prefix_path *path) {
    const uint32_t *table = pools_table(p, slot);
    uint32_t n_pages = path->n_pages, node = path->node;
    bool any = false;
    for (; n_pages > 0; node = x->nodes[node].parent) {
        uint32_t page = table[--n_pages];
        if (p->users[x->nodes[node].page] == 0) {
            replace_page(x, p, node, page);
            any = true;
        }
    }
    return any;
}

void prefix_leave(struct prefix *x, struct pools *p, struct prefix_path *path) {
    x->uses++;
    for (uint32_t node = path->node; node != 0; node = x->nodes[node].parent)
        unrefer(x, node);
    prune(x, p, path->node);
    *path = (struct prefix_path){0};
}

void prefix_hide(struct prefix *x, const struct prefix_path *path) {
    x->changes++;
    for (uint32_t n = path->node; n != 0 && x->nodes[n].parent != 0; n = x->nodes[n].parent) {
        if (x->nodes[n].hidden)
            continue;
        leave_bucket(x, n);
        x->nodes[n].hidden = true;
        for (uint32_t u = x->nodes[n].snapshots; u != PREFIX_NONE; u = x->snapshots[u].sibling) {
            unlink_use(x, u);
            x->snapshots[u].passing = false;
            link_oldest(x, u);
        }
    }
}

/* --- for disk.h --- */

uint32_t prefix_child(const struct prefix *x, uint32_t parent, const uint32_t *ids) {
    return find_child(x, parent, ids, hash_of(x, parent, ids));
}

uint32_t prefix_snapshot_of(const struct prefix *x, uint32_t node, const uint32_t *tail, uint32_t length) {
    return find_snapshot(x, node, tail, length);
}

uint32_t prefix_take_root(struct prefix *x, struct pools *p, const uint32_t *salt) {
    return take_root(x, p, salt);
}

uint32_t prefix_take_child(struct prefix *x, uint32_t node) {
    refer(x, node);
    return node;
}

uint32_t prefix_take_new(struct prefix *x, struct pools *p, uint32_t parent, const uint32_t *ids,
        uint32_t n_ids, uint32_t unit) {
    uint32_t n = make_child(x, p, parent, ids, n_ids, /* page= */ 0);
    if (n_ids == PAGE_TOKENS)
        enter_bucket(x, n, hash_of(x, parent, ids));
    x->nodes[n].n_busy = 1;
    x->nodes[n].reading = true;
    place(x, n, 0, unit);
    refer(x, n);
    return n;
}

void prefix_drop(struct prefix *x, struct pools *p, uint32_t node) {
    unrefer(x, node);
    prune(x, p, node);
}

uint32_t prefix_take_page_unit(struct prefix *x, struct pools *p, uint64_t oldest_step) {
    uint32_t younger;
    for (uint32_t h = x->lists[PREFIX_HOST].oldest; h != 0 && x->n_free_page_units == 0; h = younger) {
        younger = x->nodes[h].younger[PREFIX_HOST];
        if (lose(x, p, h, oldest_step))
            break;
    }
    if (x->n_free_page_units == 0 ||
            x->unit_steps[x->free_page_units[x->n_free_page_units - 1]] >= oldest_step)
        return PREFIX_NONE;
    return x->free_page_units[--x->n_free_page_units];
}

uint32_t prefix_take_state_unit(struct prefix *x, struct pools *p, uint64_t oldest_step) {
    return take_unit(x, p, oldest_step);
}

void prefix_give_state_unit(struct prefix *x, uint32_t unit) {
    x->snapshots[unit].sibling = x->free_unit;
    x->free_unit = unit;
}

void prefix_make_snapshot(struct prefix *x, uint32_t unit, uint32_t node, uint32_t tail, uint32_t length) {
    struct prefix_snapshot *s = &x->snapshots[unit];
    *s = (struct prefix_snapshot){.node = node,
            .tail = tail,
            .length = length,
            .sibling = x->nodes[node].snapshots,
            .number = ++x->numbers,
            .saved = true};
    if (tail != 0)
        x->nodes[tail].snapshots = unit;
    x->nodes[node].snapshots = unit;
    link_youngest(x, unit);
    x->n_kept++;
    x->changes++;
}

uint32_t prefix_copy_out(struct prefix *x, struct pools *p, uint32_t node, uint64_t oldest_step) {
    struct prefix_node *at = &x->nodes[node];
    assert(at->page != 0 && at->unit == PREFIX_NONE);
    at->n_busy++; /* whatever makes room, not this one */
    uint32_t unit = prefix_take_page_unit(x, p, oldest_step);
    at->n_busy--;
    if (unit == PREFIX_NONE)
        return unit;
    x->unit_steps[unit] = x->step;
    prefix_busy(x, node);
    place(x, node, at->page, unit);
    return unit;
}

void prefix_busy(struct prefix *x, uint32_t node) {
    x->nodes[node].n_busy++;
    list(x, node);
}

void prefix_not_busy(struct prefix *x, struct pools *p, uint32_t node) {
    assert(x->nodes[node].n_busy > 0);
    x->nodes[node].n_busy--;
    x->nodes[node].reading = false;
    list(x, node);
    leave_unit(x, node);
    prune(x, p, node);
}
