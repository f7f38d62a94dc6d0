/* checkpoint_quant_models.c - the same tiny model in every format (tests/golden/quant/models) resolves, and each of its
 * matrices is worth, element by element, what the dense one has. */
#include "tests/unit/tp/checkpoint_quant_test.h"

static struct test_model load(const char *name) {
    char dir[512];
    snprintf(dir, sizeof(dir), "%s/golden/quant/models/%s", TESTS_DIR, name);
    return test_model_load(dir);
}

static float bf16(const struct tensor *t, size_t at) {
    assert_int_equal(t->dtype, TENSOR_BF16);
    uint32_t bits = (uint32_t)((const uint16_t *)t->data)[at] << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Returns whether found is quantised. */
static bool same(const struct tensor *expected, const struct tensor *found) {
    struct error e = {0};
    assert_string_equal(found->name, expected->name);
    assert_int_equal(found->dims[0], expected->dims[0]);
    assert_int_equal(found->dims[1], expected->dims[1]);
    size_t n = (size_t)found->dims[0] * found->dims[1];
    if (found->dtype != TENSOR_QUANTISED) {
        assert_int_equal(found->bytes, expected->bytes);
        assert_memory_equal(found->data, expected->data, expected->bytes);
        return false;
    }
    assert_int_equal(quant_matrix_check(found, &e), 0);
    float *values = test_values(found->quant);
    for (size_t i = 0; i < n; i++)
        if (values[i] != bf16(expected, i))
            fail_msg("%s (%s): element %zu: expected %.9g, found %.9g", found->name, found->quant->label, i,
                    (double)bf16(expected, i), (double)values[i]);
    free(values);
    return true;
}

/* -> matrices that are quantised. */
static unsigned compare_layer(const struct layer_tensors *d, const struct layer_tensors *q) {
    unsigned n = same(d->gate, q->gate) + same(d->up, q->up) + same(d->down, q->down);
    if (d->is_attention)
        return n + same(d->attention.q, q->attention.q) + same(d->attention.k, q->attention.k) +
               same(d->attention.v, q->attention.v) + same(d->attention.o, q->attention.o);
    return n + same(d->gdn.in_qkv, q->gdn.in_qkv) + same(d->gdn.in_z, q->gdn.in_z) +
           same(d->gdn.in_b, q->gdn.in_b) + same(d->gdn.in_a, q->gdn.in_a) + same(d->gdn.out, q->gdn.out);
}

/* label: of the first layer's down_proj. */
static void compare(const char *name, unsigned quantised, bool has_mtp, const char *label) {
    struct test_model dense = load("dense"), l = load(name);
    unsigned n = same(dense.t->lm_head, l.t->lm_head);
    for (uint32_t i = 0; i < dense.t->n_layers; i++)
        n += compare_layer(&dense.t->layers[i], &l.t->layers[i]);
    assert_int_equal(l.t->has_mtp, has_mtp);
    if (has_mtp)
        n += same(dense.t->mtp.fc, l.t->mtp.fc) + compare_layer(&dense.t->mtp.layer, &l.t->mtp.layer);
    assert_int_equal(n, quantised);
    assert_string_equal(l.t->layers[0].down->quant->label, label);
    assert_int_equal(l.t->n_ignored, 0);
    assert_int_equal(l.t->n_used, checkpoint_count(l.c));
    same(dense.t->embed, l.t->embed);
    uint64_t bytes = 0;
    for (size_t i = 0; i < checkpoint_count(l.c); i++)
        bytes += checkpoint_at(l.c, i)->bytes;
    assert_int_equal(l.t->bytes + l.t->mtp_bytes, bytes);
    test_model_done(&dense);
    test_model_done(&l);
}

static void test_gptq(void **state) {
    (void)state;
    compare("gptq", 6, false, "gptq int4 g32 act-order");
}

static void test_awq(void **state) {
    (void)state;
    compare("awq", 13, false, "awq int4 g32");
}

static void test_packed(void **state) {
    (void)state;
    compare("packed", 22, true, "compressed-tensors int4 g32");
}

static void test_int8(void **state) {
    (void)state;
    compare("int8", 24, true, "compressed-tensors int8 by row");
}

static void test_fp8(void **state) {
    (void)state;
    compare("fp8", 20, true, "fp8 128x128");
}

/* The INT8 model with one tensor changed: renamed, or left out where `to` is NULL. */
static void refused(const struct model_config *changes, const char *from, const char *to, int code,
        const char *sentence) {
    struct test_model l = load("int8");
    struct test_piece *pieces = calloc(checkpoint_count(l.c), sizeof(*pieces));
    struct model_tensors *t = NULL;
    struct error e = {0};
    assert_non_null(pieces);
    for (size_t i = 0; i < checkpoint_count(l.c); i++) {
        const struct tensor *tensor = checkpoint_at(l.c, i);
        const char *name = strcmp(tensor->name, from) != 0 ? tensor->name : to ? to : "";
        pieces[i] =
                (struct test_piece){.dtype = tensor->dtype, .n_dims = tensor->n_dims, .data = tensor->data};
        snprintf(pieces[i].name, sizeof(pieces[i].name), "%s", name);
        memcpy(pieces[i].dims, tensor->dims, sizeof(pieces[i].dims));
    }
    struct checkpoint *c = test_open(pieces, checkpoint_count(l.c));
    int r = model_tensors_resolve(c, changes ? changes : &l.m, &t, &e);
    if (r != code || !strstr(e.text, sentence))
        fail_msg("%d: %s", r, e.text);
    assert_null(t);
    checkpoint_free(c);
    free(pieces);
    test_model_done(&l);
}

static void test_refused(void **state) {
    (void)state;
    struct test_model l = load("int8");
    struct model_config wider = l.m;
    wider.intermediate_size = 256;
    test_model_done(&l);
    refused(NULL, "model.embed_tokens.weight", "model.embed_tokens.qweight", -ENOTSUP,
            "model.embed_tokens.qweight: a quantised embedding is not read; quantise the model again without "
            "embed_tokens");
    refused(NULL, "mtp.layers.0.mlp.up_proj.weight_scale", NULL, -ENOENT,
            "mtp.layers.0.mlp.up_proj.weight_scale: this tensor is not in the checkpoint, but others of this "
            "quantised matrix are");
    refused(NULL, "lm_head.weight", NULL, -ENOENT,
            "lm_head.weight_scale: is part of a quantised matrix, but lm_head.weight is not in the "
            "checkpoint");
    refused(&wider, "", "", -EINVAL,
            "model.layers.0.mlp.gate_proj.weight: expected [256, 64], found [128, 64]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_gptq),
            cmocka_unit_test(test_awq),
            cmocka_unit_test(test_packed),
            cmocka_unit_test(test_int8),
            cmocka_unit_test(test_fp8),
            cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
