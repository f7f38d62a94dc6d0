/* option_values.c - texts to values: numbers, sizes, times, choices; see option_parse in options.h. Every
 * refusal says what was given and what would be right. */
#include "launcher/options/options.h"

#include "base/limits.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *suffix;
    double factor;
};

static const struct unit byte_units[] = {{"", 1}, {"B", 1}, {"K", 1024.0}, {"KB", 1024.0}, {"KiB", 1024.0},
        {"M", 1048576.0}, {"MB", 1048576.0}, {"MiB", 1048576.0}, {"G", 1073741824.0}, {"GB", 1073741824.0},
        {"GiB", 1073741824.0}, {"T", 1099511627776.0}, {"TB", 1099511627776.0}, {"TiB", 1099511627776.0}};
static const struct unit time_units[] = {
        {"ms", 1}, {"", 1e3}, {"s", 1e3}, {"m", 60e3}, {"min", 60e3}, {"h", 3600e3}};

static int parse_number(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    /* strtoull takes blanks and signs ("-1" becomes 2^64-1): a number starts with a digit here. */
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno == ERANGE)
        return error_set(e, -EINVAL, "%s: '%.64s' is not a whole number", where, text);
    if ((double)n < info->min || (double)n > info->max)
        return error_set(e, -EINVAL, "%s: %llu is out of range; it takes %.0f to %.0f", where, n, info->min,
                info->max);
    value->number = n;
    value->real = (double)n;
    return 0;
}

static int parse_real(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    char *end;
    errno = 0;
    double x = strtod(text, &end);
    if (end == text || *end != '\0' || errno == ERANGE)
        return error_set(e, -EINVAL, "%s: '%.64s' is not a number", where, text);
    if (!isfinite(x) || x < info->min || x > info->max)
        return error_set(
                e, -EINVAL, "%s: %g is out of range; it takes %g to %g", where, x, info->min, info->max);
    value->real = x;
    return 0;
}

/* "4GiB", "500ms": a number, then one of the units. */
static int parse_quantity(const struct option_info *info, const char *where, const char *text,
        const struct unit *units, size_t n_units, const char *examples, struct option_value *value,
        struct error *e) {
    char *end;
    errno = 0;
    double x = strtod(text, &end);
    if (text[0] < '0' || text[0] > '9' || end == text || errno == ERANGE)
        return error_set(
                e, -EINVAL, "%s: '%.64s' is not understood; write it like %s", where, text, examples);
    for (size_t i = 0; i < n_units; i++) {
        if (strcmp(end, units[i].suffix) != 0)
            continue;
        double scaled = x * units[i].factor;
        if (!isfinite(scaled) || scaled < info->min || scaled > info->max)
            return error_set(e, -EINVAL, "%s: '%.64s' is out of range", where, text);
        value->real = scaled;
        value->number = info->type == OPTION_BYTES && scaled < 1 ? 0 : (uint64_t)llround(scaled);
        return 0;
    }
    return error_set(e, -EINVAL, "%s: '%.64s' has no unit that is known here; write it like %s", where, text,
            examples);
}

static int parse_choice(
        const struct option_info *info, const char *where, const char *text, struct error *e) {
    size_t length = strlen(text);
    for (const char *at = info->choices; *at;) {
        size_t n = strcspn(at, "|");
        if (n == length && strncmp(at, text, n) == 0)
            return 0;
        at += n + (at[n] == '|');
    }
    return error_set(e, -EINVAL, "%s: '%.64s' is not one of %s", where, text, info->choices);
}

static int parse_switch(const char *where, const char *text, struct option_value *value, struct error *e) {
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            value->number = strcmp(text, yes[i]) == 0;
            return 0;
        }
    }
    return error_set(e, -EINVAL, "%s: '%.64s' is neither true nor false", where, text);
}

int option_parse(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    size_t length = strlen(text);
    if (length > OPTION_BYTES_MAX)
        return error_set(e, -E2BIG, "%s: the value is longer than %u bytes", where, OPTION_BYTES_MAX);
    switch (info->type) {
    case OPTION_NUMBER:
        return parse_number(info, where, text, value, e);
    case OPTION_REAL:
        return parse_real(info, where, text, value, e);
    case OPTION_BYTES:
        return parse_quantity(info, where, text, byte_units, sizeof(byte_units) / sizeof(byte_units[0]),
                "8GiB or 512MiB", value, e);
    case OPTION_DURATION:
        return parse_quantity(info, where, text, time_units, sizeof(time_units) / sizeof(time_units[0]),
                "30s, 500ms or 2m", value, e);
    case OPTION_CHOICE:
        return parse_choice(info, where, text, e);
    case OPTION_SWITCH:
        return parse_switch(where, text, value, e);
    case OPTION_TEXT:
    case OPTION_TEXTS:
        return length > 0 ? 0 : error_set(e, -EINVAL, "%s: the value is empty", where);
    }
    return -EINVAL;
}
