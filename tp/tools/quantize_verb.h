/* quantize_verb.h - the verb `quantize` of shardd-checkpoint. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define QUANTIZE_FD_PATH_MAX 64u

/* argv[0] is the verb. Returns the exit status. */
int run_quantize(int argc, char **argv);
/* Where *path is a file of text or of messages, puts the path of its ids in ret_path's place; NULL stays NULL. */
int quantize_ids_of(
        const char *model, const char **path, char ret_path[QUANTIZE_FD_PATH_MAX], struct error *e);
