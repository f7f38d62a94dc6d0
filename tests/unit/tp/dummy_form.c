/* Dummy weights take the form that config.json names: the same bytes as the checkpoint that it belongs to, module by
 * module; and what the caller wants wins. */
#include "tp/load/dummy_form.h"
#include "tp/synth/synth.h"
#include "tp/worker/rank.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char int4_and_head[] =
        "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\",\n"
        " \"config_groups\": {\n"
        "  \"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"type\": \"int\",\n"
        "    \"strategy\": \"group\", \"group_size\": 64, \"symmetric\": true}},\n"
        "  \"group_1\": {\"targets\": [\"re:.*lm_head$\"], \"weights\": {\"num_bits\": 8, \"type\": \"int\",\n"
        "    \"strategy\": \"group\", \"group_size\": 128, \"symmetric\": true}}},\n"
        " \"ignore\": [\"model.layers.1.mlp.down_proj\", \"re:.*layers.2.linear_attn.in_proj_qkv\"]}}";

static struct quant_config *parse(const char *text) {
    struct quant_config *c = NULL;
    struct error e = {0};
    if (quant_config_parse(text, strlen(text), "config.json", &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_non_null(c);
    return c;
}

static void expect(const struct dummy_form *form, const char *linear, int bits, uint32_t group) {
    struct quant_matrix q = {0};
    struct error e = {0};
    bool quantised = false;
    if (dummy_form_of(form, linear, 512, &q, &quantised, &e) < 0)
        fail_msg("%s: %s", linear, e.text);
    if (quantised != (bits != 16))
        fail_msg("%s: quantised is %d", linear, quantised);
    if (!quantised)
        return;
    assert_int_equal(q.format, bits == 4 ? QUANT_INT4 : QUANT_INT8);
    assert_int_equal(q.group, group);
}

static void test_modules_decide(void **state) {
    struct quant_config *c = parse(int4_and_head);
    const struct dummy_form form = {.config = c};
    (void)state;
    expect(&form, "layers.0.mlp.gate_up", 4, 64);
    expect(&form, "layers.0.mlp.down_proj", 4, 64);
    expect(&form, "layers.1.mlp.down_proj", 16, 0);
    expect(&form, "layers.2.linear_attn.in_proj", 16, 0);
    expect(&form, "layers.3.self_attn.qkv", 4, 64);
    expect(&form, "lm_head", 8, 128);
    quant_config_free(c);
}

static void test_what_is_asked_for_wins(void **state) {
    const struct quant_matrix int8 = {.format = QUANT_INT8, .group = 1024, .label = "int8"};
    struct quant_config *c = parse(int4_and_head);
    (void)state;
    expect(&(struct dummy_form){.config = c, .layers = &int8}, "layers.0.mlp.gate_up", 8, 512);
    expect(&(struct dummy_form){.config = c, .layers = &int8}, "lm_head", 8, 512);
    expect(&(struct dummy_form){.config = c, .head = &dummy_dense}, "lm_head", 16, 0);
    expect(&(struct dummy_form){.config = c, .head = &dummy_dense}, "layers.0.mlp.gate_up", 4, 64);
    expect(&(struct dummy_form){.config = c, .layers = &dummy_dense}, "layers.0.mlp.gate_up", 16, 0);
    expect(&(struct dummy_form){0}, "layers.0.mlp.gate_up", 16, 0);
    quant_config_free(c);
}

static void remove_folder(const char *dir) {
    static const char *const names[] = {"model.safetensors", "config.json", "generation_config.json",
            "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

/* Bytes of the linears of a folder that synth wrote, with its weights or without them. */
static uint64_t linear_bytes(bool config_only) {
    char dir[] = "/tmp/shardd-dummy-XXXXXX";
    struct synth_options o = {.dir = dir,
            .name = "tiny",
            .dtype = TENSOR_BF16,
            .weight_bits = 4,
            .head_bits = 8,
            .group_size = 64,
            .config_only = config_only};
    struct rank_options options = {
            .model_dir = dir, .tp = 1, .threads = 1, .dummy = config_only, .max_num_seqs = 1};
    struct rank *rank = NULL;
    struct error e = {0};
    assert_int_equal(synth_config("tiny", &o.config), 0);
    assert_non_null(mkdtemp(dir));
    if (synth_write(&o, NULL, &e) < 0 || rank_create(&options, &rank, &e) < 0)
        fail_msg("%s", e.text);
    const uint64_t bytes = rank->weights.linear_bytes;
    rank_free(rank);
    remove_folder(dir);
    return bytes;
}

static void test_as_many_bytes_as_the_checkpoint(void **state) {
    (void)state;
    const uint64_t bytes = linear_bytes(false);
    assert_true(bytes > 0);
    assert_int_equal(linear_bytes(true), bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_modules_decide),
            cmocka_unit_test(test_what_is_asked_for_wins),
            cmocka_unit_test(test_as_many_bytes_as_the_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
