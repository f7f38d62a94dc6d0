/* json_config.h - small configuration files that Python wrote, as jansson values.
 *
 * Called at start-up by whoever reads config.json and its like. Python's json writes what no number of JSON is as NaN,
 * Infinity and -Infinity; here these become the strings of that text, so that they do no harm in a field that nobody
 * asks for, and are of the wrong type in one that somebody needs. */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>

/* The object in text, to be released with json_decref(); at most CONFIG_BYTES_MAX bytes, no key twice in an object.
 * -EFBIG, -EBADMSG; file begins the sentence. */
int json_config_parse(const char *text, size_t bytes, const char *file, json_t **ret, struct error *e);
/* The same with these of jansson's flags for decoding in place of JSON_REJECT_DUPLICATES. */
int json_config_parse_as(
        const char *text, size_t bytes, size_t flags, const char *file, json_t **ret, struct error *e);
/* "an object", "a whole number": what a value is, for sentences. */
const char *json_config_type(const json_t *value);
