/* output_tags.h - the tags of tool calls, read ahead: is this the beginning of a call, or the end of a value?
 *
 * Used by output_parser.c, which gives the same text again with one byte more until the answer is not
 * TAGS_MORE. Pure functions; results point into the text and into tools. */
#pragma once

#include "daemon/text/output_value.h"

/* Tags and white space that are read ahead: more than that is no syntax, so no text is held back for long. */
#define TAGS_BYTES_MAX 1024u
#define NAME_BYTES_MAX 256u /* of a function or a parameter */

enum tags_ahead {
    TAGS_MORE,      /* all so far may be syntax */
    TAGS_END,       /* the stream ended there */
    TAGS_PARAMETER, /* <parameter=NAME> */
    TAGS_CALL,      /* [<tool_call>] <function=NAME> of an offered function */
    TAGS_OTHER
};

/* <tool_call> and <function=NAME>, or the latter alone; white space between. */
struct tags_opening {
    enum tags_ahead ahead;   /* MORE, CALL or OTHER */
    const json_t *function;  /* of CALL */
    struct output_name name; /* as the tool has it */
    size_t bytes;            /* to the end of the function's tag; 0: there is none, of whatever name */
    bool wrapped;            /* <tool_call> was there */
};
struct tags_opening tags_read_opening(const char *text, size_t bytes, const json_t *tools);

/* The same with what follows it: a call goes on with a parameter or ends; anything else is prose that shows
 * the syntax. TAGS_END: all of it was there, and the stream ended. */
struct tags_opening tags_read_head(const char *text, size_t bytes, bool ended, const json_t *tools);

#define TAGS_END_PARAMETER 1u
#define TAGS_END_FUNCTION  2u
#define TAGS_END_CALL      4u

/* </parameter>, </function>, </tool_call>, each there or not, in this order, white space between; and what
 * follows them. */
struct tags_closing {
    enum tags_ahead ahead;
    unsigned tags;           /* which of them */
    size_t first_bytes;      /* of the first */
    size_t bytes;            /* to the end of the last */
    bool newline;            /* white space before what follows has a newline */
    struct output_name name; /* of TAGS_PARAMETER */
};
struct tags_closing tags_read_closing(const char *text, size_t bytes, bool ended, const json_t *tools);
