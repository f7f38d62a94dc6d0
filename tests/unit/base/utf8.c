/* utf8.c - what is UTF-8 and what is not (Unicode table 3-7). */
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A plain decoder by value, to compare with for every sequence of up to 4 bytes that begins with `first`. */
static size_t slow_sequence(const unsigned char *s, size_t n) {
    static const struct {
        unsigned char mask, lead;
        uint32_t low;
    } forms[] = {{0x80, 0x00, 0}, {0xE0, 0xC0, 0x80}, {0xF0, 0xE0, 0x800}, {0xF8, 0xF0, 0x10000}};
    for (size_t length = 1; length <= 4; length++) {
        if ((s[0] & forms[length - 1].mask) != forms[length - 1].lead)
            continue;
        if (n < length)
            return 0;
        uint32_t value = s[0] & (unsigned char)~forms[length - 1].mask;
        for (size_t i = 1; i < length; i++) {
            if ((s[i] & 0xC0) != 0x80)
                return 0;
            value = value << 6 | (s[i] & 0x3F);
        }
        bool surrogate = value >= 0xD800 && value <= 0xDFFF;
        return value >= forms[length - 1].low && value <= 0x10FFFF && !surrogate ? length : 0;
    }
    return 0;
}

static void test_sequences(void **state) {
    (void)state;
    static const unsigned char edges[] = {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
    unsigned char s[4];
    for (unsigned first = 0; first < 256; first++)
        for (unsigned second = 0; second < 256; second++)
            for (size_t i = 0; i < sizeof(edges); i++)
                for (size_t k = 0; k < sizeof(edges); k++)
                    for (size_t n = 0; n <= 4; n++) {
                        s[0] = (unsigned char)first;
                        s[1] = (unsigned char)second;
                        s[2] = edges[i];
                        s[3] = edges[k];
                        size_t expected = n ? slow_sequence(s, n) : 0;
                        if (utf8_sequence((const char *)s, n) != expected)
                            fail_msg("%02x %02x %02x %02x, %zu bytes", s[0], s[1], s[2], s[3], n);
                    }
}

static void test_encode_is_the_inverse(void **state) {
    (void)state;
    char text[4];
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        size_t n = utf8_encode(c, text);
        if (utf8_sequence(text, n) != n || slow_sequence((unsigned char *)text, n) != n)
            fail_msg("U+%04X", c);
    }
}

static void test_valid(void **state) {
    (void)state;
    size_t at = 77;
    assert_true(utf8_valid(NULL, 0, &at));
    assert_true(utf8_valid("plain text, longer than eight bytes", 35, &at));
    assert_true(utf8_valid("a\0b", 3, &at));
    assert_true(utf8_valid("gr\xC3\xBC\xC3\x9F dich \xF0\x9F\x98\x80", 16, &at));
    assert_int_equal(at, 77);
}

static void test_bad_offset(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n, at;
    } cases[] = {
            {"\xFF", 1, 0}, {"0123456789\x80", 11, 10}, {"01234567\xC3", 9, 8}, /* cut */
            {"0123\xE2\x82", 6, 4},                                             /* cut after two of three */
            {"\xC3\xBC\xF0\x9F\x98", 5, 2},                                     /* cut after three of four */
            {"ok\xC0\x80", 4, 2},                                               /* overlong NUL */
            {"ok\xE0\x80\xAF", 5, 2},                                           /* overlong slash */
            {"0123456\xED\xA0\x80", 10, 7},                                     /* U+D800 */
            {"\xF4\x90\x80\x80", 4, 0},                                         /* U+110000 */
            {"0123456789abcdef\xC3(23456789", 26, 16}, /* second byte is not a continuation */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        size_t at = 99;
        assert_false(utf8_valid(cases[i].text, cases[i].n, &at));
        assert_int_equal(at, cases[i].at);
        assert_false(utf8_valid(cases[i].text, cases[i].n, NULL));
    }
}

/* Every text is cut at every place, in memory that ends where the reading must end. */
static void test_cut(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n, max, cut;
    } cases[] = {
            {"", 0, 0, 0},
            {"abc", 3, 3, 3},
            {"abc", 3, 9, 3},
            {"abc", 3, 2, 2},
            {"abc", 3, 0, 0},
            {"a\xC3\xBCo", 4, 3, 3},               /* right after the character */
            {"a\xC3\xBCo", 4, 2, 1},               /* through two bytes */
            {"a\xE2\x82\xAC-", 5, 3, 1},           /* through three */
            {"a\xE2\x82\xAC-", 5, 2, 1},           /* after the first of three */
            {"a\xF0\x9F\x98\x80-", 6, 4, 1},       /* through four */
            {"\xF0\x9F\x98\x80", 4, 3, 0},         /* nothing fits */
            {"\x80\x80\x80\x80\x80\x80", 6, 5, 5}, /* no characters at all */
            {"\xC3\xBC\x80\x80\x80\x80", 6, 5, 5},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        size_t held = cases[i].n < cases[i].max ? cases[i].n : cases[i].max;
        char *exact = malloc(held ? held : 1);
        memcpy(exact, cases[i].text, held);
        assert_int_equal(utf8_cut(exact, cases[i].n, cases[i].max), cases[i].cut);
        free(exact);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_sequences),
            cmocka_unit_test(test_encode_is_the_inverse),
            cmocka_unit_test(test_valid),
            cmocka_unit_test(test_bad_offset),
            cmocka_unit_test(test_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
