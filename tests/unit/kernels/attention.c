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

static double stored(double x, enum k_dtype dtype) {
    return dtype == K_BF16 ? of_bf16(to_bf16((float)x)) : (float)x;
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
            for (uint32_t j = 0; j < d; j++) {
                kt[j] = stored(kt[j], dtype);
                vt[j] = stored(from[h->kv_heads * d + j], dtype);
            }
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
        {20, 1, 16, 16, 300, 1, K_BF16}, {8, 2, 256, 64, 40, 0, K_BF16}};

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
            /* BF16: a K that rounds the other way moves a score by 2^-9 of it */
            assert_near(out, expected, n, cases[t].dtype == K_BF16 ? 2e-2 : 1e-5, "rows");
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
    for (uint32_t shift = 0; shift < 2; shift++) {
        struct layer l;
        struct world w;
        layer_make(&l, 3, 1, 40, 8, 1300, shift);
        struct k_pool_options o = {.slots = 2, .pages = 50, .pages_per_slot = 22, .kv_dtype = K_BF16};
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

static void test_pages_move_and_sequences_mix(void **state) {
    struct layer l;
    struct world w;
    (void)state;
    layer_make(&l, 4, 2, 32, 8, 200, 0);
    struct k_pool_options o = {
            .slots = 3, .pages = 30, .pages_per_slot = 12, .page_units = 2, .kv_dtype = K_BF16};
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

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_against_double),
            cmocka_unit_test(test_any_split_gives_the_same_bits),
            cmocka_unit_test(test_leaves_as_tasks_give_the_same_bits),
            cmocka_unit_test(test_pages_move_and_sequences_mix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
