/* arguments.h - reads the command line of one verb of shardd-checkpoint, so that options are written as those of the
 * verbs that the launcher reads itself: with `_` in place of `-`, and `-tp`. Called by each verb, in place of
 * getopt_long(). */
#pragma once

#include "base/error.h"

#include <getopt.h>
#include <stdint.h>

#define ARGUMENT_TEXT_MAX 160

/* argv[0] is the verb. Changes argv and the names of options in it; values and what comes after `--` stay. */
void arguments_normalise(int argc, char **argv);

/* As getopt_long(argc, argv, "h", flags, at), but writes nothing. Returns '?' or ':' where an option is wrong. */
int arguments_next(int argc, char **argv, const struct option *flags, int *at);

/* After '?' or ':' from arguments_next(): a sentence that names the option, in text, which it returns. */
const char *arguments_wrong(int flag, char **argv, char text[ARGUMENT_TEXT_MAX]);

/* The value of --group-size: 32, 64 or 128. -EINVAL, -ERANGE. */
int argument_group_size(const char *text, uint32_t *ret, struct error *e);
