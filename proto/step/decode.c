/* decode.c - checks what a peer of the step protocol sent before anything in it is used.
 *
 * step_decode is for ranks (records), step_completion_check for the coordinator (completions). Both read only
 * inside the bytes they were given and allocate nothing; the plan that comes out points into the record. */
#include "proto/step/step.h"

#include "base/mask.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Each slot at most once per section. */
struct slot_set {
    uint64_t bits[SEQS_MAX / 64 + 1];
};

static int slot_add(struct slot_set *set, uint32_t slot, const char *section, uint32_t i, struct error *e) {
    if (slot == 0 || slot > SEQS_MAX)
        return error_set(e, -EBADMSG, "%s %u: slot %u is not between 1 and %u", section, i, slot, SEQS_MAX);
    uint64_t bit = 1ull << (slot % 64);
    if (set->bits[slot / 64] & bit)
        return error_set(e, -EBADMSG, "%s %u: slot %u is there twice", section, i, slot);
    set->bits[slot / 64] |= bit;
    return 0;
}

/* n items of item_bytes at a 4-byte aligned offset of the blob. */
static bool blob_has(const struct step_plan *p, uint32_t at, uint32_t n, uint32_t item_bytes) {
    uint32_t bytes, end;
    if (at % 4 != 0 || __builtin_mul_overflow(n, item_bytes, &bytes) ||
            __builtin_add_overflow(at, bytes, &end))
        return false;
    return end <= p->blob_bytes;
}

static uint32_t blob_u32(const struct step_plan *p, uint32_t at, uint32_t i) {
    uint32_t v;
    memcpy(&v, p->blob + at + 4 * (size_t)i, sizeof(v));
    return v;
}

static int check_sampling(const struct step_open *o, uint32_t i, struct error *e) {
    /* Written so that a NaN fails every one of them. */
    const char *bad = NULL;
    if (!(o->temperature >= 0 && isfinite(o->temperature)))
        bad = "temperature";
    else if (!(o->top_p > 0 && o->top_p <= 1))
        bad = "top_p";
    else if (!(o->min_p >= 0 && o->min_p <= 1))
        bad = "min_p";
    else if (!(o->repetition_penalty > 0 && isfinite(o->repetition_penalty)))
        bad = "repetition_penalty";
    else if (!isfinite(o->presence_penalty))
        bad = "presence_penalty";
    else if (!isfinite(o->frequency_penalty))
        bad = "frequency_penalty";
    else if (o->min_tokens > NEW_TOKENS_MAX)
        bad = "min_tokens";
    return bad == NULL ? 0 : error_set(e, -EBADMSG, "open %u: %s is out of range", i, bad);
}

static int check_opens(const struct step_plan *p, struct error *e) {
    struct slot_set set = {0};
    for (uint32_t i = 0; i < p->n_opens; i++) {
        const struct step_open *o = &p->opens[i];
        int r = slot_add(&set, o->slot, "open", i, e);
        if (r == 0)
            r = check_sampling(o, i, e);
        if (r < 0)
            return r;
        if (o->flags != 0 || o->reserved != 0)
            return error_set(e, -EBADMSG, "open %u: unknown flags 0x%x or reserved bits", i, o->flags);
        if (o->first_sample_index > NEW_TOKENS_MAX)
            return error_set(e, -EBADMSG, "open %u: sample index %u is over %u", i, o->first_sample_index,
                    NEW_TOKENS_MAX);
        if (o->n_bias > LOGIT_BIAS_MAX || (o->n_bias > 0 && !blob_has(p, o->bias_at, o->n_bias, 8)))
            return error_set(e, -EBADMSG, "open %u: %u biases do not fit the blob or the limit of %u", i,
                    o->n_bias, LOGIT_BIAS_MAX);
        for (uint32_t k = 0; k < o->n_bias; k++) {
            float bias;
            memcpy(&bias, p->blob + o->bias_at + 8 * (size_t)k + 4, sizeof(bias));
            if (!isfinite(bias))
                return error_set(e, -EBADMSG, "open %u: bias %u is not a finite number", i, k);
        }
        if (o->n_suppress > STEP_SUPPRESS_MAX ||
                (o->n_suppress > 0 && !blob_has(p, o->suppress_at, o->n_suppress, 4)))
            return error_set(e, -EBADMSG, "open %u: %u suppressed ids do not fit the blob or the limit of %u",
                    i, o->n_suppress, STEP_SUPPRESS_MAX);
    }
    return 0;
}

static int check_memory(const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_memory; i++) {
        const struct step_memory *m = &p->memory[i];
        if (m->kind >= STEP_MEMORY_KINDS || m->reserved != 0)
            return error_set(e, -EBADMSG, "memory %u: unknown operation %u or reserved bits", i, m->kind);
        /* Units count from 0, slots and pages from 1. */
        bool a_counts_from_1 = m->kind != STEP_MEMORY_RESTORE_SLOT && m->kind != STEP_MEMORY_PAGE_IN;
        bool b_counts_from_1 = m->kind == STEP_MEMORY_COPY_SLOT || m->kind == STEP_MEMORY_COPY_PAGE ||
                               m->kind == STEP_MEMORY_RESTORE_SLOT || m->kind == STEP_MEMORY_PAGE_IN;
        if ((a_counts_from_1 && m->a == 0) || (b_counts_from_1 && m->b == 0))
            return error_set(e, -EBADMSG, "memory %u: names dummy slot or page 0", i);
    }
    return 0;
}

static bool is_record(const struct step_record *r) {
    bool is_state = r->what == STEP_STORED_STATE;
    return r->what < STEP_STORED_KINDS && r->reserved == 0 && (r->length > 0) == is_state &&
           r->length <= CONTEXT_MAX;
}

static int check_stores(const struct step_plan *p, struct error *e) {
    for (uint32_t i = 0; i < p->n_stores; i++) {
        const struct step_store *s = &p->stores[i];
        if (s->kind > STEP_STORE_READ || !is_record(&s->record))
            return error_set(
                    e, -EBADMSG, "store %u: unknown operation %u, or a record that cannot be", i, s->kind);
    }
    return 0;
}

static int check_prompt(const struct step_plan *p, const struct step_entry *t, uint32_t i, struct error *e) {
    uint32_t end, n_rope;
    if (t->n_rows > STEP_ROWS_MAX || __builtin_add_overflow(t->first_pos, t->n_rows, &end) ||
            end > CONTEXT_MAX)
        return error_set(e, -EBADMSG, "entry %u: %u rows from position %u pass the limits", i, t->n_rows,
                t->first_pos);
    if (!blob_has(p, t->ids_at, t->n_rows, 4))
        return error_set(e, -EBADMSG, "entry %u: %u ids at %u are not in the blob", i, t->n_rows, t->ids_at);
    n_rope = 3 * t->n_rows;
    if (t->drafts_at != STEP_NONE)
        return error_set(e, -EBADMSG, "entry %u: a PROMPT has no drafts", i);
    if (t->rope_at != STEP_NONE && !blob_has(p, t->rope_at, n_rope, 4))
        return error_set(e, -EBADMSG, "entry %u: its rope positions are not in the blob", i);
    return 0;
}

static int check_continue(
        const struct step_plan *p, const struct step_entry *t, uint32_t i, struct error *e) {
    if (t->n_rows > 1 + DRAFT_MAX)
        return error_set(
                e, -EBADMSG, "entry %u: %u rows of a CONTINUE, at most %u", i, t->n_rows, 1 + DRAFT_MAX);
    if (t->n_rows > 1 && (t->flags & STEP_ENTRY_SAMPLE) == 0)
        return error_set(e, -EBADMSG, "entry %u: drafts that nothing is sampled to compare with", i);
    if (t->drafts_at != STEP_NONE && (t->n_rows == 1 || !blob_has(p, t->drafts_at, t->n_rows - 1, 4)))
        return error_set(e, -EBADMSG, "entry %u: %u drafts at %u are none or not in the blob", i,
                t->n_rows - 1, t->drafts_at);
    if (t->ids_at != STEP_NONE || t->id_after != STEP_NONE || (t->flags & STEP_ENTRY_GENERATED))
        return error_set(e, -EBADMSG, "entry %u: a CONTINUE carries no ids", i);
    if (t->rope_at != STEP_NONE && !blob_has(p, t->rope_at, 3 * t->n_rows, 4))
        return error_set(e, -EBADMSG, "entry %u: its rope positions are not in the blob", i);
    return 0;
}

static int check_grant(const struct step_plan *p, const struct step_entry *t, uint32_t i, struct error *e) {
    uint32_t end;
    if (t->n_pages == 0)
        return 0;
    if (__builtin_add_overflow(t->page_first, t->n_pages, &end) || end > STEP_SLOT_PAGES_MAX ||
            !blob_has(p, t->pages_at, t->n_pages, 4))
        return error_set(e, -EBADMSG, "entry %u: a grant of %u pages from %u does not fit", i, t->n_pages,
                t->page_first);
    for (uint32_t k = 0; k < t->n_pages; k++) {
        if (blob_u32(p, t->pages_at, k) == 0)
            return error_set(e, -EBADMSG, "entry %u: grants page 0, which is a dummy", i);
    }
    return 0;
}

static uint32_t samples_of(const struct step_entry *t) {
    return (t->flags & STEP_ENTRY_SAMPLE) == 0 ? 0 : t->kind == STEP_ENTRY_PROMPT ? 1 : t->n_rows;
}

static int check_masks(const struct step_plan *p, const struct step_entry *t, uint32_t i, struct error *e) {
    if (t->n_masks == 0)
        return t->mask_at == STEP_NONE && t->mask_words == 0
                       ? 0
                       : error_set(e, -EBADMSG, "entry %u: a mask that is none", i);
    uint32_t samples = samples_of(t);
    if (samples == 0 || (t->n_masks != 1 && t->n_masks != samples))
        return error_set(e, -EBADMSG, "entry %u: %u masks for %u samples", i, t->n_masks, samples);
    if (t->mask_words == 0 || t->mask_words > mask_words(TOKENIZER_VOCAB_MAX) ||
            !blob_has(p, t->mask_at, t->n_masks * t->mask_words, 4))
        return error_set(e, -EBADMSG, "entry %u: %u masks of %u words at %u are not in the blob", i,
                t->n_masks, t->mask_words, t->mask_at);
    return 0;
}

static int check_scores(const struct step_entry *t, uint32_t i, struct error *e) {
    if (t->n_scores == 0)
        return 0;
    if (t->kind != STEP_ENTRY_PROMPT || (t->flags & STEP_ENTRY_GENERATED) != 0 ||
            (t->flags & STEP_ENTRY_LOGPROB) == 0)
        return error_set(e, -EBADMSG, "entry %u: scores are of given rows of a PROMPT, with LOGPROB", i);
    uint32_t most = t->n_rows - (samples_of(t) > 0 || t->id_after == STEP_NONE);
    if (t->n_scores > most)
        return error_set(
                e, -EBADMSG, "entry %u: %u scores, at most %u of its rows have one", i, t->n_scores, most);
    return 0;
}

static int check_entry(const struct step_plan *p, const struct step_entry *t, uint32_t i, struct error *e) {
    const uint32_t known = STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB | STEP_ENTRY_GENERATED;
    if (t->kind > STEP_ENTRY_CONTINUE || (t->flags & ~known) != 0 || t->replay > 1 || t->reserved != 0)
        return error_set(e, -EBADMSG, "entry %u: unknown kind %u, flags 0x%x or replay %u", i, t->kind,
                t->flags, t->replay);
    if (t->n_rows == 0)
        return error_set(e, -EBADMSG, "entry %u: has no rows", i);
    if ((t->flags & STEP_ENTRY_LOGPROB) != 0 && (t->flags & STEP_ENTRY_SAMPLE) == 0 && t->n_scores == 0)
        return error_set(e, -EBADMSG, "entry %u: asks for a logprob of nothing sampled", i);
    if (t->top_logprobs > TOP_LOGPROBS_MAX || (t->top_logprobs > 0 && (t->flags & STEP_ENTRY_LOGPROB) == 0))
        return error_set(e, -EBADMSG, "entry %u: %u top logprobs, at most %u and with LOGPROB only", i,
                t->top_logprobs, TOP_LOGPROBS_MAX);
    if (t->n_draft_next > DRAFT_MAX || (t->n_draft_next > 0 && (t->flags & STEP_ENTRY_SAMPLE) == 0))
        return error_set(e, -EBADMSG, "entry %u: leaves %u drafts, at most %u and with SAMPLE only", i,
                t->n_draft_next, DRAFT_MAX);
    int r = t->kind == STEP_ENTRY_PROMPT ? check_prompt(p, t, i, e) : check_continue(p, t, i, e);
    if (r == 0)
        r = check_masks(p, t, i, e);
    if (r == 0)
        r = check_scores(t, i, e);
    return r < 0 ? r : check_grant(p, t, i, e);
}

static int check_entries(struct step_plan *p, struct error *e) {
    struct slot_set set = {0};
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        int r = slot_add(&set, t->slot, "entry", i, e);
        if (r == 0)
            r = check_entry(p, t, i, e);
        if (r < 0)
            return r;
        p->n_rows += t->n_rows; /* at most SEQS_MAX * STEP_ROWS_MAX: no overflow */
        p->n_outcomes += (t->flags & STEP_ENTRY_SAMPLE) != 0 || t->n_scores > 0;
        p->n_masks += t->n_masks;
        p->n_scores += t->n_scores;
    }
    if (p->n_masks > MASKS_MAX || p->n_scores > SCORES_MAX)
        return error_set(e, -EBADMSG, "a step of %u masks and %u scores, at most %u and %u are possible",
                p->n_masks, p->n_scores, MASKS_MAX, SCORES_MAX);
    if (p->n_rows > STEP_ROWS_MAX)
        return error_set(e, -EBADMSG, "a step of %u rows is over the limit of %u", p->n_rows, STEP_ROWS_MAX);
    return 0;
}

static int take_section(
        struct step_plan *p, const struct step_section *s, const void *items, struct error *e) {
    uint32_t item, max;
    switch (s->type) {
    case STEP_SECTION_OPEN:
        item = sizeof(struct step_open), max = SEQS_MAX;
        p->opens = items, p->n_opens = s->count;
        break;
    case STEP_SECTION_CLOSE:
        item = sizeof(uint32_t), max = SEQS_MAX;
        p->closes = items, p->n_closes = s->count;
        break;
    case STEP_SECTION_MEMORY:
        item = sizeof(struct step_memory), max = STEP_MEMORY_MAX;
        p->memory = items, p->n_memory = s->count;
        break;
    case STEP_SECTION_ENTRY:
        item = sizeof(struct step_entry), max = SEQS_MAX;
        p->entries = items, p->n_entries = s->count;
        break;
    case STEP_SECTION_STORE:
        item = sizeof(struct step_store), max = STEP_STORE_MAX;
        p->stores = items, p->n_stores = s->count;
        break;
    case STEP_SECTION_BLOB:
        item = 1, max = STEP_RECORD_MAX;
        p->blob = items, p->blob_bytes = s->count;
        break;
    default:
        return error_set(e, -EBADMSG, "unknown section %u: the peer is of another build", s->type);
    }
    uint32_t bytes;
    if (s->item_bytes != item || s->count == 0 || s->count > max ||
            __builtin_mul_overflow(s->count, item, &bytes) || bytes != s->bytes)
        return error_set(e, -EBADMSG, "section %u: %u items of %u bytes do not make %u bytes", s->type,
                s->count, s->item_bytes, s->bytes);
    return 0;
}

static int take_sections(const uint8_t *record, uint32_t bytes, struct step_plan *p, struct error *e) {
    uint32_t at = sizeof(struct step_header), last_type = 0;
    for (uint32_t i = 0; i < p->header->n_sections; i++) {
        const struct step_section *s = (const struct step_section *)(record + at);
        if (bytes - at < sizeof(*s) || bytes - at - sizeof(*s) < s->bytes)
            return error_set(e, -EBADMSG, "section %u passes the end of the record", i);
        if (s->type <= last_type)
            return error_set(e, -EBADMSG, "section %u of type %u is out of order", i, s->type);
        last_type = s->type;
        int r = take_section(p, s, s + 1, e);
        if (r < 0)
            return r;
        uint32_t end = at + (uint32_t)sizeof(*s) + s->bytes;
        /* The record is a multiple of 8 long, so rounding up cannot pass its end. */
        for (at = end; at % 8 != 0; at++) {
            if (record[at] != 0)
                return error_set(e, -EBADMSG, "section %u: padding is not zero", i);
        }
    }
    if (at != bytes)
        return error_set(e, -EBADMSG, "%u bytes after the last section", bytes - at);
    return 0;
}

static int check_header(const struct step_header *h, uint32_t bytes, struct error *e) {
    if (h->magic != STEP_MAGIC)
        return error_set(e, -EBADMSG, "not a step record (magic 0x%08x)", h->magic);
    if (h->protocol != STEP_PROTOCOL)
        return error_set(e, -EPROTONOSUPPORT,
                "step protocol %u, this build speaks %u: install the same version of "
                "the coordinator and the workers",
                h->protocol, STEP_PROTOCOL);
    if (h->record_bytes != bytes || bytes % 8 != 0)
        return error_set(e, -EBADMSG, "a record of %u bytes says that it has %u", bytes, h->record_bytes);
    if (h->type < STEP_TYPE_RESET || h->type > STEP_TYPE_INDEX)
        return error_set(e, -EBADMSG, "unknown record type %u", h->type);
    if ((h->type == STEP_TYPE_RESET) != (h->step == 0))
        return error_set(
                e, -EBADMSG, "a %s of step %llu", step_type_name(h->type), (unsigned long long)h->step);
    if (h->type != STEP_TYPE_PLAN && h->n_sections != 0)
        return error_set(
                e, -EBADMSG, "a %s has no sections, this one has %u", step_type_name(h->type), h->n_sections);
    return 0;
}

int step_decode(const void *record, uint32_t bytes, struct step_plan *ret, struct error *e) {
    if ((uintptr_t)record % 8 != 0)
        return error_set(e, -EBADMSG, "the record does not start at a multiple of 8");
    if (bytes < sizeof(struct step_header) || bytes > STEP_RECORD_MAX)
        return error_set(e, -EBADMSG, "a record of %u bytes, between %zu and %u are possible", bytes,
                sizeof(struct step_header), STEP_RECORD_MAX);
    struct step_plan p = {.header = record};
    uint32_t slots_checked = 0;
    struct slot_set closed = {0};

    int r = check_header(p.header, bytes, e);
    if (r == 0)
        r = take_sections(record, bytes, &p, e);
    if (r == 0)
        r = check_opens(&p, e);
    for (; r == 0 && slots_checked < p.n_closes; slots_checked++)
        r = slot_add(&closed, p.closes[slots_checked], "close", slots_checked, e);
    if (r == 0)
        r = check_memory(&p, e);
    if (r == 0)
        r = check_stores(&p, e);
    if (r == 0)
        r = check_entries(&p, e);
    if (r < 0)
        return r;
    *ret = p;
    return 0;
}

static int check_outcome(const struct step_outcome *o, uint32_t i, uint32_t left, struct error *e) {
    if (left < sizeof(*o))
        return error_set(e, -EBADMSG, "outcome %u passes the end of the completion", i);
    if (o->status >= STEP_SAMPLE_STATUSES)
        return error_set(e, -EBADMSG, "outcome %u has the unknown status %u", i, o->status);
    bool scores_alone = o->n_scores > 0 && o->n_samples == 0 && o->n_accepted == 0;
    if (o->n_accepted > DRAFT_MAX ||
            (o->n_samples != o->n_accepted + (o->status == STEP_SAMPLE_OK) && !scores_alone))
        return error_set(
                e, -EBADMSG, "outcome %u: %u tokens of %u accepted drafts", i, o->n_samples, o->n_accepted);
    if (o->n_scores > SCORES_MAX || o->reserved != 0)
        return error_set(e, -EBADMSG, "outcome %u: %u scores, at most %u, or reserved bits", i, o->n_scores,
                SCORES_MAX);
    if ((left - sizeof(*o)) / sizeof(struct step_sample) < o->n_samples + o->n_scores)
        return error_set(e, -EBADMSG, "outcome %u: its tokens pass the end of the completion", i);
    const struct step_sample *samples = step_outcome_scores(o);
    for (uint32_t k = 0; k < o->n_samples + o->n_scores; k++) {
        if (samples[k].n_top > TOP_LOGPROBS_MAX || samples[k].reserved != 0)
            return error_set(e, -EBADMSG, "outcome %u: %u top logprobs, at most %u, or reserved bits", i,
                    samples[k].n_top, TOP_LOGPROBS_MAX);
    }
    return 0;
}

static int check_outcomes(const struct step_completion *c, struct error *e) {
    const uint8_t *at = (const uint8_t *)(c + 1), *end = (const uint8_t *)c + c->bytes;
    if (c->n_outcomes > SEQS_MAX)
        return error_set(e, -EBADMSG, "a completion with %u outcomes, at most %u", c->n_outcomes, SEQS_MAX);
    for (uint32_t i = 0; i < c->n_outcomes; i++) {
        const struct step_outcome *o = (const struct step_outcome *)(const void *)at;
        int r = check_outcome(o, i, (uint32_t)(end - at), e);
        if (r < 0)
            return r;
        at = (const uint8_t *)step_outcome_next(o);
    }
    if (at != end)
        return error_set(
                e, -EBADMSG, "%zu bytes after the last of %u outcomes", (size_t)(end - at), c->n_outcomes);
    return 0;
}

static int check_index(const struct step_completion *c, uint32_t body, struct error *e) {
    const struct step_record *all = (const struct step_record *)(const void *)(c + 1);
    if (c->n_outcomes > STEP_INDEX_RECORDS || body != c->n_outcomes * sizeof(all[0]))
        return error_set(e, -EBADMSG, "an index of %u records in %u bytes", c->n_outcomes, body);
    for (uint32_t i = 0; i < c->n_outcomes; i++)
        if (!is_record(&all[i]))
            return error_set(e, -EBADMSG, "record %u of an index cannot be", i);
    return 0;
}

int step_completion_check(const void *completion, uint32_t bytes, struct error *e) {
    const struct step_completion *c = completion;
    if ((uintptr_t)completion % 8 != 0 || bytes < sizeof(*c) || bytes > STEP_COMPLETION_MAX)
        return error_set(e, -EBADMSG, "a completion of %u bytes, at least %zu and at most %u", bytes,
                sizeof(*c), STEP_COMPLETION_MAX);
    if (c->magic != STEP_COMPLETION_MAGIC || c->protocol != STEP_PROTOCOL)
        return error_set(e, -EBADMSG, "not a completion of step protocol %u", STEP_PROTOCOL);
    if (c->bytes != bytes || c->rank >= RANKS_MAX || c->type < STEP_TYPE_RESET || c->type > STEP_TYPE_INDEX)
        return error_set(e, -EBADMSG, "a completion of %u bytes, type %u, rank %u: malformed", c->bytes,
                c->type, c->rank);
    uint32_t body = bytes - (uint32_t)sizeof(*c), expected;
    if (c->status != STEP_STATUS_OK && c->status != STEP_STATUS_FAULT)
        return error_set(e, -EBADMSG, "unknown completion status %u", c->status);
    if (c->status == STEP_STATUS_OK && c->type == STEP_TYPE_INDEX)
        return check_index(c, body, e);
    if (c->status == STEP_STATUS_OK && c->type != STEP_TYPE_RESET)
        return check_outcomes(c, e);
    if (c->status == STEP_STATUS_FAULT)
        expected = c->n_outcomes <= STEP_FAULT_TEXT_MAX ? c->n_outcomes : UINT32_MAX;
    else
        expected = c->n_outcomes == 0 ? (uint32_t)sizeof(struct step_geometry) : UINT32_MAX;
    if (body != expected)
        return error_set(e, -EBADMSG, "a %s completion of %u items has a body of %u bytes",
                step_type_name(c->type), c->n_outcomes, body);
    return 0;
}
