/* A machine that takes one byte at a time. '<' begins a possible tag, which is held back while it is the
 * beginning of one that the state knows; what turns out to be none is taken as ordinary bytes. Ordinary bytes
 * gather in out and go to the caller when the kind of event changes and at the end of each piece. */
#include "daemon/text/output_parser.h"

#include "daemon/text/chat_json.h"
#include "daemon/text/output_value.h"

#define NAME_BYTES_MAX 256u  /* of a function or a parameter */
#define HEAD_BYTES_MAX 1024u /* from <tool_call> to the end of the function's name, white space included */

enum state {
    AT_START, /* nothing came yet */
    IN_REASONING,
    AFTER_THINK, /* newlines are passed over */
    IN_TEXT,
    IN_HEAD,      /* after <tool_call>, up to the > of <function=NAME> */
    IN_FUNCTION,  /* between parameters */
    IN_PARAMETER, /* the name */
    IN_VALUE,
    AFTER_FUNCTION,
    AFTER_CALL, /* white space here is nobody's, if another call follows */
};

enum tag {
    TAG_NONE,
    TAG_THINK,
    TAG_END_THINK,
    TAG_CALL,
    TAG_END_CALL,
    TAG_FUNCTION,
    TAG_END_FUNCTION,
    TAG_PARAMETER,
    TAG_END_PARAMETER,
    TAGS
};
static const char *const tag_texts[TAGS] = {"", "<think>", "</think>", "<tool_call>", "</tool_call>",
        "<function=", "</function>", "<parameter=", "</parameter>"};

#define BIT(tag) (1u << (tag))
static const unsigned known_tags[] = {
        [AT_START] = BIT(TAG_THINK),
        [IN_REASONING] = BIT(TAG_END_THINK),
        [AFTER_THINK] = 0,
        [IN_TEXT] = BIT(TAG_CALL),
        [IN_HEAD] = 0,
        [IN_FUNCTION] = BIT(TAG_PARAMETER) | BIT(TAG_END_FUNCTION) | BIT(TAG_END_CALL),
        [IN_PARAMETER] = 0,
        [IN_VALUE] = BIT(TAG_END_PARAMETER) | BIT(TAG_PARAMETER) | BIT(TAG_END_FUNCTION) | BIT(TAG_END_CALL),
        [AFTER_FUNCTION] = BIT(TAG_END_CALL) | BIT(TAG_FUNCTION) | BIT(TAG_CALL),
        [AFTER_CALL] = BIT(TAG_CALL),
};

struct output_parser {
    enum state state;
    bool thinking_open, parse_tools;
    json_t *tools;
    char tag[16]; /* a possible tag */
    size_t n_tag;
    size_t newlines;             /* held back in reasoning; in a value 0 or 1 */
    struct byte_buffer space;    /* held back around tool syntax */
    struct byte_buffer head;     /* the text of an unfinished IN_HEAD or IN_PARAMETER */
    struct byte_buffer function; /* name */
    struct byte_buffer value;    /* held back until its type is sure */
    unsigned types;              /* of the value */
    bool streams;                /* the value is a string for sure, its quote is out */
    bool value_begun;            /* the newline after <parameter=...> is behind us */
    bool line_start;             /* the value's last byte was a newline, held back or that first one */
    uint32_t n_parameters;       /* of the function */
    uint32_t n_calls;
    struct byte_buffer out;
    enum output_event_kind out_kind;
    output_event_fn fn;
    void *user;
};

int output_parser_new(bool thinking_open, bool parse_tools, json_t *tools, struct output_parser **ret) {
    struct output_parser *p = calloc(1, sizeof(*p));
    if (!p)
        return -ENOMEM;
    p->thinking_open = thinking_open;
    p->parse_tools = parse_tools;
    p->tools = json_incref(tools);
    *ret = p;
    return 0;
}

struct output_parser *output_parser_free(struct output_parser *p) {
    if (!p)
        return NULL;
    json_decref(p->tools);
    free(p->space.data);
    free(p->head.data);
    free(p->function.data);
    free(p->value.data);
    free(p->out.data);
    free(p);
    return NULL;
}

bool output_parser_in_reasoning(const struct output_parser *p) {
    return p->state == IN_REASONING || (p->state == AT_START && p->thinking_open);
}

uint32_t output_parser_tool_calls(const struct output_parser *p) {
    return p->n_calls;
}

/* --- events --- */

static int send_event(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes) {
    struct output_event event = {kind, data, bytes, p->n_calls};
    int r = p->fn(p->user, &event);
    return r < 0 ? r : 0;
}

static int flush(struct output_parser *p) {
    if (p->out.n == 0)
        return 0;
    int r = send_event(p, p->out_kind, p->out.data, p->out.n);
    p->out.n = 0;
    return r;
}

static int prepare(struct output_parser *p, enum output_event_kind kind) {
    int r = p->out_kind == kind ? 0 : flush(p);
    p->out_kind = kind;
    return r;
}

static int emit(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes) {
    int r = prepare(p, kind);
    return r < 0 ? r : byte_buffer_add(&p->out, data, bytes);
}

static int emit_arguments(struct output_parser *p, const char *text) {
    return emit(p, OUTPUT_TOOL_ARGUMENTS, text, strlen(text));
}

/* Bytes inside a JSON string. */
static int emit_escaped(struct output_parser *p, const char *data, size_t bytes) {
    int r = prepare(p, OUTPUT_TOOL_ARGUMENTS);
    size_t before = p->out.n;
    if (r >= 0)
        r = chat_json_append_string(&p->out, data, bytes);
    if (r < 0)
        return r;
    p->out.n -= 2; /* without the quotes */
    memmove(p->out.data + before, p->out.data + before + 1, p->out.n - before);
    return 0;
}

static int emit_newlines(struct output_parser *p, enum output_event_kind kind) {
    int r = 0;
    for (; p->newlines > 0 && r >= 0; p->newlines--)
        r = emit(p, kind, "\n", 1);
    return r;
}

static int emit_space(struct output_parser *p) {
    int r = emit(p, OUTPUT_TEXT, p->space.data, p->space.n);
    p->space.n = 0;
    return r;
}

/* --- functions and their parameters --- */

static int begin_head(struct output_parser *p, const char *text) {
    p->state = IN_HEAD;
    p->head.n = 0;
    p->space.n = 0;
    return byte_buffer_text(&p->head, text);
}

static int begin_parameter(struct output_parser *p) {
    p->state = IN_PARAMETER;
    p->head.n = 0;
    p->space.n = 0;
    return byte_buffer_text(&p->head, tag_texts[TAG_PARAMETER]);
}

static int begin_function(struct output_parser *p, const char *name, size_t bytes) {
    p->function.n = 0;
    p->n_parameters = 0;
    p->state = IN_FUNCTION;
    int r = byte_buffer_add(&p->function, name, bytes);
    if (r >= 0)
        r = flush(p);
    if (r >= 0)
        r = send_event(p, OUTPUT_TOOL_BEGIN, p->function.data, p->function.n);
    return r < 0 ? r : emit_arguments(p, "{");
}

static int end_function(struct output_parser *p, enum state next) {
    p->state = next;
    p->space.n = 0;
    int r = emit_arguments(p, "}");
    if (r >= 0)
        r = flush(p);
    if (r >= 0)
        r = send_event(p, OUTPUT_TOOL_END, "", 0);
    p->n_calls++;
    return r;
}

static int begin_value(struct output_parser *p, const char *name, size_t bytes) {
    p->state = IN_VALUE;
    p->newlines = 0;
    p->value.n = 0;
    p->value_begun = p->line_start = false;
    p->types = output_value_types(p->tools, p->function.data, p->function.n, name, bytes);
    p->streams = p->types & VALUE_STRING && !(p->types & VALUE_NULL);
    int r = p->n_parameters++ > 0 ? emit_arguments(p, ", ") : 0;
    if (r >= 0)
        r = prepare(p, OUTPUT_TOOL_ARGUMENTS);
    if (r >= 0)
        r = chat_json_append_string(&p->out, name, bytes);
    return r < 0 ? r : emit_arguments(p, p->streams ? ": \"" : ": ");
}

/* The value is a string: what was held back of it comes out. */
static int stream_value(struct output_parser *p) {
    p->streams = true;
    int r = emit_arguments(p, "\"");
    return r < 0 || p->value.n == 0 ? r : emit_escaped(p, p->value.data, p->value.n);
}

static int add_to_value(struct output_parser *p, const char *data, size_t bytes) {
    if (p->streams)
        return emit_escaped(p, data, bytes);
    int r = byte_buffer_add(&p->value, data, bytes);
    if (r < 0 || !(p->types & VALUE_STRING))
        return r;
    bool may_be_null = p->value.n <= 4 && memcmp(p->value.data, "null", p->value.n) == 0;
    return may_be_null ? 0 : stream_value(p);
}

static int end_value(struct output_parser *p) {
    p->state = IN_FUNCTION;
    p->newlines = 0; /* the one before the tag */
    if (p->streams)
        return emit_arguments(p, "\"");
    int r = prepare(p, OUTPUT_TOOL_ARGUMENTS);
    return r < 0 ? r : output_value_append(&p->out, p->types, p->value.n ? p->value.data : "", p->value.n);
}

/* --- one byte --- */

static int take(struct output_parser *p, char c);

/* Takes bytes again that were held back, in the state that is now. */
static int take_again(struct output_parser *p, const char *data, size_t bytes) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = take(p, data[i]);
    return r;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* A byte of no tag. */
static int take_ordinary(struct output_parser *p, char c) {
    int r = 0;
    switch (p->state) {
    case IN_REASONING:
        if (c == '\n') {
            p->newlines++;
            return 0;
        }
        r = emit_newlines(p, OUTPUT_REASONING);
        return r < 0 ? r : emit(p, OUTPUT_REASONING, &c, 1);
    case IN_VALUE:
        p->line_start = c == '\n';
        if (!p->value_begun) {
            p->value_begun = true;
            if (c == '\n')
                return 0;
        }
        if (p->newlines > 0)
            r = add_to_value(p, "\n", 1);
        p->newlines = c == '\n';
        return r < 0 || c == '\n' ? r : add_to_value(p, &c, 1);
    case IN_FUNCTION:
    case AFTER_FUNCTION:
    case AFTER_CALL:
        if (is_space(c))
            return byte_buffer_add(&p->space, &c, 1);
        r = emit_space(p);
        if (p->state != IN_FUNCTION)
            p->state = IN_TEXT;
        return r < 0 ? r : emit(p, OUTPUT_TEXT, &c, 1);
    default:
        return emit(p, OUTPUT_TEXT, &c, 1);
    }
}

static int take_all_ordinary(struct output_parser *p, const char *data, size_t bytes) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = take_ordinary(p, data[i]);
    return r;
}

/* A whole tag that the state knows. In a value, the tags that may follow it end it only at the start of a
 * line: the model has left </parameter> out. */
static int take_tag(struct output_parser *p, enum tag tag) {
    int r = 0;
    if (p->state == IN_VALUE) {
        if (tag != TAG_END_PARAMETER && !p->line_start)
            return take_all_ordinary(p, tag_texts[tag], strlen(tag_texts[tag]));
        r = end_value(p);
        if (r < 0 || tag == TAG_END_PARAMETER)
            return r;
    }
    switch (tag) {
    case TAG_THINK:
        p->state = IN_REASONING;
        p->thinking_open = true;
        return 0;
    case TAG_END_THINK:
        p->newlines = 0;
        p->state = AFTER_THINK;
        return 0;
    case TAG_CALL:
    case TAG_FUNCTION:
        return begin_head(p, tag_texts[tag]);
    case TAG_PARAMETER:
        return begin_parameter(p);
    case TAG_END_FUNCTION:
        return end_function(p, AFTER_FUNCTION);
    default: /* TAG_END_CALL */
        if (p->state == IN_FUNCTION)
            return end_function(p, AFTER_CALL);
        p->state = AFTER_CALL;
        p->space.n = 0;
        return 0;
    }
}

/* Is what was gathered the beginning of a tag that the state knows, or all of one? */
static bool match_tag(const struct output_parser *p, unsigned known, enum tag *ret) {
    bool begins = false;
    *ret = TAG_NONE;
    for (enum tag tag = TAG_THINK; tag < TAGS; tag++) {
        if (!(known & BIT(tag)) || strncmp(tag_texts[tag], p->tag, p->n_tag) != 0)
            continue;
        begins = true;
        if (tag_texts[tag][p->n_tag] == 0)
            *ret = tag;
    }
    return begins;
}

static bool is_name_byte(char c) {
    return c != '<' && c != '>' && (unsigned char)c >= 0x20;
}

/* Where the head can be read no further: what begins it was text after all. */
static int give_head_up(struct output_parser *p) {
    struct byte_buffer head = p->head;
    size_t opening = strcspn(head.data, ">=") + 1; /* <tool_call> or <function= */
    p->head = (struct byte_buffer){0};
    p->state = IN_TEXT;
    int r = emit(p, OUTPUT_TEXT, head.data, opening);
    if (r >= 0)
        r = take_again(p, head.data + opening, head.n - opening);
    free(head.data);
    return r;
}

/* <tool_call>, white space, <function=NAME>; or from <function= on. */
static int take_in_head(struct output_parser *p, char c) {
    static const char function[] = "<function=";
    const size_t function_bytes = sizeof(function) - 1;
    int r = byte_buffer_add(&p->head, &c, 1);
    if (r < 0)
        return r;
    const char *data = p->head.data;
    size_t at = data[1] == 't' ? strlen(tag_texts[TAG_CALL]) : 0, n = p->head.n;
    while (at < n && is_space(data[at]))
        at++;
    size_t left = n - at, compared = left < function_bytes ? left : function_bytes;
    if (n > HEAD_BYTES_MAX || memcmp(data + at, function, compared) != 0)
        return give_head_up(p);
    if (left <= function_bytes)
        return 0;
    size_t name = left - function_bytes - 1; /* without c */
    if (c == '>' && name > 0)
        return begin_function(p, data + at + function_bytes, name);
    return is_name_byte(c) && name < NAME_BYTES_MAX ? 0 : give_head_up(p);
}

/* NAME> of <parameter=NAME> */
static int take_in_parameter(struct output_parser *p, char c) {
    size_t opening = strlen(tag_texts[TAG_PARAMETER]), name = p->head.n - opening;
    if (c == '>' && name > 0)
        return begin_value(p, p->head.data + opening, name);
    if (is_name_byte(c) && name < NAME_BYTES_MAX)
        return byte_buffer_add(&p->head, &c, 1);
    p->state = IN_FUNCTION;
    int r = emit(p, OUTPUT_TEXT, p->head.data, p->head.n);
    return r < 0 ? r : take(p, c);
}

static int take(struct output_parser *p, char c) {
    enum tag tag;
    if (p->state == IN_HEAD)
        return take_in_head(p, c);
    if (p->state == IN_PARAMETER)
        return take_in_parameter(p, c);
    if (p->state == AFTER_THINK) {
        if (c == '\n')
            return 0;
        p->state = IN_TEXT;
    }
    if (p->n_tag == 0 && c != '<') {
        if (p->state == AT_START)
            p->state = p->thinking_open ? IN_REASONING : IN_TEXT;
        return take_ordinary(p, c);
    }
    unsigned known = p->parse_tools || p->state != IN_TEXT ? known_tags[p->state] : 0;
    p->tag[p->n_tag++] = c;
    if (match_tag(p, known, &tag)) {
        if (tag == TAG_NONE)
            return 0;
        p->n_tag = 0;
        return take_tag(p, tag);
    }
    /* Only its first byte can be a '<', but for c: the bytes before c are ordinary. */
    size_t before = p->n_tag - 1;
    p->n_tag = 0;
    if (p->state == AT_START) {
        p->state = p->thinking_open ? IN_REASONING : IN_TEXT;
        char held[sizeof(p->tag)];
        memcpy(held, p->tag, before);
        int r = take_again(p, held, before);
        return r < 0 ? r : take(p, c);
    }
    if (before == 0)
        return take_ordinary(p, c);
    int r = take_all_ordinary(p, p->tag, before);
    return r < 0 ? r : take(p, c);
}

int output_parser_feed(
        struct output_parser *p, const char *text, size_t bytes, output_event_fn fn, void *user) {
    int r = 0;
    p->fn = fn;
    p->user = user;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = take(p, text[i]);
    return r < 0 ? r : flush(p);
}

int output_parser_end(struct output_parser *p, output_event_fn fn, void *user) {
    int r = 0;
    p->fn = fn;
    p->user = user;
    if (p->state == AT_START)
        p->state = p->thinking_open ? IN_REASONING : IN_TEXT;
    if (p->state == IN_HEAD || p->state == IN_PARAMETER) {
        r = emit(p, OUTPUT_TEXT, p->head.data, p->head.n);
        p->state = IN_TEXT;
    }
    if (r >= 0)
        r = take_all_ordinary(p, p->tag, p->n_tag);
    p->n_tag = 0;
    if (r >= 0 && p->state == IN_REASONING)
        r = emit_newlines(p, OUTPUT_REASONING);
    if (r >= 0 && p->state == IN_VALUE && p->newlines > 0)
        r = add_to_value(p, "\n", 1);
    if (r >= 0 && p->state == IN_VALUE && !p->streams)
        r = stream_value(p);
    return r < 0 ? r : flush(p);
}
