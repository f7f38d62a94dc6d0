/* model_seeded.c - the two larger models (tests/golden/seeded) against Hugging Face transformers.
 *
 * Their checkpoints are made here, in every dtype that is read; what must come out was recorded. small256 has
 * the head ratios of the published models, tp8_512 divides over 1, 2, 4 and 8 ranks, which must all say the
 * same bits. */
#include "model_test.h"
#include "tests/lib/seeded_checkpoint.h"

#define N_LENGTHS       6
#define N_GREEDY        20
#define ROWS            512u
#define LOGIT_ERROR_MAX 1e-3
#define INNER_ERROR_MAX 1e-4 /* residual stream, final norm, states */
#define KL_MAX          1e-3

static const uint32_t lengths[N_LENGTHS] = {1, 3, 63, 64, 65, 200};

static char folder[64]; /* the checkpoint of the test that runs */

/* A model of tests/golden/seeded, made in folder, and its goldens. */
struct fixture {
    struct seeded_model model;
    struct checkpoint *golden;
    char golden_dir[512];
    uint32_t vocab, hidden;
};

static void empty_folder(void) {
    static const char *const names[] = {"config.json", "generation_config.json", "model.safetensors"};
    char path[128];
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shardd-seeded-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    empty_folder();
    return rmdir(folder);
}

static void fixture_make(struct fixture *f, const char *name, enum seeded_store store) {
    struct error e = {0};
    struct model_config config;
    char path[600];
    memset(f, 0, sizeof(*f));
    snprintf(f->golden_dir, sizeof(f->golden_dir), "%s/golden/seeded/%s", TESTS_DIR, name);
    empty_folder();
    assert_int_equal(seeded_model_read(f->golden_dir, &f->model), 0);
    assert_int_equal(seeded_model_write(&f->model, f->golden_dir, store, folder), 0);
    snprintf(path, sizeof(path), "%s/golden.safetensors", f->golden_dir);
    must(checkpoint_open_file(path, &f->golden, &e), &e);
    must(model_config_load(folder, &config, &e), &e);
    f->vocab = config.vocab_size;
    f->hidden = config.hidden_size;
}

static void fixture_done(struct fixture *f) {
    checkpoint_free(f->golden);
    seeded_model_done(&f->model);
}

static const struct tensor *maybe(const struct fixture *f, uint32_t n, const char *what) {
    char name[64];
    snprintf(name, sizeof(name), "len%u.%s", n, what);
    return checkpoint_find(f->golden, name);
}

static const void *want(const struct fixture *f, uint32_t n, const char *what, uint64_t elements) {
    const struct tensor *t = maybe(f, n, what);
    if (!t || t->bytes != 4 * elements)
        fail_msg("golden len%u.%s is missing or not of %llu elements", n, what, (unsigned long long)elements);
    return t->data;
}

static void close_to(
        const float *got, const float *wanted, uint64_t n, double limit, const char *what, uint32_t length) {
    for (uint64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - wanted[i]) <= limit))
            fail_msg("len%u %s, element %llu: expected %.7g, got %.7g", length, what, (unsigned long long)i,
                    (double)wanted[i], (double)got[i]);
}

/* What one run over all six prompts gives. */
struct run {
    float *logits[N_LENGTHS], *mtp[N_LENGTHS]; /* [length + N_GREEDY][vocab] */
    struct step_sample samples[N_LENGTHS][N_GREEDY];
};

/* Without MTP the step is eager, so that it can be watched, and leaves the final norm where it was. */
static struct offline *open_model(uint32_t tp, enum rank_kv_dtype kv, bool mtp) {
    struct offline *o = NULL;
    struct error e = {0};
    struct rank_options options = {.model_dir = folder,
            .tp = tp,
            .threads = tp == 1 ? 2 : 1,
            .max_model_len = 256,
            .max_num_seqs = N_LENGTHS,
            .max_num_batched_tokens = ROWS,
            .kv_dtype = kv,
            .kv_cache_bytes = 64u << 20,
            .mtp = mtp,
            .eager = !mtp,
            .logits_rows = ROWS};
    must(offline_create(&options, &o, &e), &e);
    return o;
}

static void run_all(const struct fixture *f, uint32_t tp, enum rank_kv_dtype kv, struct run *ret) {
    struct offline_sequence s[N_LENGTHS] = {0};
    struct error e = {0};
    struct offline *o = open_model(tp, kv, true);
    for (int i = 0; i < N_LENGTHS; i++) {
        size_t floats = (size_t)(lengths[i] + N_GREEDY) * f->vocab;
        ret->logits[i] = calloc(floats, sizeof(float));
        ret->mtp[i] = calloc(floats, sizeof(float));
        assert_non_null(ret->logits[i]);
        assert_non_null(ret->mtp[i]);
        s[i].prompt = want(f, lengths[i], "ids", lengths[i]);
        s[i].n_prompt = lengths[i];
        s[i].max_tokens = N_GREEDY;
        s[i].stop_id = STEP_NONE;
        s[i].sampling = offline_greedy();
        s[i].samples = ret->samples[i];
        s[i].logits = ret->logits[i];
        s[i].mtp_logits = ret->mtp[i];
    }
    must(offline_run(o, s, N_LENGTHS, &e), &e);
    for (int i = 0; i < N_LENGTHS; i++)
        assert_int_equal(s[i].n_tokens, N_GREEDY);
    offline_free(o);
}

static void all_done(struct run *r) {
    for (int i = 0; i < N_LENGTHS; i++) {
        free(r->logits[i]);
        free(r->mtp[i]);
    }
}

/* Rows of got, by position, against the golden's rows of the positions that it keeps. */
static void compare_rows(const struct fixture *f, uint32_t n, const float *got, const char *what,
        const char *at, uint32_t width, double limit) {
    const struct tensor *positions = maybe(f, n, at);
    assert_non_null(positions);
    uint64_t kept = positions->bytes / 4;
    const uint32_t *p = positions->data;
    const float *rows = want(f, n, what, kept * width);
    for (uint64_t i = 0; i < kept; i++) {
        assert_true(p[i] < n);
        close_to(got + (size_t)p[i] * width, rows + i * width, width, limit, what, n);
    }
}

static void compare_run(const struct fixture *f, const struct run *r) {
    uint32_t v = f->vocab;
    for (int i = 0; i < N_LENGTHS; i++) {
        uint32_t n = lengths[i];
        const uint32_t *best = want(f, n, "argmax", n), *greedy = want(f, n, "greedy", N_GREEDY);
        for (uint32_t t = 0; t < n; t++)
            assert_int_equal(argmax(r->logits[i] + (size_t)t * v, v), best[t]);
        compare_rows(f, n, r->logits[i], "logits", "logits_pos", v, LOGIT_ERROR_MAX);
        for (uint32_t t = 0; t < N_GREEDY; t++)
            assert_int_equal(r->samples[i][t].id, greedy[t]);
        if (maybe(f, n, "greedy_logits"))
            close_to(r->logits[i] + (size_t)(n - 1) * v, want(f, n, "greedy_logits", (uint64_t)N_GREEDY * v),
                    (uint64_t)N_GREEDY * v, LOGIT_ERROR_MAX, "greedy_logits", n);
        if (maybe(f, n, "mtp_logits")) {
            best = want(f, n, "mtp_argmax", n);
            for (uint32_t t = 0; t < n; t++)
                assert_int_equal(argmax(r->mtp[i] + (size_t)t * v, v), best[t]);
            compare_rows(f, n, r->mtp[i], "mtp_logits", "mtp_pos", v, LOGIT_ERROR_MAX);
        }
    }
}

static void test_generator_makes_what_was_recorded(void **state) {
    static const char *const names[] = {"small256", "tp8_512"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        for (enum seeded_store store = 0; store < SEEDED_STORES; store++) {
            struct fixture f;
            struct checkpoint *c = NULL;
            struct error e = {0};
            fixture_make(&f, names[i], store);
            must(checkpoint_open(folder, &c, &e), &e);
            assert_int_equal(checkpoint_count(c), f.model.n);
            for (size_t k = 0; k < f.model.n; k++) {
                const struct seeded_tensor *wanted = &f.model.at[k];
                const struct tensor *t = checkpoint_find(c, wanted->name);
                assert_non_null(t);
                size_t width = tensor_dtype_bytes(t->dtype);
                assert_int_equal(t->bytes, wanted->elements * width);
                if (seeded_sum(t->data, wanted->elements, width) != wanted->sums[store])
                    fail_msg("%s %s: not the bytes that the goldens were made from", names[i], t->name);
            }
            checkpoint_free(c);
            fixture_done(&f);
        }
    }
}

static void check_stored_as(const char *name, enum seeded_store store) {
    struct fixture f;
    struct run r;
    fixture_make(&f, name, store);
    run_all(&f, 1, RANK_KV_F32, &r);
    compare_run(&f, &r);
    all_done(&r);
    fixture_done(&f);
}

static void test_small256_bf16(void **state) {
    (void)state;
    check_stored_as("small256", SEEDED_BF16);
}

static void test_small256_f16(void **state) {
    (void)state;
    check_stored_as("small256", SEEDED_F16);
}

static void test_small256_f32(void **state) {
    (void)state;
    check_stored_as("small256", SEEDED_F32);
}

static void test_tp8_512_f16(void **state) {
    (void)state;
    check_stored_as("tp8_512", SEEDED_F16);
}

static void test_tp8_512_f32(void **state) {
    (void)state;
    check_stored_as("tp8_512", SEEDED_F32);
}

static void test_tp8_512_is_the_same_on_any_number_of_ranks(void **state) {
    struct fixture f;
    struct run one, more;
    (void)state;
    fixture_make(&f, "tp8_512", SEEDED_BF16);
    run_all(&f, 1, RANK_KV_F32, &one);
    compare_run(&f, &one);
    for (uint32_t tp = 2; tp <= 8; tp *= 2) {
        run_all(&f, tp, RANK_KV_F32, &more);
        for (int i = 0; i < N_LENGTHS; i++) {
            size_t bytes = (size_t)(lengths[i] + N_GREEDY) * f.vocab * sizeof(float);
            assert_memory_equal(more.logits[i], one.logits[i], bytes);
            assert_memory_equal(more.mtp[i], one.mtp[i], bytes);
            for (int t = 0; t < N_GREEDY; t++)
                assert_int_equal(more.samples[i][t].id, one.samples[i][t].id);
        }
        all_done(&more);
    }
    all_done(&one);
    fixture_done(&f);
}

/* KL(a || b) of two rows of logits. */
static double divergence(const float *a, const float *b, uint32_t n) {
    double *p = malloc(n * sizeof(*p)), *q = malloc(n * sizeof(*q)), sum = 0;
    assert_non_null(p);
    assert_non_null(q);
    log_softmax(a, n, p);
    log_softmax(b, n, q);
    for (uint32_t i = 0; i < n; i++)
        sum += exp(p[i]) * (p[i] - q[i]);
    free(p);
    free(q);
    return sum;
}

/* With a BF16 KV cache: as near to fp32 as to what transformers makes of the model in BF16. */
static void check_bf16(const char *name) {
    struct fixture f;
    struct run r;
    double from_fp32 = 0, from_bf16 = 0;
    uint32_t rows = 0;
    fixture_make(&f, name, SEEDED_BF16);
    run_all(&f, 1, RANK_KV_BF16, &r);
    for (int i = 0; i < N_LENGTHS; i++) {
        uint32_t n = lengths[i], v = f.vocab;
        if (!maybe(&f, n, "bf16_logprobs"))
            continue;
        uint64_t kept = maybe(&f, n, "bf16_logprobs")->bytes / 4 / v;
        const uint32_t *at = want(&f, n, "bf16_pos", kept);
        const float *bf16 = want(&f, n, "bf16_logprobs", kept * v), *fp32 = want(&f, n, "logits", kept * v);
        assert_memory_equal(at, want(&f, n, "logits_pos", kept), 4 * kept);
        for (uint64_t k = 0; k < kept; k++, rows++) {
            const float *ours = r.logits[i] + (size_t)at[k] * v;
            from_fp32 += divergence(fp32 + k * v, ours, v);
            from_bf16 += divergence(bf16 + k * v, ours, v);
        }
    }
    assert_true(rows > 0);
    print_message("%s: mean KL from fp32 %.1e, from transformers in BF16 %.1e (%u rows)\n", name,
            from_fp32 / rows, from_bf16 / rows, rows);
    assert_true(from_fp32 / rows < KL_MAX);
    assert_true(from_bf16 / rows < KL_MAX);
    all_done(&r);
    fixture_done(&f);
}

static void test_small256_bf16_kv(void **state) {
    (void)state;
    check_bf16("small256");
}

static void test_tp8_512_bf16_kv(void **state) {
    (void)state;
    check_bf16("tp8_512");
}

/* The rank's heads of the recurrent states and its channels of the conv states. */
static void compare_states(const struct fixture *f, uint32_t n, struct rank *r, uint32_t slot) {
    const struct k_shape *shape = &r->shard.shape;
    const struct model_config *m = &r->config;
    uint32_t head = m->gdn_k_dim * m->gdn_v_dim, window = m->conv_kernel - 1;
    uint32_t key_channels = shape->gdn_k_heads * m->gdn_k_dim;
    uint32_t channels = 2 * key_channels + shape->gdn_v_heads * m->gdn_v_dim;
    uint32_t all = 2 * m->gdn_k_heads * m->gdn_k_dim + m->gdn_v_heads * m->gdn_v_dim;
    struct shard_range ranges[3];
    float *state = malloc((size_t)shape->gdn_v_heads * head * sizeof(float));
    float *conv = malloc((size_t)channels * window * sizeof(float));
    assert_non_null(state);
    assert_non_null(conv);
    shard_gdn_channels(&r->shard, ranges);
    for (uint32_t layer = 0; layer < 3; layer++) {
        char what[32];
        assert_int_equal(k_pool_read_gdn(r->stream, r->pool, slot, layer, state, conv), 0);
        snprintf(what, sizeof(what), "state.layer%u", layer);
        if (maybe(f, n, what)) {
            const float *wanted = want(f, n, what, (uint64_t)m->gdn_v_heads * head);
            close_to(state, wanted + (size_t)r->shard.gdn_v_heads.first * head,
                    (uint64_t)shape->gdn_v_heads * head, INNER_ERROR_MAX, what, n);
        }
        snprintf(what, sizeof(what), "conv.layer%u", layer);
        if (maybe(f, n, what)) {
            const float *wanted = want(f, n, what, (uint64_t)all * window), *got = conv;
            for (int i = 0; i < 3; i++) {
                close_to(got, wanted + (size_t)ranges[i].first * window, (uint64_t)ranges[i].count * window,
                        INNER_ERROR_MAX, what, n);
                got += (size_t)ranges[i].count * window;
            }
        }
    }
    free(state);
    free(conv);
}

/* The residual stream after every layer and what the head gets. */
static void compare_hidden(const struct fixture *f, uint32_t n, struct rank *r, const float *hidden) {
    const struct tensor *positions = maybe(f, n, "hidden_pos");
    uint32_t h = f->hidden, layers = r->config.n_layers + 1;
    assert_non_null(positions);
    const uint32_t *at = positions->data;
    uint64_t kept = positions->bytes / 4;
    const float *wanted = want(f, n, "final_norm", kept * h);
    float *last = malloc((size_t)n * h * sizeof(float));
    assert_non_null(last);
    k_download(r->stream, last, r->hidden, (size_t)n * h * sizeof(float));
    assert_int_equal(k_stream_wait(r->stream, 0, NULL), 0);
    for (uint64_t i = 0; i < kept; i++)
        close_to(last + (size_t)at[i] * h, wanted + i * h, h, INNER_ERROR_MAX, "final_norm", n);
    free(last);
    if (!maybe(f, n, "hidden"))
        return;
    wanted = want(f, n, "hidden", layers * kept * h);
    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint64_t i = 0; i < kept; i++)
            close_to(hidden + ((size_t)layer * r->rows_max + at[i]) * h, wanted + (layer * kept + i) * h, h,
                    INNER_ERROR_MAX, "hidden", n);
}

/* One prompt at a time, each in one step, without sampling: then the slot is as after the prompt. */
static void check_inside(const char *name, uint32_t tp) {
    struct fixture f;
    struct error e = {0};
    fixture_make(&f, name, SEEDED_BF16);
    struct offline *o = open_model(tp, RANK_KV_F32, false);
    struct rank *first = offline_rank(o, 0);
    float *hidden = calloc((size_t)(first->config.n_layers + 1) * first->rows_max * f.hidden, sizeof(float));
    assert_non_null(hidden);
    struct forward_hooks hooks = {.hidden = hidden};
    step_exec_hooks(offline_exec(o, 0), &hooks);
    for (int i = 0; i < N_LENGTHS; i++) {
        uint32_t n = lengths[i];
        struct offline_sequence s = {.prompt = want(&f, n, "ids", n),
                .n_prompt = n,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .keep = true};
        must(offline_run(o, &s, 1, &e), &e);
        compare_hidden(&f, n, first, hidden);
        for (uint32_t rank = 0; rank < tp; rank++)
            compare_states(&f, n, offline_rank(o, rank), s.slot);
        must(offline_reset(o, &e), &e);
    }
    offline_free(o);
    free(hidden);
    fixture_done(&f);
}

static void test_inside_small256(void **state) {
    (void)state;
    check_inside("small256", 1);
}

static void test_inside_tp8_512(void **state) {
    (void)state;
    check_inside("tp8_512", 1);
    check_inside("tp8_512", 8);
}

/* After a step with MTP the rank's hidden rows are those after mtp.norm; the last one used the id just
 * sampled. */
static void check_mtp_hidden(const char *name, uint32_t tp) {
    struct fixture f;
    struct error e = {0};
    struct step_sample sample;
    uint32_t compared = 0;
    fixture_make(&f, name, SEEDED_BF16);
    struct offline *o = open_model(tp, RANK_KV_F32, true);
    struct rank *r = offline_rank(o, tp - 1);
    float *hidden = malloc((size_t)r->rows_max * f.hidden * sizeof(float));
    assert_non_null(hidden);
    for (int i = 0; i < N_LENGTHS; i++) {
        uint32_t n = lengths[i];
        if (!maybe(&f, n, "mtp_hidden"))
            continue;
        struct offline_sequence s = {.prompt = want(&f, n, "ids", n),
                .n_prompt = n,
                .max_tokens = 1,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .samples = &sample,
                .keep = true};
        must(offline_run(o, &s, 1, &e), &e);
        k_download(r->stream, hidden, r->hidden, (size_t)n * f.hidden * sizeof(float));
        must(k_stream_wait(r->stream, 0, &e), &e);
        compare_rows(&f, n, hidden, "mtp_hidden", "mtp_pos", f.hidden, INNER_ERROR_MAX);
        compared++;
    }
    assert_int_equal(compared, 2);
    offline_free(o);
    free(hidden);
    fixture_done(&f);
}

static void test_mtp_hidden(void **state) {
    (void)state;
    check_mtp_hidden("small256", 2);
    check_mtp_hidden("tp8_512", 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_generator_makes_what_was_recorded),
            cmocka_unit_test(test_small256_bf16),
            cmocka_unit_test(test_small256_f16),
            cmocka_unit_test(test_small256_f32),
            cmocka_unit_test(test_tp8_512_f16),
            cmocka_unit_test(test_tp8_512_f32),
            cmocka_unit_test(test_tp8_512_is_the_same_on_any_number_of_ranks),
            cmocka_unit_test(test_small256_bf16_kv),
            cmocka_unit_test(test_tp8_512_bf16_kv),
            cmocka_unit_test(test_inside_small256),
            cmocka_unit_test(test_inside_tp8_512),
            cmocka_unit_test(test_mtp_hidden),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
