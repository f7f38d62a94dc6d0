/* pools.h - slots and pages of the rank group, as planned. Engine thread only.
 *
 * A slot is free, or held by a sequence, or waits for its end: a snapshot in one step where the prefix cache keeps its
 * state (to_keep), its CLOSE in a later one (to_close), and the completion of that. A page is in the tables of so many
 * slots, and the prefix cache (prefix.h) holds it so many times; it is free when neither has it. Sized when the group
 * has answered RESET; nothing here allocates later. */
#pragma once

#include "proto/step/step.h"

#include <stdbool.h>

struct pools_kept { /* a slot whose state goes into a host unit before it is closed */
    uint32_t slot, unit;
};

struct pools {
    uint32_t n_slots, n_pages, pages_per_slot, n_mtp;
    uint32_t *free_slots, n_free_slots;
    struct pools_kept *to_keep;
    uint32_t n_to_keep;
    uint32_t *to_close, n_to_close; /* slots whose CLOSE goes into the next plan */
    uint32_t *free_pages, n_free_pages;
    uint32_t *page_tables; /* [n_slots + 1][pages_per_slot] */
    uint32_t *table_len;   /* [n_slots + 1] pages that the slot holds */
    uint32_t *users;       /* [n_pages + 1] tables that have the page, and readers of a copy to come */
    uint32_t *holds;       /* [n_pages + 1] of the prefix cache */
    uint32_t n_used;       /* pages with users */
};
int pools_init(struct pools *p, const struct step_geometry *g);
void pools_done(struct pools *p);
uint32_t pools_pages_for(const struct pools *p, uint32_t rows);
uint32_t pools_take_slot(struct pools *p); /* 0 = none */
/* Pages that are free, or will be once the prefix cache lets go of them. */
uint32_t pools_available(const struct pools *p);
/* Pages that the slot lacks for `rows` rows. */
uint32_t pools_lacks(const struct pools *p, uint32_t slot, uint32_t rows);
/* Makes the slot's table long enough for `rows` rows; *ret_first and *ret_n are what was added. False: there are not so
 * many free pages. */
bool pools_grant(struct pools *p, uint32_t slot, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n);
/* Puts a page that has its rows already at the end `at` of the slot's table, or before one that was put there. */
void pools_share(struct pools *p, uint32_t slot, uint32_t at, uint32_t page);
void pools_use(struct pools *p, uint32_t page);
void pools_unuse(struct pools *p, uint32_t page);
void pools_hold(struct pools *p, uint32_t page);
void pools_unhold(struct pools *p, uint32_t page);
uint32_t pools_take_page(struct pools *p); /* a free one, of which there must be some; it is held */
const uint32_t *pools_table(const struct pools *p, uint32_t slot);
/* Gives the slot's pages back. opened: its CLOSE must reach the ranks before it is free again. unit: where its state is
 * to be kept before that; POOLS_NO_UNIT. */
#define POOLS_NO_UNIT UINT32_MAX
void pools_release(struct pools *p, uint32_t slot, bool opened, uint32_t unit);
uint32_t pools_coming(const struct pools *p); /* pages of slots to be kept, which the next plan frees */
/* The snapshots of to_keep are in a committed plan: their CLOSE may follow in the next. */
void pools_kept(struct pools *p);
void pools_slot_closed(struct pools *p, uint32_t slot);
