/* option_values.c - texts to values: numbers, sizes, times, choices; see option_parse in options.h. Every refusal says
 * what was given and what would be right. */
#include "launcher/options/options.h"

#include "base/sizes.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *suffix;
    double factor;
};

static const struct unit time_units[] = {
        {"ms", 1}, {"", 1e3}, {"s", 1e3}, {"m", 60e3}, {"min", 60e3}, {"h", 3600e3}};

static uint64_t whole(double limit) {
    return limit >= 0x1p64 ? UINT64_MAX : (uint64_t)limit;
}

static int parse_number(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    int rc = count_parse(text, whole(info->min), whole(info->max), &value->number, e);
    if (rc < 0)
        return error_prefix(e, -EINVAL, "%s", where);
    value->real = (double)value->number;
    return 0;
}

static int parse_bytes(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    int rc = size_or_part_parse(text, whole(info->max), &value->number, &value->real, e);
    return rc < 0 ? error_prefix(e, -EINVAL, "%s", where) : 0;
}

/* strtod() alone would take blanks, hexadecimals, "inf" and "nan". */
static int parse_real(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    char *end;
    errno = 0;
    double x = strtod(text, &end);
    if (end == text || *end != '\0' || errno == ERANGE || text[strspn(text, "+-.0123456789eE")] != '\0')
        return error_set(e, -EINVAL, "%s: '%.64s' is not a number", where, text);
    if (x < info->min || x > info->max)
        return error_set(
                e, -EINVAL, "%s: %g is out of range; it takes %g to %g", where, x, info->min, info->max);
    value->real = x;
    return 0;
}

/* "30s", "1.5m", "500ms": digits, perhaps a fraction, then one of the units. */
static int parse_duration(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e) {
    const char *const example = "30s, 500ms or 2m";
    size_t digits = strspn(text, "0123456789"), n = digits;
    if (digits && text[n] == '.')
        n += 1 + strspn(text + n + 1, "0123456789");
    if (digits == 0 || n == digits + 1)
        return error_set(e, -EINVAL, "%s: '%.64s' is not understood; write it like %s", where, text, example);
    for (size_t i = 0; i < sizeof(time_units) / sizeof(time_units[0]); i++) {
        if (strcmp(text + n, time_units[i].suffix) != 0)
            continue;
        double ms = strtod(text, NULL) * time_units[i].factor;
        if (!isfinite(ms) || ms < info->min || ms > info->max)
            return error_set(e, -EINVAL, "%s: '%.64s' is out of range; it takes %gs to %gs", where, text,
                    info->min / 1e3, info->max / 1e3);
        value->real = ms;
        value->number = (uint64_t)llround(ms);
        return 0;
    }
    return error_set(
            e, -EINVAL, "%s: '%.64s' has no unit that is known here; write it like %s", where, text, example);
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
        return parse_bytes(info, where, text, value, e);
    case OPTION_DURATION:
        return parse_duration(info, where, text, value, e);
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
