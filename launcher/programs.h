/* programs.h - where the other programs of shardd are. */
#pragma once

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>

/* Full path of program `name`: in libexec_dir if that is given, else beside this program, else in
 * ../libexec/shardd from it. -ENOENT with a sentence that names the places. */
int program_find(const char *name, const char *libexec_dir, char ret_path[PATH_MAX], struct error *e);
/* Path of this program itself. */
int program_self(char ret_path[PATH_MAX], struct error *e);
