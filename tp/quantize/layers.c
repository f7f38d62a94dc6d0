/* layers.c - quantises a model while sequences run through it, layer by layer.
 *
 * For each layer: the calibration sequences, as the quantised layers before have left them, pass through the original
 * layer and show what its linears get; the linears are quantised; then the sequences pass through the quantised layer
 * and go on to the next. Evaluation sequences pass twice beside them, through the original layers and through the
 * quantised ones. After the layers come MTP's and the head, whose rows are taken in bands. Called by quantize.c. */
#include "tp/quantize/parts.h"

#include "kernels/kernels.h"
#include "tp/load/linears.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ITEMS_OF_LAYER 10u
#define HEAD_ROWS      256u /* tokens whose logits are computed at once */

struct stand_in { /* a quantised matrix as the kernels take it */
    struct tensor t;
    struct quantize_matrix *q;
};

struct walk {
    struct quantize_run *r;
    struct quantize_model *model;
    struct quantize_stats stats[QUANTIZE_INPUTS];
    /* Residual streams of all sequences, [tokens][H], or NULL: calibration; evaluation through the original and
     * through the quantised layers; the same for MTP's layer, with the last token of each sequence unused. */
    float *calibration, *original, *quantised, *mtp_original, *mtp_quantised;
    float *scratch; /* [QUANTIZE_SEQUENCE_MAX][2H] */
    struct quantize_token *tokens, *mtp_tokens;
    struct error *e;
};

static int stop_here(const struct walk *w) {
    return quantize_stopped(w->r) ? error_set(w->e, -ECANCELED, "interrupted") : 0;
}

static uint32_t n_tokens(const struct quantize_sequences *s) {
    return s->n ? s->begin[s->n] : 0;
}

static float *activations(const struct walk *w, uint32_t tokens) {
    return tokens ? calloc((size_t)tokens * w->r->m.hidden_size, sizeof(float)) : NULL;
}

/* --- embedding --- */

static void embed(const struct walk *w, const struct quantize_sequences *s, float *x) {
    for (uint32_t i = 0; x && i < n_tokens(s); i++)
        quantize_read_row(w->r->t->embed, s->ids[i], x + (size_t)i * w->r->m.hidden_size);
}

static int start(struct walk *w) {
    const struct quantize_run *r = w->r;
    uint32_t calibration = n_tokens(&r->calibration), evaluation = n_tokens(&r->evaluation);
    uint32_t mtp = r->t->has_mtp ? evaluation : 0;
    w->calibration = activations(w, calibration);
    w->original = activations(w, evaluation);
    w->quantised = activations(w, evaluation);
    w->mtp_original = activations(w, mtp);
    w->mtp_quantised = activations(w, mtp);
    w->scratch = activations(w, 2 * QUANTIZE_SEQUENCE_MAX);
    w->tokens = calloc(evaluation + 1u, sizeof(w->tokens[0]));
    w->mtp_tokens = calloc(evaluation + 1u, sizeof(w->mtp_tokens[0]));
    r->report->layer_errors = evaluation ? calloc(r->m.n_layers, sizeof(double)) : NULL;
    if ((calibration && !w->calibration) || (evaluation && (!w->original || !w->quantised)) ||
            (mtp && (!w->mtp_original || !w->mtp_quantised)) || !w->scratch || !w->tokens || !w->mtp_tokens ||
            (evaluation && !r->report->layer_errors))
        return error_set(
                w->e, -ENOMEM, "out of memory for the activations of %u tokens", calibration + evaluation);
    embed(w, &r->calibration, w->calibration);
    embed(w, &r->evaluation, w->original);
    embed(w, &r->evaluation, w->quantised);
    return quantize_model_create(&r->m, r->threads, r->o->activations, &w->model, w->e);
}

static void finish(struct walk *w) {
    float *all[] = {w->calibration, w->original, w->quantised, w->mtp_original, w->mtp_quantised, w->scratch};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
    free(w->tokens);
    free(w->mtp_tokens);
    for (int i = 0; i < QUANTIZE_INPUTS; i++)
        quantize_stats_done(&w->stats[i]);
    quantize_model_free(w->model);
}

/* --- sequences through the loaded layer --- */

static void gather(void *user, uint32_t input, const float *x, uint32_t rows, uint32_t columns) {
    struct walk *w = user;
    struct quantize_stats *s = &w->stats[input];
    if (s->columns == columns)
        quantize_stats_add(s, x, rows, w->r->threads);
}

/* tap: the sequences only show their inputs and stay where they are. */
static int pass(struct walk *w, const struct quantize_sequences *s, float *x, bool mtp, quantize_tap tap) {
    uint32_t h = w->r->m.hidden_size;
    int rc = 0;
    for (uint32_t i = 0; i < s->n && rc == 0; i++) {
        uint32_t n = s->begin[i + 1] - s->begin[i] - (mtp ? 1 : 0);
        float *at = x + (size_t)s->begin[i] * h, *to = tap ? w->scratch : at;
        if (tap)
            memcpy(to, at, (size_t)n * h * sizeof(float));
        rc = stop_here(w);
        if (rc == 0)
            rc = quantize_model_run(w->model, s->ids + s->begin[i], n, mtp, to, tap, w, w->e);
    }
    return rc;
}

/* --- statistics --- */

static int begin_stats(struct walk *w, uint32_t layer) {
    const struct quantize_run *r = w->r;
    int rc = 0;
    for (uint32_t i = 0; i < r->n_items && rc == 0; i++) {
        const struct quantize_item *item = &r->items[i];
        uint32_t columns = item->report.columns;
        if (item->layer == layer && !w->stats[item->input].columns)
            rc = quantize_stats_init(
                    &w->stats[item->input], columns, columns <= r->o->hessian_columns_max, w->e);
    }
    return rc;
}

static void end_stats(struct walk *w) {
    for (int i = 0; i < QUANTIZE_INPUTS; i++)
        quantize_stats_done(&w->stats[i]);
}

static const struct quantize_stats *stats_of(struct walk *w, const struct quantize_item *item) {
    struct quantize_stats *s = &w->stats[item->input];
    return s->columns ? s : NULL;
}

static void prepare_stats(struct walk *w) {
    for (int i = 0; i < QUANTIZE_INPUTS; i++)
        if (w->stats[i].columns)
            quantize_stats_prepare(&w->stats[i], w->r->threads);
}

/* --- a layer --- */

static void stand_in(struct stand_in *s, const struct tensor *t, struct quantize_matrix *q) {
    s->q = q;
    s->t = (struct tensor){.name = t->name,
            .file = t->file,
            .dtype = TENSOR_QUANTISED,
            .n_dims = 2,
            .dims = {q->view.rows, q->view.columns},
            .quant = &q->view};
}

static void replace(struct layer_tensors *l, const struct tensor *t, const struct tensor *by) {
    const struct tensor **all[] = {&l->attention.q, &l->attention.k, &l->attention.v, &l->attention.o,
            &l->gdn.in_qkv, &l->gdn.in_z, &l->gdn.out, &l->gate, &l->up, &l->down};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (*all[i] == t)
            *all[i] = by;
}

/* Quantises the layer's items and puts them into *l. */
static int quantise_items(
        struct walk *w, uint32_t layer, struct layer_tensors *l, struct stand_in made[ITEMS_OF_LAYER]) {
    struct quantize_run *r = w->r;
    uint32_t n = 0;
    int rc = 0;
    for (uint32_t i = 0; i < r->n_items && rc == 0; i++) {
        struct quantize_item *item = &r->items[i];
        struct quantize_matrix *q = NULL;
        if (item->layer != layer)
            continue;
        rc = quantize_item_rows(r, item, stats_of(w, item), 0, item->report.rows, &q, w->e);
        if (rc == 0) {
            stand_in(&made[n], item->t, q);
            replace(l, item->t, &made[n++].t);
        }
    }
    return rc;
}

static double distance(const float *a, const float *b, size_t n) {
    double miss = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        miss += d * d;
        total += (double)a[i] * (double)a[i];
    }
    return total > 0 ? sqrt(miss / total) : 0;
}

static int step_layer(struct walk *w, const struct layer_tensors *t, uint32_t layer, bool mtp,
        float *original, float *quantised) {
    const struct quantize_run *r = w->r;
    struct stand_in made[ITEMS_OF_LAYER] = {0};
    struct layer_tensors l = *t;
    char name[32];
    snprintf(name, sizeof(name), mtp ? "mtp.layers.0." : "layers.%u.", layer);
    int rc = w->calibration ? begin_stats(w, layer) : 0;
    if (rc == 0)
        rc = quantize_model_load(w->model, t, name, w->e);
    if (rc == 0 && w->calibration)
        rc = pass(w, &r->calibration, w->calibration, mtp, gather);
    if (rc == 0 && original)
        rc = pass(w, &r->evaluation, original, mtp, NULL);
    quantize_model_unload(w->model);
    if (rc == 0)
        prepare_stats(w);
    if (rc == 0)
        rc = quantise_items(w, layer, &l, made);
    end_stats(w);
    if (rc == 0)
        rc = quantize_model_load(w->model, &l, name, w->e);
    if (rc == 0 && w->calibration)
        rc = pass(w, &r->calibration, w->calibration, mtp, NULL);
    if (rc == 0 && quantised)
        rc = pass(w, &r->evaluation, quantised, mtp, NULL);
    quantize_model_unload(w->model);
    for (uint32_t i = 0; i < ITEMS_OF_LAYER; i++)
        quantize_matrix_free(made[i].q);
    return rc;
}

static int walk_layers(struct walk *w) {
    struct quantize_run *r = w->r;
    size_t floats = (size_t)n_tokens(&r->evaluation) * r->m.hidden_size;
    int rc = 0;
    for (uint32_t i = 0; i < r->t->n_layers && rc == 0; i++) {
        rc = step_layer(w, &r->t->layers[i], i, false, w->original, w->quantised);
        if (rc == 0 && w->original) {
            r->report->layer_errors[i] = distance(w->original, w->quantised, floats);
            r->report->n_layers = i + 1;
        }
    }
    float *streams[] = {w->calibration, w->original, w->quantised};
    const uint32_t tokens[] = {n_tokens(&r->calibration), n_tokens(&r->evaluation), n_tokens(&r->evaluation)};
    for (int i = 0; i < 3 && rc == 0; i++)
        if (streams[i])
            quantize_norm(r->t->norm, r->m.rms_eps, streams[i], tokens[i], streams[i]);
    return rc;
}

/* --- MTP --- */

/* x[n-1][H] = fc [norm(E of the next id) ; norm(hidden)] for every sequence; x may be hidden. */
static int mtp_inputs(struct walk *w, const struct quantize_sequences *s, struct k_linear *fc,
        const float *hidden, float *x) {
    const struct quantize_run *r = w->r;
    const struct mtp_tensors *t = &r->t->mtp;
    uint32_t h = r->m.hidden_size;
    int rc = 0;
    for (uint32_t i = 0; i < s->n && rc == 0; i++) {
        uint32_t first = s->begin[i], n = s->begin[i + 1] - first - 1;
        for (uint32_t k = 0; k < n; k++) {
            float *to = w->scratch + (size_t)k * 2 * h;
            quantize_read_row(r->t->embed, s->ids[first + k + 1], to);
            quantize_norm(t->norm_embedding, r->m.rms_eps, to, 1, to);
            quantize_norm(t->norm_hidden, r->m.rms_eps, hidden + (size_t)(first + k) * h, 1, to + h);
        }
        rc = stop_here(w);
        if (rc == 0)
            rc = quantize_model_project(w->model, fc, w->scratch, n, 2 * h, x + (size_t)first * h, w->e);
    }
    return rc;
}

static int walk_mtp(struct walk *w) {
    struct quantize_run *r = w->r;
    const struct mtp_tensors *t = &r->t->mtp;
    struct linear linear;
    struct k_linear *fc = NULL;
    if (!r->t->has_mtp)
        return 0;
    linear_of_fc(&r->m, t->fc, &linear);
    int rc = quantize_model_pack(w->model, &linear, &fc, w->e);
    if (rc == 0 && w->calibration)
        rc = mtp_inputs(w, &r->calibration, fc, w->calibration, w->calibration);
    if (rc == 0 && w->original)
        rc = mtp_inputs(w, &r->evaluation, fc, w->original, w->mtp_original);
    if (rc == 0 && w->original)
        rc = mtp_inputs(w, &r->evaluation, fc, w->quantised, w->mtp_quantised);
    k_linear_free(fc);
    if (rc == 0)
        rc = step_layer(w, &t->layer, r->m.n_layers, true, w->mtp_original, w->mtp_quantised);
    if (rc == 0 && w->original) {
        uint32_t n = n_tokens(&r->evaluation);
        quantize_norm(t->norm, r->m.rms_eps, w->mtp_original, n, w->mtp_original);
        quantize_norm(t->norm, r->m.rms_eps, w->mtp_quantised, n, w->mtp_quantised);
    }
    return rc;
}

/* --- the head --- */

static struct quantize_item *head_item(const struct quantize_run *r) {
    for (uint32_t i = 0; i < r->n_items; i++)
        if (r->items[i].input == QUANTIZE_INPUT_HEAD)
            return &r->items[i];
    return NULL;
}

static int pack_rows(
        struct walk *w, const struct tensor *t, uint32_t first, uint32_t n, struct k_linear **ret) {
    struct linear x = {.kind = LINEAR_REPLICATED, .name = "lm_head", .n = 1, .t = {t}};
    x.m[0] = (struct shard_matrix){.quant = t->quant, .rows = n, .columns = (uint32_t)t->dims[1]};
    if (!t->quant) {
        size_t row_bytes = t->dims[1] * tensor_dtype_bytes(t->dtype);
        x.m[0].data = (const char *)t->data + first * row_bytes;
        x.m[0].dtype = t->dtype == TENSOR_F32 ? K_F32 : t->dtype == TENSOR_F16 ? K_F16 : K_BF16;
    }
    return quantize_model_pack(w->model, &x, ret, w->e);
}

/* Both models' logits of a band of ids, compared for all tokens. */
static int compare_band(struct walk *w, struct k_linear *original, struct k_linear *quantised, uint32_t first,
        const float *x, const float *y, struct quantize_token *tokens) {
    const struct quantize_run *r = w->r;
    uint32_t n = n_tokens(&r->evaluation), h = r->m.hidden_size, columns = k_linear_rows(original);
    float *logits = malloc((size_t)2 * HEAD_ROWS * columns * sizeof(float));
    int rc = logits ? 0 : error_set(w->e, -ENOMEM, "out of memory for logits");
    for (uint32_t at = 0; at < n && rc == 0; at += HEAD_ROWS) {
        uint32_t rows = n - at < HEAD_ROWS ? n - at : HEAD_ROWS;
        float *other = logits + (size_t)HEAD_ROWS * columns;
        rc = stop_here(w);
        if (rc == 0)
            rc = quantize_model_project(w->model, original, x + (size_t)at * h, rows, h, logits, w->e);
        if (rc == 0)
            rc = quantize_model_project(w->model, quantised, y + (size_t)at * h, rows, h, other, w->e);
        if (rc == 0)
            quantize_tokens_add(tokens + at, logits, other, rows, first, columns, r->threads);
    }
    free(logits);
    return rc;
}

static int evaluate_band(struct walk *w, uint32_t first, uint32_t n, struct quantize_matrix *q) {
    const struct tensor *t = w->r->t->lm_head;
    struct k_linear *original = NULL, *quantised = NULL;
    struct stand_in s;
    int rc = pack_rows(w, t, first, n, &original);
    if (rc == 0 && q) {
        stand_in(&s, t, q);
        rc = pack_rows(w, &s.t, 0, n, &quantised);
    }
    struct k_linear *other = q ? quantised : original;
    if (rc == 0)
        rc = compare_band(w, original, other, first, w->original, w->quantised, w->tokens);
    if (rc == 0 && w->mtp_original)
        rc = compare_band(w, original, other, first, w->mtp_original, w->mtp_quantised, w->mtp_tokens);
    k_linear_free(original);
    k_linear_free(quantised);
    return rc;
}

/* The token that follows each position; MTP looks one further. */
static void set_targets(struct walk *w) {
    const struct quantize_sequences *s = &w->r->evaluation;
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t k = s->begin[i]; k < s->begin[i + 1]; k++) {
            quantize_token_init(&w->tokens[k], k + 1 < s->begin[i + 1] ? s->ids[k + 1] : UINT32_MAX);
            quantize_token_init(&w->mtp_tokens[k], k + 2 < s->begin[i + 1] ? s->ids[k + 2] : UINT32_MAX);
        }
}

static int walk_head(struct walk *w) {
    struct quantize_run *r = w->r;
    struct quantize_item *item = head_item(r);
    uint32_t rows = r->m.vocab_size, band = quantize_band_rows(r->t->lm_head);
    int rc = 0;
    set_targets(w);
    for (uint32_t first = 0; first < rows && rc == 0; first += band) {
        uint32_t n = rows - first < band ? rows - first : band;
        struct quantize_matrix *q = NULL;
        if (item)
            rc = quantize_item_rows(r, item, stats_of(w, item), first, n, &q, w->e);
        if (rc == 0 && w->original)
            rc = evaluate_band(w, first, n, q);
        quantize_matrix_free(q);
    }
    return rc;
}

/* Statistics of the head's input; before MTP's layer takes the calibration activations over. */
static int gather_head(struct walk *w) {
    if (!w->calibration || !head_item(w->r))
        return 0;
    int rc = begin_stats(w, UINT32_MAX);
    if (rc == 0)
        gather(w, QUANTIZE_INPUT_HEAD, w->calibration, n_tokens(&w->r->calibration), w->r->m.hidden_size);
    return rc;
}

/* --- the figures --- */

static void add_up(struct walk *w) {
    const struct quantize_sequences *s = &w->r->evaluation;
    struct quantize_report *p = w->r->report;
    double n = n_tokens(s), predicted = n - s->n, mtp_n = n - s->n;
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t k = s->begin[i]; k < s->begin[i + 1]; k++) {
            const struct quantize_token *t = &w->tokens[k], *m = &w->mtp_tokens[k];
            double kl = quantize_token_kl(t);
            p->kl += kl / n;
            p->kl_max = kl > p->kl_max ? kl : p->kl_max;
            p->top_1 += (t->best[0] == t->best[1]) / n;
            if (k + 1 == s->begin[i + 1])
                continue;
            p->original_nll += quantize_token_nll(t, 0) / predicted;
            p->nll += quantize_token_nll(t, 1) / predicted;
            if (w->mtp_original) {
                p->mtp_kl += quantize_token_kl(m) / mtp_n;
                p->mtp_top_1 += (m->best[0] == m->best[1]) / mtp_n;
            }
        }
    p->has_mtp = w->mtp_original != NULL;
}

int quantize_layers(struct quantize_run *r, struct error *e) {
    struct walk w = {.r = r, .e = e};
    int rc = start(&w);
    if (rc == 0)
        rc = walk_layers(&w);
    if (rc == 0)
        rc = gather_head(&w);
    struct quantize_stats head = w.stats[QUANTIZE_INPUT_HEAD]; /* a layer's end forgets all statistics */
    w.stats[QUANTIZE_INPUT_HEAD] = (struct quantize_stats){0};
    if (rc == 0)
        rc = walk_mtp(&w);
    w.stats[QUANTIZE_INPUT_HEAD] = head;
    if (rc == 0) {
        prepare_stats(&w);
        rc = walk_head(&w);
    }
    if (rc == 0) {
        struct quantize_report *p = r->report;
        p->calibration_sequences = r->calibration.n;
        p->calibration_tokens = n_tokens(&r->calibration);
        p->evaluation_sequences = r->evaluation.n;
        p->evaluation_tokens = n_tokens(&r->evaluation);
        if (w.original)
            add_up(&w);
    }
    finish(&w);
    return rc;
}
