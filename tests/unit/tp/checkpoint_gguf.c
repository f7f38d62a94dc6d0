/* checkpoint_gguf.c - models in GGUF files: every block format equals what the public gguf package makes of it, and a
 * model written as the converter writes it has the tensors of the Hugging Face checkpoint that it was made from. */
#include "tp/checkpoint/gguf_model.h"

#include "base/file.h"
#include "base/half.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN      TESTS_DIR "/golden/gguf/"
#define TENSORS_MAX 96

/* --- blocks --- */

static float value_of(const struct quant_matrix *q, struct quant_group g, uint8_t code) {
    (void)q;
    return g.scale * (float)(code - g.zero) - g.minimum;
}

static void row_values(const struct quant_matrix *q, uint32_t row, float *ret) {
    uint8_t codes[4096];
    struct quant_group groups[4096 / 16];
    assert_true(q->columns <= 4096);
    q->codes(q, row, 1, 0, q->columns, codes);
    q->groups(q, row, 0, quant_groups(q), groups);
    for (uint32_t i = 0; i < q->columns; i++)
        ret[i] = value_of(q, groups[i / q->group], codes[i]);
}

struct matrices {
    struct file_map map;
    struct gguf g;
    struct checkpoint *expected;
};

static void open_matrices(struct matrices *m) {
    struct error e = {0};
    assert_int_equal(file_map(GOLDEN "matrices.gguf", &m->map, &e), 0);
    if (gguf_parse(m->map.data, m->map.bytes, "matrices.gguf", &m->g, &e) < 0 ||
            checkpoint_open_file(GOLDEN "matrices.safetensors", &m->expected, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(m->g.n_tensors, 8);
}

static void close_matrices(struct matrices *m) {
    gguf_done(&m->g);
    file_unmap(&m->map);
    checkpoint_free(m->expected);
}

static void test_blocks(void **state) {
    (void)state;
    struct matrices all;
    open_matrices(&all);
    for (size_t i = 0; i < all.g.n_tensors; i++) {
        const struct gguf_tensor *t = &all.g.tensors[i];
        const char *type = gguf_tensor_type_name(t->type);
        const struct gguf_order as_is = {0};
        const struct tensor *expected = checkpoint_find(all.expected, type);
        struct gguf_matrix m;
        float values[768];
        assert_non_null(expected);
        assert_int_equal(gguf_matrix_make(t, &as_is, &as_is, &m, NULL), 0);
        assert_int_equal(m.q.rows, 6);
        assert_int_equal(m.q.columns, 768);
        assert_non_null(m.q.label);
        for (uint32_t row = 0; row < m.q.rows; row++) {
            row_values(&m.q, row, values);
            for (uint32_t c = 0; c < m.q.columns; c++)
                if (values[c] != ((const float *)expected->data)[row * 768 + c])
                    fail_msg("%s: row %u column %u: %.9g, expected %.9g", type, row, c, (double)values[c],
                            (double)((const float *)expected->data)[row * 768 + c]);
        }
    }
    close_matrices(&all);
}

/* The distance of halves around x. */
static double half_unit(double x) {
    int exponent;
    frexp(x, &exponent);
    return ldexp(1, exponent - 11 > -24 ? exponent - 11 : -24);
}

static bool is_half(float x) {
    return fabs((double)x) <= 65504 && fmod((double)x, half_unit((double)x)) == 0;
}

/* What a matrix says of its groups is true of all of them. */
static void test_descriptions(void **state) {
    (void)state;
    struct matrices all;
    open_matrices(&all);
    for (size_t i = 0; i < all.g.n_tensors; i++) {
        const struct gguf_order as_is = {0};
        struct gguf_matrix m;
        struct quant_group groups[48];
        assert_int_equal(gguf_matrix_make(&all.g.tensors[i], &as_is, &as_is, &m, NULL), 0);
        const uint8_t usual = m.q.format == QUANT_INT4 ? 8 : 128;
        bool zeros = false, minimums = false, halves = true;
        for (uint32_t row = 0; row < m.q.rows; row++) {
            m.q.groups(&m.q, row, 0, quant_groups(&m.q), groups);
            for (uint32_t k = 0; k < quant_groups(&m.q); k++) {
                zeros = zeros || groups[k].zero != usual;
                minimums = minimums || groups[k].minimum != 0;
                halves = halves && is_half(groups[k].scale);
            }
        }
        assert_int_equal(m.q.zeros, zeros);
        assert_int_equal(m.q.minimums, minimums);
        assert_true(m.q.scale == QUANT_SCALE_F32 || halves);
    }
    close_matrices(&all);
}

/* Rows and columns in another order, read in windows of any place and length. */
static void test_moved_heads(void **state) {
    (void)state;
    struct matrices all;
    open_matrices(&all);
    for (size_t i = 0; i < all.g.n_tensors; i++) {
        const struct gguf_order as_is = {0}, rows = {2, 1, 2, 2}, columns = {0, 128, 2, 3};
        static const uint32_t row_at[6] = {0, 1, 2, 4, 3, 5}, head_at[6] = {0, 2, 4, 1, 3, 5};
        struct gguf_matrix plain, moved;
        uint8_t from[768], to[3 * 768];
        struct quant_group before[48], after[48];
        assert_int_equal(gguf_matrix_make(&all.g.tensors[i], &as_is, &as_is, &plain, NULL), 0);
        assert_int_equal(gguf_matrix_make(&all.g.tensors[i], &rows, &columns, &moved, NULL), 0);
        for (uint32_t first = 0; first < 700; first += 37) {
            const uint32_t n = 768 - first < 201 ? 768 - first : 201;
            moved.q.codes(&moved.q, 2, 3, first, n, to);
            for (uint32_t row = 0; row < 3; row++) {
                plain.q.codes(&plain.q, row_at[row + 2], 1, 0, 768, from);
                for (uint32_t c = 0; c < n; c++)
                    assert_int_equal(
                            to[row * n + c], from[head_at[(first + c) / 128] * 128 + (first + c) % 128]);
            }
        }
        const uint32_t n = quant_groups(&plain.q), each = n / 6;
        plain.q.groups(&plain.q, 4, 0, n, before);
        moved.q.groups(&moved.q, 3, 1, n - 1, after + 1);
        for (uint32_t k = 1; k < n; k++) {
            const struct quant_group *x = &after[k], *y = &before[head_at[k / each] * each + k % each];
            assert_true(x->scale == y->scale && x->minimum == y->minimum && x->zero == y->zero);
        }
    }
    close_matrices(&all);
}

static void test_groups_must_fit_heads(void **state) {
    (void)state;
    struct matrices all;
    struct error e = {0};
    struct gguf_matrix m;
    const struct gguf_order as_is = {0}, columns = {0, 16, 2, 24};
    open_matrices(&all);
    assert_int_equal(gguf_matrix_make(gguf_find_tensor(&all.g, "Q6_K"), &as_is, &columns, &m, &e), 0);
    assert_int_equal(gguf_matrix_make(gguf_find_tensor(&all.g, "Q4_K"), &as_is, &columns, &m, &e), -ENOTSUP);
    assert_string_equal(e.text,
            "Q4_K: heads of 16 columns are not whole groups of 32 of Q4_K, so that they cannot be put back in "
            "order");
    close_matrices(&all);
}

static void test_halves(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 0x10000; i++) {
        const uint32_t exponent = i >> 10 & 0x1F, mantissa = i & 0x3FF;
        const double size = exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);
        float value = float_of_f16((uint16_t)i);
        if (exponent == 0x1F)
            assert_true(mantissa ? isnan(value) : isinf(value));
        else
            assert_true(fabs((double)value) == size);
        assert_int_equal(signbit(value) != 0, i >> 15);
    }
}

/* --- models --- */

struct model {
    struct model_config config;
    struct checkpoint *checkpoint;
    struct model_tensors *tensors;
    const struct tensor *all[TENSORS_MAX];
    size_t n;
};

static void add(struct model *m, const struct tensor *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (list[i]) {
            assert_true(m->n < TENSORS_MAX);
            m->all[m->n++] = list[i];
        }
}

static void add_layer(struct model *m, const struct layer_tensors *l) {
    const struct tensor *const list[] = {l->input_norm, l->post_norm, l->gate, l->up, l->down, l->attention.q,
            l->attention.k, l->attention.v, l->attention.o, l->attention.q_norm, l->attention.k_norm,
            l->gdn.in_qkv, l->gdn.in_z, l->gdn.in_b, l->gdn.in_a, l->gdn.conv, l->gdn.dt_bias, l->gdn.a_log,
            l->gdn.norm, l->gdn.out};
    add(m, list, sizeof(list) / sizeof(*list));
}

static void open_model(struct model *m, const char *path) {
    struct error e = {0};
    *m = (struct model){0};
    if (model_config_load(path, &m->config, &e) < 0 || checkpoint_open(path, &m->checkpoint, &e) < 0 ||
            model_tensors_resolve(m->checkpoint, &m->config, &m->tensors, &e) < 0)
        fail_msg("%s", e.text);
    const struct model_tensors *t = m->tensors;
    const struct tensor *const ends[] = {t->embed, t->norm, t->lm_head};
    add(m, ends, 3);
    for (uint32_t i = 0; i < t->n_layers; i++)
        add_layer(m, &t->layers[i]);
    if (t->has_mtp) {
        const struct tensor *const mtp[] = {
                t->mtp.fc, t->mtp.norm_embedding, t->mtp.norm_hidden, t->mtp.norm};
        add(m, mtp, 4);
        add_layer(m, &t->mtp.layer);
    }
}

static void close_model(struct model *m) {
    model_tensors_free(m->tensors);
    checkpoint_free(m->checkpoint);
}

static uint64_t elements(const struct tensor *t) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    return n;
}

/* malloc'ed */
static float *values(const struct tensor *t) {
    const uint64_t n = elements(t);
    float *to = malloc(n * sizeof(*to));
    assert_non_null(to);
    for (uint64_t i = 0; i < n && t->dtype != TENSOR_QUANTISED; i++) {
        if (t->dtype == TENSOR_F32) {
            memcpy(&to[i], (const char *)t->data + i * 4, 4);
            continue;
        }
        uint16_t half;
        memcpy(&half, (const char *)t->data + i * 2, 2);
        uint32_t bits = (uint32_t)half << 16;
        if (t->dtype == TENSOR_F16)
            to[i] = float_of_f16(half);
        else
            memcpy(&to[i], &bits, 4);
    }
    for (uint32_t row = 0; t->dtype == TENSOR_QUANTISED && row < t->dims[0]; row++)
        row_values(t->quant, row, to + row * t->dims[1]);
    return to;
}

static void same_config(const struct model_config *a, const struct model_config *b) {
    const uint32_t x[] = {a->hidden_size, a->intermediate_size, a->vocab_size, a->n_layers, a->q_heads,
            a->kv_heads, a->head_dim, a->rotary_dim, a->gdn_k_heads, a->gdn_v_heads, a->gdn_k_dim,
            a->gdn_v_dim, a->conv_kernel, a->max_position_embeddings, a->mtp_layers, a->tie_word_embeddings,
            a->n_eos_ids, a->eos_ids[0], a->eos_ids[1]};
    const uint32_t y[] = {b->hidden_size, b->intermediate_size, b->vocab_size, b->n_layers, b->q_heads,
            b->kv_heads, b->head_dim, b->rotary_dim, b->gdn_k_heads, b->gdn_v_heads, b->gdn_k_dim,
            b->gdn_v_dim, b->conv_kernel, b->max_position_embeddings, b->mtp_layers, b->tie_word_embeddings,
            b->n_eos_ids, b->eos_ids[0], b->eos_ids[1]};
    for (size_t i = 0; i < sizeof(x) / sizeof(*x); i++)
        if (x[i] != y[i])
            fail_msg("number %zu: %u and %u", i, x[i], y[i]);
    assert_memory_equal(a->is_attention, b->is_attention, sizeof(a->is_attention));
    assert_true(a->rms_eps == b->rms_eps && a->rope_theta == b->rope_theta);
}

/* Everything but A_log, which went through exp and log, comes back to the bit. */
static void compare_models(const struct model *there, const struct model *here, bool matrices) {
    assert_int_equal(there->n, here->n);
    assert_int_equal(here->n, 4 * 14 - 3 + 3 + 15); /* three GDN layers, one attention layer, ends, MTP */
    for (size_t i = 0; i < here->n; i++) {
        const struct tensor *a = there->all[i], *b = here->all[i];
        const bool a_log = strstr(b->name, "A_log") != NULL, norm = b->n_dims == 1;
        if (!matrices && !norm && !strstr(b->name, "conv1d"))
            continue;
        assert_string_equal(a->name, b->name);
        assert_int_equal(elements(a), elements(b));
        float *x = values(a), *y = values(b);
        for (uint64_t k = 0; k < elements(a); k++)
            if (!(a_log ? fabsf(x[k] - y[k]) <= 1e-6f : x[k] == y[k]))
                fail_msg("%s: %llu: %.9g, expected %.9g", b->name, (unsigned long long)k, (double)x[k],
                        (double)y[k]);
        free(x);
        free(y);
    }
}

static void test_model_f32(void **state) {
    (void)state;
    struct model there, here;
    open_model(&here, GOLDEN "hf");
    open_model(&there, GOLDEN "f32-00002-of-00002.gguf"); /* any part of the set will do */
    assert_int_equal(checkpoint_files(there.checkpoint), 2);
    same_config(&there.config, &here.config);
    compare_models(&there, &here, true);
    assert_int_equal(there.tensors->n_used, checkpoint_count(there.checkpoint));
    assert_int_equal(there.tensors->n_ignored, 0);
    assert_true(there.tensors->has_mtp);
    close_model(&here);
    close_model(&there);
}

static uint64_t hash_of(const float *x, uint64_t n) { /* FNV-1a */
    uint64_t h = 0xcbf29ce484222325ull;
    for (const unsigned char *p = (const unsigned char *)x, *end = p + n * 4; p < end; p++)
        h = (h ^ *p) * 0x100000001b3ull;
    return h;
}

/* hashes.txt: file, tensor, hash of what the gguf package made of it. *ret_n is how many were compared. */
static void compare_hashes(const struct model *m, const char *file, size_t *ret_n) {
    char line[256], name[128], in[16];
    unsigned long long hash;
    FILE *f = fopen(GOLDEN "hashes.txt", "re");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        assert_int_equal(sscanf(line, "%15s %127s %llx", in, name, &hash), 3);
        for (size_t i = 0; i < m->n; i++) {
            if (strcmp(in, file) != 0 || strcmp(name, m->all[i]->name) != 0 || m->all[i] == m->tensors->embed)
                continue;
            float *x = values(m->all[i]);
            if (hash_of(x, elements(m->all[i])) != hash)
                fail_msg("%s of %s differs", name, file);
            free(x);
            ++*ret_n;
        }
    }
    fclose(f);
}

static void test_models_quantised(void **state) {
    (void)state;
    static const char *const files[] = {"q8_0", "q4_0", "mixed"};
    struct model here;
    open_model(&here, GOLDEN "hf");
    for (size_t i = 0; i < 3; i++) {
        char path[256];
        struct model there;
        size_t n = 0;
        snprintf(path, sizeof(path), GOLDEN "%s.gguf", files[i]);
        open_model(&there, path);
        same_config(&there.config, &here.config);
        compare_models(&there, &here, false);
        compare_hashes(&there, files[i], &n);
        assert_int_equal(n, 1 + 3 * 8 + 7 + 8); /* head, GDN layers, attention layer, MTP */
        close_model(&there);
    }
    close_model(&here);
}

/* The embedding of a quantised file is dense, and near what the file has. */
static void test_embedding(void **state) {
    (void)state;
    struct model there;
    const char *file;
    const struct gguf_order as_is = {0};
    struct gguf_matrix quantised;
    float exact[64];
    open_model(&there, GOLDEN "q8_0.gguf");
    const struct tensor *embed = there.tensors->embed;
    assert_int_equal(embed->dtype, TENSOR_F16);
    const struct gguf_tensor *t =
            gguf_checkpoint_find(checkpoint_gguf(there.checkpoint), "token_embd.weight", &file);
    assert_int_equal(gguf_matrix_make(t, &as_is, &as_is, &quantised, NULL), 0);
    float *dense = values(embed);
    for (uint32_t row = 0; row < 128; row++) {
        row_values(&quantised.q, row, exact);
        for (uint32_t c = 0; c < 64; c++)
            assert_true(
                    is_half(dense[row * 64 + c]) &&
                    fabs((double)dense[row * 64 + c] - (double)exact[c]) <= half_unit((double)exact[c]) / 2);
    }
    free(dense);
    close_model(&there);
}

/* --- files that are wrong --- */

static char folder[64], path[PATH_MAX];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shardd-gguf-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/m.gguf", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

/* Writes q4_0.gguf with the first `from` replaced by `to` (both n bytes), and at most `bytes` of it. */
static void write_patched(const char *from, const char *to, size_t n, size_t bytes) {
    char *data = NULL;
    size_t size = 0;
    assert_int_equal(file_read(GOLDEN "q4_0.gguf", 1u << 20, &data, &size, NULL), 0);
    char *at = n ? memmem(data, size, from, n) : NULL;
    assert_true(n == 0 || at);
    if (n)
        memcpy(at, to, n);
    assert_int_equal(file_replace(path, data, size < bytes ? size : bytes, 0600, NULL), 0);
    free(data);
}

static void refused(int code, const char *sentence) {
    struct model_config config;
    struct checkpoint *c = NULL;
    struct model_tensors *t = NULL;
    struct error e = {0};
    int r = model_config_load(path, &config, &e);
    if (r == 0)
        r = checkpoint_open(path, &c, &e);
    if (r == 0)
        r = model_tensors_resolve(c, &config, &t, &e);
    checkpoint_free(c);
    assert_null(t);
    assert_string_equal(e.text, sentence);
    assert_int_equal(r, code);
}

#define PATCHED(from, to) write_patched(from, to, sizeof(from) - 1, SIZE_MAX)

static void test_refusals(void **state) {
    (void)state;
    PATCHED("\6\0\0\0\0\0\0\0qwen35", "\6\0\0\0\0\0\0\0llama4");
    refused(-ENOTSUP, "m.gguf: general.architecture is 'llama4', which is not supported: only qwen35 is");
    PATCHED("qwen35.embedding_length", "qwen35.embedding_lengt_");
    refused(-ENOENT, "m.gguf: the key qwen35.embedding_length is missing");
    PATCHED("qwen35.ssm.group_count", "qwen35.ssm.group_coun_");
    refused(-ENOENT, "m.gguf: the key qwen35.ssm.group_count is missing");
    PATCHED("qwen35.feed_forward_length\4\0\0\0\100", "qwen35.feed_forward_length\4\0\0\0\101");
    refused(-EINVAL, "m.gguf: blk.0.ffn_gate.weight: expected [65, 64], found [64, 64]");
    PATCHED("qwen35.nextn_predict_layers\4\0\0\0\1", "qwen35.nextn_predict_layers\4\0\0\0\2");
    refused(-ENOTSUP, "m.gguf: qwen35.nextn_predict_layers is 2: only 0 and 1 are supported");
    PATCHED("qwen35.ssm.time_step_rank\4\0\0\0\6", "qwen35.ssm.time_step_rank\4\0\0\0\4");
    refused(-EINVAL, "m.gguf: blk.0.ssm_beta.weight: expected [4, 64], found [6, 64]");
    PATCHED("qwen35.ssm.time_step_rank\4\0\0\0\6", "qwen35.ssm.time_step_rank\4\0\0\0\5");
    refused(-EINVAL, "m.gguf: qwen35.ssm.inner_size is 192, which is not a multiple of ssm.time_step_rank 5");
    PATCHED("qwen35.ssm.group_count\4\0\0\0\2", "qwen35.ssm.group_count\4\0\0\0\4");
    refused(-EINVAL, "m.gguf: qwen35.ssm.time_step_rank 6 is not a multiple of qwen35.ssm.group_count 4");
    PATCHED("qwen35.ssm.conv_kernel\4\0\0\0\4", "qwen35.ssm.conv_kernel\4\0\0\0\1");
    refused(-EINVAL, "m.gguf: qwen35.ssm.conv_kernel is 1, it must be 2 to 8");
    PATCHED("blk.2.ssm_out.weight", "blk.2.ssm_oud.weight");
    refused(-ENOENT, "m.gguf: blk.2.ssm_out.weight: this tensor is missing");
    PATCHED("blk.4.nextn.hnorm.weight", "blk.4.nextn.hnorn.weight");
    refused(-ENOENT, "m.gguf: blk.4.nextn.hnorm.weight: this tensor is missing");
    PATCHED("tokenizer.ggml.eos_token_id\4\0\0\0\176", "tokenizer.ggml.eos_token_id\4\0\0\0\200");
    refused(-EINVAL, "m.gguf: tokenizer.ggml.eos_token_id is 128, which is not an id of a vocabulary of 128");
}

static void test_refused_tensors(void **state) {
    (void)state;
    static const char k[] = "blk.3.attn_k.weight\2\0\0\0\100\0\0\0\0\0\0\0\40\0\0\0\0\0\0\0";
    char from[sizeof(k) + 3], to[sizeof(from)];
    memcpy(from, k, sizeof(k) - 1);
    memcpy(from + sizeof(k) - 1, "\2\0\0\0", 4);
    memcpy(to, from, sizeof(from));
    to[sizeof(k) - 1] = 10;
    write_patched(from, to, sizeof(from), SIZE_MAX);
    refused(-ENOTSUP,
            "m.gguf: blk.3.attn_k.weight: tensors of type Q2_K are not read: F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
            "Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are; take another quantisation of this model");
    to[sizeof(k) - 1] = 99;
    write_patched(from, to, sizeof(from), SIZE_MAX);
    refused(-ENOTSUP, "m.gguf: blk.3.attn_k.weight: unknown tensor type 99");
    to[sizeof(k) - 1] = 12;
    write_patched(from, to, sizeof(from), SIZE_MAX);
    refused(-EBADMSG, "m.gguf: blk.3.attn_k.weight: rows of 64 are not whole blocks of 256 of Q4_K");
    write_patched(NULL, NULL, 0, 170000);
    struct model_config config;
    struct error e = {0};
    assert_int_equal(model_config_load(path, &config, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "but the file has 1"));
    assert_non_null(strstr(e.text, ": it is truncated, fetch it again"));
}

/* Without output.weight the head is tied: it multiplies the quantised matrix, rows are gathered from the copy. */
static void test_tied(void **state) {
    (void)state;
    struct model there;
    PATCHED("\15\0\0\0\0\0\0\0output.weight", "\15\0\0\0\0\0\0\0nothin.weight");
    open_model(&there, folder);
    assert_true(there.config.tie_word_embeddings);
    assert_int_equal(there.tensors->lm_head->dtype, TENSOR_QUANTISED);
    assert_int_equal(there.tensors->embed->dtype, TENSOR_F16);
    assert_int_equal(there.tensors->n_ignored, 1);
    assert_string_equal(there.tensors->ignored[0]->name, "nothin.weight");
    float *dense = values(there.tensors->embed), *exact = values(there.tensors->lm_head);
    for (uint32_t i = 0; i < 128 * 64; i++)
        assert_true(fabs((double)dense[i] - (double)exact[i]) <= half_unit((double)exact[i]) / 2);
    free(dense);
    free(exact);
    close_model(&there);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_halves),
            cmocka_unit_test(test_blocks),
            cmocka_unit_test(test_descriptions),
            cmocka_unit_test(test_moved_heads),
            cmocka_unit_test(test_groups_must_fit_heads),
            cmocka_unit_test(test_model_f32),
            cmocka_unit_test(test_models_quantised),
            cmocka_unit_test(test_embedding),
            cmocka_unit_test(test_refusals),
            cmocka_unit_test(test_refused_tensors),
            cmocka_unit_test(test_tied),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
