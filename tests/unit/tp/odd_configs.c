/* odd_configs.c - models of random, unfriendly sizes: the same bits at every tp and however rows are grouped, and the
 * logits that a float64 reference gives.
 *
 * A configuration follows from its number: odd widths, one or seven columns a rank, vocabularies that nothing divides,
 * heads of 2 to 24. Its weights are those of synth with that seed. tests/golden/odd/goldens.json has some logits of
 * each, which make_odd_goldens.py computed from the same folders; this program writes them with `--write DIR`. */
#include "model_test.h"

#include "base/hash.h"
#include "tp/synth/synth.h"

#include <dirent.h>
#include <jansson.h>

#define CONFIGS     48u
#define N_PROMPTS   3u
#define N_GENERATED 3u
#define ROWS        64u
/* Of logits near 1, fp32 against float64 over up to four layers. */
#define LOGIT_ERROR_MAX 2e-4

static const uint32_t lengths[N_PROMPTS] = {1, 13, 29};
static const char *written; /* --write DIR */

/* --- configurations --- */

static uint32_t pick(uint64_t *state, uint32_t low, uint32_t high) {
    return low + (uint32_t)(splitmix64_next(state) % (high - low + 1));
}

static enum tensor_dtype dtype_of(uint32_t number) {
    static const enum tensor_dtype dtypes[] = {TENSOR_F32, TENSOR_BF16, TENSOR_F16};
    return dtypes[number % 3];
}

/* 0, or the bits of quantised matrices: their columns come in groups of 32. */
static uint32_t bits_of(uint32_t number) {
    return number % 6 == 4 ? 4 : number % 6 == 5 ? 8 : 0;
}

static struct model_config config_of(uint32_t number) {
    uint64_t state = number * 1000003ull;
    uint32_t unit = bits_of(number) ? 32 : 8, most = bits_of(number) ? 5 : 14;
    struct model_config m = {0};
    assert_int_equal(synth_config("tiny", &m), 0);
    m.hidden_size = unit * pick(&state, 1, most);
    m.intermediate_size = unit * pick(&state, 1, most);
    m.vocab_size = pick(&state, 290, 700);
    m.kv_heads = 1u << pick(&state, 0, 3);
    m.q_heads = number % 5 == 0 ? m.kv_heads * pick(&state, 1, 3) : 8 * pick(&state, 1, 2);
    m.head_dim = 2 * pick(&state, 1, 12);
    while ((uint64_t)m.q_heads * m.head_dim % unit != 0)
        m.head_dim = 2 * pick(&state, 1, 16);
    m.rotary_dim = 2 * pick(&state, 1, m.head_dim / 2);
    m.gdn_k_heads = number % 7 == 0 ? pick(&state, 1, 3) : 8;
    m.gdn_v_heads = m.gdn_k_heads * pick(&state, 1, 3);
    m.gdn_k_dim = pick(&state, 1, 19);
    m.gdn_v_dim = pick(&state, 1, 23);
    while ((uint64_t)m.gdn_v_heads * m.gdn_v_dim % unit != 0)
        m.gdn_v_dim = pick(&state, 1, 32);
    m.conv_kernel = pick(&state, 2, 5);
    m.n_layers = pick(&state, 1, 4);
    for (uint32_t i = 0; i < m.n_layers; i++)
        m.is_attention[i] = pick(&state, 0, 1);
    m.tie_word_embeddings = number % 4 == 1;
    m.mtp_layers = number % 2;
    m.max_position_embeddings = 256;
    return m;
}

static void write_model(uint32_t number, const char *dir) {
    struct error e = {0};
    struct synth_options o = {.dir = dir,
            .config = config_of(number),
            .name = "odd",
            .dtype = dtype_of(number),
            .weight_bits = bits_of(number),
            .group_size = bits_of(number) ? 32 : 0,
            .seed = number};
    must(synth_write(&o, NULL, &e), &e);
}

static void remove_folder(const char *dir) {
    char path[512];
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        snprintf(path, sizeof(path), "%s/%.200s", dir, f->d_name);
        if (f->d_name[0] != '.')
            unlink(path);
    }
    closedir(d);
    assert_int_equal(rmdir(dir), 0);
}

/* --- runs --- */

struct run {
    float *logits[N_PROMPTS], *mtp[N_PROMPTS]; /* [length + N_GENERATED][vocab] */
    struct step_sample samples[N_PROMPTS][N_GENERATED];
    uint32_t n_tokens[N_PROMPTS];
};

static void results_done(struct run *r) {
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        free(r->logits[i]);
        free(r->mtp[i]);
    }
}

/* chunk: prompt rows of a sequence in one step; 0 = all. */
static void run_model(
        const char *dir, const struct model_config *m, uint32_t tp, uint32_t chunk, struct run *ret) {
    struct offline_sequence s[N_PROMPTS] = {0};
    uint32_t prompts[N_PROMPTS][32];
    struct offline *o = NULL;
    struct error e = {0};
    struct rank_options options = test_options(dir, tp);
    options.max_num_batched_tokens = ROWS;
    options.max_model_len = 128;
    options.kv_cache_bytes = 64u << 20;
    options.logits_rows = ROWS;
    options.mtp = true;
    options.activations =
            K_ACTIVATIONS_FLOAT; /* what the reference computes; integer products have tests of their own */
    memset(ret, 0, sizeof(*ret));
    must(offline_create(&options, &o, &e), &e);
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        size_t n = (size_t)(lengths[i] + N_GENERATED) * m->vocab_size;
        ret->logits[i] = calloc(n, sizeof(float));
        ret->mtp[i] = calloc(n, sizeof(float));
        for (uint32_t k = 0; k < lengths[i]; k++)
            prompts[i][k] = (uint32_t)(splitmix64(i * 100 + k) % m->vocab_size);
        s[i] = (struct offline_sequence){.prompt = prompts[i],
                .n_prompt = lengths[i],
                .max_tokens = N_GENERATED,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .logprobs = true,
                .chunks = chunk ? &chunk : NULL,
                .n_chunks = chunk ? 1 : 0,
                .samples = ret->samples[i],
                .logits = ret->logits[i],
                .mtp_logits = m->mtp_layers ? ret->mtp[i] : NULL};
    }
    must(offline_run(o, s, N_PROMPTS, &e), &e);
    for (uint32_t i = 0; i < N_PROMPTS; i++)
        ret->n_tokens[i] = s[i].n_tokens;
    offline_free(o);
}

static void same(const struct model_config *m, const struct run *a, const struct run *b, uint32_t number,
        uint32_t tp, uint32_t chunk) {
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        size_t bytes = (size_t)(lengths[i] + N_GENERATED) * m->vocab_size * sizeof(float);
        assert_int_equal(a->n_tokens[i], N_GENERATED);
        assert_int_equal(b->n_tokens[i], N_GENERATED);
        for (uint32_t k = 0; k < N_GENERATED; k++)
            if (a->samples[i][k].id != b->samples[i][k].id ||
                    memcmp(&a->samples[i][k].logprob, &b->samples[i][k].logprob, sizeof(float)) != 0)
                fail_msg("configuration %u, prompt of %u: token %u differs at tp %u, chunks of %u", number,
                        lengths[i], k, tp, chunk);
        if (memcmp(a->logits[i], b->logits[i], bytes) != 0 || memcmp(a->mtp[i], b->mtp[i], bytes) != 0)
            fail_msg("configuration %u, prompt of %u: logits differ at tp %u, chunks of %u", number,
                    lengths[i], tp, chunk);
    }
}

/* Some logits of the last row of each prompt, as float64 arithmetic gives them. */
static void like_reference(
        const struct model_config *m, const struct run *r, const json_t *golden, uint32_t number) {
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        const json_t *prompt = json_array_get(golden, i);
        const float *row = r->logits[i] + (size_t)(lengths[i] - 1) * m->vocab_size;
        size_t at;
        json_t *pair;
        assert_true(json_array_size(prompt) >= 8);
        json_array_foreach(prompt, at, pair) {
            json_int_t id = json_integer_value(json_array_get(pair, 0));
            double want = json_number_value(json_array_get(pair, 1));
            assert_true(id >= 0 && id < m->vocab_size);
            if (!(fabs((double)row[id] - want) <= LOGIT_ERROR_MAX))
                fail_msg("configuration %u, prompt of %u, logit of %lld: expected %.7g, got %.7g", number,
                        lengths[i], (long long)id, want, (double)row[id]);
        }
    }
}

static json_t *goldens_read(void) {
    char path[512];
    json_error_t e;
    snprintf(path, sizeof(path), "%s/golden/odd/goldens.json", TESTS_DIR);
    json_t *all = json_load_file(path, 0, &e);
    if (!all)
        fail_msg("%s: %s", path, e.text);
    assert_int_equal(json_array_size(all), CONFIGS);
    return all;
}

static void test_all(void **state) {
    json_t *goldens = goldens_read();
    uint32_t split[RANKS_MAX + 1] = {0};
    (void)state;
    for (uint32_t number = 0; number < CONFIGS; number++) {
        char dir[] = "/tmp/shardd-odd-XXXXXX";
        struct model_config m = config_of(number);
        struct error e = {0};
        struct run one, other;
        uint32_t most = 1;
        assert_non_null(mkdtemp(dir));
        write_model(number, dir);
        run_model(dir, &m, 1, 0, &one);
        like_reference(&m, &one, json_array_get(goldens, number), number);
        for (uint32_t tp = 2; tp <= RANKS_MAX; tp *= 2) {
            if (model_config_check_tp(&m, tp, &e) < 0)
                continue;
            most = tp;
            split[tp]++;
            run_model(dir, &m, tp, 0, &other);
            same(&m, &one, &other, number, tp, 0);
            results_done(&other);
        }
        for (uint32_t chunk = 1; chunk <= 5; chunk += 4) {
            run_model(dir, &m, chunk == 1 ? 1 : most, chunk, &other);
            same(&m, &one, &other, number, chunk == 1 ? 1 : most, chunk);
            results_done(&other);
        }
        results_done(&one);
        remove_folder(dir);
    }
    json_decref(goldens);
    print_message("%u configurations; %u also on 2 ranks, %u on 4, %u on 8\n", CONFIGS, split[2], split[4],
            split[8]);
    assert_true(split[2] >= 30 && split[4] >= 30 && split[8] >= 20);
}

static void write_all(void **state) {
    (void)state;
    for (uint32_t number = 0; number < CONFIGS; number++) {
        char dir[600];
        snprintf(dir, sizeof(dir), "%s/%u", written, number);
        write_model(number, dir);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)}, writes[] = {cmocka_unit_test(write_all)};
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        written = argv[2];
        return cmocka_run_group_tests(writes, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
