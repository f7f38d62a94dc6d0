/* verbs.h - what `shardd VERB` runs. Each takes the words after the verb and returns the exit code. */
#pragma once

#include "launcher/options/options.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,      /* refused, failed, not serving */
    EXIT_USAGE = 2,       /* the command line or the configuration is wrong */
    EXIT_UNREACHABLE = 3, /* no service answers at the address */
    EXIT_INTERRUPTED = 130,
};

int verb_serve(const struct options *o);
int verb_generate(const struct options *o);
int verb_chat(const struct options *o);
int verb_status(const struct options *o);
int verb_doctor(const struct options *o);
int verb_bench(const struct options *o);
