/* model_gguf.c - the tiny model of tests/golden/gguf computes as the checkpoint that it was made from: to rounding in
 * F32 (A_log went through exp and log), near it in Q8_0; and every type gives the same bits at every tp. */
#include "tests/unit/tp/model_test.h"

#define N_PROMPT    40u
#define N_GENERATED 4u
#define VOCAB       128u
#define N_LOGITS    ((N_PROMPT + N_GENERATED) * VOCAB)

static struct one_run run(const char *file, uint32_t tp, bool float_activations) {
    static uint32_t prompt[N_PROMPT];
    char path[512];
    struct one_run r;
    struct offline *o = NULL;
    struct error e = {0};
    snprintf(path, sizeof(path), "%s/golden/gguf/%s", TESTS_DIR, file);
    struct rank_options options = test_options(path, tp);
    options.activations = float_activations ? K_ACTIVATIONS_FLOAT : K_ACTIVATIONS_INT8;
    options.mtp = true;
    options.logits_rows = ROWS_MAX;
    options.packed = RANK_PACKED_NEVER;
    must(offline_create(&options, &o, &e), &e);
    assert_true(offline_geometry(o)->has_mtp);
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (i * 13 + 5) % VOCAB;
    run_start(&r, o, prompt, N_PROMPT, N_GENERATED, true);
    must(offline_run(o, &r.s, 1, &e), &e);
    offline_free(o);
    return r;
}

/* Of the prompt's logits, the model's and its MTP layer's; the answers may differ. */
static double distance(const struct one_run *a, const struct one_run *b) {
    double x = max_abs_error(a->s.logits, b->s.logits, N_PROMPT * VOCAB);
    double y = max_abs_error(a->s.mtp_logits, b->s.mtp_logits, (N_PROMPT - 1) * VOCAB);
    return x > y ? x : y;
}

static void near(const char *file, bool float_activations, double bound) {
    struct one_run here = run("hf", 1, true), there = run(file, 1, float_activations);
    double d = distance(&there, &here);
    if (!(d <= bound))
        fail_msg("%s: logits differ by %g, at most %g is expected", file, d, bound);
    run_done(&here);
    run_done(&there);
}

static void test_near_the_original(void **state) {
    (void)state;
    near("f32-00001-of-00002.gguf", true, 1e-4);
    near("q8_0.gguf", true, 0.5);
    near("q8_0.gguf", false, 0.5);
}

/* The model is one that shows a mistake: logits of two positions differ by far more than the bounds above. */
static void test_bounds_mean_something(void **state) {
    (void)state;
    struct one_run r = run("hf", 1, true);
    assert_true(max_abs_error(r.s.logits, r.s.logits + VOCAB, VOCAB) > 2);
    run_done(&r);
}

static void test_same_bits_at_every_tp(void **state) {
    (void)state;
    static const char *const files[] = {"q8_0.gguf", "q4_0.gguf", "mixed.gguf", "f32-00001-of-00002.gguf"};
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++)
        for (int exact = 0; exact < 2; exact++) {
            struct one_run one = run(files[i], 1, exact), two = run(files[i], 2, exact);
            assert_memory_equal(one.s.logits, two.s.logits, N_LOGITS * sizeof(float));
            assert_memory_equal(one.s.mtp_logits, two.s.mtp_logits, N_LOGITS * sizeof(float));
            for (uint32_t k = 0; k < N_GENERATED; k++)
                assert_int_equal(one.s.samples[k].id, two.s.samples[k].id);
            run_done(&one);
            run_done(&two);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_near_the_original),
            cmocka_unit_test(test_bounds_mean_something),
            cmocka_unit_test(test_same_bits_at_every_tp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
