/* histogram.c - every value is in the range it belongs to, the ends of ranges above all. */
#include "base/histogram.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const uint64_t bounds[] = {0, 1, 7, 100, UINT64_MAX};

static void test_ranges(void **state) {
    (void)state;
    static const uint64_t values[] = {0, 1, 2, 7, 8, 100, 101, UINT64_MAX};
    struct histogram h;
    struct histogram_reading r;
    histogram_init(&h, bounds, 5);
    for (int i = 0; i < 8; i++)
        histogram_add(&h, values[i]);
    histogram_read(&h, &r);
    assert_int_equal(r.up_to[0], 1);
    assert_int_equal(r.up_to[1], 2);
    assert_int_equal(r.up_to[2], 4);
    assert_int_equal(r.up_to[3], 6);
    assert_int_equal(r.up_to[4], 8);
    assert_int_equal(r.count, 8);
}

/* Every value up to past the last bound, at every number of bounds, against counting by hand. */
static void test_every_number_of_bounds(void **state) {
    (void)state;
    uint64_t many[HISTOGRAM_BOUNDS_MAX];
    for (uint32_t n = 0; n <= HISTOGRAM_BOUNDS_MAX; n++) {
        struct histogram h;
        struct histogram_reading r;
        uint64_t sum = 0, last = 3 * (uint64_t)n + 5;
        for (uint32_t i = 0; i < n; i++)
            many[i] = 3 * i + 2;
        histogram_init(&h, many, n);
        for (uint64_t v = 0; v < last; v++, sum += v - 1)
            histogram_add(&h, v);
        histogram_read(&h, &r);
        assert_int_equal(r.count, last);
        assert_int_equal(r.sum, sum);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(r.up_to[i], many[i] + 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_ranges), cmocka_unit_test(test_every_number_of_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
