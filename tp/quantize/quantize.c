/* quantize.c - see quantize.h. Decides what is quantised, plans the output as a whole, then fills it: straight from
 * the file where there are no sequences, else layer by layer (layers.c). */
#include "tp/quantize/parts.h"

#include "base/clock.h"

#include "tp/load/linears.h"

#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define BAND_BYTES MIB(64) /* of fp32 weights in memory at a time */
#define COPY_BYTES MIB(16)

/* Activations of all sequences of a file, [tokens][H]; evaluation keeps up to four of them. */
#define CALIBRATION_BYTES MIB(512)
#define EVALUATION_BYTES  MIB(128)

static double now_s(void) {
    return (double)clock_ns() * 1e-9;
}

bool quantize_stopped(const struct quantize_run *r) {
    return r->o->stop && *r->o->stop;
}

static void progress(struct quantize_run *r, const char *what, uint64_t bytes) {
    r->done += bytes;
    if (r->o->progress)
        r->o->progress(r->o->progress_context, what, r->done, r->total);
}

/* --- what is quantised --- */

static void module_name(const char *tensor, char *ret, size_t size) {
    const char *end = strrchr(tensor, '.');
    bool weight = end && strcmp(end, ".weight") == 0;
    snprintf(ret, size, "%.*s", (int)(weight ? (size_t)(end - tensor) : strlen(tensor)), tensor);
}

static bool is_ignored(const struct quantize_options *o, const char *module) {
    for (uint32_t i = 0; i < o->n_ignore; i++)
        if (fnmatch(o->ignore[i], module, 0) == 0)
            return true;
    return false;
}

/* t may be NULL: a matrix that layers of this kind do not have. */
static int add_item(struct quantize_run *r, const struct tensor *t, const char *module, uint32_t layer,
        uint32_t input, uint32_t bits, struct error *e) {
    const struct quantize_options *o = r->o;
    if (!t || bits == 16 || is_ignored(o, module))
        return 0;
    if (t->dtype == TENSOR_QUANTISED)
        return error_set(
                e, -EINVAL, "%s: %s: is quantised already: start from the original", t->file, t->name);
    if (t->dims[1] % o->group != 0)
        return error_set(e, -EDOM,
                "%s has %llu columns, not a multiple of --group-size %u: use a smaller one, or --ignore '%s'",
                module, (unsigned long long)t->dims[1], o->group, module);
    struct quantize_item *item = &r->items[r->n_items++];
    *item = (struct quantize_item){.t = t,
            .scheme = {.bits = bits, .group = o->group, .asymmetric = o->asymmetric, .scale = t->dtype},
            .layer = layer,
            .input = input,
            .report = {.rows = (uint32_t)t->dims[0], .columns = (uint32_t)t->dims[1], .bits = bits}};
    snprintf(item->report.name, sizeof(item->report.name), "%s", module);
    return 0;
}

static int add_layer(struct quantize_run *r, const struct layer_tensors *l, uint32_t layer, uint32_t bits,
        struct error *e) {
    const struct {
        const struct tensor *t;
        uint32_t input;
    } all[] = {{l->attention.q, LINEAR_MIXER_IN}, {l->attention.k, LINEAR_MIXER_IN},
            {l->attention.v, LINEAR_MIXER_IN}, {l->gdn.in_qkv, LINEAR_MIXER_IN},
            {l->gdn.in_z, LINEAR_MIXER_IN}, {l->attention.o, LINEAR_MIXER_OUT},
            {l->gdn.out, LINEAR_MIXER_OUT}, {l->gate, LINEAR_MLP_IN}, {l->up, LINEAR_MLP_IN},
            {l->down, LINEAR_MLP_OUT}};
    int rc = 0;
    for (size_t i = 0; i < sizeof(all) / sizeof(*all) && rc == 0; i++) {
        char module[sizeof(r->items->report.name)];
        if (all[i].t) {
            module_name(all[i].t->name, module, sizeof(module));
            rc = add_item(r, all[i].t, module, layer, all[i].input, bits, e);
        }
    }
    return rc;
}

static int list_items(struct quantize_run *r, struct error *e) {
    const struct model_tensors *t = r->t;
    r->items = calloc((t->n_layers + 1) * 10u + 2, sizeof(r->items[0]));
    if (!r->items)
        return error_set(e, -ENOMEM, "out of memory for a list of matrices");
    int rc = 0;
    for (uint32_t i = 0; i < t->n_layers && rc == 0; i++)
        rc = add_layer(r, &t->layers[i], i, r->o->weight_bits, e);
    if (rc == 0)
        rc = add_item(r, t->lm_head, "lm_head", UINT32_MAX, QUANTIZE_INPUT_HEAD, r->o->head_bits, e);
    if (rc == 0 && t->has_mtp)
        rc = add_layer(r, &t->mtp.layer, t->n_layers, r->o->mtp_bits, e);
    if (rc == 0 && r->n_items == 0)
        return error_set(e, -EDOM, "nothing is left to quantise: --ignore names every matrix");
    return rc;
}

/* --- the plan --- */

static const struct quantize_item *item_of(const struct quantize_run *r, const struct tensor *t) {
    for (uint32_t i = 0; i < r->n_items; i++)
        if (r->items[i].t == t && !(r->items[i].input == QUANTIZE_INPUT_HEAD && r->t->tied))
            return &r->items[i];
    return NULL;
}

static int plan_item(struct quantize_run *r, struct quantize_item *item, struct error *e) {
    uint64_t rows = item->t->dims[0], columns = item->t->dims[1], per_word = 32 / item->scheme.bits;
    const uint64_t packed[] = {rows, columns / per_word}, scale[] = {rows, columns / item->scheme.group},
                   zero[] = {(rows + per_word - 1) / per_word, scale[1]}, shape[] = {2};
    struct quantize_output *o = &r->output;
    char name[sizeof(item->report.name) + 32];
    snprintf(name, sizeof(name), "%s.weight_packed", item->report.name);
    int rc = quantize_output_add(o, name, TENSOR_I32, packed, 2, &item->packed, e);
    snprintf(name, sizeof(name), "%s.weight_scale", item->report.name);
    if (rc == 0)
        rc = quantize_output_add(o, name, item->scheme.scale, scale, 2, &item->scale, e);
    snprintf(name, sizeof(name), "%s.weight_shape", item->report.name);
    if (rc == 0)
        rc = quantize_output_add(o, name, TENSOR_I64, shape, 1, &item->shape, e);
    snprintf(name, sizeof(name), "%s.weight_zero_point", item->report.name);
    if (rc == 0 && item->scheme.asymmetric)
        rc = quantize_output_add(o, name, TENSOR_I32, zero, 2, &item->zero, e);
    r->total += item->t->bytes;
    return rc;
}

/* Names go into JSON as they are; a tensor that is copied has a size that its shape tells. */
static int check_name(const struct tensor *t, struct error *e) {
    if (t->dtype == TENSOR_UNKNOWN)
        return error_set(e, -ENOTSUP, "%s: %.200s: dtype %s is not known here, so it cannot be copied",
                t->file, t->name, tensor_dtype_text(t));
    for (const unsigned char *c = (const unsigned char *)t->name; *c; c++)
        if (*c < 0x20 || *c == '"' || *c == '\\')
            return error_set(
                    e, -EINVAL, "%s: a tensor's name has a control character, quote or backslash", t->file);
    return 0;
}

/* Every tensor as it is or as the parts of its item; numbers[i] is where tensor i of the checkpoint goes. */
static int plan_output(struct quantize_run *r, uint32_t *numbers, struct error *e) {
    int rc = 0;
    for (size_t i = 0; i < checkpoint_count(r->checkpoint) && rc == 0; i++) {
        const struct tensor *t = checkpoint_at(r->checkpoint, i);
        struct quantize_item *item = (struct quantize_item *)item_of(r, t);
        numbers[i] = UINT32_MAX;
        rc = check_name(t, e);
        if (rc == 0 && item)
            rc = plan_item(r, item, e);
        else if (rc == 0)
            rc = quantize_output_add(&r->output, t->name, t->dtype, t->dims, t->n_dims, &numbers[i], e);
        if (rc == 0 && !item)
            r->total += t->bytes;
    }
    for (uint32_t i = 0; i < r->n_items && rc == 0; i++)
        if (!item_of(r, r->items[i].t)) /* the tied head: a tensor of its own from now on */
            rc = plan_item(r, &r->items[i], e);
    return rc;
}

static bool head_is_quantised(const struct quantize_run *r) {
    for (uint32_t i = 0; i < r->n_items; i++)
        if (r->items[i].input == QUANTIZE_INPUT_HEAD)
            return true;
    return false;
}

static bool mtp_is_quantised(const struct quantize_run *r) {
    for (uint32_t i = 0; i < r->n_items; i++)
        if (r->items[i].layer == r->m.n_layers)
            return true;
    return false;
}

/* Modules with a matrix that stays as it is: what a reader must not look for scales of. */
static int write_config(struct quantize_run *r, struct error *e) {
    size_t n = checkpoint_count(r->checkpoint);
    char(*names)[sizeof(r->items->report.name)] = calloc(n + 1, sizeof(*names));
    struct quantize_config c = {.options = r->o,
            .head = head_is_quantised(r),
            .mtp = mtp_is_quantised(r),
            .tied = r->m.tie_word_embeddings,
            .ignored = calloc(n + 1, sizeof(*c.ignored))};
    struct quantize_text text = {0};
    int rc = names && c.ignored ? 0 : error_set(e, -ENOMEM, "out of memory for config.json");
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct tensor *t = checkpoint_at(r->checkpoint, i);
        module_name(t->name, names[i], sizeof(names[i]));
        if (t->n_dims >= 2 && !item_of(r, t) && strcmp(names[i], t->name) != 0)
            c.ignored[c.n_ignored++] = names[i];
    }
    if (rc == 0 && !c.head && r->t->tied)
        c.ignored[c.n_ignored++] = "lm_head"; /* a module without a tensor */
    if (rc == 0)
        rc = quantize_config_write(r->o->source, &c, &text, e);
    if (rc == 0)
        rc = quantize_output_file(&r->output, "config.json", text.data, text.n, e);
    free(text.data);
    free(c.ignored);
    free(names);
    return rc;
}

/* --- filling --- */

static int copy_tensor(struct quantize_run *r, const struct tensor *t, uint32_t number, struct error *e) {
    for (uint64_t at = 0; at < t->bytes; at += COPY_BYTES) {
        uint64_t n = t->bytes - at < COPY_BYTES ? t->bytes - at : COPY_BYTES;
        const char *from = (const char *)t->data + at;
        if (quantize_stopped(r))
            return error_set(e, -ECANCELED, "interrupted");
        int rc = quantize_output_write(&r->output, number, at, from, n, e);
        if (rc < 0)
            return rc;
        quantize_forget(from, n);
        progress(r, t->name, n);
    }
    return 0;
}

uint32_t quantize_band_rows(const struct tensor *t) {
    uint64_t rows = BAND_BYTES / (t->dims[1] * sizeof(float)) / 64 * 64;
    rows = rows < 64 ? 64 : rows;
    return rows < t->dims[0] ? (uint32_t)rows : (uint32_t)t->dims[0];
}

/* 4-bit codes two to a byte, the first in the low half; 8-bit ones as they are. */
static int write_codes(struct quantize_run *r, const struct quantize_item *item, uint32_t first,
        const struct quantize_matrix *q, struct error *e) {
    uint64_t n = (uint64_t)q->view.rows * q->view.columns, bytes = n * q->bits / 8;
    uint64_t at = (uint64_t)first * q->view.columns * q->bits / 8;
    if (q->bits == 8)
        return quantize_output_write(&r->output, item->packed, at, q->codes, bytes, e);
    uint8_t *packed = malloc(bytes);
    if (!packed)
        return error_set(e, -ENOMEM, "%s: out of memory", item->report.name);
    for (uint64_t i = 0; i < bytes; i++)
        packed[i] = (uint8_t)(q->codes[2 * i] | q->codes[2 * i + 1] << 4);
    int rc = quantize_output_write(&r->output, item->packed, at, packed, bytes, e);
    free(packed);
    return rc;
}

static int write_scales(struct quantize_run *r, const struct quantize_item *item, uint32_t first,
        const struct quantize_matrix *q, struct error *e) {
    uint64_t groups = quant_groups(&q->view), n = q->view.rows * groups;
    size_t unit = tensor_dtype_bytes(q->scale_dtype);
    uint16_t *halves = malloc(n * sizeof(*halves));
    if (!halves)
        return error_set(e, -ENOMEM, "%s: out of memory", item->report.name);
    for (uint64_t i = 0; i < n && unit == 2; i++) { /* rounded already: the bits only move */
        uint32_t bits;
        memcpy(&bits, &q->scales[i], sizeof(bits));
        halves[i] = (uint16_t)(q->scale_dtype == TENSOR_BF16 ? bits >> 16 : (bits >> 13) - (112u << 10));
    }
    int rc = quantize_output_write(&r->output, item->scale, first * groups * unit,
            unit == 2 ? (const void *)halves : (const void *)q->scales, n * unit, e);
    free(halves);
    return rc;
}

/* Zeros are packed along the rows: word w of a group holds rows 8w.. (4w.. with 8 bits). first is a multiple of 64. */
static int write_zeros(struct quantize_run *r, const struct quantize_item *item, uint32_t first,
        const struct quantize_matrix *q, struct error *e) {
    uint32_t groups = quant_groups(&q->view), per_word = 32 / q->bits;
    uint32_t words = (q->view.rows + per_word - 1) / per_word;
    uint32_t *packed = calloc((size_t)words * groups, sizeof(*packed));
    if (!packed)
        return error_set(e, -ENOMEM, "%s: out of memory", item->report.name);
    for (uint32_t row = 0; row < q->view.rows; row++)
        for (uint32_t g = 0; g < groups; g++)
            packed[(size_t)(row / per_word) * groups + g] |= (uint32_t)q->zeros[(size_t)row * groups + g]
                                                             << row % per_word * q->bits;
    int rc = quantize_output_write(&r->output, item->zero,
            (uint64_t)first / per_word * groups * sizeof(*packed), packed,
            (uint64_t)words * groups * sizeof(*packed), e);
    free(packed);
    return rc;
}

int quantize_item_rows(struct quantize_run *r, struct quantize_item *item, const struct quantize_stats *stats,
        uint32_t first, uint32_t n, struct quantize_matrix **ret, struct error *e) {
    struct quantize_matrix *q = NULL;
    const int64_t shape[] = {(int64_t)item->t->dims[0], (int64_t)item->t->dims[1]};
    int rc = quantize_matrix_make(item->t, first, n, &item->scheme, stats, r->threads, r->o->stop, &q, e);
    if (rc == 0)
        rc = write_codes(r, item, first, q, e);
    if (rc == 0)
        rc = write_scales(r, item, first, q, e);
    if (rc == 0 && item->scheme.asymmetric)
        rc = write_zeros(r, item, first, q, e);
    if (rc == 0)
        rc = quantize_output_write(&r->output, item->shape, 0, shape, sizeof(shape), e);
    if (rc == 0) {
        const double sums[4] = {q->error, q->total, q->weighted_error, q->weighted_total};
        for (int i = 0; i < 4; i++)
            item->sums[i] += sums[i];
        item->report.feedback = stats && stats->factored;
        uint64_t row_bytes = item->t->bytes / item->t->dims[0];
        quantize_forget((const char *)item->t->data + first * row_bytes, n * row_bytes);
        progress(r, item->report.name, n * row_bytes);
    }
    if (rc == 0 && ret)
        *ret = q;
    else
        quantize_matrix_free(q);
    return rc;
}

static int fill(struct quantize_run *r, const uint32_t *numbers, struct error *e) {
    int rc = 0;
    for (size_t i = 0; i < checkpoint_count(r->checkpoint) && rc == 0; i++)
        if (numbers[i] != UINT32_MAX)
            rc = copy_tensor(r, checkpoint_at(r->checkpoint, i), numbers[i], e);
    if (rc < 0 || r->calibration.n || r->evaluation.n)
        return rc < 0 ? rc : quantize_layers(r, e);
    for (uint32_t i = 0; i < r->n_items && rc == 0; i++) {
        struct quantize_item *item = &r->items[i];
        uint32_t rows = (uint32_t)item->t->dims[0], band = quantize_band_rows(item->t);
        for (uint32_t first = 0; first < rows && rc == 0; first += band)
            rc = quantize_item_rows(r, item, NULL, first, rows - first < band ? rows - first : band, NULL, e);
    }
    return rc;
}

/* --- the run --- */

static uint32_t threads_of(const struct quantize_options *o) {
    cpu_set_t set;
    if (o->threads)
        return o->threads;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

static int open_source(struct quantize_run *r, struct error *e) {
    const struct quantize_options *o = r->o;
    int rc = model_config_load(o->source, &r->m, e);
    if (rc == 0)
        rc = checkpoint_open(o->source, &r->checkpoint, e);
    if (rc == 0)
        rc = model_tensors_resolve(r->checkpoint, &r->m, &r->t, e);
    if (rc == 0 && r->t->gguf)
        rc = error_set(e, -ENOTSUP, "%s: is a GGUF model: start from the Hugging Face folder of this model",
                o->source);
    uint64_t row_bytes = r->m.hidden_size * sizeof(float);
    if (rc == 0 && o->calibration)
        rc = quantize_sequences_read(o->calibration, r->m.vocab_size,
                (uint32_t)(CALIBRATION_BYTES / row_bytes), &r->calibration, e);
    if (rc == 0 && o->evaluation)
        rc = quantize_sequences_read(
                o->evaluation, r->m.vocab_size, (uint32_t)(EVALUATION_BYTES / row_bytes), &r->evaluation, e);
    return rc == 0 ? list_items(r, e) : rc;
}

static int make_report(const struct quantize_run *r, double began, struct error *e) {
    struct quantize_report *p = r->report;
    p->matrices = calloc(r->n_items, sizeof(p->matrices[0]));
    if (!p->matrices)
        return error_set(e, -ENOMEM, "out of memory for the report");
    p->n_matrices = r->n_items;
    for (uint32_t i = 0; i < r->n_items; i++) {
        const double *s = r->items[i].sums;
        p->matrices[i] = r->items[i].report;
        p->matrices[i].error = s[1] > 0 ? sqrt(s[0] / s[1]) : 0;
        p->matrices[i].weighted_error = s[3] > 0 ? sqrt(s[2] / s[3]) : -1;
    }
    p->source_bytes = r->total;
    p->target_bytes = r->output.bytes;
    p->files = r->output.n_files;
    p->seconds = now_s() - began;
    return 0;
}

int quantize_run(const struct quantize_options *o, struct quantize_report *ret, struct error *e) {
    struct quantize_report report = {0};
    struct quantize_run r = {.o = o, .threads = threads_of(o), .report = &report};
    uint32_t *numbers = NULL;
    double began = now_s();
    quantize_output_init(&r.output, o->target);
    int rc = open_source(&r, e);
    if (rc < 0)
        goto done;
    numbers = calloc(checkpoint_count(r.checkpoint) + 1, sizeof(*numbers));
    rc = numbers ? plan_output(&r, numbers, e) : error_set(e, -ENOMEM, "out of memory for the plan");
    if (rc == 0)
        rc = quantize_output_open(&r.output, o->shard_bytes, e);
    if (rc == 0)
        rc = write_config(&r, e);
    if (rc == 0)
        rc = quantize_output_copy(&r.output, o->source, e);
    if (rc == 0)
        rc = fill(&r, numbers, e);
    if (rc == 0)
        rc = make_report(&r, began, e);
    if (rc == 0)
        rc = quantize_output_finish(&r.output, e);
    if (rc == 0) {
        *ret = report;
        report = (struct quantize_report){0};
    }
done:
    quantize_report_done(&report);
    quantize_sequences_done(&r.calibration);
    quantize_sequences_done(&r.evaluation);
    quantize_output_done(&r.output);
    free(numbers);
    free(r.items);
    model_tensors_free(r.t);
    checkpoint_free(r.checkpoint);
    return rc;
}
