/* batch.c - a step's plan on the device, and the operations that open and close a step.
 *
 * Called by tp/: the batch is created once; each step uploads into it, k_begin_step() derives what each row
 * is, and k_end_step() commits to the slots. Ids come from clients: one outside the vocabulary is a fault,
 * never an access. */
#include "kernels/cpu/internal.h"

#include "base/mask.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int k_batch_create(
        struct k_context *c, uint32_t entries_max, uint32_t rows_max, struct k_batch **ret, struct error *e) {
    int r = batch_check(entries_max, rows_max, e);
    if (r < 0)
        return r;
    struct k_batch *b = calloc(1, sizeof *b);
    if (!b)
        return error_set(e, -ENOMEM, "no memory for a batch");
    *b = (struct k_batch){.context = c, .entries_max = entries_max, .rows_max = rows_max};
    k_batch_bounds(b, NULL);
    b->entries = k_alloc(c, entries_max * sizeof *b->entries);
    b->ids = k_alloc(c, rows_max * sizeof *b->ids);
    b->rope = k_alloc(c, rows_max * 3 * sizeof *b->rope);
    b->row_id = k_alloc(c, rows_max * sizeof *b->row_id);
    b->row_pos = k_alloc(c, rows_max * sizeof *b->row_pos);
    b->row_entry = k_alloc(c, rows_max * sizeof *b->row_entry);
    b->row_rope = k_alloc(c, rows_max * 3 * sizeof *b->row_rope);
    if (!b->entries || !b->ids || !b->rope || !b->row_id || !b->row_pos || !b->row_entry || !b->row_rope) {
        k_batch_free(b);
        return error_set(e, -ENOMEM, "no memory for a batch of %u rows", rows_max);
    }
    *ret = b;
    return 0;
}
struct k_batch *k_batch_free(struct k_batch *b) {
    if (!b)
        return NULL;
    void *const blocks[] = {
            b->entries, b->ids, b->rope, b->row_id, b->row_pos, b->row_entry, b->row_rope, b->masks};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        k_free(b->context, blocks[i]);
    free(b);
    return NULL;
}

void k_batch_bounds(struct k_batch *b, const struct k_bounds *bounds) {
    b->bounds = bounds_within(bounds, b->rows_max, b->entries_max);
}

struct upload_args {
    struct k_batch *b;
    struct k_bounds bounds;
    const struct k_plan *plan;
    const struct k_entry *entries;
    const uint32_t *ids, *rope;
    uint32_t n_ids, n_rope;
};
static void run_upload(struct k_stream *s, const void *args) {
    const struct upload_args *a = args;
    struct k_batch *b = a->b;
    const struct k_plan *plan = a->plan;
    struct error e;
    b->plan = (struct k_plan){0};
    if (plan_check(plan, a->n_ids, a->n_rope, b->entries_max, b->rows_max, &e) < 0 ||
            bounds_check(&a->bounds, plan, a->entries, NULL, &e) < 0 ||
            masks_check(plan, a->entries, b->masks_max, &e) < 0) {
        stream_refused(s, &e);
        return;
    }
    b->plan = *plan;
    memcpy(b->entries, a->entries, plan->n_entries * sizeof *b->entries);
    if (a->n_ids)
        memcpy(b->ids, a->ids, a->n_ids * sizeof *b->ids);
    if (a->n_rope)
        memcpy(b->rope, a->rope, a->n_rope * sizeof *b->rope);
}
void k_batch_upload(struct k_stream *s, struct k_batch *b, const struct k_plan *plan,
        const struct k_entry *entries, const uint32_t *ids, uint32_t n_ids, const uint32_t *rope,
        uint32_t n_rope) {
    struct upload_args a = {b, b->bounds, plan, entries, ids, rope, n_ids, n_rope};
    stream_submit(s, run_upload, &a, sizeof a);
}

/* --- masks --- */

int k_batch_create_masks(struct k_batch *b, uint32_t vocab_size, uint32_t masks_max, struct error *e) {
    const uint32_t words = mask_words(vocab_size);
    b->masks = k_alloc(b->context, (uint64_t)masks_max * words * sizeof *b->masks);
    if (!b->masks)
        return error_set(e, -ENOMEM, "no memory for %u masks of a vocabulary of %u", masks_max, vocab_size);
    b->masks_max = masks_max;
    b->mask_words = words;
    return 0;
}

struct masks_args {
    struct k_batch *b;
    const uint32_t *masks;
    uint32_t n;
};
static void run_upload_masks(struct k_stream *s, const void *args) {
    const struct masks_args *a = args;
    struct error e;
    if (masks_fit(a->n, a->b->masks_max, &e) < 0)
        stream_refused(s, &e);
    else if (a->n)
        memcpy(a->b->masks, a->masks, (size_t)a->n * a->b->mask_words * sizeof *a->masks);
}
void k_batch_upload_masks(struct k_stream *s, struct k_batch *b, const uint32_t *masks, uint32_t n_masks) {
    struct masks_args a = {b, masks, n_masks};
    stream_submit(s, run_upload_masks, &a, sizeof a);
}

/* --- begin and end --- */

struct step_args {
    struct k_pool *p;
    struct k_batch *b;
    struct k_bounds bounds;
    const struct k_result *results;
    const struct k_outcome *outcomes;
};

/* Drafts of the plan lie in the slot from now on, as those that its last step left. */
static void place_drafts(
        struct k_stream *s, const struct k_batch *b, const struct k_entry *entry, struct slot *slot) {
    const uint32_t n = entry->n_rows - 1;
    if (entry->drafts_at != UINT32_MAX) {
        memcpy(slot->drafts, b->ids + entry->drafts_at, n * sizeof *slot->drafts);
    } else if (n > slot->n_drafts) {
        struct error fault;
        refuse_drafts(entry->slot, n, slot->n_drafts, &fault);
        stream_refused(s, &fault);
    }
}
static void begin_entry(struct k_stream *s, struct k_pool *p, struct k_batch *b, uint32_t e) {
    const struct k_entry *entry = &b->entries[e];
    struct slot *slot = &p->slots[entry->slot];
    const bool prompt = entry->kind == K_ENTRY_PROMPT;
    if (entry->n_rows > 1 && !prompt)
        place_drafts(s, b, entry, slot);
    uint16_t *counts = p->counts + (uint64_t)entry->slot * p->shape.vocab_size;
    for (uint32_t i = 0; i < entry->n_rows; i++) {
        const uint32_t row = entry->row_begin + i;
        uint32_t id = prompt ? b->ids[entry->ids_at + i] : i ? slot->drafts[i - 1] : slot->last_id;
        uint32_t pos = (prompt ? entry->first_pos : slot->length) + i;
        if (id >= p->shape.vocab_size) {
            struct error fault;
            refuse_id(entry->slot, id, p->shape.vocab_size, &fault);
            stream_refused(s, &fault);
            id = 0;
            if (i > 0 && !prompt)
                slot->drafts[i - 1] = id;
        }
        if (prompt)
            counts[id] = count_once_more(counts[id], entry->flags & K_ENTRY_GENERATED);
        b->row_id[row] = id;
        b->row_pos[row] = pos;
        b->row_entry[row] = e;
        for (uint32_t j = 0; j < 3; j++)
            b->row_rope[row * 3 + j] =
                    entry->rope_at == UINT32_MAX ? pos : b->rope[entry->rope_at + i * 3 + j];
    }
}
static void run_begin(struct k_stream *s, const void *args) {
    const struct step_args *a = args;
    struct error fault;
    if (bounds_check(&a->bounds, &a->b->plan, a->b->entries, a->p->slots, &fault) < 0 ||
            drafts_check(&a->b->plan, a->b->entries, a->p->options.drafts_max, &fault) < 0) {
        stream_refused(s, &fault);
        a->b->plan = (struct k_plan){0};
    }
    for (uint32_t e = 0; e < a->b->plan.n_entries; e++)
        begin_entry(s, a->p, a->b, e);
}
void k_begin_step(struct k_stream *s, struct k_pool *p, struct k_batch *b) {
    struct step_args a = {.p = p, .b = b, .bounds = b->bounds};
    stream_submit(s, run_begin, &a, sizeof a);
}

/* Accepted drafts were sampled, too; what could not be sampled counts as the id 0 that the slot goes on with. */
static void commit_samples(
        struct k_pool *p, uint32_t slot, const struct k_outcome *outcome, const struct k_result *results) {
    uint16_t *counts = p->counts + (uint64_t)slot * p->shape.vocab_size;
    for (uint32_t i = 0; i <= outcome->n_accepted; i++)
        counts[results[i].id] = count_once_more(counts[results[i].id], /* generated= */ true);
    p->slots[slot].last_id = results[outcome->n_accepted].id;
    p->slots[slot].sample_index += outcome->n_samples;
}
static void run_end(struct k_stream *s, const void *args) {
    const struct step_args *a = args;
    (void)s;
    for (uint32_t e = 0; e < a->b->plan.n_entries; e++) {
        const struct k_entry *entry = &a->b->entries[e];
        struct slot *slot = &a->p->slots[entry->slot];
        const uint32_t pos = a->b->row_pos[entry->row_begin];
        const bool sampled = entry->flags & K_ENTRY_SAMPLE && a->results;
        const struct k_outcome *outcome = sampled ? &a->outcomes[entry->outcome_at] : NULL;
        slot->length = pos + entry_accepted_row(entry, outcome) + 1;
        slot->folded = slot_folded(pos, entry_certain_rows(entry));
        slot->pending = sampled;
        slot->n_drafts = 0;
        if (sampled)
            commit_samples(a->p, entry->slot, outcome, a->results + entry->sample_at);
    }
}
void k_end_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_result *results,
        const struct k_outcome *outcomes) {
    struct step_args a = {.p = p, .b = (struct k_batch *)b, .results = results, .outcomes = outcomes};
    stream_submit(s, run_end, &a, sizeof a);
}

/* --- rows of embeddings and norms --- */

struct embed_args {
    const struct k_batch *b;
    const struct k_table *table;
    float *x;
};
static void run_embed(struct k_stream *s, const void *args) {
    const struct embed_args *a = args;
    (void)s;
    for (uint32_t r = 0; r < a->b->plan.n_rows; r++)
        table_row(a->table, a->b->row_id[r], a->x + (uint64_t)r * a->table->columns);
}
void k_embed(struct k_stream *s, const struct k_batch *b, const struct k_table *table, float *x) {
    struct embed_args a = {b, table, x};
    stream_submit(s, run_embed, &a, sizeof a);
}

struct final_args {
    struct k_pool *p;
    const struct k_batch *b;
    const float *x, *norm;
    float *y, eps;
    bool keep;
};
static void run_final_norm(struct k_stream *s, const void *args) {
    const struct final_args *a = args;
    const uint32_t h = a->p->shape.hidden_size;
    for (uint32_t r = 0; r < a->b->plan.n_rows; r++)
        stream_isa(s)->norm_row(a->x + (uint64_t)r * h, a->norm, a->eps, h, a->y + (uint64_t)r * h);
    for (uint32_t e = 0; e < a->b->plan.n_entries && a->keep; e++) {
        const struct k_entry *entry = &a->b->entries[e];
        memcpy(a->p->hidden + (uint64_t)entry->slot * h,
                a->y + (uint64_t)(entry->row_begin + entry->n_rows - 1) * h, h * sizeof(float));
    }
}
void k_final_norm(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const float *x,
        const float *norm, float eps, float *y, bool keep) {
    struct final_args a = {p, b, x, norm, y, eps, keep};
    stream_submit(s, run_final_norm, &a, sizeof a);
}

struct mtp_args {
    struct k_pool *p;
    const struct k_batch *b;
    const struct k_table *table;
    const float *hidden, *norm_embedding, *norm_hidden;
    const struct k_result *results;
    float *y, eps;
};
static uint32_t next_id(const struct mtp_args *a, uint32_t row) {
    const struct k_entry *entry = &a->b->entries[a->b->row_entry[row]];
    const uint32_t i = row - entry->row_begin, from = entry_sampled_from(entry);
    const bool last = i + 1 == entry->n_rows;
    if (last && entry->id_after != UINT32_MAX)
        return entry->id_after;
    if (entry_samples(entry) > 0 && i >= from && a->results)
        return a->results[entry->sample_at + i - from].id;
    return last ? 0 : a->b->row_id[row + 1];
}
static void run_mtp_input(struct k_stream *s, const void *args) {
    const struct mtp_args *a = args;
    const struct isa *isa = stream_isa(s);
    const uint32_t h = a->p->shape.hidden_size;
    for (uint32_t r = 0; r < a->b->plan.n_rows; r++) {
        float *y = a->y + (uint64_t)r * 2 * h;
        uint32_t id = next_id(a, r);
        if (id >= a->p->shape.vocab_size) {
            struct error fault;
            refuse_id(a->b->entries[a->b->row_entry[r]].slot, id, a->p->shape.vocab_size, &fault);
            stream_refused(s, &fault);
            id = 0;
        }
        table_row(a->table, id, y);
        isa->norm_row(y, a->norm_embedding, a->eps, h, y);
        isa->norm_row(a->hidden + (uint64_t)r * h, a->norm_hidden, a->eps, h, y + h);
    }
}
void k_mtp_input(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_table *table,
        const float *hidden, const float *norm_embedding, const float *norm_hidden, float eps,
        const struct k_result *results, float *y) {
    struct mtp_args a = {p, b, table, hidden, norm_embedding, norm_hidden, results, y, eps};
    assert(table->columns == p->shape.hidden_size);
    assert(table->rows == p->shape.vocab_size);
    stream_submit(s, run_mtp_input, &a, sizeof a);
}
