/* step_exec.c - see step_exec.h. */
#include "tp/worker/step_exec.h"

#include "base/clock.h"

#include "tp/worker/step_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct step_exec {
    struct rank *rank;
    struct forward *forward;
    struct step_state state;
    struct forward_hooks hooks;
    enum step_exec_logits want_logits;
    uint64_t last_step;
    bool ready; /* RESET was seen */
    bool failed;
    struct error fault;

    /* One step's plan as the batch takes it, and what comes back; pinned. */
    struct k_entry *entries;    /* [entries_max] */
    uint32_t *ids;              /* [rows_max] */
    uint32_t *rope;             /* [3 * rows_max] */
    struct k_result *results;   /* [entries_max] */
    struct k_outcome *outcomes; /* [entries_max] */
    struct k_memory_op *memory; /* [STEP_MEMORY_MAX + SEQS_MAX] */
    float *logits, *mtp_logits; /* [logits_rows][vocab_rows] or NULL */
    uint8_t *body;              /* [entries_max] outcomes with a sample each */
    struct step_geometry geometry;
    char text[STEP_FAULT_TEXT_MAX];
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias[LOGIT_BIAS_MAX];
    uint32_t suppress[STEP_SUPPRESS_MAX];
    uint32_t pages[STEP_SLOT_PAGES_MAX];
};

static int allocate(struct step_exec *x, struct error *e) {
    const struct rank *r = x->rank;
    size_t logits = (size_t)r->logits_rows * r->shard.shape.vocab_rows * sizeof(float);
    x->entries = k_host_alloc(r->context, r->entries_max * sizeof(x->entries[0]));
    x->ids = k_host_alloc(r->context, r->rows_max * sizeof(x->ids[0]));
    x->rope = k_host_alloc(r->context, 3 * (size_t)r->rows_max * sizeof(x->rope[0]));
    x->results = k_host_alloc(r->context, r->entries_max * sizeof(x->results[0]));
    x->memory = calloc(STEP_MEMORY_MAX + SEQS_MAX, sizeof(x->memory[0]));
    x->outcomes = k_host_alloc(r->context, r->entries_max * sizeof(x->outcomes[0]));
    x->body = calloc(r->entries_max, sizeof(struct step_outcome) + sizeof(struct step_sample));
    if (logits)
        x->logits = k_host_alloc(r->context, logits);
    if (logits && r->weights.has_mtp)
        x->mtp_logits = k_host_alloc(r->context, logits);
    if (!x->entries || !x->ids || !x->rope || !x->results || !x->memory || !x->outcomes || !x->body ||
            (logits && !x->logits) || (logits && r->weights.has_mtp && !x->mtp_logits))
        return error_set(e, -ENOMEM, "out of memory for the plans of %u rows", r->rows_max);
    return 0;
}

static void fill_geometry(const struct rank *r, struct step_geometry *g) {
    const struct k_pool_options *o = &r->budget.pool;
    *g = (struct step_geometry){
            .rank = r->shard.shape.rank,
            .tp = r->shard.shape.tp,
            .slots = o->slots,
            .pages = o->pages,
            .pages_per_slot = o->pages_per_slot,
            .slot_units = o->slot_units,
            .page_units = o->page_units,
            .rows_max = r->rows_max,
            .entries_max = o->slots,
            .vocab_size = r->config.vocab_size,
            .max_model_len = r->budget.max_model_len,
            .has_mtp = r->weights.has_mtp,
            .model_has_mtp = rank_model_has_mtp(r),
            .fingerprint = r->fingerprint,
            .weight_bytes = r->weights.bytes,
            .pool_bytes = r->budget.pool_bytes,
    };
    snprintf(g->device, sizeof(g->device), "%s", k_context_describe(r->context));
}

int step_exec_create(struct rank *r, struct step_exec **ret, struct error *e) {
    struct step_exec *x = calloc(1, sizeof(*x));
    if (!x)
        return error_set(e, -ENOMEM, "out of memory for step execution");
    x->rank = r;
    fill_geometry(r, &x->geometry);
    struct step_limits limits = {
            .slots = x->geometry.slots,
            .pages = x->geometry.pages,
            .pages_per_slot = x->geometry.pages_per_slot,
            .slot_units = x->geometry.slot_units,
            .page_units = x->geometry.page_units,
            .rows_max = x->geometry.rows_max,
            .entries_max = x->geometry.entries_max,
            .vocab_size = x->geometry.vocab_size,
            .max_model_len = x->geometry.max_model_len,
            .drafts_max = x->geometry.drafts_max,
            .extra_positions = r->weights.has_mtp ? 1 : 0,
    };
    int rc = step_state_init(&limits, &x->state, e);
    if (rc == 0)
        rc = allocate(x, e);
    if (rc == 0)
        rc = forward_create(r, &x->forward, e);
    if (rc < 0) {
        step_exec_free(x);
        return rc;
    }
    *ret = x;
    return 0;
}

struct step_exec *step_exec_free(struct step_exec *x) {
    if (!x)
        return NULL;
    forward_free(x->forward);
    void *pinned[] = {x->entries, x->ids, x->rope, x->results, x->outcomes, x->logits, x->mtp_logits};
    for (size_t i = 0; i < sizeof(pinned) / sizeof(pinned[0]); i++)
        if (pinned[i])
            k_host_free(x->rank->context, pinned[i]);
    free(x->memory);
    free(x->body);
    step_state_done(&x->state);
    free(x);
    return NULL;
}

/* --- applying a checked plan --- */

static void open_slot(struct step_exec *x, const struct step_plan *p, const struct step_open *o) {
    for (uint32_t i = 0; i < o->n_bias; i++) {
        x->bias_ids[i] = step_blob_u32(p, o->bias_at, 2 * i);
        memcpy(&x->bias[i], p->blob + o->bias_at + 8 * (size_t)i + 4, sizeof(float));
    }
    for (uint32_t i = 0; i < o->n_suppress; i++)
        x->suppress[i] = step_blob_u32(p, o->suppress_at, i);
    const struct k_sampling sampling = {
            .temperature = o->temperature,
            .top_k = o->top_k,
            .top_p = o->top_p,
            .min_p = o->min_p,
            .repetition_penalty = o->repetition_penalty,
            .presence_penalty = o->presence_penalty,
            .frequency_penalty = o->frequency_penalty,
            .seed = o->seed,
            .min_tokens = o->min_tokens,
            .first_sample_index = o->first_sample_index,
            .n_bias = o->n_bias,
            .n_suppress = o->n_suppress,
            .bias_ids = x->bias_ids,
            .bias = x->bias,
            .suppress = x->suppress,
    };
    k_slot_open(x->rank->stream, x->rank->pool, o->slot, &sampling);
}

/* Does the plan overwrite the slot's state before anything reads it? */
static bool state_comes(const struct step_plan *p, uint32_t slot) {
    for (uint32_t i = 0; i < p->n_memory; i++) {
        const struct step_memory *m = &p->memory[i];
        bool copies = m->kind == STEP_MEMORY_COPY_SLOT;
        if ((copies || m->kind == STEP_MEMORY_SNAPSHOT_SLOT) && m->a == slot)
            return false;
        if ((copies || m->kind == STEP_MEMORY_RESTORE_SLOT) && m->b == slot)
            return true;
        if (m->kind == STEP_MEMORY_ZERO_SLOT && m->a == slot)
            return true;
    }
    return false;
}

/* A fresh slot starts with an empty state; then the plan's own operations (the two enums have the same
 * order). */
static void queue_memory(struct step_exec *x, const struct step_plan *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_opens; i++)
        if (!state_comes(p, p->opens[i].slot))
            x->memory[n++] = (struct k_memory_op){.kind = K_MEM_ZERO_SLOT, .a = p->opens[i].slot};
    for (uint32_t i = 0; i < p->n_memory; i++)
        x->memory[n++] =
                (struct k_memory_op){.kind = p->memory[i].kind, .a = p->memory[i].a, .b = p->memory[i].b};
    if (n)
        k_memory(x->rank->stream, x->rank->pool, x->memory, n);
}

static void apply_slots(struct step_exec *x, const struct step_plan *p) {
    struct rank *r = x->rank;
    for (uint32_t i = 0; i < p->n_closes; i++)
        k_slot_close(r->stream, r->pool, p->closes[i]);
    for (uint32_t i = 0; i < p->n_opens; i++)
        open_slot(x, p, &p->opens[i]);
    queue_memory(x, p);
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        for (uint32_t k = 0; k < t->n_pages; k++)
            x->pages[k] = step_blob_u32(p, t->pages_at, k);
        if (t->n_pages)
            k_slot_grant(r->stream, r->pool, t->slot, t->page_first, t->n_pages, x->pages);
    }
}

static uint32_t entry_flags(const struct step_exec *x, const struct step_entry *t) {
    uint32_t flags = 0;
    if (t->flags & STEP_ENTRY_SAMPLE)
        flags |= K_ENTRY_SAMPLE;
    if (t->flags & STEP_ENTRY_GENERATED)
        flags |= K_ENTRY_GENERATED;
    if (x->want_logits == STEP_EXEC_LOGITS_LAST)
        flags |= K_ENTRY_LOGITS;
    if (x->want_logits == STEP_EXEC_LOGITS_ALL)
        flags |= K_ENTRY_LOGITS_ALL;
    return flags;
}

/* The plan in the form of the batch; returns the counts. */
static struct k_plan translate(
        struct step_exec *x, const struct step_plan *p, uint32_t *ret_ids, uint32_t *ret_rope) {
    struct k_plan plan = {.n_entries = p->n_entries};
    uint32_t n_ids = 0, n_rope = 0;
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        struct k_entry *k = &x->entries[i];
        *k = (struct k_entry){
                .slot = t->slot,
                .kind = t->kind == STEP_ENTRY_PROMPT ? K_ENTRY_PROMPT : K_ENTRY_CONTINUE,
                .flags = entry_flags(x, t),
                .n_rows = t->n_rows,
                .row_begin = plan.n_rows,
                .first_pos = t->first_pos,
                .id_after = t->id_after,
                .rope_at = UINT32_MAX,
                .top_logprobs = t->flags & STEP_ENTRY_LOGPROB ? t->top_logprobs : UINT32_MAX,
                .drafts_at = UINT32_MAX,
                .n_draft_next = t->n_draft_next,
        };
        if (t->kind == STEP_ENTRY_PROMPT) {
            k->ids_at = n_ids;
            memcpy(x->ids + n_ids, p->blob + t->ids_at, 4 * (size_t)t->n_rows);
            n_ids += t->n_rows;
        }
        if (t->drafts_at != STEP_NONE) {
            k->drafts_at = n_ids;
            memcpy(x->ids + n_ids, p->blob + t->drafts_at, 4 * (size_t)(t->n_rows - 1));
            n_ids += t->n_rows - 1;
        }
        if (t->rope_at != STEP_NONE) {
            k->rope_at = n_rope;
            memcpy(x->rope + n_rope, p->blob + t->rope_at, 12 * (size_t)t->n_rows);
            n_rope += 3 * t->n_rows;
        }
        if (t->flags & STEP_ENTRY_SAMPLE) {
            k->outcome_at = plan.n_outcomes++;
            k->sample_at = plan.n_samples;
            plan.n_samples += t->kind == STEP_ENTRY_CONTINUE ? t->n_rows : 1;
        }
        plan.n_rows += t->n_rows;
    }
    *ret_ids = n_ids;
    *ret_rope = n_rope;
    return plan;
}

static void download_logits(struct step_exec *x, const struct k_plan *plan) {
    const struct rank *r = x->rank;
    uint32_t rows = x->want_logits == STEP_EXEC_LOGITS_ALL    ? plan->n_rows
                    : x->want_logits == STEP_EXEC_LOGITS_LAST ? plan->n_entries
                                                              : 0;
    size_t bytes = (size_t)rows * r->shard.shape.vocab_rows * sizeof(float);
    if (!bytes)
        return;
    k_download(r->stream, x->logits, r->logits, bytes);
    if (r->weights.has_mtp)
        k_download(r->stream, x->mtp_logits, r->mtp_logits, bytes);
}

/* Queues a whole checked plan. The host arrays stay untouched until the stream has been waited for. */
static void queue_plan(struct step_exec *x, const struct step_plan *p, struct k_plan *plan) {
    struct rank *r = x->rank;
    apply_slots(x, p);
    if (!p->n_entries)
        return;
    uint32_t n_ids, n_rope;
    *plan = translate(x, p, &n_ids, &n_rope);
    struct k_bounds bounds = {.rows = plan->n_rows, .entries = plan->n_entries};
    for (uint32_t i = 0; i < p->n_entries; i++) { /* lengths are those after the step already */
        uint32_t length = x->state.slots[p->entries[i].slot].length;
        bounds.context = length > bounds.context ? length : bounds.context;
    }
    forward_bound(x->forward, &bounds);
    k_batch_upload(r->stream, r->batch, plan, x->entries, x->ids, n_ids, x->rope, n_rope);
    forward_queue(x->forward, &x->hooks);
    if (plan->n_samples)
        k_download(r->stream, x->results, r->results, plan->n_samples * sizeof(x->results[0]));
    if (plan->n_outcomes)
        k_download(r->stream, x->outcomes, r->outcomes, plan->n_outcomes * sizeof(x->outcomes[0]));
    download_logits(x, plan);
}

static int wait_device(struct step_exec *x, struct error *e) {
    int r = k_stream_wait(x->rank->stream, 0, e);
    if (r < 0) {
        x->failed = true;
        if (e)
            x->fault = *e;
        x->fault.code = r;
        rank_abort(x->rank); /* the others must not wait for this rank in a collective */
    }
    return r;
}

/* What became of the entries that sampled, as the body of an answer; returns its bytes. */
static uint32_t write_outcomes(struct step_exec *x, const struct step_plan *p, uint64_t *ret_checksum) {
    uint8_t *at = x->body;
    uint32_t n = 0;
    *ret_checksum = STEP_CHECKSUM_SEED;
    for (uint32_t i = 0; i < p->n_entries; i++) {
        if (!(p->entries[i].flags & STEP_ENTRY_SAMPLE))
            continue;
        const struct k_outcome *k = &x->outcomes[n++];
        const struct k_result *results = &x->results[x->entries[i].sample_at];
        struct step_outcome *o = (struct step_outcome *)(void *)at;
        struct step_sample *samples = (struct step_sample *)(void *)(o + 1);
        *o = (struct step_outcome){.slot = p->entries[i].slot,
                .status = k->status,
                .n_samples = k->n_samples,
                .n_accepted = k->n_accepted};
        for (uint32_t j = 0; j < k->n_samples; j++) {
            samples[j] = (struct step_sample){
                    .id = results[j].id, .logprob = results[j].logprob, .n_top = results[j].n_top};
            memcpy(samples[j].top_ids, results[j].top_ids, sizeof(samples[j].top_ids));
            memcpy(samples[j].top_logprobs, results[j].top_logprobs, sizeof(samples[j].top_logprobs));
        }
        *ret_checksum = step_checksum(*ret_checksum, o, samples);
        at = (uint8_t *)(samples + k->n_samples);
    }
    return (uint32_t)(at - x->body);
}

static void collect(struct step_exec *x, const struct step_plan *p, struct step_answer *a) {
    uint32_t bytes = write_outcomes(x, p, &a->completion.checksum);
    if (x->rank->shard.shape.rank == 0) {
        a->completion.n_outcomes = p->n_outcomes;
        a->body = x->body;
        a->body_bytes = bytes;
    }
}

static int run_plan(struct step_exec *x, const struct step_plan *p, struct step_answer *a, struct error *e) {
    struct k_plan plan = {0};
    if (!x->ready)
        return error_set(e, -EINVAL, "a plan came before the first RESET");
    if (p->header->step <= x->last_step)
        return error_set(e, -EINVAL, "step %llu came after step %llu", (unsigned long long)p->header->step,
                (unsigned long long)x->last_step);
    if (x->want_logits != STEP_EXEC_LOGITS_NONE && p->n_rows > x->rank->logits_rows)
        return error_set(e, -EINVAL, "logits of %u rows were asked for, there is room for %u", p->n_rows,
                x->rank->logits_rows);
    int r = step_state_check(&x->state, p, e);
    if (r < 0)
        return r;
    step_state_commit(&x->state);
    queue_plan(x, p, &plan);
    r = wait_device(x, e);
    if (r == 0)
        collect(x, p, a);
    return r;
}

static int run_reset(struct step_exec *x, struct step_answer *a, struct error *e) {
    struct rank *r = x->rank;
    for (uint32_t i = 1; i <= x->state.limits.slots; i++)
        if (x->state.slots[i].open)
            k_slot_close(r->stream, r->pool, i);
    step_state_reset(&x->state);
    x->ready = true;
    int rc = wait_device(x, e);
    if (rc == 0) {
        a->body = &x->geometry;
        a->body_bytes = sizeof(x->geometry);
    }
    return rc;
}

static void answer_fault(struct step_exec *x, const struct error *e, struct step_answer *a) {
    size_t n = strnlen(e->text, sizeof(x->text));
    memcpy(x->text, e->text, n);
    a->completion.status = STEP_STATUS_FAULT;
    a->completion.n_outcomes = (uint32_t)n;
    a->completion.checksum = 0;
    a->body = x->text;
    a->body_bytes = a->completion.n_outcomes;
}

void step_exec_record(struct step_exec *x, const void *record, uint32_t bytes, struct step_answer *ret) {
    struct error e = {0};
    struct step_plan p;
    uint64_t begin = clock_ns();
    *ret = (struct step_answer){.completion = {.magic = STEP_COMPLETION_MAGIC, .protocol = STEP_PROTOCOL}};
    struct step_completion *c = &ret->completion;
    c->rank = x->rank->shard.shape.rank;
    c->status = STEP_STATUS_OK;
    if (bytes >= sizeof(struct step_header)) { /* named in the answer even when the rest is malformed */
        struct step_header h;
        memcpy(&h, record, sizeof(h));
        c->type = h.type >= STEP_TYPE_RESET && h.type <= STEP_TYPE_STOP ? h.type : STEP_TYPE_PLAN;
        c->group_epoch = h.group_epoch;
        c->coord_epoch = h.coord_epoch;
        c->step = h.step;
    }
    int r = step_decode(record, bytes, &p, &e);
    if (r == 0 && x->failed) {
        e = x->fault;
        r = e.code;
    }
    if (r == 0 && p.header->type == STEP_TYPE_PLAN)
        r = run_plan(x, &p, ret, &e);
    else if (r == 0 && p.header->type == STEP_TYPE_RESET)
        r = run_reset(x, ret, &e);
    if (r == 0)
        x->last_step = p.header->step;
    else
        answer_fault(x, &e, ret);
    c->compute_ns = clock_ns() - begin;
    c->bytes = (uint32_t)sizeof(*c) + ret->body_bytes;
}

bool step_exec_failed(const struct step_exec *x, struct error *e) {
    if (x->failed && e)
        *e = x->fault;
    return x->failed;
}

void step_exec_hooks(struct step_exec *x, const struct forward_hooks *hooks) {
    x->hooks = hooks ? *hooks : (struct forward_hooks){0};
}

void step_exec_want_logits(struct step_exec *x, enum step_exec_logits what) {
    x->want_logits = what;
}

const float *step_exec_logits_main(const struct step_exec *x) {
    return x->logits;
}

const float *step_exec_logits_mtp(const struct step_exec *x) {
    return x->mtp_logits;
}
