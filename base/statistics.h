/* statistics.h - what benchmarks say of a list of measured numbers, and when the requests of a test arrive. */
#pragma once

#include <stddef.h>
#include <stdint.h>

double statistics_mean(const double *x, size_t n); /* 0 of none */
double statistics_deviation(
        const double *x, size_t n); /* standard deviation of a sample; 0 of fewer than two */
/* Between the two nearest of n ascending numbers, as numpy does it; share from 0 to 1; 0 of none. */
double statistics_percentile(const double *ascending, size_t n, double share);
void statistics_sort(double *x, size_t n);
/* The time to the next arrival of a Poisson process of `rate` a second, in seconds; *state is a splitmix64 seed. */
double statistics_gap(uint64_t *state, double rate);
