/* checkpoint_gguf_keys.c - what other converters write: keys that are missing or given per layer, other names of
 * tensors, tensors beside the model's, sets of files that are not whole. All of it is the model of q4_0.gguf. */
#include "checkpoint_test.h"
#include "tp/checkpoint/gguf_model.h"

#define GOLDEN  TESTS_DIR "/golden/gguf/"
#define LAYERS  4u
#define KEY(k)  "qwen35." k
#define CHANGES 8u

static char folder[TEST_FOLDER_SIZE], path[PATH_MAX];

static int make_folder(void **state) {
    (void)state;
    test_folder_make(folder);
    snprintf(path, sizeof(path), "%s/m.gguf", folder);
    return 0;
}
static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

/* --- a GGUF file written again, changed --- */

struct changes {
    const char *without[CHANGES];     /* keys */
    const char *renamed[2];           /* tensors whose names have [0] in them get [1] instead */
    const char *list;                 /* a key, given per layer */
    uint32_t list_values[LAYERS + 1]; /* of the layers and the block for prediction */
    const char *flag;                 /* a key that is false */
    bool more;                        /* a vision tensor of a type that nobody knows */
    const char *type_of;              /* a tensor that gets such a type */
};

struct out {
    char *data;
    size_t bytes;
    FILE *file;
};

static void put_number(struct out *o, uint64_t value, size_t bytes) {
    fwrite(&value, 1, bytes, o->file);
}
static void put_string(struct out *o, const char *text, size_t bytes) {
    put_number(o, bytes, 8);
    fwrite(text, 1, bytes, o->file);
}

static size_t value_bytes(const struct gguf_value *v) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    const enum gguf_value_type type = v->type == GGUF_ARRAY ? v->element : v->type;
    const uint64_t n = v->type == GGUF_ARRAY ? v->n : 1;
    if (type != GGUF_STRING)
        return n * sizes[type];
    const unsigned char *at = v->data;
    for (uint64_t i = 0; i < n; i++)
        gguf_next_string(&at);
    return (size_t)(at - v->data);
}

static bool is_without(const struct changes *c, const struct gguf_value *v) {
    for (size_t i = 0; i < CHANGES && c->without[i]; i++)
        if (gguf_string_is(v->key, c->without[i]))
            return true;
    return c->list && gguf_string_is(v->key, c->list);
}

static void put_values(struct out *o, const struct gguf *g, const struct changes *c) {
    for (size_t i = 0; i < g->n_values; i++) {
        const struct gguf_value *v = &g->values[i];
        if (is_without(c, v))
            continue;
        put_string(o, v->key.data, v->key.bytes);
        put_number(o, v->type, 4);
        if (v->type == GGUF_ARRAY) {
            put_number(o, v->element, 4);
            put_number(o, v->n, 8);
        }
        fwrite(v->data, 1, value_bytes(v), o->file);
    }
    if (c->list) {
        put_string(o, c->list, strlen(c->list));
        put_number(o, GGUF_ARRAY, 4);
        put_number(o, GGUF_I32, 4);
        put_number(o, LAYERS + 1, 8);
        for (uint32_t i = 0; i <= LAYERS; i++)
            put_number(o, c->list_values[i], 4);
    }
    if (c->flag) {
        put_string(o, c->flag, strlen(c->flag));
        put_number(o, GGUF_BOOL, 4);
        put_number(o, 0, 1);
    }
}

static int by_data(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static void put_info(struct out *o, const struct gguf_tensor *t, uint64_t offset, const struct changes *c) {
    char name[256];
    snprintf(name, sizeof(name), "%.*s", (int)t->name.bytes, t->name.data);
    const char *at = c->renamed[0] ? strstr(name, c->renamed[0]) : NULL;
    char *changed = at ? test_changed(name, c->renamed[0], c->renamed[1]) : strdup(name);
    put_string(o, changed, strlen(changed));
    free(changed);
    put_number(o, t->n_dims, 4);
    for (uint32_t i = 0; i < t->n_dims; i++)
        put_number(o, t->dims[i], 8);
    put_number(o, c->type_of && strcmp(c->type_of, name) == 0 ? 16 : t->type, 4);
    put_number(o, offset, 8);
}

/* q4_0.gguf with these changes, as m.gguf. */
static void rewrite(const struct changes *c) {
    struct file_map map;
    struct gguf g;
    struct out o = {0};
    struct error e = {0};
    if (file_map(GOLDEN "q4_0.gguf", &map, &e) < 0 ||
            gguf_parse(map.data, map.bytes, "q4_0.gguf", &g, &e) < 0)
        fail_msg("%s", e.text);
    size_t n_values = g.n_values + (c->list != NULL) + (c->flag != NULL);
    for (size_t i = 0; i < g.n_values; i++)
        n_values -= is_without(c, &g.values[i]);
    o.file = open_memstream(&o.data, &o.bytes);
    assert_non_null(o.file);
    fwrite("GGUF\3\0\0\0", 1, 8, o.file);
    put_number(&o, g.n_tensors + c->more, 8);
    put_number(&o, n_values, 8);
    put_values(&o, &g, c);
    qsort(g.tensors, g.n_tensors, sizeof(*g.tensors), by_data);
    const char *begin = g.tensors[0].data, *end = (const char *)map.data + map.bytes;
    for (size_t i = 0; i < g.n_tensors; i++)
        put_info(&o, &g.tensors[i], (uint64_t)((const char *)g.tensors[i].data - begin), c);
    uint64_t bytes = (uint64_t)(end - begin), whole = (bytes + g.alignment - 1) / g.alignment * g.alignment;
    if (c->more) {
        const struct gguf_tensor t = {
                .name = {"v.blk.0.attn_q.weight", 21}, .type = 77, .n_dims = 1, .dims = {999}};
        put_info(&o, &t, whole, &(struct changes){0});
    }
    while (ftell(o.file) % g.alignment)
        fputc(0, o.file);
    fwrite(begin, 1, bytes, o.file);
    for (uint64_t i = bytes; i < whole + (c->more ? 100 : 0); i++)
        fputc(0, o.file);
    fclose(o.file);
    test_put(folder, "m.gguf", o.data, o.bytes);
    free(o.data);
    gguf_done(&g);
    file_unmap(&map);
}

/* --- what comes of it --- */

static void same_tensor(const struct tensor *a, const struct tensor *b) {
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->dims[0], b->dims[0]);
    if (a->dtype != TENSOR_QUANTISED)
        assert_memory_equal(a->data, b->data, a->bytes);
}

/* The same model: sizes, which layers are what, and tensors of each kind. */
static void is_the_model(void) {
    struct test_model a = test_model_load(path), b = test_model_load(GOLDEN "q4_0.gguf");
    a.m.max_position_embeddings = b.m.max_position_embeddings;
    assert_memory_equal(&a.m, &b.m, sizeof(a.m));
    assert_int_equal(a.t->n_used, b.t->n_used);
    assert_int_equal(a.t->has_mtp, b.t->has_mtp);
    for (uint32_t i = 0; i < a.m.n_layers; i++) {
        const struct layer_tensors *x = &a.t->layers[i], *y = &b.t->layers[i];
        same_tensor(x->input_norm, y->input_norm);
        same_tensor(x->down, y->down);
        if (x->is_attention)
            same_tensor(x->attention.q, y->attention.q);
        else
            same_tensor(x->gdn.dt_bias, y->gdn.dt_bias);
    }
    test_model_done(&a);
    test_model_done(&b);
}

static void test_written_again(void **state) {
    (void)state;
    rewrite(&(struct changes){0});
    is_the_model();
}

/* Each difference alone, and all at once. */
static void test_as_ollama_exports(void **state) {
    (void)state;
    static const struct changes ways[] = {{.renamed = {"ssm_dt.bias", "ssm_dt"}},
            {.list = KEY("attention.head_count_kv"), .list_values = {0, 0, 0, 1, 1}}, {.more = true},
            {.without = {KEY("full_attention_interval")},
                    .list = KEY("attention.head_count_kv"),
                    .list_values = {0, 0, 0, 1, 1},
                    .more = true,
                    .renamed = {"ssm_dt.bias", "ssm_dt"}}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
        rewrite(&ways[i]);
        is_the_model();
    }
}

/* Keys that llama.cpp has a value for where they are missing, and lists where numbers were. */
static void test_keys_that_may_be_missing(void **state) {
    (void)state;
    static const struct changes ways[] = {{.without = {KEY("full_attention_interval")}},
            {.without = {KEY("vocab_size")}},
            {.without = {KEY("attention.value_length"), KEY("attention.key_length")}},
            {.list = KEY("attention.head_count"), .list_values = {0, 0, 0, 2, 2}},
            {.list = KEY("attention.head_count"), .list_values = {2, 2, 2, 2, 2}},
            {.list = KEY("feed_forward_length"), .list_values = {64, 64, 64, 64, 64}}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
        rewrite(&ways[i]);
        is_the_model();
    }
    struct model_config m;
    struct error e = {0};
    rewrite(&(struct changes){
            .without = {KEY("rope.dimension_count"), KEY("rope.freq_base"), KEY("attention.head_count_kv")}});
    assert_int_equal(model_config_load(path, &m, &e), 0);
    assert_int_equal(m.rotary_dim, 32); /* the whole head */
    assert_true(m.rope_theta == 10000);
    assert_int_equal(m.kv_heads, 2); /* as many as heads */
    /* Which layers are attention, where only the list of KV heads tells. */
    rewrite(&(struct changes){.without = {KEY("full_attention_interval")},
            .list = KEY("attention.head_count_kv"),
            .list_values = {1, 0, 1, 0, 1}});
    assert_int_equal(model_config_load(path, &m, &e), 0);
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_int_equal(m.is_attention[i], i % 2 == 0);
}

static void test_heads_that_do_not_follow(void **state) {
    (void)state;
    rewrite(&(struct changes){.without = {KEY("attention.key_length"), KEY("attention.value_length")},
            .list = KEY("attention.head_count"),
            .list_values = {65, 65, 65, 65, 65}});
    test_model_refused(path, -EINVAL,
            "m.gguf: qwen35.attention.key_length is missing, and embedding_length 64 is less than the 65 heads");
}

static void test_lists_that_contradict(void **state) {
    (void)state;
    rewrite(&(struct changes){.list = KEY("attention.head_count_kv"), .list_values = {1, 0, 1, 0, 1}});
    test_model_refused(path, -EINVAL,
            "m.gguf: qwen35.attention.head_count_kv: layer 3 must have a number of 1 or more, the same as all "
            "attention layers");
    rewrite(&(struct changes){.list = KEY("feed_forward_length"), .list_values = {64, 64, 32, 64, 64}});
    test_model_refused(path, -EINVAL,
            "m.gguf: qwen35.feed_forward_length: layer 2 must have a number of 1 or more, the same as all layers");
    rewrite(&(struct changes){.without = {KEY("ssm.state_size")}});
    test_model_refused(path, -ENOENT, "m.gguf: the key qwen35.ssm.state_size is missing");
}

static void test_needed_tensor_of_another_type(void **state) {
    (void)state;
    rewrite(&(struct changes){.type_of = "blk.3.attn_q.weight"});
    test_model_refused(path, -ENOTSUP, "m.gguf: blk.3.attn_q.weight: tensors of type IQ2_XXS are not read");
    rewrite(&(struct changes){.renamed = {"ssm_dt.bias", "ssm_d"}});
    test_model_refused(path, -ENOENT, "m.gguf: blk.0.ssm_dt.bias: this tensor is missing");
}

/* Heads as Hugging Face has them: nothing is put back. */
static void test_heads_that_were_not_moved(void **state) {
    (void)state;
    rewrite(&(struct changes){.flag = KEY("ssm.v_head_reordered")});
    struct test_model a = test_model_load(path), b = test_model_load(GOLDEN "q4_0.gguf");
    const float *x = a.t->layers[0].gdn.dt_bias->data, *y = b.t->layers[0].gdn.dt_bias->data;
    const uint32_t k = a.m.gdn_k_heads, ratio = a.m.gdn_v_heads / k;
    assert_true(ratio > 1);
    for (uint32_t head = 0; head < k; head++)
        for (uint32_t i = 0; i < ratio; i++)
            assert_true(x[i * k + head] == y[head * ratio + i]);
    test_model_done(&a);
    test_model_done(&b);
}

static void test_sets_that_are_not_whole(void **state) {
    (void)state;
    char part[PATH_MAX], missing[PATH_MAX + 64];
    test_folder_empty(folder);
    for (int lost = 1; lost <= 2; lost++) {
        char name[64];
        test_folder_empty(folder);
        snprintf(name, sizeof(name), "f32-0000%d-of-00002.gguf", 3 - lost);
        test_copy(TESTS_DIR "/golden/gguf", folder, name);
        snprintf(part, sizeof(part), "%s/%s", folder, name);
        snprintf(missing, sizeof(missing), "%s/f32-0000%d-of-00002.gguf: this file of a set of 2 is missing",
                folder, lost);
        test_model_refused(folder, -ENOENT, missing);
        test_model_refused(part, -ENOENT, missing);
    }
    test_folder_empty(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_written_again),
            cmocka_unit_test(test_as_ollama_exports),
            cmocka_unit_test(test_keys_that_may_be_missing),
            cmocka_unit_test(test_heads_that_do_not_follow),
            cmocka_unit_test(test_lists_that_contradict),
            cmocka_unit_test(test_needed_tensor_of_another_type),
            cmocka_unit_test(test_heads_that_were_not_moved),
            cmocka_unit_test(test_sets_that_are_not_whole),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
