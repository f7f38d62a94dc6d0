/* output_machine.h - the inside of the output parser: one machine, its states, and who takes a byte in which.
 *
 * output_parser.c has reasoning and text, the events and what the outside calls; output_call.c has all from the
 * head of a call to its end. Private to these two. */
#pragma once

#include "daemon/text/output_parser.h"
#include "daemon/text/output_tags.h"

enum output_state {
    AT_START, /* nothing came yet but white space */
    IN_REASONING,
    IN_DRAFT,    /* a call inside reasoning: one if the reasoning does not go on */
    AFTER_THINK, /* newlines are passed over */
    IN_TEXT,
    IN_HEAD,      /* from <tool_call> or <function= on */
    IN_FUNCTION,  /* between parameters */
    IN_PARAMETER, /* the name */
    IN_VALUE,
    AFTER_FUNCTION,
    AFTER_CALL, /* white space here is nobody's, if another call follows */
};

enum output_tag {
    TAG_NONE,
    TAG_THINK,
    TAG_END_THINK,
    TAG_CALL,
    TAG_END_CALL,
    TAG_FUNCTION,
    TAG_END_FUNCTION,
    TAG_PARAMETER,
    TAGS
};
extern const char *const output_tag_texts[TAGS];

/* The parameter at hand. */
struct output_value {
    struct byte_buffer text; /* held back while it may be of another type than string */
    unsigned types;          /* that it may still become */
    bool streams;            /* it is a string for sure, its quote is out */
    bool dropped;            /* the call has a parameter of this name already */
    bool begun;              /* the newline after <parameter=...> is behind us, or there was none */
    bool on_lines;           /* there was one, as the template writes it */
    bool line_start;         /* the last byte was a newline, held back or that first one */
    bool newline;            /* held back: the one before the tag is none of the value's */
    bool in_string, escaped; /* of JSON, in a value that begins as an object or array */
    unsigned shown;          /* calls that the value shows and has not closed */
    /* What looked like the end of the call, and what came after. The rest of the value, if it ends once more. */
    struct byte_buffer tail;
    size_t tail_closing; /* bytes of tags that it begins with */
    bool tail_newline;   /* there was one before it */
};

struct output_parser {
    enum output_state state;
    bool thinking_open, reasoning_begun;
    bool end_of_turn; /* the stream ended because the model ended its turn */
    json_t *tools;    /* NULL: no tool syntax is looked for */
    char tag[16];     /* a possible tag */
    size_t n_tag;
    size_t newlines;          /* held back in reasoning */
    struct byte_buffer space; /* white space held back around tool syntax */
    struct byte_buffer ahead; /* IN_HEAD, IN_PARAMETER: all of it; IN_VALUE: from a < on */
    struct byte_buffer draft;
    size_t draft_tag_bytes; /* of the tag that it begins with */
    bool draft_is_call;
    const json_t *function; /* of the call, in tools */
    json_t *given;          /* object: its keys are the call's parameters so far */
    struct output_value value;
    uint32_t n_calls;
    struct byte_buffer out;
    enum output_event_kind out_kind;
    output_event_fn fn;
    void *user;
};

/* output_parser.c. All return 0 or what went wrong. */
int output_take(struct output_parser *p, char c);
/* Takes bytes again that were held back, in the state that is now. They must not be in a buffer of p. */
int output_take_again(struct output_parser *p, const char *data, size_t bytes);
int output_emit(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes);
int output_emit_space(struct output_parser *p); /* white space that was held back is text after all */
int output_prepare(struct output_parser *p, enum output_event_kind kind); /* p->out may be added to */
int output_send(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes);

/* output_call.c */
int output_begin_head(struct output_parser *p, enum output_tag tag);
int output_begin_parameter(struct output_parser *p);
int output_end_function(struct output_parser *p, enum output_state next);
int output_take_in_head(struct output_parser *p, char c);
int output_take_in_parameter(struct output_parser *p, char c);
int output_take_in_value(struct output_parser *p, char c);
/* The stream ended in the middle of something of a call. */
int output_end_call(struct output_parser *p);
