/* Sampling one row: filters, penalties and noise against an obvious version that sorts, on every instruction
 * set. */
#include "tests/unit/kernels/fixture.h"

#include "kernels/cpu/sample.h"

#include <float.h>

#define VOCAB_MAX 5000

static const struct isa *const tables[] = {&isa_plain, &isa_avx2, &isa_avx512};
static bool present[N_ISAS];

struct candidate {
    double value;
    uint32_t id;
};
static int by_value(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static struct sample_task task_of(const struct k_sampling *p, const uint16_t *counts, uint32_t vocab) {
    return (struct sample_task){.sampling = p, .counts = counts, .vocab = vocab, .top_logprobs = UINT32_MAX};
}

/* The same answer from every instruction set, and that answer. */
static struct k_result sampled(struct sample_task t, const float *raw) {
    static float work[VOCAB_MAX];
    struct k_result r, first = {0};
    for (int i = 0; i < N_ISAS; i++) {
        if (!present[i])
            continue;
        t.isa = tables[i];
        sample_row(&t, raw, work, &r);
        if (i == 0)
            first = r;
        assert_memory_equal(&r, &first, sizeof r);
    }
    return first;
}

/* Which ids may come out, by sorting. Logits are on a grid so that equal ones happen. */
static void allowed_ids(const struct k_sampling *p, const float *x, uint32_t n, bool *ret) {
    struct candidate *c = calloc(n, sizeof *c);
    double total = 0, mass = 0;
    uint32_t kept = p->top_k && p->top_k < n ? p->top_k : n, i;
    for (i = 0; i < n; i++)
        c[i] = (struct candidate){x[i] / (double)p->temperature, i};
    qsort(c, n, sizeof *c, by_value);
    double max = c[0].value;
    for (i = 0; i < kept; i++)
        total += exp(c[i].value - max);
    memset(ret, 0, n);
    for (i = 0; i < kept; i++) {
        if (p->top_p < 1 && mass >= p->top_p * total)
            break;
        mass += exp(c[i].value - max);
        ret[c[i].id] = exp(c[i].value - max) >= p->min_p;
    }
    free(c);
}

/* Every allowed id comes out for some seed and no other does: with few allowed ids, many seeds show all of
 * them. */
static void test_filters_against_sorting(void **state) {
    static const struct k_sampling params[] = {
            {.temperature = 1, .top_k = 3, .top_p = 1},
            {.temperature = 2.5f, .top_k = 7, .top_p = 1},
            {.temperature = 0.7f, .top_p = 0.33f},
            {.temperature = 1.3f, .top_k = 20, .top_p = 0.61f},
            {.temperature = 1, .top_p = 1, .min_p = 0.23f},
            {.temperature = 3, .top_k = 12, .top_p = 0.87f, .min_p = 0.3f},
            {.temperature = 1, .top_k = 1, .top_p = 0.001f, .min_p = 1},
    };
    static const uint32_t sizes[] = {5, 64, 300};
    (void)state;
    for (size_t t = 0; t < sizeof params / sizeof *params * 3; t++) {
        struct k_sampling p = params[t / 3];
        const uint32_t n = sizes[t % 3];
        float *x = random_floats(t, n, 6.0f);
        bool allowed[300], seen[300] = {0};
        uint16_t counts[300] = {0};
        uint32_t n_allowed = 0, n_seen = 0;
        p.repetition_penalty = 1;
        for (uint32_t i = 0; i < n; i++)
            x[i] = roundf(x[i] * 2) / 2;
        allowed_ids(&p, x, n, allowed);
        for (uint32_t i = 0; i < n; i++)
            n_allowed += allowed[i];
        assert_true(n_allowed >= 1);
        for (p.seed = 1; p.seed <= 3000; p.seed++) {
            uint32_t id = sampled(task_of(&p, counts, n), x).id;
            assert_true(id < n && allowed[id]);
            n_seen += !seen[id];
            seen[id] = true;
        }
        if (n_allowed <= 20)
            assert_int_equal(n_seen, n_allowed);
        free(x);
    }
}

static void test_greedy_takes_the_lowest_of_equals(void **state) {
    struct rng r = {4};
    (void)state;
    for (int round = 0; round < 500; round++) {
        uint32_t n = rng_u32(&r) % 100 + 1, best = 0;
        uint16_t counts[100] = {0};
        float x[100];
        for (uint32_t i = 0; i < n; i++) {
            x[i] = (float)(rng_u32(&r) % 8) - 20;
            best = x[i] > x[best] ? i : best;
        }
        assert_int_equal(sampled(task_of(&greedy, counts, n), x).id, best);
        struct k_sampling cold = greedy; /* a temperature that would overflow a plain division */
        cold.temperature = 1e-38f;
        assert_true(x[sampled(task_of(&cold, counts, n), x).id] == x[best]);
    }
}

static void test_noise_follows_the_distribution(void **state) {
    enum { N = 6, DRAWS = 60000 };
    const float x[N] = {0, 1, -1, 2, 0.5f, -30};
    struct k_sampling p = greedy;
    uint16_t counts[N] = {0};
    uint32_t hits[N] = {0};
    double total = 0;
    (void)state;
    p.temperature = 1.5f;
    for (int i = 0; i < N; i++)
        total += exp(x[i] / 1.5);
    for (uint32_t i = 0; i < DRAWS; i++) { /* fixed seeds: the same counts at every run */
        struct sample_task t = task_of(&p, counts, N);
        p.seed = i % 7;
        t.sample_index = i / 7;
        t.position = i % 3;
        hits[sampled(t, x).id]++;
    }
    for (int i = 0; i < N; i++) {
        double q = exp(x[i] / 1.5) / total, spread = sqrt(DRAWS * q * (1 - q));
        assert_true(fabs(hits[i] - DRAWS * q) < 4 * spread + 1);
    }
}

static void test_noise_depends_on_each_of_its_keys(void **state) {
    float x[2000] = {0};
    uint16_t counts[2000] = {0};
    struct k_sampling p = greedy;
    (void)state;
    p.temperature = 1;
    p.seed = 9;
    struct sample_task t = task_of(&p, counts, 2000);
    uint32_t base = sampled(t, x).id, same = 0;
    assert_int_equal(sampled(t, x).id, base);
    for (uint32_t i = 1; i <= 50; i++) {
        t.sample_index = i;
        same += sampled(t, x).id == base;
        t.sample_index = 0;
        t.position = i;
        same += sampled(t, x).id == base;
        t.position = 0;
        p.seed = 9 + ((uint64_t)i << 32);
        same += sampled(t, x).id == base;
        p.seed = 9;
    }
    assert_true(same <= 2);
}

static void test_logprobs(void **state) {
    enum { N = 777 };
    float *x = random_floats(6, N, 9.0f);
    uint16_t counts[N] = {0};
    struct candidate c[N];
    double total = 0;
    (void)state;
    x[5] = x[700]; /* equal ones: the lower id first */
    for (uint32_t i = 0; i < N; i++) {
        c[i] = (struct candidate){x[i], i};
        total += exp(x[i]);
    }
    qsort(c, N, sizeof *c, by_value);
    struct k_sampling p = greedy;
    p.temperature = 2;
    p.top_k = 5;
    p.repetition_penalty = 1.7f; /* logprobs are of the raw distribution all the same */
    counts[c[0].id] = COUNT_PROMPT;
    for (uint32_t n = 0; n <= TOP_LOGPROBS_MAX; n++) {
        struct sample_task t = task_of(&p, counts, N);
        t.top_logprobs = n;
        t.sample_index = n;
        struct k_result r = sampled(t, x);
        assert_int_equal(r.n_top, n);
        assert_true(fabs(r.logprob - (x[r.id] - log(total))) < 2e-6);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(r.top_ids[i], c[i].id);
            assert_true(fabs(r.top_logprobs[i] - (c[i].value - log(total))) < 2e-6);
        }
    }
    float three[3] = {1, 2, 3};
    struct sample_task t = task_of(&p, counts, 3);
    t.top_logprobs = 20;
    assert_int_equal(sampled(t, three).n_top, 3);
    free(x);
}

static void test_bias_penalties_suppress(void **state) {
    const float x[6] = {5, 4, 3, -1, -2, 1};
    uint16_t counts[6] = {0};
    (void)state;
    struct k_sampling p = greedy;
    p.n_bias = 2;
    p.bias_ids = (uint32_t[]){4, 77}; /* 77 is not in the vocabulary */
    p.bias = (float[]){8, 100};
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 4);

    p = greedy;
    p.repetition_penalty = 2;
    counts[0] = COUNT_PROMPT; /* 5 -> 2.5 */
    counts[1] = 1;            /* 4 -> 2 */
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 2);
    counts[2] = 3; /* 3 -> 1.5 */
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 0);

    p = greedy; /* prompt ids are not output: 0 stays 5 */
    p.presence_penalty = 4;
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 0);
    counts[0] = COUNT_PROMPT | 1; /* 5 - 4; 1: 4 - 4; 2: 3 - 4; 5: 1 */
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 0);
    p.frequency_penalty = 0.1f; /* 0: 0.9, 5: 1 */
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 5);
    p.presence_penalty = 0;
    p.frequency_penalty = 1.1f; /* 0: 3.9, 1: 2.9, 2: -0.3 */
    assert_int_equal(sampled(task_of(&p, counts, 6), x).id, 0);

    p = greedy;
    p.min_tokens = 3;
    p.n_suppress = 2;
    p.suppress = (uint32_t[]){0, 1};
    struct sample_task t = task_of(&p, counts, 6);
    for (t.sample_index = 0; t.sample_index < 5; t.sample_index++)
        assert_int_equal(sampled(t, x).id, t.sample_index < 3 ? 2 : 0);
}

static void test_odd_logits(void **state) {
    float x[40] = {0}, work[40];
    uint16_t counts[40] = {0};
    struct k_result r;
    struct k_sampling p = greedy;
    struct sample_task t = task_of(&p, counts, 40);
    const float odd[] = {NAN, INFINITY, -INFINITY, -NAN};
    (void)state;
    for (int i = 0; i < N_ISAS * 4 * 40; i++) {
        if (!present[i % N_ISAS])
            continue;
        t.isa = tables[i % N_ISAS];
        t.top_logprobs = i % 2 ? UINT32_MAX : 3;
        memset(x, 0, sizeof x);
        x[i / 12] = odd[i / 3 % 4];
        sample_row(&t, x, work, &r);
        const struct k_result nothing = {.status = K_RESULT_NOT_FINITE};
        assert_memory_equal(&r, &nothing, sizeof r);
    }
}

/* No id is left: there is no token, also where logprobs were asked for. */
static void test_all_suppressed(void **state) {
    const float x[2] = {1, 2};
    uint16_t counts[2] = {0};
    const struct k_result nothing = {.status = K_RESULT_NO_TOKEN};
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct k_sampling p = greedy;
        p.temperature = i % 2 ? 1 : 0;
        p.top_k = 1;
        p.min_tokens = 1;
        p.n_suppress = 2;
        p.suppress = (uint32_t[]){0, 1};
        struct sample_task t = task_of(&p, counts, 2);
        t.top_logprobs = i / 2 ? 2 : UINT32_MAX;
        struct k_result r = sampled(t, x);
        assert_memory_equal(&r, &nothing, sizeof r);
        t.sample_index = 1;
        assert_int_equal(sampled(t, x).status, K_RESULT_OK);
    }
}

/* A tiny repetition penalty takes every positive logit that was seen to the end of the range: the token is one of
 * those, and which one the seed says. */
static void test_tiny_repetition_penalty(void **state) {
    enum { N = 40 };
    float x[N];
    uint16_t counts[N] = {0};
    bool seen[N] = {0};
    struct k_sampling p = greedy;
    uint32_t n_seen = 0;
    (void)state;
    for (uint32_t i = 0; i < N; i++)
        x[i] = (float)(i % 13) - 4;
    counts[17] = COUNT_PROMPT; /* 0 */
    counts[20] = 2;            /* 3 */
    counts[25] = COUNT_PROMPT; /* 8 */
    counts[28] = 1;            /* -2 */
    p.repetition_penalty = 1e-38f;
    for (p.seed = 0; p.seed < 200; p.seed++) {
        p.temperature = p.seed % 2 ? 1 : 1e-38f;
        uint32_t id = sampled(task_of(&p, counts, N), x).id;
        assert_true(id == 20 || id == 25);
        n_seen += !seen[id];
        seen[id] = true;
    }
    p.temperature = 0;
    uint32_t id = sampled(task_of(&p, counts, N), x).id;
    assert_true(id == 20 || id == 25);
}

static float hostile_float(struct rng *r, float least, float most) {
    const float values[] = {least, most, 0, 1, 1e-45f, 1e-38f, 1e-20f, 1e20f, 3e38f, FLT_MAX, -1e-45f, -1e20f,
            -FLT_MAX, 0.5f, 2, 1e-7f};
    float v = values[rng_u32(r) % (sizeof values / sizeof *values)];
    return v < least ? least : v > most ? most : v;
}

/* Whatever the parameters and the logits are: the token is an id of the vocabulary that is not suppressed, and every
 * instruction set says the same one. */
static void test_hostile_parameters(void **state) {
    struct rng r = {99};
    float x[300], bias[4];
    uint32_t bias_ids[4], suppress[SUPPRESS_MAX];
    uint16_t counts[300];
    (void)state;
    for (int round = 0; round < 20000; round++) {
        const uint32_t n = round % 5 ? rng_u32(&r) % 40 + 1 : rng_u32(&r) % 300 + 1;
        struct k_sampling p = {.temperature = hostile_float(&r, 0, FLT_MAX),
                .top_k = round % 3 ? 0 : rng_u32(&r) % 50,
                .top_p = round % 2 ? 1 : hostile_float(&r, 1e-45f, 1),
                .min_p = round % 7 ? 0 : hostile_float(&r, 0, 1),
                .repetition_penalty = hostile_float(&r, 1e-45f, FLT_MAX),
                .presence_penalty = hostile_float(&r, -FLT_MAX, FLT_MAX),
                .frequency_penalty = hostile_float(&r, -FLT_MAX, FLT_MAX),
                .seed = rng_u32(&r),
                .min_tokens = 1,
                .n_bias = rng_u32(&r) % 5,
                .n_suppress = rng_u32(&r) % SUPPRESS_MAX,
                .bias_ids = bias_ids,
                .bias = bias,
                .suppress = suppress};
        bool left[300] = {0}, any = false;
        for (uint32_t i = 0; i < n; i++) {
            x[i] = round % 4 ? rng_float(&r, 20) : hostile_float(&r, -FLT_MAX, FLT_MAX);
            counts[i] = (uint16_t)(rng_u32(&r) % 3 ? 0 : rng_u32(&r));
            left[i] = true;
        }
        for (uint32_t i = 0; i < 4; i++) {
            bias_ids[i] = rng_u32(&r) % 300;
            bias[i] = hostile_float(&r, -FLT_MAX, FLT_MAX);
        }
        for (uint32_t i = 0; i < p.n_suppress; i++) {
            suppress[i] = rng_u32(&r) % 300;
            left[suppress[i]] = false;
        }
        for (uint32_t i = 0; i < n; i++)
            any |= left[i];
        struct sample_task t = task_of(&p, counts, n);
        t.top_logprobs = round % 11 ? UINT32_MAX : 2;
        struct k_result got = sampled(t, x);
        assert_int_equal(got.status, any ? K_RESULT_OK : K_RESULT_NO_TOKEN);
        assert_true(!any || (got.id < n && left[got.id]));
    }
}

/* Wide and narrow distributions, few and many equal logits, most ids suppressed: every way to find a cut. */
static void test_large_vocabulary_cuts(void **state) {
    static const float scales[] = {0.5f, 3, 12, 40};
    uint16_t *counts = calloc(VOCAB_MAX, sizeof *counts);
    bool *allowed = calloc(VOCAB_MAX, 1);
    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        float *x = random_floats(seed, VOCAB_MAX, scales[seed % 4]);
        struct k_sampling p = greedy;
        p.temperature = 0.5f + (float)(seed % 5);
        p.top_k = seed % 3 ? (uint32_t)(seed % 3 == 1 ? seed % 19 + 1 : seed * 10) : 0;
        p.top_p = seed % 7 ? 0.5f + (float)(seed % 6) * 0.1f : 1;
        p.min_p = seed % 11 ? 0 : 0.05f;
        p.seed = seed;
        for (uint32_t i = 0; i < VOCAB_MAX && seed % 2; i++)
            x[i] = roundf(x[i]);
        allowed_ids(&p, x, VOCAB_MAX, allowed);
        assert_true(allowed[sampled(task_of(&p, counts, VOCAB_MAX), x).id]);
        free(x);
    }
    free(counts), free(allowed);
}

/* With all but a few chunks out, top k still keeps exactly the k highest. */
static void test_top_k_with_few_ids_left(void **state) {
    uint32_t suppress[SUPPRESS_MAX], seen = 0;
    float x[4 * 20];
    uint16_t counts[4 * 20] = {0};
    bool found[4 * 20] = {0};
    struct k_sampling p = greedy;
    (void)state;
    for (uint32_t i = 0; i < 80; i++)
        x[i] = (float)(i % 10) / 100;
    for (uint32_t i = 0; i < 72; i++)
        suppress[i] = i;
    p.temperature = 1;
    p.top_k = 12; /* only 8 are left */
    p.min_tokens = 1;
    p.n_suppress = 72;
    p.suppress = suppress;
    for (p.seed = 0; p.seed < 500; p.seed++) {
        uint32_t id = sampled(task_of(&p, counts, 80), x).id;
        assert_true(id >= 72);
        seen += !found[id];
        found[id] = true;
    }
    assert_int_equal(seen, 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_filters_against_sorting),
            cmocka_unit_test(test_greedy_takes_the_lowest_of_equals),
            cmocka_unit_test(test_noise_follows_the_distribution),
            cmocka_unit_test(test_noise_depends_on_each_of_its_keys),
            cmocka_unit_test(test_logprobs),
            cmocka_unit_test(test_bias_penalties_suppress),
            cmocka_unit_test(test_odd_logits),
            cmocka_unit_test(test_all_suppressed),
            cmocka_unit_test(test_tiny_repetition_penalty),
            cmocka_unit_test(test_hostile_parameters),
            cmocka_unit_test(test_large_vocabulary_cuts),
            cmocka_unit_test(test_top_k_with_few_ids_left),
    };
    for (int i = 0; i < N_ISAS; i++) {
        struct k_context_options o = {.threads = 1, .isa = all_isas[i]};
        struct k_context *c = NULL;
        present[i] = k_context_create(&o, &c, NULL) == 0;
        k_context_free(c);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
