/* null_rank.c - the strict rank that computes nothing. See null_rank.h. */
#include "proto/step/null_rank.h"

#include "base/clock.h"
#include "base/mask.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct null_slot {
    bool open, generated;  /* generated: a generated row was seen, so no given ones may follow */
    bool damaged;          /* has read the damaged id */
    uint32_t length;       /* rows computed */
    uint32_t outputs;      /* tokens generated: sampled, or replayed as generated */
    uint32_t sample_index; /* the next sample's: counted from what OPEN says */
    uint32_t n_drafts, drafts[DRAFT_MAX]; /* left by the last step */
    uint32_t last_id;                     /* STEP_NONE = nothing sampled since the last rows */
    uint32_t min_tokens, n_suppress;
    uint32_t suppress[STEP_SUPPRESS_MAX];
    uint64_t seed, hash; /* hash: of every (position, id) that the state stands for */
    bool restored;       /* and its pages have not been compared with the state yet */
    bool counted;    /* outputs is right: the sequence may have generated some of what it was restored from */
    uint32_t *pages; /* [pages_per_slot]; 0 = not granted */
};

struct null_rank {
    struct null_rank_options o;
    uint32_t pages_per_slot;
    struct null_slot *slots; /* [slots + 1] */
    uint32_t *page_tables;   /* [slots + 1][pages_per_slot] */
    uint32_t *page_users;    /* [pages + 1] open slots that have it in their table */
    uint32_t *page_ids;      /* [pages + 1][PAGE_TOKENS] the ids whose rows were written there */
    struct null_unit *units; /* [slot_units] */
    uint32_t *unit_ids;      /* [page_units][PAGE_TOKENS] as page_ids; what holds no page has ids of none */
    uint8_t *body;           /* [STEP_COMPLETION_MAX] outcomes */
    uint32_t body_bytes, n_outcomes;
    uint64_t checksum, last_step;
    uint64_t plans; /* since RESET */
    /* Operations of the store, which are done after the record behind the one that brought them. */
    struct step_store waiting[STEP_STORE_MAX];
    uint32_t n_waiting, index_at;
    struct null_store *store;
    uint64_t stored, store_failed, store_random;
    struct step_record *index; /* [STEP_INDEX_RECORDS] */
    bool reset_seen;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

int null_rank_create(const struct null_rank_options *options, struct null_rank **ret, struct error *e) {
    const struct null_rank_options *o = options;
    if (o->tp == 0 || o->tp > RANKS_MAX || o->rank >= o->tp)
        return error_set(e, -EINVAL, "rank %u of %u: 1 to %u ranks are possible", o->rank, o->tp, RANKS_MAX);
    if (o->slots == 0 || o->slots > SEQS_MAX || o->pages == 0 || o->max_model_len == 0 ||
            o->max_model_len > CONTEXT_MAX || o->rows_max == 0 || o->rows_max > STEP_ROWS_MAX ||
            o->drafts_max > DRAFT_MAX || o->slot_units > NULL_UNITS_MAX || o->page_units > NULL_UNITS_MAX)
        return error_set(e, -EINVAL,
                "slots, pages, max-model-len or rows is 0 or over its limit, or drafts or units are");
    if (o->vocab_size == 0 || o->id_count > o->vocab_size || o->id_first > o->vocab_size - o->id_count)
        return error_set(e, -EINVAL, "sampled ids from %u, %u of them, do not fit a vocabulary of %u",
                o->id_first, o->id_count, o->vocab_size);
    struct null_rank *n = calloc(1, sizeof(*n));
    if (n == NULL)
        return error_set(e, -ENOMEM, "no memory for a null rank");
    n->o = *o;
    n->store = o->stores != NULL ? &o->stores[o->rank] : NULL;
    n->pages_per_slot = (o->max_model_len + PAGE_TOKENS - 1) / PAGE_TOKENS;
    n->slots = calloc(o->slots + 1, sizeof(*n->slots));
    n->page_tables = calloc((size_t)(o->slots + 1) * n->pages_per_slot, sizeof(*n->page_tables));
    n->page_users = calloc((size_t)o->pages + 1, sizeof(*n->page_users));
    n->page_ids = calloc((size_t)o->pages + 1, PAGE_TOKENS * sizeof(*n->page_ids));
    n->units = calloc((size_t)o->slot_units + 1, sizeof(*n->units));
    n->unit_ids = calloc((size_t)o->page_units + 1, PAGE_TOKENS * sizeof(*n->unit_ids));
    n->body = calloc(1, STEP_COMPLETION_MAX);
    n->index = calloc(STEP_INDEX_RECORDS, sizeof(*n->index));
    if (n->slots == NULL || n->page_tables == NULL || n->page_users == NULL || n->page_ids == NULL ||
            n->units == NULL || n->unit_ids == NULL || n->body == NULL || n->index == NULL) {
        null_rank_free(n);
        return error_set(
                e, -ENOMEM, "no memory for a null rank of %u slots and %u pages", o->slots, o->pages);
    }
    for (uint32_t i = 0; i <= o->slots; i++)
        n->slots[i].pages = n->page_tables + (size_t)i * n->pages_per_slot;
    *ret = n;
    return 0;
}

struct null_rank *null_rank_free(struct null_rank *n) {
    if (n == NULL)
        return NULL;
    free(n->slots);
    free(n->page_tables);
    free(n->page_users);
    free(n->page_ids);
    free(n->units);
    free(n->unit_ids);
    free(n->body);
    free(n->index);
    free(n);
    return NULL;
}

/* --- slots and pages --- */

/* Words of the blob; the offset means nothing where there are none. */
static const uint32_t *blob_words(const struct step_plan *p, uint32_t n, uint32_t at) {
    return n == 0 ? NULL : (const uint32_t *)(const void *)(p->blob + at);
}

static int open_slot_of(
        struct null_rank *n, uint32_t slot, const char *what, struct null_slot **ret, struct error *e) {
    if (slot > n->o.slots)
        return error_set(e, -EINVAL, "%s: slot %u, this rank has %u", what, slot, n->o.slots);
    if (!n->slots[slot].open)
        return error_set(e, -EINVAL, "%s: slot %u is not open", what, slot);
    *ret = &n->slots[slot];
    return 0;
}

static void empty_slot(struct null_rank *n, struct null_slot *s) {
    uint32_t *pages = s->pages;
    for (uint32_t i = 0; i < n->pages_per_slot; i++) {
        if (pages[i] != 0)
            n->page_users[pages[i]]--;
        pages[i] = 0;
    }
    *s = (struct null_slot){.pages = pages};
}

static int close_slots(struct null_rank *n, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_closes; i++) {
        struct null_slot *s;
        int r = open_slot_of(n, p->closes[i], "close", &s, e);
        if (r < 0)
            return r;
        empty_slot(n, s);
    }
    return 0;
}

static int open_slots(struct null_rank *n, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_opens; i++) {
        const struct step_open *o = &p->opens[i];
        if (o->slot > n->o.slots)
            return error_set(e, -EINVAL, "open: slot %u, this rank has %u", o->slot, n->o.slots);
        struct null_slot *s = &n->slots[o->slot];
        if (s->open)
            return error_set(e, -EINVAL, "open: slot %u is open already", o->slot);
        s->open = true;
        s->last_id = STEP_NONE;
        s->seed = o->seed;
        s->min_tokens = o->min_tokens;
        s->sample_index = o->first_sample_index;
        s->n_suppress = o->n_suppress;
        if (o->n_suppress > 0)
            memcpy(s->suppress, p->blob + o->suppress_at, o->n_suppress * sizeof(uint32_t));
        const uint32_t *bias_ids = blob_words(p, o->n_bias, o->bias_at);
        for (uint32_t k = 0; k < o->n_bias; k++) {
            if (bias_ids[2 * k] >= n->o.vocab_size)
                return error_set(e, -EINVAL, "open: bias of id %u, the vocabulary has %u", bias_ids[2 * k],
                        n->o.vocab_size);
        }
    }
    return 0;
}

static uint32_t *ids_of_page(const struct null_rank *n, uint32_t page) {
    return n->page_ids + (size_t)page * PAGE_TOKENS;
}

static void zero_slot(struct null_slot *s) {
    s->length = s->outputs = s->n_drafts = 0;
    s->hash = 0;
    s->last_id = STEP_NONE;
    s->generated = s->damaged = s->restored = false;
    s->counted = true;
}

static int copy_slot(struct null_rank *n, const struct step_memory *m, struct error *e) {
    struct null_slot *a = NULL, *b = NULL;
    int r = open_slot_of(n, m->a, "copy slot", &a, e);
    if (r == 0)
        r = open_slot_of(n, m->b, "copy slot", &b, e);
    if (r < 0)
        return r;
    b->length = a->length;
    b->outputs = a->outputs;
    b->hash = a->hash;
    b->last_id = a->last_id;
    b->generated = a->generated;
    b->damaged = a->damaged;
    b->counted = a->counted;
    b->restored = true;
    b->n_drafts = 0;
    return 0;
}

/* What is copied over may be nobody's: a page is granted after it was filled. */
static int copy_page(struct null_rank *n, const struct step_memory *m, struct error *e) {
    if (m->a == 0 || m->b == 0 || m->a > n->o.pages || m->b > n->o.pages)
        return error_set(e, -EINVAL, "copy page %u to %u: this rank has %u", m->a, m->b, n->o.pages);
    if (n->page_users[m->b] > 0)
        return error_set(
                e, -EINVAL, "copy page %u to %u: %u slots use that one", m->a, m->b, n->page_users[m->b]);
    memmove(ids_of_page(n, m->b), ids_of_page(n, m->a), PAGE_TOKENS * sizeof(uint32_t));
    return 0;
}

static int move_page(struct null_rank *n, uint32_t page, uint32_t unit, bool out, struct error *e) {
    if (page == 0 || page > n->o.pages || unit >= n->o.page_units)
        return error_set(e, -EINVAL, "page %u and page unit %u: this rank has %u and %u", page, unit,
                n->o.pages, n->o.page_units);
    if (n->page_users[page] > 0 && !out)
        return error_set(
                e, -EINVAL, "page %u from unit %u: %u slots use it", page, unit, n->page_users[page]);
    uint32_t *there = ids_of_page(n, page), *here = n->unit_ids + (size_t)unit * PAGE_TOKENS;
    memcpy(out ? here : there, out ? there : here, PAGE_TOKENS * sizeof(there[0]));
    return 0;
}

static int check_unit(const struct null_rank *n, uint32_t unit, struct error *e) {
    if (unit >= n->o.slot_units)
        return error_set(e, -EINVAL, "slot unit %u does not exist, this rank has %u", unit, n->o.slot_units);
    return 0;
}

static int snapshot_slot(struct null_rank *n, const struct step_memory *m, struct error *e) {
    struct null_slot *s = NULL;
    int r = open_slot_of(n, m->a, "snapshot", &s, e);
    if (r == 0)
        r = check_unit(n, m->b, e);
    if (r == 0)
        n->units[m->b] = (struct null_unit){
                .filled = true, .damaged = s->damaged, .length = s->length, .hash = s->hash};
    return r;
}

/* What was generated before the snapshot is prompt to the sequence that goes on from it, or was generated by this one
 * before it was put back: the plan knows. */
static int restore_slot(struct null_rank *n, const struct step_memory *m, struct error *e) {
    struct null_slot *s = NULL;
    int r = check_unit(n, m->a, e);
    if (r == 0)
        r = open_slot_of(n, m->b, "restore", &s, e);
    if (r < 0)
        return r;
    const struct null_unit *u = &n->units[m->a];
    if (!u->filled)
        return error_set(e, -EINVAL, "restore: slot unit %u holds no snapshot", m->a);
    zero_slot(s);
    s->length = u->length;
    s->hash = u->hash;
    s->damaged = u->damaged;
    s->restored = true;
    s->counted = false;
    return 0;
}

static int run_memory_op(struct null_rank *n, const struct step_memory *m, struct error *e) {
    struct null_slot *s = NULL;
    int r;
    switch (m->kind) {
    case STEP_MEMORY_ZERO_SLOT:
        r = open_slot_of(n, m->a, "zero slot", &s, e);
        if (r == 0)
            zero_slot(s);
        return r;
    case STEP_MEMORY_COPY_SLOT:
        return copy_slot(n, m, e);
    case STEP_MEMORY_COPY_PAGE:
        return copy_page(n, m, e);
    case STEP_MEMORY_SNAPSHOT_SLOT:
        return snapshot_slot(n, m, e);
    case STEP_MEMORY_RESTORE_SLOT:
        return restore_slot(n, m, e);
    case STEP_MEMORY_PAGE_OUT:
        return move_page(n, m->a, m->b, /* out= */ true, e);
    case STEP_MEMORY_PAGE_IN:
        return move_page(n, m->b, m->a, /* out= */ false, e);
    default:
        return error_set(e, -EINVAL, "memory operation %u is not known", m->kind);
    }
}

static int run_memory(struct null_rank *n, const struct step_plan *p, struct error *e) {
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < p->n_memory; i++)
        r = run_memory_op(n, &p->memory[i], e);
    return r;
}

static int grant(
        struct null_rank *n, const struct step_plan *p, const struct step_entry *t, struct error *e) {
    const uint32_t *pages = blob_words(p, t->n_pages, t->pages_at);
    struct null_slot *s = &n->slots[t->slot];
    if (t->n_pages > 0 &&
            (t->page_first > n->pages_per_slot || t->n_pages > n->pages_per_slot - t->page_first))
        return error_set(
                e, -EINVAL, "slot %u: a grant past its page table of %u", t->slot, n->pages_per_slot);
    for (uint32_t i = 0; i < t->n_pages; i++) {
        if (pages[i] > n->o.pages)
            return error_set(e, -EINVAL, "slot %u: page %u, this rank has %u", t->slot, pages[i], n->o.pages);
        if (s->pages[t->page_first + i] != 0)
            return error_set(
                    e, -EINVAL, "slot %u: entry %u of its page table is taken", t->slot, t->page_first + i);
        s->pages[t->page_first + i] = pages[i];
        n->page_users[pages[i]]++;
    }
    return 0;
}

/* --- the store --- */

static bool run_store(struct null_rank *n, const struct step_store *s) {
    struct null_stored *at = &n->store->places[s->record.what][s->record.place];
    bool is_state = s->record.what == STEP_STORED_STATE;
    uint32_t *ids = is_state ? NULL : n->unit_ids + (size_t)s->unit * PAGE_TOKENS;
    n->store_random = mix(n->store_random + 1);
    bool fails = n->store_random % 100 < n->store->failing;
    if (s->kind == STEP_STORE_WRITE) {
        *at = (struct null_stored){.used = !fails, .record = s->record};
        if (is_state)
            at->state = n->units[s->unit];
        else
            memcpy(at->ids, ids, sizeof(at->ids));
        return !fails;
    }
    bool right = !fails && at->used && memcmp(&at->record, &s->record, sizeof(s->record)) == 0;
    at->used = right;
    if (is_state)
        n->units[s->unit] = right ? at->state : (struct null_unit){0};
    else if (right)
        memcpy(ids, at->ids, sizeof(at->ids));
    else
        memset(ids, 0xee, sizeof(at->ids));
    return right;
}

static void run_stores(struct null_rank *n) {
    for (uint32_t i = 0; i < n->n_waiting; i++) {
        n->store_failed = n->store_failed << 1 | !run_store(n, &n->waiting[i]);
        n->stored++;
    }
    n->n_waiting = 0;
}

static int take_stores(struct null_rank *n, const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_stores; i++) {
        const struct step_store *s = &p->stores[i];
        uint32_t units = s->record.what == STEP_STORED_STATE ? n->o.slot_units : n->o.page_units;
        if (n->store == NULL || s->unit >= units || s->record.place >= n->store->n[s->record.what])
            return error_set(
                    e, -EINVAL, "store: unit %u or place %u does not exist", s->unit, s->record.place);
        n->waiting[n->n_waiting++] = *s;
    }
    return 0;
}

static uint32_t list_stored(struct null_rank *n) {
    uint32_t found = 0, at = 0;
    for (uint32_t k = 0; n->store != NULL && k < STEP_STORED_KINDS; k++)
        for (uint32_t i = 0; i < n->store->n[k]; i++, at++)
            if (at - n->index_at < STEP_INDEX_RECORDS && n->store->places[k][i].used)
                n->index[found++] = n->store->places[k][i].record;
    n->index_at += STEP_INDEX_RECORDS;
    return found;
}

/* --- rows and samples --- */

static void take_id(const struct null_rank *n, struct null_slot *s, uint32_t id) {
    s->damaged |= id != 0 && id == n->o.damaged_id;
    s->hash = mix(s->hash ^ ((uint64_t)s->length << 32 | id));
    s->length++;
}

/* Whether the pages hold the very ids that a restored state stands for. */
static int compare_pages(const struct null_rank *n, struct null_slot *s, uint32_t slot, struct error *e) {
    uint64_t hash = 0;
    for (uint32_t i = 0; i < s->length; i++) {
        uint32_t page = s->pages[i / PAGE_TOKENS];
        if (page == 0)
            return error_set(e, -EINVAL, "slot %u: no page for position %u of its state", slot, i);
        hash = mix(hash ^ ((uint64_t)i << 32 | ids_of_page(n, page)[i % PAGE_TOKENS]));
    }
    if (hash != s->hash)
        return error_set(e, -EINVAL, "slot %u: its pages do not hold the %u ids that its state stands for",
                slot, s->length);
    s->restored = false;
    return 0;
}

static int feed(struct null_rank *n, struct null_slot *s, uint32_t slot, uint32_t id, struct error *e) {
    if (id >= n->o.vocab_size)
        return error_set(e, -EINVAL, "slot %u: id %u, the vocabulary has %u", slot, id, n->o.vocab_size);
    if (s->length >= n->o.max_model_len)
        return error_set(e, -EINVAL, "slot %u: position %u is past the longest sequence", slot, s->length);
    if (s->pages[s->length / PAGE_TOKENS] == 0)
        return error_set(e, -EINVAL, "slot %u: no page for position %u", slot, s->length);
    uint32_t page = s->pages[s->length / PAGE_TOKENS];
    if (n->page_users[page] != 1)
        return error_set(e, -EINVAL, "slot %u: position %u would be written into page %u, which %u slots use",
                slot, s->length, page, n->page_users[page]);
    ids_of_page(n, page)[s->length % PAGE_TOKENS] = id;
    take_id(n, s, id);
    return 0;
}

/* A logprob that depends on what the slot has read, and a list that looks like one. */
static void report(const struct null_rank *n, const struct step_entry *t, uint64_t hash, uint32_t id,
        struct step_sample *ret) {
    uint32_t first = n->o.id_count > 0 ? n->o.id_first : 0;
    uint32_t count = n->o.id_count > 0 ? n->o.id_count : n->o.vocab_size;
    *ret = (struct step_sample){.id = id, .n_top = t->top_logprobs};
    ret->logprob = (t->flags & STEP_ENTRY_LOGPROB) ? -(float)(hash >> 40 & 1023) / 256 : 0;
    for (uint32_t i = 0; i < t->top_logprobs; i++) {
        ret->top_ids[i] = first + (id - first + i) % count;
        ret->top_logprobs[i] = ret->logprob - (float)i;
    }
}

static int feed_prompt(struct null_rank *n, const struct step_plan *p, const struct step_entry *t,
        struct step_outcome *o, struct error *e) {
    struct step_sample *scores = (struct step_sample *)(void *)(o + 1);
    struct null_slot *s = &n->slots[t->slot];
    const uint32_t *ids = blob_words(p, t->n_rows, t->ids_at);
    bool generated = (t->flags & STEP_ENTRY_GENERATED) != 0;
    if (t->first_pos != s->length)
        return error_set(e, -EINVAL, "slot %u: rows from position %u, its length is %u", t->slot,
                t->first_pos, s->length);
    s->counted |= !generated;
    if (!generated && (s->generated || s->outputs > 0))
        return error_set(e, -EINVAL, "slot %u: given rows after generated ones", t->slot);
    for (uint32_t i = 0; i < t->n_rows; i++) {
        int r = feed(n, s, t->slot, ids[i], e);
        if (r < 0)
            return r;
        if (i < t->n_scores)
            report(n, t, mix(s->hash), i + 1 < t->n_rows ? ids[i + 1] : t->id_after, &scores[o->n_scores++]);
    }
    if (generated) {
        s->generated = true;
        s->outputs += t->n_rows;
    }
    s->last_id = STEP_NONE;
    s->n_drafts = 0;
    return 0;
}

static bool ends_with(const struct null_slot *s, uint32_t id) {
    for (uint32_t i = 0; i < s->n_suppress; i++) {
        if (s->suppress[i] == id)
            return true;
    }
    return false;
}

static bool suppressed(const struct null_slot *s, const uint32_t *mask, uint32_t index, uint32_t id) {
    return (mask != NULL && !mask_has(mask, id)) || (index < s->min_tokens && ends_with(s, id));
}

/* The slot's next token, which becomes its last id. mask: NULL = any. STEP_SAMPLE_OK, or why there is none. */
static enum step_sample_status sample(const struct null_rank *n, const struct step_entry *t,
        const uint32_t *mask, struct null_slot *s, struct step_sample *ret) {
    uint32_t first = n->o.id_count > 0 ? n->o.id_first : 0;
    uint32_t count = n->o.id_count > 0 ? n->o.id_count : n->o.vocab_size;
    uint64_t h = mix(s->hash ^ mix(s->seed + s->sample_index));
    uint32_t at = (uint32_t)(h % count), tries;
    for (tries = 0; tries < count && suppressed(s, mask, s->sample_index, first + at); tries++)
        at = (at + 1) % count;
    s->last_id = 0; /* without a token the slot goes on with id 0, as every rank does */
    if (s->damaged || tries == count)
        return s->damaged ? STEP_SAMPLE_NOT_FINITE : STEP_SAMPLE_NO_TOKEN;
    report(n, t, h, first + at, ret);
    s->last_id = ret->id;
    s->outputs++;
    s->sample_index++;
    return STEP_SAMPLE_OK;
}

/* Whether the draft for this slot's next sample is to be right, the i-th that is left. */
static bool draft_is_right(const struct null_rank *n, const struct null_slot *s, uint32_t i) {
    if (n->o.draft_odds == 0)
        return i < n->o.drafts_right;
    return mix(s->hash ^ mix(s->sample_index)) % 100 < n->o.draft_odds;
}

/* What this slot will sample, where it is to be right; else something else. */
static void leave_drafts(const struct null_rank *n, const struct step_entry *t, struct null_slot *s) {
    struct null_slot ahead = *s;
    struct step_sample next;
    s->n_drafts = t->n_draft_next;
    for (uint32_t i = 0; i < s->n_drafts; i++) {
        take_id(n, &ahead, ahead.last_id);
        bool right = draft_is_right(n, &ahead, i);
        if (sample(n, t, /* mask= */ NULL, &ahead, &next) != STEP_SAMPLE_OK)
            next.id = 0;
        s->drafts[i] = right ? next.id : (next.id + 1) % n->o.vocab_size;
    }
}

/* Samples after the entry's first row, and goes on as long as the next draft is what was sampled. */
static int verify(struct null_rank *n, const struct step_plan *p, const struct step_entry *t,
        const uint32_t *drafts, uint32_t n_drafts, struct step_outcome *o, struct error *e) {
    struct null_slot *s = &n->slots[t->slot];
    struct step_sample *samples = (struct step_sample *)(void *)(o + 1) + o->n_scores;
    const uint32_t *masks = blob_words(p, t->n_masks, t->mask_at);
    if (!s->counted && s->sample_index >= s->outputs && s->sample_index - s->outputs <= s->length) {
        s->outputs = s->sample_index;
        s->counted = true;
    }
    if (s->sample_index != s->outputs)
        return error_set(e, -EINVAL, "slot %u: sample %u after %u generated tokens", t->slot, s->sample_index,
                s->outputs);
    for (;;) {
        const uint32_t *mask =
                masks == NULL ? NULL : masks + (t->n_masks > 1 ? o->n_accepted : 0) * t->mask_words;
        o->status = sample(n, t, mask, s, &samples[o->n_samples]);
        if (o->status != STEP_SAMPLE_OK)
            break;
        o->n_samples++;
        if (o->n_accepted == n_drafts || drafts[o->n_accepted] != s->last_id || ends_with(s, s->last_id))
            break;
        o->n_accepted++;
        int r = feed(n, s, t->slot, s->last_id, e);
        if (r < 0)
            return r;
    }
    leave_drafts(n, t, s);
    return 0;
}

/* The drafts of a CONTINUE and what they need: all of them in the vocabulary, a page for every row. */
static int take_drafts(const struct null_rank *n, const struct step_plan *p, const struct step_entry *t,
        uint32_t ret[DRAFT_MAX], struct error *e) {
    const struct null_slot *s = &n->slots[t->slot];
    uint32_t n_drafts = t->n_rows - 1;
    if (n_drafts > n->o.drafts_max || t->n_draft_next > n->o.drafts_max)
        return error_set(e, -EINVAL, "slot %u: %u drafts and %u for the next step, this rank takes %u",
                t->slot, n_drafts, t->n_draft_next, n->o.drafts_max);
    if (t->drafts_at == STEP_NONE && n_drafts > s->n_drafts)
        return error_set(
                e, -EINVAL, "slot %u: %u drafts, its last step left %u", t->slot, n_drafts, s->n_drafts);
    if (n_drafts > 0)
        memcpy(ret, t->drafts_at == STEP_NONE ? (const void *)s->drafts : p->blob + t->drafts_at,
                n_drafts * sizeof(ret[0]));
    for (uint32_t i = 0; i < n_drafts; i++) {
        uint32_t position = s->length + 1 + i;
        if (ret[i] >= n->o.vocab_size)
            return error_set(
                    e, -EINVAL, "slot %u: draft %u, the vocabulary has %u", t->slot, ret[i], n->o.vocab_size);
        if (position >= n->o.max_model_len || s->pages[position / PAGE_TOKENS] == 0)
            return error_set(e, -EINVAL, "slot %u: no page for a draft at position %u", t->slot, position);
    }
    return 0;
}

static void end_outcome(struct null_rank *n, const struct step_outcome *o) {
    n->checksum = step_checksum(n->checksum, o, step_outcome_samples(o));
    n->n_outcomes++;
    n->body_bytes += (uint32_t)((const uint8_t *)step_outcome_next(o) - (const uint8_t *)o);
}

static int run_entry(
        struct null_rank *n, const struct step_plan *p, const struct step_entry *t, struct error *e) {
    uint32_t drafts[DRAFT_MAX], n_drafts = 0; /* that may be accepted */
    struct step_outcome *o = (struct step_outcome *)(void *)(n->body + n->body_bytes);
    bool prompt = t->kind == STEP_ENTRY_PROMPT;
    struct null_slot *s = NULL;
    *o = (struct step_outcome){.slot = t->slot};
    int r = open_slot_of(n, t->slot, "entry", &s, e);
    if (r == 0)
        r = grant(n, p, t, e);
    if (r == 0 && s->restored)
        r = compare_pages(n, s, t->slot, e);
    if (r < 0)
        return r;
    if (prompt) {
        r = feed_prompt(n, p, t, o, e);
        if (r == 0 && t->n_draft_next > n->o.drafts_max)
            r = error_set(e, -EINVAL, "slot %u: asks for %u drafts, this rank makes %u", t->slot,
                    t->n_draft_next, n->o.drafts_max);
    } else if (s->last_id == STEP_NONE) {
        r = error_set(e, -EINVAL, "slot %u: nothing was sampled to continue from", t->slot);
    } else {
        r = take_drafts(n, p, t, drafts, e);
        n_drafts = ends_with(s, s->last_id) ? 0 : t->n_rows - 1;
        if (r == 0)
            r = feed(n, s, t->slot, s->last_id, e);
        if (r == 0)
            s->last_id = STEP_NONE;
    }
    if (r == 0 && (t->flags & STEP_ENTRY_SAMPLE))
        r = verify(n, p, t, drafts, n_drafts, o, e);
    if (r == 0 && ((t->flags & STEP_ENTRY_SAMPLE) || t->n_scores > 0))
        end_outcome(n, o);
    return r;
}

static int run_entries(struct null_rank *n, const struct step_plan *p, struct error *e) {
    if (p->n_rows > n->o.rows_max)
        return error_set(e, -EINVAL, "a step of %u rows, this rank takes %u", p->n_rows, n->o.rows_max);
    for (uint32_t i = 0; i < p->n_entries; i++) {
        int r = run_entry(n, p, &p->entries[i], e);
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- records --- */

static void sleep_until(uint64_t ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static int complete(struct step_ring *r, const struct step_completion *c, const void *body, uint32_t bytes) {
    int err;
    while ((err = step_ring_complete(r, c, body, bytes)) == -EAGAIN)
        step_ring_wait(r, /* timeout_ns= */ 100000000u);
    return err;
}

static int answer_fault(struct step_ring *r, const struct step_plan *p, const char *text) {
    struct step_completion c = {
            .type = p->header->type, .step = p->header->step, .status = STEP_STATUS_FAULT};
    c.n_outcomes = (uint32_t)strnlen(text, STEP_FAULT_TEXT_MAX);
    return complete(r, &c, text, c.n_outcomes);
}

static int answer_reset(struct null_rank *n, struct step_ring *r) {
    struct step_completion c = {.type = STEP_TYPE_RESET};
    struct step_geometry g = {
            .rank = n->o.rank,
            .tp = n->o.tp,
            .slots = n->o.slots,
            .pages = n->o.pages,
            .pages_per_slot = n->pages_per_slot,
            .slot_units = n->o.slot_units,
            .page_units = n->o.page_units,
            .rows_max = n->o.rows_max,
            .entries_max = n->o.slots,
            .vocab_size = n->o.vocab_size,
            .max_model_len = n->o.max_model_len,
            .has_mtp = n->o.has_mtp,
            .model_has_mtp = n->o.model_has_mtp,
            .drafts_max = n->o.drafts_max,
            .fingerprint = n->o.fingerprint,
    };
    snprintf(g.device, sizeof(g.device), "null rank %u, computes nothing", n->o.rank);
    for (uint32_t i = 1; i <= n->o.slots; i++)
        empty_slot(n, &n->slots[i]);
    memset(n->units, 0, ((size_t)n->o.slot_units + 1) * sizeof(n->units[0]));
    memset(n->unit_ids, 0xff, (size_t)n->o.page_units * PAGE_TOKENS * sizeof(n->unit_ids[0]));
    run_stores(n);
    n->stored = n->store_failed = n->index_at = 0;
    for (uint32_t k = 0; n->store != NULL && k < STEP_STORED_KINDS; k++)
        g.stored[k] = n->store->n[k];
    n->last_step = n->plans = 0;
    n->reset_seen = true;
    return complete(r, &c, &g, sizeof(g));
}

static int answer_plan(struct null_rank *n, struct step_ring *r, const struct step_plan *p, bool faults) {
    struct error e = {0};
    struct step_completion c = {.type = STEP_TYPE_PLAN, .step = p->header->step};
    uint64_t start = clock_ns();
    n->n_outcomes = n->body_bytes = 0;
    n->checksum = STEP_CHECKSUM_SEED;
    int err = close_slots(n, p, &e);
    if (err == 0)
        err = open_slots(n, p, &e);
    if (err == 0)
        err = run_memory(n, p, &e);
    run_stores(n);
    if (err == 0)
        err = take_stores(n, p, &e);
    if (err == 0)
        err = run_entries(n, p, &e);
    if (err == 0 && faults && n->plans == n->o.fault_at_step)
        err = error_set(&e, -EIO, "asked to report a fault at step %llu", (unsigned long long)n->plans);
    if (err < 0)
        return answer_fault(r, p, e.text);
    uint64_t cost = n->o.step_ns + (uint64_t)p->n_rows * n->o.row_ns;
    if (cost > 0)
        sleep_until(start + cost);
    c.checksum = n->checksum;
    if (faults && n->plans == n->o.lie_at_step)
        c.checksum ^= 1;
    c.n_outcomes = n->o.rank == 0 ? n->n_outcomes : 0;
    c.stored = n->stored;
    c.store_failed = n->store_failed;
    c.compute_ns = clock_ns() - start;
    if (n->o.claimed_ns > 0)
        c.compute_ns = n->o.claimed_ns + p->n_rows * n->o.claimed_row_ns;
    return complete(r, &c, n->body, n->o.rank == 0 ? n->body_bytes : 0);
}

static int answer(struct null_rank *n, struct step_ring *r, const struct step_plan *p) {
    struct step_completion c = {.type = p->header->type, .step = p->header->step};
    bool faults = step_ring_group_epoch(r) <= n->o.fault_epochs;
    if (p->header->type == STEP_TYPE_RESET)
        return answer_reset(n, r);
    if (!n->reset_seen || p->header->step != n->last_step + 1)
        return answer_fault(r, p, "steps must count up from the last reset");
    n->last_step++;
    if (p->header->type != STEP_TYPE_PLAN) {
        run_stores(n);
        c.stored = n->stored;
        c.store_failed = n->store_failed;
        c.n_outcomes = p->header->type == STEP_TYPE_INDEX ? list_stored(n) : 0;
        int err = complete(r, &c, n->index, c.n_outcomes * (uint32_t)sizeof(n->index[0]));
        return err == 0 && p->header->type == STEP_TYPE_STOP ? -ESHUTDOWN : err;
    }
    n->plans++;
    if (faults && n->plans == n->o.die_at_step)
        return -ECANCELED;
    if (faults && n->plans == n->o.hang_at_step)
        return -EDEADLK;
    return answer_plan(n, r, p, faults);
}

int null_rank_serve(struct null_rank *n, struct step_ring *r, uint64_t timeout_ns, struct error *e) {
    const void *record;
    uint32_t bytes;
    struct step_plan p;
    int err = step_ring_next(r, &record, &bytes);
    if (err == -EAGAIN) {
        step_ring_wait(r, timeout_ns);
        err = step_ring_next(r, &record, &bytes);
    }
    if (err == -EAGAIN)
        return -ETIMEDOUT;
    if (err < 0)
        return error_set(e, err, "the step ring is damaged");
    err = step_decode(record, bytes, &p, e);
    if (err < 0)
        return err;
    if (p.header->group_epoch == step_ring_group_epoch(r) &&
            p.header->coord_epoch == step_ring_coord_epoch(r)) {
        step_ring_progress(r, p.header->step, 0, 0, /* busy= */ true);
        err = answer(n, r, &p);
        if (err != -EDEADLK)
            step_ring_progress(r, p.header->step, 0, 0, /* busy= */ false);
    }
    step_ring_release(r);
    return err;
}
