/* A layer whose products know what is multiplied after them: what a mixer or a product leaves in the form of the
 * product after it, and what comes to the cache early, change no bit of anything. Heads of Qwen3.5, which have kernels
 * of their own. */
#include "tests/unit/kernels/quantised.h"

#define HIDDEN 256u
#define MIDDLE 256u
#define ROWS   24u /* of a step, at most: more than a stream takes */

static const struct k_shape shape = {.tp = 1,
        .hidden_size = HIDDEN,
        .intermediate_size = MIDDLE,
        .vocab_size = 100,
        .vocab_rows = 100,
        .q_heads = 2,
        .kv_heads = 1,
        .head_dim = 256,
        .rotary_dim = 64,
        .gdn_k_heads = 1,
        .gdn_v_heads = 2,
        .gdn_k_dim = 128,
        .gdn_v_dim = 128,
        .conv_kernel = 4,
        .n_attention_layers = 1,
        .n_gdn_layers = 1,
        .rms_eps = 1e-6f,
        .rope_theta = 1e7f};
static const struct k_pool_options pool = {
        .slots = 3, .pages = 6, .pages_per_slot = 2, .slot_units = 1, .kv_dtype = K_BF16};
static const uint32_t mixer_rows[2] = {4 * 128 + 2 * 128 + 2 * 2, 2 * 2 * 256 + 2 * 256},
                      mixer_columns[2] = {2 * 128, 2 * 256}; /* of Gated DeltaNet, of attention */

struct layer {
    bool attention;
    struct k_linear *in, *out, *gate_up, *down;
    struct k_gdn_weights gdn;
    struct k_attention_weights heads;
    float *norm, *x, *mixer_in, *mixed, *part, *middle; /* on the device */
};
static struct k_linear *int4(
        struct world *w, uint32_t rows, uint32_t pieces, uint32_t columns, uint64_t seed) {
    const struct quant_matrix q = {.format = QUANT_INT4,
            .scale = QUANT_SCALE_BF16,
            .group = 128,
            .rows = rows,
            .columns = columns,
            .label = "int4"};
    const struct k_matrix_view v[2] = {{.quant = &q, .rows = rows}, {.quant = &q, .rows = rows}};
    const struct k_linear_spec spec = {
            .pieces = v, .n_pieces = pieces, .columns = columns, .leaves = columns / 128, .name = "layer"};
    struct k_linear *l = NULL;
    OK(k_linear_dummy(w->c, &spec, seed, 0.1f, &l, e));
    return l;
}
static float *random_on(struct world *w, uint64_t seed, size_t n) {
    float *x = random_floats(seed, n, 1.0f), *d_x = dev(w, x, n);
    free(x);
    return d_x;
}
static void layer_open(struct layer *l, struct world *w, bool attention, bool chained) {
    const uint32_t rows = mixer_rows[attention], columns = mixer_columns[attention];
    *l = (struct layer){.attention = attention,
            .in = int4(w, rows, 1, HIDDEN, 1),
            .out = int4(w, HIDDEN, 1, columns, 2),
            .gate_up = int4(w, MIDDLE, 2, HIDDEN, 3),
            .down = int4(w, HIDDEN, 1, MIDDLE, 4),
            .gdn = {random_on(w, 5, 4 * 512), random_on(w, 6, 2), random_on(w, 7, 2), random_on(w, 8, 128)},
            .heads = {random_on(w, 9, 256), random_on(w, 10, 256)},
            .norm = random_on(w, 11, HIDDEN),
            .x = room(w, ROWS * HIDDEN),
            .mixer_in = room(w, (size_t)ROWS * rows),
            .mixed = room(w, (size_t)ROWS * columns),
            .part = room(w, ROWS * HIDDEN),
            .middle = room(w, ROWS * MIDDLE)};
    if (!chained)
        return;
    k_linear_then(l->in, l->out, NULL, false);
    k_linear_then(l->out, l->gate_up, l->norm, false);
    k_linear_then(l->gate_up, l->down, NULL, true);
    k_linear_then(l->down, l->in, l->norm, false);
}
static void layer_close(struct layer *l) {
    k_linear_free(l->in);
    k_linear_free(l->out);
    k_linear_free(l->gate_up);
    k_linear_free(l->down);
}
static void layer_queue(struct layer *l, struct world *w) {
    k_norm_project(w->s, w->b, l->x, l->norm, 1e-6f, l->in, l->mixer_in);
    if (l->attention)
        k_attention_step(w->s, w->p, w->b, 0, 0, &l->heads, l->mixer_in, l->mixed);
    else
        k_gdn_step(w->s, w->p, w->b, 0, &l->gdn, l->mixer_in, l->mixed);
    k_project_residual(w->s, w->m, w->b, l->out, l->mixed, l->part, l->x);
    k_norm_gate_up(w->s, w->b, l->x, l->norm, 1e-6f, l->gate_up, l->middle);
    k_project_residual(w->s, w->m, w->b, l->down, l->middle, l->part, l->x);
}

/* Rows of slot 1, and of slot 2 behind the first step; x is what the step before has left. */
struct step {
    uint32_t rows[2];
};
/* kept[step][ROWS][HIDDEN]; returns nodes of the last step. */
static uint32_t steps_run(
        struct layer *l, struct world *w, const struct step *steps, uint32_t n, float *kept) {
    uint32_t at[2] = {0, 0}, nodes = 0;
    float *x = random_floats(12, ROWS * HIDDEN, 1.0f);
    slot_new(w, 1, NULL, 0, 2);
    slot_new(w, 2, NULL, 2, 2);
    k_upload(w->s, l->x, x, ROWS * HIDDEN * sizeof *x);
    for (uint32_t i = 0; i < n; i++) {
        struct k_graph *g = NULL;
        step_new(w);
        for (uint32_t slot = 0; slot < 2; slot++) {
            if (steps[i].rows[slot])
                step_prompt(w, slot + 1, at[slot], steps[i].rows[slot], 1);
            at[slot] += steps[i].rows[slot];
        }
        const struct k_bounds bounds = {w->plan.n_rows, w->plan.n_entries, 128};
        k_batch_bounds(w->b, &bounds);
        step_begin_now(w);
        layer_queue(l, w);
        k_end_step(w->s, w->p, w->b, NULL, NULL);
        fetch(w, kept + (size_t)i * ROWS * HIDDEN, l->x, ROWS * HIDDEN * sizeof *kept);
        if (i + 1 < n || !k_runs_behind(w->c))
            continue;
        OK(k_capture_begin(w->s, e));
        layer_queue(l, w);
        OK(k_capture_end(w->s, &g, e));
        nodes = k_graph_nodes(g);
        k_graph_free(g);
    }
    free(x);
    return nodes;
}
static void compare(bool attention, const struct step *steps, uint32_t n, bool saves_nodes) {
    const size_t all = (size_t)n * ROWS * HIDDEN;
    float *kept[2] = {random_floats(1, all, 1.0f), random_floats(2, all, 1.0f)};
    uint32_t nodes[2];
    for (int chained = 0; chained < 2; chained++) {
        struct world w;
        struct layer l;
        assert_true(world_open(&w, &shape, &pool, NULL, 2, NULL));
        layer_open(&l, &w, attention, chained);
        nodes[chained] = steps_run(&l, &w, steps, n, kept[chained]);
        layer_close(&l);
        world_close(&w);
    }
    assert_same_floats(kept[1], kept[0], all, attention ? "attention" : "Gated DeltaNet");
    assert_true(isfinite(kept[0][0]));
    if (saves_nodes && nodes[0])
        assert_true(nodes[1] < nodes[0]); /* rounding is the mixer's */
    free(kept[0]);
    free(kept[1]);
}

/* A token's rows, beyond a block of Gated DeltaNet; and steps of several rows of one entry and of two. */
static void test_gated_deltanet(void **state) {
    static const struct step steps[] = {{{1, 0}}, {{1, 0}}, {{7, 0}}, {{7, 0}}, {{1, 0}}, {{1, 0}}, {{1, 1}},
            {{1, 0}}, {{3, 1}}, {{1, 0}}};
    (void)state;
    compare(/* attention= */ false, steps, sizeof steps / sizeof *steps, /* saves_nodes= */ false);
}
static void test_attention(void **state) {
    static const struct step steps[] = {{{1, 0}}, {{1, 0}}, {{3, 2}}, {{1, 0}}, {{5, 1}}, {{18, 3}}};
    (void)state;
    compare(/* attention= */ true, steps, sizeof steps / sizeof *steps, /* saves_nodes= */ true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_gated_deltanet), cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
