/* Any text as a model's output. Byte 0: bit 0 thinking, bit 1 no tools, the rest how it is cut. The events of
 * the whole and of the pieces are the same, and the arguments of a finished call are JSON. */
#include "daemon/text/output_parser.h"
#include "base/utf8.h"
#include "daemon/text/buffer.h"

#include <stdlib.h>

struct record {
    struct byte_buffer events, arguments;
    int kind;
};

static int on_event(void *user, const struct output_event *event) {
    struct record *r = user;
    char header[8] = {'\n', (char)('0' + event->kind), (char)('0' + event->tool_index % 64), ':'};
    if ((int)event->kind != r->kind || event->kind == OUTPUT_TOOL_BEGIN || event->kind == OUTPUT_TOOL_END)
        byte_buffer_add(&r->events, header, 4);
    r->kind = (int)event->kind;
    byte_buffer_add(&r->events, event->data, event->bytes);
    if (event->kind == OUTPUT_TOOL_BEGIN)
        r->arguments.n = 0;
    if (event->kind == OUTPUT_TOOL_ARGUMENTS)
        byte_buffer_add(&r->arguments, event->data, event->bytes);
    if (event->kind == OUTPUT_TOOL_END) {
        json_t *value =
                json_loadb(r->arguments.data, r->arguments.n, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, NULL);
        /* a number beyond double precision is JSON, but not to jansson */
        if (!json_is_object(value) && !memchr(r->arguments.data, 'e', r->arguments.n) &&
                !memchr(r->arguments.data, 'E', r->arguments.n) && r->arguments.n < 300)
            abort();
        json_decref(value);
    }
    return 0;
}

static void run(
        const char *text, size_t bytes, unsigned flags, json_t *tools, size_t step, struct record *r) {
    struct output_parser *p;
    if (output_parser_new(flags & 1, !(flags & 2), tools, &p) < 0)
        abort();
    for (size_t at = 0, n; at < bytes; at += n) {
        n = step < bytes - at ? step : bytes - at;
        if (output_parser_feed(p, text + at, n, on_event, r) < 0)
            abort();
    }
    if (output_parser_end(p, on_event, r) < 0)
        abort();
    output_parser_free(p);
}

static const char tools_text[] =
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"i\":{\"type\":\"integer\"},"
        "\"o\":{\"type\":[\"object\",\"array\"]},\"b\":{\"type\":\"boolean\"},\"n\":{\"type\":\"number\"},"
        "\"z\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}}}}}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static json_t *tools;
    if (!tools)
        tools = json_loads(tools_text, 0, NULL);
    if (bytes < 1 || !utf8_valid((const char *)data + 1, bytes - 1, NULL))
        return 0;
    struct record whole = {.kind = -1}, cut = {.kind = -1};
    run((const char *)data + 1, bytes - 1, data[0], tools, bytes, &whole);
    run((const char *)data + 1, bytes - 1, data[0], tools, 1 + (data[0] >> 2), &cut);
    if (whole.events.n != cut.events.n ||
            (whole.events.n && memcmp(whole.events.data, cut.events.data, whole.events.n) != 0))
        abort();
    free(whole.events.data);
    free(whole.arguments.data);
    free(cut.events.data);
    free(cut.arguments.data);
    return 0;
}
