/* The attention mixer against double precision, and its bits under every split, on every instruction set. */
#include "tests/unit/kernels/fixture.h"

struct layer {
    struct k_shape shape;
    uint32_t width, out, rows, shift;
    float *q_norm, *k_norm, *in;
};
static void layer_make(struct layer *l, uint32_t hq, uint32_t hkv, uint32_t d, uint32_t rotary, uint32_t rows,
        uint32_t shift) {
    *l = (struct layer){.shape = {.tp = 1,
                                .hidden_size = 16,
                                .vocab_size = 2000,
                                .vocab_rows = 2000,
                                .q_heads = hq,
                                .kv_heads = hkv,
                                .head_dim = d,
                                .rotary_dim = rotary,
                                .n_attention_layers = 2,
                                .rms_eps = 1e-6f,
                                .rope_theta = 1e7},
            .width = (2 * hq + 2 * hkv) * d,
            .out = hq * d,
            .rows = rows,
            .shift = shift};
    l->q_norm = random_floats(1, d, 2.0f);
    l->k_norm = random_floats(2, d, 2.0f);
    l->in = random_floats(3, (size_t)rows * l->width, 2.0f);
}
static void layer_free(struct layer *l) {
    free(l->q_norm), free(l->k_norm), free(l->in);
}

/* y = rope(norm(x)) at a position (three of them), as the model is written down. */
static void norm_rope(
        const struct layer *l, const float *x, const float *norm, const uint32_t *pos, double *y) {
    const uint32_t d = l->shape.head_dim, half = l->shape.rotary_dim / 2;
    double square = 0, t[512];
    for (uint32_t i = 0; i < d; i++)
        square += (double)x[i] * x[i];
    for (uint32_t i = 0; i < d; i++)
        y[i] = t[i] = x[i] / sqrt(square / d + 1e-6) * norm[i];
    for (uint32_t i = 0; i < half; i++) {
        uint32_t axis = i % 3 == 1 && i < 3 * ((half + 1) / 3) ? 1 : i % 3 == 2 && i < 3 * (half / 3) ? 2 : 0;
        float freq = 1.0f / (float)pow(l->shape.rope_theta, (float)(2 * i) / (float)l->shape.rotary_dim);
        double angle = (float)(pos[axis] + l->shift) * freq;
        angle = (float)angle;
        y[i] = t[i] * cos(angle) - t[i + half] * sin(angle);
        y[i + half] = t[i + half] * cos(angle) + t[i] * sin(angle);
    }
}

/* x[n] as the pages keep it. */
static void stored(double *x, uint32_t n, enum k_dtype dtype) {
    double highest = 0;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = dtype == K_BF16 ? of_bf16(to_bf16((float)x[i])) : (float)x[i];
        highest = fabs(x[i]) > highest ? fabs(x[i]) : highest;
    }
    for (uint32_t i = 0; i < n && dtype == K_INT8 && highest > 0; i++)
        x[i] = rint(x[i] / (highest / 127)) * (highest / 127);
}
/* |got - expected| / (1 + |expected|): a K that rounds the other way moves a score by 2^-9 of it in BF16, by a code's
 * worth of one of its products in INT8. */
static double tolerance_of(enum k_dtype dtype) {
    return dtype == K_F32 ? 1e-5 : dtype == K_BF16 ? 2e-2 : 5e-2;
}

static void reference(const struct layer *l, const uint32_t *rope, enum k_dtype dtype, double *out) {
    const struct k_shape *h = &l->shape;
    const uint32_t d = h->head_dim, group = h->q_heads / h->kv_heads;
    double *k = calloc((size_t)l->rows * h->kv_heads * d, sizeof *k),
           *v = calloc((size_t)l->rows * h->kv_heads * d, 8);
    double *p = calloc(l->rows, sizeof *p), q[512];
    for (uint32_t t = 0; t < l->rows; t++) {
        for (uint32_t i = 0; i < h->kv_heads; i++) {
            const float *from = l->in + (size_t)t * l->width + (2 * h->q_heads + i) * d;
            double *kt = k + ((size_t)t * h->kv_heads + i) * d, *vt = v + ((size_t)t * h->kv_heads + i) * d;
            norm_rope(l, from, l->k_norm, rope + t * 3, kt);
            for (uint32_t j = 0; j < d; j++)
                vt[j] = from[h->kv_heads * d + j];
            stored(kt, d, dtype);
            stored(vt, d, dtype);
        }
        for (uint32_t i = 0; i < h->q_heads; i++) {
            const float *from = l->in + (size_t)t * l->width + i * 2 * d;
            double sum = 0, max = -1e300, *o = out + ((size_t)t * h->q_heads + i) * d;
            norm_rope(l, from, l->q_norm, rope + t * 3, q);
            for (uint32_t s = 0; s <= t; s++) {
                p[s] = 0;
                for (uint32_t j = 0; j < d; j++)
                    p[s] += q[j] * k[((size_t)s * h->kv_heads + i / group) * d + j] / sqrt(d);
                max = p[s] > max ? p[s] : max;
            }
            memset(o, 0, d * sizeof *o);
            for (uint32_t s = 0; s <= t; s++) {
                double e = exp(p[s] - max);
                sum += e;
                for (uint32_t j = 0; j < d; j++)
                    o[j] += e * v[((size_t)s * h->kv_heads + i / group) * d + j];
            }
            for (uint32_t j = 0; j < d; j++)
                o[j] = o[j] / sum / (1 + exp(-(double)from[d + j]));
        }
    }
    free(k), free(v), free(p);
}

/* The mixer on the step's n rows. */
static void attend(struct world *w, const struct layer *l, uint32_t n, const float *in, float *out) {
    const uint32_t d = l->shape.head_dim;
    const struct k_attention_weights aw = {dev(w, l->q_norm, d), dev(w, l->k_norm, d)};
    float *to = room(w, (size_t)n * l->out);
    k_attention_step(w->s, w->p, w->b, 1, l->shift, &aw, dev(w, in, (size_t)n * l->width), to);
    fetch(w, out, to, (size_t)n * l->out * sizeof *out);
}

static void run_rows(struct world *w, const struct layer *l, uint32_t slot, uint32_t from, uint32_t n,
        const uint32_t *rope, float *out) {
    step_new(w);
    struct k_entry *e = step_prompt(w, slot, from, n, 1);
    if (rope) {
        e->rope_at = 0;
        w->n_rope = 3 * n;
        memcpy(w->rope, rope + from * 3, 3 * n * sizeof *rope);
    }
    step_begin_now(w);
    attend(w, l, n, l->in + (size_t)from * l->width, out + (size_t)from * l->out);
    k_end_step(w->s, w->p, w->b, NULL, NULL);
}

static const struct {
    uint32_t hq, hkv, d, rotary, rows, shift;
    enum k_dtype dtype;
} cases[] = {{4, 2, 32, 8, 70, 0, K_F32}, {6, 1, 64, 16, 600, 0, K_BF16}, {2, 2, 20, 12, 30, 1, K_F32},
        {20, 1, 16, 16, 300, 1, K_BF16}, {8, 2, 256, 64, 40, 0, K_BF16}, {6, 1, 64, 16, 300, 0, K_INT8},
        {2, 2, 33, 12, 70, 1, K_INT8}, {6, 1, 256, 64, 66, 0, K_INT8}, {1, 1, 500, 2, 257, 0, K_INT8}};

static void test_against_double(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        struct layer l;
        layer_make(&l, cases[t].hq, cases[t].hkv, cases[t].d, cases[t].rotary, cases[t].rows, cases[t].shift);
        struct k_pool_options o = {.slots = 3, .pages = 30, .pages_per_slot = 12, .kv_dtype = cases[t].dtype};
        const size_t n = (size_t)l.rows * l.out;
        double *expected = calloc(n, sizeof *expected);
        float *out = random_floats(1, n, 1), *first = random_floats(1, n, 1);
        uint32_t *rope = calloc(l.rows * 3, sizeof *rope);
        for (uint32_t i = 0; i < l.rows * 3; i++) /* the last case moves its axes apart */
            rope[i] = i / 3 + (t == 4 ? (i % 3) * 5 : 0);
        reference(&l, rope, cases[t].dtype, expected);
        for (int i = 0; i < N_ISAS * 2; i++) {
            struct world w;
            if (!world_open(&w, &l.shape, &o, all_isas[i / 2], i % 2 + 1, NULL))
                continue;
            slot_new(&w, 1, NULL, 1, 12);
            run_rows(&w, &l, 1, 0, l.rows, t == 4 ? rope : NULL, out);
            OK(k_stream_wait(w.s, 0, e));
            assert_near(out, expected, n, tolerance_of(cases[t].dtype), "rows");
            if (i == 0)
                memcpy(first, out, n * sizeof *out);
            assert_same_floats(out, first, n, all_isas[i / 2]);
            world_close(&w);
        }
        layer_free(&l);
        free(expected), free(out), free(first), free(rope);
    }
}

static void test_any_split_gives_the_same_bits(void **state) {
    struct rng r = {2};
    (void)state;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        struct layer l;
        struct world w;
        layer_make(&l, cases[t].hq, cases[t].hkv, cases[t].d, cases[t].rotary, cases[t].rows, cases[t].shift);
        struct k_pool_options o = {.slots = 3, .pages = 30, .pages_per_slot = 12, .kv_dtype = cases[t].dtype};
        const size_t n = (size_t)l.rows * l.out;
        float *whole = random_floats(1, n, 1), *out = random_floats(2, n, 1);
        assert_true(world_open(&w, &l.shape, &o, NULL, 2, NULL));
        slot_new(&w, 1, NULL, 1, 12);
        run_rows(&w, &l, 1, 0, l.rows, NULL, whole);
        for (int round = 0; round < 4; round++) {
            uint32_t most = rng_u32(&r) % 100 + 1, pages[12];
            slot_new(&w, 2, NULL, 0, 0);
            for (uint32_t i = 0; i < 12; i++) /* other pages, in another order, with what was there before */
                pages[i] = 13 + (i * 5 + (uint32_t)round) % 12;
            k_slot_grant(w.s, w.p, 2, 0, 12, pages);
            for (uint32_t at = 0, m; at < l.rows; at += m) {
                /* the first round: single rows around a page's end, else up to the next of them */
                m = round ? rng_u32(&r) % most + 1 : at % 64 < 2 || at % 64 > 61 ? 1 : 62 - at % 64;
                m = m < l.rows - at ? m : l.rows - at;
                run_rows(&w, &l, 2, at, m, NULL, out);
            }
            assert_same_floats(out, whole, n, "split");
        }
        world_close(&w);
        layer_free(&l);
        free(whole), free(out);
    }
}

/* One row of a long sequence and several threads: each leaf is a task of its own. */
static void test_leaves_as_tasks_give_the_same_bits(void **state) {
    (void)state;
    for (uint32_t t = 0; t < 3; t++) {
        const uint32_t shift = t % 2;
        struct layer l;
        struct world w;
        layer_make(&l, 3, 1, 40, 8, 1300, shift);
        struct k_pool_options o = {
                .slots = 2, .pages = 50, .pages_per_slot = 22, .kv_dtype = t < 2 ? K_BF16 : K_INT8};
        const size_t n = (size_t)l.rows * l.out;
        float *whole = random_floats(1, n, 1), *out = random_floats(2, n, 1);
        assert_true(world_open(&w, &l.shape, &o, NULL, 4, NULL));
        slot_new(&w, 1, NULL, 1, 22);
        for (uint32_t at = 0; at < l.rows; at += 650)
            run_rows(&w, &l, 1, at, 650, NULL, whole);
        memset(out, 0, n * sizeof *out);
        slot_new(&w, 2, NULL, 23, 22);
        run_rows(&w, &l, 2, 0, 1000, NULL, out);
        for (uint32_t at = 1000; at < l.rows; at += 1 + at % 7)
            run_rows(&w, &l, 2, at, at + 1 + at % 7 < l.rows ? 1 + at % 7 : l.rows - at, NULL, out);
        assert_same_floats(out, whole, n, "leaves");
        OK(k_stream_wait(w.s, 0, e));
        world_close(&w);
        layer_free(&l);
        free(whole), free(out);
    }
}

static void pages_move_and_sequences_mix(enum k_dtype dtype, uint32_t d) {
    struct layer l;
    struct world w;
    layer_make(&l, 4, 2, d, 8, 200, 0);
    struct k_pool_options o = {
            .slots = 3, .pages = 30, .pages_per_slot = 12, .page_units = 2, .kv_dtype = dtype};
    float *whole = random_floats(1, (size_t)l.rows * l.out, 1),
          *out = random_floats(2, (size_t)l.rows * l.out, 1);
    assert_true(world_open(&w, &l.shape, &o, NULL, 2, NULL));
    slot_new(&w, 1, NULL, 1, 12);
    run_rows(&w, &l, 1, 0, l.rows, NULL, whole);
    slot_new(&w, 2, NULL, 13, 2);
    /* page 1 by a copy, page 2 through the host */
    const struct k_memory_op ops[] = {
            {K_MEM_COPY_PAGE, 1, 20}, {K_MEM_PAGE_OUT, 2, 1}, {K_MEM_PAGE_IN, 1, 21}};
    k_memory(w.s, w.p, ops, 3);
    k_slot_grant(w.s, w.p, 2, 0, 4, (uint32_t[]){20, 21, 22, 23});
    run_rows(&w, &l, 2, 128, l.rows - 128, NULL, out);
    assert_same_floats(out + 128 * l.out, whole + 128 * l.out, (size_t)(l.rows - 128) * l.out, "moved pages");
    /* two sequences, interleaved rows of one step; each as if alone */
    slot_new(&w, 2, NULL, 20, 4);
    slot_new(&w, 3, NULL, 24, 4);
    float *in = random_floats(1, (size_t)20 * l.width, 1);
    step_new(&w);
    step_prompt(&w, 2, 0, 7, 1);
    step_prompt(&w, 3, 0, 13, 1);
    memcpy(in, l.in, 7 * l.width * sizeof *in);
    memcpy(in + 7 * l.width, l.in, 13 * l.width * sizeof *in);
    step_begin_now(&w);
    attend(&w, &l, 20, in, out);
    assert_same_floats(out, whole, 7 * l.out, "first of two");
    assert_same_floats(out + 7 * l.out, whole, 13 * l.out, "second of two");
    OK(k_stream_wait(w.s, 0, e));
    world_close(&w);
    layer_free(&l);
    free(whole), free(out), free(in);
}

static void test_pages_move_and_sequences_mix(void **state) {
    (void)state;
    pages_move_and_sequences_mix(K_BF16, 32);
    pages_move_and_sequences_mix(K_INT8, 32);
    pages_move_and_sequences_mix(K_INT8, 19);
}

/* --- what INT8 keeps: a sequence of one position gives its V back, code times scale --- */

static const struct kept {
    float x[4], want[4]; /* the other columns are 0 */
} kept[] = {
        {{127, 0.5f, 1.5f, 2.5f}, {127, 0, 2, 2}},
        {{-127, -0.5f, -1.5f, -2.5f}, {-127, 0, -2, -2}},
        {{0, 0, 0, 0}, {0, 0, 0, 0}},
        {{0.25f, 3, -254, 1.5f}, {0, 4, -254, 2}}, /* scale 2: 1.5 to 2, 0.75 to 1 */
        {{1e-30f, 0.6e-30f, 0, -1e-30f}, {1e-30f, 76e-30f / 127, 0, -1e-30f}},
        {{0x1p-149f, 0, 0, 0}, {0, 0, 0, 0}}, /* its scale is 0 */
        {{1, NAN, 2, 3}, {NAN, NAN, NAN, NAN}},
        {{1, INFINITY, 2, 3}, {NAN, NAN, NAN, NAN}},
        {{1, 2, -INFINITY, 3}, {NAN, NAN, NAN, NAN}},
};
static void assert_kept(const struct kept *c, const float *got, uint32_t d) {
    for (uint32_t i = 0; i < d; i++) {
        const float want = i < 4 ? c->want[i] : 0 * c->want[0];
        if (isnan(want) ? !isnan(got[i]) : !(fabsf(got[i] - want) <= fabsf(want) * 1e-6f))
            fail_msg("case %td, column %u: %.9g, expected %.9g", c - kept, i, (double)got[i], (double)want);
    }
}
/* K alone decides nothing where there is one position, unless it is no number. */
static void test_int8_keeps_codes_and_a_scale(void **state) {
    enum { D = 35, HEADS = 2 };
    const struct k_pool_options o = {.slots = 3, .pages = 9, .pages_per_slot = 3, .kv_dtype = K_INT8};
    struct layer l;
    (void)state;
    layer_make(&l, HEADS, HEADS, D, 8, 1, 0);
    float *out = random_floats(1, l.out, 1);
    for (int i = 0; i < N_ISAS; i++) {
        struct world w;
        if (!world_open(&w, &l.shape, &o, all_isas[i], 1, NULL))
            continue;
        for (size_t t = 0; t < sizeof kept / sizeof *kept; t++) {
            float *v = l.in + 3 * HEADS * D; /* of head 0; head 1 is like the case after the next */
            const struct kept *of[HEADS] = {&kept[t], &kept[(t + 2) % (sizeof kept / sizeof *kept)]};
            memset(v, 0, HEADS * D * sizeof *v);
            for (uint32_t h = 0; h < HEADS; h++) {
                memcpy(v + h * D, of[h]->x, sizeof of[h]->x);
                for (uint32_t c = 0; c < D; c++)
                    l.in[(h * 2 + 1) * D + c] = 100; /* gates: all of it */
            }
            slot_new(&w, 1, NULL, 1, 3);
            run_rows(&w, &l, 1, 0, 1, NULL, out);
            OK(k_stream_wait(w.s, 0, e));
            for (uint32_t h = 0; h < HEADS; h++)
                assert_kept(of[h], out + h * D, D);
        }
        world_close(&w);
    }
    free(out);
    layer_free(&l);
}

/* A V or K that is no number spoils the queries that see it, and nobody else's: not rows before it, not who has the
 * page after it. */
static void test_int8_what_is_no_number_is_seen_by_whom_it_may(void **state) {
    enum { ROWS = 70, BAD = 67 };
    const struct k_pool_options o = {.slots = 3, .pages = 9, .pages_per_slot = 3, .kv_dtype = K_INT8};
    struct layer l;
    struct world w;
    (void)state;
    layer_make(&l, 2, 1, 32, 8, ROWS, 0);
    float *whole = random_floats(1, (size_t)ROWS * l.out, 1),
          *out = random_floats(1, (size_t)ROWS * l.out, 1);
    for (uint32_t is_value = 0; is_value < 2; is_value++) {
        assert_true(world_open(&w, &l.shape, &o, NULL, 2, NULL));
        slot_new(&w, 1, NULL, 1, 2);
        run_rows(&w, &l, 1, 0, ROWS, NULL, whole);
        float *bad = l.in + BAD * l.width + (4 + is_value) * 32 + 5, good = *bad;
        *bad = INFINITY;
        slot_new(&w, 2, NULL, 3, 2);
        run_rows(&w, &l, 2, 0, ROWS, NULL, out);
        assert_same_floats(out, whole, (size_t)BAD * l.out, "before it");
        OK(k_stream_wait(w.s, 0, e));
        for (size_t i = (size_t)BAD * l.out; i < (size_t)ROWS * l.out; i++)
            assert_true(isnan(out[i]));
        *bad = good;
        slot_new(&w, 3, NULL, 3, 2); /* the same pages: row 67 is another sequence's */
        run_rows(&w, &l, 3, 0, BAD, NULL, out);
        run_rows(&w, &l, 3, BAD, ROWS - BAD, NULL, out);
        assert_same_floats(out, whole, (size_t)ROWS * l.out, "after it");
        OK(k_stream_wait(w.s, 0, e));
        world_close(&w);
    }
    free(whole), free(out);
    layer_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_against_double),
            cmocka_unit_test(test_any_split_gives_the_same_bits),
            cmocka_unit_test(test_leaves_as_tasks_give_the_same_bits),
            cmocka_unit_test(test_pages_move_and_sequences_mix),
            cmocka_unit_test(test_int8_keeps_codes_and_a_scale),
            cmocka_unit_test(test_int8_what_is_no_number_is_seen_by_whom_it_may),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
