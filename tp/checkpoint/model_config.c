/* model_config.c - see model_config.h. One pass: what we do not do is refused first (so that the sentence
 * tells of mixture of experts and not of a field that such a model lacks), then fields are read, then they
 * are checked against each other. */
#include "tp/checkpoint/model_config.h"

#include "base/file.h"
#include "base/json_config.h"
#include "tp/checkpoint/gguf_model.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One JSON object and how messages call it. */
struct reader {
    const char *file;
    const char *path; /* "" or "text_config." or "rope_parameters." */
    const json_t *object;
    struct error *e;
};

/* --- fields --- */

/* The value of key, NULL if it is absent or null. */
static const json_t *field(const struct reader *r, const char *key) {
    const json_t *value = json_object_get(r->object, key);
    return value && !json_is_null(value) ? value : NULL;
}

static int missing(const struct reader *r, const char *key) {
    return error_set(r->e, -EINVAL, "%s: %s%s is missing", r->file, r->path, key);
}

static int wrong_type(const struct reader *r, const char *key, const char *expected, const json_t *found) {
    return error_set(r->e, -EINVAL, "%s: %s%s: expected %s, found %s", r->file, r->path, key, expected,
            json_config_type(found));
}

static int read_size(const struct reader *r, const char *key, uint32_t min, uint32_t max, uint32_t *ret) {
    const json_t *value = field(r, key);
    if (!value)
        return missing(r, key);
    if (!json_is_integer(value))
        return wrong_type(r, key, "a whole number", value);
    json_int_t number = json_integer_value(value);
    if (number < (json_int_t)min || number > (json_int_t)max)
        return error_set(r->e, -EINVAL, "%s: %s%s is %lld, it must be %u to %u", r->file, r->path, key,
                (long long)number, min, max);
    *ret = (uint32_t)number;
    return 0;
}

static int read_number(const struct reader *r, const char *key, double *ret) {
    const json_t *value = field(r, key);
    if (!value)
        return missing(r, key);
    if (!json_is_number(value))
        return wrong_type(r, key, "a number", value);
    *ret = json_number_value(value);
    return 0;
}

/* Leaves *ret alone if the key is absent. */
static int read_flag(const struct reader *r, const char *key, bool *ret) {
    const json_t *value = field(r, key);
    if (value && !json_is_boolean(value))
        return wrong_type(r, key, "true or false", value);
    if (value)
        *ret = json_is_true(value);
    return 0;
}

/* Refuses a boolean that has another value than the one we implement; absent is fine. */
static int require_flag(const struct reader *r, const char *key, bool wanted) {
    bool value = wanted;
    int result = read_flag(r, key, &value);
    if (result < 0)
        return result;
    if (value != wanted)
        return error_set(r->e, -ENOTSUP, "%s: %s%s is %s, which is not supported: only %s is", r->file,
                r->path, key, value ? "true" : "false", wanted ? "true" : "false");
    return 0;
}

/* Refuses a string other than first and second; absent is fine. */
static int require_text(const struct reader *r, const char *key, const char *first, const char *second) {
    const json_t *value = field(r, key);
    if (!value)
        return 0;
    if (!json_is_string(value))
        return wrong_type(r, key, "a string", value);
    const char *text = json_string_value(value);
    if (strcmp(text, first) == 0 || (second && strcmp(text, second) == 0))
        return 0;
    return error_set(r->e, -ENOTSUP, "%s: %s%s '%.60s' is not supported: only '%s'%s%s%s is", r->file,
            r->path, key, text, first, second ? " or '" : "", second ? second : "", second ? "'" : "");
}

/* --- what is refused --- */

static int check_model_type(const struct reader *r) {
    const json_t *value = field(r, "model_type");
    if (!value)
        return missing(r, "model_type");
    if (!json_is_string(value))
        return wrong_type(r, "model_type", "a string", value);
    const char *type = json_string_value(value);
    if (strstr(type, "moe") || field(r, "num_experts"))
        return error_set(r->e, -ENOTSUP, "%s: %smodel_type '%.60s': mixture of experts is not supported yet",
                r->file, r->path, type);
    if (strcmp(type, "qwen3_5") == 0 || strcmp(type, "qwen3_5_text") == 0)
        return 0;
    return error_set(r->e, -ENOTSUP,
            "%s: %smodel_type '%.60s' is not supported: 'qwen3_5' and 'qwen3_5_text' are", r->file, r->path,
            type);
}

static int check_supported(const struct reader *r) {
    int result = require_flag(r, "attention_bias", false);
    if (result == 0)
        result = require_flag(r, "attn_output_gate", true);
    if (result == 0)
        result = require_flag(r, "mtp_use_dedicated_embeddings", false);
    if (result == 0)
        result = require_text(r, "hidden_act", "silu", NULL);
    if (result == 0)
        result = require_text(r, "output_gate_type", "swish", "silu");
    return result;
}

/* --- what is read --- */

static int read_sizes(const struct reader *r, struct model_config *m) {
    const struct {
        const char *key;
        uint32_t min, max, *to;
    } sizes[] = {
            {"hidden_size", 1, MODEL_DIM_MAX, &m->hidden_size},
            {"intermediate_size", 1, MODEL_DIM_MAX, &m->intermediate_size},
            {"vocab_size", 1, TOKENIZER_VOCAB_MAX, &m->vocab_size},
            {"num_hidden_layers", 1, MODEL_LAYERS_MAX, &m->n_layers},
            {"num_attention_heads", 1, MODEL_DIM_MAX, &m->q_heads},
            {"num_key_value_heads", 1, MODEL_DIM_MAX, &m->kv_heads},
            {"head_dim", 1, MODEL_DIM_MAX, &m->head_dim},
            {"linear_num_key_heads", 1, MODEL_DIM_MAX, &m->gdn_k_heads},
            {"linear_num_value_heads", 1, MODEL_DIM_MAX, &m->gdn_v_heads},
            {"linear_key_head_dim", 1, MODEL_DIM_MAX, &m->gdn_k_dim},
            {"linear_value_head_dim", 1, MODEL_DIM_MAX, &m->gdn_v_dim},
            {"linear_conv_kernel_dim", CONV_KERNEL_MIN, CONV_KERNEL_MAX, &m->conv_kernel},
            {"max_position_embeddings", 1, UINT32_MAX, &m->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int result = read_size(r, sizes[i].key, sizes[i].min, sizes[i].max, sizes[i].to);
        if (result < 0)
            return result;
    }
    if (m->max_position_embeddings > CONTEXT_MAX)
        m->max_position_embeddings = CONTEXT_MAX;
    if (field(r, "mtp_num_hidden_layers")) {
        json_int_t layers = json_integer_value(field(r, "mtp_num_hidden_layers"));
        if (!json_is_integer(field(r, "mtp_num_hidden_layers")) || layers < 0 || layers > 1)
            return error_set(r->e, -ENOTSUP, "%s: %smtp_num_hidden_layers must be 0 or 1", r->file, r->path);
        m->mtp_layers = (uint32_t)layers;
    }
    return 0;
}

static int read_eps(const struct reader *r, struct model_config *m) {
    double eps = 0;
    int result = read_number(r, "rms_norm_eps", &eps);
    if (result < 0)
        return result;
    /* As a float: 1e-46 would be 0. */
    if (!(eps >= FLT_MIN && eps < 1))
        return error_set(r->e, -EINVAL, "%s: %srms_norm_eps is %g, it must be a float above 0 and below 1",
                r->file, r->path, eps);
    m->rms_eps = (float)eps;
    return 0;
}

/* theta and the rotary part of a head are in rope_parameters (new files) or directly in the configuration. */
static int read_rope(const struct reader *r, struct model_config *m) {
    static const char *const groups[] = {"rope_parameters", "rope_scaling"};
    struct reader theta = *r, partial = *r;
    double factor = 0.25; /* HF's own default for this family */
    int result = 0;
    for (int i = 0; i < 2; i++) {
        const json_t *value = field(r, groups[i]);
        struct reader group = {r->file, i == 0 ? "rope_parameters." : "rope_scaling.", value, r->e};
        if (!value)
            continue;
        if (!json_is_object(value))
            return wrong_type(r, groups[i], "an object", value);
        result = require_text(&group, "rope_type", "default", NULL);
        if (result == 0)
            result = require_text(&group, "type", "default", "mrope");
        if (result < 0)
            return result;
        if (field(&group, "rope_theta"))
            theta = group;
        if (field(&group, "partial_rotary_factor"))
            partial = group;
    }
    result = read_number(&theta, "rope_theta", &m->rope_theta);
    if (result == 0 && field(&partial, "partial_rotary_factor"))
        result = read_number(&partial, "partial_rotary_factor", &factor);
    if (result < 0)
        return result;
    if (!(m->rope_theta > 1 && m->rope_theta < 1e15))
        return error_set(r->e, -EINVAL, "%s: %srope_theta is %g, it must be above 1", r->file, theta.path,
                m->rope_theta);
    if (!(factor > 0 && factor <= 1))
        return error_set(r->e, -EINVAL, "%s: %spartial_rotary_factor is %g, it must be above 0 and at most 1",
                r->file, partial.path, factor);
    m->rotary_dim = (uint32_t)(m->head_dim * factor);
    if (m->rotary_dim == 0 || m->rotary_dim % 2 != 0)
        return error_set(r->e, -EINVAL,
                "%s: %spartial_rotary_factor %g of head_dim %u gives %u rotary dimensions: it must be an "
                "even number",
                r->file, partial.path, factor, m->head_dim, m->rotary_dim);
    return 0;
}

static int read_layer_types(const struct reader *r, struct model_config *m) {
    const json_t *types = field(r, "layer_types");
    if (!types) {
        uint32_t interval = 0;
        if (!field(r, "full_attention_interval"))
            return error_set(r->e, -EINVAL, "%s: has neither %slayer_types nor %sfull_attention_interval",
                    r->file, r->path, r->path);
        int result = read_size(r, "full_attention_interval", 1, MODEL_LAYERS_MAX, &interval);
        for (uint32_t i = 0; i < m->n_layers && result == 0; i++)
            m->is_attention[i] = (i + 1) % interval == 0;
        return result;
    }
    if (!json_is_array(types))
        return wrong_type(r, "layer_types", "a list", types);
    if (json_array_size(types) != m->n_layers)
        return error_set(r->e, -EINVAL, "%s: %slayer_types has %zu entries, num_hidden_layers is %u", r->file,
                r->path, json_array_size(types), m->n_layers);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const json_t *type = json_array_get(types, i);
        const char *text = json_is_string(type) ? json_string_value(type) : json_config_type(type);
        if (strcmp(text, "full_attention") != 0 && strcmp(text, "linear_attention") != 0)
            return error_set(r->e, -ENOTSUP,
                    "%s: %slayer_types[%u] is '%.60s': only 'linear_attention' and 'full_attention' are "
                    "supported",
                    r->file, r->path, i, text);
        m->is_attention[i] = text[0] == 'f';
    }
    return 0;
}

static int add_eos_id(const struct reader *r, const json_t *value, struct model_config *m) {
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value))
        return wrong_type(r, "eos_token_id", "an id or a list of ids", value);
    if (id < 0 || id >= (json_int_t)m->vocab_size)
        return error_set(r->e, -EINVAL, "%s: %seos_token_id %lld is not an id of a vocabulary of %u", r->file,
                r->path, (long long)id, m->vocab_size);
    for (uint32_t i = 0; i < m->n_eos_ids; i++)
        if (m->eos_ids[i] == (uint32_t)id)
            return 0;
    if (m->n_eos_ids == sizeof(m->eos_ids) / sizeof(*m->eos_ids))
        return error_set(r->e, -E2BIG, "%s: %seos_token_id: more than %u different ids end a text", r->file,
                r->path, m->n_eos_ids);
    m->eos_ids[m->n_eos_ids++] = (uint32_t)id;
    return 0;
}

/* Adds what eos_token_id has: nothing, one id, or a list. */
static int read_eos_ids(const struct reader *r, struct model_config *m) {
    const json_t *value = field(r, "eos_token_id");
    int result = 0;
    if (!value)
        return 0;
    if (!json_is_array(value))
        return add_eos_id(r, value, m);
    for (size_t i = 0; i < json_array_size(value) && result == 0; i++)
        result = add_eos_id(r, json_array_get(value, i), m);
    return result;
}

/* --- what must fit together --- */

static const struct model_config_names HF_NAMES = {.q_heads = "num_attention_heads",
        .kv_heads = "num_key_value_heads",
        .head_dim = "head_dim",
        .gdn_k_heads = "linear_num_key_heads",
        .gdn_v_heads = "linear_num_value_heads",
        .gdn_v_dim = "linear_value_head_dim"};

int model_config_check(const struct model_config *m, const char *file, const char *path,
        const struct model_config_names *names, struct error *e) {
    const struct model_config_names *k = names ? names : &HF_NAMES;
    if (m->q_heads % m->kv_heads != 0)
        return error_set(e, -EINVAL, "%s: %s%s %u is not a multiple of %s %u", file, path, k->q_heads,
                m->q_heads, k->kv_heads, m->kv_heads);
    if (m->gdn_v_heads % m->gdn_k_heads != 0)
        return error_set(e, -EINVAL, "%s: %s%s %u is not a multiple of %s %u", file, path, k->gdn_v_heads,
                m->gdn_v_heads, k->gdn_k_heads, m->gdn_k_heads);
    /* The widest rows: query and gate, and the GDN channels. In 64 bits none of these overflows. */
    uint64_t query = 2ull * m->q_heads * m->head_dim, keys = 1ull * m->kv_heads * m->head_dim;
    uint64_t gdn = 2ull * m->gdn_k_heads * m->gdn_k_dim + 1ull * m->gdn_v_heads * m->gdn_v_dim;
    if (query > MODEL_DIM_MAX || keys > MODEL_DIM_MAX)
        return error_set(e, -E2BIG, "%s: %s%s times %s: no weight may have more than %u rows", file, path,
                k->q_heads, k->head_dim, MODEL_DIM_MAX);
    if (gdn > MODEL_DIM_MAX)
        return error_set(e, -E2BIG, "%s: %s%s times %s: no weight may have more than %u rows", file, path,
                k->gdn_v_heads, k->gdn_v_dim, MODEL_DIM_MAX);
    return 0;
}

/* --- files --- */

static int parse_root(const struct reader *root, struct model_config *m) {
    const json_t *nested = field(root, "text_config");
    struct reader text = *root;
    int result = check_model_type(root);
    if (result == 0 && nested) {
        if (!json_is_object(nested))
            return wrong_type(root, "text_config", "an object", nested);
        text = (struct reader){root->file, "text_config.", nested, root->e};
        result = check_model_type(&text);
    }
    if (result == 0)
        result = check_supported(&text);
    if (result == 0)
        result = read_sizes(&text, m);
    if (result == 0)
        result = read_eps(&text, m);
    if (result == 0)
        result = read_rope(&text, m);
    if (result == 0)
        result = read_layer_types(&text, m);
    if (result == 0)
        result = model_config_check(m, text.file, text.path, /* names= */ NULL, text.e);
    if (result == 0)
        result = read_flag(root, "tie_word_embeddings", &m->tie_word_embeddings); /* never text_config's */
    if (result == 0)
        result = read_eos_ids(&text, m);
    if (result == 0 && nested)
        result = read_eos_ids(root, m);
    return result;
}

int model_config_parse(
        const char *json, size_t bytes, const char *file, struct model_config *ret, struct error *e) {
    struct model_config m = {0};
    json_t *object = NULL;
    int r = json_config_parse(json, bytes, file, &object, e);
    if (r < 0)
        return r;
    r = parse_root(&(struct reader){file, "", object, e}, &m);
    json_decref(object);
    if (r == 0)
        *ret = m;
    return r;
}

/* generation_config.json may be absent; its eos ids come after those of config.json. */
static int load_generation_eos(const char *dir, struct model_config *m, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    json_t *object = NULL;
    int r = file_path(dir, "generation_config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        r = json_config_parse(text, bytes, path, &object, e);
    if (r == 0)
        r = read_eos_ids(&(struct reader){path, "", object, e}, m);
    json_decref(object);
    free(text);
    return r;
}

/* A GGUF model brings its own configuration; whether its head is tied is said by its tensors. */
static int load_gguf(const struct gguf_files *files, struct model_config *ret, struct error *e) {
    struct gguf_checkpoint *c = NULL;
    struct model_config m = {0};
    int r = gguf_checkpoint_open(files, &c, e);
    if (r == 0)
        r = gguf_model_config(gguf_checkpoint_metadata(c), &m, e);
    if (r == 0) {
        const char *file;
        m.tie_word_embeddings = !gguf_checkpoint_find(c, "output.weight", &file);
        r = load_generation_eos(files->folder, &m, e);
    }
    gguf_checkpoint_free(c);
    if (r == 0)
        *ret = m;
    return r;
}

int model_config_load(const char *dir, struct model_config *ret, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    struct model_config m = {0};
    struct gguf_files gguf;
    int r = gguf_locate(dir, &gguf, e);
    if (r != 0)
        return r < 0 ? r : load_gguf(&gguf, ret, e);
    r = file_path(dir, "config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == 0)
        r = model_config_parse(text, bytes, path, &m, e);
    if (r == 0)
        r = load_generation_eos(dir, &m, e);
    free(text);
    if (r == 0)
        *ret = m;
    return r;
}

/* --- sharding --- */

/* Why this model cannot run on tp ranks: a field, or NULL if it can. */
static const char *obstacle(
        const struct model_config *m, uint32_t tp, uint64_t *ret_size, uint64_t *ret_divisor) {
    const struct {
        const char *name;
        uint64_t size, divisor;
    } rules[] = {
            /* At every tp eight equal leaves in each K, 8/tp of them in each rank... */
            {"hidden_size", m->hidden_size, K_LEAVES},
            {"num_attention_heads * head_dim", 1ull * m->q_heads * m->head_dim, K_LEAVES},
            {"linear_num_value_heads * linear_value_head_dim", 1ull * m->gdn_v_heads * m->gdn_v_dim,
                    K_LEAVES},
            {"intermediate_size", m->intermediate_size, K_LEAVES},
            /* ... and whole heads and whole rows for each rank. */
            {"num_attention_heads", m->q_heads, tp},
            {"linear_num_key_heads", m->gdn_k_heads, tp},
            {"linear_num_value_heads", m->gdn_v_heads, tp},
            {"intermediate_size", m->intermediate_size, tp},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
        if (rules[i].size % rules[i].divisor != 0) {
            *ret_size = rules[i].size;
            *ret_divisor = rules[i].divisor;
            return rules[i].name;
        }
    if (m->kv_heads % tp != 0 && tp % m->kv_heads != 0) {
        *ret_size = m->kv_heads;
        *ret_divisor = tp;
        return "num_key_value_heads";
    }
    return NULL;
}

static bool is_rank_count(uint32_t tp) {
    return tp == 1 || tp == 2 || tp == 4 || tp == 8;
}

/* The model does not run on one rank, so it does not on more. */
static int unservable(const struct model_config *m, struct error *e) {
    uint64_t size = 0, divisor = 0;
    const char *name = obstacle(m, 1, &size, &divisor);
    return error_set(e, -EINVAL,
            "%s of this model is %llu, which %llu does not divide: such a model is not served, at no "
            "--tensor-parallel-size",
            name, (unsigned long long)size, (unsigned long long)divisor);
}

int model_config_check_tp(const struct model_config *m, uint32_t tp, struct error *e) {
    uint64_t size = 0, divisor = 0;
    char works[64] = "";
    size_t n = 0;
    const char *name = is_rank_count(tp) ? obstacle(m, tp, &size, &divisor) : NULL;
    if (is_rank_count(tp) && !name)
        return 0;
    for (uint32_t other = 1; other <= RANKS_MAX; other *= 2) {
        uint64_t unused_size, unused_divisor;
        if (!obstacle(m, other, &unused_size, &unused_divisor))
            n += (size_t)snprintf(works + n, sizeof(works) - n, "%s%u", n ? ", " : "", other);
    }
    if (n == 0) /* whoever asked for one rank, or for eight, has done nothing wrong */
        return unservable(m, e);
    if (!is_rank_count(tp))
        return error_set(e, -EDOM,
                "--tensor-parallel-size %u: must be 1, 2, 4 or 8; for this model, sizes that work: %s", tp,
                works);
    return error_set(e, -EDOM,
            "--tensor-parallel-size %u: %s is %llu, which %llu does not divide; sizes that work: %s", tp,
            name, (unsigned long long)size, (unsigned long long)divisor, works);
}

uint64_t model_config_parameters(const struct model_config *m) {
    const uint64_t h = m->hidden_size, q = 1ull * m->q_heads * m->head_dim,
                   kv = 1ull * m->kv_heads * m->head_dim;
    const uint64_t v = 1ull * m->gdn_v_heads * m->gdn_v_dim, qkv = 2ull * m->gdn_k_heads * m->gdn_k_dim + v;
    const uint64_t mlp = 3 * h * m->intermediate_size + 2 * h;
    const uint64_t attention = h * (2 * q + 2 * kv) + q * h + 2ull * m->head_dim;
    const uint64_t gdn = h * (qkv + v + 2ull * m->gdn_v_heads) + qkv * m->conv_kernel +
                         2ull * m->gdn_v_heads + m->gdn_v_dim + v * h;
    uint64_t total = (m->tie_word_embeddings ? 1 : 2) * h * m->vocab_size + h;
    for (uint32_t i = 0; i < m->n_layers; i++)
        total += mlp + (m->is_attention[i] ? attention : gdn);
    return total;
}
