/* inspect.c - see inspect.h. */
#include "tp/tools/inspect.h"

#include "base/sizes.h"
#include "tp/load/fingerprint.h"
#include "tp/load/packed.h"
#include "tp/load/shard.h"
#include "tp/load/weights.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN_MAX 20u /* names of tensors that are not used */

struct inspection *inspect_free(struct inspection *i) {
    if (!i)
        return NULL;
    model_tensors_free(i->tensors);
    checkpoint_free(i->checkpoint);
    free(i);
    return NULL;
}

/* --- measuring --- */

static uint64_t memory_available(void) {
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

static void count_tensors(struct inspection *i) {
    for (size_t k = 0; k < checkpoint_count(i->checkpoint); k++)
        i->dtype_tensors[checkpoint_at(i->checkpoint, k)->dtype]++;
    for (uint32_t k = 0; k < i->config.n_layers; k++)
        i->n_attention_layers += i->config.is_attention[k];
    i->n_gdn_layers = i->config.n_layers - i->n_attention_layers;
}

/* --- how the matrices are stored --- */

static void count_matrix(struct inspection *i, const char *part, const struct tensor *t) {
    const char *stored = t ? t->quant ? t->quant->label : tensor_dtype_text(t) : NULL;
    struct inspect_part *p = i->parts;
    if (!t)
        return;
    while (p < i->parts + i->n_parts && (strcmp(p->part, part) != 0 || strcmp(p->stored, stored) != 0))
        p++;
    if (p == i->parts + i->n_parts) {
        if (i->n_parts == INSPECT_PARTS_MAX)
            return;
        i->n_parts++;
        p->part = part;
        snprintf(p->stored, sizeof(p->stored), "%s", stored);
    }
    p->matrices++;
    p->bytes += t->bytes;
}

static void count_layer(struct inspection *i, const struct layer_tensors *t, bool mtp) {
    const struct tensor *const attention[] = {t->attention.q, t->attention.k, t->attention.v, t->attention.o},
                               *const gdn[] = {t->gdn.in_qkv, t->gdn.in_z, t->gdn.in_b, t->gdn.in_a,
                                       t->gdn.out},
                               *const mlp[] = {t->gate, t->up, t->down};
    for (size_t k = 0; k < sizeof(attention) / sizeof(*attention); k++)
        count_matrix(i, mtp ? "MTP layer" : "attention", attention[k]);
    for (size_t k = 0; k < sizeof(gdn) / sizeof(*gdn); k++)
        count_matrix(i, "delta net", gdn[k]);
    for (size_t k = 0; k < sizeof(mlp) / sizeof(*mlp); k++)
        count_matrix(i, mtp ? "MTP layer" : "mlp", mlp[k]);
}

static void count_parts(struct inspection *i) {
    const struct model_tensors *t = i->tensors;
    for (int attention = 0; attention < 2; attention++) /* a part's lines follow one another */
        for (uint32_t k = 0; k < t->n_layers; k++)
            if (t->layers[k].is_attention == attention)
                count_layer(i, &t->layers[k], false);
    if (t->has_mtp) {
        count_layer(i, &t->mtp.layer, true);
        count_matrix(i, "MTP layer", t->mtp.fc);
    }
    count_matrix(i, "embedding", t->embed);
    if (t->lm_head != t->embed)
        count_matrix(i, "head", t->lm_head);
}

/* --- its packed file --- */

static void verify_packed(struct inspection *i) {
    const struct inspect_options *o = &i->options;
    const struct packed_request q = {.model = o->dir,
            .cache_dir = o->cache_dir,
            .fingerprint = packed_fingerprint(o->dir, fingerprint_model(&i->config, i->checkpoint, 0)),
            .config = &i->config,
            .checkpoint = i->checkpoint,
            .tensors = i->tensors};
    struct packed *p = NULL;
    struct error e = {0};
    if (packed_look(&q, &p, &e)) {
        int r = packed_verify(p, NULL, NULL, &e);
        i->packed_damaged = r < 0;
        if (r == 0)
            snprintf(i->packed, sizeof(i->packed), "%s, %s, checksums right", packed_name(p),
                    SIZE_TEXT(packed_bytes(p)));
        else
            snprintf(i->packed, sizeof(i->packed), "%s", e.text);
    } else if (e.code) {
        i->packed_damaged = e.code == -EBADMSG;
        snprintf(i->packed, sizeof(i->packed), "not used: %s", e.text);
    } else
        snprintf(i->packed, sizeof(i->packed), "none; `shardd pack` makes it");
    packed_free(p);
}

/* The bytes of all ranks for n sequences of max_model_len tokens. */
static uint64_t bytes_for(const struct inspection *i, uint64_t fixed, uint32_t n) {
    uint64_t pages_each = (i->options.max_model_len + PAGE_TOKENS - 1) / PAGE_TOKENS;
    uint64_t rank = i->weight_bytes + i->scratch_bytes + fixed +
                    n * (pages_each * i->kv_page_bytes + i->sequence_bytes);
    return rank * i->options.tp + i->embedding_bytes;
}

static int measure(struct inspection *i, struct error *e) {
    const struct inspect_options *o = &i->options;
    const struct weights_options weights = {0};
    struct shard shard;
    struct k_pool_cost cost;
    int r = shard_make(&i->config, o->tp, 0, /* with_mtp= */ false, &shard, e);
    if (r == 0)
        r = weights_bytes(&i->config, &shard, i->tensors, &weights, &i->weight_bytes, e);
    if (r < 0)
        return r;
    i->weight_bytes += i->tensors->copied_bytes;
    const struct k_pool_options pool = {
            .slots = o->max_num_seqs,
            .pages = 1,
            .pages_per_slot = (o->max_model_len + PAGE_TOKENS - 1) / PAGE_TOKENS,
            .kv_dtype = weights_kv_dtype(i->tensors),
    };
    k_pool_cost(&shard.shape, &pool, &cost);
    i->kv_page_bytes = cost.page_bytes;
    i->kv_token_bytes = cost.page_bytes / PAGE_TOKENS;
    i->sequence_bytes = cost.slot_bytes;
    i->scratch_bytes = k_workspace_bytes(&shard.shape, k_step_rows(), o->max_num_seqs) +
                       k_comm_region_bytes(&shard.shape, k_step_rows()) / o->tp;
    i->pages = (uint64_t)o->max_num_seqs * pool.pages_per_slot;
    i->kv_bytes = i->pages * i->kv_page_bytes;
    i->embedding_bytes = i->tensors->embed_copied ? 0 : i->tensors->embed->bytes;
    i->total_bytes = bytes_for(i, cost.fixed_bytes, o->max_num_seqs);
    i->one_sequence_bytes = bytes_for(i, cost.fixed_bytes, 1);
    i->rank_bytes = (i->total_bytes - i->embedding_bytes) / o->tp;
    i->fits = i->total_bytes <= o->memory_bytes;
    return 0;
}

int inspect_open(const struct inspect_options *options, struct inspection **ret, struct error *e) {
    struct inspection *i = calloc(1, sizeof(*i));
    if (!i)
        return error_set(e, -ENOMEM, "out of memory");
    i->options = *options;
    int r = model_config_load(options->dir, &i->config, e);
    if (r == 0)
        r = checkpoint_open(options->dir, &i->checkpoint, e);
    if (r == 0)
        r = model_tensors_survey(i->checkpoint, &i->config, &i->tensors, e);
    if (r < 0)
        goto fail;
    if (i->options.max_model_len == 0 || i->options.max_model_len > i->config.max_position_embeddings)
        i->options.max_model_len = i->config.max_position_embeddings;
    if (i->options.memory_bytes == 0)
        i->options.memory_bytes = memory_available();
    count_tensors(i);
    count_parts(i);
    r = measure(i, e);
    if (r < 0)
        goto fail;
    if (i->options.verify)
        verify_packed(i);
    *ret = i;
    return 0;
fail:
    inspect_free(i);
    return r;
}

/* --- printing --- */

static void print_eos(const struct model_config *m, FILE *out) {
    if (m->n_eos_ids == 0)
        fprintf(out, "none is named");
    for (uint32_t i = 0; i < m->n_eos_ids; i++)
        fprintf(out, "%s%u", i ? ", " : "", m->eos_ids[i]);
}

/* With a head of its own where the files have one. */
static uint64_t parameters(const struct inspection *i) {
    struct model_config m = i->config;
    m.tie_word_embeddings = i->tensors->tied;
    return model_config_parameters(&m);
}

static void print_model(const struct inspection *i, FILE *out) {
    const struct model_config *m = &i->config;
    fprintf(out, "  architecture  qwen3_5, dense: %u layers, %u gated delta net and %u attention\n",
            m->n_layers, i->n_gdn_layers, i->n_attention_layers);
    fprintf(out, "  sizes         hidden %u, intermediate %u, vocabulary %u%s\n", m->hidden_size,
            m->intermediate_size, m->vocab_size,
            i->tensors->tied         ? ", head tied to the embedding"
            : m->tie_word_embeddings ? ", a head of its own (although tie_word_embeddings is true)"
                                     : ", a head of its own");
    fprintf(out,
            "  heads         attention %u query and %u key/value of %u, %u rotated; delta net %u key of %u "
            "and %u value of %u\n",
            m->q_heads, m->kv_heads, m->head_dim, m->rotary_dim, m->gdn_k_heads, m->gdn_k_dim, m->gdn_v_heads,
            m->gdn_v_dim);
    fprintf(out, "  parameters    %.3f billion\n", (double)parameters(i) / 1e9);
    fprintf(out, "  context       %u tokens\n  end of text   ", m->max_position_embeddings);
    print_eos(m, out);
    fprintf(out, "\n");
}

/* A name from the file: no terminal shall obey it. */
static void print_name(const char *name, FILE *out) {
    for (; *name; name++)
        fputc((unsigned char)*name < 0x20 || *name == 0x7F ? '?' : *name, out);
}

static void print_tensors(const struct inspection *i, FILE *out) {
    const struct model_tensors *t = i->tensors;
    const size_t files = checkpoint_files(i->checkpoint);
    char text[SIZE_TEXT_MAX];
    fprintf(out, "  tensors       %zu in %zu file%s, %s:", checkpoint_count(i->checkpoint), files,
            files == 1 ? "" : "s", size_print(checkpoint_bytes(i->checkpoint), text));
    const char *separator = "";
    for (int d = 0; d < TENSOR_DTYPES; d++)
        if (i->dtype_tensors[d]) {
            fprintf(out, "%s %llu %s", separator, (unsigned long long)i->dtype_tensors[d],
                    t->gguf && d == TENSOR_U8 ? "quantised" : tensor_dtype_name((enum tensor_dtype)d));
            separator = ",";
        }
    fprintf(out, "\n  names         %s%s0...\n", t->gguf ? "" : t->prefix, t->gguf ? "blk." : "layers.");
    if (t->has_mtp)
        fprintf(out, "  MTP layer     %s\n", size_print(t->mtp_bytes, text));
    else
        fprintf(out, "  MTP layer     none%s\n",
                i->config.mtp_layers ? ": announced, but its tensors are not there" : "");
    if (t->n_vision)
        fprintf(out, "  vision        %u tensors, %s: not used, the model is served as a language model\n",
                t->n_vision, size_print(t->vision_bytes, text));
    if (t->n_ignored)
        fprintf(out, "  not used      %u tensor%s:", t->n_ignored, t->n_ignored == 1 ? "" : "s");
    for (uint32_t k = 0; k < t->n_ignored && k < SHOWN_MAX; k++) {
        fputs(k ? ", " : " ", out);
        print_name(t->ignored[k]->name, out);
    }
    if (t->n_ignored)
        fprintf(out, "%s\n", t->n_ignored > SHOWN_MAX ? ", ..." : "");
}

static void print_parts(const struct inspection *i, FILE *out) {
    char text[SIZE_TEXT_MAX];
    fprintf(out, "matrices\n");
    for (uint32_t k = 0; k < i->n_parts; k++) {
        const struct inspect_part *p = &i->parts[k];
        fprintf(out, "  %-13s %u of %s, %s\n", p->part, p->matrices, p->stored, size_print(p->bytes, text));
    }
    if (i->packed[0])
        fprintf(out, "packed file     %s\n", i->packed);
}

static void print_memory(const struct inspection *i, FILE *out) {
    char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    fprintf(out, "memory of each of %u rank%s, for %u sequence%s of %u tokens\n", i->options.tp,
            i->options.tp == 1 ? "" : "s", i->options.max_num_seqs, i->options.max_num_seqs == 1 ? "" : "s",
            i->options.max_model_len);
    fprintf(out, "  weights       %s", size_print(i->weight_bytes, a));
    if (i->tensors->copied_bytes)
        fprintf(out, " (%s of it copied out of the GGUF file%s)", size_print(i->tensors->copied_bytes, b),
                i->tensors->embed_copied ? ", the embedding as F16" : "");
    fprintf(out, "\n");
    fprintf(out, "  KV            %s (%s a token)\n", size_print(i->kv_bytes, a),
            size_print(i->kv_token_bytes, b));
    fprintf(out, "  state         %s (%s a sequence)\n",
            size_print(i->sequence_bytes * i->options.max_num_seqs, a), size_print(i->sequence_bytes, b));
    fprintf(out, "  scratch       %s\n", size_print(i->scratch_bytes, a));
    fprintf(out, "  together      %s\n", size_print(i->rank_bytes, a));
    fprintf(out, "memory of all ranks\n  needed        %s", size_print(i->total_bytes, a));
    if (i->embedding_bytes)
        fprintf(out, " (%s of it the embedding table, shared)", size_print(i->embedding_bytes, b));
    fprintf(out, "\n");
    fprintf(out, "  available     %s\n", size_print(i->options.memory_bytes, a));
}

void inspect_verdict(const struct inspection *i, char *to, size_t size) {
    char needed[24], one[24], there[24];
    size_print(i->total_bytes, needed);
    size_print(i->one_sequence_bytes, one);
    size_print(i->options.memory_bytes, there);
    if (i->fits)
        snprintf(to, size, "fits: %s of %s", needed, there);
    else if (i->one_sequence_bytes <= i->options.memory_bytes)
        snprintf(to, size,
                "does not fit: %s are needed and %s available for %u sequences of %u tokens at their full "
                "length; one needs %s: lower --max-num-seqs or --max-model-len (the service shares its "
                "memory among sequences and runs with less)",
                needed, there, i->options.max_num_seqs, i->options.max_model_len, one);
    else
        snprintf(to, size,
                "does not fit: one sequence of %u tokens needs %s and %s are available: lower "
                "--max-model-len, or take a smaller model or a larger machine",
                i->options.max_model_len, one, there);
}

void inspect_print(const struct inspection *i, FILE *out) {
    char verdict[512];
    fprintf(out, "%s\n", i->options.dir);
    print_model(i, out);
    print_tensors(i, out);
    print_parts(i, out);
    print_memory(i, out);
    inspect_verdict(i, verdict, sizeof(verdict));
    fprintf(out, "%s\n", verdict);
}

/* --- JSON --- */

struct json_number {
    const char *key;
    uint64_t value;
};

static json_t *numbers(const struct json_number *from, size_t n) {
    json_t *object = json_object();
    for (size_t i = 0; i < n; i++)
        json_object_set_new(object, from[i].key, json_integer((json_int_t)from[i].value));
    return object;
}

static json_t *model_json(const struct inspection *i) {
    const struct model_config *m = &i->config;
    const struct json_number fields[] = {
            {"layers", m->n_layers},
            {"attention_layers", i->n_attention_layers},
            {"gdn_layers", i->n_gdn_layers},
            {"hidden_size", m->hidden_size},
            {"intermediate_size", m->intermediate_size},
            {"vocab_size", m->vocab_size},
            {"q_heads", m->q_heads},
            {"kv_heads", m->kv_heads},
            {"head_dim", m->head_dim},
            {"rotary_dim", m->rotary_dim},
            {"gdn_k_heads", m->gdn_k_heads},
            {"gdn_v_heads", m->gdn_v_heads},
            {"gdn_k_dim", m->gdn_k_dim},
            {"gdn_v_dim", m->gdn_v_dim},
            {"max_position_embeddings", m->max_position_embeddings},
            {"parameters", parameters(i)},
    };
    json_t *eos = json_array(), *object = numbers(fields, sizeof(fields) / sizeof(*fields));
    for (uint32_t k = 0; k < m->n_eos_ids; k++)
        json_array_append_new(eos, json_integer(m->eos_ids[k]));
    json_object_set_new(object, "architecture", json_string("qwen3_5"));
    json_object_set_new(object, "tied", json_boolean(i->tensors->tied));
    json_object_set_new(object, "eos_ids", eos);
    return object;
}

static json_t *tensors_json(const struct inspection *i) {
    const struct model_tensors *t = i->tensors;
    const struct json_number fields[] = {
            {"count", checkpoint_count(i->checkpoint)},
            {"files", checkpoint_files(i->checkpoint)},
            {"file_bytes", checkpoint_bytes(i->checkpoint)},
            {"language_bytes", t->bytes},
            {"mtp_bytes", t->mtp_bytes},
            {"vision_bytes", t->vision_bytes},
            {"vision_tensors", t->n_vision},
    };
    json_t *object = numbers(fields, sizeof(fields) / sizeof(*fields));
    json_t *dtypes = json_object(), *ignored = json_array();
    for (int d = 0; d < TENSOR_DTYPES; d++)
        if (i->dtype_tensors[d])
            json_object_set_new(dtypes, tensor_dtype_name((enum tensor_dtype)d),
                    json_integer((json_int_t)i->dtype_tensors[d]));
    for (uint32_t k = 0; k < t->n_ignored; k++)
        json_array_append_new(ignored, json_string(t->ignored[k]->name));
    json_object_set_new(object, "dtypes", dtypes);
    json_object_set_new(object, "ignored", ignored);
    json_object_set_new(object, "prefix", json_string(t->prefix));
    json_object_set_new(object, "mtp", json_boolean(t->has_mtp));
    return object;
}

static json_t *parts_json(const struct inspection *i) {
    json_t *array = json_array();
    for (uint32_t k = 0; k < i->n_parts; k++) {
        const struct inspect_part *p = &i->parts[k];
        json_t *object = json_object();
        json_object_set_new(object, "part", json_string(p->part));
        json_object_set_new(object, "stored", json_string(p->stored));
        json_object_set_new(object, "matrices", json_integer(p->matrices));
        json_object_set_new(object, "bytes", json_integer((json_int_t)p->bytes));
        json_array_append_new(array, object);
    }
    return array;
}

void inspect_print_json(const struct inspection *i, FILE *out) {
    const struct json_number memory[] = {
            {"ranks", i->options.tp},
            {"max_num_seqs", i->options.max_num_seqs},
            {"max_model_len", i->options.max_model_len},
            {"rank_weight_bytes", i->weight_bytes},
            {"rank_kv_token_bytes", i->kv_token_bytes},
            {"rank_kv_bytes", i->kv_bytes},
            {"rank_sequence_bytes", i->sequence_bytes},
            {"rank_scratch_bytes", i->scratch_bytes},
            {"rank_bytes", i->rank_bytes},
            {"embedding_bytes", i->embedding_bytes},
            {"needed_bytes", i->total_bytes},
            {"available_bytes", i->options.memory_bytes},
    };
    char verdict[512];
    inspect_verdict(i, verdict, sizeof(verdict));
    json_t *root = json_object();
    json_object_set_new(root, "path", json_string(i->options.dir));
    json_object_set_new(root, "model", model_json(i));
    json_object_set_new(root, "tensors", tensors_json(i));
    json_object_set_new(root, "matrices", parts_json(i));
    if (i->packed[0])
        json_object_set_new(root, "packed", json_string(i->packed));
    json_object_set_new(root, "memory", numbers(memory, sizeof(memory) / sizeof(*memory)));
    json_object_set_new(root, "fits", json_boolean(i->fits));
    json_object_set_new(root, "verdict", json_string(verdict));
    json_dumpf(root, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(root);
}
