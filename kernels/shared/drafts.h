/* drafts.h - what follows from an entry that carries drafts: which of its rows are certain, which are sampled, from
 * what, and what becomes of the samples.
 *
 * A CONTINUE has 1 + drafts rows. Row 0 is the slot's last id and certain; row i > 0 is draft i - 1, which lies in the
 * slot's drafts[] from k_begin_step() on, wherever it came from. An id of the slot's suppress[] that was sampled is its
 * sequence's last: rows behind it are nobody's, and the state of a sequence that has ended is that of its tokens. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/portable.h"
#include "kernels/shared/slot.h"

/* Rows that will be accepted whatever is sampled: all of a prompt, and the first of what goes on. */
K_INLINE uint32_t entry_certain_rows(const struct k_entry *e) {
    return e->kind == K_ENTRY_PROMPT ? e->n_rows : 1;
}
/* Positions that are in S0 after a step whose rows begin at `first`, of which `certain` are. */
K_INLINE uint32_t slot_folded(uint32_t first, uint32_t certain) {
    return (first + certain - 1) / GDN_BLOCK * GDN_BLOCK;
}

/* The entry's samples: of its last rows, so many; sample i is of row entry_sampled_from() + i. */
K_INLINE uint32_t entry_samples(const struct k_entry *e) {
    return !(e->flags & K_ENTRY_SAMPLE) ? 0 : e->kind == K_ENTRY_PROMPT ? 1 : e->n_rows;
}
K_INLINE uint32_t entry_sampled_from(const struct k_entry *e) {
    return e->kind == K_ENTRY_PROMPT ? e->n_rows - 1 : 0;
}
/* The mask of sample i of the entry; UINT32_MAX: it has none. */
K_INLINE uint32_t entry_mask(const struct k_entry *e, uint32_t i) {
    return e->flags & K_ENTRY_MASKS ? e->mask_at + i : e->flags & K_ENTRY_MASK ? e->mask_at : UINT32_MAX;
}
/* The last of its rows that was accepted: behind it the sequence goes on. */
K_INLINE uint32_t entry_accepted_row(const struct k_entry *e, const struct k_outcome *o) {
    return e->kind == K_ENTRY_PROMPT ? e->n_rows - 1 : o ? o->n_accepted : 0;
}

/* Position of what is sampled at a row of position `pos`: its noise has this key. */
K_INLINE uint32_t entry_sample_position(const struct k_entry *e, uint32_t pos) {
    return e->flags & K_ENTRY_DRAFT ? pos + 1 : pos;
}
/* Samples of the sequence between the slot's next one and that of such a row: how many drafts it takes as given. */
K_INLINE uint32_t entry_drafts_before(const struct k_entry *e, uint32_t sample_position, uint32_t length) {
    return e->kind == K_ENTRY_PROMPT ? 0 : sample_position - length;
}

/* Whether a sampled id was the sequence's last. */
K_INLINE bool slot_ends_with(const struct slot *s, uint32_t id) {
    for (uint32_t i = 0; i < s->sampling.n_suppress; i++)
        if (s->sampling.suppress[i] == id)
            return true;
    return false;
}

/* results: of the entry's samples; slot: as the step found it, with the drafts of its rows. */
K_INLINE struct k_outcome outcome_of(
        const struct k_entry *e, const struct k_result *results, const struct slot *slot) {
    struct k_outcome o = {K_RESULT_OK, 0, 0, 0};
    const uint32_t n = entry_samples(e);
    if (n > 1 && !slot_ends_with(slot, slot->last_id))
        while (o.n_accepted + 1 < n && results[o.n_accepted].status == K_RESULT_OK &&
                results[o.n_accepted].id == slot->drafts[o.n_accepted] &&
                !slot_ends_with(slot, slot->drafts[o.n_accepted]))
            o.n_accepted++;
    o.status = results[o.n_accepted].status;
    o.n_samples = o.n_accepted + (o.status == K_RESULT_OK);
    return o;
}
