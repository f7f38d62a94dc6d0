/* checkpoint_golden.c - checkpoints as Hugging Face writes them (tests/golden/models) open and resolve. */
#include "checkpoint_test.h"

static struct test_model load(const char *name) {
    char dir[512];
    snprintf(dir, sizeof(dir), "%s/golden/models/%s", TESTS_DIR, name);
    return test_model_load(dir);
}

static void test_small(void **state) {
    (void)state;
    struct test_model l = load("small");
    assert_string_equal(l.t->prefix, "model.");
    assert_int_equal(l.m.vocab_size, 512);
    assert_int_equal(l.m.hidden_size, 128);
    assert_int_equal(l.m.intermediate_size, 256);
    assert_int_equal(l.m.q_heads, 6);
    assert_int_equal(l.m.kv_heads, 2);
    assert_int_equal(l.m.head_dim, 64);
    assert_int_equal(l.m.rotary_dim, 16);
    assert_int_equal(l.m.gdn_k_heads, 2);
    assert_int_equal(l.m.gdn_v_heads, 6);
    assert_int_equal(l.m.gdn_k_dim, 32);
    assert_int_equal(l.m.gdn_v_dim, 32);
    assert_int_equal(l.m.conv_kernel, 4);
    assert_int_equal(l.m.max_position_embeddings, 4096);
    assert_int_equal(l.m.mtp_layers, 1);
    assert_false(l.m.tie_word_embeddings);
    assert_true(l.m.rope_theta == 1e7);
    assert_true(l.m.rms_eps == 1e-6f);
    /* config.json says 511, generation_config.json [510, 511]. */
    assert_int_equal(l.m.n_eos_ids, 2);
    assert_int_equal(l.m.eos_ids[0], 511);
    assert_int_equal(l.m.eos_ids[1], 510);

    assert_int_equal(l.t->n_layers, 4);
    assert_false(l.t->layers[0].is_attention);
    assert_true(l.t->layers[3].is_attention);
    assert_null(l.t->layers[3].gdn.in_qkv);
    assert_null(l.t->layers[0].attention.q);
    assert_int_equal(l.t->layers[0].gdn.a_log->dtype, TENSOR_F32);
    assert_int_equal(l.t->layers[0].gdn.dt_bias->dtype, TENSOR_BF16);
    assert_string_equal(l.t->layers[3].attention.q->name, "model.layers.3.self_attn.q_proj.weight");
    assert_true(l.t->lm_head != l.t->embed);
    assert_true(l.t->has_mtp);
    assert_int_equal(l.t->mtp.fc->dims[1], 256);
    assert_int_equal(l.t->n_ignored, 0);
    assert_int_equal(l.t->n_used, checkpoint_count(l.c));
    assert_int_equal(model_config_check_tp(&l.m, 2, NULL), 0);
    test_model_done(&l);
}

static void test_real_is_tied_and_has_vision(void **state) {
    (void)state;
    struct test_model l = load("real");
    assert_string_equal(l.t->prefix, "model.language_model.");
    assert_true(l.m.tie_word_embeddings);
    assert_ptr_equal(l.t->lm_head, l.t->embed);
    assert_int_equal(l.t->n_vision, 2);
    assert_true(l.t->vision_bytes > 0);
    assert_int_equal(l.t->n_ignored, 0);
    assert_int_equal(l.t->n_used + l.t->n_vision, checkpoint_count(l.c));
    assert_int_equal(model_config_check_tp(&l.m, 1, NULL), 0);
    assert_int_equal(model_config_check_tp(&l.m, 2, NULL), -EDOM);
    test_model_done(&l);
}

static void test_tp8(void **state) {
    (void)state;
    struct test_model l = load("tp8");
    for (uint32_t tp = 1; tp <= 8; tp *= 2)
        assert_int_equal(model_config_check_tp(&l.m, tp, NULL), 0);
    assert_int_equal(l.m.rotary_dim, 8);
    test_model_done(&l);
}

/* What the configuration counts is what the file holds. */
static void test_parameters(void **state) {
    static const char *const names[] = {"small", "real", "tp8"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct test_model l = load(names[i]);
        uint64_t elements = 0;
        for (size_t k = 0; k < checkpoint_count(l.c); k++) {
            const struct tensor *t = checkpoint_at(l.c, k);
            if (strncmp(t->name, "mtp.", 4) != 0 && !strstr(t->name, "visual"))
                elements += t->bytes / tensor_dtype_bytes(t->dtype);
        }
        assert_int_equal(model_config_parameters(&l.m), elements);
        test_model_done(&l);
    }
}

static void test_golden_file_of_its_own(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    struct error e = {0};
    if (checkpoint_open_file(TESTS_DIR "/golden/models/small/golden.safetensors", &c, &e) < 0)
        fail_msg("%s", e.text);
    const struct tensor *ids = checkpoint_find(c, "len65.ids");
    assert_non_null(ids);
    assert_int_equal(ids->dtype, TENSOR_I32);
    assert_int_equal(ids->dims[0], 65);
    assert_string_equal(ids->file, "golden.safetensors");
    for (size_t i = 1; i < checkpoint_count(c); i++)
        assert_true(strcmp(checkpoint_at(c, i - 1)->name, checkpoint_at(c, i)->name) < 0);
    checkpoint_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_small),
            cmocka_unit_test(test_real_is_tied_and_has_vision),
            cmocka_unit_test(test_tp8),
            cmocka_unit_test(test_parameters),
            cmocka_unit_test(test_golden_file_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
