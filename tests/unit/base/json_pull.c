/* json_pull.c - the pull reader: events, strictness, numbers, places of errors. */
#include "base/json_pull.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Reads a whole document from an exactly sized heap copy (so that a sanitizer sees one byte too far) and
 * writes one character per event and the strings; the result of the last call. */
static int trace(const char *json, size_t bytes, char *out, size_t out_size, struct error *e) {
    static const char letters[PULL_EVENTS] = {
            [PULL_DOCUMENT_END] = '.',
            [PULL_OBJECT_BEGIN] = '{',
            [PULL_OBJECT_END] = '}',
            [PULL_ARRAY_BEGIN] = '[',
            [PULL_ARRAY_END] = ']',
            [PULL_KEY] = 'k',
            [PULL_STRING] = 's',
            [PULL_NUMBER] = 'n',
            [PULL_TRUE] = 't',
            [PULL_FALSE] = 'f',
            [PULL_NULL] = '0',
    };
    char *copy = malloc(bytes ? bytes : 1);
    struct json_pull p;
    size_t n = 0;
    int r;
    assert_non_null(copy);
    memcpy(copy, json, bytes);
    json_pull_init(&p, copy, bytes, "t.json");
    while ((r = json_pull_next(&p, e)) > PULL_DOCUMENT_END) {
        assert_true(n + p.string_bytes + 4 < out_size);
        out[n++] = letters[r];
        if (r == PULL_KEY || r == PULL_STRING || r == PULL_NUMBER) {
            out[n++] = '(';
            memcpy(out + n, p.string, p.string_bytes);
            n += p.string_bytes;
            out[n++] = ')';
        }
    }
    if (r == PULL_DOCUMENT_END)
        out[n++] = '.';
    out[n] = '\0';
    assert_int_equal(json_pull_next(&p, e), r); /* the end and an error are given again */
    json_pull_done(&p);
    free(copy);
    return r;
}

static void accepts(const char *json, const char *expected) {
    char out[512];
    struct error e = {0};
    if (trace(json, strlen(json), out, sizeof(out), &e) < 0)
        fail_msg("%s: %s", json, e.text);
    assert_string_equal(out, expected);
}

static void refuses_bytes(const char *json, size_t bytes, int code, const char *sentence) {
    char out[512];
    struct error e = {0};
    int r = trace(json, bytes, out, sizeof(out), &e);
    if (r >= 0)
        fail_msg("accepted: %s", json);
    assert_int_equal(r, code);
    assert_string_equal(e.text, sentence);
}

static void refuses(const char *json, const char *sentence) {
    refuses_bytes(json, strlen(json), -EBADMSG, sentence);
}

static void test_events(void **state) {
    (void)state;
    accepts("{}", "{}.");
    accepts(" [ ] \n", "[].");
    accepts("null", "0.");
    accepts("\"\"", "s().");
    accepts("{\"a\":[1,true,{\"b\":null}],\"c\":\"x\"}", "{k(a)[n(1)t{k(b)0}]k(c)s(x)}.");
    accepts("\t[ [ ] , { } , false ]\r\n", "[[]{}f].");
    accepts("{\"a\" : {\"a\":{}} , \"b\":[[],[]]}", "{k(a){k(a){}}k(b)[[][]]}.");
}

static void test_escapes(void **state) {
    (void)state;
    accepts("\"a\\\"b\\\\c\\/d\\b\\f\\n\\r\\t\"", "s(a\"b\\c/d\b\f\n\r\t).");
    accepts("\"\\u0041\\u00fc\\u20AC\\ud83d\\ude00\"", "s(A\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80).");
    accepts("{\"\\u006bey\\n\":1}", "{k(key\n)n(1)}.");
    accepts("\"\xC4\xA0 plain \xF0\x9F\x98\x80, without escapes, longer than eight\"",
            "s(\xC4\xA0 plain \xF0\x9F\x98\x80, without escapes, longer than eight).");
    refuses("[\"\\x\"]",
            "t.json: line 1 column 4 (byte 3): expected an escape (one of \" \\ / b f n r t u), found 'x'");
    refuses("\"\\u12g4\"", "t.json: line 1 column 2 (byte 1): \\u needs four hex digits");
    refuses("\"\\u12", "t.json: line 1 column 2 (byte 1): \\u needs four hex digits");
    refuses("\"abc\\", "t.json: line 1 column 6 (byte 5): the text ends where an escape should be");
}

static void test_nul_escape_is_a_byte(void **state) {
    (void)state;
    struct json_pull p;
    json_pull_init(&p, "\"a\\u0000b\"", 10, "t.json");
    assert_int_equal(json_pull_next(&p, NULL), PULL_STRING);
    assert_int_equal(p.string_bytes, 3);
    assert_memory_equal(p.string, "a\0b", 3);
    assert_false(json_pull_is(&p, "a"));
    json_pull_done(&p);
}

static void test_lone_surrogates(void **state) {
    (void)state;
    static const char *const halves[] = {"\"\\ud800\"", "\"\\udbff\\n\"", "\"\\ud800\\ud800\"",
            "\"\\ud83dx\"", "\"\\udc00\"", "\"\\udfff\\ud800\"", "\"\\ud83d\\u0041\"", "\"\\ud83d\\u",
            "\"\\ud83d\\"};
    for (size_t i = 0; i < sizeof(halves) / sizeof(*halves); i++) {
        char out[64];
        struct error e = {0};
        assert_int_equal(trace(halves[i], strlen(halves[i]), out, sizeof(out), &e), -EBADMSG);
        assert_non_null(strstr(e.text, "is half of a surrogate pair without the other half"));
    }
}

static void test_strings_are_strict(void **state) {
    (void)state;
    refuses("{\"a\n\":1}", "t.json: line 1 column 4 (byte 3): byte 0x0a in a string must be escaped");
    refuses("[\n \"tab\tinside\"]",
            "t.json: line 2 column 6 (byte 7): byte 0x09 in a string must be escaped");
    refuses("[\"never closed", "t.json: line 1 column 2 (byte 1): this string has no closing quote");
    refuses("\"0123456789\xFF\"", "t.json: line 1 column 12 (byte 11): byte 0xff is not UTF-8");
    refuses("\"\xC3\"", "t.json: line 1 column 2 (byte 1): byte 0xc3 is not UTF-8");
    refuses("\"\xED\xA0\x80\"", "t.json: line 1 column 2 (byte 1): byte 0xed is not UTF-8");
    refuses_bytes("\"a\0b\"", 5, -EBADMSG,
            "t.json: line 1 column 3 (byte 2): byte 0x00 in a string must be escaped");
}

static void test_structure_is_strict(void **state) {
    (void)state;
    refuses("", "t.json: line 1 column 1 (byte 0): the text ends where a value should be");
    refuses("  \n ", "t.json: line 2 column 2 (byte 4): the text ends where a value should be");
    refuses("[1,]", "t.json: line 1 column 4 (byte 3): expected a value, found ']'");
    refuses("{\"a\":1,}", "t.json: line 1 column 8 (byte 7): expected a key in quotes, found '}'");
    refuses("{\"a\"}", "t.json: line 1 column 5 (byte 4): expected ':' after the key, found '}'");
    refuses("{\"a\":}", "t.json: line 1 column 6 (byte 5): expected a value, found '}'");
    refuses("{\"a\":1 \"b\":2}", "t.json: line 1 column 8 (byte 7): expected ',' or '}', found '\"'");
    refuses("{a:1}", "t.json: line 1 column 2 (byte 1): expected a key in quotes, found 'a'");
    refuses("[1 2]", "t.json: line 1 column 4 (byte 3): expected ',' or ']', found '2'");
    refuses("[1", "t.json: line 1 column 3 (byte 2): the text ends where ',' or ']' should be");
    refuses("[1}", "t.json: line 1 column 3 (byte 2): expected ',' or ']', found '}'");
    refuses("{} {}", "t.json: line 1 column 4 (byte 3): expected the end of the text, found '{'");
    refuses("tru", "t.json: line 1 column 1 (byte 0): expected a value, found 't'");
    refuses("nan", "t.json: line 1 column 1 (byte 0): expected a value, found 'n'");
    refuses("// x\n1", "t.json: line 1 column 1 (byte 0): expected a value, found '/'");
    refuses("\xEF\xBB\xBF{}", "t.json: line 1 column 1 (byte 0): expected a value, found byte 0xef");
    refuses_bytes("1\0", 2, -EBADMSG,
            "t.json: line 1 column 2 (byte 1): expected the end of the text, found byte 0x00");
    refuses("]", "t.json: line 1 column 1 (byte 0): expected a value, found ']'");
}

static void test_number_syntax(void **state) {
    (void)state;
    accepts("[0,-0,10,-1.5,0.25,1e3,1E-3,1.5e+30]", "[n(0)n(-0)n(10)n(-1.5)n(0.25)n(1e3)n(1E-3)n(1.5e+30)].");
    refuses("01", "t.json: line 1 column 1 (byte 0): a number may not begin with a zero");
    refuses("-", "t.json: line 1 column 2 (byte 1): the text ends where a digit should be");
    refuses("[1.]", "t.json: line 1 column 4 (byte 3): expected a digit, found ']'");
    refuses("[1e]", "t.json: line 1 column 4 (byte 3): expected a digit, found ']'");
    refuses("[1e+]", "t.json: line 1 column 5 (byte 4): expected a digit, found ']'");
    refuses("[.5]", "t.json: line 1 column 2 (byte 1): expected a value, found '.'");
    refuses("[+1]", "t.json: line 1 column 2 (byte 1): expected a value, found '+'");
    refuses("[1x]", "t.json: line 1 column 3 (byte 2): expected ',' or ']', found 'x'");
}

/* The three conversions of one number; codes are what they return. */
static void number(const char *json, int u_code, uint64_t u, int i_code, int64_t i, int d_code, double d) {
    struct json_pull p;
    struct error e = {0};
    uint64_t u_found = 99;
    int64_t i_found = 99;
    double d_found = 99;
    json_pull_init(&p, json, strlen(json), "t.json");
    assert_int_equal(json_pull_next(&p, NULL), PULL_NUMBER);
    assert_int_equal(json_pull_u64(&p, &u_found, &e), u_code);
    assert_int_equal(json_pull_i64(&p, &i_found, &e), i_code);
    assert_int_equal(json_pull_double(&p, &d_found, &e), d_code);
    assert_true(u_found == (u_code == 0 ? u : 99));
    assert_true(i_found == (i_code == 0 ? i : 99));
    assert_true(d_found == (d_code == 0 ? d : 99));
    json_pull_done(&p);
}

static void test_numbers(void **state) {
    (void)state;
    number("0", 0, 0, 0, 0, 0, 0);
    number("-0", 0, 0, 0, 0, 0, 0);
    number("-7", -ERANGE, 0, 0, -7, 0, -7);
    number("18446744073709551615", 0, UINT64_MAX, -ERANGE, 0, 0, 18446744073709551615.0);
    number("18446744073709551616", -ERANGE, 0, -ERANGE, 0, 0, 18446744073709551616.0);
    number("99999999999999999999999", -ERANGE, 0, -ERANGE, 0, 0, 1e23);
    number("9223372036854775807", 0, INT64_MAX, 0, INT64_MAX, 0, 9223372036854775807.0);
    number("9223372036854775808", 0, 9223372036854775808ull, -ERANGE, 0, 0, 9223372036854775808.0);
    number("-9223372036854775808", -ERANGE, 0, 0, INT64_MIN, 0, -9223372036854775808.0);
    number("-9223372036854775809", -ERANGE, 0, -ERANGE, 0, 0, -9223372036854775809.0);
    number("1e-06", -EBADMSG, 0, -EBADMSG, 0, 0, 1e-06);
    number("2.0", -EBADMSG, 0, -EBADMSG, 0, 0, 2);
    number("1e999", -EBADMSG, 0, -EBADMSG, 0, -ERANGE, 0);
}

static void test_number_of_something_else(void **state) {
    (void)state;
    struct json_pull p;
    struct error e = {0};
    uint64_t u = 5;
    double d = 5;
    json_pull_init(&p, " \"7\"", 4, "t.json");
    assert_int_equal(json_pull_next(&p, NULL), PULL_STRING);
    assert_int_equal(json_pull_u64(&p, &u, &e), -EBADMSG);
    assert_string_equal(e.text, "t.json: line 1 column 2 (byte 1): expected a number, found a string");
    assert_int_equal(json_pull_double(&p, &d, &e), -EBADMSG);
    assert_int_equal(u, 5);
    json_pull_done(&p);
}

static void test_long_number(void **state) {
    (void)state;
    char digits[300];
    struct json_pull p;
    struct error e = {0};
    double d;
    memset(digits, '1', sizeof(digits));
    json_pull_init(&p, digits, sizeof(digits), "t.json");
    assert_int_equal(json_pull_next(&p, NULL), PULL_NUMBER);
    assert_int_equal(json_pull_double(&p, &d, &e), -ERANGE);
    assert_non_null(strstr(e.text, "a number may have 256 characters, not 300"));
    json_pull_done(&p);
}

static void test_depth(void **state) {
    (void)state;
    char json[2 * (JSON_DEPTH_MAX + 1) + 1], out[512];
    struct error e = {0};
    for (unsigned deep = JSON_DEPTH_MAX; deep <= JSON_DEPTH_MAX + 1; deep++) {
        for (unsigned i = 0; i < deep; i++) {
            json[i] = '[';
            json[2 * deep - 1 - i] = ']';
        }
        int r = trace(json, 2 * deep, out, sizeof(out), &e);
        assert_int_equal(r, deep > JSON_DEPTH_MAX ? -E2BIG : 0);
    }
    assert_string_equal(e.text, "t.json: line 1 column 65 (byte 64): nested more than 64 levels deep");
}

/* Objects and arrays in turn, to the limit: each level remembers what it is. */
static void test_depth_of_mixed_kinds(void **state) {
    (void)state;
    char json[1024], out[2048];
    size_t n = 0;
    for (unsigned i = 0; i < JSON_DEPTH_MAX; i++)
        n += (size_t)snprintf(json + n, sizeof(json) - n, "%s", i % 3 ? "{\"k\":" : "[");
    n += (size_t)snprintf(json + n, sizeof(json) - n, "1");
    for (unsigned i = JSON_DEPTH_MAX; i-- > 0;)
        n += (size_t)snprintf(json + n, sizeof(json) - n, "%s", i % 3 ? "}" : "]");
    struct error e = {0};
    if (trace(json, n, out, sizeof(out), &e) < 0)
        fail_msg("%s", e.text);
}

static void test_skip_and_leave(void **state) {
    (void)state;
    static const char json[] = "{\"a\":{\"x\":[1,{\"y\":2}]},\"b\":[3,4,5],\"c\":6}";
    struct json_pull p;
    uint64_t six = 0;
    json_pull_init(&p, json, strlen(json), "t.json");
    assert_int_equal(json_pull_expect(&p, PULL_OBJECT_BEGIN, NULL), PULL_OBJECT_BEGIN);
    assert_int_equal(json_pull_next(&p, NULL), PULL_KEY);
    assert_int_equal(json_pull_skip(&p, NULL), 0);
    assert_int_equal(json_pull_next(&p, NULL), PULL_KEY);
    assert_true(json_pull_is(&p, "b"));
    assert_int_equal(json_pull_next(&p, NULL), PULL_ARRAY_BEGIN);
    assert_int_equal(p.depth, 2);
    assert_int_equal(json_pull_next(&p, NULL), PULL_NUMBER);
    assert_int_equal(json_pull_leave(&p, NULL), 0);
    assert_int_equal(p.depth, 1);
    assert_int_equal(json_pull_next(&p, NULL), PULL_KEY);
    assert_true(json_pull_is(&p, "c"));
    assert_int_equal(json_pull_next(&p, NULL), PULL_NUMBER);
    assert_int_equal(json_pull_u64(&p, &six, NULL), 0);
    assert_int_equal(six, 6);
    assert_int_equal(json_pull_leave(&p, NULL), 0);
    assert_int_equal(json_pull_expect(&p, PULL_DOCUMENT_END, NULL), PULL_DOCUMENT_END);
    json_pull_done(&p);
}

static void test_expect_and_skip_refuse(void **state) {
    (void)state;
    struct json_pull p;
    struct error e = {0};
    json_pull_init(&p, "[ ]", 3, "t.json");
    assert_int_equal(json_pull_expect(&p, PULL_OBJECT_BEGIN, &e), -EBADMSG);
    assert_string_equal(e.text, "t.json: line 1 column 1 (byte 0): expected an object, found an array");
    assert_int_equal(json_pull_skip(&p, &e), -EBADMSG);
    assert_string_equal(
            e.text, "t.json: line 1 column 3 (byte 2): expected a value, found the end of an array");
    json_pull_done(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_events),
            cmocka_unit_test(test_escapes),
            cmocka_unit_test(test_nul_escape_is_a_byte),
            cmocka_unit_test(test_lone_surrogates),
            cmocka_unit_test(test_strings_are_strict),
            cmocka_unit_test(test_structure_is_strict),
            cmocka_unit_test(test_number_syntax),
            cmocka_unit_test(test_numbers),
            cmocka_unit_test(test_number_of_something_else),
            cmocka_unit_test(test_long_number),
            cmocka_unit_test(test_depth),
            cmocka_unit_test(test_depth_of_mixed_kinds),
            cmocka_unit_test(test_skip_and_leave),
            cmocka_unit_test(test_expect_and_skip_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
