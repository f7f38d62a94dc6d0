/* error.h - an errno with a sentence.
 *
 * Library code never logs: it returns a negative errno and, where a person will have to act on it, fills a
 * struct error with one sentence that names the thing and the fix. The caller that decides prints it once.
 * A struct error lives on the caller's stack; NULL is accepted everywhere ("the code is enough"). */
#pragma once

#include <stdarg.h>

#define ERROR_TEXT_MAX 640u

struct error {
    int code;                  /* negative errno; 0 = nothing happened */
    char text[ERROR_TEXT_MAX]; /* UTF-8, one sentence without a newline, NUL-terminated; long text is cut */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Fills *e (if not NULL) and returns code, so that `return error_set(e, -EINVAL, "...", ...)` reads well.
 * code must be negative. */
int error_set(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
int error_setv(struct error *e, int code, const char *format, va_list ap);

/* Puts "prefix: " before the sentence already in *e; returns e->code. Used to add a file or tensor name on
 * the way up. With e == NULL returns code. */
int error_prefix(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif
