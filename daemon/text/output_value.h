/* output_value.h - which JSON a tool's parameter becomes, by the tool's schema.
 *
 * Used by output_parser.c. Pure functions. */
#pragma once

#include "daemon/text/buffer.h"

#include <jansson.h>
#include <stdbool.h>

#define VALUE_STRING  1u
#define VALUE_NULL    2u
#define VALUE_BOOLEAN 4u
#define VALUE_INTEGER 8u
#define VALUE_NUMBER  16u
#define VALUE_OBJECT  32u
#define VALUE_ARRAY   64u

/* The types that the schema of this function's parameter allows; VALUE_STRING if nothing is known. tools:
 * array of OpenAI tools ({type, function: {name, parameters}}) or NULL. */
unsigned output_value_types(const json_t *tools, const char *function, size_t function_bytes,
        const char *parameter, size_t parameter_bytes);
/* Appends the JSON of a whole value: of one of the types, or a string. -ENOMEM. */
int output_value_append(struct byte_buffer *out, unsigned types, const char *text, size_t bytes);
