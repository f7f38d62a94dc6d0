/* prefix.c - see prefix.h. */
#include "daemon/engine/prefix.h"

#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (PAGE_TOKENS * sizeof(uint32_t))

int prefix_init(struct prefix *x, const struct step_geometry *g, uint64_t seed) {
    *x = (struct prefix){.seed = seed,
            .changes = x->changes + 1,
            .n_units = g->slot_units < PREFIX_UNITS_MAX ? g->slot_units : PREFIX_UNITS_MAX,
            .free_unit = PREFIX_NONE,
            .oldest = PREFIX_NONE,
            .youngest = PREFIX_NONE,
            .last_passing = PREFIX_NONE};
    if (x->n_units == 0)
        return 0;
    /* A root is kept by a running sequence or by a snapshot, any other node by its page. */
    x->n_nodes = g->pages + g->slots + x->n_units;
    for (x->mask = 1; x->mask < x->n_nodes; x->mask = 2 * x->mask + 1)
        ;
    x->nodes = calloc((size_t)x->n_nodes + 1, sizeof(x->nodes[0]));
    x->snapshots = calloc(x->n_units, sizeof(x->snapshots[0]));
    x->buckets = calloc((size_t)x->mask + 1, sizeof(x->buckets[0]));
    if (x->nodes == NULL || x->snapshots == NULL || x->buckets == NULL) {
        prefix_done(x);
        return -ENOMEM;
    }
    for (uint32_t i = x->n_units; i > 0; i--) {
        x->snapshots[i - 1].sibling = x->free_unit;
        x->free_unit = i - 1;
    }
    return 0;
}

void prefix_done(struct prefix *x) {
    free(x->nodes);
    free(x->snapshots);
    free(x->buckets);
    *x = (struct prefix){.changes = x->changes + 1};
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

static uint32_t make_child(struct prefix *x, struct pools *p, uint32_t parent, const uint32_t *ids,
        uint64_t hash, uint32_t page) {
    uint32_t n = x->free_node;
    assert(n != 0 || x->n_touched < x->n_nodes);
    if (n == 0)
        n = ++x->n_touched;
    else
        x->free_node = x->nodes[n].next;
    struct prefix_node *at = &x->nodes[n];
    x->changes++;
    *at = (struct prefix_node){.hash = hash,
            .parent = parent,
            .page = page,
            .next = x->buckets[hash & x->mask],
            .snapshots = PREFIX_NONE};
    memcpy(at->ids, ids, BLOCK_BYTES);
    x->buckets[hash & x->mask] = n;
    if (parent != 0)
        x->nodes[parent].n_children++;
    if (page != 0)
        pools_hold(p, page);
    return n;
}

static void unlink_node(struct prefix *x, uint32_t n) {
    uint32_t *at = &x->buckets[x->nodes[n].hash & x->mask];
    while (*at != n)
        at = &x->nodes[*at].next;
    *at = x->nodes[n].next;
}

/* The node and those above it, as far as nothing keeps them. */
static void prune(struct prefix *x, struct pools *p, uint32_t n) {
    while (n != 0) {
        struct prefix_node *at = &x->nodes[n];
        if (at->refs > 0 || at->n_children > 0 || at->snapshots != PREFIX_NONE)
            return;
        uint32_t parent = at->parent;
        x->changes++;
        if (!at->hidden)
            unlink_node(x, n);
        if (at->page != 0)
            pools_unhold(p, at->page);
        at->next = x->free_node;
        x->free_node = n;
        if (parent != 0)
            x->nodes[parent].n_children--;
        n = parent;
    }
}

/* The node's rows are in this page of a sequence as well, and nobody uses the other. */
static void replace_page(struct prefix *x, struct pools *p, uint32_t n, uint32_t page) {
    uint32_t old = x->nodes[n].page;
    pools_hold(p, page);
    x->nodes[n].page = page;
    pools_unhold(p, old);
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
    if (s->page != 0)
        pools_unhold(p, s->page);
    s->sibling = x->free_unit;
    x->free_unit = u;
    x->n_kept--;
    x->evictions++;
    x->changes++;
    prune(x, p, s->node);
}

static bool may_be_given_up(const struct prefix_snapshot *s, uint64_t oldest_step) {
    return s->pins == 0 && s->step < oldest_step;
}

/* Whether nobody uses the page of its last rows, and no node has it: what the sequence did after that went on there. */
static bool keeps_last_page(const struct prefix *x, const struct pools *p, const struct prefix_snapshot *s) {
    uint32_t n = 0;
    if (s->page == 0 || p->users[s->page] > 0)
        return false;
    for (uint32_t u = x->nodes[s->node].snapshots; u != PREFIX_NONE; u = x->snapshots[u].sibling)
        n += x->snapshots[u].page == s->page;
    return p->holds[s->page] == n;
}

/* Whether its end brings pages nearer that nobody uses. */
static bool keeps_unused_pages(
        const struct prefix *x, const struct pools *p, const struct prefix_snapshot *s) {
    const struct prefix_node *at = &x->nodes[s->node];
    return keeps_last_page(x, p, s) || (at->page != 0 && at->refs == 0 && at->n_children == 0);
}

bool prefix_evict(struct prefix *x, struct pools *p, uint64_t oldest_step) {
    uint32_t u = x->n_kept > 0 ? x->oldest : PREFIX_NONE;
    for (; u != PREFIX_NONE; u = x->snapshots[u].younger) {
        const struct prefix_snapshot *s = &x->snapshots[u];
        if (may_be_given_up(s, oldest_step) && keeps_unused_pages(x, p, s)) {
            give_up(x, p, u);
            return true;
        }
    }
    return false;
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
        if (s->length == length && memcmp(s->ids, tail, length % PAGE_TOKENS * sizeof(tail[0])) == 0)
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
            .page = n_tail == 0 ? 0 : pools_table(p, slot)[path->n_pages],
            .sibling = x->nodes[path->node].snapshots,
            .step = UINT64_MAX};
    memcpy(s->ids, tail, n_tail * sizeof(tail[0]));
    x->nodes[path->node].snapshots = u;
    if (s->page != 0)
        pools_hold(p, s->page);
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
                memcmp(s->ids, ids + at, (s->length - at) * sizeof(ids[0])) != 0)
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
    uint32_t n = s->page != 0 && p->users[s->page] == 0;
    for (uint32_t node = s->node; x->nodes[node].page != 0; node = x->nodes[node].parent)
        n += p->users[x->nodes[node].page] == 0;
    return n;
}

/* --- the path of a sequence --- */

/* The root of a salt, referred to. */
static uint32_t take_root(struct prefix *x, struct pools *p, const uint32_t *salt) {
    uint64_t hash = hash_of(x, 0, salt);
    uint32_t root = find_child(x, 0, salt, hash);
    if (root == 0)
        root = make_child(x, p, 0, salt, hash, 0);
    x->nodes[root].refs++;
    return root;
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
        x->nodes[node].refs++;
        if (x->nodes[node].page != 0)
            pools_share(p, slot, --n_pages, x->nodes[node].page);
    }
    assert(n_pages == 0);
    *ret = (struct prefix_path){s->node, hit->n_pages};
    s->pins++;
    if (s->page != 0)
        pools_use(p, s->page);
    unlink_use(x, hit->snapshot);
    link_youngest(x, hit->snapshot);
}

void prefix_unpin(struct prefix *x, struct pools *p, uint32_t snapshot) {
    struct prefix_snapshot *s = &x->snapshots[snapshot];
    assert(s->pins > 0);
    s->pins--;
    if (s->page != 0)
        pools_unuse(p, s->page);
}

void prefix_extend(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *ids, uint32_t n_pages,
        struct prefix_path *path) {
    const uint32_t *table = pools_table(p, slot);
    while (path->n_pages < n_pages) {
        const uint32_t *block = ids + (size_t)path->n_pages * PAGE_TOKENS;
        uint32_t page = table[path->n_pages++];
        uint64_t hash = hash_of(x, path->node, block);
        uint32_t node = find_child(x, path->node, block, hash);
        if (node == 0)
            node = make_child(x, p, path->node, block, hash, page);
        else if (p->users[x->nodes[node].page] == 0)
            replace_page(x, p, node, page);
        x->nodes[node].refs++;
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
    for (uint32_t node = path->node; node != 0; node = x->nodes[node].parent) {
        assert(x->nodes[node].refs > 0);
        x->nodes[node].refs--;
    }
    prune(x, p, path->node);
    *path = (struct prefix_path){0};
}

void prefix_hide(struct prefix *x, const struct prefix_path *path) {
    x->changes++;
    for (uint32_t n = path->node; n != 0 && x->nodes[n].page != 0; n = x->nodes[n].parent) {
        if (x->nodes[n].hidden)
            continue;
        unlink_node(x, n);
        x->nodes[n].hidden = true;
        for (uint32_t u = x->nodes[n].snapshots; u != PREFIX_NONE; u = x->snapshots[u].sibling) {
            unlink_use(x, u);
            x->snapshots[u].passing = false;
            link_oldest(x, u);
        }
    }
}
