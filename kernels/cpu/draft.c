/* draft.c - the batch in which the MTP layer makes drafts, and what it leaves in the slots. kernels.h says in which
 * order.
 *
 * Called by tp/ behind k_end_step(), when slots have their new lengths. A row stands at the position whose hidden row
 * it continues from: it samples what is two positions on, and the layer stores its entry one on (kv_shift). */
#include "kernels/cpu/internal.h"

#include <assert.h>
#include <string.h>

struct draft_args {
    struct k_pool *p;
    const struct k_batch *b; /* k_draft_begin: the step's */
    struct k_batch *d;
    const struct k_outcome *outcomes;
    const struct k_result *results;
    const float *hidden;
    float *d_hidden;
};

/* Row `row` of d goes on behind the accepted rows of entry e of the step. */
static void begin_draft(const struct draft_args *a, const struct k_entry *e, uint32_t row) {
    const struct k_outcome *o = a->outcomes ? &a->outcomes[e->outcome_at] : NULL;
    const uint32_t from = e->row_begin + entry_accepted_row(e, o);
    const uint64_t n = a->p->shape.hidden_size;
    const struct slot *slot = &a->p->slots[e->slot];
    struct k_batch *d = a->d;
    d->entries[row] = (struct k_entry){.slot = e->slot,
            .kind = K_ENTRY_CONTINUE,
            .flags = K_ENTRY_SAMPLE | K_ENTRY_DRAFT,
            .n_rows = 1,
            .row_begin = row,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX,
            .drafts_at = UINT32_MAX,
            .n_draft_next = e->n_draft_next,
            .sample_at = row};
    d->row_id[row] = slot->last_id;
    d->row_pos[row] = slot->length - 1;
    d->row_entry[row] = row;
    memcpy(d->row_rope + 3 * row, a->b->row_rope + 3 * from, 3 * sizeof *d->row_rope);
    memcpy(a->d_hidden + row * n, a->hidden + from * n, n * sizeof *a->d_hidden);
}
static void run_draft_begin(struct k_stream *s, const void *args) {
    const struct draft_args *a = args;
    uint32_t n = 0;
    (void)s;
    for (uint32_t i = 0; i < a->b->plan.n_entries && n < a->d->entries_max; i++) {
        const struct k_entry *e = &a->b->entries[i];
        if (e->n_draft_next > 0 && e->flags & K_ENTRY_SAMPLE)
            begin_draft(a, e, n++);
    }
    a->d->plan = (struct k_plan){.n_entries = n, .n_rows = n, .n_samples = n};
}
void k_draft_begin(struct k_stream *s, struct k_pool *p, const struct k_batch *b,
        const struct k_outcome *outcomes, const float *hidden, struct k_batch *d, float *d_hidden) {
    struct draft_args a = {
            .p = p, .b = b, .d = d, .outcomes = outcomes, .hidden = hidden, .d_hidden = d_hidden};
    assert(d->entries_max <= d->rows_max);
    stream_submit(s, run_draft_begin, &a, sizeof a);
}

/* Whether the MTP layer may store an entry at this index. */
static bool has_page(const struct k_pool *p, uint32_t slot, uint32_t index) {
    const uint32_t page = index / PAGE_TOKENS, n = p->options.pages_per_slot;
    return page < n && p->tables[(uint64_t)slot * n + page] != 0;
}
/* The row is nobody's from here on: the layer stores what it makes of it in the dummy page. Where it stood its entry
 * would be put over one of a token that is known. */
static void park(struct k_batch *d, uint32_t row) {
    d->entries[row].slot = d->entries[row].n_draft_next = 0;
    d->row_pos[row] = 0;
    memset(d->row_rope + 3 * row, 0, 3 * sizeof *d->row_rope);
}
static void take_draft(const struct draft_args *a, uint32_t row) {
    struct k_batch *d = a->d;
    const struct k_entry *e = &d->entries[row];
    struct slot *slot = &a->p->slots[e->slot];
    const uint32_t most = e->n_draft_next < DRAFT_MAX ? e->n_draft_next : DRAFT_MAX;
    if (slot->n_drafts >= most)
        return;
    slot->drafts[slot->n_drafts++] = d->row_id[row] = a->results[row].id;
    if (!has_page(a->p, e->slot, d->row_pos[row] + 2)) {
        while (slot->n_drafts < most)
            slot->drafts[slot->n_drafts++] = a->results[row].id;
        park(d, row);
        return;
    }
    d->row_pos[row]++;
    for (uint32_t axis = 0; axis < 3; axis++)
        d->row_rope[3 * row + axis]++;
}
static void run_draft_take(struct k_stream *s, const void *args) {
    const struct draft_args *a = args;
    (void)s;
    for (uint32_t row = 0; row < a->d->plan.n_rows; row++)
        take_draft(a, row);
}
void k_draft_take(struct k_stream *s, struct k_pool *p, struct k_batch *d, const struct k_result *results) {
    struct draft_args a = {.p = p, .d = d, .results = results};
    stream_submit(s, run_draft_take, &a, sizeof a);
}
