/* checkpoint_quant_refused.c - quantised matrices whose files are wrong, or do not go with their config.json, are
 * refused by file, tensor, what was expected and what was found. Each case is a layer of tests/golden/quant with one
 * thing changed. */
#include "tests/unit/tp/checkpoint_quant_test.h"

#define GPTQ "'quant_method':'gptq','bits':4,'group_size':32"
#define AWQ  "'quant_method':'awq','bits':4,'group_size':32"
#define PACKED                                                                                               \
    "'quant_method':'compressed-tensors','format':'pack-quantized','config_groups':{'g':{'targets':['Linear'],"
#define FP8 "'quant_method':'fp8','weight_block_size':[128,128]"
#define G32 PACKED "'weights':{'num_bits':4,'group_size':32}}}"

static struct checkpoint *layers;
static struct test_piece pieces[8];
static size_t n_pieces;
static uint32_t rows, columns;
static void *changed; /* data of one piece, to be written to */

static int open_layers(void **state) {
    struct error e = {0};
    (void)state;
    return checkpoint_open_file(TESTS_DIR "/golden/quant/layers.safetensors", &layers, &e);
}

static int close_layers(void **state) {
    (void)state;
    layers = checkpoint_free(layers);
    free(changed);
    return 0;
}

/* Takes the layer's parts, renamed to m.*. */
static void start(const char *layer) {
    const size_t length = strlen(layer);
    n_pieces = 0;
    for (size_t i = 0; i < checkpoint_count(layers); i++) {
        const struct tensor *t = checkpoint_at(layers, i);
        if (strncmp(t->name, layer, length) != 0 || t->name[length] != '.')
            continue;
        if (strcmp(t->name + length, ".value") == 0) {
            rows = (uint32_t)t->dims[0];
            columns = (uint32_t)t->dims[1];
            continue;
        }
        assert_true(n_pieces < sizeof(pieces) / sizeof(*pieces) && t->n_dims <= 3);
        struct test_piece *p = &pieces[n_pieces++];
        *p = (struct test_piece){.dtype = t->dtype, .n_dims = t->n_dims, .data = t->data};
        snprintf(p->name, sizeof(p->name), "m%s", t->name + length);
        memcpy(p->dims, t->dims, t->n_dims * sizeof(*t->dims));
    }
    assert_true(n_pieces > 1);
}

static struct test_piece *piece(const char *name) {
    for (size_t i = 0; i < n_pieces; i++)
        if (strcmp(pieces[i].name, name) == 0)
            return &pieces[i];
    fail_msg("no %s", name);
    return NULL;
}

static void drop(const char *name) {
    piece(name)->name[0] = '\0';
}

/* The same bytes, or the first of them, in another shape. */
static void reshape(const char *name, uint64_t first, uint64_t second) {
    struct test_piece *p = piece(name);
    p->n_dims = second ? 2 : 1;
    p->dims[0] = first;
    p->dims[1] = second;
}

static void *contents(const char *name) {
    struct test_piece *p = piece(name);
    free(changed);
    changed = malloc(test_bytes(p));
    assert_non_null(changed);
    memcpy(changed, p->data, test_bytes(p));
    p->data = changed;
    return changed;
}

static struct quant_config *config_of(const char *inside) {
    char text[1024];
    struct quant_config *config = NULL;
    struct error e = {0};
    if (!inside)
        return NULL;
    snprintf(text, sizeof(text), "{'quantization_config':{%s}}", inside);
    for (char *p = text; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    if (quant_config_parse(text, strlen(text), "config.json", &config, &e) < 0)
        fail_msg("%s", e.text);
    return config;
}

static int attempt(const char *inside, struct error *e) {
    struct checkpoint *c = test_open(pieces, n_pieces);
    struct quant_config *config = config_of(inside);
    struct quant_tensor *t = NULL;
    const struct quant_request q = {
            .checkpoint = c, .config = config, .module = "m", .rows = rows, .columns = columns};
    int r = quant_tensor_make(&q, &t, e);
    assert_int_equal(t != NULL, r == 1);
    quant_tensor_free(t);
    quant_config_free(config);
    checkpoint_free(c);
    return r;
}

/* sentence: what follows the file's name (which is temporary), or all of it where there is none. */
static void refused(const char *inside, int code, const char *sentence) {
    struct error e = {0};
    int r = attempt(inside, &e);
    const char *text = strncmp(e.text, "shardd-quant-", 13) == 0 ? strchr(e.text, ' ') + 1 : e.text;
    assert_string_equal(text, sentence);
    assert_int_equal(r, code);
}

static void accepted(const char *inside) {
    struct error e = {0};
    if (attempt(inside, &e) != 1)
        fail_msg("%s", e.text);
}

#define FETCH                                                                                                \
    ": this tensor is not in the checkpoint, but others of this quantised matrix are: fetch the "            \
    "checkpoint again"
#define BOTH ": are both files of one checkpoint?"

static void test_missing(void **state) {
    static const char *const needed[][3] = {{"gptq_v1_g32", "m.scales", GPTQ},
            {"gptq_v1_g32", "m.qzeros", GPTQ}, {"gptq_order", "m.g_idx", GPTQ ",'desc_act':true"},
            {"awq_g32", "m.qzeros", AWQ}, {"packed_g32", "m.weight_scale", G32},
            {"packed_order", "m.weight_g_idx", PACKED "'weights':{'num_bits':4,'actorder':'group'}}}"},
            {"int8_row", "m.weight_scale", NULL}, {"fp8_row", "m.weight_scale", NULL}};
    char sentence[256];
    (void)state;
    for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++) {
        start(needed[i][0]);
        drop(needed[i][1]);
        snprintf(sentence, sizeof(sentence), "%s" FETCH, needed[i][1]);
        refused(needed[i][2], -ENOENT, sentence);
    }
    start("gptq_v1_g32");
    drop("m.qweight");
    refused(GPTQ, -ENOENT,
            "m.scales: is part of a quantised matrix, but m.qweight is not in the checkpoint: fetch it "
            "again");
    start("packed_g32");
    drop("m.weight_packed");
    refused(G32, -ENOENT,
            "m.weight_scale: is part of a quantised matrix, but m.weight is not in the checkpoint: fetch "
            "it again");
    start("gptq_v1_g32"); /* columns in order: g_idx says nothing */
    drop("m.g_idx");
    accepted(GPTQ);
    start("packed_g32");
    drop("m.weight_shape");
    accepted(G32);
}

static void test_group_sizes(void **state) {
    (void)state;
    start("gptq_v1_g32");
    refused("'quant_method':'gptq','bits':4,'group_size':64", -EINVAL,
            "m.scales: expected scales of 2 groups, because quantization_config says that a group has 64 "
            "of 128 inputs; found 4" BOTH);
    refused("'quant_method':'gptq','bits':4,'group_size':-1", -EINVAL,
            "m.scales: expected scales of 1 groups, because quantization_config says that a group has 128 "
            "of 128 inputs; found 4" BOTH);
    reshape("m.scales", 3, 32);
    refused("'quant_method':'gptq','bits':4", -EINVAL,
            "m.scales: has scales of 3 groups, which 128 inputs do not divide into");
    start("packed_g32");
    refused(PACKED "'weights':{'num_bits':4,'group_size':128}}}", -EINVAL,
            "m.weight_scale: expected scales of 1 groups, because quantization_config says that a group "
            "has 128 of 128 inputs; found 4" BOTH);
    start("gptq_int8_bf16"); /* 4 groups of 32: as 16 groups of 8 there would be too few rows of zeros */
    reshape("m.scales", 16, 8);
    refused("'quant_method':'gptq','bits':8,'group_size':8", -ENOTSUP,
            "m.scales: groups of 8 inputs are not read: multiples of 16 and whole rows are; quantise the "
            "model again with "
            "group size 32, 64 or 128");
    start("fp8_blocks");
    refused("'quant_method':'fp8','weight_block_size':[64,64]", -EINVAL,
            "m.weight_scale_inv: expected [3, 3], found [2, 2]");
}

static void test_shapes(void **state) {
    (void)state;
    start("gptq_v1_g32");
    reshape("m.qweight", 8, 64);
    refused(GPTQ, -EINVAL,
            "m.qweight: expected [16, 32] or [32, 32] (GPTQ of 4 or 8 bits) or [128, 4] (AWQ), found [8, "
            "64]");
    start("gptq_v1_g32");
    reshape("m.qweight", 12, 32);
    refused(GPTQ, -ENOTSUP,
            "m.qweight: is GPTQ of 3 bits: 4 and 8 bits are read; use another checkpoint of this model");
    start("gptq_v1_g32");
    rows = 30;
    refused(GPTQ, -EINVAL,
            "m.qweight: a matrix of 30 outputs and 128 inputs cannot be packed eight codes to a word; "
            "found [16, 32]");
    start("gptq_v1_g32");
    reshape("m.qzeros", 4, 2);
    refused(GPTQ, -EINVAL, "m.qzeros: expected [4, 4], found [4, 2]");
    start("gptq_v1_g32");
    piece("m.qzeros")->dtype = TENSOR_F32;
    refused(GPTQ, -ENOTSUP, "m.qzeros: expected I32, found F32");
    start("gptq_v1_g32");
    piece("m.scales")->dtype = TENSOR_I16;
    refused(GPTQ, -ENOTSUP, "m.scales: expected F32, BF16 or F16, found I16");
    start("packed_g32");
    reshape("m.weight_packed", 36, 8);
    refused(G32, -EINVAL, "m.weight_packed: expected [36, 16] (4 bits) or [36, 32] (8 bits), found [36, 8]");
    start("packed_g32");
    reshape("m.weight_scale", 18, 8);
    refused(G32, -EINVAL, "m.weight_scale: expected scales of 36 outputs, found [18, 8]");
    start("packed_g32");
    ((int64_t *)contents("m.weight_shape"))[1] = 120;
    refused(G32, -EINVAL, "m.weight_shape: expected [36, 128], says [36, 120]");
    start("packed_g64_zeros");
    reshape("m.weight_zero_point", 2, 5);
    refused(NULL, -EINVAL, "m.weight_zero_point: expected [5, 2], found [2, 5]");
    start("int8_row");
    reshape("m.weight", 128, 32);
    refused(NULL, -EINVAL, "m.weight: expected [32, 128], found [128, 32]");
    start("fp8_row");
    reshape("m.weight_scale", 16, 1);
    refused(NULL, -EINVAL, "m.weight_scale: expected [1, 1], found [16, 1]");
}

/* Zeros of one tool with codes of another. */
static void test_mixed_up(void **state) {
    (void)state;
    start("awq_g32");
    refused(GPTQ, -EINVAL,
            "m.qweight: is quantised as awq does it, but quant_method in config.json is gptq" BOTH);
    start("gptq_v1_g32");
    refused(AWQ, -EINVAL,
            "m.qweight: is quantised as gptq does it, but quant_method in config.json is awq" BOTH);
    start("packed_g32");
    refused(FP8, -EINVAL,
            "m.weight_packed: is quantised as compressed-tensors does it, but quant_method in config.json "
            "is fp8" BOTH);
    start("fp8_row");
    refused(GPTQ, -EINVAL,
            "m.weight: is quantised as fp8 does it, but quant_method in config.json is gptq" BOTH);
    start("gptq_int8_g64");
    refused("'quant_method':'gptq','bits':4", -EINVAL,
            "m.qweight: expected codes of 4 bits, as quantization_config says, found 8" BOTH);
    start("packed_int8_row");
    refused(PACKED "'weights':{'num_bits':4,'strategy':'channel'}}}", -EINVAL,
            "m.weight_packed: expected codes of 4 bits, as quantization_config says, found 8" BOTH);
    start("gptq_v1_g32");
    refused(NULL, -ENOENT,
            "m.qweight: config.json has no quantization_config (and there is no quantize_config.json): it "
            "says which of GPTQ's formats this is; fetch it too");
    start("gptq_v1_g32"); /* zeros as compressed-tensors packs them: [outputs in words][groups] */
    reshape("m.qzeros", 2, 8);
    refused(GPTQ, -EINVAL, "m.qzeros: expected [4, 4], found [2, 8]");
    start("gptq_sym_g64"); /* what the file says counts, whatever sym is */
    ((uint32_t *)contents("m.qzeros"))[0] ^= 1;
    accepted("'quant_method':'gptq','bits':4,'group_size':64,'sym':true");
}

/* What the configuration says of a group's weights, field by field. */
static void test_types(void **state) {
    (void)state;
    start("fp8_row");
    accepted(PACKED "'weights':{'num_bits':8,'type':'float','strategy':'channel'}}}");
    refused(PACKED "'weights':{'num_bits':8,'type':'int','strategy':'channel'}}}", -EINVAL,
            "m.weight: has FP8 codes, but the type of its weights in quantization_config is int" BOTH);
    refused(PACKED "'weights':{'num_bits':8,'strategy':'channel'}}}", -EINVAL, /* as the format has it */
            "m.weight: has FP8 codes, but the type of its weights in quantization_config is int" BOTH);
    start("int8_row");
    accepted(PACKED "'weights':{'num_bits':8,'type':'int','strategy':'channel'}}}");
    refused(PACKED "'weights':{'num_bits':8,'type':'float','strategy':'channel'}}}", -EINVAL,
            "m.weight: has integer codes, but the type of its weights in quantization_config is float" BOTH);
    start("packed_int8_row");
    refused(PACKED "'weights':{'num_bits':8,'type':'float','strategy':'channel'}}}", -EINVAL,
            "m.weight_packed: has integer codes, but the type of its weights in quantization_config is float" BOTH);
    start("packed_g64_zeros");
    accepted(PACKED "'weights':{'num_bits':4,'group_size':64,'symmetric':false}}}");
    accepted(PACKED
            "'weights':{'num_bits':4,'group_size':64,'symmetric':true}}}"); /* the file's zeros count */
    drop("m.weight_zero_point");
    accepted(PACKED "'weights':{'num_bits':4,'group_size':64}}}");
    refused(PACKED "'weights':{'num_bits':4,'group_size':64,'symmetric':false}}}", -ENOENT,
            "m.weight_zero_point: this tensor is not in the checkpoint, but others of this quantised matrix are: fetch "
            "the checkpoint again");
}

static void test_two_forms(void **state) {
    static const uint16_t dense[32 * 128];
    (void)state;
    start("gptq_v1_g32");
    pieces[n_pieces++] = (struct test_piece){"m.weight", TENSOR_BF16, 2, {32, 128}, dense};
    struct error e = {0};
    assert_int_equal(attempt(GPTQ, &e), -EINVAL);
    assert_non_null(
            strstr(e.text, ": m.weight: is in the checkpoint, and so is m.qweight (in shardd-quant-"));
}

static void test_left_as_they_are(void **state) {
    (void)state;
    start("gptq_v1_g32");
    refused(GPTQ ",'dynamic':{'-:m':{}}", -EINVAL,
            "m.qweight: is quantised, but 'm' in config.json leaves this matrix as it is" BOTH);
    start("packed_g32");
    refused("'quant_method':'compressed-tensors','ignore':['re:m$']", -EINVAL,
            "m.weight_packed: is quantised, but 'm$' in config.json leaves this matrix as it is" BOTH);
}

static void test_orders(void **state) {
    (void)state;
    start("gptq_order");
    int32_t *g_idx = contents("m.g_idx");
    g_idx[7] = 4;
    refused(GPTQ, -EBADMSG,
            "m.g_idx: says that input 7 is in group 4, but there are scales of 4 groups: fetch the file "
            "again");
    g_idx[7] = -2;
    refused(GPTQ, -EBADMSG,
            "m.g_idx: says that input 7 is in group -2, but there are scales of 4 groups: fetch the file "
            "again");
    for (uint32_t k = 0; k < 128; k++)
        g_idx[k] = k < 30 ? 0 : k < 64 ? 1 : (int32_t)(k / 32);
    refused(GPTQ, -ENOTSUP,
            "m.g_idx: gives group 0 30 inputs, expected 32: only groups of one size are read; quantise "
            "the model again "
            "without reordering (desc_act false)");
    start("gptq_order");
    reshape("m.g_idx", 64, 0);
    refused(GPTQ, -EINVAL, "m.g_idx: expected [128] of I32, found [64] of I32");
    start("packed_order"); /* not set: as without */
    g_idx = contents("m.weight_g_idx");
    memset(g_idx, 0xff, 128 * sizeof(*g_idx));
    accepted(G32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_missing),
            cmocka_unit_test(test_group_sizes),
            cmocka_unit_test(test_shapes),
            cmocka_unit_test(test_mixed_up),
            cmocka_unit_test(test_types),
            cmocka_unit_test(test_two_forms),
            cmocka_unit_test(test_left_as_they_are),
            cmocka_unit_test(test_orders),
    };
    return cmocka_run_group_tests(tests, open_layers, close_layers);
}
