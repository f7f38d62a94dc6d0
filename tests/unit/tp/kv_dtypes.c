/* kv_dtypes.c - what a KV cache of BF16 or INT8, or a recurrent state of fp16, costs models/shardd-tiny: the
 * Kullback-Leibler divergence of each next-token distribution from that with a cache and a state of fp32, over prompts
 * and replies as they are, and over thousands of tokens of them in a row, where what is lost could add up.
 * docs/quality.md has the table that this prints. */
#include "eval_prompts.h"
#include "tests/lib/divergence.h"

#ifdef __SANITIZE_ADDRESS__ /* many times slower */
#define STRIDE      192u
#define LONG_TOKENS 257u
#else
#define STRIDE      6u
#define LONG_TOKENS 4000u
#endif
#define LONG_SEQUENCES 2u
#define ROWS_ALL       65536u

struct divergences {
    double kl[ROWS_ALL];
    uint32_t n, same; /* positions; where the likeliest token is the same */
};

static struct offline *open_with(enum rank_kv_dtype kv, enum k_dtype state) {
    struct error e = {0};
    struct offline *o = NULL;
    struct rank_options options = test_options(MODEL, 1);
    options.max_model_len = TOKENS_MAX;
    options.max_num_batched_tokens = options.logits_rows = 512;
    options.kv_dtype = kv;
    options.state_dtype = state;
    must(offline_create(&options, &o, &e), &e);
    return o;
}
static float *logits_of(struct offline *o, const uint32_t *ids, uint32_t n) {
    struct one_run run;
    struct error e = {0};
    run_start(&run, o, ids, n, 0, true);
    must(offline_run(o, &run.s, 1, &e), &e);
    float *logits = run.s.logits;
    run.s.logits = NULL;
    run_done(&run);
    return logits;
}

static void compare_rows(struct divergences *d, const float *p, const float *q, uint32_t rows, uint32_t v) {
    assert_true(d->n + rows <= ROWS_ALL);
    for (uint32_t i = 0; i < rows; i++, p += v, q += v) {
        d->kl[d->n++] = logits_divergence(p, q, v);
        d->same += argmax(p, v) == argmax(q, v);
    }
}
static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#define CACHES 3u
struct caches {
    struct offline *f32, *of[CACHES]; /* BF16, INT8, and F32 with an fp16 state */
    struct divergences d[CACHES];
};
static void caches_compare(struct caches *c, const uint32_t *ids, uint32_t n) {
    const uint32_t v = offline_geometry(c->f32)->vocab_size;
    float *want = logits_of(c->f32, ids, n);
    for (uint32_t i = 0; i < CACHES; i++) {
        float *got = logits_of(c->of[i], ids, n);
        compare_rows(&c->d[i], want, got, n, v);
        free(got);
    }
    free(want);
}
/* most: of KL, its mean and the largest but one in a thousand. */
static void caches_report(struct caches *c, const char *what, const double (*most)[2]) {
    static const char *const names[] = {"BF16", "INT8", "fp16 state"};
    for (uint32_t i = 0; i < CACHES; i++) {
        struct divergences *d = &c->d[i];
        double mean = 0;
        for (uint32_t k = 0; k < d->n; k++)
            mean += d->kl[k] / d->n;
        qsort(d->kl, d->n, sizeof *d->kl, by_size);
        const double rare = d->kl[d->n - 1 - d->n / 1000];
        print_message("%s, %s: %u tokens, KL %.6f, 99.9 %% below %.5f, largest %.5f, same token %.2f %%\n",
                what, names[i], d->n, mean, rare, d->kl[d->n - 1], 100.0 * d->same / d->n);
        assert_true(mean <= most[i][0] && rare <= most[i][1]);
        assert_true(mean > 0); /* they do differ */
        *d = (struct divergences){.n = 0};
    }
}

static void what_a_cache_costs(void **state) {
    static const double most[CACHES][2] = {{1e-5, 3e-4}, {5e-5, 3e-3}, {1e-6, 3e-5}};
    struct caches *c = calloc(1, sizeof *c);
    struct record *r = malloc(sizeof *r);
    uint32_t *ids = calloc(LONG_TOKENS * LONG_SEQUENCES + TOKENS_MAX, sizeof *ids), n = 0, line = 0;
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    (void)state;
    assert_true(c && r && ids);
    c->f32 = open_with(RANK_KV_F32, K_F32);
    c->of[0] = open_with(RANK_KV_BF16, K_F32);
    c->of[1] = open_with(RANK_KV_INT8, K_F32);
    c->of[2] = open_with(RANK_KV_F32, K_F16);
    must(file_read(PROMPTS, PROMPTS_BYTES, &text, &bytes, &e), &e);
    for (char *at = text, *end; at < text + bytes; at = end + 1) {
        end = memchr(at, '\n', (size_t)(text + bytes - at));
        assert_non_null(end);
        read_record(at, (size_t)(end - at), r);
        const uint32_t of_record = r->n_prompt + r->n_reply;
        if (n < LONG_TOKENS * LONG_SEQUENCES) {
            memcpy(ids + n, r->ids, of_record * sizeof *ids);
            n += of_record;
        }
        if (line++ % STRIDE == 0)
            caches_compare(c, r->ids, of_record);
    }
    caches_report(c, "prompts and replies", most);
    for (uint32_t i = 0; i < LONG_SEQUENCES && (i + 1) * LONG_TOKENS <= n; i++)
        caches_compare(c, ids + i * LONG_TOKENS, LONG_TOKENS);
    caches_report(c, "in a row", most);
    offline_free(c->f32);
    for (uint32_t i = 0; i < CACHES; i++)
        offline_free(c->of[i]);
    free(text), free(ids), free(r), free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(what_a_cache_costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
