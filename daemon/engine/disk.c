/* disk.c - see disk.h. */
#include "daemon/engine/disk.h"

#include "base/sha256.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DISK_NONE    UINT32_MAX
#define LOOK_AT_ONCE 64u
#define LEAST_GAIN   PAGE_TOKENS /* rows that reading has to save */
#define LOAD_MOST_NS 5000000000u /* for which a sequence waits; a disk may take longer, or hang */

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint64_t oldest_step(const struct engine *g) {
    return g->n_flights > 0 ? g->flights[g->flight_first].step : g->step_next;
}

/* --- keys --- */

static struct disk_key key_of(struct disk_key before, const uint32_t *ids, uint32_t n, uint32_t what) {
    uint32_t hash[8];
    struct {
        struct disk_key before;
        uint32_t what, n, ids[PAGE_TOKENS];
    } text = {.before = before, .what = what, .n = n};
    memcpy(text.ids, ids, n * sizeof(ids[0]));
    sha256_words(&text, sizeof(text), hash);
    return (struct disk_key){{hash[0] | (uint64_t)hash[1] << 32, hash[2] | (uint64_t)hash[3] << 32}};
}

#define KEY_OF_ROOT 2u
#define KEY_OF_TAIL 3u /* a page that is not full */

static bool same(struct disk_key a, struct disk_key b) {
    return a.words[0] == b.words[0] && a.words[1] == b.words[1];
}

/* --- places --- */

static uint32_t *bucket_of(struct disk_places *d, struct disk_key by) {
    return &d->buckets[by.words[0] & d->mask];
}

/* Pages are found by their key, states by that of their last full page. */
static struct disk_key found_by(const struct disk_place *at, uint32_t what) {
    return what == STEP_STORED_STATE ? at->base : at->key;
}

static void unlink_use(struct disk_places *d, uint32_t i) {
    struct disk_place *at = &d->all[i];
    *(at->older == DISK_NONE ? &d->oldest : &d->all[at->older].younger) = at->younger;
    *(at->younger == DISK_NONE ? &d->youngest : &d->all[at->younger].older) = at->older;
}

static void link_use(struct disk_places *d, uint32_t i, bool youngest) {
    struct disk_place *at = &d->all[i];
    at->older = youngest ? d->youngest : DISK_NONE;
    at->younger = youngest ? DISK_NONE : d->oldest;
    *(at->older == DISK_NONE ? &d->oldest : &d->all[at->older].younger) = i;
    *(at->younger == DISK_NONE ? &d->youngest : &d->all[at->younger].older) = i;
}

static void touch(struct disk_places *d, uint32_t i) {
    unlink_use(d, i);
    link_use(d, i, /* youngest= */ true);
}

static void enter(struct disk_places *d, uint32_t what, uint32_t i, const struct disk_place *is) {
    struct disk_place *at = &d->all[i];
    at->key = is->key;
    at->base = is->base;
    at->length = is->length;
    at->used = true;
    uint32_t *bucket = bucket_of(d, found_by(at, what));
    at->next = *bucket;
    *bucket = i;
    d->n_used++;
    touch(d, i);
}

static void leave(struct disk_places *d, uint32_t what, uint32_t i) {
    struct disk_place *at = &d->all[i];
    if (!at->used)
        return;
    uint32_t *in = bucket_of(d, found_by(at, what));
    while (*in != i)
        in = &d->all[*in].next;
    *in = at->next;
    at->used = false;
    d->n_used--;
    unlink_use(d, i);
    link_use(d, i, /* youngest= */ false);
}

/* The place that was not used for the longest time, for something else. */
static uint32_t take_place(struct disk_places *d, uint32_t what, const struct disk_place *is) {
    uint32_t i = d->oldest;
    while (i != DISK_NONE && d->all[i].n_busy > 0)
        i = d->all[i].younger;
    if (i == DISK_NONE)
        return i;
    leave(d, what, i);
    enter(d, what, i, is);
    return i;
}

static uint32_t find_page(struct disk_places *d, struct disk_key key) {
    uint32_t i = d->n > 0 ? *bucket_of(d, key) : DISK_NONE;
    while (i != DISK_NONE && !same(d->all[i].key, key))
        i = d->all[i].next;
    return i;
}

static uint32_t find_state(struct disk_places *d, struct disk_key base, struct disk_key key) {
    uint32_t i = d->n > 0 ? *bucket_of(d, base) : DISK_NONE;
    while (i != DISK_NONE && !same(d->all[i].key, key))
        i = d->all[i].next;
    return i;
}

static int begin_places(struct disk_places *d, uint32_t n) {
    *d = (struct disk_places){.n = n, .oldest = DISK_NONE, .youngest = DISK_NONE};
    for (d->mask = 1; d->mask < n; d->mask = 2 * d->mask + 1)
        ;
    d->all = calloc((size_t)n + 1, sizeof(d->all[0]));
    d->buckets = malloc(((size_t)d->mask + 1) * sizeof(d->buckets[0]));
    if (d->all == NULL || d->buckets == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i <= d->mask; i++)
        d->buckets[i] = DISK_NONE;
    for (uint32_t i = n; i > 0; i--)
        link_use(d, i - 1, /* youngest= */ false);
    return 0;
}

int disk_begin(struct engine *g) {
    struct disk *d = &g->disk;
    const struct step_geometry *m = &g->geometry;
    disk_end(g);
    if (g->prefix.n_page_units == 0 || m->stored[STEP_STORED_PAGE] == 0 || m->stored[STEP_STORED_STATE] == 0)
        return 0;
    int r = 0;
    for (uint32_t k = 0; k < STEP_STORED_KINDS && r == 0; k++)
        r = begin_places(&d->places[k], m->stored[k]);
    d->load.ids = calloc(m->max_model_len, sizeof(d->load.ids[0]));
    d->load.keys = calloc(STEP_SLOT_PAGES_MAX + 1, sizeof(d->load.keys[0]));
    d->load.nodes = calloc(STEP_SLOT_PAGES_MAX + 2, sizeof(d->load.nodes[0]));
    d->save.keys = calloc(STEP_SLOT_PAGES_MAX + 1, sizeof(d->save.keys[0]));
    d->save.nodes = calloc(STEP_SLOT_PAGES_MAX + 2, sizeof(d->save.nodes[0]));
    if (r < 0 || d->load.ids == NULL || d->load.keys == NULL || d->load.nodes == NULL ||
            d->save.keys == NULL || d->save.nodes == NULL) {
        disk_end(g);
        return -ENOMEM;
    }
    d->on = true;
    d->learn_left = (m->stored[0] + m->stored[1] + STEP_INDEX_RECORDS - 1) / STEP_INDEX_RECORDS;
    return 0;
}

void disk_end(struct engine *g) {
    struct disk *d = &g->disk;
    for (uint32_t k = 0; k < STEP_STORED_KINDS; k++) {
        free(d->places[k].all);
        free(d->places[k].buckets);
    }
    free(d->load.ids);
    free(d->load.keys);
    free(d->load.nodes);
    free(d->save.keys);
    free(d->save.nodes);
    *d = (struct disk){0};
}

/* --- what the ranks have --- */

bool disk_is_learning(const struct engine *g) {
    return g->disk.on && g->disk.learn_left > 0;
}

static bool has(const struct step_completion *c, const void *body, const struct step_record *r) {
    const struct step_record *all = body;
    uint32_t low = 0, high = c->n_outcomes;
    while (low < high) { /* they come in the order of their places */
        uint32_t at = low + (high - low) / 2;
        bool before = all[at].what < r->what || (all[at].what == r->what && all[at].place < r->place);
        if (before)
            low = at + 1;
        else
            high = at;
    }
    return low < c->n_outcomes && memcmp(&all[low], r, sizeof(*r)) == 0;
}

void disk_learn(struct engine *g, const struct step_completion **answers, const void **bodies) {
    struct disk *d = &g->disk;
    const struct step_record *all = bodies[0];
    d->learn_left -= d->learn_left > 0;
    for (uint32_t i = 0; d->on && i < answers[0]->n_outcomes; i++) {
        const struct step_record *r = &all[i];
        bool everywhere = r->what < STEP_STORED_KINDS && r->place < d->places[r->what].n;
        for (uint32_t k = 1; everywhere && k < g->n_ranks; k++)
            everywhere = has(answers[k], bodies[k], r);
        struct disk_place is = {
                .key = {{r->key[0], r->key[1]}}, .base = {{r->base[0], r->base[1]}}, .length = r->length};
        if (everywhere && !d->places[r->what].all[r->place].used)
            enter(&d->places[r->what], r->what, r->place, &is);
    }
}

/* --- copies --- */

static uint32_t on_their_way(const struct disk *d) {
    return (uint32_t)(d->n_sent - d->n_done);
}

static void send(struct engine *g, const struct disk_copy *c, uint32_t unit) {
    struct disk *d = &g->disk;
    assert(on_their_way(d) < STEP_STORE_MAX);
    struct disk_place *at = &d->places[c->what].all[c->place];
    at->n_busy++;
    step_add_store(g->writer, &(struct step_store){.kind = c->reads ? STEP_STORE_READ : STEP_STORE_WRITE,
                                      .unit = unit,
                                      .record = {.what = c->what,
                                              .place = c->place,
                                              .length = at->length,
                                              .key = {at->key.words[0], at->key.words[1]},
                                              .base = {at->base.words[0], at->base.words[1]}}});
    d->copies[d->n_sent++ % STEP_STORE_MAX] = *c;
    d->n_planned++;
}

static void end_copy(struct engine *g, const struct disk_copy *c, bool failed) {
    struct disk *d = &g->disk;
    d->places[c->what].all[c->place].n_busy--;
    if (failed)
        leave(&d->places[c->what], c->what, c->place);
    g->now.disk_failures_total += failed;
    if (c->reads) {
        d->load.n_pending--;
        d->load.failed |= failed;
    }
    if (c->what == STEP_STORED_PAGE)
        prefix_not_busy(&g->prefix, &g->pools, c->node);
    else if (!c->reads)
        prefix_unpin(&g->prefix, &g->pools, c->node);
    if (!c->reads && failed)
        d->off_until_ns = g->turn_ns + DISK_PAUSE_NS;
    if (!failed)
        *(c->reads ? &g->now.disk_reads_total : &g->now.disk_writes_total) += 1;
}

void disk_answered(struct engine *g, const struct step_completion **answers) {
    struct disk *d = &g->disk;
    if (!d->on)
        return;
    uint64_t done = UINT64_MAX;
    for (uint32_t i = 0; i < g->n_ranks; i++)
        done = answers[i]->stored < done ? answers[i]->stored : done;
    for (; d->n_done < done && d->n_done < d->n_sent; d->n_done++) {
        bool failed = false;
        for (uint32_t i = 0; i < g->n_ranks; i++) {
            uint64_t behind = answers[i]->stored - 1 - d->n_done;
            failed |= behind >= 64 || (answers[i]->store_failed >> behind & 1) != 0;
        }
        const struct disk_copy c = d->copies[d->n_done % STEP_STORE_MAX];
        end_copy(g, &c, failed);
    }
}

/* The pages were used, the first of them last: the ones that nothing is without the others of are the oldest. */
static void touch_pages(struct engine *g, const struct disk_key *keys, uint32_t n) {
    struct disk_places *pages = &g->disk.places[STEP_STORED_PAGE];
    for (uint32_t i = n; i > 0; i--) {
        uint32_t place = find_page(pages, keys[i]);
        if (place != DISK_NONE)
            touch(pages, place);
    }
}

/* --- reading --- */

struct found { /* on the disk */
    uint32_t state, length, n_pages;
};

/* The key of the salt, and of every full page as far as these are there; returns how many pages that are. */
static uint32_t walk(
        struct engine *g, const struct sequence *s, const uint32_t *salt, uint32_t most, struct found *ret) {
    struct disk *d = &g->disk;
    struct disk_key *keys = d->load.keys;
    uint32_t node = prefix_child(&g->prefix, 0, salt), n = 0;
    keys[0] = key_of((struct disk_key){{0, 0}}, salt, PAGE_TOKENS, KEY_OF_ROOT);
    for (;;) {
        const uint32_t *ids = s->tokens + (size_t)n * PAGE_TOKENS;
        struct disk_places *states = &d->places[STEP_STORED_STATE];
        for (uint32_t i = *bucket_of(states, keys[n]); i != DISK_NONE; i = states->all[i].next) {
            const struct disk_place *at = &states->all[i];
            uint32_t n_tail = at->length - n * PAGE_TOKENS;
            if (!same(at->base, keys[n]) || at->n_busy > 0 || at->length <= ret->length ||
                    at->length > most || n_tail >= PAGE_TOKENS ||
                    !same(at->key, key_of(keys[n], ids, n_tail, STEP_STORED_STATE)) ||
                    (n_tail > 0 && find_page(&d->places[STEP_STORED_PAGE],
                                           key_of(keys[n], ids, n_tail, KEY_OF_TAIL)) == DISK_NONE))
                continue;
            *ret = (struct found){i, at->length, n};
        }
        if ((n + 1) * PAGE_TOKENS > most)
            return n;
        node = node == 0 ? 0 : prefix_child(&g->prefix, node, ids);
        keys[n + 1] = key_of(keys[n], ids, PAGE_TOKENS, STEP_STORED_PAGE);
        uint32_t page = find_page(&d->places[STEP_STORED_PAGE], keys[n + 1]);
        if (node == 0 && (page == DISK_NONE || d->places[STEP_STORED_PAGE].all[page].n_busy > 0))
            return n;
        n++;
    }
}

/* Each page that is read needs a unit, and keeps it until the state is there; some are those that are being written. */
static uint32_t pages_at_once(const struct engine *g) {
    uint32_t n = g->prefix.n_page_units;
    return n > 2 * DISK_SAVED_AT_ONCE ? n - DISK_SAVED_AT_ONCE : n / 2;
}

bool disk_is_coming(
        struct engine *g, const struct sequence *s, const uint32_t *salt, const struct prefix_hit *hit) {
    struct disk *d = &g->disk;
    struct disk_load *l = &d->load;
    if (!d->on || s->suspect)
        return false;
    if (l->active)
        return l->sequence == s->number && g->turn_ns - l->began_ns < LOAD_MOST_NS;
    if (d->looked_for == s->number)
        return false;
    struct found f = {.state = DISK_NONE, .length = hit->length + LEAST_GAIN - 1};
    d->looked_for = s->number; /* once: what fails is computed */
    uint32_t most = least(s->n_prompt, s->n_tokens - 1);
    most = least(most, pages_at_once(g) * PAGE_TOKENS);
    walk(g, s, salt, most, &f);
    if (f.state == DISK_NONE)
        return false;
    memcpy(l->ids, s->tokens, f.length * sizeof(l->ids[0]));
    l->active = true;
    l->failed = false;
    l->stuck = false;
    l->began_ns = g->turn_ns;
    l->sequence = s->number;
    l->state = f.state;
    l->length = f.length;
    l->n_pages = f.n_pages;
    l->n_nodes = l->n_pending = 0;
    l->unit = PREFIX_NONE;
    l->state_asked = false;
    d->places[STEP_STORED_STATE].all[f.state].n_busy++; /* it stays what it is until it is read */
    l->nodes[l->n_nodes++] = prefix_take_root(&g->prefix, &g->pools, salt);
    return true;
}

/* The next node of what is read: one that is there, or one whose rows come into a unit. False: not now. */
static bool load_node(struct engine *g, struct disk_load *l) {
    struct disk *d = &g->disk;
    uint32_t i = l->n_nodes - 1, parent = l->nodes[i];
    bool tail = i == l->n_pages;
    uint32_t n_ids = tail ? l->length - i * PAGE_TOKENS : PAGE_TOKENS;
    const uint32_t *ids = l->ids + (size_t)i * PAGE_TOKENS;
    uint32_t node = tail ? 0 : prefix_child(&g->prefix, parent, ids);
    if (node != 0) {
        l->nodes[l->n_nodes++] = prefix_take_child(&g->prefix, node);
        return true;
    }
    struct disk_key key = tail ? key_of(l->keys[i], ids, n_ids, KEY_OF_TAIL) : l->keys[i + 1];
    uint32_t place = find_page(&d->places[STEP_STORED_PAGE], key);
    if (place == DISK_NONE || d->places[STEP_STORED_PAGE].all[place].n_busy > 0) {
        l->failed = true;
        return false;
    }
    uint32_t unit = on_their_way(d) < STEP_STORE_MAX
                            ? prefix_take_page_unit(&g->prefix, &g->pools, oldest_step(g))
                            : PREFIX_NONE;
    if (unit == PREFIX_NONE)
        return false;
    node = prefix_take_new(&g->prefix, &g->pools, parent, ids, n_ids, unit);
    l->nodes[l->n_nodes++] = node;
    l->n_pending++;
    touch(&d->places[STEP_STORED_PAGE], place);
    send(g, &(struct disk_copy){.reads = true, .what = STEP_STORED_PAGE, .place = place, .node = node}, unit);
    return true;
}

static bool load_state(struct engine *g, struct disk_load *l) {
    struct disk *d = &g->disk;
    if (on_their_way(d) == STEP_STORE_MAX)
        return false;
    l->unit = prefix_take_state_unit(&g->prefix, &g->pools, oldest_step(g));
    if (l->unit == PREFIX_NONE)
        return false;
    l->n_pending++;
    l->state_asked = true;
    touch(&d->places[STEP_STORED_STATE], l->state);
    send(g, &(struct disk_copy){.reads = true, .what = STEP_STORED_STATE, .place = l->state}, l->unit);
    return true;
}

/* Everything has been read, or something cannot be. */
static void end_load(struct engine *g, struct disk_load *l) {
    struct prefix *x = &g->prefix;
    uint32_t n_tail = l->length - l->n_pages * PAGE_TOKENS, node = l->nodes[l->n_nodes - 1];
    uint32_t tail = n_tail > 0 ? node : 0, last = tail != 0 ? l->nodes[l->n_nodes - 2] : node;
    bool whole =
            !l->failed && l->state_asked &&
            prefix_snapshot_of(x, last, l->ids + (size_t)l->n_pages * PAGE_TOKENS, l->length) == PREFIX_NONE;
    g->disk.places[STEP_STORED_STATE].all[l->state].n_busy--;
    touch_pages(g, l->keys, l->n_pages);
    if (whole)
        prefix_make_snapshot(x, l->unit, last, tail, l->length);
    else if (l->state_asked)
        prefix_give_state_unit(x, l->unit);
    g->now.disk_hits_total += whole;
    for (uint32_t i = l->n_nodes; i > 0; i--)
        prefix_drop(x, &g->pools, l->nodes[i - 1]);
    l->active = false;
}

static void go_on_reading(struct engine *g) {
    struct disk_load *l = &g->disk.load;
    uint32_t n_before = l->n_nodes, n_nodes = 1 + l->n_pages + (l->length > l->n_pages * PAGE_TOKENS);
    bool more = l->active;
    while (more && !l->failed && l->n_nodes < n_nodes)
        more = load_node(g, l);
    if (more && !l->failed && !l->state_asked)
        more = load_state(g, l);
    if (!l->active)
        return;
    if (l->n_pending > 0 || l->n_nodes > n_before || on_their_way(&g->disk) > 0) {
        l->stuck = false;
    } else if (
            !l->stuck) { /* there are no units: steps that are in flight may name some that are free then */
        l->stuck = true;
        l->stuck_step = g->step_next;
    }
    if (l->n_pending == 0 && (l->failed || (l->n_nodes == n_nodes && l->state_asked) ||
                                     (l->stuck && (g->n_flights == 0 || oldest_step(g) >= l->stuck_step))))
        end_load(g, l);
}

/* --- writing --- */

/* Whether anything that a snapshot follows is distrusted. */
static bool is_hidden(const struct prefix *x, const struct prefix_snapshot *s) {
    uint32_t node = s->node;
    while (node != 0 && !x->nodes[node].hidden)
        node = x->nodes[node].parent;
    return node != 0;
}

static bool is_alive(const struct engine *g, const struct disk_save *v) {
    const struct prefix_snapshot *s = &g->prefix.snapshots[v->snapshot];
    return s->number == v->number && !is_hidden(&g->prefix, s);
}

/* The snapshot's nodes and their keys, from the root. */
static void begin_save(struct engine *g, uint32_t u) {
    struct disk_save *v = &g->disk.save;
    const struct prefix *x = &g->prefix;
    const struct prefix_snapshot *s = &x->snapshots[u];
    uint32_t n = s->length / PAGE_TOKENS;
    *v = (struct disk_save){.active = true,
            .snapshot = u,
            .number = s->number,
            .length = s->length,
            .n_pages = n,
            .keys = v->keys,
            .nodes = v->nodes};
    uint32_t node = s->node;
    for (uint32_t i = n; i > 0; i--, node = x->nodes[node].parent)
        v->nodes[i - 1] = node;
    v->keys[0] = key_of((struct disk_key){{0, 0}}, x->nodes[node].ids, PAGE_TOKENS, KEY_OF_ROOT);
    for (uint32_t i = 0; i < n; i++)
        v->keys[i + 1] = key_of(v->keys[i], x->nodes[v->nodes[i]].ids, PAGE_TOKENS, STEP_STORED_PAGE);
    if (s->tail != 0)
        v->nodes[n] = s->tail;
    v->n_nodes = n + (s->tail != 0);
}

/* The next snapshot that is kept and not on the disk; those taken in passing are not worth it yet. */
static void choose(struct engine *g) {
    struct disk *d = &g->disk;
    struct prefix *x = &g->prefix;
    if (d->numbers != x->numbers)
        d->n_missed = 0;
    d->numbers = x->numbers;
    for (uint32_t i = 0; i < LOOK_AT_ONCE && d->n_missed < x->n_units && !d->save.active; i++) {
        struct prefix_snapshot *s = &x->snapshots[d->cursor];
        bool wanted = s->number > 0 && !s->saved && !s->passing && !is_hidden(x, s);
        d->n_missed = wanted ? 0 : d->n_missed + 1;
        if (wanted && s->step < oldest_step(g)) {
            s->saved = true;
            begin_save(g, d->cursor);
        }
        d->cursor = (d->cursor + 1) % x->n_units;
    }
}

static struct disk_key key_of_node(const struct engine *g, const struct disk_save *v, uint32_t i) {
    if (i < v->n_pages)
        return v->keys[i + 1];
    uint32_t n_tail = v->length - v->n_pages * PAGE_TOKENS;
    return key_of(v->keys[i], g->prefix.nodes[v->nodes[i]].ids, n_tail, KEY_OF_TAIL);
}

/* Has the rows of the next nodes in units, where they are on the device only. The snapshot that is saved is not what
 * makes room for that. */
static void copy_out(struct engine *g, struct disk_save *v) {
    struct disk_places *pages = &g->disk.places[STEP_STORED_PAGE];
    g->prefix.snapshots[v->snapshot].pins++;
    for (v->n_out = 0; v->at + v->n_out < v->n_nodes && v->n_out < DISK_SAVED_AT_ONCE; v->n_out++) {
        uint32_t node = v->nodes[v->at + v->n_out];
        uint32_t place = find_page(pages, key_of_node(g, v, v->at + v->n_out));
        v->out[v->n_out] = false;
        if (place != DISK_NONE) {
            touch(pages, place);
            continue;
        }
        if (g->prefix.nodes[node].reading)
            break;
        if (g->prefix.nodes[node].unit != PREFIX_NONE) {
            prefix_busy(&g->prefix, node);
        } else {
            uint32_t unit = prefix_copy_out(&g->prefix, &g->pools, node, oldest_step(g));
            if (unit == PREFIX_NONE)
                break;
            step_add_memory(g->writer, STEP_MEMORY_PAGE_OUT, g->prefix.nodes[node].page, unit);
            g->disk.n_planned++;
        }
        v->out[v->n_out] = true;
    }
    v->step = g->step_next;
    g->prefix.snapshots[v->snapshot].pins--;
}

/* What was copied out is written. */
static void write_out(struct engine *g, struct disk_save *v) {
    struct disk *d = &g->disk;
    for (uint32_t i = 0; i < v->n_out; i++) {
        uint32_t node = v->nodes[v->at + i], place = DISK_NONE;
        if (!v->out[i])
            continue;
        struct disk_key key = key_of_node(g, v, v->at + i);
        if (find_page(&d->places[STEP_STORED_PAGE], key) == DISK_NONE)
            place = take_place(
                    &d->places[STEP_STORED_PAGE], STEP_STORED_PAGE, &(struct disk_place){.key = key});
        if (place == DISK_NONE)
            prefix_not_busy(&g->prefix, &g->pools, node);
        else
            send(g, &(struct disk_copy){.what = STEP_STORED_PAGE, .place = place, .node = node},
                    g->prefix.nodes[node].unit);
    }
    v->at += v->n_out;
    v->n_out = 0;
}

static void write_state(struct engine *g, struct disk_save *v) {
    struct disk *d = &g->disk;
    const struct prefix *x = &g->prefix;
    struct prefix_snapshot *s = &g->prefix.snapshots[v->snapshot];
    struct disk_key base = v->keys[v->n_pages];
    uint32_t n_tail = v->length - v->n_pages * PAGE_TOKENS;
    struct disk_key key = key_of(base, x->nodes[s->tail].ids, n_tail, STEP_STORED_STATE);
    uint32_t place = find_state(&d->places[STEP_STORED_STATE], base, key);
    v->active = false;
    touch_pages(g, v->keys, v->n_pages);
    if (place != DISK_NONE) {
        touch(&d->places[STEP_STORED_STATE], place);
        return;
    }
    place = take_place(&d->places[STEP_STORED_STATE], STEP_STORED_STATE,
            &(struct disk_place){.key = key, .base = base, .length = v->length});
    if (place == DISK_NONE)
        return;
    prefix_pin(&g->prefix, &g->pools, v->snapshot);
    send(g, &(struct disk_copy){.what = STEP_STORED_STATE, .place = place, .node = v->snapshot}, v->snapshot);
}

/* Those that were copied out of a snapshot that is gone. */
static void give_up_save(struct engine *g, struct disk_save *v) {
    for (uint32_t i = 0; i < v->n_out; i++)
        if (v->out[i])
            prefix_not_busy(&g->prefix, &g->pools, v->nodes[v->at + i]);
    v->n_out = 0;
    v->active = false;
}

static void go_on_writing(struct engine *g) {
    struct disk *d = &g->disk;
    struct disk_save *v = &d->save;
    if (g->turn_ns < d->off_until_ns)
        return;
    if (!v->active)
        choose(g);
    if (!v->active)
        return;
    if (!is_alive(g, v)) {
        give_up_save(g, v);
        return;
    }
    if (v->n_out > 0 && v->step < oldest_step(g) && on_their_way(d) + DISK_SAVED_AT_ONCE < STEP_STORE_MAX)
        write_out(g, v);
    if (v->n_out == 0 && v->at < v->n_nodes)
        copy_out(g, v);
    if (v->n_out == 0 && v->at == v->n_nodes && on_their_way(d) + DISK_SAVED_AT_ONCE < STEP_STORE_MAX)
        write_state(g, v);
}

bool disk_plan(struct engine *g) {
    struct disk *d = &g->disk;
    d->n_planned = 0;
    if (!d->on)
        return false;
    go_on_reading(g);
    if (!d->load.active) /* who waits comes first */
        go_on_writing(g);
    return d->n_planned > 0;
}

void disk_distrust(struct engine *g, uint32_t node) {
    struct disk *d = &g->disk;
    const struct prefix *x = &g->prefix;
    uint32_t n = 0;
    for (uint32_t i = node; i != 0; i = x->nodes[i].parent)
        n++;
    uint32_t *nodes = d->on && n > 0 ? malloc(n * sizeof(nodes[0])) : NULL;
    if (nodes == NULL)
        return;
    for (uint32_t i = n; i > 0; i--, node = x->nodes[node].parent)
        nodes[i - 1] = node;
    struct disk_key key = key_of((struct disk_key){{0, 0}}, x->nodes[nodes[0]].ids, PAGE_TOKENS, KEY_OF_ROOT);
    for (uint32_t i = 1; i < n; i++) {
        struct disk_places *pages = &d->places[STEP_STORED_PAGE], *states = &d->places[STEP_STORED_STATE];
        key = key_of(key, x->nodes[nodes[i]].ids, PAGE_TOKENS, STEP_STORED_PAGE);
        uint32_t at = find_page(pages, key), next;
        if (at != DISK_NONE && pages->all[at].n_busy == 0)
            leave(pages, STEP_STORED_PAGE, at);
        for (at = states->n > 0 ? *bucket_of(states, key) : DISK_NONE; at != DISK_NONE; at = next) {
            next = states->all[at].next;
            if (same(states->all[at].base, key) && states->all[at].n_busy == 0)
                leave(states, STEP_STORED_STATE, at);
        }
    }
    free(nodes);
}

bool disk_has_work(const struct engine *g) {
    const struct disk *d = &g->disk;
    bool writes = g->turn_ns >= d->off_until_ns &&
                  (d->save.active || d->n_missed < g->prefix.n_units || d->numbers != g->prefix.numbers);
    return d->on && (d->load.active || (writes && g->prefix.n_kept > 0));
}

bool disk_waits(const struct engine *g) {
    return g->disk.on && on_their_way(&g->disk) > 0;
}
