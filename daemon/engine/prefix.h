/* prefix.h - the prefix cache's index: where the rows of which ids are, and which host units have the state after how
 * many of them. Engine thread only; knows pages, units and ids, and no sequence.
 *
 * A tree: a node has PAGE_TOKENS ids whose rows are in a page of the device or in a page unit of the host, below the
 * node of the ids before; a root is a salt, and has no rows. A snapshot belongs to the node of the last full page that
 * it covers; the ids after that are in a node of its own, its tail. The model's recurrent state cannot be made from
 * pages, so a prefix can be gone on from only where there is a snapshot: the longest snapshot whose ids, all the way,
 * are those of the request. Ids are compared; a hash only finds what to compare.
 *
 * A sequence has a path: the nodes of its own first pages, each referred to until it leaves; these are on the device.
 * Two may have computed the same ids at the same time: then the node has the page of one of them, and the other's is
 * its own until it ends. A node without references, children and snapshots is of no use and is gone at once.
 *
 * A page comes back by moving the rows that were not used for the longest time to the host, and those of the host that
 * were not used for the longest time are lost, with the snapshots that need them. Either is done to nodes only that
 * have none below them there: what is on the device is always a beginning, and so is what is on device or host. States
 * of the host make room for each other likewise; before all others go those that were taken in passing, as long as
 * nobody has used them: one long prompt has many, and takes no other sequence's place with them but the first one's.
 * Nothing here allocates after prefix_init(). */
#pragma once

#include "daemon/engine/pools.h"

#define PREFIX_NONE      UINT32_MAX  /* no snapshot, no unit */
#define PREFIX_UNITS_MAX 65536u      /* units of the workers that are used */
#define PREFIX_PAGES_MAX (1u << 20u) /* page units that are used */

enum prefix_tier {
    PREFIX_DEVICE,
    PREFIX_HOST, /* counts what is on the device, too, where a node's children are asked for */
    PREFIX_TIERS,
};

struct prefix_node {
    uint64_t hash;
    uint32_t parent;
    /* Where its rows are; 0, PREFIX_NONE: not there. A root has neither, any other node one; both while it is busy. */
    uint32_t page, unit;
    uint32_t next; /* in its bucket, or of the free ones */
    uint32_t refs, n_children;
    uint32_t n_below[PREFIX_TIERS]; /* children with rows there */
    uint32_t n_busy;                /* copies between its unit and a disk: both stay until they are done */
    uint32_t snapshots;             /* the first, or the one whose tail it is; PREFIX_NONE */
    /* In the list of those that may leave the tier: rows there, no reference and nothing below. */
    uint32_t older[PREFIX_TIERS], younger[PREFIX_TIERS];
    uint64_t used; /* when it was used last, counted in uses */
    bool listed[PREFIX_TIERS];
    bool reading; /* busy: nothing is in its unit yet */
    bool found;   /* in a bucket; a tail is found by its snapshot only */
    bool hidden;  /* is not found any more */
    uint32_t ids[PAGE_TOKENS];
};

struct prefix_snapshot { /* its index is its host unit */
    uint32_t node, length;
    uint32_t tail;           /* the node of the ids after the last full page; 0 = there are none */
    uint32_t sibling;        /* the next of its node; of the free ones */
    uint32_t older, younger; /* by last use */
    uint32_t pins;           /* sequences that are going to be restored from it */
    bool passing;            /* taken on the way, and not used yet */
    uint64_t step;           /* the last that names it; UINT64_MAX = one that is not planned yet */
    uint64_t number;         /* counts all that were taken */
    bool saved;              /* on a disk, or not to be */
};

struct prefix {
    struct prefix_node *nodes;         /* [n_nodes + 1]; 0 = none */
    struct prefix_snapshot *snapshots; /* [n_units] */
    uint32_t *buckets;                 /* [mask + 1] nodes */
    uint32_t *free_page_units, n_free_page_units, n_page_units;
    uint32_t n_nodes, n_units, mask, free_node, free_unit, oldest, youngest;
    uint32_t last_passing; /* the youngest of those */
    struct prefix_list {
        uint32_t oldest, youngest; /* nodes; 0 = none */
    } lists[PREFIX_TIERS];
    uint32_t n_touched; /* nodes; those after them were never used, and their memory neither */
    uint32_t n_kept;    /* snapshots */
    uint64_t seed, evictions, uses, numbers;
    uint64_t *unit_steps; /* [n_page_units] the last that names the unit */
    uint64_t step;        /* the one that is being planned; the caller's to set */
    bool unsettled;       /* one left nodes that others refer to as well: nobody may use their pages now */
    uint64_t changes;     /* of what can be found; goes on counting over prefix_init() and prefix_done() */
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
/* Pages of a hit that nobody uses now: those on the device, the one that is copied as well, and those that have to be
 * brought there. */
uint32_t prefix_idle_pages(const struct prefix *x, const struct pools *p, const struct prefix_hit *hit);
/* The first node of the hit that is not on the device; 0 = all of them are. *ret_n: how many are not. */
uint32_t prefix_missing(const struct prefix *x, const struct prefix_hit *hit, uint32_t *ret_n);
/* While it is brought to the device, nothing of it is evicted. */
void prefix_hold(struct prefix *x, struct pools *p, uint32_t snapshot);
void prefix_unhold(struct prefix *x, struct pools *p, uint32_t snapshot);
/* The node's rows come to the device, into a free page. The caller has the unit copied there in the plan that is being
 * made; it is returned. */
uint32_t prefix_bring(struct prefix *x, struct pools *p, uint32_t node, uint32_t *ret_page);
/* Begins the path of a sequence whose slot has no pages yet, with a hit that is on the device: what it has is put into
 * the slot's table, and the snapshot and its tail are pinned until prefix_unpin(). */
void prefix_enter(struct prefix *x, struct pools *p, uint32_t slot, const uint32_t *salt,
        const struct prefix_hit *hit, struct prefix_path *ret);
void prefix_pin(struct prefix *x, struct pools *p, uint32_t snapshot);
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

struct prefix_copy {
    uint32_t page, unit; /* unit PREFIX_NONE: nothing is to be copied */
};
/* Frees a page that nobody uses, of those the one that was not used for the longest time. Its rows go to the host where
 * there is room, older rows there make some, and may_copy: then the caller has *ret copied in the plan that is being
 * made. Otherwise they are lost. False: there is none, or none that no step in flight names, or none may be copied. */
bool prefix_evict(
        struct prefix *x, struct pools *p, uint64_t oldest_step, bool may_copy, struct prefix_copy *ret);
/* --- for disk.h --- */

/* The node of these ids below a node, or the root of a salt below 0; 0 = there is none. */
uint32_t prefix_child(const struct prefix *x, uint32_t parent, const uint32_t *ids);
uint32_t prefix_snapshot_of(const struct prefix *x, uint32_t node, const uint32_t *tail, uint32_t length);
/* Each returns a node that is referred to once more; the last one is new, and busy: its unit is being filled. */
uint32_t prefix_take_root(struct prefix *x, struct pools *p, const uint32_t *salt);
uint32_t prefix_take_child(struct prefix *x, uint32_t node);
uint32_t prefix_take_new(struct prefix *x, struct pools *p, uint32_t parent, const uint32_t *ids,
        uint32_t n_ids, uint32_t unit);
void prefix_drop(struct prefix *x, struct pools *p, uint32_t node);
/* A page unit that no step in flight names, and a state's; PREFIX_NONE. Given back, or made part of a node, and of a
 * snapshot with a node of which nobody has one yet. */
uint32_t prefix_take_page_unit(struct prefix *x, struct pools *p, uint64_t oldest_step);
uint32_t prefix_take_state_unit(struct prefix *x, struct pools *p, uint64_t oldest_step);
void prefix_give_state_unit(struct prefix *x, uint32_t unit);
void prefix_make_snapshot(struct prefix *x, uint32_t unit, uint32_t node, uint32_t tail, uint32_t length);
/* The node's rows are copied to a unit as well, in the plan that is being made; PREFIX_NONE: there is none. */
uint32_t prefix_copy_out(struct prefix *x, struct pools *p, uint32_t node, uint64_t oldest_step);
void prefix_busy(struct prefix *x, uint32_t node);
void prefix_not_busy(struct prefix *x, struct pools *p, uint32_t node);

/* Where the path's nodes have pages that nobody uses, the slot's own take their place. Whether there were any. */
bool prefix_settle(struct prefix *x, struct pools *p, uint32_t slot, const struct prefix_path *path);
