/* service.h - `shardd bench --serve`: requests to a running service, and what its clients see. Called by bench.c. */
#pragma once

#include "launcher/options/options.h"

int bench_service(const struct options *o); /* an exit code of verbs.h */
