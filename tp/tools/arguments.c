/* arguments.c - see arguments.h. */
#include "tp/tools/arguments.h"

#include "base/sizes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void arguments_normalise(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "-tp") == 0)
            argv[i] = (char *)"--tp"; /* getopt_long reads it only */
        else if (strncmp(argv[i], "--", 2) == 0)
            for (char *c = argv[i] + 2; *c && *c != '='; c++)
                if (*c == '_')
                    *c = '-';
    }
}

int arguments_next(int argc, char **argv, const struct option *flags, int *at) {
    opterr = 0;
    return getopt_long(argc, argv, ":h", flags, at);
}

const char *arguments_wrong(int flag, char **argv, char text[ARGUMENT_TEXT_MAX]) {
    const char *word = argv[optind - 1];
    if (flag == ':')
        snprintf(text, ARGUMENT_TEXT_MAX, "%.100s needs a value", word);
    else if (optopt >= 256) /* a long one that we know */
        snprintf(text, ARGUMENT_TEXT_MAX, "%.100s: this option takes no value", word);
    else if (optopt)
        snprintf(text, ARGUMENT_TEXT_MAX, "unknown option -%c", optopt);
    else
        snprintf(text, ARGUMENT_TEXT_MAX, "unknown option %.100s", word);
    return text;
}

int argument_group_size(const char *text, uint32_t *ret, struct error *e) {
    int r = count_parse_u32(text, 32, 128, ret, e);
    return r == 0 && *ret & (*ret - 1) ? error_set(e, -EINVAL, "%u is none of 32, 64 and 128", *ret) : r;
}
