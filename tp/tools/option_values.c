/* option_values.c - see option_values.h. */
#include "tp/tools/option_values.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int option_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < min || value > max)
        return -EINVAL;
    *ret = value;
    return 0;
}

int option_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret) {
    uint64_t value;
    int r = option_u64(text, min, max, &value);
    if (r == 0)
        *ret = (uint32_t)value;
    return r;
}

int option_bytes(const char *text, uint64_t *ret) {
    static const struct {
        const char *unit;
        uint64_t bytes;
    } units[] = {{"", 1}, {"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000},
            {"KiB", 1ull << 10}, {"MiB", 1ull << 20}, {"GiB", 1ull << 30}, {"TiB", 1ull << 40}};
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno || value == 0)
        return -EINVAL;
    for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
        if (strcmp(end, units[i].unit) == 0)
            return __builtin_mul_overflow(value, units[i].bytes, ret) ? -ERANGE : 0;
    return -EINVAL;
}
