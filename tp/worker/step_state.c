/* step_state.c - see step_state.h. step_decode() has checked everything that can be seen in the record
 * itself: sizes, blob ranges, dummies that are named, parameters that are not numbers. */
#include "tp/worker/step_state.h"

#include "base/mask.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int step_state_init(const struct step_limits *limits, struct step_state *ret, struct error *e) {
    size_t slots = limits->slots + 1u, units = limits->slot_units + 1u;
    struct step_state s = {.limits = *limits,
            .slots = calloc(slots, sizeof(struct slot_state)),
            .next = calloc(slots, sizeof(struct slot_state)),
            .units = calloc(units, sizeof(struct unit_state)),
            .units_next = calloc(units, sizeof(struct unit_state))};
    if (!s.slots || !s.next || !s.units || !s.units_next) {
        step_state_done(&s);
        return error_set(e, -ENOMEM, "out of memory for the states of %u slots", limits->slots);
    }
    *ret = s;
    return 0;
}

void step_state_done(struct step_state *s) {
    free(s->slots);
    free(s->next);
    free(s->units);
    free(s->units_next);
    *s = (struct step_state){0};
}

void step_state_reset(struct step_state *s) {
    for (uint32_t i = 0; i <= s->limits.slots; i++)
        s->slots[i] = (struct slot_state){.life = s->slots[i].life + 1};
    memset(s->units, 0, (s->limits.slot_units + 1u) * sizeof(s->units[0]));
}

void step_state_commit(struct step_state *s) {
    memcpy(s->slots, s->next, (s->limits.slots + 1u) * sizeof(s->slots[0]));
    memcpy(s->units, s->units_next, (s->limits.slot_units + 1u) * sizeof(s->units[0]));
}

void step_state_accepted(
        struct step_state *s, uint32_t slot, uint32_t life, uint32_t n_drafts, uint32_t n_accepted) {
    struct slot_state *of = &s->slots[slot];
    if (of->life != life)
        return;
    of->least += n_accepted;
    of->length -= n_drafts - n_accepted;
}

uint32_t step_blob_u32(const struct step_plan *p, uint32_t at, uint32_t i) {
    uint32_t v;
    memcpy(&v, p->blob + at + 4 * (size_t)i, sizeof(v));
    return v;
}

static int check_slot(
        const struct step_state *s, uint32_t slot, const char *what, uint32_t i, struct error *e) {
    if (slot == 0 || slot > s->limits.slots)
        return error_set(e, -EINVAL, "%s %u: slot %u does not exist, this rank has slots 1 to %u", what, i,
                slot, s->limits.slots);
    return 0;
}

static int check_open_slot(
        const struct step_state *s, uint32_t slot, const char *what, uint32_t i, struct error *e) {
    int r = check_slot(s, slot, what, i, e);
    if (r < 0)
        return r;
    if (!s->next[slot].open)
        return error_set(e, -EINVAL, "%s %u: slot %u is not open", what, i, slot);
    return 0;
}

static int check_closes(struct step_state *s, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_closes; i++) {
        int r = check_open_slot(s, p->closes[i], "close", i, e);
        if (r < 0)
            return r;
        s->next[p->closes[i]] = (struct slot_state){.life = s->next[p->closes[i]].life + 1};
    }
    return 0;
}

static int check_opens(struct step_state *s, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_opens; i++) {
        const struct step_open *o = &p->opens[i];
        int r = check_slot(s, o->slot, "open", i, e);
        if (r < 0)
            return r;
        if (s->next[o->slot].open)
            return error_set(e, -EINVAL, "open %u: slot %u is open already", i, o->slot);
        for (uint32_t k = 0; k < o->n_bias; k++)
            if (step_blob_u32(p, o->bias_at, 2 * k) >= s->limits.vocab_size)
                return error_set(e, -EINVAL, "open %u: bias %u is for id %u, the vocabulary has %u", i, k,
                        step_blob_u32(p, o->bias_at, 2 * k), s->limits.vocab_size);
        for (uint32_t k = 0; k < o->n_suppress; k++)
            if (step_blob_u32(p, o->suppress_at, k) >= s->limits.vocab_size)
                return error_set(e, -EINVAL, "open %u: suppressed id %u is not below the vocabulary's %u", i,
                        step_blob_u32(p, o->suppress_at, k), s->limits.vocab_size);
        s->next[o->slot] = (struct slot_state){.open = true, .life = s->next[o->slot].life + 1};
    }
    return 0;
}

static int check_page(
        const struct step_state *s, uint32_t page, const char *what, uint32_t i, struct error *e) {
    if (page == 0 || page > s->limits.pages)
        return error_set(e, -EINVAL, "%s %u: page %u does not exist, this rank has pages 1 to %u", what, i,
                page, s->limits.pages);
    return 0;
}

static int check_unit(uint32_t unit, uint32_t n, const char *kind, uint32_t i, struct error *e) {
    if (unit >= n)
        return error_set(
                e, -EINVAL, "memory %u: %s unit %u does not exist, this rank has %u", i, kind, unit, n);
    return 0;
}

/* What a slot holds comes from elsewhere. */
static void set_length(struct slot_state *slot, uint32_t least, uint32_t length, bool sampled) {
    slot->least = least;
    slot->length = length;
    slot->sampled = sampled;
    slot->n_drafts = 0;
    slot->life++;
}

static int check_restore(struct step_state *s, const struct step_memory *m, uint32_t i, struct error *e) {
    int r = check_unit(m->a, s->limits.slot_units, "slot", i, e);
    if (r < 0)
        return r;
    r = check_open_slot(s, m->b, "memory", i, e);
    if (r < 0)
        return r;
    if (!s->units_next[m->a].filled)
        return error_set(e, -EINVAL, "memory %u: slot unit %u holds no snapshot", i, m->a);
    /* a snapshot is of positions; an id sampled after them is not part of it */
    set_length(&s->next[m->b], s->units_next[m->a].least, s->units_next[m->a].length, /* sampled= */ false);
    return 0;
}

static int check_memory_op(struct step_state *s, const struct step_memory *m, uint32_t i, struct error *e) {
    int r = 0;
    switch (m->kind) {
    case STEP_MEMORY_ZERO_SLOT:
        r = check_open_slot(s, m->a, "memory", i, e);
        if (r == 0)
            set_length(&s->next[m->a], 0, 0, /* sampled= */ false);
        return r;
    case STEP_MEMORY_COPY_SLOT:
        r = check_open_slot(s, m->a, "memory", i, e);
        if (r == 0)
            r = check_open_slot(s, m->b, "memory", i, e);
        if (r == 0 && m->a != m->b)
            set_length(&s->next[m->b], s->next[m->a].least, s->next[m->a].length, s->next[m->a].sampled);
        return r;
    case STEP_MEMORY_COPY_PAGE:
        r = check_page(s, m->a, "memory", i, e);
        return r < 0 ? r : check_page(s, m->b, "memory", i, e);
    case STEP_MEMORY_SNAPSHOT_SLOT:
        r = check_open_slot(s, m->a, "memory", i, e);
        if (r == 0)
            r = check_unit(m->b, s->limits.slot_units, "slot", i, e);
        if (r == 0)
            s->units_next[m->b] = (struct unit_state){
                    .least = s->next[m->a].least, .length = s->next[m->a].length, .filled = true};
        return r;
    case STEP_MEMORY_RESTORE_SLOT:
        return check_restore(s, m, i, e);
    case STEP_MEMORY_PAGE_OUT:
        r = check_page(s, m->a, "memory", i, e);
        return r < 0 ? r : check_unit(m->b, s->limits.page_units, "page", i, e);
    case STEP_MEMORY_PAGE_IN:
        r = check_unit(m->a, s->limits.page_units, "page", i, e);
        return r < 0 ? r : check_page(s, m->b, "memory", i, e);
    default:
        return error_set(e, -EINVAL, "memory %u: unknown operation %u", i, m->kind);
    }
}

static int check_stores(const struct step_state *s, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_stores; i++) {
        const struct step_store *t = &p->stores[i];
        bool is_state = t->record.what == STEP_STORED_STATE;
        uint32_t units = is_state ? s->limits.slot_units : s->limits.page_units;
        if (t->unit >= units || t->record.place >= s->limits.stored[t->record.what])
            return error_set(e, -EINVAL, "store %u: unit %u and place %u, this rank has %u and %u", i,
                    t->unit, t->record.place, units, s->limits.stored[t->record.what]);
        if (is_state && t->kind == STEP_STORE_READ)
            s->units_next[t->unit] = (struct unit_state){
                    .least = t->record.length, .length = t->record.length, .filled = true};
    }
    return 0;
}

static int check_grant(struct step_state *s, const struct step_plan *p, const struct step_entry *t,
        uint32_t i, struct error *e) {
    struct slot_state *slot = &s->next[t->slot];
    if (!t->n_pages)
        return 0;
    if (t->page_first > slot->granted)
        return error_set(e, -EINVAL, "entry %u: grants page table entry %u of slot %u, which has %u so far",
                i, t->page_first, t->slot, slot->granted);
    if (t->n_pages > s->limits.pages_per_slot || t->page_first > s->limits.pages_per_slot - t->n_pages)
        return error_set(e, -EINVAL, "entry %u: grants %u pages from %u, a slot has a table of %u", i,
                t->n_pages, t->page_first, s->limits.pages_per_slot);
    for (uint32_t k = 0; k < t->n_pages; k++) {
        int r = check_page(s, step_blob_u32(p, t->pages_at, k), "entry", i, e);
        if (r < 0)
            return r;
    }
    if (t->page_first + t->n_pages > slot->granted)
        slot->granted = t->page_first + t->n_pages;
    return 0;
}

static int check_prompt(const struct step_state *s, const struct step_plan *p, const struct step_entry *t,
        uint32_t i, struct error *e) {
    const struct slot_state *slot = &s->next[t->slot];
    if (t->first_pos < slot->least || t->first_pos > slot->length)
        return error_set(e, -EINVAL, "entry %u: starts at position %u, but slot %u holds %u tokens", i,
                t->first_pos, t->slot, slot->length);
    for (uint32_t k = 0; k < t->n_rows; k++)
        if (step_blob_u32(p, t->ids_at, k) >= s->limits.vocab_size)
            return error_set(e, -EINVAL, "entry %u: id %u at row %u is not below the vocabulary's %u", i,
                    step_blob_u32(p, t->ids_at, k), k, s->limits.vocab_size);
    if (t->id_after != STEP_NONE && t->id_after >= s->limits.vocab_size)
        return error_set(e, -EINVAL, "entry %u: the id after it, %u, is not below the vocabulary's %u", i,
                t->id_after, s->limits.vocab_size);
    return 0;
}

static int check_continue(const struct step_state *s, const struct step_plan *p, const struct step_entry *t,
        uint32_t i, struct error *e) {
    const struct slot_state *slot = &s->next[t->slot];
    const uint32_t n_drafts = t->n_rows - 1;
    if (n_drafts > s->limits.drafts_max)
        return error_set(e, -EINVAL, "entry %u: %u drafts, this rank takes at most %u", i, n_drafts,
                s->limits.drafts_max);
    if (!slot->sampled || slot->length == 0)
        return error_set(e, -EINVAL, "entry %u: slot %u has no sampled id to continue from", i, t->slot);
    if (t->drafts_at == STEP_NONE && n_drafts > slot->n_drafts)
        return error_set(e, -EINVAL, "entry %u: %u drafts, of which the last step of slot %u left %u", i,
                n_drafts, t->slot, slot->n_drafts);
    for (uint32_t k = 0; t->drafts_at != STEP_NONE && k < n_drafts; k++)
        if (step_blob_u32(p, t->drafts_at, k) >= s->limits.vocab_size)
            return error_set(e, -EINVAL, "entry %u: draft %u is id %u, not below the vocabulary's %u", i, k,
                    step_blob_u32(p, t->drafts_at, k), s->limits.vocab_size);
    return 0;
}

/* What the slot holds after the entry, as far as it is known. */
static void advance(struct slot_state *slot, const struct step_entry *t) {
    if (t->kind == STEP_ENTRY_PROMPT && slot->least < slot->length) {
        slot->length = slot->least = t->first_pos;
        slot->life++; /* what was in flight is known, then */
    }
    slot->least += t->kind == STEP_ENTRY_PROMPT ? t->n_rows : 1;
    slot->length += t->n_rows;
    slot->sampled = (t->flags & STEP_ENTRY_SAMPLE) != 0;
    slot->n_drafts = t->n_draft_next;
}

static int check_entry(struct step_state *s, const struct step_plan *p, uint32_t i, struct error *e) {
    const struct step_entry *t = &p->entries[i];
    int r = check_open_slot(s, t->slot, "entry", i, e);
    if (r == 0)
        r = check_grant(s, p, t, i, e);
    if (r < 0)
        return r;
    struct slot_state *slot = &s->next[t->slot];
    r = t->kind == STEP_ENTRY_PROMPT ? check_prompt(s, p, t, i, e) : check_continue(s, p, t, i, e);
    const uint32_t makes = s->limits.makes_drafts ? s->limits.drafts_max : 0;
    if (r == 0 && t->n_draft_next > makes)
        r = error_set(e, -EINVAL, "entry %u: asks for %u drafts, this rank makes at most %u", i,
                t->n_draft_next, makes);
    if (r < 0)
        return r;
    if (t->n_masks > 0 && t->mask_words != mask_words(s->limits.vocab_size))
        return error_set(e, -EINVAL, "entry %u: masks of %u words, the vocabulary of %u has %u", i,
                t->mask_words, s->limits.vocab_size, mask_words(s->limits.vocab_size));
    for (uint32_t k = 0; t->rope_at != STEP_NONE && k < 3 * t->n_rows; k++)
        if (step_blob_u32(p, t->rope_at, k) >= CONTEXT_MAX)
            return error_set(e, -EINVAL, "entry %u: rope position %u is not below %u", i,
                    step_blob_u32(p, t->rope_at, k), CONTEXT_MAX);
    if (t->n_rows > s->limits.max_model_len || slot->length > s->limits.max_model_len - t->n_rows)
        return error_set(e, -EINVAL, "entry %u: %u rows after %u tokens pass max_model_len %u", i, t->n_rows,
                slot->length, s->limits.max_model_len);
    uint32_t positions = slot->length + t->n_rows + s->limits.extra_positions;
    if ((positions + PAGE_TOKENS - 1) / PAGE_TOKENS > slot->granted)
        return error_set(e, -EINVAL, "entry %u: slot %u needs %u pages for %u positions and was granted %u",
                i, t->slot, (positions + PAGE_TOKENS - 1) / PAGE_TOKENS, positions, slot->granted);
    advance(slot, t);
    return 0;
}

int step_state_check(struct step_state *s, const struct step_plan *p, struct error *e) {
    const struct step_limits *l = &s->limits;
    if (p->n_rows > l->rows_max)
        return error_set(e, -EINVAL, "a step of %u rows, this rank takes at most %u", p->n_rows, l->rows_max);
    if (p->n_entries > l->entries_max)
        return error_set(
                e, -EINVAL, "a step of %u entries, this rank takes at most %u", p->n_entries, l->entries_max);
    memcpy(s->next, s->slots, (l->slots + 1u) * sizeof(s->slots[0]));
    memcpy(s->units_next, s->units, (l->slot_units + 1u) * sizeof(s->units[0]));
    int r = check_closes(s, p, e);
    if (r == 0)
        r = check_opens(s, p, e);
    for (uint32_t i = 0; r == 0 && i < p->n_memory; i++)
        r = check_memory_op(s, &p->memory[i], i, e);
    if (r == 0)
        r = check_stores(s, p, e);
    for (uint32_t i = 0; r == 0 && i < p->n_entries; i++)
        r = check_entry(s, p, i, e);
    return r;
}
