/* sizes.c - see sizes.h. Integers only: a size comes out the same on every machine, to the byte. */
#include "base/sizes.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_DIGITS_MAX 18 /* 10^18 << 40 is within 128 bits */
#define NO_SIZE                                                                                                \
    "'%.64s' is no size: write it like 8GiB, 512MiB, 2GB or 1000000 (kB, MB, GB, TB are powers of 1000; KiB, " \
    "MiB, GiB, TiB and K, M, G, T powers of 1024)"

static const struct unit {
    const char *name;
    uint64_t bytes;
} units[] = {{"", 1}, {"B", 1}, {"kB", 1000}, {"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000},
        {"TB", 1000000000000}, {"K", 1ull << 10}, {"KiB", 1ull << 10}, {"M", 1ull << 20}, {"MiB", 1ull << 20},
        {"G", 1ull << 30}, {"GiB", 1ull << 30}, {"T", 1ull << 40}, {"TiB", 1ull << 40}};

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* The digits at *at, which moves behind them. False when there are none or too many for 64 bits. */
static bool take_digits(const char **at, uint64_t *ret) {
    uint64_t n = 0;
    if (!is_digit(**at))
        return false;
    for (; is_digit(**at); (*at)++)
        if (__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (uint64_t)(**at - '0'), &n))
            return false;
    *ret = n;
    return true;
}

int count_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *e) {
    const char *at = text;
    uint64_t n = 0;
    if (!take_digits(&at, &n) || *at)
        return error_set(e, -EINVAL, "'%.64s' is not a whole number", text);
    if (n < min || n > max)
        return error_set(e, -ERANGE, "'%.64s' is out of range; it takes %llu to %llu", text,
                (unsigned long long)min, (unsigned long long)max);
    *ret = n;
    return 0;
}

int count_parse_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret, struct error *e) {
    uint64_t n = 0;
    int rc = count_parse(text, min, max, &n, e);
    if (rc == 0)
        *ret = (uint32_t)n;
    return rc;
}

/* What is written, before its range is looked at. -ERANGE: too much for 64 bits. */
static int read_size(const char *text, uint64_t *ret) {
    const char *at = text;
    uint64_t whole = 0, fraction = 0, scale = 1;
    size_t digits = 0;
    for (digits = 0; is_digit(text[digits]);)
        digits++;
    if (digits == 0)
        return -EINVAL;
    bool fits = take_digits(&at, &whole);
    at = text + digits;
    if (*at == '.') {
        const char *first = ++at;
        if (!take_digits(&at, &fraction) || at - first > FRACTION_DIGITS_MAX)
            return -EINVAL;
        for (; first < at; first++)
            scale *= 10;
    }
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(at, units[i].name) != 0)
            continue;
        if (scale > 1 && units[i].bytes == 1)
            return -EINVAL; /* a part of a byte */
        uint64_t below = (uint64_t)((unsigned __int128)fraction * units[i].bytes / scale);
        if (!fits || __builtin_mul_overflow(whole, units[i].bytes, ret) ||
                __builtin_add_overflow(*ret, below, ret))
            return -ERANGE;
        return 0;
    }
    return -EINVAL;
}

int size_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *e) {
    uint64_t bytes = 0;
    int rc = read_size(text, &bytes);
    if (rc == -EINVAL)
        return error_set(e, rc, NO_SIZE, text);
    if (rc == 0 && bytes < min)
        return error_set(e, -ERANGE, "%.64s is out of range; at least %s", text, SIZE_TEXT(min));
    if (rc < 0 || bytes > max)
        return error_set(e, -ERANGE, "%.64s is out of range; at most %s", text, SIZE_TEXT(max));
    *ret = bytes;
    return 0;
}

int size_or_part_parse(
        const char *text, uint64_t max, uint64_t *ret_bytes, double *ret_part, struct error *e) {
    size_t n = strspn(text, "0123456789");
    bool part = n > 0 && text[n] == '.' && is_digit(text[n + 1]) &&
                text[n + 1 + strspn(text + n + 1, "0123456789")] == '\0';
    if (!part) {
        int rc = size_parse(text, 0, max, ret_bytes, e);
        if (rc == 0)
            *ret_part = 0;
        return rc;
    }
    double x = strtod(text, NULL);
    if (!(x > 0 && x <= 1))
        return error_set(e, -ERANGE,
                "%.64s is no part: it takes a number above 0 and at most 1.0, or a size such as 8GiB", text);
    *ret_bytes = 0;
    *ret_part = x;
    return 0;
}

static const char *const printed[] = {"bytes", "kB", "MB", "GB", "TB"};

/* The unit in which bytes are printed. */
static size_t unit_of(uint64_t bytes) {
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 999.5 && unit < 4; unit++)
        value /= 1000;
    return unit;
}

static double in_unit(uint64_t bytes, size_t unit) {
    double value = (double)bytes;
    while (unit-- > 0)
        value /= 1000;
    return value;
}

static int decimals(double value, size_t unit) {
    return unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
}

const char *size_print(uint64_t bytes, char to[SIZE_TEXT_MAX]) {
    size_t unit = unit_of(bytes);
    double value = in_unit(bytes, unit);
    snprintf(to, SIZE_TEXT_MAX, "%.*f %s", decimals(value, unit), value, bytes == 1 ? "byte" : printed[unit]);
    return to;
}

const char *size_print_as(uint64_t bytes, uint64_t other, char to[SIZE_TEXT_MAX]) {
    size_t unit = unit_of(other);
    snprintf(to, SIZE_TEXT_MAX, "%.*f", decimals(in_unit(other, unit), unit), in_unit(bytes, unit));
    return to;
}
