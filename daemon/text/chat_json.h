/* chat_json.h - JSON and values as Python prints them, which is what chat templates were written for.
 *
 * Used by chat_template.c and output_parser.c. The public half is in chat_template.h. */
#pragma once

#include "base/buffer.h"

#include <jansson.h>

/* json.dumps(value, ensure_ascii=False), appended. -ENOMEM. */
int chat_json_append(struct byte_buffer *out, const json_t *value);
int chat_json_append_string(struct byte_buffer *out, const char *text, size_t bytes);
/* str(value) of a string, number, boolean or null, appended; objects and arrays as chat_json_append(). */
int chat_json_append_str(struct byte_buffer *out, const json_t *value);
