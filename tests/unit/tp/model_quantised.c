/* model_quantised.c - the tiny model that every format holds exactly (tests/golden/quant/models): with float
 * activations each gives the bits of the BF16 one, at every tp; with INT8 activations the same bits at every tp. */
#include "tests/unit/tp/model_test.h"

#define N_PROMPT    40u
#define N_GENERATED 8u
#define VOCAB       64u
#define N_LOGITS    ((N_PROMPT + N_GENERATED) * VOCAB)

static const char *const FORMATS[] = {"gptq", "awq", "packed", "int8", "fp8"};
static const bool HAS_MTP[] = {false, false, true, true, true};

static struct one_run run(const char *format, uint32_t tp, bool float_activations, bool mtp) {
    static uint32_t prompt[N_PROMPT];
    char dir[512];
    struct one_run r;
    struct offline *o = NULL;
    struct error e = {0};
    snprintf(dir, sizeof(dir), "%s/golden/quant/models/%s", TESTS_DIR, format);
    struct rank_options options = test_options(dir, tp);
    options.activations = float_activations ? K_ACTIVATIONS_FLOAT : K_ACTIVATIONS_INT8;
    options.mtp = mtp;
    options.logits_rows = ROWS_MAX;
    options.packed = RANK_PACKED_NEVER;
    must(offline_create(&options, &o, &e), &e);
    assert_int_equal(offline_geometry(o)->has_mtp, mtp);
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (i * 13 + 5) % VOCAB;
    run_start(&r, o, prompt, N_PROMPT, N_GENERATED, true);
    must(offline_run(o, &r.s, 1, &e), &e);
    offline_free(o);
    return r;
}

static void same_logits(const struct one_run *a, const struct one_run *b, bool mtp) {
    assert_memory_equal(a->s.logits, b->s.logits, N_LOGITS * sizeof(float));
    if (mtp)
        assert_memory_equal(a->s.mtp_logits, b->s.mtp_logits, N_LOGITS * sizeof(float));
    assert_int_equal(a->s.n_tokens, N_GENERATED);
    for (uint32_t i = 0; i < N_GENERATED; i++)
        assert_int_equal(a->s.samples[i].id, b->s.samples[i].id);
}

static void test_float_activations(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(FORMATS) / sizeof(*FORMATS); i++) {
        struct one_run dense = run("dense", 1, true, HAS_MTP[i]);
        assert_true(max_abs_error(dense.s.logits, dense.s.logits + VOCAB, VOCAB) > 0.01);
        for (uint32_t tp = 1; tp <= 2; tp++) {
            struct one_run r = run(FORMATS[i], tp, true, HAS_MTP[i]);
            same_logits(&dense, &r, HAS_MTP[i]);
            run_done(&r);
        }
        run_done(&dense);
    }
}

static void test_int8_activations(void **state) {
    (void)state;
    struct one_run dense = run("dense", 1, false, false);
    for (size_t i = 0; i < sizeof(FORMATS) / sizeof(*FORMATS); i++) {
        struct one_run one = run(FORMATS[i], 1, false, HAS_MTP[i]),
                       two = run(FORMATS[i], 2, false, HAS_MTP[i]);
        same_logits(&one, &two, HAS_MTP[i]);
        double error = max_abs_error(dense.s.logits, one.s.logits, N_PROMPT * VOCAB);
        if (strcmp(FORMATS[i], "fp8") == 0) /* always with float activations */
            assert_true(error == 0);
        else
            assert_true(error > 0 && error < 0.2);
        run_done(&one);
        run_done(&two);
    }
    run_done(&dense);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_float_activations),
            cmocka_unit_test(test_int8_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
