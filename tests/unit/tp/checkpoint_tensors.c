/* checkpoint_tensors.c - resolving a model's tensors: what is missing, misshapen, of another type, or not
 * used. */
#include "tp/checkpoint/tensor_names.h"

#include "base/file.h"
#include "tp/synth/synth.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64], model[128], edited[128];
static struct model_config config;

static void remove_file(const char *dir, const char *name) {
    char path[PATH_MAX];
    file_path(dir, name, path, NULL);
    unlink(path);
}

static int remove_all(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "generation_config.json", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        remove_file(model, names[i]);
    unlink(edited);
    rmdir(model);
    return rmdir(folder);
}

/* One tiny model; each test edits the header of a copy. */
static int make_model(void **state) {
    (void)state;
    struct synth_options o = {.dir = model, .name = "tiny", .dtype = TENSOR_BF16};
    struct error e = {0};
    snprintf(folder, sizeof(folder), "/tmp/shardd-tensors-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(model, sizeof(model), "%s/tiny", folder);
    snprintf(edited, sizeof(edited), "%s/edited.safetensors", folder);
    synth_config("tiny", &o.config);
    if (synth_write(&o, NULL, &e) < 0 || model_config_load(model, &config, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    return 0;
}

/* A copy of the model's file with the first `from` of its header turned into `to`, which is as long. */
static struct checkpoint *open_edited(const char *from, const char *to) {
    char path[PATH_MAX], *image = NULL;
    size_t bytes = 0;
    struct checkpoint *c = NULL;
    struct error e = {0};
    assert_int_equal(file_path(model, "model.safetensors", path, &e), 0);
    assert_int_equal(file_read(path, MIB(64), &image, &bytes, &e), 0);
    char *at = memmem(image, bytes, from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    assert_int_equal(file_replace(edited, image, bytes, 0644, &e), 0);
    free(image);
    if (checkpoint_open_file(edited, &c, &e) < 0)
        fail_msg("%s", e.text);
    return c;
}

static void refused_with(
        const struct model_config *m, const char *from, const char *to, int code, const char *sentence) {
    struct checkpoint *c = open_edited(from, to);
    struct model_tensors *t = NULL;
    struct error e = {0};
    int r = model_tensors_resolve(c, m, &t, &e);
    assert_null(t);
    assert_string_equal(e.text, sentence);
    assert_int_equal(r, code);
    checkpoint_free(c);
}

static void refused(const char *from, const char *to, int code, const char *sentence) {
    refused_with(&config, from, to, code, sentence);
}

static struct model_tensors *resolved(const struct checkpoint *c, const struct model_config *m) {
    struct model_tensors *t = NULL;
    struct error e = {0};
    if (model_tensors_resolve(c, m, &t, &e) < 0)
        fail_msg("%s", e.text);
    return t;
}

static void test_missing(void **state) {
    (void)state;
    refused("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.up_prej.weight", -ENOENT,
            "model.layers.2.mlp.up_proj.weight: this tensor is not in the checkpoint");
    refused("model.layers.3.self_attn.k_norm.weight", "model.layers.3.self_attn.x_norm.weight", -ENOENT,
            "model.layers.3.self_attn.k_norm.weight: this tensor is not in the checkpoint");
    refused("model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.B_log", -ENOENT,
            "model.layers.0.linear_attn.A_log: this tensor is not in the checkpoint");
    refused("\"model.norm.weight", "\"model.morn.weight", -ENOENT,
            "model.norm.weight: this tensor is not in the checkpoint");
    refused("\"model.embed_tokens", "\"model.embad_tokens", -ENOENT,
            "model.language_model.embed_tokens.weight (or model.embed_tokens.weight): this tensor is not "
            "in the checkpoint: is it a Qwen3.5 language model?");
    refused("lm_head.weight", "lm_haed.weight", -ENOENT,
            "lm_head.weight: this tensor is not in the checkpoint, and tie_word_embeddings in config.json "
            "(outside text_config) is not true");
}

static void test_shapes(void **state) {
    (void)state;
    struct model_config m = config;
    m.intermediate_size = 520;
    refused_with(&m, "F32", "F32", -EINVAL,
            "edited.safetensors: model.layers.0.mlp.gate_proj.weight: expected [520, 256], found [512, 256]");
    m = config;
    m.gdn_v_heads = 24;
    refused_with(&m, "F32", "F32", -EINVAL,
            "edited.safetensors: model.layers.0.linear_attn.in_proj_qkv.weight: expected [1280, 256], "
            "found [1024, 256]");
    m = config;
    m.vocab_size = 4096;
    refused_with(&m, "F32", "F32", -EINVAL,
            "edited.safetensors: model.embed_tokens.weight: expected [4096, 256], found [2048, 256]");
    /* The same bytes in another shape. */
    refused("down_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[256,512]",
            "down_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[512,256]", -EINVAL,
            "edited.safetensors: model.layers.0.mlp.down_proj.weight: expected [256, 512], found [512, 256]");
}

static void test_dtypes(void **state) {
    (void)state;
    refused("k_proj.weight\":{\"dtype\":\"BF16\"", "k_proj.weight\":{\"dtype\": \"I16\"", -ENOTSUP,
            "edited.safetensors: model.layers.3.self_attn.k_proj.weight: dtype I16 is not supported here: "
            "F32, BF16 and F16 are");
    struct checkpoint *c =
            open_edited("k_proj.weight\":{\"dtype\":\"BF16\"", "k_proj.weight\":{\"dtype\": \"F16\"");
    struct model_tensors *t = resolved(c, &config);
    assert_int_equal(t->layers[3].attention.k->dtype, TENSOR_F16);
    model_tensors_free(t);
    checkpoint_free(c);
}

static void test_conv_in_two_dimensions(void **state) {
    (void)state;
    struct checkpoint *c = open_edited("[1024,1,4]", "[1024,  4]");
    struct model_tensors *t = resolved(c, &config);
    assert_int_equal(t->layers[0].gdn.conv->n_dims, 2);
    assert_int_equal(t->layers[1].gdn.conv->n_dims, 3);
    model_tensors_free(t);
    checkpoint_free(c);
    refused("[1024,1,4]", "[1024,4,1]", -EINVAL,
            "edited.safetensors: model.layers.0.linear_attn.conv1d.weight: expected [1024, 4], found "
            "[1024, 4, 1]");
}

static void test_unaligned(void **state) {
    (void)state;
    /* A header that is longer by one space moves all data by one byte. */
    char path[PATH_MAX], *image = NULL;
    size_t bytes = 0;
    struct checkpoint *c = NULL;
    struct model_tensors *t = NULL;
    struct error e = {0};
    file_path(model, "model.safetensors", path, &e);
    assert_int_equal(file_read(path, MIB(64), &image, &bytes, &e), 0);
    uint64_t header;
    memcpy(&header, image, 8);
    char *moved = malloc(bytes + 1);
    assert_non_null(moved);
    memcpy(moved, image, 8 + header);
    moved[8 + header] = ' ';
    memcpy(moved + 8 + header + 1, image + 8 + header, bytes - 8 - header);
    header++;
    memcpy(moved, &header, 8);
    assert_int_equal(file_replace(edited, moved, bytes + 1, 0644, &e), 0);
    free(image);
    free(moved);
    assert_int_equal(checkpoint_open_file(edited, &c, &e), 0); /* the format allows it */
    assert_int_equal(model_tensors_resolve(c, &config, &t, &e), -ENOTSUP);
    assert_string_equal(e.text,
            "edited.safetensors: model.embed_tokens.weight: its data are not aligned for BF16; save the "
            "checkpoint again with the safetensors library");
    checkpoint_free(c);
}

static void test_tied(void **state) {
    (void)state;
    struct model_config m = config;
    m.tie_word_embeddings = true;
    /* Without a head in the file it is the embedding; with one, that is used, whatever the configuration says. */
    struct checkpoint *c = open_edited("lm_head.weight", "lm_haed.weight");
    struct model_tensors *t = resolved(c, &m);
    assert_true(t->tied);
    assert_ptr_equal(t->lm_head, t->embed);
    model_tensors_free(t);
    checkpoint_free(c);
    c = open_edited("F32", "F32");
    t = resolved(c, &m);
    assert_false(t->tied);
    assert_string_equal(t->lm_head->name, "lm_head.weight");
    assert_int_equal(t->n_ignored, 0);
    model_tensors_free(t);
    checkpoint_free(c);
}

static void test_mtp(void **state) {
    (void)state;
    struct checkpoint *c = open_edited("F32", "F32");
    struct model_tensors *t = resolved(c, &config);
    assert_true(t->has_mtp);
    assert_non_null(t->mtp.layer.attention.q);
    assert_true(t->mtp_bytes > 0);
    assert_int_equal(t->n_ignored, 0);
    model_tensors_free(t);
    /* Announced by nobody: listed as not used. */
    struct model_config m = config;
    m.mtp_layers = 0;
    t = resolved(c, &m);
    assert_false(t->has_mtp);
    assert_null(t->mtp.fc);
    assert_int_equal(t->n_ignored, 15);
    assert_int_equal(t->mtp_bytes, 0);
    model_tensors_free(t);
    checkpoint_free(c);
    refused("mtp.norm.weight", "mtp.morn.weight", -ENOENT,
            "mtp.norm.weight: this tensor is not in the checkpoint");
}

static void test_others(void **state) {
    (void)state;
    struct model_config m = config;
    m.mtp_layers = 0;
    /* mtp.pre_fc_norm_hidden.weight becomes something of vision, with as many letters. */
    struct checkpoint *c = open_edited("mtp.pre_fc_norm_hidden.weight", "model.visual.pos_embed.weight");
    struct model_tensors *t = resolved(c, &m);
    assert_int_equal(t->n_vision, 1);
    assert_int_equal(t->vision_bytes, 512);
    assert_int_equal(t->n_ignored, 14);
    assert_int_equal(t->n_used + t->n_vision + t->n_ignored, checkpoint_count(c));
    model_tensors_free(t);
    checkpoint_free(c);
    assert_null(model_tensors_free(NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_missing),
            cmocka_unit_test(test_shapes),
            cmocka_unit_test(test_dtypes),
            cmocka_unit_test(test_conv_in_two_dimensions),
            cmocka_unit_test(test_unaligned),
            cmocka_unit_test(test_tied),
            cmocka_unit_test(test_mtp),
            cmocka_unit_test(test_others),
    };
    return cmocka_run_group_tests(tests, make_model, remove_all);
}
