/* output_value.h - the tools that were offered, and which JSON a parameter of theirs becomes.
 *
 * Used by output_parser.c and output_tags.c. Pure functions; what they return of tools is borrowed. */
#pragma once

#include "base/buffer.h"

#include <jansson.h>
#include <stdbool.h>

#define VALUE_STRING  1u
#define VALUE_NULL    2u
#define VALUE_BOOLEAN 4u
#define VALUE_INTEGER 8u
#define VALUE_NUMBER  16u /* any number; a schema that says "number" allows integers too */
#define VALUE_OBJECT  32u
#define VALUE_ARRAY   64u

/* A name as the model wrote it: what tools and schemas call it, or, where they know no such name, as it is. */
struct output_name {
    const char *data;
    size_t bytes;
};

/* The offered function of this name ({name, parameters}), or NULL. Quotes and white space around the name are
 * dropped from *name where only that makes it an offered one. tools: array of OpenAI tools ({type, function:
 * {...}}) or NULL. */
const json_t *output_tool_find(const json_t *tools, struct output_name *name);
/* The schema of a parameter of this function, or NULL; *name as above. */
const json_t *output_parameter_find(const json_t *function, struct output_name *name);
/* Can the function be called without any argument? */
bool output_tool_needs_nothing(const json_t *function);
/* The types that the schema of a parameter of this function allows; VALUE_STRING if nothing is known of it. */
unsigned output_value_types(const json_t *function, const json_t *schema);

/* May a text that begins so become a value of another type than string? Only the last byte is new: it was true
 * of the others. */
bool output_value_may_be_other(unsigned types, const char *text, size_t bytes);
/* Is this the whole text of a value of one of the types other than string? */
bool output_value_is_other(unsigned types, const char *text, size_t bytes);
/* Appends the JSON of a whole value: of one of the types, the string last, or a string. -ENOMEM. */
int output_value_append(struct byte_buffer *out, unsigned types, const char *text, size_t bytes);
