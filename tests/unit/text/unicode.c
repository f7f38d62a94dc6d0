/* The Unicode parts against the recorded tables of Hugging Face tokenizers, against utf8proc's own
 * normalization, and the splitter by hand against the same pattern on PCRE2. */
#include "text_test.h"

#include "base/buffer.h"
#include "base/utf8.h"
#include "daemon/text/nfc.h"
#include "daemon/text/pretokenize.h"
#include "daemon/text/unicode_class.h"

#include <utf8proc.h>

#define CODE_POINTS 0x110000u

static bool is_surrogate(uint32_t c) {
    return c >= 0xd800 && c <= 0xdfff;
}

static void test_classes(void **state) {
    (void)state;
    unsigned char *expected = calloc(CODE_POINTS, 1);
    FILE *file = fopen(GOLDEN_DIR "tokenizer/classes.txt", "re");
    char line[256], class;
    unsigned first, last, ranges = 0, wrong = 0;
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%c %x %x", &class, &first, &last) != 3)
            continue;
        ranges++;
        const char *known = strchr("?LMNS", class);
        assert_non_null(known);
        assert_true(first <= last && last < CODE_POINTS);
        memset(expected + first, (int)(known - "?LMNS"), last - first + 1);
    }
    fclose(file);
    assert_true(ranges > 500);
    for (uint32_t c = 0; c < CODE_POINTS; c++)
        if (!is_surrogate(c) && unicode_class_of(c) != (enum unicode_class)expected[c]) {
            print_error("U+%04X: class %d, expected %d\n", c, unicode_class_of(c), expected[c]);
            wrong++;
        }
    assert_int_equal(wrong, 0);
    free(expected);
}

/* --- NFC --- */

static unsigned char *differs_in_hf; /* by code point: nfc_missing.txt names it */

static int read_differences(void **state) {
    (void)state;
    FILE *file = fopen(GOLDEN_DIR "tokenizer/nfc_missing.txt", "re");
    char line[256];
    unsigned a, b, c;
    differs_in_hf = calloc(CODE_POINTS, 1);
    if (!file || !differs_in_hf)
        return -1;
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "mark %x", &a) == 1)
            differs_in_hf[a] = 1;
        else if (sscanf(line, "pair %x %x %x", &a, &b, &c) == 3)
            differs_in_hf[a] = differs_in_hf[c] = 1;
    }
    fclose(file);
    return 0;
}

static int free_differences(void **state) {
    (void)state;
    free(differs_in_hf);
    return 0;
}

static void compare_nfc(const struct byte_buffer *text) {
    struct byte_buffer got = {0};
    utf8proc_uint8_t *expected = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text->data, (utf8proc_ssize_t)text->n,
            &expected, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    assert_true(n >= 0);
    assert_int_equal(nfc_append(text->data, text->n, NULL, &got, NULL), 0);
    if (got.n != (size_t)n || memcmp(got.data, expected, got.n) != 0)
        fail_msg("NFC of '%.*s': got '%.*s', expected '%s'", (int)text->n, text->data, (int)got.n, got.data,
                expected);
    if (nfc_stable_prefix(text->data, text->n) == text->n)
        assert_memory_equal(text->data, expected, text->n); /* text that need not be looked at is NFC */
    free(expected);
    free(got.data);
}

static void add(struct byte_buffer *text, uint32_t c) {
    assert_int_equal(byte_buffer_reserve(text, 4), 0);
    text->n += utf8_encode(c, text->data + text->n);
}

static void test_nfc_each(void **state) {
    (void)state;
    struct byte_buffer text = {0};
    static const uint32_t around[] = {'e', 0x301, 0x323, 0x1161, 0x11a8, 0xac00};
    for (uint32_t c = 0; c < CODE_POINTS; c++) {
        if (is_surrogate(c) || differs_in_hf[c] ||
                c == 0x11a7) /* utf8proc 2.8 swallows U+11A7 after a Hangul syllable */
            continue;
        text.n = 0;
        add(&text, c);
        compare_nfc(&text);
        if (!nfc_is_unstable(c) && c > 0x3000)
            continue;
        for (size_t i = 0; i < sizeof(around) / sizeof(around[0]); i++) {
            text.n = 0;
            add(&text, around[i]);
            add(&text, c);
            add(&text, around[(i + 1) % 6]);
            compare_nfc(&text);
        }
    }
    free(text.data);
}

static void test_nfc_random(void **state) {
    (void)state;
    struct byte_buffer text = {0};
    uint64_t seed = 3;
    static const uint32_t pool[] = {'a', 'e', ' ', 0xe9, 0x301, 0x300, 0x323, 0x327, 0x345, 0x308, 0x1100,
            0x1161, 0x11a8, 0xac00, 0x212b, 0x9c7, 0x9be, 0x915, 0x93c, 0x958, 0x1d15e, 0x2f800, 0xfb1d,
            0x5b4, 0x3b1, 0x314, 0x342};
    for (size_t i = 0; i < 100000; i++) {
        text.n = 0;
        for (size_t n = 1 + random_below(&seed, 12); n > 0; n--) {
            uint32_t c = (uint32_t)random_below(&seed, 0x3000);
            if (random_below(&seed, 4) > 0)
                c = pool[random_below(&seed, sizeof(pool) / sizeof(pool[0]))];
            if (!differs_in_hf[c])
                add(&text, c);
        }
        if (text.n)
            compare_nfc(&text);
    }
    free(text.data);
}

static void test_nfc_before_first_tail(void **state) {
    (void)state;
    struct byte_buffer out = {0};
    static const char text[] = "\xea\xb0\x80\xe1\x86\xa7"; /* U+AC00 U+11A7: one before the first tail */
    assert_int_equal(nfc_append(text, 6, NULL, &out, NULL), 0);
    assert_int_equal(out.n, 6);
    assert_memory_equal(out.data, text, 6);
    free(out.data);
}

/* What HF's older tables do not know stays as it is, and where it is. */
static void test_nfc_inert(void **state) {
    (void)state;
    struct byte_buffer text = {0}, got = {0};
    for (uint32_t c = 0; c < CODE_POINTS; c++) {
        if (!differs_in_hf[c])
            continue;
        text.n = got.n = 0;
        add(&text, 'e');
        add(&text, c);
        add(&text, 0x301);
        add(&text, 0x323);
        assert_int_equal(nfc_append(text.data, text.n, NULL, &got, NULL), 0);
        size_t n = text.n - 4;
        assert_memory_equal(got.data, text.data, n);
        assert_memory_equal(
                got.data + n, "\xcc\xa3\xcc\x81", 4); /* the known marks behind it are put in order */
        assert_int_equal(got.n, text.n);
    }
    free(text.data);
    free(got.data);
}

static void test_nfc_flags(void **state) {
    (void)state;
    static const unsigned char flags[] = {1, 1, 1, 1, 0, 1, 1};
    struct byte_buffer out = {0}, out_flags = {0};
    /* x e U+0301 y U+0301: the second byte of the first mark is not trusted, so neither is what it was
     * composed to */
    assert_int_equal(nfc_append("xxe\xcc\x81yz", 7, flags, &out, &out_flags), 0);
    assert_memory_equal(out.data, "xx\xc3\xa9yz", 6);
    assert_int_equal(out_flags.n, out.n);
    assert_memory_equal(out_flags.data, "\1\1\0\0\1\1", 6);
    free(out.data);
    free(out_flags.data);
}

/* --- words --- */

static void compare_words(const char *pattern, const struct byte_buffer *text) {
    struct splitter *by_hand, *by_regex;
    struct splitter_run hand, regex;
    struct error e = {0};
    assert_int_equal(splitter_new(pattern, strlen(pattern), true, &by_hand, &e), 0);
    assert_int_equal(splitter_new(pattern, strlen(pattern), false, &by_regex, &e), 0);
    assert_int_equal(splitter_run_begin(by_hand, &hand), 0);
    assert_int_equal(splitter_run_begin(by_regex, &regex), 0);
    assert_null(hand.match_data);
    assert_non_null(regex.match_data);
    for (size_t at = 0, end = 0, expected = 0; at < text->n; at = end) {
        assert_int_equal(splitter_next(&regex, text->data, text->n, at, &expected, &e), 0);
        assert_int_equal(splitter_next(&hand, text->data, text->n, at, &end, &e), 0);
        if (end != expected)
            fail_msg("'%.*s' from byte %zu: the word ends at %zu, by PCRE2 at %zu", (int)text->n, text->data,
                    at, end, expected);
    }
    splitter_run_end(&hand);
    splitter_run_end(&regex);
    splitter_free(by_hand);
    splitter_free(by_regex);
}

/* PCRE2 10.42 has Unicode 14: what was assigned since is left out. */
static uint32_t random_character(uint64_t *seed) {
    static const uint32_t pool[] = {'a', 'S', 's', 't', 'l', 'v', 'E', 'm', 'D', '\'', '\'', ' ', ' ', '\n',
            '\r', '\t', '1', '2', '!', '.', 0x17f, 0x212a, 0xa0, 0x85, 0x2028, 0x180e, 0x3000, 0x301, 0x93e,
            0x903, 0xe9, 0x4e00, 0x0e01, 0x0e31, 0xb2, 0x2167, 0x1f600, 0xfe0f, 0x200d, 0x0, 0x1c, 0x7f,
            0xad};
    if (random_below(seed, 4) > 0)
        return pool[random_below(seed, sizeof(pool) / sizeof(pool[0]))];
    return (uint32_t)random_below(seed, 0x800);
}

static void test_words(void **state) {
    (void)state;
    struct byte_buffer text = {0};
    uint64_t seed = 4;
    for (size_t i = 0; i < 20000; i++) {
        text.n = 0;
        for (size_t n = 1 + random_below(&seed, 24); n > 0; n--)
            add(&text, random_character(&seed));
        compare_words(i % 2 ? PATTERN_QWEN2 : PATTERN_QWEN35, &text);
    }
    free(text.data);
}

static void test_regex(void **state) {
    (void)state;
    struct splitter *s = NULL;
    struct error e = {0};
    assert_int_equal(splitter_new("a(b", 3, true, &s, &e), -EINVAL);
    assert_non_null(strstr(e.text, "near character 3"));
    assert_null(s);
    /* steps without end are given up */
    static const char slow[] = "(?:a|aa|aaa|a+)+$",
                      text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";
    struct splitter_run run;
    size_t end;
    assert_int_equal(splitter_new(slow, sizeof(slow) - 1, true, &s, &e), 0);
    assert_int_equal(splitter_run_begin(s, &run), 0);
    assert_int_equal(splitter_next(&run, text, sizeof(text) - 1, 0, &end, &e), -EINVAL);
    assert_non_null(strstr(e.text, "gave up at byte 0"));
    splitter_run_end(&run);
    splitter_free(s);
    /* what no match covers is a word too; an empty match splits nothing */
    assert_int_equal(splitter_new("[0-9]*", 6, true, &s, &e), 0);
    assert_int_equal(splitter_run_begin(s, &run), 0);
    assert_int_equal(splitter_next(&run, "ab12c", 5, 0, &end, &e), 0);
    assert_int_equal(end, 2);
    assert_int_equal(splitter_next(&run, "ab12c", 5, 2, &end, &e), 0);
    assert_int_equal(end, 4);
    assert_int_equal(splitter_next(&run, "ab12c", 5, 4, &end, &e), 0);
    assert_int_equal(end, 5);
    splitter_run_end(&run);
    splitter_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_classes),
            cmocka_unit_test(test_nfc_each),
            cmocka_unit_test(test_nfc_random),
            cmocka_unit_test(test_nfc_before_first_tail),
            cmocka_unit_test(test_nfc_inert),
            cmocka_unit_test(test_nfc_flags),
            cmocka_unit_test(test_words),
            cmocka_unit_test(test_regex),
    };
    return cmocka_run_group_tests(tests, read_differences, free_differences);
}
