/* A step's frame: what rows become, and the operations on them; graphs, streams, memory. What only a look inside a
 * library can show is in unit/kernels_cpu. */
#include "tests/unit/kernels/fixture.h"

static const struct k_shape shape = {.tp = 1,
        .hidden_size = 24,
        .vocab_size = 90,
        .vocab_rows = 90,
        .q_heads = 2,
        .kv_heads = 1,
        .head_dim = 16,
        .rotary_dim = 8,
        .n_attention_layers = 2,
        .gdn_k_heads = 1,
        .gdn_v_heads = 2,
        .gdn_k_dim = 8,
        .gdn_v_dim = 8,
        .conv_kernel = 4,
        .n_gdn_layers = 1,
        .intermediate_size = 32,
        .rms_eps = 1e-6f,
        .rope_theta = 1e6};
static const struct k_pool_options options = {
        .slots = 4, .pages = 8, .pages_per_slot = 4, .slot_units = 2, .page_units = 2, .kv_dtype = K_BF16};

/* What each row is, seen through a table whose row i holds i. */
static void test_rows_of_prompts_and_continues(void **state) {
    enum { H = 24 };
    static const uint32_t first[] = {10, 11, 12, 50, 51}, second[] = {44, 60, 61};
    struct world w;
    struct k_result results[2] = {{.id = 33}, {.id = 44}};
    struct k_outcome outcomes[1] = {{.n_samples = 1}};
    struct k_table *t = NULL;
    float table[90 * H];
    (void)state;
    for (uint32_t i = 0; i < 90 * H; i++)
        table[i] = (float)(i / H);
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    OK(k_table_load(w.c, table, K_F32, 90, H, true, &t, e));
    for (uint32_t slot = 1; slot <= 3; slot++)
        slot_new(&w, slot, NULL, slot, 1);
    step_new(&w);
    struct k_entry *entry = step_prompt(&w, 2, 0, 3, 10);
    entry->flags = K_ENTRY_SAMPLE;
    entry->sample_at = 1;
    step_prompt(&w, 3, 0, 2, 50);
    step_begin_now(&w);
    float *x = room(&w, 5 * H);
    k_embed(w.s, w.b, t, x);
    k_end_step(
            w.s, w.p, w.b, dev_bytes(&w, results, sizeof results), dev_bytes(&w, outcomes, sizeof outcomes));
    const float *got = host(&w, x, 5 * H);
    for (uint32_t r = 0; r < 5; r++)
        assert_true(got[r * H] == (float)first[r] && got[r * H + H - 1] == (float)first[r]);
    step_new(&w);
    step_continue(&w, 2);
    step_prompt(&w, 3, 2, 2, 60);
    step_begin_now(&w);
    k_embed(w.s, w.b, t, x);
    got = host(&w, x, 3 * H);
    for (uint32_t r = 0; r < 3; r++)
        assert_true(got[r * H] == (float)second[r]);
    k_table_free(t);
    world_close(&w);
}

static void test_ids_outside_the_vocabulary_are_a_fault(void **state) {
    struct world w;
    struct error e = {0};
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    slot_new(&w, 1, NULL, 1, 1);
    step_new(&w);
    step_prompt(&w, 1, 0, 2, 3);
    w.ids[1] = shape.vocab_size;
    step_begin_now(&w);
    assert_int_equal(k_stream_wait(w.s, 0, &e), -EINVAL);
    assert_non_null(strstr(e.text, "slot 1"));
    world_close(&w);
}

static void test_embed_final_norm_and_mtp_input(void **state) {
    enum { N = 5, H = 24 };
    struct world w;
    struct k_result results[1] = {{.id = 77}};
    float *table = random_floats(1, 90 * H, 1), *norm = random_floats(2, H, 1),
          *other = random_floats(3, H, 1);
    uint16_t half[90 * H];
    struct k_table *embedding;
    (void)state;
    for (uint32_t i = 0; i < 90 * H; i++) {
        half[i] = to_bf16(table[i]);
        table[i] = of_bf16(half[i]);
    }
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    for (uint32_t slot = 1; slot <= 3; slot++)
        slot_new(&w, slot, NULL, slot, 1);
    step_new(&w);
    step_prompt(&w, 1, 0, 2, 10)->id_after = 60;
    struct k_entry *sampling = step_prompt(&w, 2, 0, 2, 20);
    sampling->flags = K_ENTRY_SAMPLE;
    step_prompt(&w, 3, 0, 1, 30);
    step_begin_now(&w);
    OK(k_table_load(w.c, half, K_BF16, 90, H, true, &embedding, e));
    float *d_x = room(&w, N * H), *d_y = room(&w, N * H), *d_out = room(&w, N * 2 * H);
    const float *d_norm = dev(&w, norm, H), *d_other = dev(&w, other, H);
    k_embed(w.s, w.b, embedding, d_x);
    const float *x = host(&w, d_x, N * H);
    static const uint32_t ids[N] = {10, 11, 20, 21, 30}, next[N] = {11, 60, 21, 77, 0};
    for (uint32_t r = 0; r < N; r++)
        assert_same_floats(x + r * H, table + ids[r] * H, H, "embed");
    k_final_norm(w.s, w.p, w.b, d_x, d_norm, 1e-6f, d_y, /* keep= */ true);
    k_mtp_input(w.s, w.p, w.b, embedding, d_y, d_other, d_norm, 1e-6f, dev_bytes(&w, results, sizeof results),
            d_out);
    const float *y = host(&w, d_y, N * H), *out = host(&w, d_out, N * 2 * H);
    for (uint32_t r = 0; r < N; r++) {
        double square[3] = {0}, expected[3][H];
        for (uint32_t i = 0; i < H; i++) {
            square[0] += (double)x[r * H + i] * x[r * H + i];
            square[1] += (double)table[next[r] * H + i] * table[next[r] * H + i];
            square[2] += (double)y[r * H + i] * y[r * H + i];
        }
        for (uint32_t i = 0; i < H; i++) {
            expected[0][i] = x[r * H + i] / sqrt(square[0] / H + 1e-6) * norm[i];
            expected[1][i] = table[next[r] * H + i] / sqrt(square[1] / H + 1e-6) * other[i];
            expected[2][i] = y[r * H + i] / sqrt(square[2] / H + 1e-6) * norm[i];
        }
        assert_near(y + r * H, expected[0], H, 1e-6, "final norm");
        assert_near(out + r * 2 * H, expected[1], H, 1e-6, "embedding half");
        assert_near(out + r * 2 * H + H, expected[2], H, 1e-6, "hidden half");
    }
    k_table_free(embedding);
    free(table), free(norm), free(other);
    world_close(&w);
}

struct work {
    struct k_linear *l;
    struct k_table *table;
    float *y; /* [4000]: embeddings, and from 1000 on products */
};
static void queue_step(struct world *w, const struct work *k) {
    k_begin_step(w->s, w->p, w->b);
    k_embed(w->s, w->b, k->table, k->y);
    k_project(w->s, w->b, k->y, k->l, k->y + 1000);
    k_end_step(w->s, w->p, w->b, NULL, NULL);
}

static void test_a_graph_replays_with_new_contents(void **state) {
    struct world w;
    struct work k = {0};
    float *table = random_floats(1, 90 * 24, 1), direct[4000], replayed[4000];
    struct k_graph *g = NULL;
    struct k_event *ev = NULL;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 2, NULL));
    struct k_matrix_view v = {
            .data = random_floats(3, 40 * 24, 1), .row_stride = 24, .rows = 40, .dtype = K_F32};
    struct k_linear_spec spec = {.pieces = &v, .n_pieces = 1, .columns = 24, .leaves = 8, .name = "w"};
    OK(k_linear_pack(w.c, &spec, &k.l, e));
    OK(k_table_load(w.c, table, K_F32, 90, 24, true, &k.table, e));
    k.y = room(&w, 4000);
    slot_new(&w, 1, NULL, 1, 1);
    slot_new(&w, 2, NULL, 2, 1);
    OK(k_event_create(w.c, &ev, e));
    OK(k_capture_begin(w.s, e));
    assert_int_equal(k_capture_begin(w.s, NULL), -EBUSY);
    queue_step(&w, &k);
    OK(k_capture_end(w.s, &g, e));
    assert_false(k_event_done(ev));
    for (uint32_t round = 0, at = 0; round < 3; round++) {
        step_new(&w);
        step_prompt(&w, 2, at, round + 1, 5 + round * 20);
        k_batch_upload(w.s, w.b, &w.plan, w.entries, w.ids, w.n_ids, NULL, 0);
        queue_step(&w, &k);
        fetch(&w, direct, k.y, sizeof direct);
        memset(replayed, 0, sizeof replayed);
        k_upload(w.s, k.y, replayed, sizeof replayed);
        OK(k_stream_wait(w.s, 0, e));
        step_new(&w);
        step_prompt(&w, 1, at, round + 1, 5 + round * 20);
        k_batch_upload(w.s, w.b, &w.plan, w.entries, w.ids, w.n_ids, NULL, 0);
        k_graph_launch(w.s, g);
        k_event_record(w.s, ev);
        at += round + 1;
        fetch(&w, replayed, k.y, sizeof replayed);
        assert_same_floats(replayed, direct, 24 * (round + 1), "embedding");
        assert_same_floats(replayed + 1000, direct + 1000, 40 * (round + 1), "projection");
    }
    assert_true(k_event_done(ev));
    assert_int_equal(k_event_wait(ev, 1), 0);
    assert_int_equal(k_capture_end(w.s, &g, NULL), -EINVAL);
    k_event_free(ev);
    k_graph_free(g);
    k_linear_free(k.l);
    k_table_free(k.table);
    free((void *)v.data), free(table);
    world_close(&w);
}

static void test_vectors_and_taps(void **state) {
    const float taps[3][2] = {{1, 2}, {3, 4}, {5, 6}}, expected[2][3] = {{1, 3, 5}, {2, 4, 6}};
    const float moved[6] = {2, 3, 4, 5, 6, 7};
    float *turned, *vector, got[6];
    struct world w;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    OK(k_taps_load(w.c, taps, K_F32, 3, 2, &turned, e));
    OK(k_vector_load(w.c, taps, K_F32, 6, 1.0f, &vector, e));
    fetch(&w, got, turned, sizeof got);
    assert_memory_equal(got, expected, sizeof expected);
    fetch(&w, got, vector, sizeof got);
    assert_memory_equal(got, moved, sizeof moved);
    k_free(w.c, turned);
    k_free(w.c, vector);
    world_close(&w);
}

/* Much is copied to a device in parts, through buffers that are used again. */
static void test_a_vector_of_many_parts(void **state) {
    const uint32_t n = (68u << 18) + 3;
    float *from = random_floats(5, n, 1), *vector;
    struct world w;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 2, NULL));
    OK(k_vector_load(w.c, from, K_F32, n, 0.0f, &vector, e));
    assert_memory_equal(host(&w, vector, n), from, n * sizeof *from);
    k_free(w.c, vector);
    free(from);
    world_close(&w);
}

static void test_a_linear_of_many_parts(void **state) {
    enum { N = 20011, K = 512 }; /* bf16: 20 MB */
    uint16_t *data = calloc((size_t)N * K, sizeof *data);
    float x[K], *y = malloc(N * sizeof *y), *expected = malloc(N * sizeof *expected);
    struct k_matrix_view v = {.data = data, .row_stride = K, .rows = N, .dtype = K_BF16};
    struct k_linear_spec spec = {.pieces = &v, .n_pieces = 1, .columns = K, .leaves = 1, .name = "w"};
    struct k_linear *l = NULL;
    struct world w;
    (void)state;
    for (uint32_t k = 0; k < K; k++)
        x[k] = (float)k;
    for (uint32_t r = 0; r < N; r++) {
        data[(size_t)r * K + r % K] = to_bf16((float)(1 + r % 7));
        expected[r] = (float)(r % K * (1 + r % 7));
    }
    assert_true(world_open(&w, &shape, &options, NULL, 2, NULL));
    OK(k_linear_pack(w.c, &spec, &l, e));
    slot_new(&w, 1, NULL, 1, 1);
    step_new(&w);
    step_prompt(&w, 1, 0, 1, 1);
    step_begin_now(&w);
    k_batch_bounds(w.b, &(struct k_bounds){1, 1, 64});
    project(&w, l, K, x, y);
    assert_same_floats(y, expected, N, "a product with packed parts");
    k_linear_free(l);
    free(data), free(y), free(expected);
    world_close(&w);
}

static void test_memory(void **state) {
    struct world w;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    assert_true(k_memory_free(w.c) > 1u << 20);
    for (size_t bytes = 1; bytes < 8u << 20; bytes *= 3) {
        uint8_t *p = k_alloc(w.c, bytes), *h = k_host_alloc(w.c, bytes), *back = malloc(bytes);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(back, 0xff, bytes);
        fetch(&w, back, p, bytes);
        for (size_t i = 0; i < bytes; i++)
            assert_true(back[i] == 0 && h[i] == 0);
        memset(h, 0xff, bytes); /* so that what is given out again is zero again */
        k_upload(w.s, p, h, bytes);
        OK(k_stream_wait(w.s, 0, e));
        k_free(w.c, p);
        k_host_free(w.c, h);
        free(back);
    }
    assert_null(k_alloc(w.c, SIZE_MAX));
    assert_null(k_alloc(w.c, SIZE_MAX / 4));
    k_free(w.c, NULL);
    world_close(&w);
}

static void test_pool_cost(void **state) {
    struct k_pool_cost small, large;
    struct k_pool_options o = options;
    struct error e;
    struct k_pool *p = NULL;
    struct k_context *c = context(NULL, 1);
    (void)state;
    k_pool_cost(&shape, &o, &small);
    assert_int_equal(
            small.page_bytes, 2 * 1 * 2 * 64 * 16 * 2); /* layers, heads, K and V, tokens, D, bytes */
    o.kv_dtype = K_F32;
    k_pool_cost(&shape, &o, &large);
    assert_int_equal(large.page_bytes, 2 * small.page_bytes);
    o.slots = SEQS_MAX + 1;
    assert_int_equal(k_pool_create(c, &shape, &o, &p, &e), -EINVAL);
    assert_null(p);
    k_context_free(c);
}

static void test_a_small_workspace_is_a_fault(void **state) {
    struct world w;
    struct error fault = {0};
    float x[24] = {0};
    struct k_linear *l = NULL;
    struct k_matrix_view v = {.data = x, .row_stride = 24, .rows = 1, .dtype = K_F32};
    struct k_linear_spec spec = {.pieces = &v, .n_pieces = 1, .columns = 24, .leaves = 1, .name = "w"};
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    OK(k_linear_pack(w.c, &spec, &l, e));
    step_new(&w);
    step_prompt(&w, 1, 0, 1, 1);
    step_begin_now(&w);
    k_stream_set_workspace(w.s, w.workspace, 64);
    k_project(w.s, w.b, dev(&w, x, 24), l, room(&w, 1));
    assert_int_equal(k_stream_wait(w.s, 0, &fault), -ENOBUFS);
    assert_non_null(strstr(fault.text, "k_workspace_bytes"));
    w.plan.n_rows = 1 << 20; /* the fault that stays is the first */
    step_begin_now(&w);
    assert_int_equal(k_stream_error(w.s, &fault), -ENOBUFS);
    k_linear_free(l);
    world_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_rows_of_prompts_and_continues),
            cmocka_unit_test(test_ids_outside_the_vocabulary_are_a_fault),
            cmocka_unit_test(test_embed_final_norm_and_mtp_input),
            cmocka_unit_test(test_pool_cost),
            cmocka_unit_test(test_a_graph_replays_with_new_contents),
            cmocka_unit_test(test_memory),
            cmocka_unit_test(test_vectors_and_taps),
            cmocka_unit_test(test_a_vector_of_many_parts),
            cmocka_unit_test(test_a_linear_of_many_parts),
            cmocka_unit_test(test_a_small_workspace_is_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
