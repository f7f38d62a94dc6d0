/* output_parser.h - splits generated text into reasoning, text and tool calls, as it streams (Qwen3.5
 * syntax).
 *
 * One per stream, used by one thread at a time. Fed with whole-character UTF-8 pieces; emits events as soon
 * as they are certain. How the text was cut into pieces makes no difference, but for where one event ends and
 * the next of its kind begins.
 *
 * What the chat template writes for a call in a conversation is read back as the same call. Beyond that, what
 * models are known to leave out is read as if it were there, and what is malformed is never lost and never a
 * call of a tool that was not offered: it comes out as the text that was said, tags and all.
 *
 * Reasoning: a <think> that is the first thing but for white space opens it. Newlines after <think>, before and
 * after </think>, and white space before a first <think> are syntax and belong to no event. A call of an offered
 * tool inside reasoning is held back: if </think> comes it was reasoning; if the stream ends first and a whole
 * call stands there, the reasoning ended before it.
 *
 * Calls: <tool_call> and <function=NAME> of an offered tool, or the latter alone, then a parameter or an end.
 * Quotes around a name are dropped where that makes it a known one. Newlines before a call and white space
 * inside and between calls belong to no event. Text between the parameters of a call comes out as text.
 *
 * Values: which tag ends one is told in output_call.c. Two readings of the template's own text are possible
 * where a string has, on lines of their own, </parameter> and <parameter=NAME> (read as the next parameter), or
 * all tags that end a call and then the head of another call (read as that call), or the head of a call of its
 * own and those tags (read as part of the string). A value is typed by the tool's JSON schema ($ref, allOf, anyOf,
 * oneOf, const, enum and keywords of one type are followed): of several types the most special that fits, a
 * string last; null and None are null where the schema has null or has no string. A value of none of its types
 * is a string. Of a parameter that comes twice the first counts.
 *
 * The pieces of TOOL_ARGUMENTS of a call join to one JSON object with each key once. If the model ends its turn
 * inside a call, what is complete counts: a call with a complete parameter, or of a function without required
 * ones, is closed; else there is no TOOL_END and the object stays open.
 *
 * Held back are: a possible tag; white space that may be syntax; a head up to its first parameter; a value while
 * it may be of another type than string; what follows the tags that end a call after a string, if it is
 * neither white space nor a call, until it is sure that the string ended there; a call in reasoning. */
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

/* thinking_open: the text starts inside a think block. tools: array of those offered, or NULL: no tool syntax is
 * looked for; a reference is kept. */
int output_parser_new(bool thinking_open, json_t *tools, struct output_parser **ret);
struct output_parser *output_parser_free(struct output_parser *p);
int output_parser_feed(
        struct output_parser *p, const char *text, size_t bytes, output_event_fn fn, void *user);
/* End of the stream: what was held back comes out. end_of_turn: the model said so (a stop id), it was not cut. */
int output_parser_end(struct output_parser *p, bool end_of_turn, output_event_fn fn, void *user);
/* Is this the text of a token of thinking or tools (<think>, <tool_call> and their ends)? Such a token has to reach
 * the parser, be it special to the tokenizer or not. */
bool output_parser_is_tag(const char *text, size_t bytes);
bool output_parser_in_reasoning(const struct output_parser *p);
uint32_t output_parser_tool_calls(const struct output_parser *p); /* complete ones so far */
