/* weights.c - see weights.h. One walk over the model (walk_model) both counts bytes and loads, so that the
 * budget and the loading can never disagree about what there is. */
#include "tp/load/weights.h"

#include "base/hash.h"

#include "tp/checkpoint/quant_matrix.h"
#include "tp/load/linears.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct k_context *context; /* NULL: only count */
    const struct model_config *m;
    const struct shard *s;
    const struct weights_options *options;
    bool dummy;
    uint64_t done, total;
    uint64_t linear_bytes; /* as in struct weights */
    struct weights_places places;
    struct error *e;
};

/* --- dummy values --- */

static uint64_t seed_of(const struct loader *l, const char *name) { /* FNV-1a over name, seed and rank */
    uint64_t h = fnv1a_text(FNV1A_START ^ l->options->seed, name);
    return (h ^ l->s->shape.rank) * FNV1A_PRIME;
}

/* Two bytes of randomness as a bf16 in (-2, 2): sign, exponent 120..127 and mantissa at random. */
static uint16_t random_bf16(uint16_t bits) {
    return (uint16_t)((bits & 0x8000u) | ((120u + (bits >> 7 & 7u)) << 7) | (bits & 0x7fu));
}

/* BF16 values of a dummy table, of k_host_alloc(); NULL = out of memory. */
static uint16_t *dummy_embedding(struct loader *l) {
    uint64_t n = (uint64_t)l->m->vocab_size * l->m->hidden_size;
    uint16_t *table = k_host_alloc(l->context, n * sizeof(table[0]));
    if (!table)
        return NULL;
    uint64_t state = l->options->seed; /* the same on every rank: it is replicated */
    for (uint64_t i = 0; i < n; i += 4) {
        uint64_t z = splitmix64_next(&state);
        for (uint64_t j = i; j < n && j < i + 4; j++, z >>= 16)
            table[j] = random_bf16((uint16_t)z);
    }
    return table;
}

/* --- what the checkpoint holds --- */

static enum k_dtype dtype_of(const struct tensor *t) { /* model_tensors_resolve let no other dtype through */
    return t->dtype == TENSOR_F32 ? K_F32 : t->dtype == TENSOR_F16 ? K_F16 : K_BF16;
}

/* The tiles of a packed file in place of what the checkpoint holds. */
static int use_tiles(const struct loader *l, struct linear *x) {
    for (uint32_t i = 0; i < x->n; i++) {
        const struct k_tiles *tiles = x->t[i] ? packed_find(l->options->packed, x->t[i]->name) : NULL;
        if (!tiles)
            continue;
        struct shard_matrix *m = &x->m[i];
        if (tiles->rows != m->rows || tiles->columns != m->columns)
            return error_set(l->e, -EBADMSG, "%s: %s: the tiles are of %u x %u, the matrix of %u x %u",
                    packed_name(l->options->packed), x->t[i]->name, tiles->rows, tiles->columns, m->rows,
                    m->columns);
        *m = (struct shard_matrix){
                .tiles = tiles, .rows = m->rows, .columns = m->columns, .dtype = tiles->dtype};
    }
    return 0;
}

/* Scales that are no numbers and the like: found by reading the matrix, so not when it was opened. */
static int check_values(const struct loader *l, const struct linear *x) {
    for (uint32_t i = 0; i < x->n; i++) {
        int r = x->m[i].quant ? quant_matrix_check(x->t[i], l->e) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

static void progress(struct loader *l, uint64_t bytes, const char *what) {
    l->done += bytes;
    if (l->options->progress)
        l->options->progress(l->options->user, l->done, l->total, what);
}

/* Something that takes so many bytes is next in the memory of all weights. */
static void place(struct loader *l, uint64_t bytes) {
    l->places.bytes += k_keep_bytes(bytes);
    l->places.hash = fnv1a(l->places.hash, &bytes, sizeof(bytes));
}

static int make_linear(struct loader *l, const struct linear *x, const struct k_linear_spec *spec, float gain,
        struct k_linear **ret) {
    if (l->dummy) { /* uniform in +-sqrt(3/K) has variance 1/K: activations keep their size */
        uint64_t k_full = (uint64_t)spec->columns * K_LEAVES / spec->leaves;
        return k_linear_dummy(
                l->context, spec, seed_of(l, x->name), gain * sqrtf(3.0f / (float)k_full), ret, l->e);
    }
    int r = l->options->there ? 0 : check_values(l, x);
    return r < 0 ? r : k_linear_pack(l->context, spec, ret, l->e);
}

/* Quantised as options say, but for the few rows (the gates a and b) that checkpoints keep in BF16. */
static int dummy_quantise(
        const struct loader *l, const char *name, struct shard_linear *part, struct quant_matrix quants[8]) {
    const uint32_t columns = part->columns / part->leaves * K_LEAVES;
    struct quant_matrix like;
    bool quantised;
    int r = dummy_form_of(&l->options->dummy_form, name, columns, &like, &quantised, l->e);
    for (uint32_t i = 0; r == 0 && quantised && i < part->n_pieces; i++) {
        struct k_matrix_view *v = &part->pieces[i];
        if (v->rows < 128)
            continue;
        quants[i] = like;
        quants[i].rows = v->first_row + v->rows;
        quants[i].columns = columns;
        v->quant = &quants[i];
    }
    return r;
}

static int load_linear(struct loader *l, struct linear *x, float gain, struct k_linear **ret) {
    struct shard_linear part;
    struct quant_matrix quants[8];
    const uint32_t *order;
    uint32_t *owned = NULL;
    const bool draft =
            x->kind == LINEAR_DRAFT_HEAD; /* whose rows are single ones, from wherever the head is */
    int r = l->options->packed && !draft ? use_tiles(l, x) : 0;
    if (r == 0)
        r = linear_shard(x, l->s, &part, &order, &owned, l->e);
    if (r == 0 && l->dummy)
        r = dummy_quantise(l, draft ? "lm_head" : x->name, &part, quants);
    if (r < 0) {
        free(owned);
        return r;
    }
    struct k_linear_spec spec = {.pieces = part.pieces,
            .n_pieces = part.n_pieces,
            .columns = part.columns,
            .leaves = part.leaves,
            .order = order,
            .name = x->name};
    uint64_t bytes = k_linear_bytes(&spec);
    if (strncmp(x->name, "mtp.", 4) != 0)
        l->linear_bytes += bytes;
    if (!l->context) {
        l->total += bytes;
        place(l, bytes);
    } else {
        r = make_linear(l, x, &spec, gain, ret);
        for (uint32_t i = 0; i < part.n_pieces && r == 0 && !l->options->there; i++)
            packed_fetch(&part.pieces[i], part.columns, part.leaves);
        if (r == 0)
            progress(l, bytes, x->name);
    }
    free(owned);
    return r;
}

struct dummy_range { /* uniform values for a vector without a checkpoint */
    float low, high;
};

/* The vector's elements in a row, of malloc(); NULL = out of memory. Without a checkpoint they are made up. */
static uint8_t *gather(struct loader *l, const char *prefix, const char *name, const struct tensor *t,
        const struct shard_range *ranges, uint32_t n_ranges, uint32_t width, struct dummy_range dummy,
        uint32_t n) {
    const size_t size = t ? k_dtype_bytes(dtype_of(t)) : sizeof(float);
    uint8_t *gathered = malloc((size_t)n * size);
    size_t at = 0;
    if (!gathered)
        return NULL;
    for (uint32_t i = 0; i < n_ranges && t; i++) {
        size_t first = (size_t)ranges[i].first * width * size, bytes = (size_t)ranges[i].count * width * size;
        assert(first + bytes <= t->bytes);
        memcpy(gathered + at, (const uint8_t *)t->data + first, bytes);
        at += bytes;
    }
    uint64_t state = seed_of(l, prefix) ^ seed_of(l, name);
    for (uint32_t i = 0; i < n && !t; i++)
        ((float *)gathered)[i] =
                dummy.low + (dummy.high - dummy.low) * (float)(splitmix64_next(&state) >> 40) * 0x1p-24f;
    return gathered;
}

/* n_ranges runs of `width` consecutive elements per unit, gathered into one fp32 device vector; runs of
 * several are convolution taps. */
static int load_vector(struct loader *l, const char *prefix, const char *name, const struct tensor *t,
        const struct shard_range *ranges, uint32_t n_ranges, uint32_t width, float offset,
        struct dummy_range dummy, float **ret) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_ranges; i++)
        n += ranges[i].count * width;
    if (!l->context) {
        place(l, (uint64_t)n * sizeof(float));
        return 0;
    }
    const bool there = l->options->there;
    uint8_t *gathered = there ? NULL : gather(l, prefix, name, t, ranges, n_ranges, width, dummy, n);
    if (!gathered && !there)
        return error_set(l->e, -ENOMEM, "out of memory while loading %s%s", prefix, name);
    const enum k_dtype dtype = t ? dtype_of(t) : K_F32;
    int r = width > 1 ? k_taps_load(l->context, gathered, dtype, n / width, width, ret, l->e)
                      : k_vector_load(l->context, gathered, dtype, n, offset, ret, l->e);
    free(gathered);
    return r < 0 ? error_prefix(l->e, r, "%s%s", prefix, name) : 0;
}

/* A zero-centred norm, replicated: stored as w, used as 1 + w. */
static int load_norm(struct loader *l, const char *prefix, const char *name, const struct tensor *t,
        uint32_t n, float **ret) {
    struct shard_range all = {0, n};
    return load_vector(l, prefix, name, t, &all, 1, 1, 1.0f, (struct dummy_range){-0.1f, 0.1f}, ret);
}

/* t is NULL for a dummy. */
static int load_embedding(struct loader *l, const struct tensor *t, struct k_table **ret) {
    const uint32_t rows = l->m->vocab_size, columns = l->m->hidden_size;
    const enum k_dtype dtype = t ? dtype_of(t) : K_BF16;
    const bool mapped = t != NULL;
    const uint64_t bytes = k_table_bytes(dtype, rows, columns, mapped);
    if (!l->context) {
        l->total += bytes;
        place(l, bytes);
        return 0;
    }
    uint16_t *made = mapped || l->options->there ? NULL : dummy_embedding(l);
    if (!mapped && !made && !l->options->there)
        return error_set(
                l->e, -ENOMEM, "the dummy embedding table of %u x %u does not fit in memory", rows, columns);
    int r = k_table_load(l->context, mapped ? t->data : made, dtype, rows, columns, mapped, ret, l->e);
    if (r < 0) {
        k_host_free(l->context, made);
        return error_prefix(l->e, r, "embed_tokens");
    }
    progress(l, bytes, "embed_tokens");
    return 0;
}

/* --- the walk --- */

static int walk_attention_vectors(
        struct loader *l, const char *prefix, const struct attention_tensors *t, struct weights_layer *w) {
    uint32_t d = l->m->head_dim;
    int r = load_norm(l, prefix, "self_attn.q_norm", t->q_norm, d, &w->q_norm);
    return r < 0 ? r : load_norm(l, prefix, "self_attn.k_norm", t->k_norm, d, &w->k_norm);
}

static int walk_gdn_vectors(
        struct loader *l, const char *prefix, const struct gdn_tensors *t, struct weights_layer *w) {
    struct shard_range channels[3], all = {0, l->m->gdn_v_dim};
    shard_gdn_channels(l->s, channels);
    int r = load_vector(l, prefix, "linear_attn.conv1d", t->conv, channels, 3, l->m->conv_kernel, 0.0f,
            (struct dummy_range){-0.8f, 0.8f}, &w->conv);
    if (r < 0)
        return r;
    r = load_vector(l, prefix, "linear_attn.A_log", t->a_log, &l->s->gdn_v_heads, 1, 1, 0.0f,
            (struct dummy_range){-4.0f, 2.7f}, &w->a_log);
    if (r < 0)
        return r;
    r = load_vector(l, prefix, "linear_attn.dt_bias", t->dt_bias, &l->s->gdn_v_heads, 1, 1, 0.0f,
            (struct dummy_range){-4.0f, 2.0f}, &w->dt_bias);
    if (r < 0)
        return r;
    return load_vector(l, prefix, "linear_attn.norm", t->norm, &all, 1, 1, 0.0f,
            (struct dummy_range){0.9f, 1.1f}, &w->gdn_norm);
}

static int walk_layer(struct loader *l, const char *prefix, const struct layer_tensors *t, bool attention,
        struct weights_layer *w) {
    static const float gains[LINEARS_OF_LAYER] = {1.0f, 0.2f, 1.0f, 0.2f};
    struct k_linear **const to[LINEARS_OF_LAYER] = {&w->mixer_in, &w->mixer_out, &w->gate_up, &w->down};
    struct linear linears[LINEARS_OF_LAYER];
    uint32_t h = l->m->hidden_size;
    int r = linears_of_layer(l->m, t, attention, prefix, linears, l->e);
    for (int i = 0; i < LINEARS_OF_LAYER && r == 0; i++)
        r = load_linear(l, &linears[i], gains[i], to[i]);
    if (r == 0)
        r = attention ? walk_attention_vectors(l, prefix, &t->attention, w)
                      : walk_gdn_vectors(l, prefix, &t->gdn, w);
    if (r == 0)
        r = load_norm(l, prefix, "input_layernorm", t->input_norm, h, &w->input_norm);
    if (r == 0)
        r = load_norm(l, prefix, "post_attention_layernorm", t->post_norm, h, &w->post_norm);
    return r;
}

static int walk_mtp(struct loader *l, const struct mtp_tensors *t, struct weights *w) {
    uint32_t h = l->m->hidden_size;
    struct linear fc;
    linear_of_fc(l->m, t->fc, &fc);
    int r = load_linear(l, &fc, 1.0f, &w->mtp_fc);
    if (r < 0)
        return r;
    r = load_norm(l, "mtp.", "pre_fc_norm_embedding", t->norm_embedding, h, &w->mtp_norm_embedding);
    if (r < 0)
        return r;
    r = load_norm(l, "mtp.", "pre_fc_norm_hidden", t->norm_hidden, h, &w->mtp_norm_hidden);
    if (r < 0)
        return r;
    r = load_norm(l, "mtp.", "norm", t->norm, h, &w->mtp_norm);
    return r < 0 ? r : walk_layer(l, "mtp.layers.0.", &t->layer, true, &w->mtp);
}

static int walk_draft_head(struct loader *l, const struct tensor *head, struct weights *w) {
    const struct draft_vocab *v = l->options->draft_vocab;
    struct linear x;
    if (!l->context)
        l->places.hash = fnv1a(l->places.hash, &v->hash, sizeof(v->hash));
    linear_of_draft_head(l->m, head, l->dummy ? NULL : v->ids, v->n, &x);
    return load_linear(l, &x, 1.0f, &w->draft_head);
}

static void release(const struct loader *l) {
    if (l->context && l->options->checkpoint)
        checkpoint_release(l->options->checkpoint);
}

/* w->layers must have m->n_layers elements when loading; counting uses one scratch layer. */
static int walk_model(struct loader *l, const struct model_tensors *t, struct weights *w) {
    static const struct layer_tensors no_layer;
    static const struct mtp_tensors no_mtp;
    const struct model_config *m = l->m;
    struct weights_layer scratch = {0};
    uint32_t n_attention = 0, n_gdn = 0;
    int r;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        char prefix[32];
        snprintf(prefix, sizeof(prefix), "layers.%u.", i);
        struct weights_layer *layer = l->context ? &w->layers[i] : &scratch;
        layer->attention = m->is_attention[i];
        layer->index = layer->attention ? n_attention++ : n_gdn++;
        r = walk_layer(l, prefix, t ? &t->layers[i] : &no_layer, layer->attention, layer);
        if (r < 0)
            return r;
        release(l);
    }
    if (l->options->with_mtp) {
        struct weights_layer *layer = &w->mtp;
        layer->attention = true;
        layer->index = n_attention;
        r = walk_mtp(l, t ? &t->mtp : &no_mtp, w);
        if (r < 0)
            return r;
        w->has_mtp = true;
    }
    if (l->options->with_mtp && l->options->draft_vocab) {
        r = walk_draft_head(l, t ? t->lm_head : NULL, w);
        if (r < 0)
            return r;
    }
    if (l->s->vocab.count > 0) {
        struct linear head;
        linear_of_head(m, t ? t->lm_head : NULL, &head);
        r = load_linear(l, &head, 1.0f, &w->head);
        if (r < 0)
            return r;
        release(l);
    }
    w->table_dtype = t ? dtype_of(t->embed) : K_BF16;
    r = load_norm(l, "", "norm", t ? t->norm : NULL, m->hidden_size, &w->final_norm);
    return r < 0 ? r : load_embedding(l, t ? t->embed : NULL, &w->embedding);
}

static int count(const struct model_config *m, const struct shard *s, const struct model_tensors *tensors,
        const struct weights_options *options, struct loader *ret, struct error *e) {
    struct weights unused = {0};
    *ret = (struct loader){
            .m = m, .s = s, .options = options, .dummy = !tensors, .places = {.hash = FNV1A_START}, .e = e};
    return walk_model(ret, tensors, &unused);
}
int weights_bytes(const struct model_config *m, const struct shard *s, const struct model_tensors *tensors,
        const struct weights_options *options, uint64_t *ret, struct error *e) {
    struct loader l;
    int r = count(m, s, tensors, options, &l, e);
    if (r == 0)
        *ret = l.total;
    return r;
}
int weights_places(const struct model_config *m, const struct shard *s, const struct model_tensors *tensors,
        const struct weights_options *options, struct weights_places *ret, struct error *e) {
    struct loader l;
    int r = count(m, s, tensors, options, &l, e);
    if (r == 0)
        *ret = l.places;
    return r;
}

/* The order in which a step multiplies; after the head comes the next step. */
static void chain_layer(struct weights_layer *w) {
    k_linear_then(w->mixer_in, w->mixer_out, NULL, false);
    k_linear_then(w->mixer_out, w->gate_up, w->post_norm, false);
    k_linear_then(w->gate_up, w->down, NULL, true);
}
static void chain(struct weights *w) {
    for (uint32_t i = 0; i < w->n_layers; i++) {
        const struct weights_layer *next = i + 1 < w->n_layers ? &w->layers[i + 1] : NULL;
        chain_layer(&w->layers[i]);
        /* before the head is a norm, which is an operation of its own */
        k_linear_then(
                w->layers[i].down, next ? next->mixer_in : w->head, next ? next->input_norm : NULL, false);
    }
    if (w->head)
        k_linear_then(w->head, w->layers[0].mixer_in, NULL, false);
    if (w->has_mtp) {
        chain_layer(&w->mtp);
        k_linear_then(w->mtp.down, w->draft_head ? w->draft_head : w->head, NULL, false);
    }
}

int weights_load(struct k_context *c, const struct model_config *m, const struct shard *s,
        const struct model_tensors *tensors, const struct weights_options *options, struct weights *w,
        struct error *e) {
    uint64_t total = 0;
    int r = weights_bytes(m, s, tensors, options, &total, e);
    if (r < 0)
        return r;
    w->layers = calloc(m->n_layers, sizeof(w->layers[0]));
    if (!w->layers)
        return error_set(e, -ENOMEM, "out of memory for %u layers", m->n_layers);
    w->n_layers = m->n_layers;
    struct loader l = {
            .context = c, .m = m, .s = s, .options = options, .dummy = !tensors, .total = total, .e = e};
    r = walk_model(&l, tensors, w);
    if (r < 0)
        return r;
    chain(w);
    w->bytes = total;
    w->linear_bytes = l.linear_bytes;
    return 0;
}

static void layer_done(struct k_context *c, struct weights_layer *w) {
    float *vectors[] = {
            w->input_norm, w->post_norm, w->q_norm, w->k_norm, w->conv, w->a_log, w->dt_bias, w->gdn_norm};
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
        k_free(c, vectors[i]);
    k_linear_free(w->mixer_in);
    k_linear_free(w->mixer_out);
    k_linear_free(w->gate_up);
    k_linear_free(w->down);
}

void weights_done(struct k_context *c, struct weights *w) {
    for (uint32_t i = 0; i < w->n_layers; i++)
        layer_done(c, &w->layers[i]);
    free(w->layers);
    layer_done(c, &w->mtp);
    k_linear_free(w->head);
    k_linear_free(w->mtp_fc);
    k_linear_free(w->draft_head);
    float *vectors[] = {w->final_norm, w->mtp_norm_embedding, w->mtp_norm_hidden, w->mtp_norm};
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
        k_free(c, vectors[i]);
    k_table_free(w->embedding);
    *w = (struct weights){0};
}

enum k_dtype weights_kv_dtype(const struct model_tensors *t) {
    if (!t)
        return K_BF16;
    for (uint32_t i = 0; i < t->n_layers; i++) {
        const struct layer_tensors *l = &t->layers[i];
        const struct tensor *matrices[] = {l->attention.q, l->attention.k, l->attention.v, l->attention.o,
                l->gdn.in_qkv, l->gdn.in_z, l->gdn.in_b, l->gdn.in_a, l->gdn.out, l->gate, l->up, l->down};
        for (size_t j = 0; j < sizeof(matrices) / sizeof(matrices[0]); j++)
            if (matrices[j] && matrices[j]->dtype != TENSOR_F32)
                return K_BF16;
    }
    return K_F32;
}
