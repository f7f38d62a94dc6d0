/* Gated DeltaNet mixers of the CUDA library against those of the CPU library, to the bit: random shapes, entries of one
 * row and of hundreds side by side, slots zeroed and copied between steps, bounds that choose one kernel or the other,
 * drafts of which some are accepted, steps that are a graph's; S0 as fp32 and as fp16. */
#include "tests/unit/kernels_cuda/sides.h"

enum { SLOTS = 4, ROWS = 420 };

struct shape_case {
    uint32_t hk, hv, dk, dv, conv;
};
struct half { /* one library's */
    struct library k;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b;
    void *workspace;
    struct k_gdn_weights w;
    float *d_in, *d_out;
    struct k_result *d_results;   /* [ROWS] of zeros */
    struct k_outcome *d_outcomes; /* [SLOTS] */
};
static struct half cpu, cuda;
static struct library libraries[2];
static size_t compared;

struct problem {
    struct k_shape shape;
    uint32_t channels, width, out, drafts_max;
    enum k_dtype state_dtype;
    uint32_t length[SLOTS + 1];
};

static float *upload(struct half *h, uint64_t seed, size_t n, float scale) {
    float *from = random_floats(seed, n, scale), *to = h->k.k_alloc(h->c, n * sizeof *to);
    assert_non_null(to);
    h->k.k_upload(h->s, to, from, n * sizeof *to);
    OK(h->k.k_stream_wait(h->s, 0, e));
    free(from);
    return to;
}
static void half_open(struct half *h, struct library k, const struct problem *p, uint64_t seed) {
    const struct k_context_options o = {.threads = 2};
    const struct k_shape *shape = &p->shape;
    const struct k_pool_options pool = {.slots = SLOTS,
            .pages = 1,
            .pages_per_slot = 1,
            .slot_units = 1,
            .kv_dtype = K_F32,
            .state_dtype = p->state_dtype,
            .drafts_max = p->drafts_max};
    const struct k_sampling greedy_one = {.top_p = 1, .repetition_penalty = 1};
    *h = (struct half){.k = k};
    OK(k.k_context_create(&o, &h->c, e));
    OK(k.k_stream_create(h->c, &h->s, e));
    OK(k.k_pool_create(h->c, shape, &pool, &h->p, e));
    OK(k.k_batch_create(h->c, SLOTS, ROWS, &h->b, e));
    const size_t bytes = k.k_workspace_bytes(shape, ROWS, 1);
    h->workspace = k.k_alloc(h->c, bytes);
    assert_non_null(h->workspace);
    k.k_stream_set_workspace(h->s, h->workspace, bytes);
    h->w = (struct k_gdn_weights){upload(h, seed, (size_t)shape->conv_kernel * p->channels, 0.7f),
            upload(h, seed + 1, shape->gdn_v_heads, 1), upload(h, seed + 2, shape->gdn_v_heads, 1),
            upload(h, seed + 3, shape->gdn_v_dim, 1)};
    h->d_in = upload(h, 0, (size_t)ROWS * p->width, 1);
    h->d_out = upload(h, 0, (size_t)(ROWS + 1) * p->out, 1);
    h->d_results = k.k_alloc(h->c, ROWS * sizeof *h->d_results);
    h->d_outcomes = k.k_alloc(h->c, SLOTS * sizeof *h->d_outcomes);
    assert_true(h->d_results && h->d_outcomes);
    for (uint32_t slot = 1; slot <= SLOTS; slot++) {
        k.k_slot_open(h->s, h->p, slot, &greedy_one);
        k.k_memory(h->s, h->p, &(struct k_memory_op){K_MEM_ZERO_SLOT, slot, 0}, 1);
    }
}
static void half_close(struct half *h) {
    const float *const blocks[] = {h->w.conv, h->w.a_log, h->w.dt_bias, h->w.norm, h->d_in, h->d_out};
    OK(h->k.k_stream_wait(h->s, 0, e));
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        h->k.k_free(h->c, (void *)blocks[i]);
    h->k.k_free(h->c, h->workspace);
    h->k.k_free(h->c, h->d_results);
    h->k.k_free(h->c, h->d_outcomes);
    h->k.k_batch_free(h->b);
    h->k.k_pool_free(h->p);
    h->k.k_stream_free(h->s);
    h->k.k_context_free(h->c);
}
static void problem_open(struct problem *p, const struct shape_case *c, uint32_t drafts_max,
        enum k_dtype state_dtype, uint64_t seed) {
    *p = (struct problem){.drafts_max = drafts_max,
            .state_dtype = state_dtype,
            .shape = {.tp = 1,
                    .hidden_size = 16,
                    .vocab_size = 100,
                    .vocab_rows = 100,
                    .gdn_k_heads = c->hk,
                    .gdn_v_heads = c->hv,
                    .gdn_k_dim = c->dk,
                    .gdn_v_dim = c->dv,
                    .conv_kernel = c->conv,
                    .n_gdn_layers = 2,
                    .rms_eps = 1e-6f,
                    .rope_theta = 1e4}};
    p->channels = 2 * c->hk * c->dk + c->hv * c->dv;
    p->out = c->hv * c->dv;
    p->width = p->channels + p->out + 2 * c->hv;
    half_open(&cpu, libraries[0], p, seed);
    half_open(&cuda, libraries[1], p, seed);
}

/* --- a step on both --- */

struct step {
    struct k_plan plan;
    struct k_entry entries[SLOTS];
    uint32_t ids[ROWS];
    struct k_outcome outcomes[SLOTS];
};
/* The last entry goes on from its slot, with as many drafts as its rows and the pool allow; some are accepted. */
static void entry_speculates(struct step *t, struct problem *p, struct rng *r) {
    const uint32_t at = t->plan.n_entries - 1;
    struct k_entry *e = &t->entries[at];
    const uint32_t most = 1 + p->drafts_max, n = e->n_rows < most ? e->n_rows : most;
    const uint32_t accepted = rng_u32(r) % 2 ? n - 1 : rng_u32(r) % n;
    p->length[e->slot] -= e->n_rows - (1 + accepted);
    t->plan.n_rows -= e->n_rows - n;
    t->plan.n_samples += n;
    t->plan.n_outcomes = at + 1;
    t->outcomes[at] = (struct k_outcome){.n_samples = 1 + accepted, .n_accepted = accepted};
    e->kind = K_ENTRY_CONTINUE;
    e->flags = K_ENTRY_SAMPLE;
    e->n_rows = n;
    e->drafts_at = e->ids_at;
    e->outcome_at = at;
}
/* Each slot takes part with a few rows, many, or none. */
static void step_make(struct step *t, struct problem *p, struct rng *r, uint32_t rows_most) {
    *t = (struct step){0};
    for (uint32_t slot = 1; slot <= SLOTS; slot++) {
        const uint32_t kind = rng_u32(r) % 6, room = rows_most - t->plan.n_rows,
                       wanted = kind == 0   ? 0
                                : kind <= 2 ? 1
                                : kind <= 4 ? 1 + rng_u32(r) % 20
                                            : 60 + rng_u32(r) % 120,
                       n = wanted < room ? wanted : room;
        if (n == 0)
            continue;
        t->entries[t->plan.n_entries++] = (struct k_entry){.slot = slot,
                .kind = n == 1 && kind == 1 ? K_ENTRY_CONTINUE : K_ENTRY_PROMPT,
                .n_rows = n,
                .row_begin = t->plan.n_rows,
                .first_pos = p->length[slot],
                .ids_at = t->plan.n_rows,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = UINT32_MAX};
        p->length[slot] += n;
        t->plan.n_rows += n;
        if (p->drafts_max > 0 && kind <= 3)
            entry_speculates(t, p, r);
    }
}
static void queue(struct half *h) {
    h->k.k_begin_step(h->s, h->p, h->b);
    h->k.k_gdn_step(h->s, h->p, h->b, 1, &h->w, h->d_in, h->d_out);
    h->k.k_end_step(h->s, h->p, h->b, h->d_results, h->d_outcomes);
}
/* out[n_rows + 1][..]: the row behind the step's is nobody's. graph: NULL, or what is launched instead. */
static void run(struct half *h, const struct problem *p, const struct step *t, const struct k_bounds *bounds,
        struct k_graph *graph, const float *in, float *out) {
    const size_t bytes = (size_t)(t->plan.n_rows + 1) * p->out * sizeof *out;
    memset(out, 0xff, bytes);
    h->k.k_upload(h->s, h->d_out, out, bytes);
    h->k.k_upload(h->s, h->d_in, in, (size_t)t->plan.n_rows * p->width * sizeof *in);
    h->k.k_upload(h->s, h->d_outcomes, t->outcomes, sizeof t->outcomes);
    h->k.k_batch_bounds(h->b, bounds);
    h->k.k_batch_upload(h->s, h->b, &t->plan, t->entries, t->ids, t->plan.n_rows, NULL, 0);
    if (graph)
        h->k.k_graph_launch(h->s, graph);
    else
        queue(h);
    OK(h->k.k_stream_wait(h->s, 0, e));
    h->k.k_download(h->s, out, h->d_out, bytes);
    OK(h->k.k_stream_wait(h->s, 0, e));
}
static void assert_same_states(const struct problem *p, uint32_t slot, const char *what) {
    const struct k_shape *h = &p->shape;
    const size_t n = (size_t)h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim,
                 n_window = (size_t)p->channels * (h->conv_kernel - 1);
    float *want = random_floats(1, n, 1), *got = random_floats(2, n, 1),
          *window = random_floats(1, n_window, 1), *got_window = random_floats(2, n_window, 1);
    for (uint32_t layer = 0; layer < 2; layer++) {
        OK(cpu.k.k_pool_read_gdn(cpu.s, cpu.p, slot, layer, want, window));
        OK(cuda.k.k_pool_read_gdn(cuda.s, cuda.p, slot, layer, got, got_window));
        compared += assert_equal_floats(got, want, n, what);
        compared += assert_equal_floats(got_window, window, n_window, what);
    }
    free(want), free(got), free(window), free(got_window);
}
/* Now and then a slot begins anew, or as another one, or as what its snapshot says, which is what it was. */
static void disturb(struct problem *p, struct rng *r) {
    const uint32_t a = 1 + rng_u32(r) % SLOTS, b = 1 + rng_u32(r) % SLOTS, kind = rng_u32(r) % 4;
    const struct k_memory_op ops[3] = {{kind == 0          ? K_MEM_ZERO_SLOT
                                               : kind == 1 ? K_MEM_COPY_SLOT
                                                           : K_MEM_SNAPSHOT_SLOT,
                                               a, kind == 2 ? 0 : b},
            {K_MEM_ZERO_SLOT, a, 0}, {K_MEM_RESTORE_SLOT, 0, a}};
    if (kind > 2 || (kind == 1 && a == b))
        return;
    cpu.k.k_memory(cpu.s, cpu.p, ops, kind == 2 ? 3 : 1);
    cuda.k.k_memory(cuda.s, cuda.p, ops, kind == 2 ? 3 : 1);
    if (kind == 0)
        p->length[a] = 0;
    else if (kind == 1)
        p->length[b] = p->length[a];
}

static void steps(struct problem *p, uint64_t seed, uint32_t rounds, uint32_t rows_most,
        struct k_graph *graph, const struct k_bounds *bounds) {
    struct rng r = {seed};
    float *in = random_floats(seed, (size_t)(ROWS + 1) * p->width, 2),
          *want = random_floats(0, (size_t)(ROWS + 1) * p->out, 1),
          *got = random_floats(0, (size_t)(ROWS + 1) * p->out, 1);
    for (uint32_t i = 0; i < rounds; i++) {
        struct step t;
        char what[200];
        step_make(&t, p, &r, rows_most);
        const struct k_bounds exact = {t.plan.n_rows, t.plan.n_entries, UINT32_MAX};
        const float *from = in + rng_u32(&r) % p->width;
        if (t.plan.n_rows == 0)
            continue;
        snprintf(what, sizeof what, "seed %llu, step %u of %u rows; %u and %u heads of %u x %u, %u taps",
                (unsigned long long)seed, i, t.plan.n_rows, p->shape.gdn_k_heads, p->shape.gdn_v_heads,
                p->shape.gdn_k_dim, p->shape.gdn_v_dim, p->shape.conv_kernel);
        if (cuda.k.emu_seed)
            cuda.k.emu_seed(seed + i);
        run(&cpu, p, &t, NULL, NULL, from, want);
        run(&cuda, p, &t, graph ? bounds : rng_u32(&r) % 2 ? &exact : NULL, graph, from, got);
        compared += assert_equal_floats(got, want, (size_t)(t.plan.n_rows + 1) * p->out, what);
        assert_same_states(p, 1 + rng_u32(&r) % SLOTS, what);
        disturb(p, &r);
    }
    free(in), free(want), free(got);
}

/* --- tests --- */

static void run_state(const struct shape_case *c, uint32_t drafts_max, enum k_dtype state_dtype,
        uint64_t seed, uint32_t rounds, uint32_t rows_most) {
    struct problem p;
    problem_open(&p, c, drafts_max, state_dtype, seed);
    steps(&p, seed, rounds, rows_most, NULL, NULL);
    half_close(&cpu);
    half_close(&cuda);
}
static void run_drafts(
        const struct shape_case *c, uint32_t drafts_max, uint64_t seed, uint32_t rounds, uint32_t rows_most) {
    run_state(c, drafts_max, K_F32, seed, rounds, rows_most);
}
static void run_shape(const struct shape_case *c, uint64_t seed, uint32_t rounds, uint32_t rows_most) {
    run_drafts(c, 0, seed, rounds, rows_most);
}
static void test_models(void **state) {
    static const struct shape_case models[] = {{1, 3, 128, 128, 4}, {2, 2, 128, 128, 4}, {1, 1, 256, 256, 4}};
    (void)state;
    for (uint64_t i = 0; i < sizeof models / sizeof *models; i++)
        run_shape(&models[i], i + 1, 12, i == 2 ? 100 : 250);
}
static void test_random_shapes(void **state) {
    struct rng r = {5};
    (void)state;
    for (uint64_t i = 0; i < 16; i++) {
        const uint32_t hk = 1 + rng_u32(&r) % 3, most = i % 4 == 3 ? 256 : 48;
        struct shape_case c = {hk, hk * (1 + rng_u32(&r) % 3), 1 + rng_u32(&r) % most, 1 + rng_u32(&r) % most,
                2 + rng_u32(&r) % 7};
        if (i % 2 == 0) /* copied in pieces of 16 bytes */
            c.dv = (c.dv + 3) / 4 * 4;
        run_shape(&c, i + 100, 8, most > 48 ? 120 : 300);
    }
}
/* Tokens of answers, of the shape that has a kernel of its own, through several GDN blocks; prompts of a few rows
 * beside them. Grids of fewer blocks than the device has SMs, and of more: two in the emulation, which is slow. */
static void test_single_rows(void **state) {
    static const struct shape_case heads[] = {{1, 1, 128, 128, 4}, {1, 2, 128, 128, 4}, {2, 2, 128, 128, 4},
            {3, 9, 128, 128, 4}, {16, 48, 128, 128, 4}};
    (void)state;
    for (uint64_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const bool slow = libraries[1].emu_seed && heads[i].hv > 9;
        run_shape(&heads[i], 40 + i, slow ? 2 : 40, 3);
        run_shape(&heads[i], 50 + i, slow ? 2 : 20, 1);
    }
}
/* Steps of up to 64 rows need no kernel for long entries, whatever their entries are. */
static void test_few_rows(void **state) {
    const struct shape_case c = {2, 4, 20, 36, 4};
    (void)state;
    run_shape(&c, 9, 40, 64);
}
/* Pools that take drafts: every number of them; those that end a GDN block, are many blocks' rows behind it, or come to
 * nothing; prompts and tokens beside them. */
static void test_drafts(void **state) {
    static const struct shape_case heads[] = {{1, 2, 128, 128, 4}, {2, 4, 20, 36, 4}, {1, 3, 24, 33, 2},
            {1, 1, 8, 16, 8}, {1, 1, 200, 256, 3}},
                                   wide = {1, 1, 256, 128, 4}; /* too wide for all of S0 at once */
    (void)state;
    for (uint32_t drafts = 1; drafts <= DRAFT_MAX; drafts++) {
        const uint64_t i = drafts % (sizeof heads / sizeof *heads);
        run_drafts(&heads[i], drafts, 70 + drafts, 14, i == 4 ? 40 : 64);
    }
    run_drafts(&heads[0], 3, 90, 12, 250);
    run_drafts(&heads[1], 15, 91, 20, 300);
    run_drafts(&wide, 2, 92, 8, 8);
}
/* A token and a few drafts a step, as an answer's rounds have them, across blocks' ends too. */
static void test_few_drafts(void **state) {
    static const struct shape_case heads[] = {{1, 1, 128, 128, 4}, {2, 6, 128, 128, 4}};
    (void)state;
    for (uint32_t drafts = 1; drafts <= 4; drafts++)
        run_drafts(&heads[drafts % 2], drafts, 110 + drafts, 24, 1 + drafts);
}
/* One row a step, of a pool that could take more: the kernel that a token of an answer has to itself. */
static void test_drafts_that_do_not_come(void **state) {
    static const struct shape_case heads[] = {{1, 1, 128, 128, 4}, {3, 9, 128, 128, 4}};
    (void)state;
    run_drafts(&heads[0], 1, 95, 36, 1);
    run_drafts(&heads[1], 15, 96, 20, 1);
    run_drafts(&heads[1], 4, 97, 20, 3);
}
/* S0 as fp16: what is copied in pieces of 8 columns and what is not, heads with a kernel of their own and others, rows
 * by themselves, prompts, drafts. */
static void test_f16_states(void **state) {
    static const struct shape_case heads[] = {
            {1, 3, 128, 128, 4}, {1, 2, 17, 24, 4}, {2, 2, 20, 36, 3}, {1, 1, 256, 256, 4}, {1, 3, 7, 5, 2}};
    (void)state;
    for (uint64_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        run_state(&heads[i], 0, K_F16, 200 + i, 10, i == 3 ? 100 : 250);
        run_state(&heads[i], 1 + 3 * (uint32_t)i, K_F16, 210 + i, 12, i == 3 ? 40 : 120);
    }
    for (uint64_t i = 0; i < 2; i++) { /* enough of them for two folds */
        run_state(&heads[i], 0, K_F16, 220 + i, 40, 3);
        run_state(&heads[i], 0, K_F16, 230 + i, 36, 1);
        run_state(&heads[i], 7, K_F16, 240 + i, 36, 1);
    }
    run_state(&(struct shape_case){3, 9, 128, 128, 4}, 0, K_F16, 250, 12, 40);
}
/* A graph that was captured for the largest step runs every step. */
static void run_graph(uint32_t drafts_max, enum k_dtype state_dtype) {
    const struct shape_case c = {1, 2, 32, 40, 4};
    const struct k_bounds bounds = {ROWS, SLOTS, UINT32_MAX};
    struct problem p;
    struct k_graph *g = NULL;
    problem_open(&p, &c, drafts_max, state_dtype, 3);
    OK(cuda.k.k_stream_wait(cuda.s, 0, e));
    cuda.k.k_batch_bounds(cuda.b, &bounds);
    OK(cuda.k.k_capture_begin(cuda.s, e));
    queue(&cuda);
    OK(cuda.k.k_capture_end(cuda.s, &g, e));
    steps(&p, 4, 12, ROWS, g, &bounds);
    cuda.k.k_graph_free(g);
    half_close(&cpu);
    half_close(&cuda);
}
static void test_a_graph_runs_every_step(void **state) {
    (void)state;
    run_graph(0, K_F32);
    run_graph(7, K_F32);
    run_graph(3, K_F16);
}

static int open_libraries(void **state) {
    (void)state;
    libraries[0] = linked_library();
    libraries[1] = opened_library();
    return 0;
}
static int say(void **state) {
    (void)state;
    print_message("%zu values compared\n", compared);
    return 0;
}
int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_models),
            cmocka_unit_test(test_random_shapes),
            cmocka_unit_test(test_single_rows),
            cmocka_unit_test(test_few_rows),
            cmocka_unit_test(test_drafts),
            cmocka_unit_test(test_few_drafts),
            cmocka_unit_test(test_drafts_that_do_not_come),
            cmocka_unit_test(test_f16_states),
            cmocka_unit_test(test_a_graph_runs_every_step),
    };
    return cmocka_run_group_tests(tests, open_libraries, say);
}
