/* json_config.c - configuration files as Python writes them. */
#include "base/json_config.h"

#include "base/limits.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* In an allocation of exactly its size, so that a sanitizer sees a read beyond it. */
static json_t *parsed(const char *text) {
    json_t *root = NULL;
    struct error e = {0};
    const size_t bytes = strlen(text);
    char *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    memcpy(copy, text, bytes);
    int r = json_config_parse(copy, bytes, "c.json", &root, &e);
    free(copy);
    if (r < 0)
        fail_msg("%s: %s", text, e.text);
    return root;
}

static void refused(const char *text, int code, const char *sentence) {
    json_t *root = NULL;
    struct error e = {0};
    assert_int_equal(json_config_parse(text, strlen(text), "c.json", &root, &e), code);
    assert_null(root);
    assert_string_equal(e.text, sentence);
}

static void test_literals_of_python(void **state) {
    (void)state;
    json_t *root = parsed("{\"a\":NaN,\"b\": [ -Infinity ,Infinity,NaN],\"c\":{\"d\":Infinity}, \"e\":1}");
    assert_string_equal(json_string_value(json_object_get(root, "a")), "NaN");
    const json_t *list = json_object_get(root, "b");
    assert_string_equal(json_string_value(json_array_get(list, 0)), "-Infinity");
    assert_string_equal(json_string_value(json_array_get(list, 1)), "Infinity");
    assert_string_equal(json_string_value(json_array_get(list, 2)), "NaN");
    assert_string_equal(json_string_value(json_object_get(json_object_get(root, "c"), "d")), "Infinity");
    assert_int_equal(json_integer_value(json_object_get(root, "e")), 1);
    json_decref(root);
}

static void test_strings_stay(void **state) {
    (void)state;
    json_t *root = parsed("{\"NaN\":\"Infinity \\\" NaN\",\"b\\\\\":NaN,\"-Infinity\":\"\\\\\"}");
    assert_string_equal(json_string_value(json_object_get(root, "NaN")), "Infinity \" NaN");
    assert_string_equal(json_string_value(json_object_get(root, "b\\")), "NaN");
    assert_string_equal(json_string_value(json_object_get(root, "-Infinity")), "\\");
    json_decref(root);
}

static void test_refused(void **state) {
    (void)state;
    refused("[NaN]", -EBADMSG, "c.json: expected an object, found a list");
    refused("{\"a\":1,\"a\":NaN}", -EBADMSG, "c.json: line 1 column 10: duplicate object key near '\"a\"'");
    refused("{\"a\":Nan}", -EBADMSG, "c.json: line 1 column 8: invalid token near 'Nan'");
    refused("{\"a\":NaNN}", -EBADMSG, "c.json: line 1 column 11: '}' expected near 'N'");
    refused("{\"a\":\"\\", -EBADMSG, "c.json: line 1 column 7: invalid escape near '\"\\'");
    refused("", -EBADMSG, "c.json: line 1 column 0: '[' or '{' expected near end of file");
    char *large = malloc(CONFIG_BYTES_MAX + 1);
    struct error e = {0};
    json_t *root = NULL;
    assert_non_null(large);
    memset(large, ' ', CONFIG_BYTES_MAX + 1);
    assert_int_equal(json_config_parse(large, CONFIG_BYTES_MAX + 1, "c.json", &root, &e), -EFBIG);
    free(large);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_literals_of_python),
            cmocka_unit_test(test_strings_stay),
            cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
