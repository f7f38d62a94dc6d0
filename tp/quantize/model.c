/* model.c - runs a model one layer at a time, so that memory holds one layer.
 *
 * Called by layers.c. It queues the operations that tp/worker/forward.c queues, with pools for one sequence and one
 * layer of each kind, and shows what goes into each linear. INT4 and INT8 weights are multiplied with what
 * the caller says: with float activations what is measured is the weights' error alone. */
#include "tp/quantize/parts.h"

#include "kernels/kernels.h"
#include "tp/load/linears.h"
#include "tp/load/shard.h"
#include "tp/load/weights.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SLOT  1u
#define PAGES (QUANTIZE_SEQUENCE_MAX / PAGE_TOKENS + 1u) /* MTP stores one position further */

struct quantize_model {
    const struct model_config *m;
    struct shard shard;
    uint32_t threads;
    struct k_context *context;
    struct k_stream *stream;
    struct k_pool *pool;
    struct k_comm *comm;
    struct k_batch *batch;
    struct weights_layer layer;
    const struct layer_tensors *tensors;
    float *x, *in, *mid, *part; /* device; in also holds what quantize_model_project() multiplies */
    void *workspace;
    float *host; /* [QUANTIZE_SEQUENCE_MAX][width_mid]: what a tap is shown */
    uint64_t width_in, width_mid;
};

/* --- vectors --- */

static void read_vector(const struct tensor *t, float *ret) {
    struct tensor row = *t;
    row.dims[1] = t->dims[0];
    quantize_read_row(&row, 0, ret);
}

void quantize_norm(const struct tensor *w, float eps, const float *x, uint32_t n, float *ret) {
    uint64_t h = w->dims[0];
    float *weight = malloc(h * sizeof(*weight));
    if (weight)
        read_vector(w, weight);
    for (uint32_t r = 0; r < n; r++) {
        const float *row = x + r * h;
        double sum = 0;
        for (uint64_t i = 0; i < h; i++)
            sum += (double)row[i] * (double)row[i];
        float scale = (float)(1 / sqrt(sum / (double)h + (double)eps));
        for (uint64_t i = 0; i < h; i++)
            ret[r * h + i] = row[i] * scale * (1.0f + (weight ? weight[i] : 0));
    }
    free(weight);
}

/* --- creation --- */

static uint64_t largest(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static void widths(struct quantize_model *q) {
    const struct k_shape *s = &q->shard.shape;
    uint64_t gdn_v = (uint64_t)s->gdn_v_heads * s->gdn_v_dim, attention = (uint64_t)s->q_heads * s->head_dim;
    q->width_in = largest(2ull * s->gdn_k_heads * s->gdn_k_dim + 2 * gdn_v + 2ull * s->gdn_v_heads,
            2 * attention + 2ull * s->kv_heads * s->head_dim);
    q->width_in = largest(q->width_in, 2ull * s->hidden_size);
    q->width_mid = largest(largest(gdn_v, attention), largest(s->intermediate_size, s->hidden_size));
}

static int allocate(struct quantize_model *q, struct error *e) {
    const struct k_shape *s = &q->shard.shape;
    size_t rows = QUANTIZE_SEQUENCE_MAX, workspace = k_workspace_bytes(s, QUANTIZE_SEQUENCE_MAX, 1);
    widths(q);
    q->x = k_alloc(q->context, rows * s->hidden_size * sizeof(float));
    q->in = k_alloc(q->context, rows * q->width_in * sizeof(float));
    q->mid = k_alloc(q->context, rows * q->width_mid * sizeof(float));
    q->part = k_alloc(q->context, rows * s->hidden_size * sizeof(float));
    q->workspace = k_alloc(q->context, workspace);
    q->host = malloc(rows * q->width_mid * sizeof(float));
    if (!q->x || !q->in || !q->mid || !q->part || !q->workspace || !q->host)
        return error_set(e, -ENOMEM, "out of memory to run the model over sequences");
    k_stream_set_workspace(q->stream, q->workspace, workspace);
    return 0;
}

static int build(struct quantize_model *q, enum quantize_activations activations, struct error *e) {
    static const enum k_activations of[] = {[QUANTIZE_FLOAT] = K_ACTIVATIONS_FLOAT,
            [QUANTIZE_BF16] = K_ACTIVATIONS_BF16,
            [QUANTIZE_INT8] = K_ACTIVATIONS_INT8};
    const struct k_context_options options = {.threads = q->threads, .activations = of[activations]};
    const struct k_pool_options pool = {
            .slots = SLOT, .pages = PAGES, .pages_per_slot = PAGES, .kv_dtype = K_F32};
    int r = shard_make(q->m, 1, 0, false, &q->shard, e);
    if (r < 0)
        return r;
    q->shard.shape.n_attention_layers = q->shard.shape.n_gdn_layers = 1;
    r = k_context_create(&options, &q->context, e);
    if (r == 0)
        r = k_stream_create(q->context, &q->stream, e);
    if (r == 0)
        r = k_pool_create(q->context, &q->shard.shape, &pool, &q->pool, e);
    if (r == 0)
        r = k_batch_create(q->context, 1, QUANTIZE_SEQUENCE_MAX, &q->batch, e);
    if (r == 0)
        r = k_comm_create(q->context, &q->shard.shape, QUANTIZE_SEQUENCE_MAX, NULL, 0, &q->comm, e);
    return r < 0 ? r : allocate(q, e);
}

int quantize_model_create(const struct model_config *m, uint32_t threads,
        enum quantize_activations activations, struct quantize_model **ret, struct error *e) {
    struct quantize_model *q = calloc(1, sizeof(*q));
    if (!q)
        return error_set(e, -ENOMEM, "out of memory to run the model");
    q->m = m;
    q->threads = threads;
    int r = build(q, activations, e);
    if (r < 0)
        quantize_model_free(q);
    else
        *ret = q;
    return r;
}

void quantize_model_unload(struct quantize_model *q) {
    struct weights_layer *w = &q->layer;
    float *vectors[] = {
            w->input_norm, w->post_norm, w->q_norm, w->k_norm, w->conv, w->a_log, w->dt_bias, w->gdn_norm};
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
        k_free(q->context, vectors[i]);
    k_linear_free(w->mixer_in);
    k_linear_free(w->mixer_out);
    k_linear_free(w->gate_up);
    k_linear_free(w->down);
    *w = (struct weights_layer){0};
}

struct quantize_model *quantize_model_free(struct quantize_model *q) {
    if (!q)
        return NULL;
    if (q->context) {
        k_stream_free(q->stream);
        quantize_model_unload(q);
        k_comm_free(q->comm);
        k_batch_free(q->batch);
        k_pool_free(q->pool);
        void *buffers[] = {q->x, q->in, q->mid, q->part, q->workspace};
        for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
            k_free(q->context, buffers[i]);
        k_context_free(q->context);
    }
    free(q->host);
    free(q);
    return NULL;
}

/* --- a layer --- */

int quantize_model_pack(
        struct quantize_model *q, const struct linear *w, struct k_linear **ret, struct error *e) {
    struct shard_linear part;
    const uint32_t *order;
    uint32_t *owned = NULL;
    int r = linear_shard(w, &q->shard, &part, &order, &owned, e);
    if (r < 0)
        return r;
    struct k_linear_spec spec = {.pieces = part.pieces,
            .n_pieces = part.n_pieces,
            .columns = part.columns,
            .leaves = part.leaves,
            .order = order,
            .name = w->name};
    r = k_linear_pack(q->context, &spec, ret, e);
    free(owned);
    return r;
}

static enum k_dtype dtype_of(const struct tensor *t) {
    return t->dtype == TENSOR_F32 ? K_F32 : t->dtype == TENSOR_F16 ? K_F16 : K_BF16;
}
/* Nothing to do without a tensor: it is of the other kind of layer. */
static int load_vector(
        struct quantize_model *q, const struct tensor *t, float offset, float **ret, struct error *e) {
    if (!t)
        return 0;
    return k_vector_load(q->context, t->data, dtype_of(t), (uint32_t)(t->bytes / k_dtype_bytes(dtype_of(t))),
            offset, ret, e);
}
static int load_taps(struct quantize_model *q, const struct tensor *t, float **ret, struct error *e) {
    if (!t)
        return 0;
    const uint32_t n = (uint32_t)(t->bytes / k_dtype_bytes(dtype_of(t))), w = q->m->conv_kernel;
    return k_taps_load(q->context, t->data, dtype_of(t), n / w, w, ret, e);
}

int quantize_model_load(
        struct quantize_model *q, const struct layer_tensors *t, const char *name, struct error *e) {
    struct linear linears[LINEARS_OF_LAYER];
    struct weights_layer *w = &q->layer;
    quantize_model_unload(q);
    q->tensors = t;
    w->attention = t->is_attention;
    int r = linears_of_layer(q->m, t, t->is_attention, name, linears, e);
    struct k_linear **to[LINEARS_OF_LAYER] = {&w->mixer_in, &w->mixer_out, &w->gate_up, &w->down};
    for (int i = 0; i < LINEARS_OF_LAYER && r == 0; i++)
        r = quantize_model_pack(q, &linears[i], to[i], e);
    const struct {
        const struct tensor *t;
        float offset, **to;
    } vectors[] = {{t->input_norm, 1, &w->input_norm}, {t->post_norm, 1, &w->post_norm},
            {t->attention.q_norm, 1, &w->q_norm}, {t->attention.k_norm, 1, &w->k_norm},
            {t->gdn.a_log, 0, &w->a_log}, {t->gdn.dt_bias, 0, &w->dt_bias}, {t->gdn.norm, 0, &w->gdn_norm}};
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]) && r == 0; i++)
        r = load_vector(q, vectors[i].t, vectors[i].offset, vectors[i].to, e);
    return r < 0 ? r : load_taps(q, t->gdn.conv, &w->conv, e);
}

/* A fresh sequence of n rows in the only slot, alone in the batch. */
static void begin(struct quantize_model *q, const struct k_plan *plan, const struct k_entry *entry,
        const uint32_t *ids) {
    static const struct k_sampling sampling = {.top_p = 1, .repetition_penalty = 1};
    static const struct k_memory_op zero = {.kind = K_MEM_ZERO_SLOT, .a = SLOT};
    uint32_t pages[PAGES];
    for (uint32_t i = 0; i < PAGES; i++)
        pages[i] = i + 1;
    k_slot_open(q->stream, q->pool, SLOT, &sampling);
    k_memory(q->stream, q->pool, &zero, 1);
    k_slot_grant(q->stream, q->pool, SLOT, 0, PAGES, pages);
    k_batch_upload(q->stream, q->batch, plan, entry, ids, entry->n_rows, NULL, 0);
    k_begin_step(q->stream, q->pool, q->batch);
}

struct tapping {
    quantize_tap tap;
    void *user;
    uint32_t rows;
};

/* Shows columns of a device buffer, normed first where norm is given. */
static int show(struct quantize_model *q, const struct tapping *t, uint32_t input, const float *from,
        uint64_t columns, const struct tensor *norm, struct error *e) {
    if (!t->tap)
        return 0;
    k_download(q->stream, q->host, from, t->rows * columns * sizeof(float));
    int r = k_stream_wait(q->stream, 0, e);
    if (r < 0)
        return r;
    if (norm)
        quantize_norm(norm, q->m->rms_eps, q->host, t->rows, q->host);
    t->tap(t->user, input, q->host, t->rows, (uint32_t)columns);
    return 0;
}

static void mixer(struct quantize_model *q, bool mtp) {
    const struct weights_layer *w = &q->layer;
    const struct k_attention_weights attention = {w->q_norm, w->k_norm};
    const struct k_gdn_weights gdn = {w->conv, w->a_log, w->dt_bias, w->gdn_norm};
    if (w->attention)
        k_attention_step(q->stream, q->pool, q->batch, 0, mtp ? 1 : 0, &attention, q->in, q->mid);
    else
        k_gdn_step(q->stream, q->pool, q->batch, 0, &gdn, q->in, q->mid);
}

static int run_layer(struct quantize_model *q, bool mtp, const struct tapping *t, struct error *e) {
    const struct weights_layer *w = &q->layer;
    const struct k_shape *s = &q->shard.shape;
    uint32_t h = s->hidden_size;
    uint64_t mixed =
            w->attention ? (uint64_t)s->q_heads * s->head_dim : (uint64_t)s->gdn_v_heads * s->gdn_v_dim;
    int r = show(q, t, LINEAR_MIXER_IN, q->x, h, q->tensors->input_norm, e);
    k_norm_project(q->stream, q->batch, q->x, w->input_norm, s->rms_eps, w->mixer_in, q->in);
    mixer(q, mtp);
    if (r == 0)
        r = show(q, t, LINEAR_MIXER_OUT, q->mid, mixed, NULL, e);
    k_project_partial(q->stream, q->batch, w->mixer_out, q->mid, q->part);
    k_reduce_residual(q->stream, q->comm, q->batch, q->part, q->x, h);
    if (r == 0)
        r = show(q, t, LINEAR_MLP_IN, q->x, h, q->tensors->post_norm, e);
    k_norm_gate_up(q->stream, q->batch, q->x, w->post_norm, s->rms_eps, w->gate_up, q->mid);
    if (r == 0)
        r = show(q, t, LINEAR_MLP_OUT, q->mid, s->intermediate_size, NULL, e);
    k_project_partial(q->stream, q->batch, w->down, q->mid, q->part);
    k_reduce_residual(q->stream, q->comm, q->batch, q->part, q->x, h);
    k_end_step(q->stream, q->pool, q->batch, NULL, NULL);
    return r;
}

int quantize_model_run(struct quantize_model *q, const uint32_t *ids, uint32_t n, bool mtp, float *x,
        quantize_tap tap, void *user, struct error *e) {
    const struct k_plan plan = {.n_entries = 1, .n_rows = n};
    const struct k_entry entry = {.slot = SLOT,
            .kind = K_ENTRY_PROMPT,
            .n_rows = n,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    const struct tapping t = {tap, user, n};
    size_t bytes = (size_t)n * q->m->hidden_size * sizeof(float);
    begin(q, &plan, &entry, ids);
    k_upload(q->stream, q->x, x, bytes);
    int r = run_layer(q, mtp, &t, e);
    k_download(q->stream, x, q->x, bytes);
    k_slot_close(q->stream, q->pool, SLOT);
    int waited = k_stream_wait(q->stream, 0, e);
    return r < 0 ? r : waited;
}

/* --- outside the layers --- */

int quantize_model_project(struct quantize_model *q, struct k_linear *w, const float *x, uint32_t n,
        uint32_t columns, float *y, struct error *e) {
    const struct k_plan plan = {.n_entries = 1, .n_rows = n};
    const struct k_entry entry = {.slot = SLOT,
            .kind = K_ENTRY_PROMPT,
            .n_rows = n,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    size_t bytes = (size_t)n * k_linear_rows(w) * sizeof(float);
    uint32_t *ids = calloc(n, sizeof(*ids));
    float *to = k_alloc(q->context, bytes);
    int r = -ENOMEM;
    if (ids && to) {
        begin(q, &plan, &entry, ids);
        k_upload(q->stream, q->in, x, (size_t)n * columns * sizeof(float));
        k_project(q->stream, q->batch, q->in, w, to);
        k_download(q->stream, y, to, bytes);
        k_slot_close(q->stream, q->pool, SLOT);
        r = k_stream_wait(q->stream, 0, e);
    } else {
        error_set(e, r, "out of memory for %u rows of a product", n);
    }
    k_free(q->context, to);
    free(ids);
    return r;
}
