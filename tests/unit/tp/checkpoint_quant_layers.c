/* checkpoint_quant_layers.c - every element of the layers in tests/golden/quant, which the formats' own packages made
 * and dequantised, read through struct quant_matrix; and values that the files cannot be packed with. */
#include "tests/unit/tp/checkpoint_quant_test.h"

#include <jansson.h>

#define GOLDEN TESTS_DIR "/golden/quant/"

static struct checkpoint *layers, *gptqmodel;
static json_t *cases, *gptqmodel_cases;

static int open_layers(void **state) {
    struct error e = {0};
    (void)state;
    cases = json_load_file(GOLDEN "layers.json", 0, NULL);
    gptqmodel_cases = json_load_file(GOLDEN "gptqmodel.json", 0, NULL);
    if (!cases || !gptqmodel_cases || checkpoint_open_file(GOLDEN "layers.safetensors", &layers, &e) < 0 ||
            checkpoint_open_file(GOLDEN "gptqmodel.safetensors", &gptqmodel, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    return 0;
}

static int close_layers(void **state) {
    (void)state;
    layers = checkpoint_free(layers);
    gptqmodel = checkpoint_free(gptqmodel);
    json_decref(cases);
    json_decref(gptqmodel_cases);
    return 0;
}

static struct quant_config *config_of(const json_t *layer) {
    struct quant_config *config = NULL;
    struct error e = {0};
    json_t *root = json_pack("{s:O}", "quantization_config", json_object_get(layer, "quantization_config"));
    char *text = json_dumps(root, 0);
    if (quant_config_parse(text, strlen(text), "config.json", &config, &e) < 0)
        fail_msg("%s", e.text);
    free(text);
    json_decref(root);
    return config;
}

static uint32_t size_of(const json_t *layer, const char *key) {
    return (uint32_t)json_integer_value(json_object_get(layer, key));
}

static struct quant_tensor *make_of(const struct checkpoint *c, const json_t *layer, const char *name) {
    struct quant_tensor *t = NULL;
    struct error e = {0};
    struct quant_config *config = config_of(layer);
    const struct quant_request q = {.checkpoint = c,
            .config = config,
            .module = name,
            .rows = size_of(layer, "rows"),
            .columns = size_of(layer, "columns")};
    if (quant_tensor_make(&q, &t, &e) != 1)
        fail_msg("%s: %s", name, e.text);
    quant_config_free(config);
    return t;
}

static struct quant_tensor *make(const char *name) {
    return make_of(layers, json_object_get(cases, name), name);
}

/* Is each element the package's own, bit for bit? */
static void check_values(const struct checkpoint *c, const struct quant_tensor *t, const char *layer) {
    char name[64];
    snprintf(name, sizeof(name), "%s.value", layer);
    const struct tensor *golden = checkpoint_find(c, name);
    assert_non_null(golden);
    const float *expected = golden->data;
    float *found = test_values(&t->matrix);
    for (size_t k = 0; k < (size_t)t->matrix.rows * t->matrix.columns; k++)
        if (found[k] != expected[k])
            fail_msg("%s: element %zu: expected %.9g, found %.9g", name, k, (double)expected[k],
                    (double)found[k]);
    free(found);
}

static const struct {
    const char *name, *label;
    uint32_t n_parts;
} LAYERS[] = {
        {"gptq_v1_g32", "gptq int4 g32 asymmetric", 4},
        {"gptq_sym_g64", "gptq int4 g64", 4},
        {"gptq_row", "gptq int4 by row asymmetric", 4},
        {"gptq_v2_g32", "gptq int4 g32 asymmetric", 4},
        {"gptq_int8_g64", "gptq int8 g64 asymmetric", 4},
        {"gptq_int8_bf16", "gptq int8 g32 asymmetric", 4},
        {"gptq_order", "gptq int4 g32 asymmetric act-order", 4},
        {"gptq_int8_order", "gptq int8 g32 act-order", 4},
        {"awq_g32", "awq int4 g32 asymmetric", 3},
        {"awq_g128", "awq int4 by row asymmetric", 3},
        {"packed_g32", "compressed-tensors int4 g32", 3},
        {"packed_g64_zeros", "compressed-tensors int4 g64 asymmetric", 4},
        {"packed_row_zeros", "compressed-tensors int4 by row asymmetric", 4},
        {"packed_g128", "compressed-tensors int4 by row", 3},
        {"packed_int8_g32_zeros", "compressed-tensors int8 g32 asymmetric", 4},
        {"packed_int8_row", "compressed-tensors int8 by row", 3},
        {"packed_order", "compressed-tensors int4 g32 act-order", 4},
        {"int8_row", "compressed-tensors int8 by row", 2},
        {"int8_g32_zeros", "compressed-tensors int8 g32 asymmetric", 3},
        {"fp8_row", "fp8 by row", 2},
        {"fp8_tensor", "fp8 by tensor", 2},
        {"fp8_blocks", "fp8 128x128", 2},
};
#define N_LAYERS (sizeof(LAYERS) / sizeof(*LAYERS))

static void test_values_are_the_packages(void **state) {
    (void)state;
    assert_int_equal(N_LAYERS, json_object_size(cases));
    for (size_t i = 0; i < N_LAYERS; i++) {
        struct quant_tensor *t = make(LAYERS[i].name);
        check_values(layers, t, LAYERS[i].name);
        quant_tensor_free(t);
    }
}

/* Both versions of the format as GPTQModel writes them, with the configuration that it writes. */
static void test_gptqmodel(void **state) {
    static const struct {
        const char *name, *label;
    } expected[] = {
            {"v1_int4_sym_g128", "gptq int4 g128"},
            {"v1_int4_sym_g32_order", "gptq int4 g32 act-order"},
            {"v1_int4_asym_g32", "gptq int4 g32 asymmetric"},
            {"v1_int4_asym_g128_order", "gptq int4 g128 asymmetric act-order"},
            {"v1_int4_sym_row_order", "gptq int4 by row"},
            {"v1_int4_asym_row", "gptq int4 by row asymmetric"},
            {"v2_int4_sym_g32", "gptq int4 g32"},
            {"v2_int4_sym_g128_order", "gptq int4 g128 act-order"},
            {"v2_int4_asym_g128", "gptq int4 g128 asymmetric"},
            {"v2_int4_asym_g32_order", "gptq int4 g32 asymmetric act-order"},
            {"v2_int4_sym_row", "gptq int4 by row"},
            {"v2_int4_asym_row_order", "gptq int4 by row asymmetric"},
            {"v1_int8_asym_g32_order", "gptq int8 g32 asymmetric act-order"},
            {"v2_int8_asym_g32", "gptq int8 g32 asymmetric"},
    };
    const size_t n = sizeof(expected) / sizeof(*expected);
    (void)state;
    assert_int_equal(n, json_object_size(gptqmodel_cases));
    for (size_t i = 0; i < n; i++) {
        const char *name = expected[i].name;
        struct quant_tensor *t = make_of(gptqmodel, json_object_get(gptqmodel_cases, name), name);
        struct error e = {0};
        assert_string_equal(t->matrix.label, expected[i].label);
        assert_int_equal(quant_matrix_check(&t->tensor, &e), 0);
        check_values(gptqmodel, t, name);
        quant_tensor_free(t);
    }
}

static void test_what_they_are(void **state) {
    (void)state;
    for (size_t i = 0; i < N_LAYERS; i++) {
        struct quant_tensor *t = make(LAYERS[i].name);
        struct error e = {0};
        uint64_t bytes = 0;
        assert_string_equal(t->matrix.label, LAYERS[i].label);
        assert_int_equal(t->n_parts, LAYERS[i].n_parts);
        assert_int_equal(t->tensor.dtype, TENSOR_QUANTISED);
        assert_ptr_equal(t->tensor.quant, &t->matrix);
        assert_string_equal(t->tensor.file, "layers.safetensors");
        assert_int_equal(t->tensor.dims[0], t->matrix.rows);
        assert_int_equal(t->tensor.dims[1], t->matrix.columns);
        for (uint32_t k = 0; k < t->n_parts; k++)
            bytes += t->parts[k]->bytes;
        assert_int_equal(t->tensor.bytes, bytes);
        assert_int_equal(t->matrix.zeros, strstr(LAYERS[i].label, "asymmetric") != NULL);
        assert_int_equal(t->matrix.order != NULL, strstr(LAYERS[i].label, "act-order") != NULL);
        assert_int_equal(quant_matrix_check(&t->tensor, &e), 0);
        quant_tensor_free(t);
    }
}

/* Any window of codes and groups is that part of the whole. */
static void test_windows(void **state) {
    static const uint32_t rows[][2] = {{0, 16}, {16, 16}, {3, 5}, {8, 8}, {31, 1}, {1, 16}};
    static const uint32_t columns[][2] = {{0, 128}, {1, 7}, {8, 16}, {3, 64}, {127, 1}, {64, 9}, {60, 68}};
    (void)state;
    for (size_t i = 0; i < N_LAYERS; i++) {
        struct quant_tensor *t = make(LAYERS[i].name);
        const struct quant_matrix *q = &t->matrix;
        uint8_t whole[128], part[16 * 128];
        for (size_t a = 0; a < sizeof(rows) / sizeof(*rows); a++)
            for (size_t b = 0; b < sizeof(columns) / sizeof(*columns); b++) {
                const uint32_t first = columns[b][0], n = columns[b][1];
                memset(part, 0xaa, sizeof(part));
                q->codes(q, rows[a][0], rows[a][1], first, n, part);
                for (uint32_t r = 0; r < rows[a][1]; r++)
                    for (uint32_t k = 0; k < n; k++) {
                        q->codes(q, rows[a][0] + r, 1, first + k, 1, whole);
                        assert_int_equal(part[r * n + k], whole[0]);
                    }
                if (rows[a][1] * n < sizeof(part))
                    assert_int_equal(part[rows[a][1] * n], 0xaa);
            }
        struct quant_group all[16], one;
        q->groups(q, 17, 0, quant_groups(q), all);
        for (uint32_t g = 0; g < quant_groups(q); g++) {
            q->groups(q, 17, g, 1, &one);
            assert_true(one.scale == all[g].scale && one.zero == all[g].zero);
        }
        quant_tensor_free(t);
    }
}

static void test_order_is_by_group(void **state) {
    (void)state;
    struct quant_tensor *t = make("gptq_order");
    const int32_t *g_idx = checkpoint_find(layers, "gptq_order.g_idx")->data;
    bool seen[128] = {false};
    for (uint32_t k = 0; k < 128; k++) {
        uint32_t input = t->matrix.order[k];
        assert_true(input < 128 && !seen[input]);
        seen[input] = true;
        assert_int_equal(g_idx[input], k / 32);
        assert_true(k % 32 == 0 || input > t->matrix.order[k - 1]);
    }
    quant_tensor_free(t);
}

/* GPTQ's first version with zeros of 0: 32-bit words less 0x11111111, so the 0s borrowed. */
static void test_zeros_that_borrowed(void **state) {
    (void)state;
    static const uint8_t zeros[8] = {0, 3, 0, 0, 15, 8, 1, 0};
    static const uint32_t codes[2 * 8] = {0};
    static const uint16_t scales[8] = {0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00};
    static const char json[] =
            "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-1}}";
    uint32_t word = 0;
    for (uint32_t i = 0; i < 8; i++)
        word |= (uint32_t)zeros[i] << 4 * i;
    word -= 0x11111111u;
    const struct test_piece pieces[] = {{"m.qweight", TENSOR_I32, 2, {2, 8}, codes},
            {"m.scales", TENSOR_F16, 2, {1, 8}, scales}, {"m.qzeros", TENSOR_I32, 2, {1, 1}, &word}};
    struct checkpoint *c = test_open(pieces, 3);
    struct quant_config *config = NULL;
    struct quant_tensor *t = NULL;
    struct error e = {0};
    assert_int_equal(quant_config_parse(json, strlen(json), "config.json", &config, &e), 0);
    const struct quant_request q = {
            .checkpoint = c, .config = config, .module = "m", .rows = 8, .columns = 16};
    if (quant_tensor_make(&q, &t, &e) != 1)
        fail_msg("%s", e.text);
    for (uint32_t row = 0; row < 8; row++) {
        struct quant_group group;
        t->matrix.groups(&t->matrix, row, 0, 1, &group);
        assert_int_equal(group.zero, zeros[row]);
    }
    quant_tensor_free(t);
    quant_config_free(config);
    checkpoint_free(c);
}

/* Halves of every kind, as scales. */
static void test_scales_of_f16(void **state) {
    (void)state;
    static const uint16_t halves[8] = {0x0001, 0x03ff, 0x0400, 0x7bff, 0x8001, 0xbc00, 0x0000, 0x3555};
    static const float expected[8] = {
            0x1p-24f, 0x1.ff8p-15f, 0x1p-14f, 65504.0f, -0x1p-24f, -1.0f, 0.0f, 0x1.554p-2f};
    static const int8_t codes[8 * 16] = {0};
    const struct test_piece pieces[] = {
            {"m.weight", TENSOR_I8, 2, {8, 16}, codes}, {"m.weight_scale", TENSOR_F16, 2, {8, 1}, halves}};
    struct checkpoint *c = test_open(pieces, 2);
    const struct quant_request q = {.checkpoint = c, .module = "m", .rows = 8, .columns = 16};
    struct quant_tensor *t = NULL;
    struct error e = {0};
    if (quant_tensor_make(&q, &t, &e) != 1)
        fail_msg("%s", e.text);
    assert_int_equal(t->matrix.scale, QUANT_SCALE_F16);
    for (uint32_t row = 0; row < 8; row++) {
        struct quant_group group;
        t->matrix.groups(&t->matrix, row, 0, 1, &group);
        assert_true(group.scale == expected[row]);
    }
    assert_int_equal(quant_matrix_check(&t->tensor, &e), 0);
    quant_tensor_free(t);
    checkpoint_free(c);
}

static void check_refused(const struct test_piece *pieces, size_t n, uint32_t columns, const char *sentence) {
    struct checkpoint *c = test_open(pieces, n);
    const struct quant_request q = {.checkpoint = c, .module = "m", .rows = 4, .columns = columns};
    struct quant_tensor *t = NULL;
    struct error e = {0};
    if (quant_tensor_make(&q, &t, &e) != 1)
        fail_msg("%s", e.text);
    assert_int_equal(quant_matrix_check(&t->tensor, &e), -EBADMSG);
    assert_non_null(strstr(e.text, sentence));
    quant_tensor_free(t);
    checkpoint_free(c);
}

static void test_no_numbers(void **state) {
    (void)state;
    static int8_t codes[4 * 32];
    static uint8_t floats[4 * 600];
    static uint16_t scales[4 * 2] = {
            0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x7f80, 0x3f80, 0x3f80}; /* BF16 */
    static const float one = 1;
    const struct test_piece integers[] = {
            {"m.weight", TENSOR_I8, 2, {4, 32}, codes}, {"m.weight_scale", TENSOR_BF16, 2, {4, 2}, scales}};
    check_refused(integers, 2, 32,
            ": m.weight_scale: the scale is not a finite number for row 2, column 16: the file is broken, "
            "fetch it again");
    scales[5] = 0xffc0;
    check_refused(integers, 2, 32, "the scale is not a finite number for row 2, column 16");
    const struct test_piece bytes[] = {
            {"m.weight", TENSOR_F8_E4M3, 2, {4, 600}, floats}, {"m.weight_scale", TENSOR_F32, 1, {1}, &one}};
    floats[3 * 600 + 599] = 0xff;
    check_refused(bytes, 2, 600, ": m.weight: the value is not a number for row 3, column 599");
    floats[0] = 0x7f;
    check_refused(bytes, 2, 600, "the value is not a number for row 0, column 0");
}

/* A sentence about scales names the file that has them. */
static void test_scales_in_another_shard(void **state) {
    (void)state;
    static uint8_t codes[4 * 128];
    static const float scales[4] = {1, 1, INFINITY, 1};
    const struct test_piece weight = {"m.weight", TENSOR_F8_E4M3, 2, {4, 128}, codes},
                            scale = {"m.weight_scale", TENSOR_F32, 2, {4, 1}, scales};
    char folder[TEST_FOLDER_SIZE];
    struct checkpoint *c = NULL;
    struct quant_tensor *t = NULL;
    struct error e = {0};
    test_folder_make(folder);
    test_write_file(folder, "one.safetensors", &weight, 1);
    test_write_file(folder, "two.safetensors", &scale, 1);
    test_put_text(folder, "model.safetensors.index.json",
            "{\"weight_map\":{\"m.weight\":\"one.safetensors\",\"m.weight_scale\":\"two.safetensors\"}}");
    assert_int_equal(checkpoint_open(folder, &c, &e), 0);
    const struct quant_request q = {.checkpoint = c, .module = "m", .rows = 4, .columns = 128};
    assert_int_equal(quant_tensor_make(&q, &t, &e), 1);
    assert_int_equal(quant_matrix_check(&t->tensor, &e), -EBADMSG);
    assert_string_equal(e.text,
            "two.safetensors: m.weight_scale: the scale is not a finite number for row 2, column 0: the file is "
            "broken, fetch it again");
    quant_tensor_free(t);
    checkpoint_free(c);
    test_folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_values_are_the_packages),
            cmocka_unit_test(test_gptqmodel),
            cmocka_unit_test(test_what_they_are),
            cmocka_unit_test(test_windows),
            cmocka_unit_test(test_order_is_by_group),
            cmocka_unit_test(test_zeros_that_borrowed),
            cmocka_unit_test(test_scales_of_f16),
            cmocka_unit_test(test_no_numbers),
            cmocka_unit_test(test_scales_in_another_shard),
    };
    return cmocka_run_group_tests(tests, open_layers, close_layers);
}
