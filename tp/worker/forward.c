/* forward.c - see forward.h. */
#include "tp/worker/forward.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static const struct forward_hooks no_hooks;

static const uint32_t short_contexts[] = FORWARD_CONTEXTS;
#define CONTEXTS_MAX (sizeof(short_contexts) / sizeof(short_contexts[0]) + 1)

/* Of a graph on a device, at most: the estimate for the budget. */
#define LAYER_NODES 11u
#define OTHER_NODES 48u
#define DRAFT_NODES 32u /* of both graphs that make drafts, beside the MTP layer's */
#define NODE_BYTES  2048u

/* What follows the step where its entries ask for drafts: the first of each entry, then one more each time. */
enum draft_part { DRAFT_FIRST, DRAFT_NEXT, DRAFT_PARTS };

struct bucket {
    struct k_bounds bounds;
    struct k_graph **graphs;             /* [n_graphs] */
    struct k_graph *drafts[DRAFT_PARTS]; /* where drafts are made; else NULL */
};
enum place { PLACE_STEP, PLACE_LAYER, PLACE_WORDS };
struct forward {
    struct rank *rank;
    uint32_t n_parts;  /* n_layers + 2: embedding, layers, head (with MTP) */
    uint32_t n_graphs; /* of a bucket: one for each part, or one for all where operations run behind */
    uint32_t *place;   /* [PLACE_WORDS] pinned, written by the device; NULL where nothing runs behind */
    uint64_t graph_bytes;
    uint32_t n_buckets;     /* 0 when eager */
    struct bucket *buckets; /* by rows, then by context */
    struct bucket *chosen;  /* NULL when eager */
    uint32_t rows;          /* bound of what is queued next */
};

static void mark(const struct forward_hooks *hooks, uint32_t layer, enum forward_operation operation) {
    if (hooks->mark)
        hooks->mark(hooks->user, layer, operation);
}

static void tap(const struct rank *r, const struct forward_hooks *hooks, uint32_t index) {
    size_t floats = (size_t)r->rows_max * r->config.hidden_size;
    if (hooks->hidden)
        k_download(r->stream, hooks->hidden + index * floats, r->x, floats * sizeof(float));
}

static void queue_mixer(
        const struct rank *r, const struct k_batch *b, const struct weights_layer *w, uint32_t kv_shift) {
    if (w->attention) {
        const struct k_attention_weights aw = {.q_norm = w->q_norm, .k_norm = w->k_norm};
        k_attention_step(r->stream, r->pool, b, w->index, kv_shift, &aw, r->in, r->mid);
    } else {
        const struct k_gdn_weights gw = {
                .conv = w->conv, .a_log = w->a_log, .dt_bias = w->dt_bias, .norm = w->gdn_norm};
        k_gdn_step(r->stream, r->pool, b, w->index, &gw, r->in, r->mid);
    }
}

/* x += mixer(norm(x)); x += mlp(norm(x)) */
static void queue_layer(const struct rank *r, const struct k_batch *b, const struct weights_layer *w,
        uint32_t layer, uint32_t kv_shift, const struct forward_hooks *hooks) {
    float eps = r->config.rms_eps;
    mark(hooks, layer, FORWARD_MIXER_IN);
    k_norm_project(r->stream, b, r->x, w->input_norm, eps, w->mixer_in, r->in);
    mark(hooks, layer, FORWARD_MIXER);
    queue_mixer(r, b, w, kv_shift);
    mark(hooks, layer, FORWARD_MIXER_OUT);
    k_project_residual(r->stream, r->comm, b, w->mixer_out, r->mid, r->part, r->x);
    mark(hooks, layer, FORWARD_GATE_UP);
    k_norm_gate_up(r->stream, b, r->x, w->post_norm, eps, w->gate_up, r->mid);
    mark(hooks, layer, FORWARD_DOWN);
    k_project_residual(r->stream, r->comm, b, w->down, r->mid, r->part, r->x);
}

static void queue_embedding(const struct rank *r, const struct forward_hooks *hooks) {
    mark(hooks, 0, FORWARD_EMBED);
    k_begin_step(r->stream, r->pool, r->batch);
    k_embed(r->stream, r->batch, r->weights.embedding, r->x);
}

/* The MTP layer over a batch, from hidden rows and sampled ids to hidden rows in the same place. The residual stream is
 * free by now and is used again; so is hidden, once mtp_in has been made from it. */
static void queue_mtp(const struct rank *r, const struct k_batch *b, float *hidden,
        const struct k_result *results, const struct forward_hooks *hooks) {
    const struct weights *w = &r->weights;
    float eps = r->config.rms_eps;
    uint32_t layer = r->config.n_layers + 1;
    mark(hooks, layer, FORWARD_MTP);
    k_mtp_input(r->stream, r->pool, b, w->embedding, hidden, w->mtp_norm_embedding, w->mtp_norm_hidden, eps,
            results, r->mtp_in);
    k_project(r->stream, b, r->mtp_in, w->mtp_fc, r->x);
    queue_layer(r, b, &w->mtp, layer, 1, &no_hooks);
    k_final_norm(r->stream, r->pool, b, r->x, w->mtp_norm, eps, hidden, /* keep= */ false);
}

static void queue_draft(const struct rank *r, enum draft_part part) {
    if (part == DRAFT_FIRST)
        k_draft_begin(r->stream, r->pool, r->batch, r->outcomes, r->hidden, r->draft_batch, r->draft_hidden);
    else
        queue_mtp(r, r->draft_batch, r->draft_hidden, r->draft_results, &no_hooks);
    const struct k_draft_head some = {r->weights.draft_head, r->draft_place, r->draft_vocab.n};
    if (some.n)
        k_draft_sample(r->stream, r->pool, r->comm, r->draft_batch, &some, r->draft_hidden, r->draft_results);
    else
        k_head_sample(r->stream, r->pool, r->comm, r->draft_batch, r->weights.head, r->draft_hidden,
                r->draft_results, NULL, NULL, 0);
    k_draft_take(r->stream, r->pool, r->draft_batch, r->draft_results);
}

static void queue_head(const struct rank *r, const struct forward_hooks *hooks) {
    mark(hooks, r->config.n_layers + 1, FORWARD_HEAD);
    k_final_norm(r->stream, r->pool, r->batch, r->x, r->weights.final_norm, r->config.rms_eps, r->hidden,
            /* keep= */ true);
    k_head_sample(r->stream, r->pool, r->comm, r->batch, r->weights.head, r->hidden, r->results, r->outcomes,
            r->logits, r->logits_rows);
    if (r->weights.has_mtp)
        queue_mtp(r, r->batch, r->hidden, r->results, hooks);
    if (r->weights.has_mtp && r->logits_rows > 0) /* for the token after next; for who looks at them */
        k_head_sample(r->stream, r->pool, r->comm, r->batch, r->weights.head, r->hidden, r->mtp_results, NULL,
                r->mtp_logits, r->logits_rows);
    k_end_step(r->stream, r->pool, r->batch, r->results, r->outcomes);
}

static void queue_part(
        const struct forward *f, uint32_t part, uint32_t rows, const struct forward_hooks *hooks) {
    const struct rank *r = f->rank;
    const uint32_t each = rows > FORWARD_FEW_ROWS ? FORWARD_MARK_LAYERS : FORWARD_MARK_LAYERS_FEW;
    if (f->place && (part == f->n_parts - 1 || part % each == 1))
        k_mark(r->stream, &f->place[PLACE_LAYER], part);
    if (part == 0)
        queue_embedding(r, hooks);
    else if (part < f->n_parts - 1)
        queue_layer(r, r->batch, &r->weights.layers[part - 1], part, 0, hooks);
    else
        queue_head(r, hooks);
    if (part < f->n_parts - 1)
        tap(r, hooks, part);
}

/* What all that is queued from now on has at most. Entries of the MTP layer that drafts make lie behind the step. */
static void bound(const struct rank *r, const struct k_bounds *b) {
    const uint32_t longest = r->budget.pool.pages_per_slot * PAGE_TOKENS, behind = b->context + r->drafts_max;
    const struct k_bounds drafts = {b->entries, b->entries, behind < longest ? behind : longest};
    k_batch_bounds(r->batch, b);
    if (r->draft_batch)
        k_batch_bounds(r->draft_batch, &drafts);
}

static int capture_drafts(struct forward *f, struct bucket *b, struct error *e) {
    struct k_stream *s = f->rank->stream;
    int r = 0;
    for (uint32_t i = 0; r == 0 && f->rank->draft_batch && i < DRAFT_PARTS; i++) {
        r = k_capture_begin(s, e);
        if (r < 0)
            break;
        queue_draft(f->rank, (enum draft_part)i);
        r = k_capture_end(s, &b->drafts[i], e);
    }
    return r;
}

static int capture(struct forward *f, struct bucket *b, struct error *e) {
    struct k_stream *s = f->rank->stream;
    const uint32_t parts_each = f->n_parts / f->n_graphs;
    b->graphs = calloc(f->n_graphs, sizeof(b->graphs[0]));
    if (!b->graphs)
        return error_set(e, -ENOMEM, "out of memory for %u graphs", f->n_graphs);
    bound(f->rank, &b->bounds);
    for (uint32_t i = 0; i < f->n_graphs; i++) {
        int r = k_capture_begin(s, e);
        if (r < 0)
            return r;
        for (uint32_t k = 0; k < parts_each; k++)
            queue_part(f, i * parts_each + k, b->bounds.rows, &no_hooks);
        r = k_capture_end(s, &b->graphs[i], e);
        if (r < 0)
            return r;
    }
    return capture_drafts(f, b, e);
}

/* The contexts of the rank's buckets, ascending; the last is as much as a slot has pages for. */
static uint32_t contexts_of(const struct rank *r, uint32_t ret[CONTEXTS_MAX]) {
    uint32_t longest = r->budget.pool.pages_per_slot * PAGE_TOKENS, n = 0;
    for (size_t i = 0; i < CONTEXTS_MAX - 1 && short_contexts[i] < longest; i++)
        ret[n++] = short_contexts[i];
    ret[n++] = longest;
    return n;
}

static uint32_t row_buckets(uint32_t rows_max) {
    uint32_t n = 1;
    for (uint32_t rows = 1; rows < rows_max; rows *= 2)
        n++;
    return n;
}

static int capture_all(struct forward *f, struct error *e) {
    const struct rank *r = f->rank;
    uint32_t contexts[CONTEXTS_MAX], n_contexts = contexts_of(r, contexts), n_rows = row_buckets(r->rows_max);
    f->buckets = calloc((size_t)n_rows * n_contexts, sizeof(f->buckets[0]));
    if (!f->buckets)
        return error_set(e, -ENOMEM, "out of memory for %u buckets of graphs", n_rows * n_contexts);
    for (uint32_t i = 0; i < n_rows; i++) {
        uint32_t rows = i + 1 < n_rows ? 1u << i : r->rows_max;
        for (uint32_t k = 0; k < n_contexts; k++) {
            struct bucket *b = &f->buckets[f->n_buckets++];
            b->bounds.rows = rows;
            b->bounds.entries = rows < r->entries_max ? rows : r->entries_max;
            b->bounds.context = contexts[k];
            int rc = capture(f, b, e);
            if (rc < 0)
                return rc;
        }
    }
    f->chosen = &f->buckets[f->n_buckets - 1];
    return 0;
}

/* What the graphs take is seen by what is free: on a device that others use too it is only about right. */
static int capture_measured(struct forward *f, struct error *e) {
    const struct k_context *c = f->rank->context;
    const uint64_t before = k_runs_behind(c) ? k_memory_free(c) : 0;
    int r = capture_all(f, e);
    const uint64_t after = before ? k_memory_free(c) : 0;
    f->graph_bytes = before > after ? before - after : 0;
    return r;
}

int forward_create(struct rank *rank, struct forward **ret, struct error *e) {
    struct forward *f = calloc(1, sizeof(*f));
    if (!f)
        return error_set(e, -ENOMEM, "out of memory for the forward pass");
    const bool behind = k_runs_behind(rank->context);
    f->rank = rank;
    f->n_parts = rank->config.n_layers + 2;
    f->n_graphs = behind ? 1 : f->n_parts;
    if (behind)
        f->place = k_host_alloc(rank->context, PLACE_WORDS * sizeof(f->place[0]));
    int r = behind && !f->place ? error_set(e, -ENOMEM, "out of memory for the place of a step") : 0;
    if (r == 0 && !rank->options.eager)
        r = capture_measured(f, e);
    if (r < 0) {
        forward_free(f);
        return r;
    }
    *ret = f;
    return 0;
}

struct forward *forward_free(struct forward *f) {
    if (!f)
        return NULL;
    for (uint32_t b = 0; b < f->n_buckets; b++) {
        for (uint32_t i = 0; f->buckets[b].graphs && i < f->n_graphs; i++)
            k_graph_free(f->buckets[b].graphs[i]);
        for (uint32_t i = 0; i < DRAFT_PARTS; i++)
            k_graph_free(f->buckets[b].drafts[i]);
        free(f->buckets[b].graphs);
    }
    if (f->place)
        k_host_free(f->rank->context, f->place);
    free(f->buckets);
    free(f);
    return NULL;
}

static bool holds(const struct k_bounds *b, const struct k_bounds *step) {
    return step->rows <= b->rows && step->entries <= b->entries && step->context <= b->context;
}

struct k_bounds forward_bound(struct forward *f, const struct k_bounds *step) {
    const struct k_bounds *bounds = step;
    if (f->chosen) {
        f->chosen = f->buckets;
        while (!holds(&f->chosen->bounds, step)) {
            f->chosen++;
            assert(f->chosen <
                    f->buckets + f->n_buckets); /* the last holds every step that the rank can do */
        }
        bounds = &f->chosen->bounds;
    }
    bound(f->rank, bounds);
    f->rows = bounds->rows;
    return *bounds;
}

/* The layer first: a step that stops before its first layer is not said to be in its last one. */
static void mark_step(const struct forward *f, uint32_t step) {
    k_mark(f->rank->stream, &f->place[PLACE_LAYER], 0);
    k_mark(f->rank->stream, &f->place[PLACE_STEP], step);
}

void forward_queue(struct forward *f, uint32_t step, const struct forward_hooks *hooks) {
    if (!hooks)
        hooks = &no_hooks;
    if (f->place)
        mark_step(f, step);
    for (uint32_t i = 0; f->chosen && i < f->n_graphs; i++) {
        mark(hooks, i, FORWARD_LAYER);
        k_graph_launch(f->rank->stream, f->chosen->graphs[i]);
    }
    for (uint32_t i = 0; !f->chosen && i < f->n_parts; i++)
        queue_part(f, i, f->rows, hooks);
}

void forward_draft(struct forward *f, uint32_t n) {
    const struct rank *r = f->rank;
    for (uint32_t i = 0; r->draft_batch && i < n; i++) {
        const enum draft_part part = i == 0 ? DRAFT_FIRST : DRAFT_NEXT;
        if (f->chosen)
            k_graph_launch(r->stream, f->chosen->drafts[part]);
        else
            queue_draft(r, part);
    }
}

bool forward_place(const struct forward *f, uint32_t *ret_step, uint32_t *ret_layer) {
    if (!f->place)
        return false;
    *ret_step = __atomic_load_n(&f->place[PLACE_STEP], __ATOMIC_ACQUIRE);
    *ret_layer = __atomic_load_n(&f->place[PLACE_LAYER], __ATOMIC_ACQUIRE);
    return true;
}

uint64_t forward_graphs_estimate(uint32_t n_layers, uint32_t rows_max, bool drafts) {
    const uint64_t nodes =
            (uint64_t)n_layers * LAYER_NODES + OTHER_NODES + (drafts ? LAYER_NODES + DRAFT_NODES : 0);
    return row_buckets(rows_max) * CONTEXTS_MAX * nodes * NODE_BYTES;
}

uint32_t forward_graph_nodes(const struct forward *f) {
    uint32_t n = 0;
    for (uint32_t i = 0; f->chosen && i < f->n_graphs; i++)
        n += k_graph_nodes(f->chosen->graphs[i]);
    return n;
}

uint64_t forward_graph_bytes(const struct forward *f) {
    return f->graph_bytes;
}
