/* The bounds of a batch: no result depends on them, and a plan beyond them is a fault that names the numbers. */
#include "tests/unit/kernels/fixture.h"

enum { D = 16, HQ = 2, HKV = 1, WIDTH = (2 * HQ + 2 * HKV) * D, OUT = HQ * D, ROWS = 7 };

static const struct k_shape shape = {.tp = 1,
        .hidden_size = 24,
        .vocab_size = 90,
        .vocab_rows = 90,
        .q_heads = HQ,
        .kv_heads = HKV,
        .head_dim = D,
        .rotary_dim = 8,
        .n_attention_layers = 1,
        .rms_eps = 1e-6f,
        .rope_theta = 1e6};
static const struct k_pool_options options = {
        .slots = 4, .pages = 12, .pages_per_slot = 3, .kv_dtype = K_F32};

/* Slot 1 at position 100, slot 2 at 0: 7 rows of 2 entries, 105 positions deep. */
static void plan_step(struct world *w) {
    step_new(w);
    step_prompt(w, 1, 100, 5, 1);
    step_prompt(w, 2, 0, 2, 1);
}

static void attend(struct world *w, const struct k_bounds *bounds, float *out) {
    float *in = random_floats(1, ROWS * WIDTH, 1), *norm = random_floats(2, D, 1);
    const struct k_attention_weights aw = {dev(w, norm, D), dev(w, norm, D)};
    float *d_in = dev(w, in, ROWS * WIDTH), *d_out = room(w, ROWS * OUT);
    plan_step(w);
    k_batch_bounds(w->b, bounds);
    step_begin_now(w);
    k_attention_step(w->s, w->p, w->b, 0, 0, &aw, d_in, d_out);
    fetch(w, out, d_out, ROWS * OUT * sizeof *out);
    free(in), free(norm);
}

static void test_no_result_depends_on_them(void **state) {
    static const struct k_bounds bounds[] = {
            {7, 2, 105}, {8, 2, 128}, {64, 64, 1024}, {UINT32_MAX, UINT32_MAX, UINT32_MAX}, {7, 64, 4096}};
    float expected[ROWS * OUT], out[ROWS * OUT];
    struct world w;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 2, NULL));
    slot_new(&w, 1, NULL, 1, 3);
    slot_new(&w, 2, NULL, 4, 3);
    attend(&w, NULL, expected);
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        attend(&w, &bounds[i], out);
        assert_same_floats(out, expected, ROWS * OUT, "under other bounds");
    }
    world_close(&w);
}

static void test_a_plan_beyond_them_is_a_fault(void **state) {
    static const struct {
        struct k_bounds bounds;
        const char *says;
    } cases[] = {{{6, 2, 105}, "2 entries and 7 rows; it was bounded to 2 and 6"},
            {{7, 1, 105}, "2 entries and 7 rows; it was bounded to 1 and 7"},
            {{7, 2, 104}, "105 positions; it was bounded to 104"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        struct error e = {0};
        assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
        slot_new(&w, 1, NULL, 1, 3);
        plan_step(&w);
        k_batch_bounds(w.b, &cases[i].bounds);
        k_batch_upload(w.s, w.b, &w.plan, w.entries, w.ids, w.n_ids, NULL, 0);
        assert_int_equal(k_stream_wait(w.s, 0, &e), -EINVAL); /* at the upload: nothing else was queued */
        if (!strstr(e.text, cases[i].says))
            fail_msg("expected '%s', got: %s", cases[i].says, e.text);
        world_close(&w);
    }
}

/* What the host could not see when it uploaded: how long the sequence is that an entry continues. */
static void test_a_longer_sequence_is_a_fault(void **state) {
    for (uint32_t context = 6; context >= 5; context--) {
        struct world w;
        struct error e = {0};
        assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
        slot_new(&w, 1, NULL, 1, 1);
        step_new(&w);
        step_prompt(&w, 1, 0, 5, 1);
        step_begin_now(&w);
        k_end_step(w.s, w.p, w.b, NULL, NULL);
        step_new(&w);
        step_continue(&w, 1); /* row 5: 6 positions */
        k_batch_bounds(w.b, &(struct k_bounds){1, 1, context});
        step_begin_now(&w);
        assert_int_equal(k_stream_wait(w.s, 0, &e), context == 6 ? 0 : -EINVAL);
        if (context == 5)
            assert_non_null(strstr(e.text, "6 positions; it was bounded to 5"));
        world_close(&w);
    }
    (void)state;
}

static void test_a_graph_keeps_the_bounds_it_was_captured_under(void **state) {
    struct world w;
    struct error fault = {0};
    struct k_graph *g = NULL;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    slot_new(&w, 1, NULL, 1, 3);
    slot_new(&w, 2, NULL, 4, 3);
    k_batch_bounds(w.b, &(struct k_bounds){7, 2, 200});
    OK(k_capture_begin(w.s, e));
    k_begin_step(w.s, w.p, w.b);
    OK(k_capture_end(w.s, &g, e));
    k_batch_bounds(w.b, NULL);
    for (uint32_t more = 0; more < 2; more++) {
        plan_step(&w);
        if (more)
            step_prompt(&w, 3, 0, 1, 1);
        k_batch_upload(w.s, w.b, &w.plan, w.entries, w.ids, w.n_ids, NULL, 0);
        OK(k_stream_wait(w.s, 0, e));
        k_graph_launch(w.s, g);
        assert_int_equal(k_stream_wait(w.s, 0, &fault), more ? -EINVAL : 0);
    }
    assert_non_null(strstr(fault.text, "3 entries and 8 rows; it was bounded to 2 and 7"));
    k_graph_free(g);
    world_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_no_result_depends_on_them),
            cmocka_unit_test(test_a_plan_beyond_them_is_a_fault),
            cmocka_unit_test(test_a_longer_sequence_is_a_fault),
            cmocka_unit_test(test_a_graph_keeps_the_bounds_it_was_captured_under),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
