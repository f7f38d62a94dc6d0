/* step_exec.c - see step_exec.h. */
#include "tp/worker/step_exec.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/mask.h"

#include "tp/worker/step_state.h"
#include "tp/worker/store.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_NS 1000000000u /* of a wait that has no limit: then it waits again */

/* One record in flight: its plan as the batch takes it, and what comes back; the arrays that the stream reads and
 * writes are pinned, and nobody else's until its event is done. */
struct host_set {
    struct k_plan *plan;
    struct k_entry *entries;    /* [entries_max] */
    uint32_t *ids;              /* [rows_max] */
    uint32_t *rope;             /* [3 * rows_max] */
    uint32_t *masks;            /* [MASKS_MAX][mask_words()] */
    struct k_outcome *outcomes; /* [entries_max] */
    struct k_result *results;   /* [samples_max], behind them in the same memory, as on the device */
    uint32_t *lives;            /* [entries_max] of the entries' slots: struct slot_state */
    float *logits, *mtp_logits; /* [logits_rows][vocab_rows] or NULL */
    struct k_event *done;       /* the stream has passed all of it */
    uint8_t *body;              /* [entries_max] outcomes, with [samples_max] samples among them */
    char text[STEP_FAULT_TEXT_MAX];
    struct step_completion completion; /* of the answer to come */
    bool queued;                       /* on the device; otherwise it can be answered when its turn comes */
    uint64_t submitted_ns;
};

struct step_exec {
    struct rank *rank;
    struct forward *forward;
    struct step_state state;
    struct forward_hooks hooks;
    enum step_exec_logits want_logits;
    struct store *store;       /* NULL = none */
    uint32_t index_at;         /* the first place that INDEX tells of next */
    struct step_record *index; /* [STEP_INDEX_RECORDS] */
    uint64_t last_step, collected_ns, host_ns;
    uint32_t drafts_owed; /* that the last plan asks for and that are not queued yet */
    bool ready;           /* RESET was seen */
    bool failed;
    struct error fault;

    struct host_set sets[STEP_EXEC_IN_FLIGHT];
    uint32_t first, in_flight;        /* sets[first] is the oldest in flight */
    const struct host_set *collected; /* the last that was; NULL = none yet */

    /* Copied by the kernels when they are called. */
    struct k_memory_op *memory; /* [STEP_MEMORY_MAX + SEQS_MAX] */
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias[LOGIT_BIAS_MAX];
    uint32_t suppress[STEP_SUPPRESS_MAX];
    uint32_t pages[STEP_SLOT_PAGES_MAX];
    struct step_geometry geometry;
};

static int allocate_set(const struct rank *r, struct host_set *h, struct error *e) {
    size_t logits = (size_t)r->logits_rows * r->shard.shape.vocab_rows * sizeof(float);
    h->plan = k_host_alloc(r->context, sizeof(*h->plan));
    h->entries = k_host_alloc(r->context, r->entries_max * sizeof(h->entries[0]));
    h->ids = k_host_alloc(r->context, r->rows_max * sizeof(h->ids[0]));
    h->rope = k_host_alloc(r->context, 3 * (size_t)r->rows_max * sizeof(h->rope[0]));
    h->masks = k_host_alloc(
            r->context, (size_t)MASKS_MAX * mask_words(r->config.vocab_size) * sizeof(h->masks[0]));
    h->outcomes = k_host_alloc(
            r->context, r->entries_max * sizeof(h->outcomes[0]) + r->samples_max * sizeof(h->results[0]));
    if (h->outcomes)
        h->results = (struct k_result *)(void *)(h->outcomes + r->entries_max);
    h->lives = calloc(r->entries_max, sizeof(h->lives[0]));
    h->body = calloc(1, r->entries_max * sizeof(struct step_outcome) +
                                (size_t)r->samples_max * sizeof(struct step_sample));
    if (logits)
        h->logits = k_host_alloc(r->context, logits);
    if (logits && r->weights.has_mtp)
        h->mtp_logits = k_host_alloc(r->context, logits);
    if (!h->plan || !h->entries || !h->ids || !h->rope || !h->masks || !h->outcomes || !h->body ||
            !h->lives || (logits && !h->logits) || (logits && r->weights.has_mtp && !h->mtp_logits))
        return error_set(e, -ENOMEM, "out of memory for the plans of %u rows", r->rows_max);
    return k_event_create(r->context, &h->done, e);
}

static int allocate(struct step_exec *x, struct error *e) {
    int r = 0;
    for (uint32_t i = 0; i < STEP_EXEC_IN_FLIGHT && r == 0; i++)
        r = allocate_set(x->rank, &x->sets[i], e);
    x->memory = calloc(STEP_MEMORY_MAX + SEQS_MAX, sizeof(x->memory[0]));
    if (r == 0 && !x->memory)
        r = error_set(e, -ENOMEM, "out of memory for the memory operations of a step");
    return r;
}

static void free_set(struct k_context *c, struct host_set *h) {
    void *pinned[] = {h->plan, h->entries, h->ids, h->rope, h->masks, h->outcomes, h->logits, h->mtp_logits};
    for (size_t i = 0; i < sizeof(pinned) / sizeof(pinned[0]); i++)
        if (pinned[i])
            k_host_free(c, pinned[i]);
    free(h->body);
    free(h->lives);
    k_event_free(h->done);
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
            .drafts_max = r->drafts_max,
            .fingerprint = r->fingerprint,
            .weight_bytes = r->weights.bytes,
            .pool_bytes = r->budget.pool_bytes,
    };
    snprintf(g->device, sizeof(g->device), "%s", k_context_describe(r->context));
}

/* Everything that the bytes of units depend on. */
static uint64_t identity(const struct rank *r, const struct k_pool_cost *cost) {
    const struct rank_options *o = &r->options;
    const char *device = k_context_describe(r->context);
    const uint64_t numbers[] = {r->fingerprint, o->tp, r->budget.pool.kv_dtype, r->budget.pool.state_dtype,
            r->drafts_max, r->weights.has_mtp, cost->slot_unit_bytes, cost->page_unit_bytes, o->activations,
            o->fast};
    uint64_t h = fnv1a(fnv1a_text(FNV1A_START, SHARDD_VERSION), numbers, sizeof(numbers));
    return hash_mix(fnv1a(h, device, strcspn(device, ",")));
}

/* The prefix cache's file. One that another process has is done without. */
static int open_store(struct step_exec *x, struct error *e) {
    const struct rank *r = x->rank;
    const struct rank_options *o = &r->options;
    struct k_pool_cost cost;
    if (!o->prefix_dir || x->geometry.slot_units == 0 || x->geometry.page_units == 0)
        return 0;
    k_pool_cost(&r->shard.shape, &r->budget.pool, &cost);
    const struct store_options so = {.dir = o->prefix_dir,
            .bytes = o->prefix_disk_bytes / o->tp,
            .identity = identity(r, &cost),
            .rank = o->rank,
            .tp = o->tp,
            .unit_bytes = {cost.page_unit_bytes, cost.slot_unit_bytes},
            .state_may_be = k_slot_unit_may_be,
            .note = o->note,
            .user = o->user};
    int rc = store_open(&so, &x->store, e);
    if (rc == -EBUSY && o->note)
        o->note(o->user, e->text);
    if (rc < 0)
        return rc == -EBUSY ? 0 : rc;
    x->index = calloc(STEP_INDEX_RECORDS, sizeof(x->index[0]));
    if (!x->index)
        return error_set(e, -ENOMEM, "out of memory for the prefix cache's index");
    for (int k = 0; k < STEP_STORED_KINDS; k++)
        x->geometry.stored[k] = store_places(x->store, k);
    return 0;
}

int step_exec_create(struct rank *r, struct step_exec **ret, struct error *e) {
    struct step_exec *x = calloc(1, sizeof(*x));
    if (!x)
        return error_set(e, -ENOMEM, "out of memory for step execution");
    x->rank = r;
    fill_geometry(r, &x->geometry);
    int rc = open_store(x, e);
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
            .makes_drafts = rank_makes_drafts(r),
            .extra_positions = r->weights.has_mtp ? 1 : 0,
    };
    memcpy(limits.stored, x->geometry.stored, sizeof(limits.stored));
    if (rc == 0)
        rc = step_state_init(&limits, &x->state, e);
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
    store_free(x->store); /* its thread uses units */
    free(x->index);
    k_stream_wait(x->rank->stream, 0, NULL); /* what is in flight reads the sets */
    forward_free(x->forward);
    for (uint32_t i = 0; i < STEP_EXEC_IN_FLIGHT; i++)
        free_set(x->rank->context, &x->sets[i]);
    free(x->memory);
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
static struct k_plan translate(const struct step_exec *x, struct host_set *h, const struct step_plan *p,
        uint32_t *ret_ids, uint32_t *ret_rope) {
    struct k_plan plan = {.n_entries = p->n_entries};
    uint32_t n_ids = 0, n_rope = 0, n_masks = 0;
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        struct k_entry *k = &h->entries[i];
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
            memcpy(h->ids + n_ids, p->blob + t->ids_at, 4 * (size_t)t->n_rows);
            n_ids += t->n_rows;
        }
        if (t->drafts_at != STEP_NONE) {
            k->drafts_at = n_ids;
            memcpy(h->ids + n_ids, p->blob + t->drafts_at, 4 * (size_t)(t->n_rows - 1));
            n_ids += t->n_rows - 1;
        }
        if (t->rope_at != STEP_NONE) {
            k->rope_at = n_rope;
            memcpy(h->rope + n_rope, p->blob + t->rope_at, 12 * (size_t)t->n_rows);
            n_rope += 3 * t->n_rows;
        }
        k->n_scores = (uint16_t)t->n_scores;
        plan.n_samples += t->n_scores;
        k->sample_at = plan.n_samples;
        if ((t->flags & STEP_ENTRY_SAMPLE) || t->n_scores > 0)
            k->outcome_at = plan.n_outcomes++;
        if (t->flags & STEP_ENTRY_SAMPLE)
            plan.n_samples += t->kind == STEP_ENTRY_CONTINUE ? t->n_rows : 1;
        if (t->n_masks > 0) {
            k->flags |= t->n_masks > 1 ? K_ENTRY_MASKS : K_ENTRY_MASK;
            k->mask_at = (uint16_t)n_masks;
            memcpy(h->masks + (size_t)n_masks * t->mask_words, p->blob + t->mask_at,
                    4 * (size_t)t->n_masks * t->mask_words);
            n_masks += t->n_masks;
        }
        plan.n_rows += t->n_rows;
    }
    *ret_ids = n_ids;
    *ret_rope = n_rope;
    return plan;
}

static void download_logits(const struct step_exec *x, const struct host_set *h) {
    const struct rank *r = x->rank;
    uint32_t rows = x->want_logits == STEP_EXEC_LOGITS_ALL    ? h->plan->n_rows
                    : x->want_logits == STEP_EXEC_LOGITS_LAST ? h->plan->n_entries
                                                              : 0;
    size_t bytes = (size_t)rows * r->shard.shape.vocab_rows * sizeof(float);
    if (!bytes)
        return;
    k_download(r->stream, h->logits, r->logits, bytes);
    if (r->weights.has_mtp)
        k_download(r->stream, h->mtp_logits, r->mtp_logits, bytes);
}

/* What was asked for behind the plan before: its answer has not waited for it. */
static void queue_drafts(struct step_exec *x) {
    forward_draft(x->forward, x->drafts_owed);
    x->drafts_owed = 0;
}

static void queue_stores(struct step_exec *x, const struct step_plan *p) {
    for (uint32_t i = 0; i < p->n_stores; i++) {
        const struct step_store *s = &p->stores[i];
        bool is_state = s->record.what == STEP_STORED_STATE;
        store_queue(x->store, s,
                is_state ? k_pool_slot_unit(x->rank->pool, s->unit)
                         : k_pool_page_unit(x->rank->pool, s->unit));
    }
}

/* Queues a whole checked plan. */
static void queue_plan(struct step_exec *x, struct host_set *h, const struct step_plan *p) {
    struct rank *r = x->rank;
    queue_drafts(x);
    apply_slots(x, p);
    queue_stores(x, p);
    if (!p->n_entries)
        return;
    uint32_t n_ids, n_rope;
    *h->plan = translate(x, h, p, &n_ids, &n_rope);
    struct k_bounds bounds = {.rows = h->plan->n_rows, .entries = h->plan->n_entries};
    for (uint32_t i = 0; i < p->n_entries; i++) { /* lengths are those after the step already */
        const struct step_entry *t = &p->entries[i];
        const struct slot_state *slot = &x->state.slots[t->slot];
        bounds.context = slot->length > bounds.context ? slot->length : bounds.context;
        x->drafts_owed = t->n_draft_next > x->drafts_owed ? t->n_draft_next : x->drafts_owed;
        h->lives[i] = slot->life;
    }
    forward_bound(x->forward, &bounds);
    if (p->n_masks > 0)
        k_batch_upload_masks(r->stream, r->batch, h->masks, p->n_masks);
    k_batch_upload(r->stream, r->batch, h->plan, h->entries, h->ids, n_ids, h->rope, n_rope);
    forward_queue(x->forward, (uint32_t)p->header->step, &x->hooks);
    if (h->plan->n_samples) /* at once: each copy costs the host some us */
        k_download(r->stream, h->outcomes, r->outcomes,
                r->entries_max * sizeof(h->outcomes[0]) + h->plan->n_samples * sizeof(h->results[0]));
    download_logits(x, h);
}

/* --- records --- */

static int submit_plan(struct step_exec *x, struct host_set *h, const struct step_plan *p, struct error *e) {
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
    queue_plan(x, h, p);
    return 0;
}

static void submit_reset(struct step_exec *x) {
    struct rank *r = x->rank;
    for (uint32_t i = 1; i <= x->state.limits.slots; i++)
        if (x->state.slots[i].open)
            k_slot_close(r->stream, r->pool, i);
    if (x->store)
        store_reset(x->store);
    x->index_at = 0;
    step_state_reset(&x->state);
    x->drafts_owed = 0;
    x->ready = true;
}

static int submit(
        struct step_exec *x, struct host_set *h, const void *record, uint32_t bytes, struct error *e) {
    struct step_plan p;
    int r = step_decode(record, bytes, &p, e);
    if (r < 0)
        return r;
    if (x->failed) {
        *e = x->fault;
        return x->fault.code;
    }
    if (p.header->type == STEP_TYPE_PLAN)
        r = submit_plan(x, h, &p, e);
    else if (p.header->type == STEP_TYPE_RESET)
        submit_reset(x);
    if (r < 0)
        return r;
    x->last_step = p.header->step;
    h->queued = p.header->type == STEP_TYPE_PLAN || p.header->type == STEP_TYPE_RESET;
    if (h->queued)
        k_event_record(x->rank->stream, h->done);
    /* Behind the event, so that nobody waits for them with an answer. Where an operation runs when it is queued, they
     * are left to the next plan, which may never come. */
    if (k_runs_behind(x->rank->context))
        queue_drafts(x);
    return 0;
}

static void fault_of(struct host_set *h, const struct error *e) {
    size_t n = strnlen(e->text, sizeof(h->text));
    memcpy(h->text, e->text, n);
    h->completion.status = STEP_STATUS_FAULT;
    h->completion.n_outcomes = (uint32_t)n;
}

void step_exec_submit(struct step_exec *x, const void *record, uint32_t bytes) {
    struct error e = {0};
    assert(x->in_flight < STEP_EXEC_IN_FLIGHT);
    struct host_set *h = &x->sets[(x->first + x->in_flight++) % STEP_EXEC_IN_FLIGHT];
    h->queued = false;
    *h->plan = (struct k_plan){0};
    h->submitted_ns = clock_ns();
    h->completion = (struct step_completion){.magic = STEP_COMPLETION_MAGIC,
            .protocol = STEP_PROTOCOL,
            .rank = x->rank->shard.shape.rank,
            .status = STEP_STATUS_OK};
    struct step_completion *c = &h->completion;
    if (bytes >= sizeof(struct step_header)) { /* named in the answer even when the rest is malformed */
        struct step_header header;
        memcpy(&header, record, sizeof(header));
        c->type = header.type >= STEP_TYPE_RESET && header.type <= STEP_TYPE_INDEX ? header.type
                                                                                   : STEP_TYPE_PLAN;
        c->group_epoch = header.group_epoch;
        c->coord_epoch = header.coord_epoch;
        c->step = header.step;
    }
    if (submit(x, h, record, bytes, &e) < 0)
        fault_of(h, &e);
    x->host_ns += clock_ns() - h->submitted_ns;
}

uint32_t step_exec_in_flight(const struct step_exec *x) {
    return x->in_flight;
}

/* How long the slots are now that it is known which drafts were accepted. */
static void settle_lengths(struct step_exec *x, const struct host_set *h) {
    for (uint32_t i = 0; i < h->plan->n_entries; i++) {
        const struct k_entry *t = &h->entries[i];
        if (t->kind == K_ENTRY_CONTINUE && t->n_rows > 1 && t->flags & K_ENTRY_SAMPLE)
            step_state_accepted(
                    &x->state, t->slot, h->lives[i], t->n_rows - 1, h->outcomes[t->outcome_at].n_accepted);
    }
}

/* A row that could not be scored ends its sequence like one that could not be sampled. */
static struct step_outcome outcome_of_entry(const struct host_set *h, const struct k_entry *entry) {
    const struct k_result *scores = &h->results[entry->sample_at - entry->n_scores];
    struct step_outcome o = {.slot = entry->slot, .n_scores = entry->n_scores};
    for (uint32_t i = 0; i < entry->n_scores; i++)
        if (scores[i].status != K_RESULT_OK)
            return (struct step_outcome){.slot = entry->slot, .status = scores[i].status};
    if (entry->flags & K_ENTRY_SAMPLE) {
        const struct k_outcome *k = &h->outcomes[entry->outcome_at];
        o.status = k->status;
        o.n_samples = k->n_samples;
        o.n_accepted = k->n_accepted;
    }
    return o;
}

static void copy_results(const struct k_result *from, uint32_t n, struct step_sample *to) {
    for (uint32_t i = 0; i < n; i++) {
        to[i] = (struct step_sample){.id = from[i].id, .logprob = from[i].logprob, .n_top = from[i].n_top};
        memcpy(to[i].top_ids, from[i].top_ids, sizeof(to[i].top_ids));
        memcpy(to[i].top_logprobs, from[i].top_logprobs, sizeof(to[i].top_logprobs));
    }
}

/* What became of the entries that sampled or were scored, as the body of an answer; returns its bytes. */
static uint32_t write_outcomes(struct host_set *h, uint64_t *ret_checksum) {
    uint8_t *at = h->body;
    *ret_checksum = STEP_CHECKSUM_SEED;
    for (uint32_t i = 0; i < h->plan->n_entries; i++) {
        const struct k_entry *entry = &h->entries[i];
        if (!(entry->flags & K_ENTRY_SAMPLE) && entry->n_scores == 0)
            continue;
        struct step_outcome *o = (struct step_outcome *)(void *)at;
        *o = outcome_of_entry(h, entry);
        copy_results(&h->results[entry->sample_at - entry->n_scores], o->n_scores + o->n_samples,
                (struct step_sample *)(void *)(o + 1));
        *ret_checksum = step_checksum(*ret_checksum, o, step_outcome_samples(o));
        at = (uint8_t *)(uintptr_t)step_outcome_next(o);
    }
    return (uint32_t)(at - h->body);
}

/* Whether the device has passed a set, waiting up to timeout_ns for it. A fault of the device is found here: it is
 * that of all that is in flight. */
static int wait_for(struct step_exec *x, const struct host_set *h, uint64_t timeout_ns) {
    struct error e = {0};
    bool done = k_event_done(h->done) || (timeout_ns > 0 && k_event_wait(h->done, timeout_ns) == 0);
    int r = k_stream_error(x->rank->stream, &e);
    if (r == 0)
        return done ? 0 : -EAGAIN;
    x->failed = true;
    x->fault = e;
    x->fault.code = r;
    rank_abort(x->rank); /* the others must not wait for this rank in a collective */
    return r;
}

/* The store's thread has nothing to do: INDEX comes before the first plan. */
static void answer_index(struct step_exec *x, struct step_answer *a) {
    uint32_t n = 0;
    if (x->store)
        n = store_list(x->store, x->index_at, STEP_INDEX_RECORDS, x->index);
    x->index_at += STEP_INDEX_RECORDS;
    a->completion.n_outcomes = n;
    a->body = x->index;
    a->body_bytes = n * (uint32_t)sizeof(x->index[0]);
}

static void answer_ok(struct step_exec *x, struct host_set *h, struct step_answer *a) {
    struct step_completion *c = &a->completion;
    if (c->type == STEP_TYPE_RESET) {
        a->body = &x->geometry;
        a->body_bytes = sizeof(x->geometry);
    } else if (c->type == STEP_TYPE_INDEX) {
        answer_index(x, a);
    } else if (c->type == STEP_TYPE_PLAN) {
        uint32_t bytes = write_outcomes(h, &c->checksum);
        settle_lengths(x, h);
        if (c->rank == 0) {
            c->n_outcomes = h->plan->n_outcomes;
            a->body = h->body;
            a->body_bytes = bytes;
        }
    }
}

int step_exec_collect(struct step_exec *x, uint64_t timeout_ns, struct step_answer *ret) {
    assert(x->in_flight > 0);
    struct host_set *h = &x->sets[x->first];
    if (h->queued && !x->failed && wait_for(x, h, timeout_ns) == -EAGAIN)
        return -EAGAIN;
    const uint64_t done_ns = clock_ns();
    if (x->failed && h->completion.status == STEP_STATUS_OK)
        fault_of(h, &x->fault);
    *ret = (struct step_answer){.completion = h->completion};
    struct step_completion *c = &ret->completion;
    if (x->store)
        store_progress(x->store, &c->stored, &c->store_failed);
    if (c->status == STEP_STATUS_OK) {
        answer_ok(x, h, ret);
    } else {
        ret->body = h->text;
        ret->body_bytes = c->n_outcomes;
    }
    uint64_t now = clock_ns(), begin = h->submitted_ns > x->collected_ns ? h->submitted_ns : x->collected_ns;
    c->compute_ns = now - begin;
    c->bytes = (uint32_t)sizeof(*c) + ret->body_bytes;
    x->collected_ns = now;
    x->host_ns += now - done_ns;
    x->collected = h;
    x->first = (x->first + 1) % STEP_EXEC_IN_FLIGHT;
    x->in_flight--;
    return 0;
}

void step_exec_record(struct step_exec *x, const void *record, uint32_t bytes, struct step_answer *ret) {
    assert(x->in_flight == 0);
    step_exec_submit(x, record, bytes);
    while (step_exec_collect(x, WAIT_NS, ret) < 0)
        ;
}

bool step_exec_failed(const struct step_exec *x, struct error *e) {
    if (x->failed && e)
        *e = x->fault;
    return x->failed;
}

void step_exec_hooks(struct step_exec *x, const struct forward_hooks *hooks) {
    x->hooks = hooks ? *hooks : (struct forward_hooks){0};
}

bool step_exec_place(const struct step_exec *x, uint64_t *ret_step, uint32_t *ret_layer) {
    uint32_t step;
    if (!forward_place(x->forward, &step, ret_layer))
        return false;
    for (uint32_t i = 0; i < x->in_flight; i++) {
        const struct host_set *h = &x->sets[(x->first + i) % STEP_EXEC_IN_FLIGHT];
        if (h->plan->n_rows && (uint32_t)h->completion.step == step) {
            *ret_step = h->completion.step;
            return true;
        }
    }
    return false;
}

uint64_t step_exec_graph_bytes(const struct step_exec *x) {
    return forward_graph_bytes(x->forward);
}

uint64_t step_exec_host_ns(const struct step_exec *x) {
    return x->host_ns;
}

uint32_t step_exec_graph_nodes(const struct step_exec *x) {
    return forward_graph_nodes(x->forward);
}

void step_exec_want_logits(struct step_exec *x, enum step_exec_logits what) {
    x->want_logits = what;
}

const float *step_exec_logits_main(const struct step_exec *x) {
    return x->collected ? x->collected->logits : NULL;
}

const float *step_exec_logits_mtp(const struct step_exec *x) {
    return x->collected ? x->collected->mtp_logits : NULL;
}
