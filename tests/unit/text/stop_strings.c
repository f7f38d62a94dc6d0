/* Stop strings against the obvious way of finding them in the whole text, for any cut of it. */
#include "text_test.h"

#include "base/buffer.h"
#include "base/limits.h"
#include "daemon/text/stop_strings.h"

static struct stop_strings *make(const char *const *strings, size_t n, bool include) {
    struct stop_strings *s = NULL;
    size_t bytes[STOP_STRINGS_MAX];
    for (size_t i = 0; i < n; i++)
        bytes[i] = strlen(strings[i]);
    assert_int_equal(stop_strings_new(strings, bytes, n, include, &s), 0);
    return s;
}

/* The earliest end; there the longest, then the first. Gives the index and how much is shown. */
static int find_slowly(const char *text, size_t bytes, const char *const *strings, size_t n, bool include,
        size_t *ret_shown) {
    for (size_t end = 1; end <= bytes; end++) {
        int found = -1;
        for (size_t i = 0; i < n; i++) {
            size_t length = strlen(strings[i]);
            if (length <= end && memcmp(text + end - length, strings[i], length) == 0 &&
                    (found < 0 || length > strlen(strings[found])))
                found = (int)i;
        }
        if (found >= 0) {
            *ret_shown = include ? end : end - strlen(strings[found]);
            return found;
        }
    }
    *ret_shown = bytes;
    return -1;
}

static void test_any_split(void **state) {
    (void)state;
    uint64_t seed = 99;
    size_t matched = 0;
    for (size_t round = 0; round < 30000; round++) {
        char text[64], words[4][8];
        const char *strings[4];
        size_t bytes = random_below(&seed, sizeof(text)), n = random_below(&seed, 5),
               letters = 2 + random_below(&seed, 2);
        for (size_t i = 0; i < bytes; i++)
            text[i] = (char)('a' + random_below(&seed, letters));
        for (size_t i = 0; i < n; i++) {
            size_t length = 1 + random_below(&seed, 7);
            for (size_t k = 0; k < length; k++)
                words[i][k] = (char)('a' + random_below(&seed, letters));
            words[i][length] = 0;
            strings[i] = words[i];
        }
        bool include = random_below(&seed, 2);
        size_t expected_shown, most = 1 + random_below(&seed, 9);
        int expected = find_slowly(text, bytes, strings, n, include, &expected_shown), got = -1;
        struct stop_strings *s = make(strings, n, include);
        struct byte_buffer shown = {0};
        const char *part;
        size_t part_bytes;
        for (size_t at = 0, step; at < bytes && got < 0; at += step) {
            step = 1 + random_below(&seed, most);
            step = step < bytes - at ? step : bytes - at;
            got = stop_strings_feed(s, text + at, step, true, &part, &part_bytes);
            byte_buffer_add(&shown, part, part_bytes);
        }
        if (got < 0) {
            stop_strings_end(s, &part, &part_bytes);
            byte_buffer_add(&shown, part, part_bytes);
        }
        assert_int_equal(got, expected);
        assert_int_equal(shown.n, expected_shown);
        if (shown.n)
            assert_memory_equal(shown.data, text, shown.n);
        matched += expected >= 0;
        free(shown.data);
        stop_strings_free(s);
    }
    assert_true(matched > 5000);
}

/* No more is held back than may become a stop string. */
static void test_held_back(void **state) {
    (void)state;
    static const char *const strings[] = {"abcd", "xyz"};
    struct stop_strings *s = make(strings, 2, false);
    const char *text;
    size_t bytes;
    assert_int_equal(stop_strings_feed(s, "hello", 5, true, &text, &bytes), -1);
    assert_int_equal(bytes, 5);
    assert_int_equal(stop_strings_feed(s, "ababc", 5, true, &text, &bytes), -1);
    assert_int_equal(bytes, 2);
    assert_int_equal(stop_strings_feed(s, "x", 1, true, &text, &bytes), -1);
    assert_int_equal(bytes, 3);
    assert_memory_equal(text, "abc", 3);
    assert_int_equal(stop_strings_feed(s, "", 0, true, &text, &bytes), -1);
    assert_int_equal(bytes, 0);
    assert_int_equal(stop_strings_feed(s, "yzmore", 6, true, &text, &bytes), 1);
    assert_int_equal(bytes, 0);
    stop_strings_end(s, &text, &bytes);
    assert_int_equal(bytes, 0);
    stop_strings_free(s);
}

/* Nothing ends where nothing may; what begins there may end later. And a new text begins after an end. */
static void test_may_not_match(void **state) {
    (void)state;
    static const char *const strings[] = {"ab", "cab"};
    struct stop_strings *s = make(strings, 2, false);
    const char *text;
    size_t bytes;
    assert_int_equal(stop_strings_feed(s, "abab-ca", 7, false, &text, &bytes), -1);
    assert_int_equal(bytes, 5);
    stop_strings_end(s, &text, &bytes);
    assert_int_equal(bytes, 2);
    assert_memory_equal(text, "ca", 2);
    assert_int_equal(stop_strings_feed(s, "bca", 3, false, &text, &bytes), -1);
    assert_int_equal(bytes, 1);
    assert_int_equal(stop_strings_feed(s, "bb", 2, true, &text, &bytes), 1);
    assert_int_equal(bytes, 0);
    stop_strings_free(s);
}

static void test_none(void **state) {
    (void)state;
    struct stop_strings *s = make(NULL, 0, false);
    const char *text;
    size_t bytes;
    assert_int_equal(stop_strings_feed(s, "anything", 8, true, &text, &bytes), -1);
    assert_int_equal(bytes, 8);
    stop_strings_end(s, &text, &bytes);
    assert_int_equal(bytes, 0);
    stop_strings_free(s);
}

static void test_limits(void **state) {
    (void)state;
    char longest[STOP_STRING_BYTES_MAX + 1];
    const char *strings[STOP_STRINGS_MAX + 1];
    size_t bytes[STOP_STRINGS_MAX + 1];
    struct stop_strings *s = NULL;
    memset(longest, 'a', sizeof(longest));
    for (size_t i = 0; i <= STOP_STRINGS_MAX; i++) {
        strings[i] = longest;
        bytes[i] = STOP_STRING_BYTES_MAX;
    }
    assert_int_equal(stop_strings_new(strings, bytes, STOP_STRINGS_MAX + 1, false, &s), -E2BIG);
    bytes[3] = STOP_STRING_BYTES_MAX + 1;
    assert_int_equal(stop_strings_new(strings, bytes, STOP_STRINGS_MAX, false, &s), -E2BIG);
    bytes[3] = 0;
    assert_int_equal(stop_strings_new(strings, bytes, STOP_STRINGS_MAX, false, &s), -EINVAL);
    assert_null(s);
    bytes[3] = 1;
    assert_int_equal(stop_strings_new(strings, bytes, STOP_STRINGS_MAX, false, &s), 0);
    stop_strings_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_any_split),
            cmocka_unit_test(test_held_back),
            cmocka_unit_test(test_may_not_match),
            cmocka_unit_test(test_none),
            cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
