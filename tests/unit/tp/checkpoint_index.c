/* checkpoint_index.c - folders whose index names what is not there, and files with tensors of dtypes that nobody reads:
 * it matters only to who needs it. */
#include "checkpoint_test.h"

static char folder[TEST_FOLDER_SIZE];
static const char *const models[] = {"tp8", "small"}; /* model.language_model. and model. */

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

static void base_path(const char *model, char path[PATH_MAX]) {
    snprintf(path, PATH_MAX, "%s/golden/models/%s", TESTS_DIR, model);
}

/* The model in one shard, without the tensors whose names have `without` in them (NULL: all), and an index that names
 * all of them there, and what `more` says besides. */
static void make_model(const char *model, const char *without, const char *more) {
    char path[PATH_MAX], *index = NULL;
    size_t bytes = 0;
    struct checkpoint *c = NULL;
    struct error e = {0};
    base_path(model, path);
    test_folder_empty(folder);
    test_copy(path, folder, "config.json");
    if (checkpoint_open(path, &c, &e) < 0)
        fail_msg("%s", e.text);
    const size_t n = checkpoint_count(c);
    struct test_piece *pieces = test_pieces(c, 0);
    FILE *out = open_memstream(&index, &bytes);
    assert_non_null(out);
    fputs("{\"weight_map\":{", out);
    for (size_t i = 0; i < n; i++) {
        const bool leave = without && strstr(pieces[i].name, without);
        fprintf(out, "\"%s\":\"%s.safetensors\",", pieces[i].name, leave ? "lost" : "there");
        if (leave)
            pieces[i].name[0] = '\0';
    }
    fprintf(out, "%s\"x.y\":\"there.safetensors\"}}", more);
    fclose(out);
    test_write_file(folder, "there.safetensors", pieces, n);
    test_put_text(folder, "model.safetensors.index.json", index);
    free(pieces);
    free(index);
    checkpoint_free(c);
}

static void test_unneeded_are_not_missed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++) {
        char path[PATH_MAX];
        base_path(models[i], path);
        struct test_model whole = test_model_load(path);
        make_model(models[i], NULL,
                "\"model.visual.blocks.0.attn.qkv.weight\":\"vision.safetensors\","
                "\"model.visual.merger.norm.weight\":\"there.safetensors\",\"rotary.inv_freq\":\"old.safetensors\",");
        struct test_model l = test_model_load(folder);
        assert_int_equal(l.t->n_used, whole.t->n_used);
        assert_int_equal(l.t->bytes, whole.t->bytes);
        assert_int_equal(l.t->has_mtp, whole.t->has_mtp);
        assert_int_equal(checkpoint_files(l.c), 1);
        test_model_done(&l);
        test_model_done(&whole);
    }
}

/* Required, optional where it is there, and part of something: each is named with its shard. */
static void test_needed_are(void **state) {
    (void)state;
    static const char *const lost =
            "lost.safetensors: this shard is missing: model.safetensors.index.json names it for ";
    static const char *const parts[] = {
            "mlp.up_proj.weight", "embed_tokens", "layers.1.input_layernorm", "lm_head"};
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++)
        for (size_t k = 0; k < sizeof(parts) / sizeof(*parts); k++) {
            make_model(models[i], parts[k], "");
            test_model_refused(folder, -ENOENT, lost);
            test_model_refused(folder, -ENOENT, parts[k]);
        }
    make_model("tp8", "mtp.", "");
    test_model_refused(folder, -ENOENT, lost);
    /* A zero point that a quantised matrix may have or not: without it the matrix would be another. */
    make_model("tp8", NULL,
            "\"model.language_model.layers.0.mlp.up_proj.weight_zero_point\":\"lost.safetensors\",");
    test_model_refused(folder, -ENOENT, "up_proj.weight_zero_point; fetch it again");
    make_model("tp8", NULL, "\"model.language_model.layers.0.mlp.up_proj.g_idx\":\"there.safetensors\",");
    test_model_refused(folder, -ENOENT,
            "there.safetensors: model.language_model.layers.0.mlp.up_proj.g_idx: the index says it is here, but it is "
            "not");
}

/* A head that the index names and that is not there is no reason to take the embedding. */
static void test_tied_with_a_lost_head(void **state) {
    (void)state;
    size_t bytes = 0;
    make_model("tp8", "lm_head", "");
    char *old = test_get(folder, "config.json", &bytes),
         *text = test_changed(old, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    test_put_text(folder, "config.json", text);
    test_model_refused(folder, -ENOENT, "names it for lm_head.weight; fetch it again");
    free(old);
    free(text);
}

/* Announced by nobody but the index: not missed. */
static void test_mtp_that_nobody_wants(void **state) {
    (void)state;
    size_t bytes = 0;
    make_model("tp8", "mtp.", "");
    char *old = test_get(folder, "config.json", &bytes),
         *text = test_changed(old, "\"mtp_num_hidden_layers\": 1", "\"mtp_num_hidden_layers\": 0");
    test_put_text(folder, "config.json", text);
    struct test_model l = test_model_load(folder);
    assert_false(l.t->has_mtp);
    test_model_done(&l);
    free(old);
    free(text);
}

/* The model with one more tensor of a dtype that is not read, or with a needed one made such. */
static void make_odd(const char *model, const char *dtype, const char *name, uint64_t bytes) {
    static const uint8_t zeros[64];
    char path[PATH_MAX];
    struct checkpoint *c = NULL;
    size_t n_bytes = 0;
    base_path(model, path);
    test_folder_empty(folder);
    test_copy(path, folder, "config.json");
    assert_int_equal(checkpoint_open(path, &c, NULL), 0);
    const size_t n = checkpoint_count(c);
    struct test_piece *pieces = test_pieces(c, 1), *needed = NULL;
    for (size_t i = 0; i < n; i++)
        needed = strcmp(pieces[i].name, name) == 0 ? &pieces[i] : needed;
    struct test_piece *p = needed ? needed : &pieces[n];
    *p = (struct test_piece){.dtype = TENSOR_U8, .n_dims = 1, .dims = {bytes}, .data = zeros};
    snprintf(p->name, sizeof(p->name), "%s", name);
    test_write_file(folder, "model.safetensors", pieces, n + 1);
    /* What the file calls it; spaces keep the data aligned. */
    char *image = test_get(folder, "model.safetensors", &n_bytes), from[256], to[256];
    snprintf(from, sizeof(from), "\"%s\":{\"dtype\":\"U8\",\"shape\":[%llu],", name,
            (unsigned long long)bytes);
    const size_t more = strlen(dtype) - strlen("U8");
    snprintf(to, sizeof(to), "\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu],%*s", name, dtype,
            (unsigned long long)bytes, (int)((8 - more % 8) % 8), "");
    char *at = memmem(image, n_bytes, from, strlen(from));
    assert_non_null(at);
    uint64_t length;
    memcpy(&length, image, 8);
    const size_t tail = (size_t)(at - image) + strlen(from), grown = strlen(to) - strlen(from);
    char *copy = malloc(n_bytes + grown);
    assert_non_null(copy);
    memcpy(copy, image, (size_t)(at - image));
    memcpy(copy + (at - image), to, strlen(to));
    memcpy(copy + (at - image) + strlen(to), image + tail, n_bytes - tail);
    length += grown;
    memcpy(copy, &length, 8);
    test_put(folder, "model.safetensors", copy, n_bytes + grown);
    free(copy);
    free(image);
    free(pieces);
    checkpoint_free(c);
}

static void test_dtypes_of_unread_tensors(void **state) {
    (void)state;
    static const struct {
        const char *dtype;
        uint64_t n, bytes;
    } odd[] = {{"F8_E8M0", 24, 24}, {"F8_E5M2", 24, 24}, {"BOOL", 24, 24}, {"WHATEVER", 7, 7}, {"U64", 0, 0},
            {"C64", 0, 0}, {"F4", 0, 0}, {"F6_E3M2", 0, 0}};
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++)
        for (size_t k = 0; k < sizeof(odd) / sizeof(*odd); k++) {
            char path[PATH_MAX];
            base_path(models[i], path);
            struct test_model whole = test_model_load(path);
            make_odd(models[i], odd[k].dtype, k % 2 ? "model.visual.x" : "something.else", odd[k].bytes);
            struct test_model l = test_model_load(folder);
            assert_int_equal(l.t->n_used, whole.t->n_used);
            assert_int_equal(l.t->n_vision + l.t->n_ignored, whole.t->n_vision + whole.t->n_ignored + 1);
            test_model_done(&l);
            test_model_done(&whole);
        }
}

static void test_dtypes_of_needed_tensors(void **state) {
    (void)state;
    make_odd("tp8", "F8_E8M0", "model.language_model.norm.weight", 64);
    test_model_refused(folder, -ENOTSUP,
            "model.language_model.norm.weight: dtype F8_E8M0 is not supported here: F32, BF16 and F16 are");
    make_odd("small", "WHATEVER", "model.norm.weight", 64);
    test_model_refused(folder, -EINVAL, "model.norm.weight: expected [128], found [64]");
    make_odd("tp8", "WHATEVER", "model.language_model.norm.weight", 64);
    test_model_refused(folder, -ENOTSUP, "dtype WHATEVER is not supported here");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_unneeded_are_not_missed),
            cmocka_unit_test(test_needed_are),
            cmocka_unit_test(test_tied_with_a_lost_head),
            cmocka_unit_test(test_mtp_that_nobody_wants),
            cmocka_unit_test(test_dtypes_of_unread_tensors),
            cmocka_unit_test(test_dtypes_of_needed_tensors),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
