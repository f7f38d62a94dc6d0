/* offline_run.c - turns offline_sequences into step records, the way a scheduler would: every step takes one
 * row of each sequence that generates and a chunk of each prompt that is not read yet, up to rows_max. */
#include "tp/worker/offline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct live { /* a sequence of the run */
    struct offline_sequence *sequence;
    bool opened, finished;
    uint32_t at;     /* prompt tokens executed */
    uint32_t chunks; /* prompt chunks executed */
    uint32_t pages;  /* granted */
    uint32_t drafts; /* that its last step left in the slot */
    /* of the step being built */
    uint32_t rows, first_pos;
    bool samples;
};

struct run {
    struct offline *offline;
    const struct step_geometry *geometry;
    struct live *live;
    uint32_t n;
    struct step_writer *writer;
    void *record;
    uint32_t *free_pages;
    uint32_t n_free;
    uint64_t step;
    uint32_t rows_left;
    uint32_t n_closes;
    uint32_t *closes; /* slots to close in the next step */
};

struct step_open offline_greedy(void) {
    return (struct step_open){.top_p = 1, .repetition_penalty = 1};
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Rows of the prompt that the next step takes: the chunk asked for, but not across the end of what was given,
 * nor past the rows left. */
static uint32_t chunk_rows(const struct run *r, const struct live *l) {
    const struct offline_sequence *s = l->sequence;
    uint32_t given = s->n_prompt - s->n_generated;
    uint32_t rows = (l->at < given ? given : s->n_prompt) - l->at;
    if (s->n_chunks)
        rows = least(rows, s->chunks[l->chunks % s->n_chunks]);
    return least(rows, r->rows_left);
}

/* Rows that the next token takes: as many drafts as there are, and no more tokens than are wanted. */
static uint32_t continue_rows(const struct run *r, const struct live *l) {
    const uint32_t wanted = l->sequence->max_tokens - l->sequence->n_tokens;
    return least(least(1 + l->drafts, wanted), r->rows_left);
}

static void add_open(struct run *r, struct live *l) {
    const struct offline_sequence *s = l->sequence;
    struct step_open o = s->sampling;
    o.slot = s->slot;
    o.sequence = s->slot;
    o.first_sample_index = s->n_generated;
    for (uint32_t i = 0; i < o.n_bias; i++) {
        uint32_t pair[2] = {s->bias_ids[i]};
        memcpy(&pair[1], &s->bias[i], sizeof(pair[1]));
        uint32_t at = step_blob(r->writer, pair, sizeof(pair));
        if (i == 0)
            o.bias_at = at;
    }
    if (o.n_suppress)
        o.suppress_at = step_blob(r->writer, s->suppress, o.n_suppress * 4);
    step_add_open(r->writer, &o);
    l->opened = true;
}

/* Grants what the positions of this step need. */
static int add_grant(struct run *r, struct live *l, struct step_entry *entry, struct error *e) {
    uint32_t positions = l->first_pos + l->rows + (r->geometry->has_mtp ? 1 : 0);
    uint32_t needed = (positions + PAGE_TOKENS - 1) / PAGE_TOKENS;
    if (needed <= l->pages)
        return 0;
    uint32_t n = needed - l->pages;
    if (n > r->n_free)
        return error_set(
                e, -ENOSPC, "the KV cache of %u pages is too small for these sequences", r->geometry->pages);
    r->n_free -= n;
    entry->page_first = l->pages;
    entry->n_pages = n;
    entry->pages_at = step_blob(r->writer, r->free_pages + r->n_free, n * 4);
    l->pages = needed;
    return 0;
}

static int add_entry(struct run *r, struct live *l, struct error *e) {
    const struct offline_sequence *s = l->sequence;
    bool prompt = l->at < s->n_prompt;
    struct step_entry t = {.slot = s->slot,
            .kind = prompt ? STEP_ENTRY_PROMPT : STEP_ENTRY_CONTINUE,
            .n_rows = prompt ? chunk_rows(r, l) : continue_rows(r, l),
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
    l->rows = t.n_rows;
    if (t.n_rows == 0)
        return 0;
    l->first_pos = prompt ? l->at : s->n_prompt + s->n_tokens - 1;
    t.first_pos = prompt ? l->at : 0;
    if (prompt) {
        t.ids_at = step_blob(r->writer, s->prompt + l->at, t.n_rows * 4);
        if (l->at + t.n_rows < s->n_prompt)
            t.id_after = s->prompt[l->at + t.n_rows];
        if (l->at >= s->n_prompt - s->n_generated)
            t.flags |= STEP_ENTRY_GENERATED;
    }
    l->samples = s->max_tokens > 0 && (!prompt || l->at + t.n_rows == s->n_prompt);
    if (l->samples) {
        t.flags |= STEP_ENTRY_SAMPLE | (s->logprobs ? STEP_ENTRY_LOGPROB : 0);
        t.top_logprobs = s->logprobs ? s->top_logprobs : 0;
        t.n_draft_next = s->drafts;
    }
    l->drafts = t.n_draft_next;
    int rc = add_grant(r, l, &t, e);
    if (rc < 0)
        return rc;
    step_add_entry(r->writer, &t);
    r->rows_left -= t.n_rows;
    return 0;
}

/* Builds the next record. Sequences that generate come first, so that prompts never starve them. */
static int build_step(struct run *r, uint32_t step_of_run, uint32_t *ret_entries, struct error *e) {
    uint32_t entries = 0;
    r->rows_left = r->geometry->rows_max;
    step_begin(r->writer, STEP_TYPE_PLAN, 0, 0, ++r->step);
    for (uint32_t i = 0; i < r->n_closes; i++)
        step_add_close(r->writer, r->closes[i]);
    r->n_closes = 0;
    for (int prompts = 0; prompts < 2; prompts++) {
        for (uint32_t i = 0; i < r->n; i++) {
            struct live *l = &r->live[i];
            if (l->finished || step_of_run < l->sequence->start_step ||
                    (l->at < l->sequence->n_prompt) != prompts)
                continue;
            if (!l->opened)
                add_open(r, l);
            int rc = add_entry(r, l, e);
            if (rc < 0)
                return rc;
            entries += l->rows > 0;
        }
    }
    *ret_entries = entries;
    return 0;
}

/* The logits of one entry, from each rank's vocabulary rows into [position][V]. */
static void keep_logits(struct run *r, const struct live *l, uint32_t first_row) {
    const struct offline_sequence *s = l->sequence;
    uint32_t v = r->geometry->vocab_size;
    for (uint32_t rank = 0; rank < r->geometry->tp; rank++) {
        struct step_exec *x = offline_exec(r->offline, rank);
        const struct k_shape *shape = &offline_rank(r->offline, rank)->shard.shape;
        const float *from[] = {step_exec_logits_main(x), step_exec_logits_mtp(x)};
        float *to[] = {s->logits, s->mtp_logits};
        for (int head = 0; head < 2; head++) {
            for (uint32_t row = 0; to[head] && from[head] && row < l->rows; row++)
                memcpy(to[head] + (size_t)(l->first_pos + row) * v + shape->vocab_first,
                        from[head] + (size_t)(first_row + row) * shape->vocab_rows,
                        shape->vocab_rows * sizeof(float));
        }
    }
}

static void finish(struct run *r, struct live *l) {
    l->finished = true;
    if (!l->sequence->keep)
        r->closes[r->n_closes++] = l->sequence->slot;
}

/* The tokens of an outcome, of which those behind a stop are none; true where there was one. */
static bool take_tokens(struct offline_sequence *s, const struct step_outcome *outcome) {
    const struct step_sample *samples = step_outcome_samples(outcome);
    s->n_accepted += outcome->n_accepted;
    for (uint32_t i = 0; i < outcome->n_samples; i++) {
        s->samples[s->n_tokens++] = samples[i];
        if (s->stop_id != STEP_NONE && samples[i].id == s->stop_id)
            return true;
    }
    return false;
}

/* Takes in what the step did, in the order in which its entries were written. */
static int apply_step(struct run *r, struct error *e) {
    const struct step_outcome *outcome = offline_answer(r->offline, 0)->body;
    uint32_t row = 0;
    for (int prompts = 0; prompts < 2; prompts++) {
        for (uint32_t i = 0; i < r->n; i++) {
            struct live *l = &r->live[i];
            struct offline_sequence *s = l->sequence;
            if (l->rows == 0 || (l->at < s->n_prompt) != prompts)
                continue;
            keep_logits(r, l, row);
            const uint32_t rows = l->rows;
            row += rows;
            if (prompts) {
                l->at += rows;
                l->chunks++;
            }
            l->rows = 0;
            bool stop = false;
            if (l->samples) {
                if (outcome->status != STEP_SAMPLE_OK)
                    return error_set(e, -EBADMSG, "sequence %u: %s", i,
                            outcome->status == STEP_SAMPLE_NO_TOKEN
                                    ? "every id is suppressed"
                                    : "a logit is not a finite number; the weights are damaged");
                stop = take_tokens(s, outcome);
                outcome = step_outcome_next(outcome);
                s->n_drafted += prompts ? 0 : rows - 1;
            }
            if (stop || (l->at == s->n_prompt && s->n_tokens == s->max_tokens))
                finish(r, l);
        }
    }
    return 0;
}

static bool all_finished(const struct run *r) {
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->live[i].finished)
            return false;
    return true;
}

static int run_steps(struct run *r, struct error *e) {
    for (uint32_t i = 0; !all_finished(r) || r->n_closes; i++) {
        uint32_t entries = 0;
        int rc = build_step(r, i, &entries, e);
        if (rc < 0)
            return rc;
        rc = step_end(r->writer, r->record, STEP_RECORD_MAX);
        if (rc < 0)
            return error_set(e, rc, "a step of this run does not fit a record of %u bytes", STEP_RECORD_MAX);
        rc = offline_record(r->offline, r->record, (uint32_t)rc, e);
        if (rc < 0)
            return rc;
        if (entries)
            rc = apply_step(r, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check(const struct run *r, const struct offline_sequence *s, uint32_t i, struct error *e) {
    uint32_t length;
    if (s->n_prompt == 0 || s->n_generated >= s->n_prompt)
        return error_set(e, -EINVAL, "sequence %u has an empty prompt", i);
    if (__builtin_add_overflow(s->n_prompt, s->max_tokens, &length) || length > r->geometry->max_model_len)
        return error_set(e, -EINVAL,
                "sequence %u: %u tokens of prompt and %u to generate pass max_model_len %u", i, s->n_prompt,
                s->max_tokens, r->geometry->max_model_len);
    if (s->drafts > (r->geometry->has_mtp ? r->geometry->drafts_max : 0))
        return error_set(e, -EINVAL, "sequence %u: %u drafts are asked for, the ranks make %u", i, s->drafts,
                r->geometry->has_mtp ? r->geometry->drafts_max : 0);
    for (uint32_t k = 0; k < s->n_chunks; k++)
        if (s->chunks[k] == 0)
            return error_set(e, -EINVAL, "sequence %u: chunk %u has no rows", i, k);
    return 0;
}

static int prepare(struct run *r, struct offline_sequence *sequences, struct error *e) {
    r->live = calloc(r->n, sizeof(r->live[0]));
    r->closes = calloc(r->n, sizeof(r->closes[0]));
    r->free_pages = calloc(r->geometry->pages, sizeof(r->free_pages[0]));
    r->writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    r->record = aligned_alloc(64, STEP_RECORD_MAX);
    if (!r->live || !r->closes || !r->free_pages || !r->writer || !r->record)
        return error_set(e, -ENOMEM, "out of memory for a run of %u sequences", r->n);
    for (uint32_t i = 0; i < r->geometry->pages; i++)
        r->free_pages[i] = r->geometry->pages - i;
    r->n_free = r->geometry->pages;
    enum step_exec_logits want = STEP_EXEC_LOGITS_NONE;
    for (uint32_t i = 0; i < r->n; i++) {
        struct offline_sequence *s = &sequences[i];
        int rc = check(r, s, i, e);
        if (rc < 0)
            return rc;
        r->live[i].sequence = s;
        s->slot = i + 1;
        s->n_tokens = s->n_drafted = s->n_accepted = 0;
        if (s->logits || s->mtp_logits)
            want = STEP_EXEC_LOGITS_ALL;
    }
    for (uint32_t i = 0; i < r->geometry->tp; i++)
        step_exec_want_logits(offline_exec(r->offline, i), want);
    return 0;
}

int offline_run(struct offline *o, struct offline_sequence *sequences, uint32_t n, struct error *e) {
    struct run r = {.offline = o, .geometry = offline_geometry(o), .n = n};
    if (n == 0 || n > r.geometry->slots)
        return error_set(e, -EINVAL, "a run of %u sequences, 1 to %u are possible", n, r.geometry->slots);
    int rc = offline_reset(o, e);
    if (rc == 0)
        rc = prepare(&r, sequences, e);
    if (rc == 0)
        rc = run_steps(&r, e);
    free(r.live);
    free(r.closes);
    free(r.free_pages);
    free(r.writer);
    free(r.record);
    return rc;
}
