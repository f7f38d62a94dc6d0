/* checkpoint_quant_config.c - quantization_config: what is read of each method, which modules its rules mean, and what
 * is refused. JSON is written with ' for ". */
#include "checkpoint_test.h"
#include "tp/checkpoint/quant_config.h"

static int parse(const char *text, struct quant_config **ret, struct error *e) {
    char *json = strdup(text);
    assert_non_null(json);
    for (char *p = json; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    int r = quant_config_parse(json, strlen(json), "config.json", ret, e);
    free(json);
    return r;
}

/* inside: what is between the braces of quantization_config. */
static int parse_inside(const char *inside, struct quant_config **ret, struct error *e) {
    char text[4096];
    assert_true((size_t)snprintf(text, sizeof(text), "{'quantization_config':{%s}}", inside) < sizeof(text));
    return parse(text, ret, e);
}

static struct quant_config *accepted(const char *inside) {
    struct quant_config *c = NULL;
    struct error e = {0};
    if (parse_inside(inside, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_non_null(c);
    return c;
}

static void refused(const char *inside, int code, const char *sentence) {
    struct quant_config *c = NULL;
    struct error e = {0};
    assert_int_equal(parse_inside(inside, &c, &e), code);
    assert_string_equal(e.text, sentence);
    assert_null(c);
}

static struct quant_scheme find(
        const struct quant_config *c, const char *module, const char *expected_excluded) {
    struct quant_scheme s = {.bits = 99};
    const char *excluded = "";
    struct error e = {0};
    if (quant_config_find(c, module, &s, &excluded, &e) < 0)
        fail_msg("%s", e.text);
    if (expected_excluded)
        assert_string_equal(excluded ? excluded : "NULL", expected_excluded);
    else
        assert_null(excluded);
    return s;
}

static void test_none(void **state) {
    static const char *const texts[] = {
            "{}", "{'quantization_config':null}", "{'text_config':{}}", "{'text_config':3}"};
    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct quant_config *c = (void *)1;
        struct error e = {0};
        assert_int_equal(parse(texts[i], &c, &e), 0);
        assert_null(c);
    }
}

static void test_gptq(void **state) {
    (void)state;
    /* As in the official checkpoint. */
    struct quant_config *c =
            accepted("'quant_method':'gptq','bits':4,'group_size':128,'sym':true,'desc_act':false,"
                     "'dynamic':{'lm_head':{},'-:.*attn.*':{},'+:.*\\\\.1\\\\..*':{'bits':8,"
                     "'group_size':-1,'desc_act':true},'-:.*mtp.*':{}}");
    assert_int_equal(quant_config_method(c), QUANT_METHOD_GPTQ);
    assert_false(quant_config_is_v2(c));
    find(c, "model.language_model.layers.3.self_attn.q_proj", ".*attn.*");
    find(c, "mtp.layers.0.mlp.up_proj", ".*mtp.*");
    struct quant_scheme s = find(c, "model.language_model.layers.0.mlp.up_proj", NULL);
    assert_true(s.bits == 4 && s.group == 128 && !s.order);
    s = find(c, "model.language_model.layers.1.mlp.up_proj", NULL);
    assert_true(s.bits == 8 && s.group == QUANT_GROUP_ROW && s.order);
    s = find(c, "lm_head", NULL);
    assert_true(s.bits == 4 && s.group == 128);
    quant_config_free(c);
    c = accepted(
            "'quant_method':'gptq','bits':8,'group_size':32,'desc_act':true,'checkpoint_format':'gptq_v2'");
    s = find(c, "x", NULL);
    assert_true(quant_config_is_v2(c) && s.bits == 8 && s.order);
    quant_config_free(c);
    c = accepted("'method':'gptq','format':'gptq_v2','bits':4");
    assert_true(quant_config_is_v2(c));
    assert_int_equal(find(c, "x", NULL).group, 0);
    quant_config_free(c);
}

static void test_gptq_refused(void **state) {
    (void)state;
    refused("'quant_method':'gptq'", -EINVAL, "config.json: quantization_config.bits is missing");
    refused("'quant_method':'gptq','bits':3", -ENOTSUP,
            "config.json: quantization_config.bits is 3: of gptq, 4 and 8 bits are read; use another "
            "checkpoint of this "
            "model");
    refused("'quant_method':'gptq','bits':'4'", -EINVAL,
            "config.json: quantization_config.bits: expected a whole number");
    refused("'quant_method':'gptq','bits':4,'group_size':0", -EINVAL,
            "config.json: quantization_config.group_size is 0, it must be -1 or 1 to 1048576");
    refused("'quant_method':'gptq','bits':4,'checkpoint_format':'marlin'", -ENOTSUP,
            "config.json: quantization_config.checkpoint_format 'marlin' is not read: gptq and gptq_v2 "
            "are; use another "
            "checkpoint of this model");
    refused("'quant_method':'gptq','bits':4,'pack_dtype':'int8'", -ENOTSUP,
            "config.json: quantization_config.pack_dtype 'int8' is not read: int32 is; use another "
            "checkpoint of this "
            "model");
    refused("'quant_method':'gptq','bits':4,'dynamic':[]", -EINVAL,
            "config.json: quantization_config.dynamic: expected an object");
    refused("'quant_method':'gptq','bits':4,'dynamic':{'x':4}", -EINVAL,
            "config.json: quantization_config.dynamic: 'x': expected an object");
    refused("'quant_method':'gptq','bits':4,'dynamic':{'x':{'bits':2}}", -ENOTSUP,
            "config.json: quantization_config.dynamic: bits is 2: of gptq, 4 and 8 bits are read; use "
            "another checkpoint "
            "of this model");
    refused("'quant_method':'gptq','bits':4,'dynamic':{'-:a(':{}}", -EINVAL,
            "config.json: quantization_config: 'a(' is not a regular expression: missing closing "
            "parenthesis at character 2");
}

static void test_awq(void **state) {
    (void)state;
    struct quant_config *c = accepted("'quant_method':'awq','bits':4,'group_size':128,'zero_point':true,"
                                      "'version':'GEMM','modules_to_not_convert':['layers.0.','visual']");
    assert_int_equal(quant_config_method(c), QUANT_METHOD_AWQ);
    find(c, "model.layers.0.mlp.up_proj", "layers.0.");
    struct quant_scheme s = find(c, "model.layers.10.mlp.up_proj", NULL);
    assert_true(s.bits == 4 && s.group == 128);
    quant_config_free(c);
    refused("'quant_method':'awq','bits':4,'version':'gemv'", -ENOTSUP,
            "config.json: quantization_config.version 'gemv' is not read: gemm is; use another checkpoint "
            "of this model");
    refused("'quant_method':'awq','bits':8", -ENOTSUP,
            "config.json: quantization_config.bits is 8: of awq, 4 bits are read; use another checkpoint "
            "of this model");
    refused("'quant_method':'awq','modules_to_not_convert':'visual'", -EINVAL,
            "config.json: quantization_config.modules_to_not_convert: expected a list");
    refused("'quant_method':'awq','modules_to_not_convert':[1]", -EINVAL,
            "config.json: quantization_config.modules_to_not_convert: expected a list of strings");
}

static void test_auto_round(void **state) {
    (void)state;
    struct quant_config *c = accepted(
            "'quant_method':'auto-round','packing_format':'auto_round:auto_gptq','bits':4,'group_size':128,'sym':true,"
            "'data_type':'int','extra_config':{'a.in_proj_a':{'bits':16,'data_type':'fp'},"
            "'.*down_proj':{'bits':8,'group_size':32}}");
    assert_true(quant_config_method(c) == QUANT_METHOD_GPTQ && !quant_config_is_v2(c));
    find(c, "a.in_proj_a", "a.in_proj_a");
    struct quant_scheme s = find(c, "a.up_proj", NULL);
    assert_true(s.bits == 4 && s.group == 128 && !s.order);
    s = find(c, "a.down_proj", NULL);
    assert_true(s.bits == 8 && s.group == 32);
    quant_config_free(c);
    c = accepted("'quant_method':'auto-round','packing_format':'auto_round:gptqmodel','bits':4");
    assert_true(quant_config_method(c) == QUANT_METHOD_GPTQ && quant_config_is_v2(c));
    quant_config_free(c);
    c = accepted("'quant_method':'auto-round','packing_format':'auto_round:auto_awq','bits':4");
    assert_int_equal(quant_config_method(c), QUANT_METHOD_AWQ);
    quant_config_free(c);
    refused("'quant_method':'auto-round','packing_format':'auto_round:fp8_static','bits':8", -ENOTSUP,
            "config.json: quantization_config.packing_format 'auto_round:fp8_static' is not read: "
            "auto_round:auto_gptq, auto_round:gptqmodel, auto_round and auto_round:auto_awq are; use another "
            "checkpoint of this model");
    refused("'quant_method':'auto-round','bits':4,'data_type':'mx_fp'", -ENOTSUP,
            "config.json: quantization_config.data_type 'mx_fp' is not read: int is; use another checkpoint of "
            "this model");
    refused("'quant_method':'auto-round','bits':4,'extra_config':{'x':3}", -EINVAL,
            "config.json: quantization_config.extra_config: 'x': expected an object");
}

static void test_fp8(void **state) {
    (void)state;
    struct quant_config *c =
            accepted("'quant_method':'fp8','activation_scheme':'dynamic','weight_block_size':[64,256],"
                     "'modules_to_not_convert':['lm_head','mtp.fc']");
    assert_int_equal(quant_config_method(c), QUANT_METHOD_FP8);
    find(c, "lm_head", "lm_head");
    struct quant_scheme s = find(c, "mtp.fcx", NULL);
    assert_true(s.bits == 8 && s.group == 0 && s.block_rows == 64 && s.block_columns == 256);
    quant_config_free(c);
    refused("'quant_method':'fp8','fmt':'e5m2'", -ENOTSUP,
            "config.json: quantization_config.fmt 'e5m2' is not read: e4m3 is; use another checkpoint of "
            "this model");
    refused("'quant_method':'fp8','weight_block_size':[128]", -EINVAL,
            "config.json: quantization_config.weight_block_size: expected a list of two sizes");
    refused("'quant_method':'fp8','weight_block_size':[0,128]", -EINVAL,
            "config.json: quantization_config.weight_block_size is [0, 128], sizes must be 1 to 1048576");
}

#define PACKED "'quant_method':'compressed-tensors','format':'pack-quantized',"

static void test_compressed(void **state) {
    (void)state;
    struct quant_config *c = accepted(
            PACKED "'ignore':['lm_head','re:.*visual.*'],'config_groups':{"
                   "'group_0':{'targets':['Linear'],'weights':{'num_bits':4,'type':'int','strategy':'group',"
                   "'group_size':32,'symmetric':false,'actorder':'static'}},"
                   "'group_1':{'targets':['re:.*down_proj'],'weights':{'num_bits':8,'type':'int',"
                   "'strategy':'channel'}},"
                   "'group_2':{'targets':['a.down_proj'],'weights':{'num_bits':8,'strategy':'group',"
                   "'group_size':64,'actorder':'group'}},"
                   "'group_3':{'targets':['Attention'],'weights':null}}");
    assert_int_equal(quant_config_method(c), QUANT_METHOD_COMPRESSED_TENSORS);
    find(c, "lm_head", "lm_head");
    find(c, "model.visual.x", ".*visual.*");
    struct quant_scheme s = find(c, "a.up_proj", NULL);
    assert_true(s.bits == 4 && s.group == 32 && !s.order);
    s = find(c, "b.down_proj", NULL);
    assert_true(s.bits == 8 && s.group == QUANT_GROUP_ROW && !s.order);
    s = find(c, "a.down_proj", NULL);
    assert_true(s.bits == 8 && s.group == 64 && s.order);
    quant_config_free(c);
    c = accepted(
            "'quant_method':'compressed-tensors','format':'float-quantized','config_groups':{'g':{'targets':["
            "'Linear'],'weights':{'num_bits':8,'type':'float','strategy':'block','block_structure':[128,64]}}}");
    s = find(c, "x", NULL);
    assert_true(s.bits == 8 && s.block_rows == 128 && s.block_columns == 64);
    quant_config_free(c);
}

static void test_compressed_refused(void **state) {
    (void)state;
    refused("'quant_method':'compressed-tensors','format':'nvfp4-pack-quantized'", -ENOTSUP,
            "config.json: quantization_config.format 'nvfp4-pack-quantized' is not read: pack-quantized, "
            "int-quantized, float-quantized and mixed-precision are; use another checkpoint of this model");
    refused(PACKED "'config_groups':{'g':{'targets':['Linear'],'weights':{'num_bits':2}}}", -ENOTSUP,
            "config.json: quantization_config.config_groups: weights.num_bits is 2: of "
            "compressed-tensors, 4 and 8 bits "
            "are read; use another checkpoint of this model");
    refused(PACKED "'config_groups':{'g':{'targets':['Linear'],'weights':{'num_bits':4,'type':'float'}}}",
            -ENOTSUP,
            "config.json: quantization_config.config_groups: weights.num_bits is 4: of "
            "compressed-tensors, 8 bits are "
            "read; use another checkpoint of this model");
    refused(PACKED "'config_groups':{'g':{'weights':{'num_bits':4,'strategy':'tensor_group'}}}", -ENOTSUP,
            "config.json: quantization_config.config_groups: weights.strategy 'tensor_group' is not read: "
            "group, channel, "
            "tensor and block are; use another checkpoint of this model");
    refused(PACKED "'config_groups':{'g':3}", -EINVAL,
            "config.json: quantization_config.config_groups: expected objects");
    refused(PACKED "'sparsity_config':{'format':'sparse-24-bitmask'}", -ENOTSUP,
            "config.json: quantization_config.sparsity_config.format 'sparse-24-bitmask' is not read: "
            "dense is; use another checkpoint of this model");
    refused(PACKED "'transform_config':{'config_groups':{'R1':{}}}", -ENOTSUP,
            "config.json: quantization_config.transform_config: rotations of activations are not applied; "
            "use another checkpoint of this model");
}

static void test_methods(void **state) {
    struct quant_config *c = NULL;
    struct error e = {0};
    (void)state;
    refused("'bits':4", -EINVAL,
            "config.json: quantization_config.quant_method is missing: gptq, awq, compressed-tensors, "
            "fp8 and auto-round are read");
    refused("'quant_method':'bitsandbytes','load_in_4bit':true", -ENOTSUP,
            "config.json: quantization_config.quant_method 'bitsandbytes' is not read: gptq, awq, "
            "compressed-tensors, "
            "fp8 and auto-round are read; use another checkpoint of this model");
    assert_int_equal(parse("{'quantization_config':4}", &c, &e), -EINVAL);
    assert_string_equal(e.text, "config.json: quantization_config: expected an object");
    assert_int_equal(parse("{'quantization_config':{}", &c, &e), -EBADMSG);
    /* The older key, and inside a multimodal file's text_config. */
    assert_int_equal(parse("{'compression_config':{'format':'pack-quantized'}}", &c, &e), 0);
    assert_int_equal(quant_config_method(c), QUANT_METHOD_COMPRESSED_TENSORS);
    c = quant_config_free(c);
    assert_int_equal(
            parse("{'text_config':{'quantization_config':{'quant_method':'awq','bits':4}}}", &c, &e), 0);
    assert_int_equal(quant_config_method(c), QUANT_METHOD_AWQ);
    quant_config_free(c);
}

/* A pattern that would take for ever is refused after a bounded number of steps. */
static void test_slow_pattern(void **state) {
    (void)state;
    struct quant_config *c = accepted("'quant_method':'gptq','bits':4,'dynamic':{'-:(a+)+(b+)+$':{}}");
    struct quant_scheme s;
    const char *excluded;
    struct error e = {0};
    assert_int_equal(
            quant_config_find(c, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbc", &s,
                    &excluded, &e),
            -EINVAL);
    assert_non_null(strstr(e.text, "takes too long"));
    quant_config_free(c);
}

static void test_limits(void **state) {
    (void)state;
    const size_t size = 64 * (QUANT_RULES_MAX + 2);
    char *text = malloc(size), pattern[QUANT_PATTERN_BYTES_MAX + 2];
    struct quant_config *c = NULL;
    struct error e = {0};
    assert_non_null(text);
    size_t n = (size_t)snprintf(
            text, size, "{'quantization_config':{'quant_method':'awq','modules_to_not_convert':['x'");
    for (uint32_t i = 0; i < QUANT_RULES_MAX; i++)
        n += (size_t)snprintf(text + n, size - n, ",'x'");
    snprintf(text + n, size - n, "]}}");
    assert_int_equal(parse(text, &c, &e), -E2BIG);
    assert_string_equal(e.text,
            "config.json: quantization_config names more than 16384 modules or 256 regular expressions");
    memset(pattern, 'x', sizeof(pattern) - 1);
    pattern[sizeof(pattern) - 1] = '\0';
    snprintf(text, size, "{'quantization_config':{'quant_method':'awq','modules_to_not_convert':['%s']}}",
            pattern);
    assert_int_equal(parse(text, &c, &e), -E2BIG);
    assert_non_null(strstr(e.text, "is longer than 1024 bytes"));
    assert_null(c);
    free(text);
}

static void test_files(void **state) {
    char dir[TEST_FOLDER_SIZE];
    struct quant_config *c = NULL;
    struct error e = {0};
    (void)state;
    test_folder_make(dir);
    assert_int_equal(quant_config_load(dir, &c, &e), 0);
    assert_null(c);
    test_put_text(dir, "config.json", "{}");
    test_put_text(
            dir, "quantize_config.json", "{\"bits\":4,\"group_size\":64,\"checkpoint_format\":\"gptq_v2\"}");
    assert_int_equal(quant_config_load(dir, &c, &e), 0);
    assert_true(quant_config_method(c) == QUANT_METHOD_GPTQ && quant_config_is_v2(c));
    assert_int_equal(find(c, "x", NULL).group, 64);
    c = quant_config_free(c);
    test_put_text(dir, "config.json", "{\"quantization_config\":{\"quant_method\":\"awq\"}}");
    assert_int_equal(quant_config_load(dir, &c, &e), 0);
    assert_int_equal(quant_config_method(c), QUANT_METHOD_AWQ);
    c = quant_config_free(c);
    test_put_text(dir, "config.json", "[]");
    assert_int_equal(quant_config_load(dir, &c, &e), -EBADMSG);
    assert_null(c);
    test_folder_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_none),
            cmocka_unit_test(test_gptq),
            cmocka_unit_test(test_gptq_refused),
            cmocka_unit_test(test_awq),
            cmocka_unit_test(test_auto_round),
            cmocka_unit_test(test_fp8),
            cmocka_unit_test(test_compressed),
            cmocka_unit_test(test_compressed_refused),
            cmocka_unit_test(test_methods),
            cmocka_unit_test(test_slow_pattern),
            cmocka_unit_test(test_limits),
            cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
