/* lookup.c - the index of a sequence's own tokens: finds the longest match and the newest among equals, goes on with
 * it, says what it would have been worth, and stays within its memory. */
#include "daemon/engine/lookup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void read_all(struct lookup *l, const uint32_t *tokens, uint32_t n) {
    while (l->read < n)
        lookup_read(l, tokens);
}

/* What is expected after n tokens, 5 of it. */
static uint32_t expect(const uint32_t *tokens, uint32_t n, uint32_t *ret) {
    struct lookup l;
    assert_int_equal(lookup_init(&l, n, 100), 0);
    read_all(&l, tokens, n);
    uint32_t drafts = lookup_drafts(&l, tokens, 5, ret);
    lookup_done(&l);
    return drafts;
}

static void test_matches(void **state) {
    (void)state;
    uint32_t ret[5];
    const uint32_t none[] = {1, 2, 3, 4, 5, 6, 1, 7, 2};
    assert_int_equal(expect(none, 9, ret), 0);
    const uint32_t once[] = {1, 2, 3, 4, 5, 6, 9, 1, 2};
    assert_int_equal(expect(once, 9, ret), 5);
    assert_memory_equal(ret, ((uint32_t[]){3, 4, 5, 6, 9}), sizeof(ret));
    const uint32_t newest[] = {1, 2, 3, 0, 1, 2, 4, 0, 1, 2};
    expect(newest, 10, ret);
    assert_int_equal(ret[0], 4);
    const uint32_t longest[] = {8, 1, 2, 3, 0, 9, 1, 2, 4, 0, 8, 1, 2};
    expect(longest, 13, ret);
    assert_int_equal(ret[0], 3);
    const uint32_t repeats[] = {
            7, 7, 7, 5, 6, 5, 6, 5, 6}; /* its own end is the source of what comes after it */
    expect(repeats, 9, ret);
    assert_memory_equal(ret, ((uint32_t[]){5, 6, 5, 6, 5}), sizeof(ret));
    for (uint32_t n = 0; n < 4; n++)
        assert_int_equal(expect(once, n, ret), 0);
}

/* Every token of a copy is expected once its first two are known, and the length of the match is counted. */
static void test_scores(void **state) {
    (void)state;
    uint32_t tokens[200];
    struct lookup l;
    for (uint32_t i = 0; i < 200; i++)
        tokens[i] = i < 100 ? i : i - 100;
    tokens[150] = 999;
    assert_int_equal(lookup_init(&l, 100, 100), 0);
    for (uint32_t i = 0; i < 200; i++) {
        struct lookup_score s = lookup_read(&l, tokens);
        bool expected = (i >= 102 && i <= 150) || i >= 153;
        assert_int_equal(s.expected, expected);
        assert_int_equal(s.right, expected && i != 150);
        if (expected) {
            uint32_t length = i <= 150 ? i - 100 : i - 151;
            assert_int_equal(s.length, length < LOOKUP_LENGTH_MAX ? length : LOOKUP_LENGTH_MAX);
        }
    }
    lookup_done(&l);
    uint32_t last = 0;
    for (uint32_t length = LOOKUP_GRAM_MIN; length <= LOOKUP_LENGTH_MAX; length++) {
        assert_in_range(lookup_class(length), last, last + 1);
        last = lookup_class(length);
    }
    assert_int_equal(last, LOOKUP_CLASSES - 1);
}

/* A context of the greatest length: the index is as large as it may be, what is expected is what stood somewhere after
 * the same tokens, and a document of some length is still found. */
static void test_bounds(void **state) {
    (void)state;
    const uint32_t n = 262144, document = 20000;
    uint32_t *tokens = malloc(n * sizeof(tokens[0]));
    uint32_t ret[15], x = 12345, right = 0;
    struct lookup l;
    assert_non_null(tokens);
    for (uint32_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        tokens[i] = i >= n - document ? tokens[i - document] : x >> 15;
    }
    assert_int_equal(lookup_init(&l, n - document, document), 0);
    assert_int_equal(l.mask + 1, LOOKUP_ENTRIES_MAX);
    while (l.read < n) {
        struct lookup_score s = lookup_read(&l, tokens);
        right += s.right && l.read > n - document;
        if (l.at == 0)
            continue;
        assert_true(l.at < l.read && l.length >= LOOKUP_GRAM_MIN);
        assert_memory_equal(tokens + l.at - LOOKUP_GRAM_MIN, tokens + l.read - LOOKUP_GRAM_MIN,
                LOOKUP_GRAM_MIN * sizeof(tokens[0]));
        assert_int_equal(lookup_drafts(&l, tokens, 15, ret), 15);
    }
    assert_true(right > document - 100);
    lookup_done(&l);
    free(tokens);
    assert_int_equal(lookup_init(&l, 1, 1), 0); /* and of a short one as small as it can */
    assert_true(l.mask < 1024);
    lookup_done(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_matches),
            cmocka_unit_test(test_scores),
            cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
