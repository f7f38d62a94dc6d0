/* output_parser.h - splits generated text into reasoning, text and tool calls, as it streams (Qwen3.5
 * syntax).
 *
 * One per stream, used by one thread at a time. Fed with whole-character UTF-8 pieces; emits events as soon
 * as they are certain, and never holds back more than a possible tag or a value whose type is not known yet.
 * How the text was cut into pieces makes no difference, but for where one event ends and the next of its kind
 * begins.
 *
 * Newlines before and after </think>, and white space inside and between tool calls, are syntax and belong to
 * no event. A <think> that is the first thing of all opens reasoning. Malformed tool syntax is never lost: it
 * comes out as text. The pieces of TOOL_ARGUMENTS of a call join to one JSON object; if the stream ends
 * inside a call, there is no TOOL_END and the object stays open. Parameter values are typed by the tool's
 * JSON schema where there is one (integer, number, boolean, null, object, array; else string, as is a value
 * that is not of its type), as peers' qwen3 parsers do. */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct output_parser;

enum output_event_kind {
    OUTPUT_TEXT,
    OUTPUT_REASONING,
    OUTPUT_TOOL_BEGIN,
    OUTPUT_TOOL_ARGUMENTS,
    OUTPUT_TOOL_END
};
struct output_event {
    enum output_event_kind kind;
    const char *data; /* bytes valid during the callback only; TOOL_BEGIN: the function's name */
    size_t bytes;
    uint32_t tool_index;
};
typedef int (*output_event_fn)(void *user, const struct output_event *event); /* < 0 stops and is returned */

/* thinking_open: the text starts inside a think block. parse_tools: tool syntax is looked for. tools: array
 * or NULL, a reference is kept. */
int output_parser_new(bool thinking_open, bool parse_tools, json_t *tools, struct output_parser **ret);
struct output_parser *output_parser_free(struct output_parser *p);
int output_parser_feed(
        struct output_parser *p, const char *text, size_t bytes, output_event_fn fn, void *user);
/* End of the stream: what was held back comes out. */
int output_parser_end(struct output_parser *p, output_event_fn fn, void *user);
bool output_parser_in_reasoning(const struct output_parser *p);
uint32_t output_parser_tool_calls(const struct output_parser *p); /* complete ones so far */
