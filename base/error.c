/* error.c - see error.h. */
#include "base/error.h"

#include "base/utf8.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

int error_setv(struct error *e, int code, const char *format, va_list ap) {
    assert(code < 0);
    if (!e)
        return code;
    e->code = code;
    int n = vsnprintf(e->text, sizeof(e->text), format, ap);
    e->text[n < 0 ? 0 : utf8_cut(e->text, (size_t)n, sizeof(e->text) - 1)] = '\0';
    return code;
}

int error_set(struct error *e, int code, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    error_setv(e, code, format, ap);
    va_end(ap);
    return code;
}

int error_prefix(struct error *e, int code, const char *format, ...) {
    char prefix[ERROR_TEXT_MAX], joined[2 * ERROR_TEXT_MAX + 4];
    if (!e)
        return code;
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(prefix, sizeof(prefix), format, ap);
    va_end(ap);
    if (n < 0)
        prefix[0] = '\0';
    n = snprintf(joined, sizeof(joined), "%s: %s", prefix, e->text);
    size_t shown = n < 0 ? 0 : utf8_cut(joined, (size_t)n, sizeof(e->text) - 1);
    memcpy(e->text, joined, shown);
    e->text[shown] = '\0';
    e->code = code;
    return code;
}
