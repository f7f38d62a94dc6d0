/* pools.c - which slot and which page belongs to whom.
 *
 * A page is given back only when no step in flight names its sequence, so the next plan may grant it at once; pages
 * that the prefix cache holds as well stay what they are until it lets go of them.
 * A slot that was opened is named once more, by its CLOSE, and is free when every rank has completed that
 * step. */
#include "daemon/engine/pools.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int pools_init(struct pools *p, const struct step_geometry *g) {
    *p = (struct pools){
            .n_slots = g->slots,
            .n_pages = g->pages,
            .pages_per_slot = g->pages_per_slot,
            .n_mtp = g->has_mtp ? 1 : 0,
    };
    p->free_slots = calloc(g->slots, sizeof(uint32_t));
    p->to_close = calloc(g->slots, sizeof(uint32_t));
    p->to_keep = calloc(g->slots, sizeof(p->to_keep[0]));
    p->free_pages = calloc(g->pages, sizeof(uint32_t));
    p->page_tables = calloc((size_t)(g->slots + 1) * g->pages_per_slot, sizeof(uint32_t));
    p->table_len = calloc(g->slots + 1, sizeof(uint32_t));
    p->users = calloc((size_t)g->pages + 1, sizeof(uint32_t));
    p->holds = calloc((size_t)g->pages + 1, sizeof(uint32_t));
    if (p->free_slots == NULL || p->to_close == NULL || p->to_keep == NULL || p->free_pages == NULL ||
            p->page_tables == NULL || p->table_len == NULL || p->users == NULL || p->holds == NULL) {
        pools_done(p);
        return -ENOMEM;
    }
    for (uint32_t i = g->slots; i > 0; i--) /* low numbers are handed out first */
        p->free_slots[p->n_free_slots++] = i;
    for (uint32_t i = g->pages; i > 0; i--)
        p->free_pages[p->n_free_pages++] = i;
    return 0;
}

void pools_done(struct pools *p) {
    free(p->free_slots);
    free(p->to_close);
    free(p->to_keep);
    free(p->free_pages);
    free(p->page_tables);
    free(p->table_len);
    free(p->users);
    free(p->holds);
    *p = (struct pools){0};
}

uint32_t pools_pages_for(const struct pools *p, uint32_t rows) {
    /* The MTP layer stores what it made of row t at index t + 1. */
    uint32_t pages = (rows + p->n_mtp + PAGE_TOKENS - 1) / PAGE_TOKENS;
    return pages > p->pages_per_slot ? p->pages_per_slot : pages;
}

uint32_t pools_take_slot(struct pools *p) {
    return p->n_free_slots == 0 ? 0 : p->free_slots[--p->n_free_slots];
}

uint32_t pools_available(const struct pools *p) {
    return p->n_pages - p->n_used;
}

uint32_t pools_lacks(const struct pools *p, uint32_t slot, uint32_t rows) {
    uint32_t len = p->table_len[slot], need = pools_pages_for(p, rows);
    return need > len ? need - len : 0;
}

const uint32_t *pools_table(const struct pools *p, uint32_t slot) {
    return p->page_tables + (size_t)slot * p->pages_per_slot;
}

/* --- who has a page --- */

static void free_if_unwanted(struct pools *p, uint32_t page) {
    if (p->users[page] > 0 || p->holds[page] > 0)
        return;
    assert(p->n_free_pages < p->n_pages);
    p->free_pages[p->n_free_pages++] = page;
}

void pools_use(struct pools *p, uint32_t page) {
    p->n_used += p->users[page]++ == 0;
}

void pools_unuse(struct pools *p, uint32_t page) {
    assert(p->users[page] > 0);
    p->n_used -= --p->users[page] == 0;
    free_if_unwanted(p, page);
}

void pools_hold(struct pools *p, uint32_t page) {
    assert(p->users[page] > 0 || p->holds[page] > 0); /* it is nobody's to give away meanwhile */
    p->holds[page]++;
}

void pools_unhold(struct pools *p, uint32_t page) {
    assert(p->holds[page] > 0);
    p->holds[page]--;
    free_if_unwanted(p, page);
}

uint32_t pools_take_page(struct pools *p) {
    assert(p->n_free_pages > 0);
    uint32_t page = p->free_pages[--p->n_free_pages];
    p->holds[page]++;
    return page;
}

/* --- tables --- */

static void put(struct pools *p, uint32_t slot, uint32_t at, uint32_t page) {
    assert(at < p->pages_per_slot);
    p->page_tables[(size_t)slot * p->pages_per_slot + at] = page;
    if (p->table_len[slot] <= at)
        p->table_len[slot] = at + 1;
    pools_use(p, page);
}

bool pools_grant(struct pools *p, uint32_t slot, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n) {
    uint32_t len = p->table_len[slot], n = pools_lacks(p, slot, rows);
    if (n > p->n_free_pages)
        return false;
    for (uint32_t i = 0; i < n; i++)
        put(p, slot, len + i, p->free_pages[--p->n_free_pages]);
    *ret_first = len;
    *ret_n = n;
    return true;
}

void pools_share(struct pools *p, uint32_t slot, uint32_t at, uint32_t page) {
    assert(p->holds[page] > 0);
    put(p, slot, at, page);
}

static void empty_table(struct pools *p, uint32_t slot) {
    const uint32_t *table = pools_table(p, slot);
    for (uint32_t i = p->table_len[slot]; i > 0; i--)
        pools_unuse(p, table[i - 1]);
    p->table_len[slot] = 0;
}

void pools_release(struct pools *p, uint32_t slot, bool opened, uint32_t unit) {
    assert(slot > 0 && slot <= p->n_slots);
    if (opened && unit != POOLS_NO_UNIT) { /* the ranks have it in their tables until its CLOSE */
        p->to_keep[p->n_to_keep++] = (struct pools_kept){slot, unit};
        return;
    }
    empty_table(p, slot);
    if (opened)
        p->to_close[p->n_to_close++] = slot;
    else
        p->free_slots[p->n_free_slots++] = slot;
}

uint32_t pools_coming(const struct pools *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_to_keep; i++)
        n += p->table_len[p->to_keep[i].slot];
    return n;
}

void pools_kept(struct pools *p) {
    for (uint32_t i = 0; i < p->n_to_keep; i++) {
        empty_table(p, p->to_keep[i].slot);
        p->to_close[p->n_to_close++] = p->to_keep[i].slot;
    }
    p->n_to_keep = 0;
}

void pools_slot_closed(struct pools *p, uint32_t slot) {
    assert(p->n_free_slots < p->n_slots);
    p->free_slots[p->n_free_slots++] = slot;
}
