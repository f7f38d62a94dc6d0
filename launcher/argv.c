/* argv.c - see argv.h. */
#include "launcher/argv.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void add(struct argv *a, const char *format, va_list ap) {
    char **more = realloc(a->words, (a->n + 2) * sizeof(*more));
    if (!more) {
        a->failed = true;
        return;
    }
    a->words = more;
    if (vasprintf(&more[a->n], format, ap) < 0) {
        more[a->n] = NULL;
        a->failed = true;
        return;
    }
    more[++a->n] = NULL;
}

void argv_add(struct argv *a, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    add(a, format, ap);
    va_end(ap);
}

void argv_add_flag(struct argv *a, const char *flag, const char *format, ...) {
    argv_add(a, "%s", flag);
    va_list ap;
    va_start(ap, format);
    add(a, format, ap);
    va_end(ap);
}

void argv_done(struct argv *a) {
    for (size_t i = 0; i < a->n; i++)
        free(a->words[i]);
    free(a->words);
    *a = (struct argv){0};
}
