/* pass.h - settings of the shardd command as words of a child's command line. */
#pragma once

#include "launcher/argv.h"
#include "launcher/options/options.h"

/* The setting under its own name: sizes and times in their base unit. */
void pass_value(struct argv *a, const struct option_info *info, const struct option_value *v);
/* Every setting whose row in option_rows.inc says that this child is told. */
void pass_settings(struct argv *a, const struct options *o, enum option_to to);
/* What workers need for speculation: places for drafts, and the model's layer where it may make them. */
void pass_speculation(struct argv *a, const struct options *o);
