/* `shardd bench --serve` without a service: what its options mean, that a seed sends the same requests, and the figures
 * that are made of known times. */
#include "launcher/bench/load.h"
#include "launcher/bench/record.h"
#include "shardd/v1/shardd.pb-c.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char *no_environment[] = {NULL};

static int load_options(char *const words[], struct options *o, struct error *e) {
    int n = 0;
    while (words[n])
        n++;
    *e = (struct error){0};
    options_init(o, VERB_BENCH);
    return options_load(o, words, n, no_environment, e);
}
#define OPTIONS(o, e, ...) load_options((char *[]){__VA_ARGS__, NULL}, o, e)

static void near(double got, double want) {
    if (!(fabs(got - want) <= 1e-9 * (1 + fabs(want))))
        fail_msg("%.17g, expected %.17g", got, want);
}

static void test_ranges(void **state) {
    static const char *const bad[] = {"", "0", "x", "5-", "-5", "9-5", "5-9x", "1000001", "1-1000001"};
    struct range r;
    (void)state;
    assert_true(range_parse("512", 1000000, &r));
    assert_true(r.low == 512 && r.high == 512);
    assert_true(range_parse("100-900", 1000000, &r));
    assert_true(r.low == 100 && r.high == 900);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (range_parse(bad[i], 1000000, &r))
            fail_msg("'%s' is no range", bad[i]);
}

static void test_limits(void **state) {
    static const char *const bad[] = {
            "", "ttft", "ttft:", "ttft:0", "ttft:5,", "x:5", "ttft:5,ttft:6", "tpot:nan"};
    struct limits l;
    (void)state;
    assert_true(limits_parse("ttft:500,tpot:50.5", &l));
    assert_true(l.ttft == 500 && l.tpot == 50.5 && l.e2e == 0);
    assert_true(limits_parse("e2e:1", &l));
    assert_true(l.ttft == 0 && l.e2e == 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (limits_parse(bad[i], &l))
            fail_msg("'%s' is no list of limits", bad[i]);
}

static void test_settings_of_the_other_thing(void **state) {
    struct options o;
    struct error e;
    (void)state;
    assert_true(OPTIONS(&o, &e, "--serve", "x", "--depth", "1") < 0);
    assert_non_null(strstr(e.text, "--depth"));
    options_done(&o);
    assert_true(OPTIONS(&o, &e, "--model", "x", "--rate", "1") < 0);
    assert_non_null(strstr(e.text, "--rate"));
    options_done(&o);
    assert_true(OPTIONS(&o, &e, "--json", "x") < 0);
    assert_non_null(strstr(e.text, "--model"));
    options_done(&o);
    assert_int_equal(OPTIONS(&o, &e, "--serve", "x", "--rate", "1", "--seed", "3", "--json", "f"), 0);
    options_done(&o);
    assert_int_equal(OPTIONS(&o, &e, "--model", "x", "--batch", "1,8", "-tp", "2", "--json", "f"), 0);
    options_done(&o);
}

static Shardd__V1__GenerateRequest *request(
        const struct load *l, const struct options *o, size_t at, uint8_t **bytes, size_t *n) {
    struct error e = {0};
    if (load_request(l, o, at, 2048, bytes, n, &e) < 0)
        fail_msg("%s", e.text);
    Shardd__V1__GenerateRequest *q = shardd__v1__generate_request__unpack(NULL, *n, *bytes);
    assert_non_null(q);
    return q;
}

static void test_a_seed_sends_the_same(void **state) {
    struct options o;
    struct error e;
    struct load l, other;
    (void)state;
    assert_int_equal(OPTIONS(&o, &e, "--serve", "x", "--input-len", "3-40", "--output-len", "5-9",
                             "--requests", "50", "--rate", "8", "--seed", "4", "--temperature", "0.5"),
            0);
    assert_int_equal(load_make(&o, &l, &e), 0);
    assert_int_equal(l.n, 50);
    other = l;
    other.seed = 5;
    uint64_t a = 4, b = 4, sum = 0;
    uint32_t shortest = 99, longest = 0;
    for (size_t i = 0; i < l.n; i++) {
        uint8_t *first, *again, *third;
        size_t n, m, k;
        Shardd__V1__GenerateRequest *q = request(&l, &o, i, &first, &n);
        shardd__v1__generate_request__free_unpacked(request(&l, &o, i, &again, &m), NULL);
        shardd__v1__generate_request__free_unpacked(request(&other, &o, i, &third, &k), NULL);
        assert_int_equal(n, m);
        assert_memory_equal(first, again, n);
        assert_false(n == k && memcmp(first, third, n) == 0);
        assert_int_equal(q->input_case, SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS);
        for (size_t j = 0; j < q->token_ids->n_ids; j++)
            assert_true(q->token_ids->ids[j] < 2048);
        const uint32_t length = (uint32_t)q->token_ids->n_ids;
        shortest = length < shortest ? length : shortest;
        longest = length > longest ? length : longest;
        assert_in_range(q->stopping->max_tokens, 5, 9);
        assert_true(q->stopping->ignore_eos && q->sampling->temperature == 0.5f);
        shardd__v1__generate_request__free_unpacked(q, NULL);
        free(first);
        free(again);
        free(third);
        const uint64_t gap = load_gap_ns(&l, &a);
        assert_true(gap == load_gap_ns(&l, &b));
        sum += gap;
    }
    assert_in_range(shortest, 3, 8);
    assert_in_range(longest, 35, 40);
    assert_in_range(sum, 3000000000, 12000000000); /* 50 at 8 a second */
    load_done(&l);
    options_done(&o);
}

static char *write_file(const char *name, const char *text) {
    char *path = malloc(64);
    snprintf(path, 64, "/tmp/shardd-bench-%d-%s", (int)getpid(), name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
    return path;
}

static void test_prompts_of_a_file(void **state) {
    char *path = write_file("a.jsonl", "{\"text\": \"Hello\"}\n\n{\"ids\": [1, 2, 3]}\r\n"),
         *bad = write_file("b.jsonl", "{\"text\": \"x\"}\n{\"txt\": 1}\n");
    struct options o;
    struct error e;
    struct load l;
    uint8_t *bytes;
    size_t n;
    (void)state;
    assert_int_equal(OPTIONS(&o, &e, "--serve", "x", "--prompts", path), 0);
    if (load_make(&o, &l, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(l.n, 2);
    Shardd__V1__GenerateRequest *q = request(&l, &o, 2, &bytes, &n); /* the first one again */
    assert_int_equal(q->input_case, SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT);
    assert_memory_equal(q->text.data, "Hello", 5);
    shardd__v1__generate_request__free_unpacked(q, NULL);
    free(bytes);
    q = request(&l, &o, 1, &bytes, &n);
    assert_int_equal(q->token_ids->n_ids, 3);
    shardd__v1__generate_request__free_unpacked(q, NULL);
    free(bytes);
    load_done(&l);
    options_done(&o);
    assert_int_equal(OPTIONS(&o, &e, "--serve", "x", "--prompts", bad), 0);
    assert_true(load_make(&o, &l, &e) < 0);
    assert_non_null(strstr(e.text, ".jsonl:2"));
    load_done(&l);
    options_done(&o);
    unlink(path);
    unlink(bad);
    free(path);
    free(bad);
}

#define MS 1000000ull

/* Two that ended well, one of a single token, one refused, one without its finish. */
static const struct record records[] = {
        {.sent_ns = 100 * MS,
                .first_ns = 150 * MS,
                .last_ns = 250 * MS,
                .end_ns = 260 * MS,
                .prompt_tokens = 10,
                .tokens = 11,
                .finished = true},
        {.sent_ns = 200 * MS,
                .first_ns = 300 * MS,
                .last_ns = 700 * MS,
                .end_ns = 700 * MS,
                .prompt_tokens = 20,
                .tokens = 21,
                .finished = true},
        {.sent_ns = 300 * MS,
                .first_ns = 330 * MS,
                .last_ns = 330 * MS,
                .end_ns = 1100 * MS,
                .prompt_tokens = 5,
                .tokens = 1,
                .finished = true},
        {.sent_ns = 400 * MS, .end_ns = 410 * MS, .code = 8},
        {.sent_ns = 400 * MS, .first_ns = 410 * MS, .last_ns = 420 * MS, .end_ns = 420 * MS, .tokens = 3},
};

static void test_figures(void **state) {
    double gaps[] = {30, 10, 20};
    const struct limits limits = {.ttft = 60, .tpot = 15};
    struct summary s;
    (void)state;
    assert_true(summary_make(records, 5, gaps, 3, &limits, &s));
    assert_int_equal(s.requests, 5);
    assert_int_equal(s.completed, 3);
    assert_int_equal(s.errors[8], 1);
    assert_int_equal(s.errors[2], 1);
    assert_int_equal(s.prompt_tokens, 35);
    assert_int_equal(s.tokens, 33);
    assert_int_equal(s.good, 2); /* the second has a TTFT of 100 */
    near(s.seconds, 1.0);
    near(s.ttft.mean, 60);
    near(s.ttft.p50, 50);
    near(s.ttft.p90, 90);
    assert_int_equal(s.tpot.n, 2);
    near(s.tpot.mean, 15); /* 10 and 20 */
    near(s.itl.p50, 20);
    near(s.e2e.p99, 500 + 0.98 * 300);
}

static double at(const json_t *root, const char *part, const char *name) {
    const json_t *v = json_object_get(json_object_get(root, part), name);
    if (!json_is_number(v))
        fail_msg("no number '%s' in '%s'", name, part);
    return json_number_value(v);
}

static void test_json(void **state) {
    static const char *const spreads[] = {"ttft", "tpot", "itl", "e2e"};
    double gaps[] = {1};
    const struct limits limits = {.e2e = 550}, none = {0};
    struct summary s;
    (void)state;
    assert_true(summary_make(records, 5, gaps, 1, &limits, &s));
    json_t *root = summary_json(&s, &limits);
    assert_non_null(root);
    near(at(root, "throughput", "output_tokens_per_second"), 33);
    near(at(root, "throughput", "total_tokens_per_second"), 68);
    near(at(root, "throughput", "requests_per_second"), 3);
    near(at(root, "goodput", "requests"), 2);
    near(at(json_object_get(root, "requests"), "errors", "RESOURCE_EXHAUSTED"), 1);
    for (size_t i = 0; i < 4; i++) {
        near(at(json_object_get(root, "latency_ms"), spreads[i], "n"), i == 1 ? 2 : i == 2 ? 1 : 3);
        assert_true(at(json_object_get(root, "latency_ms"), spreads[i], "p90") > 0);
    }
    json_decref(root);
    assert_true(summary_make(records, 0, NULL, 0, &none, &s)); /* interrupted before the first */
    root = summary_json(&s, &none);
    assert_true(json_is_null(json_object_get(root, "goodput")));
    near(at(root, "throughput", "requests_per_second"), 0);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_ranges),
            cmocka_unit_test(test_limits),
            cmocka_unit_test(test_settings_of_the_other_thing),
            cmocka_unit_test(test_a_seed_sends_the_same),
            cmocka_unit_test(test_prompts_of_a_file),
            cmocka_unit_test(test_figures),
            cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
