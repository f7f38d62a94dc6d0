/* generation_config.c - generation_config.json, right and wrong; the arena under it all. */
#include "daemon/service/generation_config.h"

#include "daemon/service/arena.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static int parse(struct generation_config *g, const char *text, struct error *e) {
    generation_config_init(g);
    return generation_config_parse(g, text, strlen(text), e);
}

static void test_values(void **state) {
    (void)state;
    struct generation_config g;
    struct error e = {0};
    assert_int_equal(
            parse(&g,
                    "{\"do_sample\": true, \"eos_token_id\": [5, 6, 5], \"temperature\": 0.6, \"top_k\": 20,"
                    " \"top_p\": 0.95, \"min_p\": 0.1, \"repetition_penalty\": 1.05, \"pad_token_id\": null}",
                    &e),
            0);
    assert_true(g.sampling.temperature == 0.6f && g.sampling.top_p == 0.95f && g.sampling.min_p == 0.1f);
    assert_true(g.sampling.repetition_penalty == 1.05f);
    assert_int_equal(g.sampling.top_k, 20);
    assert_int_equal(g.n_stop_ids, 2);
    assert_int_equal(g.stop_ids[1], 6);
    assert_int_equal(parse(&g, "{\"eos_token_id\": 7, \"top_k\": -1, \"top_p\": null}", &e), 0);
    assert_int_equal(g.n_stop_ids, 1);
    assert_int_equal(g.sampling.top_k, 0);
    assert_true(g.sampling.top_p == 1.0f && g.sampling.temperature == 1.0f);
    assert_int_equal(parse(&g, "{\"do_sample\": false, \"temperature\": 0.6}", &e), 0);
    assert_true(g.sampling.temperature == 0.0f);
}

static void test_wrong_values_are_named(void **state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } cases[] = {
            {"", "line"},
            {"[]", "object"},
            {"{\"a\":1,\"a\":2}", "duplicate"},
            {"{\"temperature\": -1}", "temperature"},
            {"{\"temperature\": \"warm\"}", "temperature"},
            {"{\"top_p\": 0}", "top_p"},
            {"{\"top_p\": 1.5}", "top_p"},
            {"{\"min_p\": 2}", "min_p"},
            {"{\"repetition_penalty\": 0}", "repetition_penalty"},
            {"{\"repetition_penalty\": 1e-50}", "repetition_penalty"},
            {"{\"top_p\": 1e-50}", "top_p"}, /* zero as a float */
            {"{\"top_k\": 1.5}", "top_k"},
            {"{\"top_k\": -2}", "top_k"},
            {"{\"eos_token_id\": -1}", "eos_token_id"},
            {"{\"eos_token_id\": [1, \"x\"]}", "eos_token_id"},
            {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", "eos_token_id"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct generation_config g;
        struct error e = {0};
        assert_true(parse(&g, cases[i].text, &e) < 0);
        assert_non_null(strstr(e.text, cases[i].word));
        assert_int_equal(g.n_stop_ids, 0); /* nothing half read */
    }
}

static void test_file_that_is_not_there(void **state) {
    (void)state;
    struct generation_config g;
    struct error e = {0};
    generation_config_init(&g);
    assert_int_equal(generation_config_load(&g, "/nowhere/generation_config.json", &e), -ENOENT);
}

static void test_arena(void **state) {
    (void)state;
    struct arena a;
    char first[256];
    arena_init(&a, 64u << 10, first, sizeof(first));
    for (size_t n = 1; n < 200; n += 7) {
        unsigned char *p = arena_zalloc(&a, n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xff, n);
    }
    assert_null(arena_alloc(&a, 65u << 10));
    assert_true(a.exhausted);
    assert_null(arena_alloc(&a, SIZE_MAX - 3));
    assert_true(a.total <= a.limit);
    arena_done(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_values),
            cmocka_unit_test(test_wrong_values_are_named),
            cmocka_unit_test(test_file_that_is_not_there),
            cmocka_unit_test(test_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
