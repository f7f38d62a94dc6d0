/* The GDN mixer against the plain recurrence in double precision, and its bits under every split of a
 * sequence. */
#include "base/half.h"
#include "tests/unit/kernels/fixture.h"

#include <errno.h>

struct gdn_case {
    uint32_t hk, hv, dk, dv, conv, rows;
};
static const struct gdn_case cases[] = {
        {2, 4, 32, 32, 4, 150}, {1, 3, 16, 24, 4, 40}, {2, 2, 128, 128, 4, 50}, {1, 1, 7, 5, 2, 35}};

struct layer {
    struct k_shape shape;
    uint32_t channels, width, out;
    float *conv, *a_log, *dt_bias, *norm, *in;
    struct k_gdn_weights on_device;
    float *d_in, *d_out; /* [rows][width], [rows][out] */
};
static void layer_make(struct layer *l, const struct gdn_case *c, uint64_t seed) {
    l->shape = (struct k_shape){.tp = 1,
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
            .rope_theta = 1e4};
    l->channels = 2 * c->hk * c->dk + c->hv * c->dv;
    l->out = c->hv * c->dv;
    l->width = l->channels + l->out + 2 * c->hv;
    l->conv = random_floats(seed, l->channels * c->conv, 0.7f);
    l->a_log = random_floats(seed + 1, c->hv, 1.0f);
    l->dt_bias = random_floats(seed + 2, c->hv, 1.0f);
    l->norm = random_floats(seed + 3, c->dv, 1.0f);
    l->in = random_floats(seed + 4, c->rows * l->width, 2.0f);
}
static void layer_free(struct layer *l) {
    free(l->conv), free(l->a_log), free(l->dt_bias), free(l->norm), free(l->in);
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

/* out[rows][out] and the state after the last row, head by head, position by position. f16: the state is rounded behind
 * each GDN block. */
static void reference_head(
        const struct layer *l, uint32_t rows, uint32_t v, bool f16, double *out, double *s) {
    const struct k_shape *h = &l->shape;
    const uint32_t dk = h->gdn_k_dim, dv = h->gdn_v_dim, k = v / (h->gdn_v_heads / h->gdn_k_heads);
    memset(s, 0, dk * dv * sizeof *s);
    for (uint32_t t = 0; t < rows; t++) {
        const float *in = l->in + t * l->width, *z = in + l->channels + v * dv,
                    *b = in + l->channels + l->out;
        double mixed[3][256], q2 = 1e-6, k2 = 1e-6, o[256], o2 = 0;
        for (uint32_t part = 0; part < 3; part++) {
            uint32_t n = part == 2 ? dv : dk;
            uint32_t first = part == 0   ? k * dk
                             : part == 1 ? (h->gdn_k_heads + k) * dk
                                         : 2 * h->gdn_k_heads * dk + v * dv;
            for (uint32_t i = 0; i < n; i++) {
                double sum = 0;
                for (uint32_t j = 0; j < h->conv_kernel; j++)
                    if (t + j + 1 >= h->conv_kernel)
                        sum += (double)l->conv[j * l->channels + first + i] *
                               l->in[(t + j + 1 - h->conv_kernel) * l->width + first + i];
                mixed[part][i] = silu(sum);
            }
        }
        for (uint32_t i = 0; i < dk; i++) {
            q2 += mixed[0][i] * mixed[0][i];
            k2 += mixed[1][i] * mixed[1][i];
        }
        double a = b[h->gdn_v_heads + v] + l->dt_bias[v], beta = 1 / (1 + exp(-b[v]));
        double fade = exp(-exp(l->a_log[v]) * (a > 20 ? a : log1p(exp(a))));
        for (uint32_t j = 0; j < dv; j++) {
            double mem = 0;
            o[j] = 0;
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + j] *= fade;
                mem += s[i * dv + j] * mixed[1][i] / sqrt(k2);
            }
            double delta = (mixed[2][j] - mem) * beta;
            for (uint32_t i = 0; i < dk; i++) {
                s[i * dv + j] += mixed[1][i] / sqrt(k2) * delta;
                o[j] += s[i * dv + j] * mixed[0][i] / sqrt(q2) / sqrt(dk);
            }
            o2 += o[j] * o[j];
        }
        for (uint32_t j = 0; j < dv; j++)
            out[t * l->out + v * dv + j] = o[j] / sqrt(o2 / dv + 1e-6) * l->norm[j] * silu(z[j]);
        for (uint32_t i = 0; f16 && t % 16 == 15 && i < dk * dv; i++)
            s[i] = float_of_f16(f16_of((float)s[i]));
    }
}

static const struct k_pool_options states[] = {{.slots = 4, .pages = 1, .pages_per_slot = 2, .slot_units = 1},
        {.slots = 4, .pages = 1, .pages_per_slot = 2, .slot_units = 1, .state_dtype = K_F16}};
#define STATES (sizeof states / sizeof *states)

/* Weights and inputs, once for a world. */
static void layer_upload(struct layer *l, struct world *w, uint32_t rows) {
    const struct k_shape *h = &l->shape;
    l->on_device = (struct k_gdn_weights){dev(w, l->conv, l->channels * h->conv_kernel),
            dev(w, l->a_log, h->gdn_v_heads), dev(w, l->dt_bias, h->gdn_v_heads),
            dev(w, l->norm, h->gdn_v_dim)};
    l->d_in = dev(w, l->in, (size_t)rows * l->width);
    l->d_out = room(w, (size_t)rows * l->out);
}

/* Rows [from, from + n) of the case's sequence in a slot, alone in the step. */
static void run_rows(
        struct world *w, const struct layer *l, uint32_t slot, uint32_t from, uint32_t n, float *out) {
    const size_t at = (size_t)from * l->out;
    step_new(w);
    step_prompt(w, slot, from, n, 1);
    step_begin_now(w);
    k_gdn_step(w->s, w->p, w->b, 1, &l->on_device, l->d_in + (size_t)from * l->width, l->d_out + at);
    fetch(w, out + at, l->d_out + at, (size_t)n * l->out * sizeof *out);
    k_end_step(w->s, w->p, w->b, NULL, NULL);
}

/* Where a number of the state lies between two of fp16, the reference may round it the other way; then some rows are
 * apart by what the rounding is. */
static void against_the_recurrence(const struct k_pool_options *options) {
    const bool f16 = options->state_dtype == K_F16;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        const struct gdn_case *c = &cases[t];
        struct layer l;
        layer_make(&l, c, t * 10);
        const size_t n_out = (size_t)c->rows * l.out, n_state = (size_t)c->hv * c->dk * c->dv;
        double *expected = calloc(n_out, sizeof *expected), *s = calloc(n_state, sizeof *s);
        float *out = random_floats(1, n_out, 1), *first = random_floats(1, n_out, 1),
              *got = random_floats(1, n_state, 1);
        float *window = random_floats(1, l.channels * c->conv, 1);
        for (uint32_t v = 0; v < c->hv; v++)
            reference_head(&l, c->rows, v, f16, expected, s + (size_t)v * c->dk * c->dv);
        for (int i = 0; i < N_ISAS * 2; i++) {
            struct world w;
            if (!world_open(&w, &l.shape, options, all_isas[i / 2], i % 2 + 1, NULL))
                continue;
            layer_upload(&l, &w, c->rows);
            slot_new(&w, 1, NULL, 0, 0);
            run_rows(&w, &l, 1, 0, c->rows, out);
            OK(k_stream_wait(w.s, 0, e));
            assert_near(out, expected, n_out, f16 ? 2e-3 : 2e-5, "rows");
            if (i == 0)
                memcpy(first, out, n_out * sizeof *out);
            assert_same_floats(out, first, n_out, all_isas[i / 2]);
            OK(k_pool_read_gdn(w.s, w.p, 1, 1, got, window));
            assert_near(got, s, n_state, f16 ? 1e-3 : 2e-6, "state");
            for (uint32_t ch = 0; ch < l.channels; ch++)
                for (uint32_t j = 0; j + 1 < c->conv; j++)
                    assert_true(window[ch * (c->conv - 1) + j] ==
                                l.in[(c->rows + 1 - c->conv + j) * l.width + ch]);
            world_close(&w);
        }
        layer_free(&l);
        free(expected), free(s), free(out), free(first), free(got), free(window);
    }
}

static void test_against_the_recurrence(void **state) {
    (void)state;
    for (size_t i = 0; i < STATES; i++)
        against_the_recurrence(&states[i]);
}

static void any_split_gives_the_same_bits(
        const struct k_pool_options *options, const struct gdn_case *c, int rounds) {
    struct layer l;
    struct world w;
    struct rng r = {5};
    layer_make(&l, c, 3);
    const size_t n_out = (size_t)c->rows * l.out;
    float *whole = random_floats(1, n_out, 1), *out = random_floats(2, n_out, 1);
    assert_true(world_open(&w, &l.shape, options, NULL, 2, NULL));
    layer_upload(&l, &w, c->rows);
    slot_new(&w, 1, NULL, 0, 0);
    run_rows(&w, &l, 1, 0, c->rows, whole);
    for (int round = 0; round < rounds; round++) {
        slot_new(&w, 2, NULL, 0, 0);
        uint32_t most = round == 0 ? 1 : rng_u32(&r) % 120 + 1;
        for (uint32_t at = 0, n; at < c->rows; at += n) {
            n = rng_u32(&r) % most + 1;
            n = n < c->rows - at ? n : c->rows - at;
            run_rows(&w, &l, 2, at, n, out);
        }
        assert_same_floats(out, whole, n_out, "split");
    }
    world_close(&w);
    layer_free(&l);
    free(whole), free(out);
}
static void test_any_split_gives_the_same_bits(void **state) {
    (void)state;
    any_split_gives_the_same_bits(&states[0], &cases[0], 40);
    any_split_gives_the_same_bits(&states[1], &cases[0], 8);
    any_split_gives_the_same_bits(&states[1], &cases[3], 20);
}

/* Three sequences of different lengths in each step; a snapshot and a copy are taken on the way. */
static void sequences_do_not_see_each_other(const struct k_pool_options *options) {
    const struct gdn_case *c = &cases[1];
    struct layer l;
    struct world w;
    layer_make(&l, c, 8);
    float *whole = random_floats(1, c->rows * l.out, 1), *in = random_floats(1, 3 * c->rows * l.width, 1);
    float *out = random_floats(1, 3 * c->rows * l.out, 1);
    assert_true(world_open(&w, &l.shape, options, NULL, 2, NULL));
    layer_upload(&l, &w, c->rows);
    slot_new(&w, 4, NULL, 0, 0);
    run_rows(&w, &l, 4, 0, c->rows, whole);
    uint32_t at[4] = {0}, n[4] = {0, 5, 1, 18};
    for (uint32_t slot = 1; slot <= 3; slot++)
        slot_new(&w, slot, NULL, 0, 0);
    for (int round = 0; round < 2; round++) {
        step_new(&w);
        for (uint32_t slot = 1, row = 0; slot <= 3; slot++) {
            step_prompt(&w, slot, at[slot], n[slot], 1);
            memcpy(in + row * l.width, l.in + at[slot] * l.width, n[slot] * l.width * sizeof *in);
            row += n[slot];
        }
        step_begin_now(&w);
        float *to = room(&w, (size_t)w.plan.n_rows * l.out);
        k_gdn_step(w.s, w.p, w.b, 1, &l.on_device, dev(&w, in, (size_t)w.plan.n_rows * l.width), to);
        fetch(&w, out, to, (size_t)w.plan.n_rows * l.out * sizeof *out);
        k_end_step(w.s, w.p, w.b, NULL, NULL);
        for (uint32_t slot = 1, row = 0; slot <= 3; slot++) {
            assert_same_floats(out + row * l.out, whole + at[slot] * l.out, n[slot] * l.out, "mixed step");
            row += n[slot];
            at[slot] += n[slot];
        }
    }
    const struct k_memory_op ops[] = {{K_MEM_COPY_SLOT, 3, 1}, {K_MEM_SNAPSHOT_SLOT, 3, 0},
            {K_MEM_ZERO_SLOT, 3, 0}, {K_MEM_RESTORE_SLOT, 0, 2}};
    k_memory(w.s, w.p, ops, 4);
    for (uint32_t slot = 1; slot <= 2; slot++) {
        run_rows(&w, &l, slot, at[3], c->rows - at[3], out);
        assert_same_floats(
                out + at[3] * l.out, whole + at[3] * l.out, (c->rows - at[3]) * l.out, "copied state");
    }
    run_rows(&w, &l, 3, 0, c->rows, out);
    assert_same_floats(out, whole, c->rows * l.out, "zeroed state");
    OK(k_stream_wait(w.s, 0, e));
    world_close(&w);
    layer_free(&l);
    free(whole), free(in), free(out);
}
static void test_sequences_do_not_see_each_other(void **state) {
    (void)state;
    for (size_t i = 0; i < STATES; i++)
        sequences_do_not_see_each_other(&states[i]);
}

/* Half the bytes for S0, in slots and in what the prefix cache keeps of them; a dtype that S0 cannot have is
 * refused. */
static void test_what_a_state_takes(void **state) {
    struct layer l;
    struct k_pool_cost cost[STATES];
    struct k_pool_options o = states[1];
    struct k_pool *p = NULL;
    struct k_context *c = NULL;
    struct error refused = {0};
    (void)state;
    for (size_t t = 0; t < sizeof cases / sizeof *cases; t++) {
        layer_make(&l, &cases[t], 1);
        for (size_t i = 0; i < STATES; i++)
            k_pool_cost(&l.shape, &states[i], &cost[i]);
        const uint64_t saved = cost[0].slot_bytes - cost[1].slot_bytes,
                       half = 2ull * 2 * cases[t].hv * cases[t].dk * cases[t].dv, /* of two layers */
                padding = 2 * 64;
        assert_true(saved <= half + padding && half <= saved + padding);
        assert_true(cost[0].slot_unit_bytes - cost[1].slot_unit_bytes == saved);
        layer_free(&l);
    }
    OK(k_context_create(&(struct k_context_options){.threads = 1}, &c, e));
    o.state_dtype = K_BF16;
    layer_make(&l, &cases[0], 1);
    assert_int_equal(k_pool_create(c, &l.shape, &o, &p, &refused), -EINVAL);
    assert_string_equal(refused.text, "the recurrent state can be f32 or f16");
    layer_free(&l);
    k_context_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_against_the_recurrence),
            cmocka_unit_test(test_any_split_gives_the_same_bits),
            cmocka_unit_test(test_sequences_do_not_see_each_other),
            cmocka_unit_test(test_what_a_state_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
