/* What only kernels/cpu can show of a step's frame: the rows and slots it keeps, its arenas, its limits. */
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
    struct k_outcome outcomes[2] = {{.n_samples = 1}};
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
    k_end_step(w.s, w.p, w.b, results, outcomes);
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
    k_end_step(w.s, w.p, w.b, NULL, NULL);
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

static void test_final_norm_keeps_the_last_row_of_each_entry(void **state) {
    enum { H = 24 };
    struct world w;
    float *x = random_floats(1, 4 * H, 1), *norm = random_floats(2, H, 1), *y = random_floats(3, 4 * H, 1);
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    step_new(&w);
    step_prompt(&w, 1, 0, 2, 10);
    step_prompt(&w, 2, 0, 2, 20);
    step_begin_now(&w);
    k_final_norm(w.s, w.p, w.b, x, norm, 1e-6f, y, /* keep= */ true);
    assert_same_floats(w.p->hidden + 1 * H, y + 1 * H, H, "hidden of slot 1");
    assert_same_floats(w.p->hidden + 2 * H, y + 3 * H, H, "hidden of slot 2");
    free(x), free(norm), free(y);
    world_close(&w);
}

/* Slot 1 gets a prompt and two samples; what follows is checked on slots 2 to 4. */
static void test_snapshots_and_copies_of_slots(void **state) {
    struct world w;
    struct k_result results[1] = {{.id = 33}};
    struct k_outcome outcomes[1] = {{.n_samples = 1}};
    (void)state;
    assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
    for (uint32_t slot = 1; slot <= 4; slot++)
        slot_new(&w, slot, NULL, slot, 1);
    step_new(&w);
    step_prompt(&w, 1, 0, 3, 10)->flags = K_ENTRY_SAMPLE;
    step_begin_now(&w);
    k_end_step(w.s, w.p, w.b, results, outcomes);
    step_new(&w);
    step_continue(&w, 1)->flags = K_ENTRY_SAMPLE;
    step_begin_now(&w);
    results[0].id = 34;
    k_end_step(w.s, w.p, w.b, results, outcomes);
    assert_int_equal(w.p->slots[1].sample_index, 2);
    w.p->hidden[1 * shape.hidden_size + 5] = 42;
    ((float *)pool_gdn(w.p, 1, 0).s0)[3] = 43;
    const struct k_memory_op ops[] = {{K_MEM_COPY_SLOT, 1, 2}, {K_MEM_SNAPSHOT_SLOT, 1, 1},
            {K_MEM_ZERO_SLOT, 1, 0}, {K_MEM_RESTORE_SLOT, 1, 3}};
    k_memory(w.s, w.p, ops, 4);
    for (uint32_t slot = 2; slot <= 3; slot++) {
        assert_int_equal(w.p->slots[slot].length, 4);
        assert_true(w.p->hidden[slot * shape.hidden_size + 5] == 42 &&
                    ((float *)pool_gdn(w.p, slot, 0).s0)[3] == 43);
    }
    assert_int_equal(w.p->slots[1].length, 0);
    assert_true(w.p->hidden[shape.hidden_size + 5] == 0 && ((float *)pool_gdn(w.p, 1, 0).s0)[3] == 0);
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

static void test_names_of_contexts(void **state) {
    struct k_context *c = context("plain", 3);
    struct k_context_options o = {.isa = "sse9"};
    struct error e;
    (void)state;
    assert_string_equal(k_context_describe(c), "cpu plain, 3 threads");
    k_context_free(c);
    assert_int_equal(k_context_create(&o, &c, &e), -EINVAL);
    assert_non_null(strstr(e.text, "sse9"));
    c = context("avx512-base", 1);
    assert_true(!c || c->isa == &isa_avx512);
    k_context_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_rows_of_prompts_and_continues),
            cmocka_unit_test(test_final_norm_keeps_the_last_row_of_each_entry),
            cmocka_unit_test(test_snapshots_and_copies_of_slots),
            cmocka_unit_test(test_pool_cost_and_refusals),
            cmocka_unit_test(test_blocks_of_arenas),
            cmocka_unit_test(test_names_of_contexts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
