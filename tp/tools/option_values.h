/* option_values.h - values of options as people type them, for the verbs of shardd-checkpoint: whole numbers and sizes.
 *
 * Each returns 0, or -EINVAL or -ERANGE and leaves *ret alone; the caller says which option it was. */
#pragma once

#include <stdint.h>

/* A decimal number from min to max; no sign, no blanks. */
int option_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret);
int option_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret);
/* "500MB", "2GiB", "1000000": units of 1000 or of 1024, whole numbers above 0. */
int option_bytes(const char *text, uint64_t *ret);
