/* A step's frame: what rows become, what slots keep, and the operations on them; graphs, streams, contexts.
 */
#include "tests/unit/kernels/fixture.h"

#include "kernels/cpu/internal.h"

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

static void test_rows_of_prompts_and_continues(void **state) {
    struct world w;
    struct k_result results[2] = {{.id = 33}, {.id = 44}};
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    for (uint32_t slot = 1; slot <= 3; slot++)
        slot_new(&w, slot, NULL, slot, 1);
    step_new(&w);
    struct k_entry *entry = step_prompt(&w, 2, 0, 3, 10);
    entry->flags = K_ENTRY_SAMPLE;
    entry->sample_at = 1;
    entry = step_prompt(&w, 3, 0, 2, 50);
    entry->rope_at = 0;
    w.n_rope = 6;
    memcpy(w.rope, (uint32_t[]){7, 8, 9, 70, 80, 90}, 6 * sizeof *w.rope);
    step_begin_now(&w);
    assert_memory_equal(w.b->row_id, ((uint32_t[]){10, 11, 12, 50, 51}), 20);
    assert_memory_equal(w.b->row_pos, ((uint32_t[]){0, 1, 2, 0, 1}), 20);
    assert_memory_equal(w.b->row_rope, ((uint32_t[]){0, 0, 0, 1, 1, 1, 2, 2, 2, 7, 8, 9, 70, 80, 90}), 60);
    k_end_step(w.s, w.p, w.b, results);
    step_new(&w);
    step_continue(&w, 2);
    step_prompt(&w, 3, 2, 2, 60);
    step_begin_now(&w);
    assert_memory_equal(w.b->row_id, ((uint32_t[]){44, 60, 61}), 12);
    assert_memory_equal(w.b->row_pos, ((uint32_t[]){3, 2, 3}), 12);
    const uint16_t *counts = w.p->counts + 2 * shape.vocab_size;
    assert_int_equal(counts[11], COUNT_PROMPT);
    assert_int_equal(counts[44], 1);
    assert_int_equal(counts[33], 0);
    k_end_step(w.s, w.p, w.b, NULL);
    assert_int_equal(w.p->slots[2].length, 4);
    assert_int_equal(w.p->slots[3].length, 4);
    /* a replay of generated ids counts as output */
    step_new(&w);
    step_prompt(&w, 3, 4, 2, 60)->flags = K_ENTRY_GENERATED;
    step_begin_now(&w);
    assert_int_equal(w.p->counts[3 * shape.vocab_size + 60], COUNT_PROMPT | 1);
    OK(k_stream_wait(w.s, 0, e));
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
    assert_int_equal(w.b->row_id[1], 0);
    assert_int_equal(k_stream_error(w.s, &e), -EINVAL);
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
    float x[N * H], y[N * H], out[N * 2 * H];
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
    k_embed(w.s, w.b, embedding, x);
    static const uint32_t ids[N] = {10, 11, 20, 21, 30}, next[N] = {11, 60, 21, 77, 0};
    for (uint32_t r = 0; r < N; r++)
        assert_same_floats(x + r * H, table + ids[r] * H, H, "embed");
    k_final_norm(w.s, w.p, w.b, x, norm, 1e-6f, y);
    k_mtp_input(w.s, w.p, w.b, embedding, y, other, norm, 1e-6f, results, out);
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
    assert_same_floats(w.p->hidden + 1 * H, y + 1 * H, H, "hidden of slot 1");
    assert_same_floats(w.p->hidden + 2 * H, y + 3 * H, H, "hidden of slot 2");
    k_table_free(embedding);
    free(table), free(norm), free(other);
    world_close(&w);
}

/* Slot 1 gets a prompt and two samples; what follows is checked on slots 2 to 4. */
static void test_snapshots_and_copies_of_slots(void **state) {
    struct world w;
    struct k_result results[1] = {{.id = 33}};
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    for (uint32_t slot = 1; slot <= 4; slot++)
        slot_new(&w, slot, NULL, slot, 1);
    step_new(&w);
    step_prompt(&w, 1, 0, 3, 10)->flags = K_ENTRY_SAMPLE;
    step_begin_now(&w);
    k_end_step(w.s, w.p, w.b, results);
    step_new(&w);
    step_continue(&w, 1)->flags = K_ENTRY_SAMPLE;
    step_begin_now(&w);
    results[0].id = 34;
    k_end_step(w.s, w.p, w.b, results);
    w.p->hidden[1 * shape.hidden_size + 5] = 42;
    pool_gdn(w.p, 1, 0).s0[3] = 43;
    const struct k_memory_op ops[] = {{K_MEM_COPY_SLOT, 1, 2}, {K_MEM_SNAPSHOT_SLOT, 1, 1},
            {K_MEM_ZERO_SLOT, 1, 0}, {K_MEM_RESTORE_SLOT, 1, 3}};
    k_memory(w.s, w.p, ops, 4);
    for (uint32_t slot = 2; slot <= 3; slot++) {
        assert_int_equal(w.p->slots[slot].length, 4);
        assert_true(w.p->hidden[slot * shape.hidden_size + 5] == 42 && pool_gdn(w.p, slot, 0).s0[3] == 43);
    }
    assert_int_equal(w.p->slots[1].length, 0);
    assert_true(w.p->hidden[shape.hidden_size + 5] == 0 && pool_gdn(w.p, 1, 0).s0[3] == 0);
    const uint16_t *copy = w.p->counts + 2 * shape.vocab_size, *restored = w.p->counts + 3 * shape.vocab_size;
    assert_int_equal(w.p->slots[2].last_id, 34);
    assert_true(copy[10] == COUNT_PROMPT && copy[33] == 1 && copy[34] == 1);
    /* a sequence that goes on from a snapshot was given all of it; id 34 has no position yet */
    assert_true(restored[10] == COUNT_PROMPT && restored[33] == COUNT_PROMPT && restored[34] == 0 &&
                restored[9] == 0);
    k_slot_close(w.s, w.p, 3);
    slot_new(&w, 3, NULL, 3, 1);
    assert_int_equal(restored[10], 0);
    OK(k_stream_wait(w.s, 0, e));
    world_close(&w);
}

static void test_pool_cost_and_refusals(void **state) {
    struct k_pool_cost small, large;
    struct k_pool_options o = options;
    struct k_shape h = shape;
    struct k_pool *p = NULL;
    struct error e;
    struct k_context *c = context(NULL, 1);
    (void)state;
    k_pool_cost(&shape, &o, &small);
    assert_int_equal(
            small.page_bytes, 2 * 1 * 2 * 64 * 16 * 2); /* layers, heads, K and V, tokens, D, bytes */
    o.kv_dtype = K_F32;
    o.pages_per_slot++;
    o.slot_units++;
    k_pool_cost(&shape, &o, &large);
    assert_int_equal(large.page_bytes, 2 * small.page_bytes);
    assert_int_equal(large.slot_bytes, small.slot_bytes + 4);
    assert_true(large.fixed_bytes > small.fixed_bytes + small.page_bytes);
    o.slots = SEQS_MAX + 1;
    assert_int_equal(k_pool_create(c, &h, &o, &p, &e), -EINVAL);
    o.slots = 1;
    h.head_dim = HEAD_DIM_MAX + 1;
    assert_int_equal(k_pool_create(c, &h, &o, &p, &e), -ENOTSUP);
    h = shape;
    h.gdn_v_dim = GDN_DIM_MAX + 1;
    assert_int_equal(k_pool_create(c, &h, &o, &p, &e), -ENOTSUP);
    h = shape;
    o.pages = UINT32_MAX;
    h.head_dim = 512;
    h.kv_heads = h.q_heads = 1u << 24;
    assert_int_equal(k_pool_create(c, &h, &o, &p, &e), -ENOMEM);
    assert_null(p);
    k_context_free(c);
}

struct work {
    struct k_linear *l;
    struct k_table *table;
    float *x, *y;
};
static void queue_step(struct world *w, const struct work *k) {
    k_batch_upload(w->s, w->b, &w->plan, w->entries, w->ids, 8, w->rope, 0);
    k_begin_step(w->s, w->p, w->b);
    k_embed(w->s, w->b, k->table, k->y);
    k_project(w->s, w->b, k->y, k->l, k->y + 1000);
    k_end_step(w->s, w->p, w->b, NULL);
}

static void test_a_graph_replays_with_new_contents(void **state) {
    struct world w;
    struct work k = {.x = random_floats(1, 90 * 24, 1), .y = random_floats(2, 4000, 1)};
    float direct[4000];
    struct k_graph *g = NULL;
    struct k_event *ev = NULL;
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 2, NULL));
    struct k_matrix_view v = {
            .data = random_floats(3, 40 * 24, 1), .row_stride = 24, .rows = 40, .dtype = K_F32};
    struct k_linear_spec spec = {.pieces = &v, .n_pieces = 1, .columns = 24, .leaves = 8, .name = "w"};
    OK(k_linear_pack(w.c, &spec, &k.l, e));
    OK(k_table_load(w.c, k.x, K_F32, 90, 24, true, &k.table, e));
    slot_new(&w, 1, NULL, 1, 1);
    slot_new(&w, 2, NULL, 2, 1);
    OK(k_event_create(w.c, &ev, e));
    OK(k_capture_begin(w.s, e));
    assert_int_equal(k_capture_begin(w.s, NULL), -EBUSY);
    queue_step(&w, &k);
    k_event_record(w.s, ev);
    OK(k_capture_end(w.s, &g, e));
    assert_false(k_event_done(ev));
    assert_int_equal(w.p->slots[1].length, 0);
    for (uint32_t round = 0, at = 0; round < 3; round++) {
        step_new(&w);
        step_prompt(&w, 2, at, round + 1, 5 + round * 20);
        queue_step(&w, &k);
        memcpy(direct, k.y, sizeof direct);
        memset(k.y, 0, sizeof direct);
        step_new(&w);
        step_prompt(&w, 1, at, round + 1, 5 + round * 20);
        k_graph_launch(w.s, g);
        at += round + 1;
        assert_int_equal(w.p->slots[1].length, at);
        assert_same_floats(k.y, direct, 24 * (round + 1), "embedding");
        assert_same_floats(k.y + 1000, direct + 1000, 40 * (round + 1), "projection");
    }
    assert_true(k_event_done(ev));
    assert_int_equal(k_event_wait(ev, 1), 0);
    assert_int_equal(k_capture_end(w.s, &g, NULL), -EINVAL);
    k_event_free(ev);
    k_graph_free(g);
    k_linear_free(k.l);
    k_table_free(k.table);
    free((void *)v.data), free(k.x), free(k.y);
    world_close(&w);
}

static void test_contexts_and_memory(void **state) {
    struct k_context *c = context("plain", 3);
    struct k_context_options o = {.isa = "sse9"};
    struct error e;
    (void)state;
    assert_string_equal(k_context_describe(c), "cpu plain, 3 threads");
    assert_int_equal(k_context_create(&o, &c, &e), -EINVAL);
    assert_non_null(strstr(e.text, "sse9"));
    assert_true(k_memory_free(c) > 1u << 20);
    for (size_t bytes = 1; bytes < 8u << 20; bytes *= 3) {
        uint8_t *p = k_alloc(c, bytes), *h = k_host_alloc(c, bytes);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t i = 0; i < bytes; i++)
            assert_true(p[i] == 0 && h[i] == 0);
        memset(p, 0xff, bytes);
        memset(h, 0xff, bytes);
        k_free(c, p);
        k_host_free(c, h);
    }
    assert_null(k_alloc(c, SIZE_MAX));
    assert_null(k_alloc(c, SIZE_MAX / 4));
    k_free(c, NULL);
    k_context_free(c);
}

/* Blocks that share mappings: apart, zero, and there until they are freed, also when their context is gone. */
static void test_blocks_of_arenas(void **state) {
    enum { N = 60, BYTES = 5 << 20 };
    struct k_context *c = context("plain", 1);
    uint8_t *block[N];
    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        block[i] = k_alloc(c, BYTES);
        assert_non_null(block[i]);
        assert_int_equal((uintptr_t)block[i] % 64, 0);
        assert_true(block[i][0] == 0 && block[i][BYTES - 1] == 0);
        block[i][0] = block[i][BYTES - 1] = (uint8_t)(i + 1);
    }
    for (uint32_t i = 0; i < N; i += 2)
        k_free(c, block[i]);
    k_context_free(c);
    for (uint32_t i = 1; i < N; i += 2) {
        assert_true(block[i][0] == i + 1 && block[i][BYTES - 1] == i + 1);
        k_free(NULL, block[i]);
    }
}

static void test_taps_are_turned(void **state) {
    struct k_context *c = context("plain", 1);
    const float taps[3][2] = {{1, 2}, {3, 4}, {5, 6}}, expected[2][3] = {{1, 3, 5}, {2, 4, 6}};
    float *turned;
    (void)state;
    OK(k_taps_load(c, taps, K_F32, 3, 2, &turned, e));
    assert_memory_equal(turned, expected, sizeof expected);
    k_free(c, turned);
    k_context_free(c);
}

static void test_a_small_workspace_is_a_fault(void **state) {
    struct world w;
    struct error fault = {0};
    float x[24] = {0}, y[40];
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
    k_project(w.s, w.b, x, l, y);
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
            cmocka_unit_test(test_snapshots_and_copies_of_slots),
            cmocka_unit_test(test_pool_cost_and_refusals),
            cmocka_unit_test(test_a_graph_replays_with_new_contents),
            cmocka_unit_test(test_contexts_and_memory),
            cmocka_unit_test(test_blocks_of_arenas),
            cmocka_unit_test(test_taps_are_turned),
            cmocka_unit_test(test_a_small_workspace_is_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
