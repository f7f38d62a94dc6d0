/* rank.c - see rank.h. The order of rank_create(): read and check everything, decide the budget, then
 * allocate. */
#include "tp/worker/rank.h"

#include "base/clock.h"
#include "base/gguf.h"
#include "tp/load/fingerprint.h"
#include "tp/worker/forward.h"
#include "tp/worker/meeting.h"
#include "tp/worker/prefix_units.h"
#include "tp/worker/rank_keep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t slots_of(const struct rank_options *o) {
    return o->max_num_seqs ? o->max_num_seqs : RANK_SLOTS_DEFAULT;
}

/* Rows of a step, before anybody has looked at the memory. */
static uint32_t rows_of(const struct rank_options *o) {
    const uint32_t liked = k_step_rows() > slots_of(o) ? k_step_rows() : slots_of(o);
    return o->max_num_batched_tokens ? o->max_num_batched_tokens : liked;
}

static int check_options(const struct rank_options *o, struct error *e) {
    if (slots_of(o) > SEQS_MAX)
        return error_set(e, -EDOM, "--max-num-seqs %u is too many: at most %u", slots_of(o), SEQS_MAX);
    if (rows_of(o) > STEP_ROWS_MAX)
        return error_set(
                e, -EDOM, "--max-num-batched-tokens %u is too many: at most %u", rows_of(o), STEP_ROWS_MAX);
    if (o->drafts_max > DRAFT_MAX)
        return error_set(e, -EDOM, "--drafts-max %u is too many: at most %u", o->drafts_max, DRAFT_MAX);
    if (!(o->kv_cache_fraction >= 0 && o->kv_cache_fraction <= 1))
        return error_set(e, -EDOM, "--kv-cache-memory as a fraction must lie between 0 and 1");
    return 0;
}

int rank_comm_bytes(const struct rank_options *o, size_t *ret, struct error *e) {
    struct model_config m;
    struct shard s;
    int r = check_options(o, e);
    if (r < 0)
        return r;
    r = model_config_load(o->model_dir, &m, e);
    if (r < 0)
        return r;
    r = shard_make(&m, o->tp, 0, false, &s, e);
    if (r < 0)
        return r;
    *ret = o->tp == 1 ? 0 : meeting_bytes() + k_comm_region_bytes(&s.shape, rows_of(o));
    return 0;
}

/* A round of the group's meeting; who is alone has the least of everything. */
static int meet(const struct rank_options *o, enum meeting_round round, uint64_t *numbers, uint32_t n,
        uint32_t *ret_first, struct error *e) {
    if (o->tp > 1 && !o->comm_region)
        return error_set(e, -EINVAL, "rank %u of %u has no region to meet the others in", o->rank, o->tp);
    if (o->tp > 1)
        return meeting_least(o->comm_region, round, o->tp, o->rank, numbers, n, ret_first, e);
    if (ret_first)
        *ret_first = o->rank;
    return 0;
}

/* Widths of the two activation buffers that all layers share. */
static void widths(const struct k_shape *s, uint64_t *ret_in, uint64_t *ret_mid) {
    uint64_t gdn_v = (uint64_t)s->gdn_v_heads * s->gdn_v_dim;
    uint64_t gdn_in = 2ull * s->gdn_k_heads * s->gdn_k_dim + 2 * gdn_v + 2ull * s->gdn_v_heads;
    uint64_t attention = (uint64_t)s->q_heads * s->head_dim;
    uint64_t attention_in = 2 * attention + 2ull * s->kv_heads * s->head_dim;
    *ret_in = gdn_in > attention_in ? gdn_in : attention_in;
    *ret_mid = gdn_v > attention ? gdn_v : attention;
    if (s->intermediate_size > *ret_mid)
        *ret_mid = s->intermediate_size;
}

struct buffer { /* one device buffer to come: where its pointer goes and how large it is */
    void **at;
    uint64_t bytes;
};
#define RANK_BUFFERS 14

static void list_buffers(struct rank *r, struct buffer b[RANK_BUFFERS]) {
    const struct k_shape *s = &r->shard.shape;
    uint64_t rows = r->rows_max, h = s->hidden_size, width_in, width_mid;
    uint64_t logits = (uint64_t)r->logits_rows * s->vocab_rows * sizeof(float);
    uint64_t results = (uint64_t)r->samples_max * sizeof(struct k_result);
    uint64_t drafting = rank_makes_drafts(r) ? r->entries_max : 0;
    bool mtp = r->options.mtp;
    widths(s, &width_in, &width_mid);
    b[0] = (struct buffer){(void **)&r->x, rows * h * sizeof(float)};
    b[1] = (struct buffer){(void **)&r->in, rows * width_in * sizeof(float)};
    b[2] = (struct buffer){(void **)&r->mid, rows * width_mid * sizeof(float)};
    b[3] = (struct buffer){(void **)&r->part, rows * h * sizeof(float)};
    b[4] = (struct buffer){(void **)&r->hidden, rows * h * sizeof(float)};
    b[5] = (struct buffer){(void **)&r->mtp_in, mtp ? rows * 2 * h * sizeof(float) : 0};
    b[6] = (struct buffer){(void **)&r->logits, logits};
    b[7] = (struct buffer){(void **)&r->mtp_logits, mtp ? logits : 0};
    b[8] = (struct buffer){
            (void **)&r->outcomes, (uint64_t)r->entries_max * sizeof(struct k_outcome) + results};
    b[9] = (struct buffer){(void **)&r->mtp_results, mtp && r->logits_rows ? results : 0};
    b[10] = (struct buffer){(void **)&r->draft_hidden, drafting * h * sizeof(float)};
    b[11] = (struct buffer){(void **)&r->draft_results, drafting * sizeof(struct k_result)};
    b[12] = (struct buffer){
            (void **)&r->draft_place, r->draft_vocab.n ? s->vocab_size * sizeof(r->draft_place[0]) : 0};
    b[13] = (struct buffer){&r->workspace, k_workspace_bytes(s, r->rows_max, r->samples_max)};
}

static int upload_draft_places(struct rank *r, struct error *e) {
    const uint32_t v = r->config.vocab_size;
    uint32_t *place = malloc(v * sizeof(place[0]));
    if (!place)
        return error_set(e, -ENOMEM, "out of memory for the places of %u ids", v);
    draft_vocab_places(&r->draft_vocab, v, place);
    k_upload(r->stream, r->draft_place, place, v * sizeof(place[0]));
    int rc = k_stream_wait(r->stream, 0, e);
    free(place);
    return rc;
}

static int allocate_buffers(struct rank *r, struct error *e) {
    struct buffer b[RANK_BUFFERS];
    list_buffers(r, b);
    for (int i = 0; i < RANK_BUFFERS; i++) {
        if (!b[i].bytes)
            continue;
        *b[i].at = k_alloc(r->context, b[i].bytes);
        if (!*b[i].at)
            return error_set(e, -ENOMEM,
                    "out of memory for %llu bytes of scratch; lower --max-num-batched-tokens",
                    (unsigned long long)b[i].bytes);
    }
    int rc = r->draft_vocab.n ? upload_draft_places(r, e) : 0;
    if (rc < 0)
        return rc;
    r->results = (struct k_result *)(void *)(r->outcomes + r->entries_max);
    k_stream_set_workspace(r->stream, r->workspace, b[RANK_BUFFERS - 1].bytes);
    return 0;
}

bool rank_model_has_mtp(const struct rank *r) {
    return r->tensors ? r->tensors->has_mtp : r->config.mtp_layers != 0;
}

/* How dummy weights are to be quantised; a GGUF file says it of its tensors only, so that its dummies are BF16. */
static int read_quantisation(struct rank *r, const char *dir, struct error *e) {
    struct gguf_files gguf;
    int found = gguf_locate(dir, &gguf, e);
    return found != 0 ? (found < 0 ? found : 0) : quant_config_load(dir, &r->quant_config, e);
}

/* Where drafts are made; else the file is not looked at. */
static int read_draft_vocab(struct rank *r, const char *path, struct error *e) {
    const struct rank_options *o = &r->options;
    if (!path)
        return 0;
    if (o->mtp && o->drafts_max > 0) {
        int rc = draft_vocab_read(path, r->config.vocab_size, &r->draft_vocab, e);
        return rc < 0 ? error_prefix(e, rc, "--draft-vocab") : 0;
    }
    if (o->note)
        o->note(o->user, "--draft-vocab is not used: no MTP layer makes drafts here");
    return 0;
}

/* Reads config.json and the checkpoint's header; afterwards shard, tensors and fingerprint are known. Nothing is copied
 * out of the file where it is only looked at. */
static int open_model(struct rank *r, const struct rank_options *asked, bool only_look, struct error *e) {
    const char *dir = asked->model_dir;
    struct rank_options *o = &r->options;
    int rc = model_config_load(dir, &r->config, e);
    if (rc < 0)
        return rc;
    if (!o->dummy) {
        rc = checkpoint_open(dir, &r->checkpoint, e);
        if (rc < 0)
            return rc;
        rc = only_look ? model_tensors_survey(r->checkpoint, &r->config, &r->tensors, e)
                       : model_tensors_resolve(r->checkpoint, &r->config, &r->tensors, e);
        if (rc < 0)
            return rc;
    }
    if (o->dummy) {
        rc = read_quantisation(r, dir, e);
        if (rc < 0)
            return rc;
    }
    if (!rank_model_has_mtp(r))
        o->mtp = false;
    rc = read_draft_vocab(r, asked->draft_vocab, e);
    if (rc < 0)
        return rc;
    r->fingerprint = fingerprint_model(&r->config, r->checkpoint, o->seed);
    return shard_make(&r->config, o->tp, o->rank, o->mtp, &r->shard, e);
}

/* Packs or finds the packed file, as the options say; r->packed stays NULL where there is none to use. */
static int open_packed(struct rank *r, const struct rank_options *o, struct error *e) {
    if (o->dummy || o->packed == RANK_PACKED_NEVER)
        return 0;
    const struct packed_request q = {.model = o->model_dir,
            .cache_dir = o->packed_cache,
            .fingerprint = packed_fingerprint(o->model_dir, r->fingerprint),
            .threads = o->threads,
            .config = &r->config,
            .checkpoint = r->checkpoint,
            .tensors = r->tensors,
            .progress = o->progress,
            .note = o->note,
            .user = o->user};
    struct error why = {0};
    int rc = 0;
    if (o->packed == RANK_PACKED_MAKE)
        rc = packed_make(&q, &r->packed, e);
    else
        packed_look(&q, &r->packed, &why);
    if (rc == 0 && r->packed && o->verify_packed)
        rc = packed_verify(r->packed, o->progress, o->user, e);
    if (r->packed)
        snprintf(r->weights_from, sizeof(r->weights_from), "weights mapped from %s", packed_name(r->packed));
    else if (why.code)
        snprintf(r->weights_from, sizeof(r->weights_from), "packed file not used: %s", why.text);
    return rc;
}

/* The embedding table as a library keeps it. */
static uint64_t table_bytes(const struct rank *r) {
    const enum k_dtype dtype = r->tensors && r->tensors->embed->dtype == TENSOR_F32 ? K_F32 : K_BF16;
    return k_table_bytes(dtype, r->config.vocab_size, r->config.hidden_size, /* mapped= */ true);
}

/* What belongs to a device: who copies even a mapped table computes in memory of its own. */
static void request_device(const struct rank *r, struct budget_request *q) {
    q->embedding_bytes = table_bytes(r);
    if (!q->embedding_bytes)
        return;
    q->reserve_bytes =
            RANK_DEVICE_RESERVE + r->config.n_layers * RANK_LAYER_LINEARS * RANK_DEVICE_ALLOCATION_LOST;
    if (!r->options.eager)
        q->reserve_bytes += forward_graphs_estimate(r->config.n_layers, r->rows_max, rank_makes_drafts(r));
    if (!q->fraction_asked)
        q->pool_fraction = RANK_DEVICE_POOL_FRACTION_DEFAULT;
}

/* What a device's pool takes to move states of sequences through, if it has units for them. */
static uint64_t unit_stages_bytes(const struct rank *r) {
    const struct rank_options *o = &r->options;
    const struct k_pool_options pool = {.slots = 1,
            .pages = 1,
            .pages_per_slot = 1,
            .kv_dtype = K_BF16,
            .state_dtype = o->state_dtype,
            .drafts_max = r->drafts_max};
    struct k_pool_cost cost;
    k_pool_cost(&r->shard.shape, &pool, &cost);
    return o->prefix_cache || o->slot_units > 0 ? cost.unit_stages_bytes : 0;
}

static int request_budget(struct rank *r, const struct weights_options *wo, uint64_t memory_bytes,
        struct budget_request *ret, struct error *e) {
    const struct rank_options *o = &r->options;
    const struct k_shape *s = &r->shard.shape;
    struct buffer b[RANK_BUFFERS];
    struct budget_request q = {
            .memory_bytes = memory_bytes,
            .pool_bytes = o->kv_cache_bytes,
            .fraction_asked = o->kv_cache_fraction > 0,
            .pool_fraction = o->kv_cache_fraction > 0 ? o->kv_cache_fraction : RANK_POOL_FRACTION_DEFAULT,
            .max_num_seqs = slots_of(o),
            .max_model_len = r->config.max_position_embeddings,
            .rows = r->rows_max,
            .pages = o->pages,
            .extra_positions = o->mtp ? 1 : 0,
            .slot_units = o->slot_units,
            .page_units = o->page_units,
            .drafts_max = r->drafts_max,
            .kv_dtype = K_BF16,
            .state_dtype = o->state_dtype,
            .kept = r->keeping || r->found,
    };
    int rc = weights_bytes(&r->config, &r->shard, r->tensors, wo, &q.weight_bytes, e);
    if (rc < 0)
        return rc;
    list_buffers(r, b);
    for (int i = 0; i < RANK_BUFFERS; i++)
        q.scratch_bytes += b[i].bytes;
    q.scratch_bytes += k_comm_region_bytes(s, r->rows_max) / o->tp;
    q.unit_stages_bytes = unit_stages_bytes(r);
    q.scratch_bytes += q.unit_stages_bytes;
    if (o->max_model_len && o->max_model_len < q.max_model_len)
        q.max_model_len = o->max_model_len;
    if (q.max_model_len > CONTEXT_MAX)
        q.max_model_len = CONTEXT_MAX;
    if (o->kv_dtype == RANK_KV_F32 || (o->kv_dtype == RANK_KV_AUTO && weights_kv_dtype(r->tensors) == K_F32))
        q.kv_dtype = K_F32;
    if (o->kv_dtype == RANK_KV_INT8)
        q.kv_dtype = K_INT8;
    request_device(r, &q);
    *ret = q;
    return 0;
}

/* Does the scratch take so much of what weights leave that half of the rows would be better? */
static bool too_many_rows(const struct rank *r, const struct budget_request *q) {
    const struct rank_options *o = &r->options;
    const uint64_t taken = q->weight_bytes + q->reserve_bytes,
                   left = q->memory_bytes > taken ? q->memory_bytes - taken : 0;
    return !o->max_num_batched_tokens && q->scratch_bytes - q->unit_stages_bytes > left / RANK_SCRATCH_PART &&
           r->rows_max / 2 >= RANK_ROWS_LEAST && r->rows_max / 2 >= slots_of(o);
}

/* The request, and with it the rows of a step. */
static int request_sized(struct rank *r, const struct weights_options *wo, uint64_t memory_bytes,
        struct budget_request *ret, struct error *e) {
    int rc = request_budget(r, wo, memory_bytes, ret, e);
    while (rc == 0 && too_many_rows(r, ret)) {
        r->rows_max /= 2;
        rc = request_budget(r, wo, memory_bytes, ret, e);
    }
    return rc;
}

/* Free memory of this rank's device, which it may share with others of the group, and what its weights have already.
 * All have opened theirs before it is measured, since an open device takes memory. */
static int measure_memory(const struct rank *r, uint64_t kept_bytes, uint64_t *ret, struct error *e) {
    const struct rank_options *o = &r->options;
    uint32_t sharers = 0;
    int rc = meet(o, MEETING_PRESENT, NULL, 0, NULL, e);
    for (uint32_t i = 0; i < o->tp; i++)
        sharers += k_memory_shared(r->context) || o->devices[i] == o->devices[o->rank];
    *ret = k_memory_free(r->context) / sharers + kept_bytes;
    return rc;
}

/* Rows, slots and pages are the same on every rank: as many as all of them have room for. */
static int decide_budget(
        struct rank *r, const struct weights_options *wo, uint64_t kept_bytes, struct error *e) {
    const struct rank_options *o = &r->options;
    const struct k_shape *s = &r->shard.shape;
    struct budget_request q;
    uint64_t memory = 0;
    uint32_t first;
    int rc = measure_memory(r, kept_bytes, &memory, e);
    memory = o->memory_bytes ? o->memory_bytes : memory;
    if (rc == 0)
        rc = request_sized(r, wo, memory, &q, e);
    uint64_t agreed[] = {r->rows_max, r->draft_vocab.hash, ~r->draft_vocab.hash};
    if (rc == 0)
        rc = meet(o, MEETING_ROWS, agreed, 3, NULL, e);
    r->rows_max = (uint32_t)agreed[0];
    if (rc == 0 && (agreed[1] != r->draft_vocab.hash || agreed[2] != ~r->draft_vocab.hash))
        rc = error_set(
                e, -EINVAL, "--draft-vocab: ranks found different ids in their files; give all the same");
    if (rc == 0)
        rc = request_budget(r, wo, memory, &q, e);
    if (rc == 0)
        rc = budget_make(s, &q, &r->budget, e);
    if (rc < 0)
        return rc;
    struct k_pool_options pool = r->budget.pool;
    uint64_t all[] = {pool.pages, pool.slots, pool.pages_per_slot, r->budget.max_model_len};
    rc = meet(o, MEETING_POOL, all, sizeof(all) / sizeof(all[0]), &first, e);
    const bool less = all[0] < pool.pages || all[1] < pool.slots || all[2] < pool.pages_per_slot ||
                      all[3] < r->budget.max_model_len;
    pool.pages = (uint32_t)all[0];
    pool.slots = (uint32_t)all[1];
    pool.pages_per_slot = (uint32_t)all[2];
    if (rc == 0 && less)
        budget_lessen(s, &q, &pool, (uint32_t)all[3], first, &r->budget);
    if (rc == 0) {
        const uint64_t taken = q.weight_bytes + q.scratch_bytes + q.reserve_bytes + r->budget.pool_bytes;
        prefix_units_choose(r, memory > taken ? memory - taken : 0);
    }
    return rc;
}

/* What the rows, the entries and the buffers depend on. */
static void size_rank(struct rank *r, const struct rank_options *o) {
    r->rows_max = rows_of(o);
    r->entries_max = slots_of(o);
    r->logits_rows = o->logits_rows;
    r->drafts_max = o->drafts_max < k_drafts_max() ? o->drafts_max : k_drafts_max();
    const uint64_t samples = (uint64_t)r->entries_max * (1 + r->drafts_max) + SCORES_MAX;
    r->samples_max = samples < r->rows_max ? (uint32_t)samples : r->rows_max;
    r->samples_max = r->samples_max > r->entries_max ? r->samples_max : r->entries_max;
}

/* What a rank has cost so far belongs to this part of its start. */
static void took(struct rank *r, enum rank_stage stage) {
    const uint64_t now = clock_ns();
    r->stage_ns[stage] = now - r->stage_began_ns;
    r->stage_began_ns = now;
}

/* States of prefixes are there to save work: a rank starts with fewer, or without. */
static int create_pool(struct rank *r, struct error *e) {
    int rc;
    do {
        rc = k_pool_create(r->context, &r->shard.shape, &r->budget.pool, &r->pool, e);
    } while (rc == -ENOMEM && prefix_units_fewer(r));
    return rc;
}

/* All memory of a rank but its weights'. */
static int allocate(struct rank *r, const struct rank_options *o, struct error *e) {
    const size_t before = o->tp > 1 ? meeting_bytes() : 0;
    void *region = o->tp > 1 ? (uint8_t *)o->comm_region + before : NULL;
    int rc = allocate_buffers(r, e);
    if (rc == 0)
        rc = create_pool(r, e);
    if (rc == 0)
        rc = k_batch_create(r->context, r->entries_max, r->rows_max, &r->batch, e);
    if (rc == 0)
        rc = k_batch_create_masks(r->batch, r->config.vocab_size, MASKS_MAX, e);
    if (rc == 0 && rank_makes_drafts(r))
        rc = k_batch_create(r->context, r->entries_max, r->entries_max, &r->draft_batch, e);
    if (rc == 0)
        rc = k_comm_create(
                r->context, &r->shard.shape, r->rows_max, region, o->comm_bytes - before, &r->comm, e);
    return rc;
}

/* What is needed only to load weights: copies that are made of a GGUF file, and the packed file. */
static int open_weights(
        struct rank *r, const struct rank_options *o, struct weights_options *wo, struct error *e) {
    int rc = 0;
    if (r->found)
        return 0;
    if (o->keeper && !o->dummy) { /* then they were only looked at so far */
        r->tensors = model_tensors_free(r->tensors);
        rc = model_tensors_resolve(r->checkpoint, &r->config, &r->tensors, e);
    }
    if (rc == 0)
        rc = open_packed(r, o, e);
    wo->packed = r->packed;
    return rc;
}

static int get_weights(struct rank *r, const struct rank_options *o, struct error *e) {
    struct weights_options wo = {.with_mtp = r->options.mtp,
            .draft_vocab = r->draft_vocab.n ? &r->draft_vocab : NULL,
            .checkpoint = r->checkpoint,
            .dummy = o->dummy,
            .dummy_form = {r->quant_config, o->dummy_quant, o->dummy_head_quant},
            .seed = o->seed,
            .progress = o->progress,
            .user = o->user};
    int rc = rank_keep_take(r, o, &wo, e);
    if (rc == 0)
        rc = open_weights(r, o, &wo, e);
    if (rc == 0)
        rc = rank_keep_begin(r, o, &wo, e);
    if (rc == 0)
        rc = decide_budget(r, &wo, r->keeping || r->found ? r->places.bytes : 0, e);
    if (rc == 0)
        rc = k_stream_create(r->context, &r->stream, e);
    if (rc == 0)
        rc = weights_load(r->context, &r->config, &r->shard, r->tensors, &wo, &r->weights, e);
    return rc < 0 ? rc : rank_keep_end(r, e);
}

static int build(struct rank *r, const struct rank_options *o, struct error *e) {
    int rc = check_options(o, e);
    if (rc < 0)
        return rc;
    r->stage_began_ns = clock_ns();
    rc = open_model(r, o, /* only_look= */ o->keeper != NULL, e);
    if (rc < 0)
        return rc;
    took(r, RANK_STAGE_FILES);
    struct k_context_options co = {.device = o->devices[o->rank],
            .threads = o->threads,
            .isa = o->isa,
            .activations = o->activations,
            .fast = o->fast,
            .all_reduce = o->all_reduce,
            .deferred = o->deferred};
    rc = k_context_create(&co, &r->context, e);
    if (rc < 0)
        return rc;
    took(r, RANK_STAGE_CONTEXT);
    size_rank(r, o);
    rc = get_weights(r, o, e);
    if (rc < 0)
        return rc;
    took(r, RANK_STAGE_WEIGHTS);
    rc = allocate(r, o, e);
    if (rc < 0)
        return rc;
    took(r, RANK_STAGE_MEMORY);
    rc = meet(o, MEETING_LOADED, NULL, 0, NULL, e); /* with it nobody has to be waited for there */
    if (rc == 0)
        rc = k_comm_meet(r->comm, e);
    if (rc == 0 && o->tp > 1 && o->rank == 0 && o->note)
        o->note(o->user, k_comm_describe(r->comm));
    took(r, RANK_STAGE_MEETING);
    return rc;
}

/* The copies out of a GGUF file are made before a rank looks how much memory is free. They count where the ranks
 * compute in the same memory, which is where a table is used where it lies. */
static void plan_table(const struct rank *r, struct rank_plan *p) {
    const struct model_tensors *t = r->tensors;
    if (!t)
        return;
    p->embedding_bytes = table_bytes(r);
    p->copied_bytes = t->copied_bytes;
    p->mapped_bytes = p->embedding_bytes || t->embed_copied ? 0 : t->embed->bytes;
    if (p->embedding_bytes == 0)
        p->memory_bytes -= p->copied_bytes < p->memory_bytes ? p->copied_bytes : p->memory_bytes;
}

static int plan(struct rank *r, const struct rank_options *o, struct rank_plan *p, struct error *e) {
    int rc = check_options(o, e);
    if (rc == 0)
        rc = open_model(r, o, /* only_look= */ true, e);
    if (rc < 0)
        return rc;
    const struct weights_options wo = {.with_mtp = r->options.mtp,
            .draft_vocab = r->draft_vocab.n ? &r->draft_vocab : NULL,
            .dummy = o->dummy,
            .dummy_form = {r->quant_config, o->dummy_quant, o->dummy_head_quant}};
    const struct k_shape *s = &r->shard.shape;
    struct budget_request q;
    size_rank(r, o);
    p->memory_bytes = o->memory_bytes;
    plan_table(r, p);
    rc = request_sized(r, &wo, p->memory_bytes, &q, e);
    if (rc < 0)
        return rc;
    struct k_pool_options least = {.slots = 1,
                                  .pages = 1,
                                  .pages_per_slot = 1,
                                  .kv_dtype = q.kv_dtype,
                                  .state_dtype = q.state_dtype,
                                  .drafts_max = q.drafts_max},
                          wanted = least;
    wanted.slots = q.max_num_seqs;
    wanted.pages_per_slot = (q.max_model_len + q.extra_positions + PAGE_TOKENS - 1) / PAGE_TOKENS;
    wanted.pages = wanted.slots * wanted.pages_per_slot;
    p->weight_bytes = q.weight_bytes;
    p->scratch_bytes = q.scratch_bytes;
    p->max_model_len = q.max_model_len;
    p->max_num_seqs = q.max_num_seqs;
    p->least_bytes =
            q.weight_bytes + q.scratch_bytes + q.reserve_bytes + budget_pool_bytes(s, &least, &p->pool);
    p->wanted_bytes =
            q.weight_bytes + q.scratch_bytes + q.reserve_bytes + budget_pool_bytes(s, &wanted, &p->pool);
    rc = budget_make(s, &q, &p->budget, &p->why);
    p->fits = rc == 0;
    return 0;
}

int rank_plan(const struct rank_options *options, struct rank_plan *ret, struct error *e) {
    struct rank *r = calloc(1, sizeof(*r));
    if (!r)
        return error_set(e, -ENOMEM, "out of memory for a rank");
    struct rank_plan p = {0};
    r->options = *options;
    r->keep.fd = -1;
    int rc = plan(r, options, &p, e);
    rank_free(r);
    if (rc == 0)
        *ret = p;
    return rc;
}

int rank_create(const struct rank_options *options, struct rank **ret, struct error *e) {
    struct rank *r = calloc(1, sizeof(*r));
    if (!r)
        return error_set(e, -ENOMEM, "out of memory for a rank");
    r->options = *options;
    r->keep.fd = -1;
    r->options.model_dir = r->options.packed_cache = r->options.draft_vocab = NULL;
    r->options.isa = NULL;
    r->options.dummy_quant = r->options.dummy_head_quant = NULL;
    int rc = build(r, options, e);
    if (rc < 0) {
        rank_stop_meeting(options);
        rank_free(r);
        return rc;
    }
    *ret = r;
    return 0;
}

struct rank *rank_free(struct rank *r) {
    if (!r)
        return NULL;
    if (r->context) {
        struct buffer b[RANK_BUFFERS];
        k_stream_free(r->stream); /* first: its last operations may still name the others */
        k_comm_free(r->comm);
        k_batch_free(r->batch);
        k_batch_free(r->draft_batch);
        k_pool_free(r->pool);
        if (r->shard.shape.tp) {
            list_buffers(r, b);
            for (int i = 0; i < RANK_BUFFERS; i++)
                if (*b[i].at)
                    k_free(r->context, *b[i].at);
        }
        weights_done(r->context, &r->weights);
        k_context_free(r->context);
    }
    rank_keep_done(r);
    packed_free(r->packed);
    draft_vocab_done(&r->draft_vocab);
    model_tensors_free(r->tensors);
    checkpoint_free(r->checkpoint);
    quant_config_free(r->quant_config);
    free(r);
    return NULL;
}

void rank_stop_meeting(const struct rank_options *options) {
    if (options->tp > 1 && options->comm_region)
        meeting_end(options->comm_region);
}

void rank_abort(struct rank *r) {
    if (r->comm)
        k_comm_abort(r->comm);
}
