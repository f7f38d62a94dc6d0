/* argv.h - a growing NULL-terminated list of texts: command lines and environments of children. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct argv {
    char **words; /* NULL-terminated once anything was added */
    size_t n;
    bool failed; /* out of memory at some add: the list is not to be used */
};

void argv_add(struct argv *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Two words: "--name" and the value. */
void argv_add_flag(struct argv *a, const char *flag, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
void argv_done(struct argv *a);
