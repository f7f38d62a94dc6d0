/* prefix.h - the prefix cache's index: which pages hold the rows of which ids, and which host units the state after how
 * many of them. Engine thread only; knows pages, units and ids, and no sequence.
 *
 * A tree: a node is a page and the PAGE_TOKENS ids whose rows are in it, below the node of the page before; a root is a
 * salt, and has no page. A snapshot belongs to the node of the last full page that it covers; it keeps the ids after
 * that, and the page where their rows are. The model's recurrent state cannot be made from pages, so a prefix can be
 * gone on from only where there is a snapshot: the longest snapshot whose ids, all the way, are those of the request.
 * Ids are compared; a hash only finds what to compare.
 *
 * A sequence has a path: the nodes of its own first pages, each referred to until it leaves. Two may have computed the
 * same ids at the same time: then the node has the page of one of them, and the other's is its own until it ends.
 * A node without references, children and snapshots is of no use and is gone at once. So what is kept is what snapshots
 * keep, and pages come back by giving up the snapshots that were not used for the longest time. Before all others go
 * those that were taken in passing, as long as nobody has used them: one long prompt has many, and takes no other
 * sequence's place with them but the first one's. Nothing here allocates after prefix_init(). */
#pragma once

#include "daemon/engine/pools.h"

#define PREFIX_NONE      UINT32_MAX /* no snapshot */
#define PREFIX_UNITS_MAX 65536u     /* units of the workers that are used */

struct prefix_node {
    uint64_t hash;
    uint32_t parent, page; /* a root has neither */
    uint32_t next;         /* in its bucket, or of the free ones */
    uint32_t refs, n_children;
    uint32_t snapshots; /* the first; PREFIX_NONE */
    bool hidden;        /* is not found any more */
    uint32_t ids[PAGE_TOKENS];
};

struct prefix_snapshot { /* its index is its host unit */
    uint32_t node, length;
    uint32_t page;           /* of the ids after the last full page; 0 = there are none */
    uint32_t sibling;        /* the next of its node; of the free ones */
    uint32_t older, younger; /* by last use */
    uint32_t pins;           /* sequences that are going to be restored from it */
    bool passing;            /* taken on the way, and not used yet */
    uint64_t step;           /* the last that names it; UINT64_MAX = one that is not planned yet */
    uint32_t ids[PAGE_TOKENS];
};

struct prefix {
    struct prefix_node *nodes;         /* [n_nodes + 1]; 0 = none */
    struct prefix_snapshot *snapshots; /* [n_units] */
    uint32_t *buckets;                 /* [mask + 1] nodes */
    uint32_t n_nodes, n_units, mask, free_node, free_unit, oldest, youngest;
    uint32_t last_passing; /* the youngest of those */
    uint32_t n_touched;    /* nodes; those after them were never used, and their memory neither */
    uint32_t n_kept;       /* snapshots */
    uint64_t seed, evictions;
    uint64_t changes; /* of what can be found; goes on counting over prefix_init() and prefix_done() */
};

struct prefix_path { /* of a sequence; node 0: it has none */
    uint32_t node, n_pages;
};

struct prefix_hit {
    uint32_t snapshot; /* PREFIX_NONE = nothing to go on from */
    uint32_t length;   /* rows that need not be computed */
    uint32_t n_pages;  /* whole ones of them */
    uint32_t matched;  /* rows whose pages are there, in whole pages, with a snapshot or without */
};

/* -ENOMEM. seed: of the hash. */
int prefix_init(struct prefix *x, const struct step_geometry *g, uint64_t seed);
void prefix_done(struct prefix *x);

/* What there is for ids[0..n), of which at most `most` rows may come from the cache. salt: [PAGE_TOKENS]. */
struct prefix_hit prefix_find(
        const struct prefix *x, const uint32_t *salt, const uint32_t *ids, uint32_t n, uint32_t most);
/* Pages of a hit that nobody uses now, its copied one as well. */
uint32_t prefix_idle_pages(const struct prefix *x, const struct pools *p, const struct prefix_hit *hit);
/* Begins the path of a sequence whose slot has no pages yet: what the hit has is put into its table, and the snapshot
 * and the page to copy are pinned until prefix_unpin(). */
void prefix_enter(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *salt,
        const struct prefix_hit *hit, struct prefix_path *ret);
void prefix_unpin(struct prefix *x, struct pools *p, uint32_t snapshot);
/* Makes the path n_pages long: the slot's pages up to there are planned to hold the rows of ids. */
void prefix_extend(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *ids, uint32_t n_pages,
        struct prefix_path *path);
struct prefix_place {
    uint32_t length; /* rows */
    bool passing;    /* nobody is known to go on from there */
};
/* A host unit for the state after so many rows, of which the path has the full pages; PREFIX_NONE: there is one
 * already, or none that could be given up. oldest_step: the first that is in flight. The caller sets snapshot.step. */
uint32_t prefix_keep(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *ids,
        struct prefix_place at, const struct prefix_path *path, uint64_t oldest_step);
void prefix_leave(struct prefix *x, struct pools *p, struct prefix_path *path);
/* The path's pages may be damaged: nobody finds them from now on. */
void prefix_hide(struct prefix *x, const struct prefix_path *path);

/* Gives a snapshot up whose pages nobody uses, the one that was not used for the longest time; false: there is none
 * that no step in flight names. */
bool prefix_evict(struct prefix *x, struct pools *p, uint64_t oldest_step);
/* Where the path's nodes have pages that nobody uses, the slot's own take their place. Whether there were any. */
bool prefix_settle(struct prefix *x, struct pools *p, uint32_t slot, const struct prefix_path *path);
