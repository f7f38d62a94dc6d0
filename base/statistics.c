/* statistics.c - see statistics.h. */
#include "base/statistics.h"

#include "base/hash.h"

#include <math.h>
#include <stdlib.h>

double statistics_mean(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return n ? sum / (double)n : 0;
}

double statistics_deviation(const double *x, size_t n) {
    const double mean = statistics_mean(x, n);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(sum / (double)(n - 1)) : 0;
}

double statistics_percentile(const double *ascending, size_t n, double share) {
    if (n == 0)
        return 0;
    const double at = share * (double)(n - 1);
    const size_t below = (size_t)at;
    if (below + 1 >= n)
        return ascending[n - 1];
    return ascending[below] + (at - (double)below) * (ascending[below + 1] - ascending[below]);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void statistics_sort(double *x, size_t n) {
    if (n > 1)
        qsort(x, n, sizeof(x[0]), by_size);
}

double statistics_gap(uint64_t *state, double rate) {
    const double u = ((double)(splitmix64_next(state) >> 11) + 0.5) * 0x1p-53; /* never 0 */
    return -log(u) / rate;
}
