/* All is read anew with each byte: the text is short by TAGS_BYTES_MAX. */
#include "daemon/text/output_tags.h"

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

enum match { MATCH_NONE, MATCH_PART, MATCH_ALL };

static enum match match(const char *text, size_t bytes, const char *tag) {
    size_t length = strlen(tag), compared = bytes < length ? bytes : length;
    if (memcmp(text, tag, compared) != 0)
        return MATCH_NONE;
    return bytes < length ? MATCH_PART : MATCH_ALL;
}

static size_t skip_space(const char *text, size_t bytes, size_t at) {
    while (at < bytes && is_space(text[at]))
        at++;
    return at;
}

/* NAME and the > that ends it. */
static enum match read_name(const char *text, size_t bytes, struct output_name *ret) {
    for (size_t n = 0; n < bytes; n++) {
        if (text[n] == '>') {
            *ret = (struct output_name){text, n};
            return n > 0 ? MATCH_ALL : MATCH_NONE;
        }
        if (text[n] == '<' || (unsigned char)text[n] < 0x20 || n == NAME_BYTES_MAX)
            return MATCH_NONE;
    }
    return MATCH_PART;
}

/* A tag of the form <word=NAME>. */
static enum match read_named(
        const char *text, size_t bytes, const char *tag, struct output_name *ret, size_t *ret_end) {
    enum match m = match(text, bytes, tag);
    if (m != MATCH_ALL)
        return m;
    size_t length = strlen(tag);
    m = read_name(text + length, bytes - length, ret);
    if (m == MATCH_ALL)
        *ret_end = length + ret->bytes + 1;
    return m;
}

struct tags_opening tags_read_opening(const char *text, size_t bytes, const json_t *tools) {
    struct tags_opening o = {.ahead = TAGS_MORE};
    size_t at = 0, end = 0;
    enum match m = match(text, bytes, "<tool_call>");
    if (bytes > TAGS_BYTES_MAX)
        o.ahead = TAGS_OTHER;
    if (m == MATCH_PART || o.ahead == TAGS_OTHER)
        return o;
    if (m == MATCH_ALL) {
        o.wrapped = true;
        at = skip_space(text, bytes, strlen("<tool_call>"));
    }
    m = read_named(text + at, bytes - at, "<function=", &o.name, &end);
    if (m == MATCH_PART)
        return o;
    if (m == MATCH_ALL) {
        o.bytes = at + end;
        o.function = output_tool_find(tools, &o.name);
    }
    o.ahead = o.function ? TAGS_CALL : TAGS_OTHER;
    return o;
}

struct tags_opening tags_read_head(const char *text, size_t bytes, bool ended, const json_t *tools) {
    static const char *const next[] = {"<parameter=", "</function>", "</tool_call>"};
    struct tags_opening o = tags_read_opening(text, bytes, tools);
    if (o.ahead != TAGS_CALL) {
        if (ended && o.ahead == TAGS_MORE)
            o.ahead = TAGS_OTHER;
        return o;
    }
    size_t at = skip_space(text, bytes, o.bytes);
    if (at == bytes) {
        o.ahead = ended ? TAGS_END : TAGS_MORE;
        return o;
    }
    o.ahead = TAGS_OTHER;
    for (size_t i = 0; i < sizeof(next) / sizeof(next[0]); i++) {
        enum match m = match(text + at, bytes - at, next[i]);
        if (m == MATCH_ALL)
            o.ahead = TAGS_CALL;
        if (m == MATCH_PART && !ended)
            o.ahead = TAGS_MORE;
    }
    return o;
}

static const char *const closing_tags[] = {"</parameter>", "</function>", "</tool_call>"};

/* The next closing tag, if it comes later in the order than those that were there. */
static enum match read_closing_tag(struct tags_closing *c, const char *text, size_t bytes, size_t *at) {
    enum match best = MATCH_NONE;
    for (unsigned i = 0; i < 3; i++) {
        enum match m = c->tags >> i ? MATCH_NONE : match(text + *at, bytes - *at, closing_tags[i]);
        if (m == MATCH_PART)
            best = m;
        if (m != MATCH_ALL)
            continue;
        *at += strlen(closing_tags[i]);
        if (!c->tags)
            c->first_bytes = *at;
        c->tags |= 1u << i;
        c->bytes = *at;
        return m;
    }
    return best;
}

/* What stands behind the closing tags, if there are any. */
static enum tags_ahead read_ahead(
        struct tags_closing *c, const char *text, size_t bytes, const json_t *tools) {
    size_t end;
    enum match m = read_named(text, bytes, "<parameter=", &c->name, &end);
    if (m != MATCH_NONE)
        return m == MATCH_ALL ? TAGS_PARAMETER : TAGS_MORE;
    return tags_read_opening(text, bytes, tools).ahead;
}

struct tags_closing tags_read_closing(const char *text, size_t bytes, bool ended, const json_t *tools) {
    struct tags_closing c = {.ahead = TAGS_MORE};
    size_t at = 0;
    enum match m;
    while ((m = read_closing_tag(&c, text, bytes, &at)) == MATCH_ALL)
        at = skip_space(text, bytes, at);
    for (size_t i = c.bytes; i < at; i++)
        c.newline = c.newline || text[i] == '\n';
    if (at == bytes)
        c.ahead = ended ? TAGS_END : TAGS_MORE;
    else if (m == MATCH_NONE)
        c.ahead = read_ahead(&c, text + at, bytes - at, tools);
    if (c.ahead == TAGS_MORE && (ended || bytes > TAGS_BYTES_MAX + NAME_BYTES_MAX))
        c.ahead = TAGS_OTHER;
    return c;
}
