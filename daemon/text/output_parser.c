/* A machine that takes one byte at a time. '<' begins a possible tag, which is held back while it is the
 * beginning of one that the state knows; what turns out to be none is taken as ordinary bytes. Ordinary bytes
 * gather in out and go to the caller when the kind of event changes and at the end of each piece. This file has
 * reasoning and text; output_call.c has calls. */
#include "daemon/text/output_machine.h"

#define BIT(tag) (1u << (tag))

const char *const output_tag_texts[TAGS] = {
        "", "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter="};

/* The states that are not here know no tags, or look for them themselves. */
static const unsigned known_tags[] = {
        [AT_START] = BIT(TAG_THINK),
        [IN_REASONING] = BIT(TAG_END_THINK) | BIT(TAG_CALL) | BIT(TAG_FUNCTION),
        [IN_TEXT] = BIT(TAG_CALL) | BIT(TAG_FUNCTION),
        [IN_FUNCTION] = BIT(TAG_PARAMETER) | BIT(TAG_END_FUNCTION) | BIT(TAG_END_CALL),
        [AFTER_FUNCTION] = BIT(TAG_END_CALL) | BIT(TAG_FUNCTION) | BIT(TAG_CALL),
        [AFTER_CALL] = BIT(TAG_CALL) | BIT(TAG_FUNCTION),
};
#define THINKING_TAGS (BIT(TAG_THINK) | BIT(TAG_END_THINK))

int output_parser_new(bool thinking_open, json_t *tools, struct output_parser **ret) {
    struct output_parser *p = calloc(1, sizeof(*p));
    if (!p)
        return -ENOMEM;
    p->thinking_open = thinking_open;
    p->tools = json_incref(tools);
    *ret = p;
    return 0;
}

struct output_parser *output_parser_free(struct output_parser *p) {
    if (!p)
        return NULL;
    json_decref(p->tools);
    json_decref(p->given);
    free(p->space.data);
    free(p->ahead.data);
    free(p->draft.data);
    free(p->value.text.data);
    free(p->value.tail.data);
    free(p->out.data);
    free(p);
    return NULL;
}

bool output_parser_in_reasoning(const struct output_parser *p) {
    return p->state == IN_REASONING || p->state == IN_DRAFT || (p->state == AT_START && p->thinking_open);
}

uint32_t output_parser_tool_calls(const struct output_parser *p) {
    return p->n_calls;
}

bool output_parser_is_tag(const char *text, size_t bytes) {
    for (enum output_tag tag = TAG_THINK; tag <= TAG_END_CALL; tag++)
        if (bytes == strlen(output_tag_texts[tag]) && memcmp(text, output_tag_texts[tag], bytes) == 0)
            return true;
    return false;
}

/* --- events --- */

static int call_back(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes) {
    struct output_event event = {kind, data, bytes, p->n_calls};
    int r = p->fn(p->user, &event);
    return r < 0 ? r : 0;
}

static int flush(struct output_parser *p) {
    if (p->out.n == 0)
        return 0;
    int r = call_back(p, p->out_kind, p->out.data, p->out.n);
    p->out.n = 0;
    return r;
}

int output_send(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes) {
    int r = flush(p);
    return r < 0 ? r : call_back(p, kind, data, bytes);
}

int output_prepare(struct output_parser *p, enum output_event_kind kind) {
    int r = p->out_kind == kind ? 0 : flush(p);
    p->out_kind = kind;
    return r;
}

int output_emit(struct output_parser *p, enum output_event_kind kind, const char *data, size_t bytes) {
    int r = output_prepare(p, kind);
    return r < 0 ? r : byte_buffer_add(&p->out, data, bytes);
}

static int emit_newlines(struct output_parser *p) {
    int r = 0;
    for (; p->newlines > 0 && r >= 0; p->newlines--)
        r = output_emit(p, OUTPUT_REASONING, "\n", 1);
    return r;
}

int output_emit_space(struct output_parser *p) {
    int r = output_emit(p, OUTPUT_TEXT, p->space.data, p->space.n);
    p->space.n = 0;
    return r;
}

/* --- one byte --- */

int output_take_again(struct output_parser *p, const char *data, size_t bytes) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = output_take(p, data[i]);
    return r;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Newlines before </think> and after <think> are syntax. */
static int take_reasoning(struct output_parser *p, char c) {
    if (c == '\n') {
        p->newlines += p->reasoning_begun;
        return 0;
    }
    p->reasoning_begun = true;
    int r = emit_newlines(p);
    return r < 0 ? r : output_emit(p, OUTPUT_REASONING, &c, 1);
}

/* A line's end and the white space after it wait: before a call they are syntax. */
static int take_text(struct output_parser *p, char c) {
    if (p->tools && (c == '\n' || (p->space.n > 0 && is_space(c))))
        return byte_buffer_add(&p->space, &c, 1);
    int r = output_emit_space(p);
    return r < 0 ? r : output_emit(p, OUTPUT_TEXT, &c, 1);
}

/* A byte of no tag. */
static int take_ordinary(struct output_parser *p, char c) {
    switch (p->state) {
    case IN_REASONING:
        return take_reasoning(p, c);
    case IN_FUNCTION:
    case AFTER_FUNCTION:
    case AFTER_CALL:
        if (is_space(c))
            return byte_buffer_add(&p->space, &c, 1);
        if (p->state != IN_FUNCTION)
            p->state = IN_TEXT;
        return take_text(p, c);
    default:
        return take_text(p, c);
    }
}

static int take_all_ordinary(struct output_parser *p, const char *data, size_t bytes) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++)
        r = take_ordinary(p, data[i]);
    return r;
}

/* --- a call in reasoning --- */

static int begin_draft(struct output_parser *p, enum output_tag tag) {
    p->state = IN_DRAFT;
    p->draft.n = 0;
    p->draft_tag_bytes = strlen(output_tag_texts[tag]);
    p->draft_is_call = false;
    return byte_buffer_text(&p->draft, output_tag_texts[tag]);
}

/* It is reasoning, but for what follows its first so many bytes. */
static int draft_is_reasoning(struct output_parser *p, size_t bytes) {
    struct byte_buffer draft = p->draft;
    p->draft = (struct byte_buffer){0};
    p->state = IN_REASONING;
    int r = take_all_ordinary(p, draft.data, bytes);
    if (r >= 0)
        r = output_take_again(p, draft.data + bytes, draft.n - bytes);
    free(draft.data);
    return r;
}

/* The call of an offered tool is held back up to </think>, which makes it reasoning, or the end. */
static int take_in_draft(struct output_parser *p, char c) {
    const char *end = output_tag_texts[TAG_END_THINK];
    size_t end_bytes = strlen(end);
    int r = byte_buffer_add(&p->draft, &c, 1);
    if (r < 0)
        return r;
    if (c == '>' && memcmp(p->draft.data + p->draft.n - end_bytes, end, end_bytes) == 0)
        return draft_is_reasoning(p, p->draft.n - end_bytes);
    if (p->draft_is_call)
        return 0;
    enum tags_ahead ahead = tags_read_head(p->draft.data, p->draft.n, /* ended= */ false, p->tools).ahead;
    p->draft_is_call = ahead == TAGS_CALL;
    return ahead == TAGS_OTHER ? draft_is_reasoning(p, p->draft_tag_bytes) : 0;
}

static int ignore_event(void *user, const struct output_event *event) {
    (void)user;
    (void)event;
    return 0;
}

/* Is there a whole call in it? */
static int read_draft(const struct output_parser *p, bool *ret) {
    struct output_parser *trial = NULL;
    int r = output_parser_new(false, p->tools, &trial);
    if (r >= 0)
        r = output_parser_feed(trial, p->draft.data, p->draft.n, ignore_event, NULL);
    if (r >= 0)
        r = output_parser_end(trial, p->end_of_turn, ignore_event, NULL);
    *ret = r >= 0 && output_parser_tool_calls(trial) > 0;
    output_parser_free(trial);
    return r;
}

/* The stream ended and no </think> came: a whole call was meant as one. */
static int end_draft(struct output_parser *p) {
    bool is_call = false;
    int r = read_draft(p, &is_call);
    if (r < 0)
        return r;
    if (!is_call) {
        size_t bytes = p->draft.n;
        return draft_is_reasoning(p, bytes);
    }
    struct byte_buffer draft = p->draft;
    p->draft = (struct byte_buffer){0};
    p->newlines = 0;
    p->state = IN_TEXT;
    r = output_take_again(p, draft.data, draft.n);
    free(draft.data);
    return r;
}

/* --- tags --- */

/* A whole tag that the state knows. */
static int take_tag(struct output_parser *p, enum output_tag tag) {
    switch (tag) {
    case TAG_THINK:
        p->state = IN_REASONING;
        p->thinking_open = true;
        p->space.n = 0;
        return 0;
    case TAG_END_THINK:
        p->newlines = 0;
        p->state = AFTER_THINK;
        return 0;
    case TAG_CALL:
    case TAG_FUNCTION:
        return p->state == IN_REASONING ? begin_draft(p, tag) : output_begin_head(p, tag);
    case TAG_PARAMETER:
        return output_begin_parameter(p);
    case TAG_END_FUNCTION:
        return output_end_function(p, AFTER_FUNCTION);
    default: /* TAG_END_CALL */
        if (p->state == IN_FUNCTION)
            return output_end_function(p, AFTER_CALL);
        p->state = AFTER_CALL;
        p->space.n = 0;
        return 0;
    }
}

/* Is what was gathered the beginning of a tag that the state knows, or all of one? */
static bool match_tag(const struct output_parser *p, unsigned known, enum output_tag *ret) {
    bool begins = false;
    *ret = TAG_NONE;
    for (enum output_tag tag = TAG_THINK; tag < TAGS; tag++) {
        if (!(known & BIT(tag)) || strncmp(output_tag_texts[tag], p->tag, p->n_tag) != 0)
            continue;
        begins = true;
        if (output_tag_texts[tag][p->n_tag] == 0)
            *ret = tag;
    }
    return begins;
}

/* No <think> came first. */
static int leave_start(struct output_parser *p) {
    struct byte_buffer space = p->space;
    p->space = (struct byte_buffer){0};
    p->state = p->thinking_open ? IN_REASONING : IN_TEXT;
    int r = output_take_again(p, space.data, space.n);
    free(space.data);
    return r;
}

static int take_at_start(struct output_parser *p, char c) {
    if (is_space(c))
        return byte_buffer_add(&p->space, &c, 1);
    int r = leave_start(p);
    return r < 0 ? r : output_take(p, c);
}

/* What was gathered, c the last of it, is no tag. Only its first byte can be a '<', but for c. */
static int take_no_tag(struct output_parser *p, char c) {
    char held[sizeof(p->tag)];
    size_t before = p->n_tag - 1;
    memcpy(held, p->tag, before);
    p->n_tag = 0;
    if (p->state == AT_START) {
        int r = leave_start(p);
        if (r >= 0)
            r = output_take_again(p, held, before);
        return r < 0 ? r : output_take(p, c);
    }
    if (before == 0)
        return take_ordinary(p, c);
    int r = take_all_ordinary(p, held, before);
    return r < 0 ? r : output_take(p, c);
}

/* In the states that look for tags of known_tags. */
static int take_or_tag(struct output_parser *p, char c) {
    enum output_tag tag;
    if (p->n_tag == 0 && c != '<')
        return p->state == AT_START ? take_at_start(p, c) : take_ordinary(p, c);
    unsigned known = known_tags[p->state] & (p->tools ? ~0u : THINKING_TAGS);
    p->tag[p->n_tag++] = c;
    if (!match_tag(p, known, &tag))
        return take_no_tag(p, c);
    if (tag == TAG_NONE)
        return 0;
    p->n_tag = 0;
    return take_tag(p, tag);
}

int output_take(struct output_parser *p, char c) {
    switch (p->state) {
    case IN_DRAFT:
        return take_in_draft(p, c);
    case IN_HEAD:
        return output_take_in_head(p, c);
    case IN_PARAMETER:
        return output_take_in_parameter(p, c);
    case IN_VALUE:
        return output_take_in_value(p, c);
    case AFTER_THINK:
        if (c == '\n')
            return 0;
        p->state = IN_TEXT;
        return take_or_tag(p, c);
    default:
        return take_or_tag(p, c);
    }
}

int output_parser_feed(
        struct output_parser *p, const char *text, size_t bytes, output_event_fn fn, void *user) {
    p->fn = fn;
    p->user = user;
    int r = output_take_again(p, text, bytes);
    return r < 0 ? r : flush(p);
}

/* What was held back outside of calls. */
static int end_outside(struct output_parser *p) {
    size_t n_tag = p->n_tag;
    int r = 0;
    p->n_tag = 0;
    if (p->state == AT_START)
        r = leave_start(p);
    if (r >= 0)
        r = take_all_ordinary(p, p->tag, n_tag);
    if (r >= 0 && p->state == IN_REASONING)
        r = emit_newlines(p);
    if (r >= 0 && p->state == IN_TEXT)
        r = output_emit_space(p);
    return r;
}

int output_parser_end(struct output_parser *p, bool end_of_turn, output_event_fn fn, void *user) {
    p->fn = fn;
    p->user = user;
    p->end_of_turn = end_of_turn;
    int r = p->state == IN_DRAFT ? end_draft(p) : 0;
    if (r >= 0)
        r = output_end_call(p);
    if (r >= 0)
        r = end_outside(p);
    bool complete = json_object_size(p->given) > 0 || output_tool_needs_nothing(p->function);
    if (r >= 0 && p->state == IN_FUNCTION && end_of_turn && complete)
        r = output_end_function(p, AFTER_CALL);
    return r < 0 ? r : flush(p);
}
