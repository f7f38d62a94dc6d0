/* The ids that Hugging Face tokenizers gives, for our own small tokenizer and, where it is, for Qwen3's
 * (tests/golden/README.md has the formats). */
#include "text_test.h"

#include <jansson.h>

struct reader {
    const unsigned char *at, *end;
};

static uint64_t read_varint(struct reader *r) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
        assert_true(r->at < r->end);
        unsigned char c = *r->at++;
        value |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return value;
    }
    fail_msg("a varint is too long");
    return 0;
}

static const char *read_bytes(struct reader *r, size_t n) {
    assert_true((size_t)(r->end - r->at) >= n);
    const char *data = (const char *)r->at;
    r->at += n;
    return data;
}

static struct reader open_cases(const char *path, const char *magic, char **ret_data) {
    size_t bytes;
    *ret_data = read_all(path, &bytes);
    struct reader r = {(const unsigned char *)*ret_data, (const unsigned char *)*ret_data + bytes};
    assert_memory_equal(read_bytes(&r, 8), magic, 8);
    return r;
}

static bool show_ids(const char *what, const uint32_t *ids, size_t n) {
    char line[512];
    size_t used = 0;
    for (size_t i = 0; i < n && used < sizeof(line) - 16; i++)
        used += (size_t)snprintf(line + used, sizeof(line) - used, " %u", ids[i]);
    line[used] = 0;
    print_error("  %s: %zu ids:%s\n", what, n, line);
    return false;
}

/* Reads n and ids; are they what encoding the text gives? */
static bool compare_ids(struct reader *r, const struct tokenizer *t, const char *text, size_t bytes,
        bool special, uint64_t number) {
    size_t n = read_varint(r), got_n = 0;
    uint32_t *ids = calloc(n + 1, sizeof(*ids)), *got = NULL;
    struct error e = {0};
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)read_varint(r);
    bool equal = true;
    if (t) {
        if (tokenizer_encode(t, text, bytes, special, SIZE_MAX, &got, &got_n, &e) < 0)
            fail_msg("case %llu: %s", (unsigned long long)number, e.text);
        equal = n == got_n && memcmp(ids, got, n * sizeof(*ids)) == 0;
        if (!equal) {
            print_error("case %llu: '%.*s'\n", (unsigned long long)number, (int)(bytes < 200 ? bytes : 200),
                    text);
            show_ids("expected", ids, n);
            show_ids("got", got, got_n);
        }
    }
    free(ids);
    free(got);
    return equal;
}

#define FLAG_PLAIN 1u

static void test_own(void **state) {
    (void)state;
    char *data;
    struct tokenizer *t = load_own();
    struct reader r = open_cases(GOLDEN_DIR "tokenizer/cases.bin", "SHTOKC1\n", &data);
    uint64_t n = read_varint(&r), wrong = 0;
    assert_true(n > 5000);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t flags = read_varint(&r);
        size_t bytes = read_varint(&r);
        const char *text = read_bytes(&r, bytes);
        wrong += !compare_ids(&r, t, text, bytes, true, i);
        if (flags & FLAG_PLAIN)
            wrong += !compare_ids(&r, t, text, bytes, false, i);
    }
    assert_true(r.at == r.end);
    assert_int_equal(wrong, 0);
    tokenizer_free(t);
    free(data);
}

static void test_qwen3(void **state) {
    (void)state;
    struct tokenizer *t = load_qwen3();
    if (!t)
        skip();
    char *data, *expected;
    struct reader r = open_cases(GOLDEN_DIR "tokenizer/cases.bin", "SHTOKC1\n", &data);
    struct reader ids = open_cases(GOLDEN_DIR "tokenizer/cases_qwen3.bin", "SHTOKQ1\n", &expected);
    uint64_t n = read_varint(&r), wrong = 0;
    assert_int_equal(read_varint(&ids), n);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t flags = read_varint(&r);
        size_t bytes = read_varint(&r);
        const char *text = read_bytes(&r, bytes);
        compare_ids(&r, NULL, NULL, 0, false, i);
        if (flags & FLAG_PLAIN)
            compare_ids(&r, NULL, NULL, 0, false, i);
        wrong += !compare_ids(&ids, t, text, bytes, true, i);
    }
    assert_true(ids.at == ids.end);
    assert_int_equal(wrong, 0);
    tokenizer_free(t);
    free(data);
    free(expected);
}

static uint64_t fnv1a(const uint32_t *ids, size_t n) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++)
        for (unsigned shift = 0; shift < 32; shift += 8)
            h = (h ^ (ids[i] >> shift & 0xff)) * 0x100000001b3ull;
    return h;
}

static void compare_long(const struct tokenizer *t, const char *who, const json_t *c) {
    const char *unit = json_string_value(json_object_get(c, "unit"));
    size_t count = (size_t)json_integer_value(json_object_get(c, "count")), unit_bytes = strlen(unit), n;
    const json_t *expected = json_object_get(c, who);
    char *text = malloc(unit_bytes * count + 1), hash[17];
    uint32_t *ids;
    struct error e = {0};
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * unit_bytes, unit, unit_bytes);
    if (tokenizer_encode(t, text, unit_bytes * count, true, SIZE_MAX, &ids, &n, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(n, json_integer_value(json_object_get(expected, "n_ids")));
    snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)fnv1a(ids, n));
    assert_string_equal(hash, json_string_value(json_object_get(expected, "fnv1a64")));
    free(ids);
    free(text);
}

static void test_long(void **state) {
    (void)state;
    json_error_t e;
    json_t *file = json_load_file(GOLDEN_DIR "tokenizer/long.json", 0, &e), *c;
    size_t i;
    assert_non_null(file);
    struct tokenizer *own = load_own(), *qwen3 = load_qwen3();
    json_array_foreach(json_object_get(file, "cases"), i, c) {
        compare_long(own, "own", c);
        if (qwen3)
            compare_long(qwen3, "qwen3", c);
    }
    assert_true(i > 5);
    tokenizer_free(own);
    tokenizer_free(qwen3);
    json_decref(file);
}

static void test_decode(void **state) {
    (void)state;
    json_error_t e;
    json_t *file = json_load_file(GOLDEN_DIR "tokenizer/decode.json", 0, &e), *c, *id;
    size_t i, k;
    assert_non_null(file);
    struct tokenizer *t = load_own();
    json_array_foreach(json_object_get(file, "cases"), i, c) {
        struct detokenizer d;
        char *text = NULL;
        size_t n = 0, size = 0;
        detokenizer_init(&d, !json_is_true(json_object_get(c, "skip_special")));
        json_array_foreach(json_object_get(c, "ids"), k, id) assert_int_equal(
                detokenizer_add(&d, t, (uint32_t)json_integer_value(id), &text, &n, &size), 0);
        assert_int_equal(detokenizer_end(&d, &text, &n, &size), 0);
        const json_t *expected = json_object_get(c, "text");
        assert_int_equal(n, json_string_length(expected));
        assert_memory_equal(text ? text : "", json_string_value(expected), n);
        free(text);
    }
    assert_true(i > 50);
    tokenizer_free(t);
    json_decref(file);
}

static void test_rejected(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    FILE *file = fopen(GOLDEN_DIR "tokenizer/rejected.txt", "re");
    char line[512];
    size_t lines = 0;
    assert_non_null(file);
    for (; fgets(line, sizeof(line), file); lines++) {
        char text[256];
        size_t n = 0, ids_n = 0;
        unsigned byte;
        for (const char *hex = line; sscanf(hex, "%2x", &byte) == 1 && *hex != ' '; hex += 2)
            text[n++] = (char)byte;
        assert_true(n > 0);
        uint32_t *ids = NULL;
        struct error e = {0};
        assert_int_equal(tokenizer_encode(t, text, n, true, 1000, &ids, &ids_n, &e), -EILSEQ);
        assert_non_null(strstr(e.text, "byte "));
        assert_null(ids);
    }
    assert_true(lines > 5);
    fclose(file);
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_own),
            cmocka_unit_test(test_qwen3),
            cmocka_unit_test(test_long),
            cmocka_unit_test(test_decode),
            cmocka_unit_test(test_rejected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
