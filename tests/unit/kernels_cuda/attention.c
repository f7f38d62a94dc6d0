/* Attention of the CUDA library: a row's bits under any cut into steps, tiles, blocks and bounds, in any order of
 * pages and threads; and how far it is from the CPU library, which multiplies in another order and without rounding
 * q and p. */
#include "tests/unit/kernels_cuda/sides.h"

#define ENTRIES 16u
#define ROWS    640u
#define SLOTS   8u

/* |got - want| <= bound * (1 + |want|): q and p are two bf16 each (pages of bf16), or nothing is rounded (fp32) */
#define BOUND_BF16 4e-5
#define BOUND_F32  4e-6
#define BOUND_INT8 2e-4 /* p times V's scale is an integer, here of a unit of a step's, there of a leaf's */

static struct library cpu, cuda;
static double farthest[4]; /* of the differences, of a dtype in units of its bound */

struct bed { /* one library's pool, and the mixer's input and output */
    struct library k;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b;
    struct k_shape shape;
    struct k_pool_options options;
    uint32_t width, out; /* columns */
    void *workspace;
    float *d_q_norm, *d_k_norm, *d_in, *d_out;
};
static void bed_open(
        struct bed *d, struct library k, const struct k_shape *h, const struct k_pool_options *o) {
    const struct k_context_options options = {.threads = 1};
    *d = (struct bed){.k = k,
            .shape = *h,
            .options = *o,
            .width = 2 * (h->q_heads + h->kv_heads) * h->head_dim,
            .out = h->q_heads * h->head_dim};
    OK(k.k_context_create(&options, &d->c, e));
    OK(k.k_stream_create(d->c, &d->s, e));
    OK(k.k_pool_create(d->c, h, o, &d->p, e));
    OK(k.k_batch_create(d->c, ENTRIES, ROWS, &d->b, e));
    const size_t bytes = k.k_workspace_bytes(h, ROWS, 1);
    d->workspace = k.k_alloc(d->c, bytes);
    d->d_in = k.k_alloc(d->c, (size_t)ROWS * d->width * sizeof(float));
    d->d_out = k.k_alloc(d->c, (size_t)ROWS * d->out * sizeof(float));
    d->d_q_norm = k.k_alloc(d->c, h->head_dim * sizeof(float));
    d->d_k_norm = k.k_alloc(d->c, h->head_dim * sizeof(float));
    assert_true(d->workspace && d->d_in && d->d_out && d->d_q_norm && d->d_k_norm);
    k.k_stream_set_workspace(d->s, d->workspace, bytes);
    float *q_norm = random_floats(1, h->head_dim, 2.0f), *k_norm = random_floats(2, h->head_dim, 2.0f);
    k.k_upload(d->s, d->d_q_norm, q_norm, h->head_dim * sizeof *q_norm);
    k.k_upload(d->s, d->d_k_norm, k_norm, h->head_dim * sizeof *k_norm);
    OK(k.k_stream_wait(d->s, 0, e));
    free(q_norm), free(k_norm);
}
static void bed_close(struct bed *d) {
    void *const blocks[] = {d->workspace, d->d_in, d->d_out, d->d_q_norm, d->d_k_norm};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        d->k.k_free(d->c, blocks[i]);
    d->k.k_batch_free(d->b);
    d->k.k_pool_free(d->p);
    d->k.k_stream_free(d->s);
    d->k.k_context_free(d->c);
}
/* A sequence of its own on every slot; entry i of a slot's table is page pages[i]. */
static void bed_slot(struct bed *d, uint32_t slot, const uint32_t *pages) {
    const struct k_sampling plain = {.top_p = 1, .repetition_penalty = 1};
    d->k.k_slot_open(d->s, d->p, slot, &plain);
    d->k.k_slot_grant(d->s, d->p, slot, 0, d->options.pages_per_slot, pages);
    OK(d->k.k_stream_wait(d->s, 0, e));
}

/* Rows of a step: n positions from `first` on of a slot's sequence, whose inputs are in[row][width]. */
struct part {
    uint32_t slot, first, n;
    const float *in;
    float *out;
};
struct step {
    struct k_plan plan;
    struct k_entry entries[ENTRIES];
    uint32_t ids[ROWS];
};
static void step_upload(struct bed *d, struct step *step, const struct part *parts, uint32_t n) {
    step->plan = (struct k_plan){.n_entries = n};
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t row = step->plan.n_rows;
        step->entries[i] = (struct k_entry){.slot = parts[i].slot,
                .n_rows = parts[i].n,
                .row_begin = row,
                .first_pos = parts[i].first,
                .ids_at = row,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = UINT32_MAX};
        step->plan.n_rows += parts[i].n;
        d->k.k_upload(d->s, d->d_in + (size_t)row * d->width, parts[i].in,
                (size_t)parts[i].n * d->width * sizeof(float));
    }
    assert_true(n <= ENTRIES && step->plan.n_rows <= ROWS);
    d->k.k_batch_upload(d->s, d->b, &step->plan, step->entries, step->ids, step->plan.n_rows, NULL, 0);
}
static void step_queue(struct bed *d, uint32_t shift) {
    const struct k_attention_weights w = {d->d_q_norm, d->d_k_norm};
    d->k.k_begin_step(d->s, d->p, d->b);
    d->k.k_attention_step(d->s, d->p, d->b, 1, shift, &w, d->d_in, d->d_out);
    d->k.k_end_step(d->s, d->p, d->b, NULL, NULL);
}
static void step_fetch(struct bed *d, const struct part *parts, uint32_t n) {
    for (uint32_t i = 0, row = 0; i < n; row += parts[i++].n)
        d->k.k_download(d->s, parts[i].out, d->d_out + (size_t)row * d->out,
                (size_t)parts[i].n * d->out * sizeof(float));
    OK(d->k.k_stream_wait(d->s, 0, e));
}
/* tight: operations are told exactly what the step has. */
static void step_run(struct bed *d, const struct part *parts, uint32_t n, uint32_t shift, bool tight) {
    static struct step step;
    struct k_bounds bounds = {.entries = n};
    for (uint32_t i = 0; i < n; i++) {
        bounds.rows += parts[i].n;
        bounds.context =
                parts[i].first + parts[i].n > bounds.context ? parts[i].first + parts[i].n : bounds.context;
    }
    d->k.k_batch_bounds(d->b, tight ? &bounds : NULL);
    step_upload(d, &step, parts, n);
    step_queue(d, shift);
    step_fetch(d, parts, n);
}

static void assert_close(
        const float *got, const float *want, size_t n, enum k_dtype dtype, const char *what) {
    const double bound = dtype == K_BF16 ? BOUND_BF16 : dtype == K_INT8 ? BOUND_INT8 : BOUND_F32;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs((double)got[i] - want[i]) / (bound * (1 + fabs((double)want[i])));
        if (!(off <= 1))
            fail_msg("%s: element %zu of %zu: %.9g, the CPU has %.9g", what, i, n, (double)got[i],
                    (double)want[i]);
        farthest[dtype] = off > farthest[dtype] ? off : farthest[dtype];
    }
}
static void seed(uint64_t n) {
    if (cuda.emu_seed)
        cuda.emu_seed(n);
}
static struct k_shape shape_of(uint32_t hq, uint32_t hkv, uint32_t d, uint32_t rotary) {
    return (struct k_shape){.tp = 1,
            .hidden_size = 16,
            .vocab_size = 64,
            .vocab_rows = 64,
            .q_heads = hq,
            .kv_heads = hkv,
            .head_dim = d,
            .rotary_dim = rotary,
            .n_attention_layers = 2,
            .rms_eps = 1e-6f,
            .rope_theta = 1e7};
}

/* --- sequences cut anyhow --- */

static const struct sequences {
    uint32_t hq, hkv, d, rotary, shift;
    enum k_dtype dtype;
    uint32_t lengths[2]; /* around borders of pages, leaves, tiles */
    uint32_t most;       /* rows of a sequence in a step */
} cases[] = {
        {6, 1, 256, 64, 0, K_BF16, {257, 66}, 90},
        {12, 2, 64, 16, 0, K_BF16, {65, 33}, 40},
        {4, 2, 256, 64, 1, K_BF16, {63, 255}, 200},
        {3, 3, 20, 20, 1, K_BF16, {129, 511}, 300},
        {20, 1, 40, 8, 0, K_BF16, {130, 31}, 50},
        {2, 1, 512, 64, 0, K_BF16, {70, 20}, 40},
        {2, 2, 33, 2, 1, K_BF16, {257, 64}, 70},
        {8, 2, 96, 24, 0, K_F32, {258, 64}, 60},
        {2, 1, 512, 128, 1, K_F32, {65, 10}, 30},
        {6, 1, 256, 64, 0, K_INT8, {257, 66}, 90},
        {12, 2, 64, 16, 1, K_INT8, {65, 255}, 40},
        {3, 3, 20, 20, 1, K_INT8, {129, 511}, 300},
        {2, 1, 512, 64, 0, K_INT8, {70, 20}, 40},
        {2, 2, 33, 2, 1, K_INT8, {257, 64}, 70},
        {5, 1, 144, 8, 0, K_INT8, {130, 31}, 50},
};
/* Both sequences of a case, cut at random into steps of one or both; their pages in an order of the round's. */
static void run_cut(
        struct bed *d, const struct sequences *c, float *const *in, float *const *out, uint64_t round) {
    struct rng r = {round};
    uint32_t pages[2][16], at[2] = {0, 0};
    for (uint32_t i = 0; i < 16; i++) {
        pages[0][i] = 1 + (i * 5 + (uint32_t)round) % 16;
        pages[1][i] = 17 + (i * 3 + (uint32_t)round) % 16;
    }
    for (uint32_t i = 0; i < 2; i++)
        bed_slot(d, i + 1, pages[i]);
    while (at[0] < c->lengths[0] || at[1] < c->lengths[1]) {
        struct part parts[2];
        uint32_t n = 0;
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t left = c->lengths[i] - at[i],
                           want = round == 0 ? c->most : 1 + rng_u32(&r) % c->most;
            if (!left || (round && rng_u32(&r) % 3 == 0))
                continue;
            parts[n++] = (struct part){i + 1, at[i], want < left ? want : left,
                    in[i] + (size_t)at[i] * d->width, out[i] + (size_t)at[i] * d->out};
            at[i] += parts[n - 1].n;
        }
        seed(round + at[0]);
        if (n)
            step_run(d, parts, n, c->shift, round % 2);
    }
}
static void test_sequences_cut_anyhow(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        const struct sequences *c = &cases[t];
        const struct k_shape shape = shape_of(c->hq, c->hkv, c->d, c->rotary);
        const struct k_pool_options o = {.slots = 2, .pages = 33, .pages_per_slot = 16, .kv_dtype = c->dtype};
        struct bed d[2];
        float *in[2], *want[2], *first[2], *out[2];
        bed_open(&d[0], cpu, &shape, &o);
        bed_open(&d[1], cuda, &shape, &o);
        for (uint32_t i = 0; i < 2; i++) {
            const size_t n = (size_t)c->lengths[i] * d->out;
            in[i] = random_floats(t * 2 + i, (size_t)c->lengths[i] * d->width, 2.0f);
            want[i] = random_floats(0, n, 1), first[i] = random_floats(0, n, 1),
            out[i] = random_floats(0, n, 1);
        }
        run_cut(&d[0], c, in, want, 0);
        run_cut(&d[1], c, in, first, 0);
        for (uint64_t round = 1; round < 4; round++) {
            char what[80];
            snprintf(what, sizeof what, "case %zu, round %llu", t, (unsigned long long)round);
            run_cut(&d[1], c, in, out, round);
            for (uint32_t i = 0; i < 2; i++) {
                assert_equal_floats(out[i], first[i], (size_t)c->lengths[i] * d->out, what);
                assert_close(out[i], want[i], (size_t)c->lengths[i] * d->out, c->dtype, what);
            }
        }
        for (uint32_t i = 0; i < 2; i++)
            free(in[i]), free(want[i]), free(first[i]), free(out[i]);
        bed_close(&d[0]);
        bed_close(&d[1]);
    }
}

/* --- deep sequences: tables that name the same few pages again and again --- */

#define DEEP_PAGES  9u
#define DEEP_PLACES 4u /* where rows are computed */
#define DEEP_ROWS   4u /* there */
static void deep_open(struct bed *d, struct library k, const struct k_shape *h, enum k_dtype dtype,
        uint32_t slots, uint32_t context, uint32_t shift) {
    const struct k_pool_options o = {.slots = slots,
            .pages = DEEP_PAGES + slots + 2 * DEEP_PLACES,
            .pages_per_slot = (context + shift) / PAGE_TOKENS + 1,
            .kv_dtype = dtype};
    uint32_t *pages = calloc(o.pages_per_slot, sizeof *pages);
    float *in, *out;
    bed_open(d, k, h, &o);
    in = random_floats(5, (size_t)DEEP_PAGES * PAGE_TOKENS * d->width, 2.0f);
    out = random_floats(5, (size_t)DEEP_PAGES * PAGE_TOKENS * d->out, 2.0f);
    for (uint32_t s = 1; s <= slots; s++) {
        for (uint32_t i = 0; i < o.pages_per_slot; i++)
            pages[i] = 1 + i % DEEP_PAGES;
        if (s > 1) /* its last two are not the others' */
            pages[o.pages_per_slot - 1] = pages[o.pages_per_slot - 2] = DEEP_PAGES + s - 1;
        bed_slot(d, s, pages);
    }
    const struct part fill = {1, 0, DEEP_PAGES * PAGE_TOKENS - shift, in, out};
    step_run(d, &fill, 1, shift, true);
    free(in), free(out), free(pages);
}

/* The pages that rows are written into are nobody else's, as in a service: slot 1 gets copies for those. */
static void deep_places(struct bed *d, const uint32_t *firsts, uint32_t shift) {
    for (uint32_t i = 0; i < 2 * DEEP_PLACES; i++) {
        const uint32_t at = (firsts[i / 2] + shift + i % 2 * (DEEP_ROWS - 1)) / PAGE_TOKENS,
                       page = DEEP_PAGES + 2 + i;
        const struct k_memory_op copy = {K_MEM_COPY_PAGE, 1 + at % DEEP_PAGES, page};
        d->k.k_memory(d->s, d->p, &copy, 1);
        d->k.k_slot_grant(d->s, d->p, 1, at, 1, &page);
        OK(d->k.k_stream_wait(d->s, 0, e));
    }
}

/* Four rows at the end of `context` positions, and at places that blocks share in other ways. */
static void check_deep(enum k_dtype dtype, struct k_shape shape, uint32_t context) {
    for (uint32_t shift = 0; shift < 2; shift++) {
        struct bed d[2];
        const uint32_t firsts[DEEP_PLACES] = {
                context - 4, 7 * ATTENTION_LEAF - 2, 16 * ATTENTION_LEAF - 1, 36 * ATTENTION_LEAF - 3};
        deep_open(&d[0], cpu, &shape, dtype, 1, context, shift);
        deep_open(&d[1], cuda, &shape, dtype, 1, context, shift);
        deep_places(&d[0], firsts, shift);
        deep_places(&d[1], firsts, shift);
        float *in = random_floats(9, 4u * d->width, 2.0f), *want = random_floats(0, 4u * d->out, 1),
              *out = random_floats(0, 4u * d->out, 1), *ones = random_floats(0, 4u * d->out, 1);
        for (uint32_t i = 0; i < 4; i++) {
            const struct part all[2] = {{1, firsts[i], 4, in, want}, {1, firsts[i], 4, in, out}};
            step_run(&d[0], &all[0], 1, shift, true);
            step_run(&d[1], &all[1], 1, shift, i % 2);
            assert_close(out, want, 4u * d->out, dtype, "deep");
            /* a row for itself, seen again; the deepest takes the emulation seconds */
            for (uint32_t k = i % 2 * 2; k < 4 && i > 0; k += 3) {
                const struct part one = {
                        1, firsts[i] + k, 1, in + (size_t)k * d->width, ones + (size_t)k * d->out};
                step_run(&d[1], &one, 1, shift, true);
                assert_equal_floats(one.out, out + (size_t)k * d->out, d->out, "deep, one row");
            }
        }
        free(in), free(want), free(out), free(ones);
        bed_close(&d[0]);
        bed_close(&d[1]);
    }
}

static void test_a_quarter_of_a_million_positions(void **state) {
    (void)state;
    check_deep(K_BF16, shape_of(2, 1, 16, 8), 262144);
    check_deep(K_INT8, shape_of(2, 1, 16, 8), 50 * ATTENTION_LEAF);
}

/* The models' head size, whose small tiles have a form of their own: of groups that a tile has once and a half, and
 * of one that ends in its second product. */
static void test_heads_of_256_deep(void **state) {
    (void)state;
    check_deep(K_BF16, shape_of(6, 1, 256, 64), 45 * ATTENTION_LEAF - 37);
    check_deep(K_BF16, shape_of(10, 2, 256, 64), 41 * ATTENTION_LEAF + 1);
}

/* More leaves than there is room for as parts: tiles at the end are not split. */
static void test_parts_that_do_not_fit(void **state) {
    enum { N = 6, EACH = 31, CONTEXT = 32 * ATTENTION_LEAF };
    const struct k_shape shape = shape_of(1, 1, 16, 8);
    struct bed d;
    struct part parts[N];
    (void)state;
    deep_open(&d, cuda, &shape, K_BF16, N, CONTEXT, 0);
    float *in = random_floats(9, (size_t)EACH * d.width, 2.0f),
          *out = random_floats(0, (size_t)N * EACH * d.out, 1);
    for (uint32_t i = 0; i < N; i++) /* every slot the same */
        parts[i] = (struct part){i + 1, CONTEXT - EACH, EACH, in, out + (size_t)i * EACH * d.out};
    for (uint32_t tight = 0; tight < 2; tight++) {
        step_run(&d, parts, N, 0, tight);
        for (uint32_t i = 2; i < N; i++)
            assert_equal_floats(parts[i].out, parts[1].out, (size_t)EACH * d.out, "not split");
    }
    free(in), free(out);
    bed_close(&d);
}

/* --- graphs --- */

static void check_graph(enum k_dtype dtype) {
    const struct k_shape shape = shape_of(4, 1, 64, 16);
    const struct k_pool_options o = {.slots = 3, .pages = 30, .pages_per_slot = 10, .kv_dtype = dtype};
    const struct k_bounds bounds = {.rows = 120, .entries = 3, .context = 600};
    const struct part steps[][3] = {{{1, 0, 70, NULL, NULL}, {2, 0, 5, NULL, NULL}, {3, 0, 33, NULL, NULL}},
            {{2, 5, 100, NULL, NULL}, {1, 70, 1, NULL, NULL}, {3, 33, 2, NULL, NULL}},
            {{1, 71, 1, NULL, NULL}, {2, 105, 31, NULL, NULL}, {3, 35, 32, NULL, NULL}}};
    static struct step step;
    struct bed d[2];
    struct k_graph *g = NULL;
    for (uint32_t i = 0; i < 2; i++) {
        bed_open(&d[i], cuda, &shape, &o);
        for (uint32_t s = 1; s <= 3; s++)
            bed_slot(&d[i], s,
                    (uint32_t[]){s, s + 3, s + 6, s + 9, s + 12, s + 15, s + 18, s + 21, s + 24, s + 27});
    }
    d[1].k.k_batch_bounds(d[1].b, &bounds);
    OK(cuda.k_capture_begin(d[1].s, e));
    step_queue(&d[1], 0);
    OK(cuda.k_capture_end(d[1].s, &g, e));
    float *in = random_floats(4, (size_t)ROWS * d->width, 2.0f),
          *want = random_floats(0, (size_t)ROWS * d->out, 1),
          *out = random_floats(0, (size_t)ROWS * d->out, 1);
    for (uint32_t t = 0; t < 3; t++) {
        struct part a[3], b[3];
        for (uint32_t i = 0; i < 3; i++) {
            a[i] = b[i] = steps[t][i];
            a[i].in = b[i].in = in + (size_t)(i * 200) * d->width;
            a[i].out = want + (size_t)(i * 200) * d->out;
            b[i].out = out + (size_t)(i * 200) * d->out;
        }
        step_run(&d[0], a, 3, 0, true);
        step_upload(&d[1], &step, b, 3);
        cuda.k_graph_launch(d[1].s, g);
        step_fetch(&d[1], b, 3);
        for (uint32_t i = 0; i < 3; i++)
            assert_equal_floats(b[i].out, a[i].out, (size_t)a[i].n * d->out, "replayed");
    }
    cuda.k_graph_free(g);
    free(in), free(want), free(out);
    bed_close(&d[0]);
    bed_close(&d[1]);
}

static void test_a_graph_replays_other_steps(void **state) {
    (void)state;
    check_graph(K_BF16);
    check_graph(K_INT8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_sequences_cut_anyhow),
            cmocka_unit_test(test_a_quarter_of_a_million_positions),
            cmocka_unit_test(test_heads_of_256_deep),
            cmocka_unit_test(test_parts_that_do_not_fit),
            cmocka_unit_test(test_a_graph_replays_other_steps),
    };
    cpu = linked_library();
    cuda = opened_library();
    const int r = cmocka_run_group_tests(tests, NULL, NULL);
    print_message("farthest from the CPU: bf16 pages %.2g, int8 pages %.2g, fp32 pages %.2g, of 1 + |x|\n",
            farthest[K_BF16] * BOUND_BF16, farthest[K_INT8] * BOUND_INT8, farthest[K_F32] * BOUND_F32);
    return r;
}
