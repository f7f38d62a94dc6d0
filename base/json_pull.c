/* json_pull.c - see json_pull.h. A function never moves p->at or p->state before it has succeeded, which is
 * why an error can be given again. */
#include "base/json_pull.h"

#include "base/utf8.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_BYTES_MAX 256u

_Static_assert(JSON_DEPTH_MAX <= 64, "in_object has one bit per level");

enum state {
    STATE_VALUE,    /* a value must come: at the start, after a key, after an array's comma */
    STATE_KEY,      /* a key must come: after an object's comma */
    STATE_OPENED,   /* just after { or [: a first member or the end */
    STATE_FOLLOWED, /* after a member: a comma or the end */
    STATE_COMPLETE, /* after the document's value */
};

void json_pull_init(struct json_pull *p, const char *text, size_t bytes, const char *file) {
    *p = (struct json_pull){.text = text, .file = file, .bytes = bytes, .state = STATE_VALUE};
}

void json_pull_done(struct json_pull *p) {
    if (!p)
        return;
    free(p->scratch);
    p->scratch = NULL;
    p->scratch_size = 0;
}

/* --- errors --- */

static int fail_atv(
        const struct json_pull *p, size_t at, int code, struct error *e, const char *format, va_list ap) {
    size_t line = 1, line_begin = 0;
    for (size_t i = 0; i < at; i++)
        if (p->text[i] == '\n') {
            line++;
            line_begin = i + 1;
        }
    error_setv(e, code, format, ap);
    return error_prefix(
            e, code, "%s: line %zu column %zu (byte %zu)", p->file, line, at - line_begin + 1, at);
}

__attribute__((format(printf, 5, 6))) static int fail_at(
        const struct json_pull *p, size_t at, int code, struct error *e, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    fail_atv(p, at, code, e, format, ap);
    va_end(ap);
    return code;
}

int json_pull_error(const struct json_pull *p, int code, struct error *e, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    fail_atv(p, p->event_at, code, e, format, ap);
    va_end(ap);
    return code;
}

static int fail_unexpected(const struct json_pull *p, size_t at, const char *expected, struct error *e) {
    if (at >= p->bytes)
        return fail_at(p, at, -EBADMSG, e, "the text ends where %s should be", expected);
    unsigned char c = (unsigned char)p->text[at];
    if (c > 0x20 && c < 0x7F)
        return fail_at(p, at, -EBADMSG, e, "expected %s, found '%c'", expected, c);
    return fail_at(p, at, -EBADMSG, e, "expected %s, found byte 0x%02x", expected, c);
}

const char *json_event_name(int event) {
    static const char *const names[PULL_EVENTS] = {
            [PULL_DOCUMENT_END] = "the end of the document",
            [PULL_OBJECT_BEGIN] = "an object",
            [PULL_OBJECT_END] = "the end of an object",
            [PULL_ARRAY_BEGIN] = "an array",
            [PULL_ARRAY_END] = "the end of an array",
            [PULL_KEY] = "a key",
            [PULL_STRING] = "a string",
            [PULL_NUMBER] = "a number",
            [PULL_TRUE] = "true",
            [PULL_FALSE] = "false",
            [PULL_NULL] = "null",
    };
    assert(event >= 0 && event < PULL_EVENTS);
    return names[event];
}

/* --- strings --- */

static bool is_plain_ascii(unsigned char c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* Where the run of bytes that stand for themselves ends: at a quote, a backslash, a control byte, a byte that
 * is not UTF-8, or the end of the text. */
static size_t skip_plain(const struct json_pull *p, size_t at) {
    const uint64_t ones = 0x0101010101010101ull, highs = 0x8080808080808080ull;
    for (;;) {
        /* Eight at once: a byte's high bit is set below if it is < 0x20, a quote, a backslash or not ASCII.
         * Borrows may also mark the byte after a marked one, which costs a closer look and nothing else. */
        while (p->bytes - at >= 8) {
            uint64_t w, quote, backslash;
            memcpy(&w, p->text + at, sizeof(w));
            quote = w ^ ones * '"';
            backslash = w ^ ones * '\\';
            if (((w - ones * 0x20) | (quote - ones) | (backslash - ones) | w) & highs)
                break;
            at += 8;
        }
        while (at < p->bytes && is_plain_ascii((unsigned char)p->text[at]))
            at++;
        if (at == p->bytes || (unsigned char)p->text[at] < 0x80)
            return at;
        size_t length = utf8_sequence(p->text + at, p->bytes - at);
        if (length == 0)
            return at;
        at += length;
    }
}

static int scratch_append(struct json_pull *p, size_t *n, const char *from, size_t bytes, struct error *e) {
    if (bytes == 0)
        return 0; /* nothing may be allocated yet */
    if (p->scratch_size - *n < bytes) {
        /* Decoded text is never longer than the document, so this is bounded by the caller's limit on it. */
        size_t size = p->scratch_size * 2 > *n + bytes ? p->scratch_size * 2 : *n + bytes + 64;
        char *grown = realloc(p->scratch, size);
        if (!grown)
            return fail_at(p, p->at, -ENOMEM, e, "out of memory for a string of %zu bytes", *n + bytes);
        p->scratch = grown;
        p->scratch_size = size;
    }
    memcpy(p->scratch + *n, from, bytes);
    *n += bytes;
    return 0;
}

/* Four hex digits at text[at]; -1 if they are not there. */
static int32_t hex4(const struct json_pull *p, size_t at) {
    int32_t value = 0;
    if (p->bytes - at < 4)
        return -1;
    for (size_t i = at; i < at + 4; i++) {
        char c = p->text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* The \u escape at text[at] (the backslash), both halves of a pair; returns the bytes it takes or an error. */
static int decode_unicode(const struct json_pull *p, size_t at, uint32_t *ret_code_point, struct error *e) {
    int32_t first = hex4(p, at + 2);
    if (first < 0)
        return fail_at(p, at, -EBADMSG, e, "\\u needs four hex digits");
    if (first < 0xD800 || first > 0xDFFF) {
        *ret_code_point = (uint32_t)first;
        return 6;
    }
    int32_t second = -1;
    if (first < 0xDC00 && p->bytes - at > 8 && p->text[at + 6] == '\\' && p->text[at + 7] == 'u')
        second = hex4(p, at + 8);
    if (second < 0xDC00 || second > 0xDFFF)
        return fail_at(p, at, -EBADMSG, e, "\\u%04x is half of a surrogate pair without the other half",
                (unsigned)first);
    *ret_code_point = 0x10000u + ((uint32_t)(first - 0xD800) << 10) + (uint32_t)(second - 0xDC00);
    return 12;
}

/* The escape at text[at] (the backslash), decoded to the end of scratch; returns the bytes it takes or an
 * error. */
static int decode_escape(struct json_pull *p, size_t at, size_t *n, struct error *e) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (p->bytes - at < 2)
        return fail_unexpected(p, at + 1, "an escape", e);
    char c = p->text[at + 1];
    if (c == 'u') {
        uint32_t code_point = 0;
        char utf8[4];
        int taken = decode_unicode(p, at, &code_point, e);
        if (taken < 0)
            return taken;
        int r = scratch_append(p, n, utf8, utf8_encode(code_point, utf8), e);
        return r < 0 ? r : taken;
    }
    const char *found = c != '\0' ? strchr(from, c) : NULL;
    if (!found)
        return fail_unexpected(p, at + 1, "an escape (one of \" \\ / b f n r t u)", e);
    int r = scratch_append(p, n, &to[found - from], 1, e);
    return r < 0 ? r : 2;
}

/* The string whose opening quote is text[at]: sets p->string and *ret_after (past the closing quote). */
static int scan_string(struct json_pull *p, size_t at, size_t *ret_after, struct error *e) {
    size_t begin = at + 1, n = 0;
    bool in_scratch = false;
    for (at = begin;;) {
        size_t end = skip_plain(p, at);
        if (end == p->bytes)
            return fail_at(p, p->event_at, -EBADMSG, e, "this string has no closing quote");
        char c = p->text[end];
        if (c == '"' && !in_scratch) {
            p->string = p->text + begin;
            p->string_bytes = end - begin;
            *ret_after = end + 1;
            return 0;
        }
        int r = scratch_append(p, &n, p->text + at, end - at, e);
        if (r < 0)
            return r;
        in_scratch = true;
        if (c == '"') {
            p->string = p->scratch;
            p->string_bytes = n;
            *ret_after = end + 1;
            return 0;
        }
        if (c != '\\')
            return (unsigned char)c < 0x20
                           ? fail_at(p, end, -EBADMSG, e, "byte 0x%02x in a string must be escaped", c)
                           : fail_at(p, end, -EBADMSG, e, "byte 0x%02x is not UTF-8", (unsigned char)c);
        r = decode_escape(p, end, &n, e);
        if (r < 0)
            return r;
        at = end + (size_t)r;
    }
}

/* --- numbers --- */

static size_t skip_digits(const struct json_pull *p, size_t at) {
    while (at < p->bytes && p->text[at] >= '0' && p->text[at] <= '9')
        at++;
    return at;
}

static int scan_number(struct json_pull *p, size_t begin, size_t *ret_after, struct error *e) {
    size_t at = begin + (p->text[begin] == '-'), digits = at;
    at = skip_digits(p, at);
    if (at == digits)
        return fail_unexpected(p, at, "a digit", e);
    if (p->text[digits] == '0' && at > digits + 1)
        return fail_at(p, begin, -EBADMSG, e, "a number may not begin with a zero");
    if (at < p->bytes && p->text[at] == '.') {
        digits = ++at;
        at = skip_digits(p, at);
        if (at == digits)
            return fail_unexpected(p, at, "a digit", e);
    }
    if (at < p->bytes && (p->text[at] == 'e' || p->text[at] == 'E')) {
        at++;
        if (at < p->bytes && (p->text[at] == '+' || p->text[at] == '-'))
            at++;
        digits = at;
        at = skip_digits(p, at);
        if (at == digits)
            return fail_unexpected(p, at, "a digit", e);
    }
    p->string = p->text + begin;
    p->string_bytes = at - begin;
    *ret_after = at;
    return 0;
}

static int require_number(const struct json_pull *p, struct error *e) {
    if (p->event == PULL_NUMBER)
        return 0;
    return json_pull_error(p, -EBADMSG, e, "expected a number, found %s", json_event_name(p->event));
}

/* The digits of an integer without its sign. */
static int parse_magnitude(const struct json_pull *p, uint64_t *ret, struct error *e) {
    uint64_t value = 0;
    int r = require_number(p, e);
    if (r < 0)
        return r;
    for (size_t i = p->string[0] == '-'; i < p->string_bytes; i++) {
        char c = p->string[i];
        if (c < '0' || c > '9')
            return json_pull_error(p, -EBADMSG, e, "expected a whole number, found %.*s",
                    (int)(p->string_bytes < 40 ? p->string_bytes : 40), p->string);
        if (__builtin_mul_overflow(value, 10u, &value) ||
                __builtin_add_overflow(value, (uint64_t)(c - '0'), &value))
            return json_pull_error(p, -ERANGE, e, "this number does not fit in 64 bits");
    }
    *ret = value;
    return 0;
}

int json_pull_u64(const struct json_pull *p, uint64_t *ret, struct error *e) {
    uint64_t value;
    int r = parse_magnitude(p, &value, e);
    if (r < 0)
        return r;
    if (p->string[0] == '-' && value != 0)
        return json_pull_error(p, -ERANGE, e, "expected a number that is not negative");
    *ret = value;
    return 0;
}

int json_pull_i64(const struct json_pull *p, int64_t *ret, struct error *e) {
    uint64_t value;
    int r = parse_magnitude(p, &value, e);
    if (r < 0)
        return r;
    bool negative = p->string[0] == '-';
    if (value > (uint64_t)INT64_MAX + negative)
        return json_pull_error(p, -ERANGE, e, "this number does not fit in 64 bits");
    *ret = negative ? (int64_t)(0 - value) : (int64_t)value;
    return 0;
}

int json_pull_double(const struct json_pull *p, double *ret, struct error *e) {
    char text[NUMBER_BYTES_MAX + 1];
    int r = require_number(p, e);
    if (r < 0)
        return r;
    if (p->string_bytes > NUMBER_BYTES_MAX)
        return json_pull_error(
                p, -ERANGE, e, "a number may have %u characters, not %zu", NUMBER_BYTES_MAX, p->string_bytes);
    memcpy(text, p->string, p->string_bytes);
    text[p->string_bytes] = '\0';
    /* Our programs never call setlocale(), so the decimal point is a point. */
    double value = strtod(text, NULL);
    if (!isfinite(value))
        return json_pull_error(p, -ERANGE, e, "%s does not fit in a double", text);
    *ret = value;
    return 0;
}

/* --- structure --- */

static size_t skip_space(const struct json_pull *p, size_t at) {
    while (at < p->bytes &&
            (p->text[at] == ' ' || p->text[at] == '\n' || p->text[at] == '\r' || p->text[at] == '\t'))
        at++;
    return at;
}

static bool inside_object(const struct json_pull *p) {
    return p->depth > 0 && (p->in_object >> (p->depth - 1) & 1);
}

static int emit(struct json_pull *p, enum json_event event, size_t after, enum state state) {
    p->at = after;
    p->state = state;
    p->event = event;
    return event;
}

static enum state state_after_value(const struct json_pull *p) {
    return p->depth > 0 ? STATE_FOLLOWED : STATE_COMPLETE;
}

static int open_container(struct json_pull *p, bool is_object, struct error *e) {
    if (p->depth == JSON_DEPTH_MAX)
        return fail_at(p, p->event_at, -E2BIG, e, "nested more than %u levels deep", JSON_DEPTH_MAX);
    uint64_t bit = 1ull << p->depth++;
    p->in_object = is_object ? p->in_object | bit : p->in_object & ~bit;
    return emit(p, is_object ? PULL_OBJECT_BEGIN : PULL_ARRAY_BEGIN, p->event_at + 1, STATE_OPENED);
}

static int close_container(struct json_pull *p) {
    bool was_object = inside_object(p);
    p->depth--;
    return emit(p, was_object ? PULL_OBJECT_END : PULL_ARRAY_END, p->event_at + 1, state_after_value(p));
}

static int next_literal(struct json_pull *p, const char *text, enum json_event event, struct error *e) {
    size_t length = strlen(text);
    if (p->bytes - p->event_at < length || memcmp(p->text + p->event_at, text, length) != 0)
        return fail_unexpected(p, p->event_at, "a value", e);
    return emit(p, event, p->event_at + length, state_after_value(p));
}

static int next_key(struct json_pull *p, struct error *e) {
    size_t after = 0;
    if (p->event_at == p->bytes || p->text[p->event_at] != '"')
        return fail_unexpected(p, p->event_at, "a key in quotes", e);
    int r = scan_string(p, p->event_at, &after, e);
    if (r < 0)
        return r;
    after = skip_space(p, after);
    if (after == p->bytes || p->text[after] != ':')
        return fail_unexpected(p, after, "':' after the key", e);
    return emit(p, PULL_KEY, after + 1, STATE_VALUE);
}

static int next_value(struct json_pull *p, struct error *e) {
    size_t after = 0;
    int r;
    if (p->event_at == p->bytes)
        return fail_unexpected(p, p->event_at, "a value", e);
    char c = p->text[p->event_at];
    switch (c) {
    case '{':
        return open_container(p, true, e);
    case '[':
        return open_container(p, false, e);
    case 't':
        return next_literal(p, "true", PULL_TRUE, e);
    case 'f':
        return next_literal(p, "false", PULL_FALSE, e);
    case 'n':
        return next_literal(p, "null", PULL_NULL, e);
    case '"':
        r = scan_string(p, p->event_at, &after, e);
        return r < 0 ? r : emit(p, PULL_STRING, after, state_after_value(p));
    default:
        if (c != '-' && (c < '0' || c > '9'))
            return fail_unexpected(p, p->event_at, "a value", e);
        r = scan_number(p, p->event_at, &after, e);
        return r < 0 ? r : emit(p, PULL_NUMBER, after, state_after_value(p));
    }
}

int json_pull_next(struct json_pull *p, struct error *e) {
    bool object = inside_object(p);
    p->event_at = skip_space(p, p->at);
    bool closes = p->event_at < p->bytes && p->text[p->event_at] == (object ? '}' : ']');
    switch ((enum state)p->state) {
    case STATE_OPENED:
        if (closes)
            return close_container(p);
        return object ? next_key(p, e) : next_value(p, e);
    case STATE_FOLLOWED:
        if (closes)
            return close_container(p);
        if (p->event_at == p->bytes || p->text[p->event_at] != ',')
            return fail_unexpected(p, p->event_at, object ? "',' or '}'" : "',' or ']'", e);
        p->state = object ? STATE_KEY : STATE_VALUE;
        p->at = p->event_at + 1;
        return json_pull_next(p, e); /* once: neither state comes back here */
    case STATE_KEY:
        return next_key(p, e);
    case STATE_VALUE:
        return next_value(p, e);
    case STATE_COMPLETE:
        break;
    }
    if (p->event_at < p->bytes)
        return fail_unexpected(p, p->event_at, "the end of the text", e);
    return emit(p, PULL_DOCUMENT_END, p->event_at, STATE_COMPLETE);
}

int json_pull_expect(struct json_pull *p, enum json_event event, struct error *e) {
    int r = json_pull_next(p, e);
    if (r >= 0 && r != (int)event)
        return json_pull_error(
                p, -EBADMSG, e, "expected %s, found %s", json_event_name(event), json_event_name(r));
    return r;
}

int json_pull_leave(struct json_pull *p, struct error *e) {
    assert(p->depth > 0);
    uint32_t outside = p->depth - 1;
    while (p->depth > outside) {
        int r = json_pull_next(p, e);
        if (r < 0)
            return r;
    }
    return 0;
}

int json_pull_skip(struct json_pull *p, struct error *e) {
    int r = json_pull_next(p, e);
    if (r < 0)
        return r;
    if (r == PULL_OBJECT_BEGIN || r == PULL_ARRAY_BEGIN)
        return json_pull_leave(p, e);
    if (r == PULL_OBJECT_END || r == PULL_ARRAY_END || r == PULL_KEY || r == PULL_DOCUMENT_END)
        return json_pull_error(p, -EBADMSG, e, "expected a value, found %s", json_event_name(r));
    return 0;
}

bool json_pull_is(const struct json_pull *p, const char *text) {
    size_t length = strlen(text);
    return (p->event == PULL_KEY || p->event == PULL_STRING) && p->string_bytes == length &&
           memcmp(p->string, text, length) == 0;
}
