/* Sizes and counts as people type them, and sizes as they are printed: one meaning everywhere. */
#include "base/sizes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
            {"0", 0},
            {"1", 1},
            {"007", 7},
            {"123B", 123},
            {"1kB", 1000},
            {"1KB", 1000},
            {"500MB", 500000000},
            {"2GB", 2000000000},
            {"3TB", 3000000000000},
            {"1K", 1024},
            {"1KiB", 1024},
            {"512M", 536870912},
            {"512MiB", 536870912},
            {"2G", 2147483648},
            {"2GiB", 2147483648},
            {"1T", 1099511627776},
            {"1TiB", 1099511627776},
            {"1.5GiB", 1610612736},
            {"0.5GB", 500000000},
            {"0.1GB", 100000000},
            {"0.3KiB", 307},
            {"4.000000000000000001GB", 4000000000},
            {"18446744073709551615", UINT64_MAX},
            {"16777215.999TiB", 18446742974197923840ull + 1098412116148ull},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes = 99;
        struct error e = {0};
        if (size_parse(cases[i].text, 0, UINT64_MAX, &bytes, &e) < 0)
            fail_msg("%s: %s", cases[i].text, e.text);
        if (bytes != cases[i].bytes)
            fail_msg("%s became %llu", cases[i].text, (unsigned long long)bytes);
    }
}

static void test_sizes_refused(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int code;
    } cases[] = {{"", -EINVAL}, {" 1GB", -EINVAL}, {"1GB ", -EINVAL}, {"1 GB", -EINVAL}, {"-1", -EINVAL},
            {"+1", -EINVAL}, {"1GBs", -EINVAL}, {"1gb", -EINVAL}, {"1Mb", -EINVAL}, {"1k", -EINVAL},
            {"GB", -EINVAL}, {".5GB", -EINVAL}, {"1.GB", -EINVAL}, {"0.5", -EINVAL}, {"1.5B", -EINVAL},
            {"1.5.5GB", -EINVAL}, {"0x10", -EINVAL}, {"1e9", -EINVAL}, {"1,5GB", -EINVAL}, {"1_000", -EINVAL},
            {"inf", -EINVAL}, {"nan", -EINVAL}, {"4.0000000000000000001GB", -EINVAL}, {"1\nGB", -EINVAL},
            {"18446744073709551616", -ERANGE}, {"16777216TiB", -ERANGE}, {"18446744.1TB", -ERANGE},
            {"99999999999999999999999TB", -ERANGE}, {"99999999999999999999999 TB", -EINVAL},
            {"18446744073709551615K", -ERANGE}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes = 99;
        struct error e = {0};
        int r = size_parse(cases[i].text, 0, UINT64_MAX, &bytes, &e);
        if (r != cases[i].code || bytes != 99 || e.code != r)
            fail_msg("'%s' gave %d: %s", cases[i].text, r, e.text);
        if (!strstr(e.text, r == -EINVAL ? "no size: write it like 8GiB" : "out of range"))
            fail_msg("'%s' was refused with: %s", cases[i].text, e.text);
    }
    uint64_t bytes = 99;
    struct error e = {0};
    assert_int_equal(size_parse("1MB", 2000000, UINT64_MAX, &bytes, &e), -ERANGE);
    assert_string_equal(e.text, "1MB is out of range; at least 2.00 MB");
    assert_int_equal(size_parse("3MB", 1, 2000000, &bytes, &e), -ERANGE);
    assert_string_equal(e.text, "3MB is out of range; at most 2.00 MB");
    assert_int_equal(bytes, 99);
}

static void test_parts(void **state) {
    (void)state;
    uint64_t bytes = 9;
    double part = 9;
    assert_int_equal(size_or_part_parse("0.5", UINT64_MAX, &bytes, &part, NULL), 0);
    assert_true(bytes == 0 && part == 0.5);
    assert_int_equal(size_or_part_parse("1.0", UINT64_MAX, &bytes, &part, NULL), 0);
    assert_true(bytes == 0 && part == 1);
    assert_int_equal(size_or_part_parse("0.5GiB", UINT64_MAX, &bytes, &part, NULL), 0);
    assert_true(bytes == 536870912 && part == 0);
    assert_int_equal(size_or_part_parse("1", UINT64_MAX, &bytes, &part, NULL), 0);
    assert_true(bytes == 1 && part == 0);
    static const char *const bad[] = {"0.0", "1.5", "1.0000001", "00.000", "2.0", ".5", "0.", "0.5 ", "-0.5",
            "+0.5", "0.5e1", "0.5%", "50%", "1e300T"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct error e = {0};
        bytes = 9;
        if (size_or_part_parse(bad[i], UINT64_MAX, &bytes, &part, &e) == 0 || bytes != 9 || !e.text[0])
            fail_msg("'%s' was taken", bad[i]);
    }
}

static void test_counts(void **state) {
    (void)state;
    uint64_t n = 9;
    struct error e = {0};
    assert_int_equal(count_parse("64", 1, 64, &n, &e), 0);
    assert_int_equal(n, 64);
    assert_int_equal(count_parse("18446744073709551615", 0, UINT64_MAX, &n, &e), 0);
    assert_true(n == UINT64_MAX);
    assert_int_equal(count_parse("65", 1, 64, &n, &e), -ERANGE);
    assert_string_equal(e.text, "'65' is out of range; it takes 1 to 64");
    assert_int_equal(count_parse("0", 1, 64, &n, &e), -ERANGE);
    static const char *const bad[] = {
            "", " 1", "1 ", "-1", "+1", "0x1", "1.0", "1e3", "1K", "x", "18446744073709551616"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (count_parse(bad[i], 0, UINT64_MAX, &n, &e) != -EINVAL)
            fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(e.text, "is not a whole number"));
    }
    assert_true(n == UINT64_MAX);
}

static void test_printing(void **state) {
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {{0, "0 bytes"}, {1, "1 byte"}, {999, "999 bytes"}, {1000, "1.00 kB"}, {1024, "1.02 kB"},
            {99949, "99.9 kB"}, {99950, "100 kB"}, {999499, "999 kB"}, {999500, "1.00 MB"},
            {64000000, "64.0 MB"}, {1500000000, "1.50 GB"}, {1ull << 30, "1.07 GB"},
            {1000000000000, "1.00 TB"}, {UINT64_MAX, "18446744 TB"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(SIZE_TEXT(cases[i].bytes), cases[i].text);
    char text[SIZE_TEXT_MAX];
    assert_string_equal(size_print_as(150000000, 12300000000, text), "0.1");
    assert_string_equal(size_print_as(0, 1500000000, text), "0.00");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_sizes),
            cmocka_unit_test(test_sizes_refused),
            cmocka_unit_test(test_parts),
            cmocka_unit_test(test_counts),
            cmocka_unit_test(test_printing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
