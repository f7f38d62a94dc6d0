/* model_parity.c - the forward pass against Hugging Face transformers: logits, hidden states, recurrent and
 * convolution states, greedy tokens, the MTP layer, and BF16. tests/golden/README.md says what was recorded. */
#include "model_test.h"

#define LOGITS_ERROR_MAX 1e-3
#define KL_MAX           1e-3

static const uint32_t lengths[] = {1, 3, 63, 64, 65, 200};
#define N_LENGTHS (sizeof(lengths) / sizeof(lengths[0]))
static const char *const models[] = {"small", "real", "tp8"};
#define N_MODELS (sizeof(models) / sizeof(models[0]))

static struct rank_options keep_everything(uint32_t tp) {
    struct rank_options o = test_options(NULL, tp);
    o.logits_rows = ROWS_MAX;
    return o;
}

static void compare_logits(const struct checkpoint *g, const char *model, const struct one_run *r) {
    uint32_t n = r->s.n_prompt, v = r->vocab;
    const struct tensor *positions = golden(g, n, "logits_pos"), *logits = golden(g, n, "logits"),
                        *best = golden(g, n, "argmax");
    const uint32_t *at = positions->data, *argmaxes = best->data;
    assert_int_equal(logits->dims[1], v);
    for (uint64_t i = 0; i < positions->dims[0]; i++) {
        double error = max_abs_error(r->s.logits + (size_t)at[i] * v, (const float *)logits->data + i * v, v);
        if (!(error <= LOGITS_ERROR_MAX))
            fail_msg("%s, length %u, position %u: logits differ by %g", model, n, at[i], error);
    }
    for (uint32_t i = 0; i < n; i++)
        if (argmax(r->s.logits + (size_t)i * v, v) != argmaxes[i])
            fail_msg("%s, length %u, position %u: argmax %u, expected %u", model, n, i,
                    argmax(r->s.logits + (size_t)i * v, v), argmaxes[i]);
}

static void compare_greedy(const struct checkpoint *g, const char *model, const struct one_run *r) {
    uint32_t n = r->s.n_prompt, v = r->vocab;
    const uint32_t *ids = golden(g, n, "greedy")->data;
    for (uint32_t i = 0; i < 20; i++)
        if (r->s.samples[i].id != ids[i])
            fail_msg("%s, length %u: greedy token %u is %u, expected %u", model, n, i, r->s.samples[i].id,
                    ids[i]);
    if (n != 3 && n != 65)
        return;
    const float *logits = golden(g, n, "greedy_logits")->data;
    double error = max_abs_error(r->s.logits + (size_t)(n - 1) * v, logits, (size_t)20 * v);
    if (!(error <= LOGITS_ERROR_MAX))
        fail_msg("%s, length %u: logits of the greedy tokens differ by %g", model, n, error);
}

/* Prompts at once and in chunks that straddle blocks and pages, then 20 tokens. */
static void logits_and_greedy(void **state) {
    (void)state;
    static const uint32_t odd[] = {1, 15, 2, 31, 64, 7};
    for (size_t m = 0; m < N_MODELS; m++) {
        struct rank_options options = keep_everything(1);
        struct offline *o = model_start(models[m], &options);
        struct checkpoint *g = golden_open(models[m]);
        for (size_t i = 0; i < 2 * N_LENGTHS; i++) {
            struct one_run r;
            struct error e = {0};
            uint32_t n = lengths[i / 2];
            run_start(&r, o, golden_ids(g, n), n, 20, true);
            if (i % 2) {
                r.s.chunks = odd;
                r.s.n_chunks = sizeof(odd) / sizeof(odd[0]);
            }
            must(offline_run(o, &r.s, 1, &e), &e);
            compare_logits(g, models[m], &r);
            compare_greedy(g, models[m], &r);
            run_done(&r);
        }
        checkpoint_free(g);
        offline_free(o);
    }
}

/* logprob and top logprobs that are reported, against log-softmax of the recorded logits. */
static void reported_logprobs(void **state) {
    (void)state;
    struct rank_options options = test_options(NULL, 1);
    struct offline *o = model_start("small", &options);
    struct checkpoint *g = golden_open("small");
    struct one_run r;
    struct error e = {0};
    uint32_t v = offline_geometry(o)->vocab_size;
    double *expected = calloc(v, sizeof(double));
    run_start(&r, o, golden_ids(g, 65), 65, 20, false);
    must(offline_run(o, &r.s, 1, &e), &e);
    const float *logits = golden(g, 65, "greedy_logits")->data;
    for (uint32_t i = 0; i < 20; i++) {
        const struct step_sample *s = &r.s.samples[i];
        log_softmax(logits + (size_t)i * v, v, expected);
        assert_true(fabs((double)s->logprob - expected[s->id]) < 2e-3);
        assert_int_equal(s->n_top, 5);
        assert_int_equal(s->top_ids[0], s->id); /* greedy */
        for (uint32_t k = 0; k < 5; k++) {
            assert_true(fabs((double)s->top_logprobs[k] - expected[s->top_ids[k]]) < 2e-3);
            assert_true(k == 0 || s->top_logprobs[k] <= s->top_logprobs[k - 1]);
        }
    }
    free(expected);
    run_done(&r);
    checkpoint_free(g);
    offline_free(o);
}

static void hidden_states(void **state) {
    (void)state;
    for (size_t m = 0; m < N_MODELS; m++) {
        struct rank_options options = test_options(NULL, 1);
        options.eager = true; /* each layer's output is copied on the way */
        struct offline *o = model_start(models[m], &options);
        struct rank *rank = offline_rank(o, 0);
        struct checkpoint *g = golden_open(models[m]);
        uint32_t h = rank->config.hidden_size, layers = rank->config.n_layers;
        struct forward_hooks hooks = {.hidden = calloc((size_t)(layers + 1) * ROWS_MAX * h, sizeof(float))};
        float *final = calloc((size_t)ROWS_MAX * h, sizeof(float));
        step_exec_hooks(offline_exec(o, 0), &hooks);
        for (size_t i = 0; i < N_LENGTHS; i++) {
            struct one_run r;
            struct error e = {0};
            uint32_t n = lengths[i];
            run_start(&r, o, golden_ids(g, n), n, 0, false);
            r.s.keep = true; /* closing would be one more step */
            must(offline_run(o, &r.s, 1, &e), &e);
            k_download(rank->stream, final, rank->hidden, (size_t)n * h * sizeof(float));
            must(k_stream_wait(rank->stream, 0, &e), &e);
            const struct tensor *at = golden(g, n, "hidden_pos");
            const float *hidden = golden(g, n, "hidden")->data, *normed = golden(g, n, "final_norm")->data;
            uint64_t q = at->dims[0];
            for (uint64_t k = 0; k < q; k++) {
                size_t row = ((const uint32_t *)at->data)[k];
                for (uint32_t l = 0; l <= layers; l++) {
                    double error = max_abs_error(
                            hooks.hidden + ((size_t)l * ROWS_MAX + row) * h, hidden + (l * q + k) * h, h);
                    if (!(error <= 1e-3))
                        fail_msg("%s, length %u, position %zu, layer %u: hidden state differs by %g",
                                models[m], n, row, l, error);
                }
                assert_true(max_abs_error(final + row * h, normed + k * h, h) <= 1e-3);
            }
            run_done(&r);
        }
        free(hooks.hidden);
        free(final);
        checkpoint_free(g);
        offline_free(o);
    }
}

/* The slot's folded state and convolution window after the whole prompt, for those that were recorded. */
static uint32_t compare_states(struct offline *o, const struct checkpoint *g, const char *model, uint32_t n) {
    struct rank *rank = offline_rank(o, 0);
    const struct k_shape *s = &rank->shard.shape;
    size_t state_floats = (size_t)s->gdn_v_heads * s->gdn_k_dim * s->gdn_v_dim;
    size_t channels = 2 * s->gdn_k_heads * s->gdn_k_dim + s->gdn_v_heads * s->gdn_v_dim;
    float *state = calloc(state_floats, sizeof(float)), *conv = calloc(channels * 3, sizeof(float));
    uint32_t compared = 0;
    for (uint32_t layer = 0; layer < s->n_gdn_layers; layer++) {
        char name[64];
        snprintf(name, sizeof(name), "len%u.state.layer%u", n, layer);
        const struct tensor *expected_state = checkpoint_find(g, name);
        snprintf(name, sizeof(name), "len%u.conv.layer%u", n, layer);
        const struct tensor *expected_conv = checkpoint_find(g, name);
        assert_int_equal(k_pool_read_gdn(rank->stream, rank->pool, 1, layer, state, conv), 0);
        if (expected_state) {
            assert_int_equal(expected_state->bytes, state_floats * sizeof(float));
            double error = max_abs_error(state, expected_state->data, state_floats);
            if (!(error <= 1e-3))
                fail_msg("%s, length %u, layer %u: recurrent state differs by %g", model, n, layer, error);
            compared++;
        }
        if (expected_conv) {
            assert_int_equal(expected_conv->bytes, channels * 3 * sizeof(float));
            double error = max_abs_error(conv, expected_conv->data, channels * 3);
            if (!(error <= 1e-3))
                fail_msg("%s, length %u, layer %u: convolution state differs by %g", model, n, layer, error);
            compared++;
        }
    }
    free(state);
    free(conv);
    return compared;
}

static void gdn_states(void **state) {
    (void)state;
    for (size_t m = 0; m < N_MODELS; m++) {
        struct rank_options options = test_options(NULL, 1);
        struct offline *o = model_start(models[m], &options);
        struct checkpoint *g = golden_open(models[m]);
        uint32_t compared = 0;
        for (size_t i = 0; i < N_LENGTHS; i++) {
            struct one_run r;
            struct error e = {0};
            run_start(&r, o, golden_ids(g, lengths[i]), lengths[i], 0, false);
            r.s.keep = true;
            must(offline_run(o, &r.s, 1, &e), &e);
            compared += compare_states(o, g, models[m], lengths[i]);
            run_done(&r);
        }
        assert_true(compared >= 3);
        checkpoint_free(g);
        offline_free(o);
    }
}

static void mtp_layer(void **state) {
    (void)state;
    static const uint32_t chunk[] = {7, 64};
    for (size_t m = 0; m < N_MODELS; m++) {
        struct rank_options options = keep_everything(1);
        options.mtp = true;
        struct offline *o = model_start(models[m], &options);
        struct checkpoint *g = golden_open(models[m]);
        assert_true(offline_geometry(o)->has_mtp);
        for (uint32_t i = 0; i < 4; i++) {
            struct one_run r;
            struct error e = {0};
            uint32_t n = i < 2 ? 3 : 65;
            run_start(&r, o, golden_ids(g, n), n, 1, true);
            if (i % 2) {
                r.s.chunks = chunk;
                r.s.n_chunks = 2;
            }
            must(offline_run(o, &r.s, 1, &e), &e);
            const uint32_t *best = golden(g, n, "mtp_argmax")->data;
            double error =
                    max_abs_error(r.s.mtp_logits, golden(g, n, "mtp_logits")->data, (size_t)n * r.vocab);
            if (!(error <= LOGITS_ERROR_MAX))
                fail_msg("%s, length %u: MTP logits differ by %g", models[m], n, error);
            for (uint32_t k = 0; k < n; k++)
                assert_int_equal(argmax(r.s.mtp_logits + (size_t)k * r.vocab, r.vocab), best[k]);
            run_done(&r);
        }
        checkpoint_free(g);
        offline_free(o);
    }
}

/* BF16 as it is served: BF16 weights and KV pages, fp32 activations, against HF computing in BF16. */
static void bf16(void **state) {
    (void)state;
    for (size_t m = 0; m < N_MODELS; m++) {
        struct rank_options options = keep_everything(1);
        options.kv_dtype = RANK_KV_AUTO;
        struct offline *o = model_start(models[m], &options);
        struct checkpoint *g = golden_open(models[m]);
        uint32_t v = offline_geometry(o)->vocab_size;
        double *ours = calloc(v, sizeof(double));
        assert_int_equal(offline_rank(o, 0)->budget.pool.kv_dtype, K_BF16);
        for (uint32_t n = 3; n <= 65; n += 62) {
            struct one_run r;
            struct error e = {0};
            double kl = 0;
            run_start(&r, o, golden_ids(g, n), n, 0, true);
            must(offline_run(o, &r.s, 1, &e), &e);
            const float *theirs = golden(g, n, "bf16_logprobs")->data;
            for (uint32_t t = 0; t < n; t++) {
                log_softmax(r.s.logits + (size_t)t * v, v, ours);
                for (uint32_t i = 0; i < v; i++)
                    kl += exp((double)theirs[(size_t)t * v + i]) *
                          ((double)theirs[(size_t)t * v + i] - ours[i]);
            }
            if (!(kl / n < KL_MAX))
                fail_msg("%s, length %u: mean KL %g", models[m], n, kl / n);
            run_done(&r);
        }
        free(ours);
        checkpoint_free(g);
        offline_free(o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(logits_and_greedy),
            cmocka_unit_test(reported_logprobs),
            cmocka_unit_test(hidden_states),
            cmocka_unit_test(gdn_states),
            cmocka_unit_test(mtp_layer),
            cmocka_unit_test(bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
