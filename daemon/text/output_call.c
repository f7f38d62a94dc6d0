/* The half of the output parser that reads calls; see output_machine.h.
 *
 * A call begins only where its head names an offered function and is followed by a parameter or its end; until
 * then all of it is held back, for it may be prose.
 *
 * Where a value ends is the question of this file. The chat template writes
 *
 *     <parameter=NAME> newline VALUE newline </parameter> newline
 *
 * with VALUE as it is, tags and all, so a tag ends a value only by what follows it:
 *   - </parameter> and the next <parameter=NAME>, on a line of its own if the value was: the end;
 *   - one or more closing tags and then the end of the stream or the next call: the end;
 *   - one closing tag and then anything else: part of the value;
 *   - more of them and then anything else: that may be text after the call, or a value that shows a call. Held
 *     back until another such end comes (the value went on) or the stream ends or another call begins (it did
 *     not). A value that showed the beginning of a call has to show its end first;
 *   - a value that cannot be a string ends where it is whole JSON. Inside its strings there are no tags;
 *   - </parameter> left out: <parameter=NAME> at the start of a line, of a parameter that the function has and
 *     the call has not yet, and on a line of its own if the value was. */
#include "daemon/text/output_machine.h"

#include "daemon/text/chat_json.h"

static int emit_arguments(struct output_parser *p, const char *text) {
    return output_emit(p, OUTPUT_TOOL_ARGUMENTS, text, strlen(text));
}

/* What is read ahead, to be taken again: p->ahead is empty afterwards; free() the data. */
static struct byte_buffer take_ahead(struct output_parser *p) {
    struct byte_buffer ahead = p->ahead;
    p->ahead = (struct byte_buffer){0};
    return ahead;
}

/* --- heads and functions --- */

int output_begin_head(struct output_parser *p, enum output_tag tag) {
    p->state = IN_HEAD;
    p->ahead.n = 0;
    return byte_buffer_text(&p->ahead, output_tag_texts[tag]);
}

static int begin_function(struct output_parser *p, const struct tags_opening *o) {
    json_t *given = json_object();
    if (!given)
        return -ENOMEM;
    json_decref(p->given);
    p->given = given;
    p->function = o->function;
    p->space.n = 0;
    p->state = IN_FUNCTION;
    int r = output_send(p, OUTPUT_TOOL_BEGIN, o->name.data, o->name.bytes);
    return r < 0 ? r : emit_arguments(p, "{");
}

int output_end_function(struct output_parser *p, enum output_state next) {
    p->state = next;
    p->space.n = 0;
    int r = emit_arguments(p, "}");
    if (r >= 0)
        r = output_send(p, OUTPUT_TOOL_END, "", 0);
    p->n_calls++;
    return r;
}

/* The head can be read no further: what begins it was text after all. */
static int give_head_up(struct output_parser *p) {
    struct byte_buffer head = take_ahead(p);
    size_t opening = strcspn(head.data, ">=") + 1; /* <tool_call> or <function= */
    p->state = IN_TEXT;
    int r = output_emit_space(p);
    if (r >= 0)
        r = output_emit(p, OUTPUT_TEXT, head.data, opening);
    if (r >= 0)
        r = output_take_again(p, head.data + opening, head.n - opening);
    free(head.data);
    return r;
}

static int judge_head(struct output_parser *p, bool ended) {
    struct tags_opening o = tags_read_head(p->ahead.data, p->ahead.n, ended, p->tools);
    if (o.ahead == TAGS_MORE)
        return 0;
    /* a head and nothing more: a call, if the model says that it is done and the function asks for nothing */
    bool is_call = o.ahead == TAGS_CALL ||
                   (o.ahead == TAGS_END && p->end_of_turn && output_tool_needs_nothing(o.function));
    if (!is_call)
        return give_head_up(p);
    struct byte_buffer head = take_ahead(p);
    int r = begin_function(p, &o); /* the name may be in the head */
    if (r >= 0)
        r = output_take_again(p, head.data + o.bytes, head.n - o.bytes);
    free(head.data);
    return r;
}

int output_take_in_head(struct output_parser *p, char c) {
    int r = byte_buffer_add(&p->ahead, &c, 1);
    return r < 0 ? r : judge_head(p, /* ended= */ false);
}

/* --- parameters --- */

int output_begin_parameter(struct output_parser *p) {
    p->state = IN_PARAMETER;
    p->ahead.n = 0;
    p->space.n = 0;
    return byte_buffer_text(&p->ahead, output_tag_texts[TAG_PARAMETER]);
}

static int begin_value(struct output_parser *p, struct output_name name) {
    struct output_value *v = &p->value;
    const json_t *schema = output_parameter_find(p->function, &name);
    unsigned types = output_value_types(p->function, schema);
    v->text.n = v->tail.n = 0;
    *v = (struct output_value){.text = v->text,
            .tail = v->tail,
            .types = types,
            .streams = !output_value_may_be_other(types, "", 0),
            .dropped = json_object_getn(p->given, name.data, name.bytes) != NULL};
    p->state = IN_VALUE;
    if (v->dropped) /* the first one is out already */
        return 0;
    int r = json_object_size(p->given) > 0 ? emit_arguments(p, ", ")
                                           : output_prepare(p, OUTPUT_TOOL_ARGUMENTS);
    if (r >= 0 && json_object_setn_new_nocheck(p->given, name.data, name.bytes, json_true()) < 0)
        r = -ENOMEM;
    if (r >= 0)
        r = chat_json_append_string(&p->out, name.data, name.bytes);
    return r < 0 ? r : emit_arguments(p, v->streams ? ": \"" : ": ");
}

/* NAME> of <parameter=NAME> */
int output_take_in_parameter(struct output_parser *p, char c) {
    size_t opening = strlen(output_tag_texts[TAG_PARAMETER]), bytes = p->ahead.n - opening;
    if (c == '>' && bytes > 0) {
        struct byte_buffer ahead = take_ahead(p);
        int r = begin_value(p, (struct output_name){ahead.data + opening, bytes});
        free(ahead.data);
        return r;
    }
    if (c != '<' && c != '>' && (unsigned char)c >= 0x20 && bytes < NAME_BYTES_MAX)
        return byte_buffer_add(&p->ahead, &c, 1);
    p->state = IN_FUNCTION;
    int r = output_emit(p, OUTPUT_TEXT, p->ahead.data, p->ahead.n);
    p->ahead.n = 0;
    return r < 0 ? r : output_take(p, c);
}

/* --- the bytes of a value --- */

/* Bytes inside a JSON string. */
static int emit_escaped(struct output_parser *p, const char *data, size_t bytes) {
    int r = output_prepare(p, OUTPUT_TOOL_ARGUMENTS);
    size_t before = p->out.n;
    if (r >= 0)
        r = chat_json_append_string(&p->out, data, bytes);
    if (r < 0)
        return r;
    p->out.n -= 2; /* without the quotes */
    memmove(p->out.data + before, p->out.data + before + 1, p->out.n - before);
    return 0;
}

/* The value is a string: what was held back of it comes out. */
static int stream_value(struct output_parser *p) {
    struct output_value *v = &p->value;
    v->streams = true;
    if (v->dropped)
        return 0;
    int r = emit_arguments(p, "\"");
    return r < 0 || v->text.n == 0 ? r : emit_escaped(p, v->text.data, v->text.n);
}

/* Where JSON's strings begin and end; a line that ends in one makes it no JSON. */
static void follow_json(struct output_value *v, char c) {
    bool escaped = v->escaped;
    v->escaped = v->in_string && c == '\\' && !escaped;
    if (v->in_string ? c == '\n' || (c == '"' && !escaped) : c == '"')
        v->in_string = !v->in_string;
}

static int add_to_value(struct output_parser *p, char c) {
    struct output_value *v = &p->value;
    if (v->streams)
        return v->dropped ? 0 : emit_escaped(p, &c, 1);
    int r = byte_buffer_add(&v->text, &c, 1);
    follow_json(v, c);
    return r < 0 || output_value_may_be_other(v->types, v->text.data, v->text.n) ? r : stream_value(p);
}

/* A byte that is no syntax. */
static int take_content(struct output_parser *p, char c) {
    struct output_value *v = &p->value;
    bool first = !v->begun;
    v->begun = true;
    v->line_start = c == '\n';
    if (first && c == '\n') {
        v->on_lines = true;
        return 0;
    }
    if (v->tail.n > 0)
        return byte_buffer_add(&v->tail, &c, 1);
    int r = v->newline ? add_to_value(p, '\n') : 0;
    v->newline = c == '\n';
    return r < 0 || c == '\n' ? r : add_to_value(p, c);
}

static int take_all_content(struct output_parser *p, const char *data, size_t bytes) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = take_content(p, data[i]);
    return r;
}

static int end_value(struct output_parser *p) {
    struct output_value *v = &p->value;
    p->state = IN_FUNCTION;
    if (v->dropped)
        return 0;
    if (v->streams)
        return emit_arguments(p, "\"");
    int r = output_prepare(p, OUTPUT_TOOL_ARGUMENTS);
    return r < 0 ? r : output_value_append(&p->out, v->types, v->text.n ? v->text.data : "", v->text.n);
}

/* --- the tail --- */

static struct byte_buffer take_tail(struct output_value *v) {
    struct byte_buffer tail = v->tail;
    v->tail = (struct byte_buffer){0};
    return tail;
}

/* It was not the end. */
static int tail_is_content(struct output_parser *p) {
    struct output_value *v = &p->value;
    struct byte_buffer tail = take_tail(v);
    int r = 0;
    if (tail.n > 0) {
        v->newline = v->tail_newline;
        r = take_all_content(p, tail.data, tail.n);
    }
    free(tail.data);
    return r;
}

/* It was the end, and text came after it. */
static int tail_is_text(struct output_parser *p) {
    struct byte_buffer tail = take_tail(&p->value);
    int r = end_value(p);
    if (r >= 0)
        r = output_end_function(p, AFTER_CALL);
    if (r >= 0)
        r = output_take_again(p, tail.data + p->value.tail_closing, tail.n - p->value.tail_closing);
    free(tail.data);
    return r;
}

/* --- where it ends --- */

enum verdict {
    VERDICT_MORE,
    VERDICT_CONTENT, /* as far as the tags go */
    VERDICT_END,
    VERDICT_TAIL,     /* the end, if it does not come again */
    VERDICT_NEXT_CALL /* what the tail began with was the end */
};

/* A value that is no string ends where it is whole; at the latest then it is known to be one. */
static enum verdict judge_other(struct output_parser *p, const struct tags_closing *c, bool ended, int *r) {
    struct output_value *v = &p->value;
    if (c->first_bytes == 0 && c->ahead != TAGS_PARAMETER)
        return c->ahead == TAGS_MORE ? VERDICT_MORE : VERDICT_CONTENT;
    if (v->in_string) {
        if (c->first_bytes == p->ahead.n && !ended)
            return VERDICT_MORE;
        if (c->first_bytes < p->ahead.n && p->ahead.data[c->first_bytes] != '\n')
            return VERDICT_CONTENT;
    }
    if (output_value_is_other(v->types, v->text.n ? v->text.data : "", v->text.n))
        return VERDICT_END;
    *r = stream_value(p);
    return VERDICT_MORE;
}

/* <parameter=NAME>, </parameter> before it or left out. */
static enum verdict judge_parameter(struct output_parser *p, const struct tags_closing *c, bool ended) {
    const struct output_value *v = &p->value;
    struct output_name name = c->name;
    if (v->shown > 0)
        return VERDICT_CONTENT;
    if (c->tags == TAGS_END_PARAMETER)
        return c->newline || !v->on_lines ? VERDICT_END : VERDICT_CONTENT;
    static const char nothing[] = "\n</parameter>"; /* nobody leaves a tag out before an empty value */
    const char *after = name.data + name.bytes + 1;
    size_t bytes = (size_t)(p->ahead.data + p->ahead.n - after);
    bool left_out = !c->tags && v->line_start && v->tail.n == 0 &&
                    output_parameter_find(p->function, &name) &&
                    !json_object_getn(p->given, name.data, name.bytes);
    if (!left_out || ended || !v->on_lines)
        return left_out ? VERDICT_END : VERDICT_CONTENT;
    size_t compared = bytes < strlen(nothing) ? bytes : strlen(nothing);
    if (memcmp(after, nothing, compared) == 0)
        return bytes < strlen(nothing) ? VERDICT_MORE : VERDICT_CONTENT;
    return *after == '\n' ? VERDICT_END : VERDICT_CONTENT;
}

/* The head of a call behind what may be the end of this one, and text: does it go on as a call? */
static enum verdict judge_next_call(const struct output_parser *p, bool ended) {
    enum tags_ahead ahead = tags_read_head(p->ahead.data, p->ahead.n, ended, p->tools).ahead;
    return ahead == TAGS_MORE ? VERDICT_MORE : ahead == TAGS_CALL ? VERDICT_NEXT_CALL : VERDICT_CONTENT;
}

static enum verdict judge_string(struct output_parser *p, const struct tags_closing *c, bool ended) {
    const struct output_value *v = &p->value;
    bool several = c->tags & (c->tags - 1);
    if (c->ahead == TAGS_MORE)
        return VERDICT_MORE;
    if (c->ahead == TAGS_PARAMETER)
        return judge_parameter(p, c, ended);
    if (!c->tags)
        return c->ahead == TAGS_CALL && v->tail.n > 0 ? judge_next_call(p, ended) : VERDICT_CONTENT;
    if (c->ahead == TAGS_END) /* where the model did not end its turn, one tag may be the value's own */
        return several || v->line_start || p->end_of_turn ? VERDICT_END : VERDICT_CONTENT;
    if (v->shown > 0)
        return VERDICT_CONTENT;
    if (c->ahead == TAGS_CALL)
        return several || (c->tags != TAGS_END_PARAMETER && v->line_start) ? VERDICT_END : VERDICT_CONTENT;
    return several ? VERDICT_TAIL : VERDICT_CONTENT;
}

/* How much of what was read ahead is content for sure, and whether it shows a call or the end of one. */
static size_t content_bytes(struct output_parser *p, const struct tags_closing *c) {
    struct output_value *v = &p->value;
    if ((c->tags & (TAGS_END_FUNCTION | TAGS_END_CALL)) && v->shown > 0)
        v->shown--;
    if (c->tags)
        return v->streams ? c->bytes : c->first_bytes;
    struct tags_opening o = tags_read_opening(p->ahead.data, p->ahead.n, p->tools);
    bool as_written = v->line_start || p->ahead.data[strlen(output_tag_texts[TAG_CALL])] == '\n';
    if (!o.wrapped || o.bytes == 0 || !as_written)
        return 1;
    v->shown++;
    return o.bytes;
}

static int act(struct output_parser *p, enum verdict verdict, const struct tags_closing *c) {
    struct output_value *v = &p->value;
    size_t passed = verdict == VERDICT_CONTENT ? content_bytes(p, c) : 0;
    struct byte_buffer ahead = take_ahead(p);
    int r = 0;
    if (verdict == VERDICT_CONTENT)
        r = take_all_content(p, ahead.data, passed);
    if (verdict == VERDICT_END || verdict == VERDICT_TAIL)
        r = tail_is_content(p);
    if (verdict == VERDICT_TAIL && r >= 0) {
        passed = v->tail_closing = c->bytes;
        v->tail_newline = v->newline;
        v->newline = v->line_start = false;
        r = byte_buffer_add(&v->tail, ahead.data, passed);
    }
    if (verdict == VERDICT_END && r >= 0) {
        passed = c->tags & TAGS_END_PARAMETER ? c->first_bytes : 0;
        r = end_value(p);
    }
    if (verdict == VERDICT_NEXT_CALL)
        r = tail_is_text(p);
    if (r >= 0)
        r = output_take_again(p, ahead.data + passed, ahead.n - passed);
    free(ahead.data);
    return r;
}

static int judge_value(struct output_parser *p, bool ended) {
    struct output_value *v = &p->value;
    int r = 0;
    struct tags_closing c = tags_read_closing(p->ahead.data, p->ahead.n, ended, p->tools);
    enum verdict verdict = VERDICT_MORE;
    if (!v->streams && !(v->types & VALUE_STRING))
        verdict = judge_other(p, &c, ended, &r);
    if (r >= 0 && (v->streams || v->types & VALUE_STRING))
        verdict = judge_string(p, &c, ended);
    return r < 0 || verdict == VERDICT_MORE ? r : act(p, verdict, &c);
}

int output_take_in_value(struct output_parser *p, char c) {
    if (p->ahead.n == 0 && c != '<')
        return take_content(p, c);
    p->value.begun = true;
    int r = byte_buffer_add(&p->ahead, &c, 1);
    return r < 0 ? r : judge_value(p, /* ended= */ false);
}

/* --- the end of the stream --- */

/* A value without an end. A whole one of another type than string is complete if the model says so; a string
 * may lack anything, so the arguments stay open. */
static int end_open_value(struct output_parser *p) {
    struct output_value *v = &p->value;
    if (v->tail.n > 0)
        return tail_is_text(p);
    if (p->end_of_turn && !v->streams &&
            output_value_is_other(v->types, v->text.n ? v->text.data : "", v->text.n))
        return end_value(p);
    int r = v->newline ? add_to_value(p, '\n') : 0;
    v->newline = false;
    return r < 0 || v->streams ? r : stream_value(p);
}

int output_end_call(struct output_parser *p) {
    int r = 0;
    while (r >= 0 && (p->state == IN_HEAD || (p->state == IN_VALUE && p->ahead.n > 0)))
        r = p->state == IN_HEAD ? judge_head(p, /* ended= */ true) : judge_value(p, /* ended= */ true);
    if (r >= 0 && p->state == IN_VALUE)
        r = end_open_value(p);
    if (r >= 0 && p->state == IN_PARAMETER) {
        r = output_emit(p, OUTPUT_TEXT, p->ahead.data, p->ahead.n);
        p->state = IN_FUNCTION;
    }
    return r;
}
