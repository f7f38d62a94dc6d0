/* Means, percentiles as numpy gives them, and arrivals: the same for a seed, and of the rate that was asked for. */
#include "base/statistics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void near(double got, double want) {
    if (!(fabs(got - want) <= 1e-12 * (1 + fabs(want))))
        fail_msg("%.17g, expected %.17g", got, want);
}

static void test_mean_and_deviation(void **state) {
    const double x[] = {2, 4, 4, 4, 5, 5, 7, 9};
    (void)state;
    near(statistics_mean(x, 8), 5);
    near(statistics_deviation(x, 8), sqrt(32.0 / 7));
    near(statistics_deviation(x, 1), 0);
    near(statistics_mean(x, 0), 0);
    near(statistics_deviation(x, 0), 0);
}

static void test_percentiles(void **state) {
    double x[] = {50, 15, 40, 20, 35};
    (void)state;
    statistics_sort(x, 5);
    near(x[0], 15);
    near(x[4], 50);
    near(statistics_percentile(x, 5, 0), 15);
    near(statistics_percentile(x, 5, 0.4), 29); /* numpy.percentile(x, 40) */
    near(statistics_percentile(x, 5, 0.5), 35);
    near(statistics_percentile(x, 5, 0.9), 46);
    near(statistics_percentile(x, 5, 1), 50);
    near(statistics_percentile(x, 1, 0.99), 15);
    near(statistics_percentile(x, 0, 0.5), 0);
}

static void test_arrivals(void **state) {
    enum { N = 20000 };
    static double gaps[N];
    uint64_t a = 7, b = 7, c = 8;
    (void)state;
    for (int i = 0; i < N; i++) {
        gaps[i] = statistics_gap(&a, 4);
        assert_true(gaps[i] > 0 && isfinite(gaps[i]));
        assert_true(gaps[i] == statistics_gap(&b, 4));
    }
    assert_true(gaps[0] != statistics_gap(&c, 4));
    /* Exponential: mean and deviation are both 1/rate. */
    assert_true(fabs(statistics_mean(gaps, N) - 0.25) < 0.01);
    assert_true(fabs(statistics_deviation(gaps, N) - 0.25) < 0.01);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_mean_and_deviation),
            cmocka_unit_test(test_percentiles),
            cmocka_unit_test(test_arrivals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
