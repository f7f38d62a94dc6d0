/* pools.c - which slot and which page belongs to whom.
 *
 * A page is given back only when no step in flight names its sequence, so the next plan may grant it at once.
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
    p->free_pages = calloc(g->pages, sizeof(uint32_t));
    p->page_tables = calloc((size_t)(g->slots + 1) * g->pages_per_slot, sizeof(uint32_t));
    p->table_len = calloc(g->slots + 1, sizeof(uint32_t));
    if (p->free_slots == NULL || p->to_close == NULL || p->free_pages == NULL || p->page_tables == NULL ||
            p->table_len == NULL) {
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
    free(p->free_pages);
    free(p->page_tables);
    free(p->table_len);
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

bool pools_grant(struct pools *p, uint32_t slot, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n) {
    uint32_t len = p->table_len[slot], need = pools_pages_for(p, rows);
    uint32_t n = need > len ? need - len : 0;
    if (n > p->n_free_pages)
        return false;
    uint32_t *table = p->page_tables + (size_t)slot * p->pages_per_slot;
    for (uint32_t i = 0; i < n; i++)
        table[len + i] = p->free_pages[--p->n_free_pages];
    p->table_len[slot] = len + n;
    *ret_first = len;
    *ret_n = n;
    return true;
}

void pools_release(struct pools *p, uint32_t slot, bool opened) {
    assert(slot > 0 && slot <= p->n_slots);
    const uint32_t *table = p->page_tables + (size_t)slot * p->pages_per_slot;
    for (uint32_t i = p->table_len[slot]; i > 0; i--)
        p->free_pages[p->n_free_pages++] = table[i - 1];
    p->table_len[slot] = 0;
    assert(p->n_free_pages <= p->n_pages);
    if (opened)
        p->to_close[p->n_to_close++] = slot;
    else
        p->free_slots[p->n_free_slots++] = slot;
}

void pools_slot_closed(struct pools *p, uint32_t slot) {
    assert(p->n_free_slots < p->n_slots);
    p->free_slots[p->n_free_slots++] = slot;
}
