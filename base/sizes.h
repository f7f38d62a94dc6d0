/* sizes.h - numbers of things and of bytes as people type and read them; one meaning in every program and verb.
 *
 * A size is digits, or digits with a decimal fraction, and a unit, without a blank between them: "1000000", "512MiB",
 * "1.5GB". kB (KB), MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB are powers of 1024, and so are the bare letters
 * K, M, G, T (as in head -c and dd). What is printed follows the same rule: "GB" is 10^9 bytes everywhere.
 *
 * Used by the command lines of all programs. The refusals are half a sentence, "'4 GB' is no size: ...": the caller
 * puts the name of the flag in front with error_prefix(). Nothing is stored on failure. */
#pragma once

#include "base/error.h"

#include <stdint.h>

/* A whole number from min to max: digits only, no sign, no blank. -EINVAL, -ERANGE. */
int count_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *e);
int count_parse_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret, struct error *e);

/* Bytes, min to max. A fraction needs a unit ("1.5GB"); what it leaves below a byte is dropped. -EINVAL, -ERANGE. */
int size_parse(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *e);

/* As above, or a part of something: a number with a decimal point and no unit, above 0 and at most 1 ("0.5", "1.0").
 * *ret_part is 0 for bytes, and *ret_bytes 0 for a part. */
int size_or_part_parse(
        const char *text, uint64_t max, uint64_t *ret_bytes, double *ret_part, struct error *e);

#define SIZE_TEXT_MAX 24

/* "7 bytes", "1.50 MB", "64.0 GB", "512 kB": three digits that matter, units of 1000. Returns `to`. */
const char *size_print(uint64_t bytes, char to[SIZE_TEXT_MAX]);
/* The same in the unit of another size, without it: "1.50" of 12.3 GB. For "1.50 of 12.3 GB". */
const char *size_print_as(uint64_t bytes, uint64_t other, char to[SIZE_TEXT_MAX]);
/* For the arguments of a printf: lives until the end of the block around it. */
#define SIZE_TEXT(bytes) size_print((bytes), (char[SIZE_TEXT_MAX]){0})
