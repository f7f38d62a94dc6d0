/* Any text as a model's output. Byte 0: bit 0 thinking, bit 1 no tools, bit 2 a turn that the model ends, the rest
 * how it is cut. The events of the whole and of the pieces are the same; only offered tools are called; the
 * arguments of a finished call are JSON with each key once; where nothing is called, nothing is lost. */
#include "daemon/text/output_parser.h"
#include "base/buffer.h"
#include "base/utf8.h"

#include <ctype.h>
#include <stdlib.h>

struct record {
    struct byte_buffer events, arguments, said; /* said: text and reasoning */
    int kind;
    bool called;
};

static int on_event(void *user, const struct output_event *event) {
    struct record *r = user;
    char header[8] = {'\n', (char)('0' + event->kind), (char)('0' + event->tool_index % 64), ':'};
    if ((int)event->kind != r->kind || event->kind == OUTPUT_TOOL_BEGIN || event->kind == OUTPUT_TOOL_END)
        byte_buffer_add(&r->events, header, 4);
    r->kind = (int)event->kind;
    byte_buffer_add(&r->events, event->data, event->bytes);
    if (event->kind == OUTPUT_TEXT || event->kind == OUTPUT_REASONING)
        byte_buffer_add(&r->said, event->data, event->bytes);
    if (event->kind == OUTPUT_TOOL_BEGIN) {
        r->arguments.n = 0;
        r->called = true;
        if (event->bytes != 1 || event->data[0] != 'f')
            abort();
    }
    if (event->kind == OUTPUT_TOOL_ARGUMENTS)
        byte_buffer_add(&r->arguments, event->data, event->bytes);
    if (event->kind == OUTPUT_TOOL_END) {
        json_t *value = json_loadb(r->arguments.data, r->arguments.n,
                JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
        /* a number beyond double precision is JSON, but not to jansson */
        if (!json_is_object(value) && !memchr(r->arguments.data, 'e', r->arguments.n) &&
                !memchr(r->arguments.data, 'E', r->arguments.n) && r->arguments.n < 300)
            abort();
        json_decref(value);
    }
    return 0;
}

/* Without white space, and without the tags of thinking where they are syntax. */
static size_t condense(const char *text, size_t bytes, bool thinking, bool fed, char *ret) {
    static const char begin[] = "<think>", end[] = "</think>";
    size_t at = 0, n = 0;
    while (fed && at < bytes && (isspace((unsigned char)text[at])))
        at++;
    if (fed && bytes - at >= 7 && memcmp(text + at, begin, 7) == 0) {
        at += 7;
        thinking = true;
    }
    const char *close = fed && thinking && bytes > at ? memmem(text + at, bytes - at, end, 8) : NULL;
    for (; at < bytes; at++) {
        if (close && text + at == close)
            at += 8;
        if (at < bytes && !isspace((unsigned char)text[at]))
            ret[n++] = text[at];
    }
    return n;
}

static void check_said(const char *text, size_t bytes, bool thinking, const struct record *r) {
    char *fed = malloc(bytes + 1), *said = malloc(r->said.n + 1);
    size_t n_fed = condense(text, bytes, thinking, true, fed);
    size_t n_said = condense(r->said.data, r->said.n, thinking, false, said);
    if (n_fed != n_said || memcmp(fed, said, n_fed) != 0)
        abort();
    free(fed);
    free(said);
}

static void run(
        const char *text, size_t bytes, unsigned flags, json_t *tools, size_t step, struct record *r) {
    struct output_parser *p;
    if (output_parser_new(flags & 1, flags & 2 ? NULL : tools, &p) < 0)
        abort();
    for (size_t at = 0, n; at < bytes; at += n) {
        n = step < bytes - at ? step : bytes - at;
        if (output_parser_feed(p, text + at, n, on_event, r) < 0)
            abort();
    }
    if (output_parser_end(p, flags & 4, on_event, r) < 0)
        abort();
    output_parser_free(p);
    if (!r->called)
        check_said(text, bytes, flags & 1, r);
}

static void record_done(struct record *r) {
    free(r->events.data);
    free(r->arguments.data);
    free(r->said.data);
}

static const char tools_text[] =
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"i\":{\"type\":\"integer\"},"
        "\"o\":{\"type\":[\"object\",\"array\"]},\"b\":{\"type\":\"boolean\"},\"n\":{\"type\":\"number\"},"
        "\"z\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},\"u\":{\"type\":[\"string\",\"object\"]}}}}}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static json_t *tools;
    if (!tools)
        tools = json_loads(tools_text, 0, NULL);
    if (bytes < 1 || !utf8_valid((const char *)data + 1, bytes - 1, NULL))
        return 0;
    struct record whole = {.kind = -1}, cut = {.kind = -1};
    run((const char *)data + 1, bytes - 1, data[0], tools, bytes, &whole);
    run((const char *)data + 1, bytes - 1, data[0], tools, 1 + (data[0] >> 3), &cut);
    if (whole.events.n != cut.events.n ||
            (whole.events.n && memcmp(whole.events.data, cut.events.data, whole.events.n) != 0))
        abort();
    record_done(&whole);
    record_done(&cut);
    return 0;
}
