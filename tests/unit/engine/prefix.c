/* prefix.c - the index of the prefix cache against a simple model: sequences come, keep, leave and are restored at
 * random; after every event each page, node and unit is accounted for, what is found is what a search through all
 * snapshots finds, and pages and page units have the rows that their nodes stand for. */
#include "daemon/engine/prefix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SLOTS      7u
#define PAGES      60u
#define PER        9u /* pages of a slot */
#define ROWS       (PER * PAGE_TOKENS)
#define EVENTS     6000u
#define UNITS_MOST 23u
#define HOST_MOST  70u /* page units */
#define NODES      (PAGES + HOST_MOST + SLOTS + 2 * UNITS_MOST + 1)

struct holder { /* a sequence that runs in the slot of its index */
    bool active;
    uint32_t ids[ROWS], n, planned, restore;
    uint32_t salt[PAGE_TOKENS];
    struct prefix_path path;
};

static struct pools pools;
static struct prefix cache;
static struct holder holders[SLOTS + 1];
static uint64_t random_state, now; /* now: the step */
static uint32_t n_copied, n_brought;

static uint32_t below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 20) % n;
}

/* --- the accounts --- */

static uint32_t users[PAGES + 1], holds[PAGES + 1], refs[NODES + 1], children[NODES + 1], kept[NODES + 1];
static uint32_t below_device[NODES + 1], below_host[NODES + 1];
static bool alive[NODES + 1], taken[HOST_MOST];

/* What the rows in a page or unit would be: a hash of the id and of all before it. */
struct rows {
    uint64_t of[PAGE_TOKENS];
};
static struct rows in_pages[PAGES + 1], in_units[HOST_MOST];

static uint64_t row(uint64_t before, uint32_t id) {
    return (before ^ id) * 0x9e3779b97f4a7c15ull + 1;
}

static void count_nodes(void) {
    for (uint32_t i = 1; i <= cache.n_nodes; i++)
        alive[i] = i <= cache.n_touched;
    for (uint32_t n = cache.free_node; n != 0; n = cache.nodes[n].next) {
        assert_true(alive[n]);
        alive[n] = false;
    }
    for (uint32_t i = 1; i <= cache.n_nodes; i++) {
        const struct prefix_node *n = &cache.nodes[i];
        if (!alive[i])
            continue;
        bool on_device = n->page != 0, on_host = n->unit != PREFIX_NONE;
        assert_true(n->parent == 0 ? !on_device && !on_host : on_device != on_host && alive[n->parent]);
        children[n->parent]++;
        below_device[n->parent] += on_device;
        below_host[n->parent] += n->parent != 0;
        holds[n->page]++;
        if (on_host)
            assert_false(taken[n->unit]);
        if (on_host)
            taken[n->unit] = true;
    }
}

/* The rows of node n, from the first of its sequence. Returns what the last of n_ids is. */
static uint64_t check_rows(uint32_t n, uint32_t n_ids) {
    const struct prefix_node *at = &cache.nodes[n];
    uint64_t last = at->parent == 0 ? 0 : check_rows(at->parent, PAGE_TOKENS);
    const struct rows *r = at->parent == 0 ? NULL : at->page != 0 ? &in_pages[at->page] : &in_units[at->unit];
    for (uint32_t i = 0; i < n_ids; i++) {
        last = row(last, at->ids[i]);
        if (at->parent != 0)
            assert_true(r->of[i] == last);
    }
    return last;
}

static void count_page_units(void) {
    for (uint32_t i = 0; i < cache.n_free_page_units; i++) {
        assert_false(taken[cache.free_page_units[i]]);
        taken[cache.free_page_units[i]] = true;
    }
    for (uint32_t i = 0; i < cache.n_page_units; i++)
        assert_true(taken[i]);
}

/* Those that may leave a tier, by what has been counted. */
static void check_lists(void) {
    for (enum prefix_tier t = 0; t < PREFIX_TIERS; t++) {
        uint32_t before = 0, n_listed = 0, n_may = 0;
        for (uint32_t n = cache.lists[t].oldest; n != 0;
                before = n, n = cache.nodes[n].younger[t], n_listed++) {
            assert_true(alive[n] && cache.nodes[n].listed[t]);
            assert_int_equal(cache.nodes[n].older[t], before);
        }
        assert_int_equal(cache.lists[t].youngest, before);
        for (uint32_t i = 1; i <= cache.n_nodes; i++) {
            const struct prefix_node *n = &cache.nodes[i];
            if (alive[i] && n->refs == 0)
                n_may += t == PREFIX_DEVICE ? n->page != 0 && below_device[i] == 0
                                            : n->unit != PREFIX_NONE && below_host[i] == 0;
        }
        assert_int_equal(n_listed, n_may);
    }
}

static void count_units(void) {
    uint32_t n_free = 0, n_kept = 0, before = PREFIX_NONE, last_passing = PREFIX_NONE, n_passing = 0;
    for (uint32_t u = cache.free_unit; u != PREFIX_NONE; u = cache.snapshots[u].sibling)
        n_free++;
    for (uint32_t u = cache.oldest; u != PREFIX_NONE; before = u, u = cache.snapshots[u].younger, n_kept++) {
        const struct prefix_snapshot *s = &cache.snapshots[u];
        assert_int_equal(s->older, before);
        assert_true(alive[s->node]);
        if (s->passing) { /* they are neighbours */
            assert_int_equal(last_passing, n_passing++ > 0 ? before : PREFIX_NONE);
            last_passing = u;
        }
        kept[s->node]++;
        if (s->tail != 0) {
            assert_true(alive[s->tail] && cache.nodes[s->tail].parent == s->node);
            assert_int_equal(cache.nodes[s->tail].snapshots, u);
            kept[s->tail]++;
            refs[s->tail] += s->pins;
            users[cache.nodes[s->tail].page] += s->pins;
            check_rows(s->tail, s->length % PAGE_TOKENS);
        } else {
            assert_int_equal(s->length % PAGE_TOKENS, 0);
            check_rows(s->node, PAGE_TOKENS);
        }
    }
    assert_int_equal(cache.youngest, before);
    assert_int_equal(cache.last_passing, last_passing);
    assert_int_equal(n_kept, cache.n_kept);
    assert_int_equal(n_kept + n_free, cache.n_units);
}

static void count_holders(void) {
    for (uint32_t slot = 1; slot <= SLOTS; slot++) {
        for (uint32_t i = 0; i < pools.table_len[slot]; i++)
            users[pools_table(&pools, slot)[i]]++;
        if (!holders[slot].active)
            continue;
        uint32_t n_pages = holders[slot].path.n_pages;
        for (uint32_t n = holders[slot].path.node; n != 0; n = cache.nodes[n].parent) {
            refs[n]++;
            assert_true(cache.nodes[n].page != 0 || cache.nodes[n].parent == 0);
            if (cache.nodes[n].page != 0)
                assert_memory_equal(cache.nodes[n].ids, holders[slot].ids + --n_pages * PAGE_TOKENS,
                        PAGE_TOKENS * sizeof(uint32_t));
        }
        assert_int_equal(n_pages, 0);
    }
}

static void audit(void) {
    uint32_t n_free = 0, n_used = 0;
    memset(users, 0, sizeof(users));
    memset(holds, 0, sizeof(holds));
    memset(refs, 0, sizeof(refs));
    memset(children, 0, sizeof(children));
    memset(kept, 0, sizeof(kept));
    memset(below_device, 0, sizeof(below_device));
    memset(below_host, 0, sizeof(below_host));
    memset(taken, 0, sizeof(taken));
    count_nodes();
    count_page_units();
    count_units();
    count_holders();
    check_lists();
    for (uint32_t i = 1; i <= PAGES; i++) {
        assert_int_equal(pools.users[i], users[i]);
        assert_int_equal(pools.holds[i], holds[i]);
        n_free += users[i] == 0 && holds[i] == 0;
        n_used += users[i] > 0;
    }
    assert_int_equal(pools.n_free_pages, n_free);
    assert_int_equal(pools.n_used, n_used);
    for (uint32_t i = 1; i <= cache.n_nodes; i++) {
        const struct prefix_node *n = &cache.nodes[i];
        if (!alive[i])
            continue;
        assert_int_equal(n->refs, refs[i]);
        assert_int_equal(n->n_children, children[i]);
        assert_int_equal(n->n_below[PREFIX_DEVICE], below_device[i]);
        assert_int_equal(n->n_below[PREFIX_HOST], below_host[i]);
        assert_int_equal(n->snapshots != PREFIX_NONE, kept[i] > 0);
        assert_true(refs[i] + children[i] + kept[i] > 0); /* or it is of no use */
    }
}

/* --- the model: all snapshots, one after another --- */

static bool continues(const struct prefix_snapshot *s, const struct holder *h) {
    uint32_t full = s->length / PAGE_TOKENS, at = full * PAGE_TOKENS, n = s->node;
    if (memcmp(cache.nodes[s->tail].ids, h->ids + at, (s->length - at) * sizeof(uint32_t)) != 0)
        return false;
    for (; cache.nodes[n].parent != 0; n = cache.nodes[n].parent) {
        if (cache.nodes[n].hidden ||
                memcmp(cache.nodes[n].ids, h->ids + --full * PAGE_TOKENS, sizeof(cache.nodes[n].ids)) != 0)
            return false;
    }
    assert_int_equal(full, 0);
    return memcmp(cache.nodes[n].ids, h->salt, sizeof(h->salt)) == 0;
}

static struct prefix_hit find(const struct holder *h) {
    struct prefix_hit hit = prefix_find(&cache, h->salt, h->ids, h->n, h->n - 1);
    uint32_t longest = 0;
    for (uint32_t u = cache.n_kept > 0 ? cache.oldest : PREFIX_NONE; u != PREFIX_NONE;
            u = cache.snapshots[u].younger) {
        const struct prefix_snapshot *s = &cache.snapshots[u];
        if (s->length < h->n && s->length > longest && continues(s, h))
            longest = s->length;
    }
    assert_int_equal(hit.length, longest);
    assert_int_equal(hit.snapshot == PREFIX_NONE, longest == 0);
    assert_true(hit.matched >= hit.n_pages * PAGE_TOKENS && hit.matched <= h->n);
    return hit;
}

/* --- events --- */

/* As the engine does it: whatever nobody uses can be had. */
static bool make_free(uint32_t pages) {
    if (pages > pools_available(&pools))
        return false;
    while (pools.n_free_pages < pages) {
        struct prefix_copy copy;
        bool any = prefix_evict(&cache, &pools, now, /* may_copy= */ below(4) > 0, &copy);
        if (!any && cache.n_page_units > 0)
            any = prefix_evict(&cache, &pools, now, /* may_copy= */ true, &copy);
        if (copy.unit != PREFIX_NONE) {
            in_units[copy.unit] = in_pages[copy.page];
            n_copied++;
        }
        for (uint32_t slot = 1; slot <= SLOTS && !any; slot++)
            any = holders[slot].active && prefix_settle(&cache, &pools, slot, &holders[slot].path);
        assert_true(any);
    }
    return true;
}

/* Brings the hit to the device; false: there is no room, or somebody looked away half way. */
static bool bring(const struct prefix_hit *hit) {
    uint32_t n, node, page;
    bool there = true;
    if (prefix_missing(&cache, hit, &n) == 0)
        return true;
    prefix_hold(&cache, &pools, hit->snapshot);
    while (there && (node = prefix_missing(&cache, hit, &n)) != 0) {
        there = make_free(1) && below(30) > 0;
        if (!there)
            break;
        uint32_t unit = prefix_bring(&cache, &pools, node, &page);
        in_pages[page] = in_units[unit];
        n_brought++;
    }
    prefix_unhold(&cache, &pools, hit->snapshot);
    audit();
    return there;
}

static void come(uint32_t slot) {
    struct holder *h = &holders[slot];
    uint32_t family = below(2), own = below(2), turn = below(4) > 0 ? below(4) * 150 : below(ROWS);
    *h = (struct holder){.active = true, .n = 1 + below(ROWS), .restore = PREFIX_NONE};
    h->salt[0] = below(8) == 0;
    for (uint32_t i = 0; i < h->n; i++)
        h->ids[i] = i * 7 + (i < turn ? family : 10 + own);
    struct prefix_hit hit = find(h);
    uint32_t pages = pools_pages_for(&pools, h->n);
    h->active = false;
    if (pages - hit.n_pages + prefix_idle_pages(&cache, &pools, &hit) > pools_available(&pools) ||
            !bring(&hit))
        return;
    h->active = true;
    prefix_enter(&cache, &pools, slot, h->salt, &hit, &h->path);
    h->planned = hit.length;
    h->restore = hit.snapshot;
}

static void open_and_plan(uint32_t slot) {
    struct holder *h = &holders[slot];
    uint32_t first, n;
    if (!make_free(pools_lacks(&pools, slot, h->n)))
        return;
    assert_true(pools_grant(&pools, slot, h->n, &first, &n));
    if (h->restore != PREFIX_NONE) {
        const struct prefix_snapshot *from = &cache.snapshots[h->restore];
        const struct prefix_node *tail = &cache.nodes[from->tail];
        if (from->tail != 0)
            in_pages[pools_table(&pools, slot)[h->path.n_pages]] =
                    tail->page != 0 ? in_pages[tail->page] : in_units[tail->unit];
        cache.snapshots[h->restore].step = now;
        prefix_unpin(&cache, &pools, h->restore);
        h->restore = PREFIX_NONE;
    }
    uint64_t last = 0;
    uint32_t before = h->planned;
    h->planned += below(h->n - h->planned + 1);
    for (uint32_t i = 0; i < PAGE_TOKENS; i++)
        last = row(last, h->salt[i]);
    for (uint32_t i = 0; i < h->planned; i++) {
        struct rows *in = &in_pages[pools_table(&pools, slot)[i / PAGE_TOKENS]];
        last = row(last, h->ids[i]);
        if (i < before)
            assert_true(in->of[i % PAGE_TOKENS] == last); /* as it was restored */
        in->of[i % PAGE_TOKENS] = last;
    }
}

static void keep(uint32_t slot) {
    struct holder *h = &holders[slot];
    if (pools.table_len[slot] < pools_pages_for(&pools, h->n) || h->restore != PREFIX_NONE || h->planned == 0)
        return;
    prefix_extend(&cache, &pools, slot, h->ids, h->planned / PAGE_TOKENS, &h->path);
    uint32_t u = prefix_keep(
            &cache, &pools, slot, h->ids, (struct prefix_place){h->planned, below(3) == 0}, &h->path, now);
    if (u != PREFIX_NONE)
        cache.snapshots[u].step = now;
}

static void leave(uint32_t slot) {
    struct holder *h = &holders[slot];
    if (h->restore != PREFIX_NONE)
        prefix_unpin(&cache, &pools, h->restore);
    pools_release(&pools, slot, /* opened= */ true, POOLS_NO_UNIT);
    prefix_leave(&cache, &pools, &h->path);
    pools.n_to_close = 0;
    h->active = false;
}

static void event(void) {
    uint32_t slot = 1 + below(SLOTS), what = below(20);
    struct holder *h = &holders[slot];
    now += below(3) == 0;
    if (!h->active)
        come(slot);
    else if (what < 8)
        open_and_plan(slot);
    else if (what < 14)
        keep(slot);
    else if (what == 19 && below(10) == 0)
        prefix_hide(&cache, &h->path);
    else
        leave(slot);
}

static void run(uint64_t seed, uint32_t units, uint32_t page_units) {
    struct step_geometry g = {.slots = SLOTS,
            .pages = PAGES,
            .pages_per_slot = PER,
            .slot_units = units,
            .page_units = page_units,
            .has_mtp = 0};
    random_state = seed * 0x9e3779b97f4a7c15ull;
    now = 1;
    memset(holders, 0, sizeof(holders));
    assert_int_equal(pools_init(&pools, &g), 0);
    assert_int_equal(prefix_init(&cache, &g, seed), 0);
    for (uint32_t i = 0; i < EVENTS; i++) {
        event();
        audit();
    }
    for (uint32_t slot = 1; slot <= SLOTS; slot++)
        if (holders[slot].active)
            leave(slot);
    audit();
    assert_int_equal(pools_available(&pools), PAGES);
    now++;
    assert_true(make_free(PAGES));
    audit();
    prefix_done(&cache);
    pools_done(&pools);
}

static void test_random(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        run(seed, UNITS_MOST, 0);
        run(seed + 10, 1, 3);
        run(seed + 20, 6, 0);
        run(seed + 30, UNITS_MOST, HOST_MOST);
        run(seed + 40, UNITS_MOST, 9);
    }
    assert_true(n_copied > 1000 && n_brought > 30); /* or nothing is tested */
}

static uint32_t keep_at(uint32_t length, bool passing, const struct prefix_path *path, uint64_t oldest_step) {
    return prefix_keep(
            &cache, &pools, 1, holders[1].ids, (struct prefix_place){length, passing}, path, oldest_step);
}

/* The one that was not used for the longest time goes first, as soon as no step names it. */
static void test_order(void **state) {
    (void)state;
    struct step_geometry g = {.slots = SLOTS, .pages = PAGES, .pages_per_slot = PER, .slot_units = 2};
    assert_int_equal(pools_init(&pools, &g), 0);
    assert_int_equal(prefix_init(&cache, &g, 1), 0);
    uint32_t lengths[] = {64, 130}, units[2], first, n;
    struct prefix_path path;
    const struct prefix_hit none = {.snapshot = PREFIX_NONE};
    struct holder *h = &holders[1];
    *h = (struct holder){.n = 300};
    for (uint32_t i = 0; i < h->n; i++)
        h->ids[i] = i;
    prefix_enter(&cache, &pools, 1, h->salt, &none, &path);
    assert_true(pools_grant(&pools, 1, h->n, &first, &n));
    for (uint32_t i = 0; i < 2; i++) {
        prefix_extend(&cache, &pools, 1, h->ids, lengths[i] / PAGE_TOKENS, &path);
        units[i] = keep_at(lengths[i], false, &path, 1);
        assert_true(units[i] != PREFIX_NONE);
        cache.snapshots[units[i]].step = 1 + i;
        assert_int_equal(keep_at(lengths[i], false, &path, 1), PREFIX_NONE);
    }
    prefix_extend(&cache, &pools, 1, h->ids, 4, &path);
    assert_int_equal(keep_at(299, false, &path, 1), PREFIX_NONE); /* both in flight */
    assert_int_equal(keep_at(299, false, &path, 2), units[0]);
    assert_int_equal(find(h).length, 299);
    h->n = 299;
    assert_int_equal(find(h).length, 130);
    pools_release(&pools, 1, /* opened= */ true, POOLS_NO_UNIT);
    prefix_leave(&cache, &pools, &path);
    assert_int_equal(pools.n_free_pages, PAGES - 5);
    struct prefix_copy copy;
    assert_false(prefix_evict(&cache, &pools, 3, true, &copy)); /* the older one keeps nothing by itself */
    cache.snapshots[units[0]].step = 3;
    assert_true(prefix_evict(&cache, &pools, 4, true, &copy));
    assert_int_equal(pools.n_free_pages, PAGES - 3);
    assert_int_equal(find(h).length, 130);
    assert_true(prefix_evict(&cache, &pools, 4, true, &copy));
    assert_int_equal(pools.n_free_pages, PAGES);
    prefix_done(&cache);
    pools_done(&pools);
}

/* Those that were taken in passing go first, the first of them first, until somebody has used them. */
static void test_passing(void **state) {
    (void)state;
    struct step_geometry g = {.slots = SLOTS, .pages = PAGES, .pages_per_slot = PER, .slot_units = 3};
    assert_int_equal(pools_init(&pools, &g), 0);
    assert_int_equal(prefix_init(&cache, &g, 1), 0);
    const struct prefix_hit none = {.snapshot = PREFIX_NONE};
    struct prefix_path path, other;
    uint32_t units[5], first, n;
    struct holder *h = &holders[1];
    *h = (struct holder){.n = 400};
    for (uint32_t i = 0; i < h->n; i++)
        h->ids[i] = i;
    prefix_enter(&cache, &pools, 1, h->salt, &none, &path);
    assert_true(pools_grant(&pools, 1, h->n, &first, &n));
    for (uint32_t i = 0; i < 5; i++) { /* the first is not in passing; there are three units */
        prefix_extend(&cache, &pools, 1, h->ids, i + 1, &path);
        units[i] = keep_at((i + 1) * PAGE_TOKENS, i > 0, &path, i + 1);
        assert_true(units[i] != PREFIX_NONE);
        cache.snapshots[units[i]].step = i;
        assert_int_equal(keep_at((i + 1) * PAGE_TOKENS, true, &path, i + 1), PREFIX_NONE);
    }
    assert_int_equal(units[3], units[1]);
    assert_int_equal(units[4], units[2]);
    h->n = 64 * 4 + 1;
    struct prefix_hit hit = find(h);
    assert_int_equal(hit.length, 256);
    prefix_enter(&cache, &pools, 2, h->salt, &hit,
            &other); /* it is used: the last one goes before it, and the first */
    prefix_unpin(&cache, &pools, hit.snapshot);
    prefix_extend(&cache, &pools, 1, h->ids, 6, &path);
    assert_int_equal(keep_at(390, false, &path, 9), units[4]);
    cache.snapshots[units[4]].step = 9;
    assert_int_equal(keep_at(391, true, &path, 10), units[0]);
    prefix_done(&cache);
    pools_done(&pools);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_random),
            cmocka_unit_test(test_order),
            cmocka_unit_test(test_passing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
