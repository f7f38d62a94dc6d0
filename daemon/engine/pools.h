/* pools.h - slots and pages of the rank group, as planned. Engine thread only.
 *
 * A thing is free, or held by a sequence, or (slots) waits for the completion of the step that closes it. Sized
 * when the group has answered RESET; nothing here allocates later. */
#pragma once

#include "proto/step/step.h"

#include <stdbool.h>

struct pools {
    uint32_t n_slots, n_pages, pages_per_slot, n_mtp;
    uint32_t *free_slots, n_free_slots;
    uint32_t *to_close, n_to_close; /* slots whose CLOSE goes into the next plan */
    uint32_t *free_pages, n_free_pages;
    uint32_t *page_tables; /* [n_slots + 1][pages_per_slot] */
    uint32_t *table_len;   /* [n_slots + 1] pages that the slot holds */
};
int pools_init(struct pools *p, const struct step_geometry *g);
void pools_done(struct pools *p);
uint32_t pools_pages_for(const struct pools *p, uint32_t rows);
uint32_t pools_take_slot(struct pools *p); /* 0 = none */
/* Makes the slot's table long enough for `rows` rows. Whether it could; *ret_first and *ret_n are what was
 * added. */
bool pools_grant(struct pools *p, uint32_t slot, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n);
/* Gives the slot's pages back. opened: its CLOSE must reach the ranks before it is free again. */
void pools_release(struct pools *p, uint32_t slot, bool opened);
void pools_slot_closed(struct pools *p, uint32_t slot);
