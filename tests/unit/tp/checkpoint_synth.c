/* checkpoint_synth.c - synthetic models: complete, the same for the same seed, sound in their numbers, and
 * the same model in both formats. */
#include "base/json_pull.h"
#include "checkpoint_test.h"
#include "tp/synth/synth.h"

#include <math.h>

#define PINNED_HASH 0x72f5ed55c774ee00ull /* FNV-1a of the embedding */

static char folder[TEST_FOLDER_SIZE];

static int make_folder(void **state) {
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

static const char *in_folder(const char *name) {
    static char paths[4][PATH_MAX];
    static int next;
    next = (next + 1) % 4;
    assert_int_equal(file_path(folder, name, paths[next], NULL), 0);
    return paths[next];
}

/* The smallest model with r = 3, and with two heads of each kind per rank at tp = 1. */
static struct synth_options options_for(const char *dir) {
    struct synth_options o = {.dir = dir, .name = "unit", .dtype = TENSOR_BF16, .seed = 5};
    assert_int_equal(synth_config("tiny", &o.config), 0);
    o.config.hidden_size = 64;
    o.config.intermediate_size = 128;
    o.config.vocab_size = 512;
    o.config.gdn_k_heads = 2;
    o.config.gdn_v_heads = 6;
    o.config.gdn_k_dim = o.config.gdn_v_dim = 16;
    return o;
}

static struct synth_report write_model(const struct synth_options *o) {
    struct synth_report report = {0};
    struct error e = {0};
    if (synth_write(o, &report, &e) < 0)
        fail_msg("%s", e.text);
    return report;
}

static bool same_file(const char *a, const char *b, const char *name) {
    size_t na = 0, nb = 0;
    char *one = test_get(a, name, &na), *other = test_get(b, name, &nb);
    bool same = na == nb && memcmp(one, other, na) == 0;
    free(one);
    free(other);
    return same;
}

static double value_of(enum tensor_dtype dtype, const void *data, uint64_t i) {
    float f;
    uint32_t bits;
    const uint16_t *halves = data;
    if (dtype == TENSOR_F32) {
        memcpy(&f, (const char *)data + 4 * i, 4);
        return f;
    }
    if (dtype == TENSOR_BF16) {
        bits = (uint32_t)halves[i] << 16;
        memcpy(&f, &bits, 4);
        return f;
    }
    int exponent = halves[i] >> 10 & 31, fraction = halves[i] & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return halves[i] & 0x8000 ? -magnitude : magnitude;
}

static double tensor_value(const struct tensor *t, uint64_t i) {
    return value_of(t->dtype, t->data, i);
}

/* --- the folder --- */

static void assert_same_config(const struct model_config *a, const struct model_config *b) {
    assert_int_equal(a->hidden_size, b->hidden_size);
    assert_int_equal(a->intermediate_size, b->intermediate_size);
    assert_int_equal(a->vocab_size, b->vocab_size);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->q_heads, b->q_heads);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->rotary_dim, b->rotary_dim);
    assert_int_equal(a->gdn_k_heads, b->gdn_k_heads);
    assert_int_equal(a->gdn_v_heads, b->gdn_v_heads);
    assert_int_equal(a->gdn_k_dim, b->gdn_k_dim);
    assert_int_equal(a->gdn_v_dim, b->gdn_v_dim);
    assert_int_equal(a->conv_kernel, b->conv_kernel);
    assert_int_equal(a->max_position_embeddings, b->max_position_embeddings);
    assert_int_equal(a->mtp_layers, b->mtp_layers);
    assert_int_equal(a->tie_word_embeddings, b->tie_word_embeddings);
    assert_memory_equal(a->is_attention, b->is_attention, sizeof(a->is_attention));
    assert_true(a->rms_eps == b->rms_eps);
    assert_true(a->rope_theta == b->rope_theta);
}

static void test_complete(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("complete"));
    struct synth_report report = write_model(&o);
    struct test_model l = test_model_load(o.dir);
    assert_int_equal(report.files, 1);
    assert_int_equal(report.tensors, checkpoint_count(l.c));
    assert_true(l.t->has_mtp);
    assert_int_equal(l.t->n_ignored, 0);
    assert_int_equal(l.t->bytes + l.t->mtp_bytes, report.bytes);
    /* What comes back is what was asked for; eos ids come from the tokenizer. */
    assert_same_config(&l.m, &o.config);
    assert_int_equal(l.m.n_eos_ids, 2);
    assert_int_equal(l.m.eos_ids[0], 512 - 26);
    assert_int_equal(l.m.eos_ids[1], 512 - 26 + 2);
    assert_int_equal(l.t->layers[0].gdn.a_log->dtype, TENSOR_F32);
    assert_int_equal(l.t->layers[0].gdn.norm->dtype, TENSOR_F32);
    assert_int_equal(l.t->layers[0].gdn.dt_bias->dtype, TENSOR_BF16);
    test_model_done(&l);
}

static void test_same_seed_same_bytes(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "generation_config.json", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json"};
    struct synth_options a = options_for(in_folder("seed5")), b = options_for(in_folder("seed5again")),
                         c = options_for(in_folder("seed6"));
    c.seed = 6;
    write_model(&a);
    write_model(&b);
    write_model(&c);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        assert_true(same_file(a.dir, b.dir, names[i]));
    assert_false(same_file(a.dir, c.dir, "model.safetensors"));
}

/* Pins the bytes themselves: a change of the generator would silently change what other tests were measured
 * on. */
/* Codes, scales and shape of one matrix, in the layout of compressed-tensors. */
static void check_quantised(const struct checkpoint *c, const char *matrix, uint64_t rows, uint64_t columns,
        uint32_t bits, uint32_t group) {
    const struct {
        const char *end;
        enum tensor_dtype dtype;
        uint64_t rows, columns;
    } parts[] = {{"_packed", TENSOR_I32, rows, columns * bits / 32},
            {"_scale", TENSOR_BF16, rows, columns / group}};
    char name[128];
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        snprintf(name, sizeof(name), "%s%s", matrix, parts[i].end);
        const struct tensor *t = checkpoint_find(c, name);
        assert_non_null(t);
        assert_int_equal(t->dtype, parts[i].dtype);
        assert_int_equal(t->n_dims, 2);
        assert_int_equal(t->dims[0], parts[i].rows);
        assert_int_equal(t->dims[1], parts[i].columns);
    }
    snprintf(name, sizeof(name), "%s_shape", matrix);
    const struct tensor *shape = checkpoint_find(c, name);
    assert_non_null(shape);
    assert_int_equal(shape->dtype, TENSOR_I64);
    const uint64_t want[2] = {rows, columns};
    assert_memory_equal(shape->data, want, sizeof(want));
    assert_null(checkpoint_find(c, matrix));
}

static void test_quantised(void **state) {
    (void)state;
    static const char *const q[] = {"model.layers.3.self_attn.q_proj.weight",
            "model.layers.3.mlp.down_proj.weight", "mtp.layers.0.mlp.up_proj.weight"};
    for (uint32_t bits = 4; bits <= 8; bits += 4) {
        struct synth_options o = options_for(in_folder(bits == 4 ? "int4" : "int8")),
                             again = options_for(in_folder(bits == 4 ? "int4again" : "int8again"));
        struct checkpoint *c = NULL;
        struct error e = {0};
        o.weight_bits = again.weight_bits = bits;
        o.group_size = again.group_size = 32;
        struct synth_report report = write_model(&o), dense;
        write_model(&again);
        assert_true(same_file(o.dir, again.dir, "model.safetensors"));
        assert_int_equal(checkpoint_open(o.dir, &c, &e), 0);
        check_quantised(c, q[0], 2ull * o.config.q_heads * o.config.head_dim, 64, bits, 32);
        check_quantised(c, q[1], 64, 128, bits, 32);
        check_quantised(c, q[2], 128, 64, bits, 32);
        assert_non_null(checkpoint_find(c, "lm_head.weight"));
        assert_non_null(checkpoint_find(c, "model.layers.0.linear_attn.in_proj_a.weight"));
        checkpoint_free(c);
        o = options_for(in_folder(bits == 4 ? "dense4" : "dense8"));
        dense = write_model(&o);
        assert_int_equal(report.parameters, dense.parameters);
        assert_true(report.bytes < dense.bytes);
    }
}

static void test_pinned_values(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("pinned"));
    o.dtype = TENSOR_F32;
    write_model(&o);
    struct test_model l = test_model_load(o.dir);
    uint64_t hash = 0xCBF29CE484222325ull;
    for (uint64_t i = 0; i < l.t->embed->bytes; i++)
        hash = (hash ^ ((const unsigned char *)l.t->embed->data)[i]) * 0x100000001B3ull;
    assert_int_equal(hash, PINNED_HASH);
    test_model_done(&l);
}

static void test_shards(void **state) {
    (void)state;
    struct synth_options one = options_for(in_folder("one")), many = options_for(in_folder("many"));
    many.shard_bytes = 60000; /* less than the embedding, which gets a file of its own */
    write_model(&one);
    struct synth_report report = write_model(&many);
    assert_true(report.files > 3);
    struct test_model a = test_model_load(one.dir), b = test_model_load(many.dir);
    assert_int_equal(checkpoint_files(b.c), report.files);
    assert_int_equal(checkpoint_count(a.c), checkpoint_count(b.c));
    for (size_t i = 0; i < checkpoint_count(a.c); i++) {
        const struct tensor *x = checkpoint_at(a.c, i), *y = checkpoint_at(b.c, i);
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->bytes, y->bytes);
        assert_memory_equal(x->data, y->data, x->bytes);
    }
    test_model_done(&a);
    test_model_done(&b);
}

static void test_dtypes(void **state) {
    (void)state;
    struct synth_options o32 = options_for(in_folder("f32")), o16 = options_for(in_folder("f16")),
                         ob = options_for(in_folder("bf16"));
    o32.dtype = TENSOR_F32;
    o16.dtype = TENSOR_F16;
    write_model(&o32);
    write_model(&o16);
    write_model(&ob);
    struct test_model l32 = test_model_load(o32.dir), l16 = test_model_load(o16.dir),
                      lb = test_model_load(ob.dir);
    for (size_t i = 0; i < checkpoint_count(l32.c); i++) {
        const struct tensor *x = checkpoint_at(l32.c, i), *h = checkpoint_at(l16.c, i),
                            *b = checkpoint_at(lb.c, i);
        for (uint64_t k = 0; k < x->bytes / 4; k++) {
            double exact = tensor_value(x, k);
            /* Half a unit in the last place: 11 bits and 8 bits. */
            assert_true(fabs(tensor_value(h, k) - exact) <= fabs(exact) * 0x1p-11 + 0x1p-25);
            assert_true(fabs(tensor_value(b, k) - exact) <= fabs(exact) * 0x1p-8);
        }
    }
    test_model_done(&l32);
    test_model_done(&l16);
    test_model_done(&lb);
}

/* --- the numbers --- */

static void mean_and_deviation(const struct tensor *t, double *ret_mean, double *ret_deviation) {
    uint64_t n = t->bytes / tensor_dtype_bytes(t->dtype);
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < n; i++) {
        double v = tensor_value(t, i);
        sum += v;
        squares += v * v;
    }
    *ret_mean = sum / (double)n;
    *ret_deviation = sqrt(squares / (double)n - *ret_mean * *ret_mean);
}

static void spread_is(const struct tensor *t, double mean, double deviation) {
    double m, d;
    uint64_t n = t->bytes / tensor_dtype_bytes(t->dtype);
    mean_and_deviation(t, &m, &d);
    /* Six deviations of an estimate from n values. */
    double slack = 6 / sqrt((double)n);
    if (fabs(m - mean) > slack * deviation || fabs(d / deviation - 1) > slack)
        fail_msg("%s: mean %g, deviation %g, expected %g and %g", t->name, m, d, mean, deviation);
}

static void test_scale(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("scale"));
    write_model(&o);
    struct test_model l = test_model_load(o.dir);
    const struct layer_tensors *gdn = &l.t->layers[0], *attention = &l.t->layers[3];
    spread_is(l.t->embed, 0, 1 / sqrt(64));
    spread_is(l.t->lm_head, 0, 1 / sqrt(64));
    spread_is(gdn->gate, 0, 1 / sqrt(64));
    spread_is(gdn->down, 0, 1 / sqrt(128 * 8));
    spread_is(gdn->gdn.out, 0, 1 / sqrt(96 * 8));
    spread_is(gdn->gdn.conv, 0, 0.5);
    spread_is(attention->attention.o, 0, 1 / sqrt(256 * 8));
    spread_is(gdn->input_norm, 0, 0.1);
    spread_is(gdn->gdn.norm, 1, 0.1);
    for (uint32_t i = 0; i < 6; i++) {
        double a = exp(tensor_value(gdn->gdn.a_log, i)), dt = tensor_value(gdn->gdn.dt_bias, i);
        assert_true(a > 0.0099 && a < 16.001);
        assert_true(dt >= -4 && dt <= 2);
    }
    /* No two tensors share values. */
    assert_memory_not_equal(gdn->gate->data, gdn->up->data, 256);
    assert_memory_not_equal(gdn->gate->data, l.t->layers[1].gate->data, 256);
    test_model_done(&l);
}

/* --- GGUF --- */

struct gguf {
    char *image;
    size_t bytes, at, data; /* data: where tensors begin */
    uint64_t n_tensors, n_kv, tensors_at;
    uint32_t block_count, k_heads, v_heads, eos;
    char architecture[32];
    uint64_t n_tokens, n_types;
    char first_added[32];
};

static uint64_t take(struct gguf *g, size_t bytes) {
    uint64_t value = 0;
    assert_true(g->at + bytes <= g->bytes);
    memcpy(&value, g->image + g->at, bytes);
    g->at += bytes;
    return value;
}

static const char *take_string(struct gguf *g, size_t *ret_n) {
    *ret_n = take(g, 8);
    assert_true(*ret_n <= g->bytes - g->at);
    g->at += *ret_n;
    return g->image + g->at - *ret_n;
}

static size_t scalar_bytes(uint64_t type) {
    assert_true(type == 4 || type == 5 || type == 6 || type == 7);
    return type == 7 ? 1 : 4;
}

static bool is(const char *text, size_t n, const char *expected) {
    return n == strlen(expected) && memcmp(text, expected, n) == 0;
}

static void take_value(struct gguf *g, const char *key, size_t key_bytes) {
    size_t n;
    uint64_t type = take(g, 4);
    if (type == 8) {
        const char *text = take_string(g, &n);
        if (is(key, key_bytes, "general.architecture"))
            snprintf(g->architecture, sizeof(g->architecture), "%.*s", (int)n, text);
        return;
    }
    if (type != 9) {
        uint64_t value = take(g, scalar_bytes(type));
        if (is(key, key_bytes, "qwen35.block_count"))
            g->block_count = (uint32_t)value;
        if (is(key, key_bytes, "qwen35.ssm.group_count"))
            g->k_heads = (uint32_t)value;
        if (is(key, key_bytes, "qwen35.ssm.time_step_rank"))
            g->v_heads = (uint32_t)value;
        if (is(key, key_bytes, "tokenizer.ggml.eos_token_id"))
            g->eos = (uint32_t)value;
        return;
    }
    uint64_t element = take(g, 4), count = take(g, 8);
    bool tokens = is(key, key_bytes, "tokenizer.ggml.tokens");
    if (tokens)
        g->n_tokens = count;
    if (is(key, key_bytes, "tokenizer.ggml.token_type"))
        g->n_types = count;
    for (uint64_t i = 0; i < count; i++) {
        if (element != 8) {
            take(g, scalar_bytes(element));
            continue;
        }
        const char *text = take_string(g, &n);
        if (tokens && i == count - 26)
            snprintf(g->first_added, sizeof(g->first_added), "%.*s", (int)n, text);
    }
}

static struct gguf gguf_open(const char *dir) {
    struct gguf g = {0};
    size_t n;
    g.image = test_get(dir, "model.gguf", &g.bytes);
    assert_memory_equal(g.image, "GGUF", 4);
    g.at = 4;
    assert_int_equal(take(&g, 4), 3);
    g.n_tensors = take(&g, 8);
    g.n_kv = take(&g, 8);
    for (uint64_t i = 0; i < g.n_kv; i++) {
        const char *key = take_string(&g, &n);
        take_value(&g, key, n);
    }
    g.tensors_at = g.at;
    for (uint64_t i = 0; i < g.n_tensors; i++) {
        take_string(&g, &n);
        g.at += take(&g, 4) * 8 + 12;
    }
    g.data = (g.at + 31) / 32 * 32;
    return g;
}

struct gguf_tensor {
    uint32_t n_dims;
    uint64_t columns, rows;
    enum tensor_dtype dtype;
    const char *data;
};

static struct gguf_tensor gguf_find(struct gguf *g, const char *name) {
    g->at = g->tensors_at;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        size_t n;
        const char *found = take_string(g, &n);
        struct gguf_tensor t = {.n_dims = (uint32_t)take(g, 4)};
        t.columns = t.n_dims == 2 ? take(g, 8) : 1;
        t.rows = take(g, 8);
        uint64_t type = take(g, 4), offset = take(g, 8);
        assert_true(type == 0 || type == 1 || type == 30);
        assert_int_equal(offset % 32, 0);
        t.dtype = type == 0 ? TENSOR_F32 : type == 1 ? TENSOR_F16 : TENSOR_BF16;
        t.data = g->image + g->data + offset;
        assert_true(g->data + offset + t.rows * t.columns * tensor_dtype_bytes(t.dtype) <= g->bytes);
        if (is(found, n, name))
            return t;
    }
    fail_msg("%s is not in the file", name);
    return (struct gguf_tensor){0};
}

enum change { SAME, PLUS_ONE, MINUS_EXP };

/* HF's V head j = k*3 + i is number i*2 + k in GGUF (two k heads, r = 3). */
static uint64_t tiled(uint64_t head) {
    return head % 3 * 2 + head / 3;
}

/* Every element of the HF tensor is where it belongs in the GGUF one. unit: rows (or columns) per V head, 0 =
 * as is; first: the rows before the V part. */
static void same_tensor(struct gguf *g, const char *name, const struct tensor *t, enum change change,
        uint64_t first, uint64_t row_unit, uint64_t column_unit) {
    struct gguf_tensor x = gguf_find(g, name);
    uint64_t elements = t->bytes / tensor_dtype_bytes(t->dtype), columns = elements / t->dims[0];
    assert_int_equal(x.rows, t->dims[0]);
    assert_int_equal(x.columns, columns);
    for (uint64_t r = 0; r < x.rows; r++)
        for (uint64_t c = 0; c < columns; c++) {
            uint64_t row = r, column = c;
            if (row_unit && r >= first)
                row = first + tiled((r - first) / row_unit) * row_unit + (r - first) % row_unit;
            if (column_unit)
                column = tiled(c / column_unit) * column_unit + c % column_unit;
            double here = value_of(x.dtype, x.data, row * columns + column),
                   there = tensor_value(t, r * columns + c);
            double expected = change == PLUS_ONE ? there + 1 : change == MINUS_EXP ? -exp(there) : there;
            if (fabs(here - expected) > 1e-6 * fabs(expected))
                fail_msg("%s [%d][%d]: %g, expected %g", name, (int)r, (int)c, here, expected);
        }
}

static void test_gguf_is_the_same_model(void **state) {
    (void)state;
    struct synth_options hf = options_for(in_folder("hf")), gg = options_for(in_folder("gguf"));
    gg.format = SYNTH_GGUF;
    write_model(&hf);
    struct synth_report report = write_model(&gg);
    struct test_model l = test_model_load(hf.dir);
    struct gguf g = gguf_open(gg.dir);
    const struct layer_tensors *gdn = &l.t->layers[1], *attention = &l.t->layers[3];
    assert_string_equal(g.architecture, "qwen35");
    assert_int_equal(g.n_tensors, report.tensors);
    assert_int_equal(g.n_tensors, checkpoint_count(l.c));
    assert_int_equal(g.block_count, 5); /* four and the MTP layer */
    assert_int_equal(g.k_heads, 2);
    assert_int_equal(g.v_heads, 6);
    assert_int_equal(g.n_tokens, 512);
    assert_int_equal(g.n_types, 512);
    assert_string_equal(g.first_added, "<|endoftext|>");
    assert_int_equal(g.eos, 512 - 26 + 2);

    same_tensor(&g, "token_embd.weight", l.t->embed, SAME, 0, 0, 0);
    same_tensor(&g, "output.weight", l.t->lm_head, SAME, 0, 0, 0);
    same_tensor(&g, "output_norm.weight", l.t->norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.1.attn_norm.weight", gdn->input_norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.1.post_attention_norm.weight", gdn->post_norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.1.attn_qkv.weight", gdn->gdn.in_qkv, SAME, 64, 16, 0);
    same_tensor(&g, "blk.1.attn_gate.weight", gdn->gdn.in_z, SAME, 0, 16, 0);
    same_tensor(&g, "blk.1.ssm_beta.weight", gdn->gdn.in_b, SAME, 0, 1, 0);
    same_tensor(&g, "blk.1.ssm_alpha.weight", gdn->gdn.in_a, SAME, 0, 1, 0);
    same_tensor(&g, "blk.1.ssm_conv1d.weight", gdn->gdn.conv, SAME, 64, 16, 0);
    same_tensor(&g, "blk.1.ssm_dt.bias", gdn->gdn.dt_bias, SAME, 0, 1, 0);
    same_tensor(&g, "blk.1.ssm_a", gdn->gdn.a_log, MINUS_EXP, 0, 1, 0);
    same_tensor(&g, "blk.1.ssm_norm.weight", gdn->gdn.norm, SAME, 0, 0, 0);
    same_tensor(&g, "blk.1.ssm_out.weight", gdn->gdn.out, SAME, 0, 0, 16);
    same_tensor(&g, "blk.1.ffn_gate.weight", gdn->gate, SAME, 0, 0, 0);
    same_tensor(&g, "blk.1.ffn_up.weight", gdn->up, SAME, 0, 0, 0);
    same_tensor(&g, "blk.1.ffn_down.weight", gdn->down, SAME, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_q.weight", attention->attention.q, SAME, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_k.weight", attention->attention.k, SAME, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_v.weight", attention->attention.v, SAME, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_output.weight", attention->attention.o, SAME, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_q_norm.weight", attention->attention.q_norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.3.attn_k_norm.weight", attention->attention.k_norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.4.nextn.eh_proj.weight", l.t->mtp.fc, SAME, 0, 0, 0);
    same_tensor(&g, "blk.4.nextn.enorm.weight", l.t->mtp.norm_embedding, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.4.nextn.hnorm.weight", l.t->mtp.norm_hidden, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.4.nextn.shared_head_norm.weight", l.t->mtp.norm, PLUS_ONE, 0, 0, 0);
    same_tensor(&g, "blk.4.attn_q.weight", l.t->mtp.layer.attention.q, SAME, 0, 0, 0);
    assert_int_equal(gguf_find(&g, "blk.1.ssm_conv1d.weight").dtype, TENSOR_F32);
    assert_int_equal(gguf_find(&g, "blk.1.attn_qkv.weight").dtype, TENSOR_BF16);
    free(g.image);
    test_model_done(&l);
}

static void test_gguf_tied_f16_without_mtp(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("gguf16"));
    o.format = SYNTH_GGUF;
    o.dtype = TENSOR_F16;
    o.config.tie_word_embeddings = true;
    o.config.mtp_layers = 0;
    o.config.gdn_v_heads = 2; /* r = 1: nothing moves */
    struct synth_report report = write_model(&o);
    struct gguf g = gguf_open(o.dir);
    assert_int_equal(g.block_count, 4);
    assert_int_equal(g.n_tensors, report.tensors);
    assert_int_equal(report.tensors, 2 + 3 * 14 + 11);
    assert_int_equal(gguf_find(&g, "token_embd.weight").dtype, TENSOR_F16);
    free(g.image);
}

/* --- the tokenizer --- */

/* Every id has one text, and no text two ids. */
static void test_tokenizer_covers_the_vocabulary(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("tok"));
    bool seen[512] = {false};
    size_t bytes = 0, n = 0;
    struct json_pull p;
    struct error e = {0};
    o.config.vocab_size = 512;
    write_model(&o);
    char *json = test_get(o.dir, "tokenizer.json", &bytes);
    json_pull_init(&p, json, bytes, "tokenizer.json");
    int r = 0;
    bool in_vocab = false;
    uint32_t depth = 0;
    while ((r = json_pull_next(&p, &e)) > 0) {
        if (r == PULL_KEY && json_pull_is(&p, "vocab")) {
            in_vocab = true;
            depth = p.depth;
        } else if (r == PULL_OBJECT_END && in_vocab && p.depth == depth) {
            in_vocab = false;
        }
        bool is_id = r == PULL_KEY && json_pull_is(&p, "id");
        if ((in_vocab && r == PULL_KEY && p.depth == depth + 1) || is_id) {
            uint64_t id = 0;
            assert_int_equal(json_pull_next(&p, &e), PULL_NUMBER);
            assert_int_equal(json_pull_u64(&p, &id, &e), 0);
            assert_true(id < 512);
            assert_false(seen[id]);
            seen[id] = true;
            n++;
        }
    }
    if (r < 0)
        fail_msg("%s", e.text);
    assert_int_equal(n, 512);
    json_pull_done(&p);
    free(json);
}

static void test_tokenizer_is_copied(void **state) {
    (void)state;
    const char *source = in_folder("source");
    struct synth_options o = options_for(in_folder("copied"));
    test_put_text(source, "tokenizer.json",
            "{\"added_tokens\":[{\"id\":2,\"content\":\"<|im_end|>\",\"special\":true}],"
            "\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\",[\"b\",\"a\"]]}}");
    test_put_text(source, "chat_template.jinja", "{{ messages }}");
    o.tokenizer_dir = source;
    o.format = SYNTH_GGUF;
    write_model(&o);
    assert_true(same_file(source, o.dir, "tokenizer.json"));
    assert_true(same_file(source, o.dir, "chat_template.jinja"));
    struct model_config m;
    struct error e = {0};
    assert_int_equal(model_config_load(o.dir, &m, &e), 0);
    assert_int_equal(m.n_eos_ids, 1);
    assert_int_equal(m.eos_ids[0], 2);
    struct gguf g = gguf_open(o.dir);
    assert_int_equal(g.eos, 2);
    assert_int_equal(g.n_tokens, 512);
    free(g.image);
}

/* --- refusals --- */

static void refused(const struct synth_options *o, int code, const char *part) {
    struct error e = {0};
    struct synth_report report = {.files = 99};
    int r = synth_write(o, &report, &e);
    if (r != code || !strstr(e.text, part))
        fail_msg("gave %d: %s\n  expected %d: ...%s...", r, e.text, code, part);
    assert_int_equal(report.files, 99);
}

static void test_refusals(void **state) {
    (void)state;
    struct stat st;
    struct synth_options o = options_for(in_folder("refused"));
    o.config.vocab_size = 256;
    refused(&o, -EDOM, "a vocabulary of 256 has no room for the 282 tokens of a byte-level tokenizer");
    o = options_for(o.dir);
    o.dtype = TENSOR_I8;
    refused(&o, -EDOM, "weights can be written as F32, BF16 and F16, not I8");
    o = options_for(o.dir);
    o.config.is_attention[0] = true;
    o.format = SYNTH_GGUF;
    refused(&o, -EDOM, "layer 0: a GGUF file can only say that every fourth layer is attention");
    o = options_for(o.dir);
    o.weight_bits = 3;
    refused(&o, -EDOM, "weights of 3 bits: 4 and 8 are possible");
    o.weight_bits = 4;
    refused(&o, -EDOM, "a group size of 0: 32, 64 and 128 are possible");
    o.group_size = 128;
    refused(&o, -EDOM, "64 columns are no multiple of the group size 128");
    o.format = SYNTH_GGUF;
    refused(&o, -EDOM, "a group size of 128: a GGUF file (Q4_0, Q8_0) has groups of 32 columns");
    o.group_size = 32;
    o.config.hidden_size = 80;
    refused(&o, -EDOM, "80 columns are no multiple of the group size 32");
    o = options_for(o.dir);
    o.tokenizer_dir = "/no/such/tokenizer";
    refused(&o, -ENOENT, "/no/such/tokenizer/tokenizer.json: cannot open");
    /* A folder that was made for nothing is taken away again. */
    assert_int_equal(stat(o.dir, &st), -1);
    o = options_for("/proc/shardd/model");
    refused(&o, -ENOENT, "/proc/shardd/model: cannot make this folder");
}

static void test_folder_in_use(void **state) {
    (void)state;
    const char *dir = in_folder("used");
    struct synth_options o = options_for(dir);
    test_put_text(dir, "notes.txt", "mine");
    refused(&o, -EEXIST, "used: has 'notes.txt' in it: name a new or an empty folder");
}

static void test_no_room(void **state) {
    (void)state;
    struct synth_options o = options_for(in_folder("room"));
    o.config.vocab_size = 1048576;
    o.config.hidden_size = 1048576; /* 2 TB of embedding */
    refused(&o, -ENOSPC, " are free on this disk: fewer --layers, or another disk");
}

static void test_tokenizers_that_do_not_fit(void **state) {
    (void)state;
    const char *source = in_folder("bad");
    struct synth_options o = options_for(in_folder("badout"));
    o.tokenizer_dir = source;
    test_put_text(source, "tokenizer.json", "{\"model\":{\"vocab\":{\"a\":512}}}");
    refused(&o, -EINVAL,
            "token id 512 is beyond the model's vocabulary of 512: use a larger --vocab, or another "
            "tokenizer");
    assert_int_equal(access(o.dir, F_OK), -1);
    test_put_text(source, "tokenizer.json", "{\"model\":{\"vocab\":{\"a\":0}}}");
    refused(&o, -EINVAL, "has neither <|im_end|> nor <|endoftext|>: nothing would end a text");
    assert_int_equal(access(o.dir, F_OK), -1);
    test_put_text(source, "tokenizer.json", "{\"model\":");
    refused(&o, -EBADMSG, "tokenizer.json: line 1 column 10 (byte 9): the text ends where a value should be");
    assert_int_equal(access(o.dir, F_OK), -1);
}

static void test_configs(void **state) {
    (void)state;
    struct model_config m;
    assert_int_equal(synth_config("27b", &m), 0);
    assert_int_equal(model_config_parameters(&m) / 1000000, 26895);
    assert_int_equal(synth_config("70b", &m), -ENOENT);
    synth_config_set_layers(&m, 6);
    assert_int_equal(m.n_layers, 6);
    assert_true(m.is_attention[3]);
    assert_false(m.is_attention[5]);
    assert_false(m.is_attention[7]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_complete),
            cmocka_unit_test(test_same_seed_same_bytes),
            cmocka_unit_test(test_quantised),
            cmocka_unit_test(test_pinned_values),
            cmocka_unit_test(test_shards),
            cmocka_unit_test(test_dtypes),
            cmocka_unit_test(test_scale),
            cmocka_unit_test(test_gguf_is_the_same_model),
            cmocka_unit_test(test_gguf_tied_f16_without_mtp),
            cmocka_unit_test(test_tokenizer_covers_the_vocabulary),
            cmocka_unit_test(test_tokenizer_is_copied),
            cmocka_unit_test(test_refusals),
            cmocka_unit_test(test_folder_in_use),
            cmocka_unit_test(test_no_room),
            cmocka_unit_test(test_tokenizers_that_do_not_fit),
            cmocka_unit_test(test_configs),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
