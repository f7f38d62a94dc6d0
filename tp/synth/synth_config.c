/* synth_config.c - the built-in configurations, and config.json and generation_config.json of a synthetic
 * model. */
#include "tp/synth/synth_parts.h"

#include "base/file.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char synth_config_names[] = "0.8b, 2b, 4b, 9b, 27b, tiny, small";

/* The published sizes differ in these only; tiny and small are of our making: the smallest heads that still
 * have grouped queries, grouped keys (r = 2 and 3) and a partial rotation, and divide by 8. */
static const struct preset {
    const char *name;
    uint32_t hidden, layers, q_heads, kv_heads, head_dim, k_heads, v_heads, gdn_dim, intermediate, vocab,
            context;
    bool tied;
} PRESETS[] = {
        {"0.8b", 1024, 24, 8, 2, 256, 16, 16, 128, 3584, 248320, 262144, true},
        {"2b", 2048, 24, 8, 2, 256, 16, 16, 128, 6144, 248320, 262144, true},
        {"4b", 2560, 32, 16, 4, 256, 16, 32, 128, 9216, 248320, 262144, true},
        {"9b", 4096, 32, 16, 4, 256, 16, 32, 128, 12288, 248320, 262144, false},
        {"27b", 5120, 64, 24, 4, 256, 16, 48, 128, 17408, 248320, 262144, false},
        {"tiny", 256, 4, 8, 4, 32, 8, 16, 32, 512, 2048, 8192, false},
        {"small", 512, 8, 16, 4, 64, 8, 24, 64, 1536, 8192, 32768, false},
};

void synth_config_set_layers(struct model_config *m, uint32_t n_layers) {
    m->n_layers = n_layers;
    for (uint32_t i = 0; i < MODEL_LAYERS_MAX; i++)
        m->is_attention[i] = i < n_layers && (i + 1) % 4 == 0;
}

int synth_config(const char *name, struct model_config *ret) {
    for (size_t i = 0; i < sizeof(PRESETS) / sizeof(*PRESETS); i++) {
        const struct preset *p = &PRESETS[i];
        if (strcmp(p->name, name) != 0)
            continue;
        *ret = (struct model_config){
                .hidden_size = p->hidden,
                .intermediate_size = p->intermediate,
                .vocab_size = p->vocab,
                .q_heads = p->q_heads,
                .kv_heads = p->kv_heads,
                .head_dim = p->head_dim,
                .rotary_dim = p->head_dim / 4,
                .gdn_k_heads = p->k_heads,
                .gdn_v_heads = p->v_heads,
                .gdn_k_dim = p->gdn_dim,
                .gdn_v_dim = p->gdn_dim,
                .conv_kernel = 4,
                .max_position_embeddings = p->context,
                .mtp_layers = 1,
                .tie_word_embeddings = p->tied,
                .rms_eps = 1e-6f,
                .rope_theta = 1e7,
        };
        synth_config_set_layers(ret, p->layers);
        return 0;
    }
    return -ENOENT;
}

/* --- files --- */

/* rotary_dim / head_dim as a number that gives rotary_dim again when a reader multiplies and cuts. */
static double partial_factor(const struct model_config *m) {
    double factor = (double)m->rotary_dim / m->head_dim;
    return (uint32_t)(m->head_dim * factor) < m->rotary_dim ? nextafter(factor, 2) : factor;
}

/* A float as the shortest decimal that is it, so that 1e-6f is written 1e-06. */
static double decimal_of(float value) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    return strtod(text, NULL);
}

static json_t *rope_object(const struct model_config *m) {
    const int half = (int)m->rotary_dim / 2;
    json_t *theta = m->rope_theta < 1e15 && floor(m->rope_theta) == m->rope_theta
                            ? json_integer((json_int_t)m->rope_theta)
                            : json_real(m->rope_theta);
    /* The sections share the rotated pairs out to time, height and width in turn; for text they do not
     * matter. */
    return json_pack("{s:s, s:o, s:f, s:[i,i,i], s:b}", "rope_type", "default", "rope_theta", theta,
            "partial_rotary_factor", partial_factor(m), "mrope_section", (half + 2) / 3, (half + 1) / 3,
            half / 3, "mrope_interleaved", 1);
}

static const char *dtype_word(enum tensor_dtype t) {
    return t == TENSOR_F32 ? "float32" : t == TENSOR_F16 ? "float16" : "bfloat16";
}

static json_t *group_object(const struct synth_options *o, uint32_t bits, const char *target) {
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:i, s:b}", "num_bits", (int)bits, "type", "int",
            "symmetric", 1, "strategy", "group", "group_size", (int)o->group_size, "dynamic", 0);
    return json_pack("{s:[s], s:o, s:n, s:n}", "targets", target, "weights", weights, "input_activations",
            "output_activations");
}

static json_t *quantization_object(const struct synth_options *o) {
    json_t *groups = json_pack("{s:o}", "group_0", group_object(o, o->weight_bits, "Linear")),
           *ignore = json_pack("[s,s,s]", "re:.*in_proj_a$", "re:.*in_proj_b$", "mtp.fc");
    if (o->head_bits) /* a pattern decides before "Linear" does */
        json_object_set_new(groups, "group_1", group_object(o, o->head_bits, "re:.*lm_head$"));
    else
        json_array_insert_new(ignore, 0, json_string("lm_head"));
    return json_pack("{s:s, s:s, s:s, s:o, s:o}", "quant_method", "compressed-tensors", "format",
            "pack-quantized", "quantization_status", "compressed", "config_groups", groups, "ignore", ignore);
}

static json_t *config_object(const struct synth_options *o, uint32_t eos) {
    const struct model_config *m = &o->config;
    json_t *types = json_array();
    for (uint32_t i = 0; i < m->n_layers; i++)
        json_array_append_new(types, json_string(m->is_attention[i] ? "full_attention" : "linear_attention"));
    json_t *c = json_pack("{s:[s], s:s, s:s, s:b, s:b, s:s, s:f}", "architectures", "Qwen3_5ForCausalLM",
            "model_type", "qwen3_5_text", "dtype", dtype_word(o->dtype), "attention_bias", 0,
            "attn_output_gate", 1, "hidden_act", "silu", "rms_norm_eps", decimal_of(m->rms_eps));
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
            {"vocab_size", m->vocab_size},
            {"hidden_size", m->hidden_size},
            {"intermediate_size", m->intermediate_size},
            {"num_hidden_layers", m->n_layers},
            {"num_attention_heads", m->q_heads},
            {"num_key_value_heads", m->kv_heads},
            {"head_dim", m->head_dim},
            {"linear_num_key_heads", m->gdn_k_heads},
            {"linear_num_value_heads", m->gdn_v_heads},
            {"linear_key_head_dim", m->gdn_k_dim},
            {"linear_value_head_dim", m->gdn_v_dim},
            {"linear_conv_kernel_dim", m->conv_kernel},
            {"max_position_embeddings", m->max_position_embeddings},
            {"mtp_num_hidden_layers", m->mtp_layers},
            {"eos_token_id", eos},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        json_object_set_new(c, sizes[i].key, json_integer(sizes[i].value));
    json_object_set_new(c, "mamba_ssm_dtype", json_string("float32"));
    json_object_set_new(c, "tie_word_embeddings", json_boolean(m->tie_word_embeddings));
    json_object_set_new(c, "rope_parameters", rope_object(m));
    json_object_set_new(c, "layer_types", types);
    if (o->weight_bits)
        json_object_set_new(c, "quantization_config", quantization_object(o));
    return c;
}

/* Takes the object. */
static int write_object(const struct synth_options *o, const char *name, json_t *object, struct error *e) {
    char path[PATH_MAX];
    char *text = object ? json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    int r = text ? file_path(o->dir, name, path, e) : error_set(e, -ENOMEM, "%s: out of memory", name);
    if (r == 0)
        r = file_replace(path, text, strlen(text), 0644, e);
    free(text);
    json_decref(object);
    return r;
}

int synth_write_configs(const struct synth_options *o, const uint32_t eos[2], struct error *e) {
    json_t *generation =
            json_pack("{s:b, s:[i,i], s:i, s:f, s:i, s:f}", "do_sample", 1, "eos_token_id", (int)eos[0],
                    (int)eos[1], "pad_token_id", (int)eos[1], "temperature", 1.0, "top_k", 20, "top_p", 0.95);
    int r = write_object(o, "generation_config.json", generation, e);
    return r < 0 ? r : write_object(o, "config.json", config_object(o, eos[1]), e);
}
