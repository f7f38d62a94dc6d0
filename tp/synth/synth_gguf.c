/* synth_gguf.c - one GGUF file (version 3) with the model, its sizes and its tokenizer, as llama.cpp's
 * converter would have made it from the safetensors files of the same seed. Everything in a GGUF file is
 * little-endian, and so are the machines that this runs on. */
#include "tp/synth/synth_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME "model.gguf"
#define ALIGNMENT 32u
#define ARCH      "qwen35"

enum value_type {
    VALUE_U32 = 4,
    VALUE_I32 = 5,
    VALUE_F32 = 6,
    VALUE_BOOL = 7,
    VALUE_STRING = 8,
    VALUE_ARRAY = 9
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are written as they lie in memory");

/* The key-value section as it grows. */
struct section {
    struct synth_buffer b;
    uint64_t n;
};

static void put_u32(struct synth_buffer *b, uint32_t value) {
    synth_append(b, &value, sizeof(value));
}

static void put_u64(struct synth_buffer *b, uint64_t value) {
    synth_append(b, &value, sizeof(value));
}

static void put_string(struct synth_buffer *b, const char *text) {
    put_u64(b, strlen(text));
    synth_append(b, text, strlen(text));
}

static void put_key(struct section *s, const char *key, enum value_type type) {
    put_string(&s->b, key);
    put_u32(&s->b, type);
    s->n++;
}

static void put_array_key(struct section *s, const char *key, enum value_type type, uint64_t n) {
    put_key(s, key, VALUE_ARRAY);
    put_u32(&s->b, type);
    put_u64(&s->b, n);
}

static void kv_u32(struct section *s, const char *key, uint32_t value) {
    put_key(s, key, VALUE_U32);
    put_u32(&s->b, value);
}

static void kv_f32(struct section *s, const char *key, float value) {
    put_key(s, key, VALUE_F32);
    synth_append(&s->b, &value, sizeof(value));
}

static void kv_string(struct section *s, const char *key, const char *value) {
    put_key(s, key, VALUE_STRING);
    put_string(&s->b, value);
}

static void kv_bool(struct section *s, const char *key, bool value) {
    put_key(s, key, VALUE_BOOL);
    synth_append(&s->b, value ? "\1" : "\0", 1);
}

/* --- what is in it --- */

static void put_model(struct section *s, const struct synth_options *o) {
    const struct model_config *m = &o->config;
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
            {ARCH ".block_count", m->n_layers + m->mtp_layers},
            {ARCH ".nextn_predict_layers", m->mtp_layers},
            {ARCH ".context_length", m->max_position_embeddings},
            {ARCH ".embedding_length", m->hidden_size},
            {ARCH ".feed_forward_length", m->intermediate_size},
            {ARCH ".vocab_size", m->vocab_size},
            {ARCH ".attention.head_count", m->q_heads},
            {ARCH ".attention.head_count_kv", m->kv_heads},
            {ARCH ".attention.key_length", m->head_dim},
            {ARCH ".attention.value_length", m->head_dim},
            {ARCH ".rope.dimension_count", m->rotary_dim},
            {ARCH ".full_attention_interval", 4},
            {ARCH ".ssm.conv_kernel", m->conv_kernel},
            {ARCH ".ssm.state_size", m->gdn_k_dim},
            {ARCH ".ssm.group_count", m->gdn_k_heads},
            {ARCH ".ssm.time_step_rank", m->gdn_v_heads},
            {ARCH ".ssm.inner_size", m->gdn_v_heads * m->gdn_v_dim},
    };
    const uint32_t half = m->rotary_dim / 2;
    const uint32_t dense_type = o->dtype == TENSOR_F32 ? 0 : o->dtype == TENSOR_F16 ? 1 : 32;
    const uint32_t file_type = o->weight_bits == 4 ? 2 : o->weight_bits == 8 ? 7 : dense_type;
    kv_string(s, "general.architecture", ARCH);
    kv_string(s, "general.type", "model");
    kv_string(s, "general.name", o->name);
    kv_u32(s, "general.alignment", ALIGNMENT);
    kv_u32(s, "general.quantization_version", 2);
    kv_u32(s, "general.file_type", file_type);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        kv_u32(s, sizes[i].key, sizes[i].value);
    kv_f32(s, ARCH ".attention.layer_norm_rms_epsilon", m->rms_eps);
    kv_f32(s, ARCH ".rope.freq_base", (float)m->rope_theta);
    put_array_key(s, ARCH ".rope.dimension_sections", VALUE_I32, 4);
    for (uint32_t i = 0; i < 4; i++)
        put_u32(&s->b, i < 3 ? (half + 2 - i) / 3 : 0);
}

static void put_tokenizer(struct section *s, const struct synth_tokens *t) {
    char unused[32];
    kv_string(s, "tokenizer.ggml.model", "gpt2");
    kv_string(s, "tokenizer.ggml.pre", ARCH);
    put_array_key(s, "tokenizer.ggml.tokens", VALUE_STRING, t->n);
    for (uint32_t i = 0; i < t->n; i++) {
        snprintf(unused, sizeof(unused), "[PAD%u]", i);
        put_string(&s->b, t->text[i] ? t->text[i] : unused);
    }
    put_array_key(s, "tokenizer.ggml.token_type", VALUE_I32, t->n);
    for (uint32_t i = 0; i < t->n; i++)
        put_u32(&s->b, t->text[i] ? t->type[i] : TOKEN_UNUSED);
    put_array_key(s, "tokenizer.ggml.merges", VALUE_STRING, t->n_merges);
    for (size_t i = 0; i < t->n_merges; i++)
        put_string(&s->b, t->merges[i]);
    kv_u32(s, "tokenizer.ggml.eos_token_id", t->eos[0]);
    kv_u32(s, "tokenizer.ggml.padding_token_id", t->eos[1]);
    kv_bool(s, "tokenizer.ggml.add_bos_token", false);
}

static uint64_t padding_after(uint64_t bytes) {
    return (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT;
}

static uint32_t type_of(const struct synth_tensor *t) {
    if (t->gguf_bits)
        return t->gguf_bits == 4 ? 2 : 8;
    return t->gguf_dtype == TENSOR_F32 ? 0 : t->gguf_dtype == TENSOR_F16 ? 1 : 30;
}

/* Dimensions are written innermost first. */
static void put_tensors(struct synth_buffer *b, const struct synth_plan *plan) {
    uint64_t offset = 0;
    for (uint32_t i = 0; i < plan->n; i++) {
        const struct synth_tensor *t = &plan->tensors[i];
        put_string(b, t->gguf_name);
        put_u32(b, t->is_vector ? 1 : 2);
        if (!t->is_vector)
            put_u64(b, t->columns);
        put_u64(b, t->rows);
        put_u32(b, type_of(t));
        put_u64(b, offset);
        offset += synth_tensor_bytes(t, SYNTH_GGUF);
        offset += padding_after(offset);
    }
}

static int make_header(const struct synth_options *o, const struct synth_plan *plan,
        const struct synth_tokens *tokens, struct synth_buffer *ret, struct error *e) {
    static const char zeros[ALIGNMENT];
    struct section s = {0};
    put_model(&s, o);
    put_tokenizer(&s, tokens);
    synth_append(ret, "GGUF", 4);
    put_u32(ret, 3);
    put_u64(ret, plan->n);
    put_u64(ret, s.n);
    synth_append(ret, s.b.data, s.b.n);
    put_tensors(ret, plan);
    synth_append(ret, zeros, padding_after(ret->n));
    bool failed = s.b.failed || ret->failed;
    free(s.b.data);
    return failed ? error_set(e, -ENOMEM, "%s: out of memory for its header", FILE_NAME) : 0;
}

int synth_write_gguf(const struct synth_options *o, const struct synth_plan *plan,
        const struct synth_tokens *tokens, int dir_fd, struct synth_report *report, struct error *e) {
    static const char zeros[ALIGNMENT];
    struct synth_buffer header = {0};
    struct synth_file f = {.fd = -1};
    uint64_t done = 0;
    int r = make_header(o, plan, tokens, &header, e);
    if (r == 0)
        r = synth_file_open(&f, o, dir_fd, FILE_NAME, &done, report->bytes + header.n, e);
    if (r == 0)
        r = synth_file_write(&f, header.data, header.n, e);
    for (uint32_t i = 0; i < plan->n && r == 0; i++) {
        r = synth_write_tensor(&f, plan, &plan->tensors[i], e);
        if (r == 0)
            r = synth_file_write(
                    &f, zeros, padding_after(synth_tensor_bytes(&plan->tensors[i], SYNTH_GGUF)), e);
    }
    if (r == 0)
        r = synth_file_close(&f, e);
    synth_file_abandon(&f);
    free(header.data);
    report->files = 1;
    return r;
}
