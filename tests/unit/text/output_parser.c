/* What the parser makes of whole texts, and that it makes the same of them however they are cut. A run of
 * events is written as one line: T(text) R(reasoning) B(name) A(arguments) E, neighbours of a kind joined. */
#include "text_test.h"

#include "base/buffer.h"
#include "daemon/text/output_parser.h"

#include <jansson.h>

struct record {
    struct byte_buffer text;
    int kind; /* of the last event, -1 = none */
    uint32_t calls;
};

static int on_event(void *user, const struct output_event *event) {
    struct record *r = user;
    static const char letters[] = "TRBAE";
    if (event->kind == OUTPUT_TOOL_BEGIN || event->kind == OUTPUT_TOOL_ARGUMENTS ||
            event->kind == OUTPUT_TOOL_END)
        assert_int_equal(event->tool_index, r->calls);
    if (event->kind == OUTPUT_TOOL_END)
        r->calls++;
    if ((int)event->kind != r->kind || event->kind == OUTPUT_TOOL_BEGIN || event->kind == OUTPUT_TOOL_END) {
        if (r->kind >= 0)
            byte_buffer_text(&r->text, ")");
        char open[] = {letters[event->kind], '('};
        byte_buffer_add(&r->text, open, 2);
    }
    r->kind = (int)event->kind;
    return byte_buffer_add(&r->text, event->data, event->bytes);
}

/* Feeds text in pieces of up to most bytes (whole characters; 0 = all at once) and gives the line; free() it. */
static char *events_of(
        const char *text, size_t bytes, bool thinking, json_t *tools, size_t most, uint64_t *seed) {
    struct output_parser *p = NULL;
    struct record r = {.kind = -1};
    assert_int_equal(output_parser_new(thinking, tools, &p), 0);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = most == 0 ? bytes : 1 + random_below(seed, most);
        n = n < bytes - at ? n : bytes - at;
        while (at + n < bytes && ((unsigned char)text[at + n] & 0xc0) == 0x80)
            n++;
        char *piece = malloc(n); /* of just this size, so that a sanitizer sees reads beyond it */
        memcpy(piece, text + at, n);
        assert_int_equal(output_parser_feed(p, piece, n, on_event, &r), 0);
        free(piece);
    }
    assert_int_equal(output_parser_end(p, /* end_of_turn= */ false, on_event, &r), 0);
    assert_int_equal(output_parser_tool_calls(p), r.calls);
    output_parser_free(p);
    if (r.kind >= 0)
        byte_buffer_text(&r.text, ")");
    byte_buffer_add(&r.text, "", 1);
    return r.text.data;
}

static const char tools_text[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\""
        "properties\":{"
        "\"s\":{\"type\":\"string\"},\"i\":{\"type\":\"integer\"},\"n\":{\"type\":\"number\"},\"b\":{\""
        "type\":\"boolean\"},"
        "\"z\":{\"type\":\"null\"},\"o\":{\"type\":\"object\"},\"a\":{\"type\":\"array\"},\"in\":{\"type\""
        ":[\"integer\",\"null\"]},"
        "\"sn\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},\"oa\":{\"oneOf\":[{\"type\":\""
        "object\"},{\"type\":\"array\"}]},"
        "\"u\":{\"type\":\"date\"},\"e\":{}}}}},7,{\"name\":\"g\",\"parameters\":{\"properties\":{\"i\":{\""
        "type\":\"integer\"}}}}]";

#define CALL(parameters) "<tool_call>\n<function=f>\n" parameters "</function>\n</tool_call>"
#define SET(name, value) "<parameter=" name ">\n" value "\n</parameter>\n"

static const struct {
    const char *in, *out;
    bool thinking;
} cases[] = {
        {"", "", false},
        {"hello", "T(hello)", false},
        {"a<b>\n<tool_cal\n", "T(a<b>\n<tool_cal\n)", false},
        {"<", "T(<)", false},
        {"<<<tool_call", "T(<<<tool_call)", false},
        /* reasoning */
        {"why\n</think>\n\nso", "R(why)T(so)", true},
        {"why\n\n\nnot\n</think>\n\n so\n</think>", "R(why\n\n\nnot)T( so\n</think>)", true},
        {"a</think>b", "R(a)T(b)", true},
        {"</think>", "", true},
        {"\n\n</think>\n\n\n\nx\n", "T(x\n)", true},
        {"cut off\n</thi", "R(cut off\n</thi)", true},
        {"no end\n\n", "R(no end\n\n)", true},
        {"<think>\nx\n</think>y", "R(x)T(y)", false},
        {"<think>x</think>y", "R(x)T(y)", true},
        {"<thin", "T(<thin)", false},
        {"<thin", "R(<thin)", true},
        {"<</think>x", "R(<)T(x)", true},
        {" <think>x", "R(x)", false},
        {"\n<think>\nhm\n</think>\n\nhi", "R(hm)T(hi)", false},
        {"\n<think>\nhm\n</think>\n\nhi", "R(hm)T(hi)", true},
        {" \n <thin", "T( \n <thin)", false},
        {" \n <thin", "R( \n <thin)", true},
        {"\n\nx", "T(\n\nx)", false},
        {"\n\nx\n", "R(x\n)", true},
        {"x<think>y", "T(x<think>y)", false},
        {"<tool_call>\n<function=f>\n</think>\n", "R(<tool_call>\n<function=f>)", true},
        /* calls */
        {CALL(""), "B(f)A({})E()", false},
        {"ok\n\n" CALL(SET("s", "v")), "T(ok)B(f)A({\"s\": \"v\"})E()", false},
        {"x\n</think>\n\n" CALL(SET("s", "v")) "\n", "R(x)B(f)A({\"s\": \"v\"})E()", true},
        {CALL(SET("s", "1") SET("t", "two\nlines\n")), "B(f)A({\"s\": \"1\", \"t\": \"two\\nlines\\n\"})E()",
                false},
        {CALL("") "\n" CALL("") "\n\nbye", "B(f)A({})E()B(f)A({})E()T(\n\nbye)", false},
        {"<tool_call><function=f><parameter=s>x</parameter></function></tool_call>",
                "B(f)A({\"s\": \"x\"})E()", false},
        {CALL(SET("s", "a\"\\\t\x01\xc3\xa9")), "B(f)A({\"s\": \"a\\\"\\\\\\t\\u0001\xc3\xa9\"})E()", false},
        {CALL(SET("s", "</parameter x </ <parameter=q>")),
                "B(f)A({\"s\": \"</parameter x </ <parameter=q>\"})E()", false},
        {CALL(SET("a\"b", "x")), "B(f)A({\"a\\\"b\": \"x\"})E()", false},
        {CALL("<parameter=s>\n</parameter>"), "B(f)A({\"s\": \"\"})E()", false},
        {CALL("<parameter=s></parameter>"), "B(f)A({\"s\": \"\"})E()", false},
        {CALL(SET("s", "\n\nx\n\n")), "B(f)A({\"s\": \"\\n\\nx\\n\\n\"})E()", false},
        /* two functions in one <tool_call> */
        {"<tool_call>\n<function=f>\n</function>\n<function=g>\n</function>\n</tool_call>",
                "B(f)A({})E()B(g)A({})E()", false},
        /* types */
        {CALL(SET("i", "12") SET("n", "-1.5e3") SET("b", "True") SET("z", "null")),
                "B(f)A({\"i\": 12, \"n\": -1.5e3, \"b\": true, \"z\": null})E()", false},
        {CALL(SET("i", "1.5") SET("n", "1.") SET("b", "yes") SET("z", "nil")),
                "B(f)A({\"i\": \"1.5\", \"n\": \"1.\", \"b\": \"yes\", \"z\": \"nil\"})E()", false},
        {CALL(SET("i", " 7 ") SET("in", "null")), "B(f)A({\"i\": 7, \"in\": null})E()", false},
        {CALL(SET("i", "") SET("in", "0x1")), "B(f)A({\"i\": \"\", \"in\": \"0x1\"})E()", false},
        {CALL(SET("i", "None") SET("in", "1.0")), "B(f)A({\"i\": null, \"in\": 1.0})E()", false},
        {CALL(SET("i", "123456789012345678901234567890")),
                "B(f)A({\"i\": 123456789012345678901234567890})E()", false},
        /* as long as the buffer that holds it */
        {CALL(SET("i", "1234567890123456789012345678901234567890123456789012345678901234")),
                "B(f)A({\"i\": 1234567890123456789012345678901234567890123456789012345678901234})E()", false},
        {CALL(SET("o", "{\"a\":\n[1]}") SET("a", "[]") SET("oa", "[{}]")),
                "B(f)A({\"o\": {\"a\":\n[1]}, \"a\": [], \"oa\": [{}]})E()", false},
        {CALL(SET("o", "[]") SET("a", "[1,]") SET("oa", "{'x'}")),
                "B(f)A({\"o\": \"[]\", \"a\": \"[1,]\", \"oa\": \"{'x'}\"})E()", false},
        {CALL(SET("sn", "null") SET("in", "None")), "B(f)A({\"sn\": null, \"in\": null})E()", false},
        {CALL(SET("sn", "nullable") SET("in", "3")), "B(f)A({\"sn\": \"nullable\", \"in\": 3})E()", false},
        {CALL(SET("sn", "nul")), "B(f)A({\"sn\": \"nul\"})E()", false},
        {CALL(SET("sn", "")), "B(f)A({\"sn\": \"\"})E()", false},
        {CALL(SET("s", "null") SET("u", "5") SET("e", "5") SET("unknown", "5")),
                "B(f)A({\"s\": \"null\", \"u\": \"5\", \"e\": \"5\", \"unknown\": \"5\"})E()", false},
        {"<tool_call><function=g><parameter=i>5</parameter></function></tool_call>", "B(g)A({\"i\": 5})E()",
                false},
        {"<tool_call><function=h><parameter=i>5</parameter></function></tool_call>",
                "T(<tool_call><function=h><parameter=i>5</parameter></function></tool_call>)", false},
        /* left out by the model */
        {"<tool_call>\n<function=f>\n<parameter=s>\nx\n<parameter=i>\n4\n</function>\n</tool_call>",
                "B(f)A({\"s\": \"x\", \"i\": 4})E()", false},
        {"<tool_call>\n<function=f>\n<parameter=s>\nx\n</tool_call>", "B(f)A({\"s\": \"x\"})E()", false},
        {"<tool_call>\n<function=f>\n<parameter=s>\n</function>", "B(f)A({\"s\": \"\"})E()", false},
        {"<tool_call>\n<function=f>\n</tool_call>y", "B(f)A({})E()T(y)", false},
        {"<tool_call>\n<function=f>\n</function>\n<tool_call>\n<function=g></function>",
                "B(f)A({})E()B(g)A({})E()", false},
        /* malformed */
        {"<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "T(<tool_call>\n{\"name\": \"f\"}\n</tool_call>)",
                false},
        {"<tool_call>\n<tool_call>\n<function=f>\n</function>", "T(<tool_call>)B(f)A({})E()", false},
        {"<tool_call><function=>x", "T(<tool_call><function=>x)", false},
        {"<tool_call><function=a\nb>x", "T(<tool_call><function=a\nb>x)", false},
        {"<tool_call>  <func", "T(<tool_call>  <func)", false},
        {"<tool_call><function=a", "T(<tool_call><function=a)", false},
        {CALL("junk\n" SET("i", "4")), "T(" CALL("junk\n" SET("i", "4")) ")", false},
        {CALL(SET("i", "4") "junk\n" SET("s", "v\n</parameter>\n <x> ")),
                "B(f)A({\"i\": 4)T(\njunk)A(, \"s\": \"v\\n</parameter>\\n <x> \"})E()", false},
        {CALL("<parameter=>\nv\n"), "B(f)A({)T(<parameter=>\nv)A(})E()", false},
        {"<tool_call><function=f></function> and</tool_call>", "B(f)A({})E()T( and</tool_call>)", false},
        /* cut off: the object stays open */
        {"<tool_call><function=f><parameter=s>ab\n</param", "B(f)A({\"s\": \"ab\\n</param)", false},
        {"<tool_call><function=f><parameter=i>12", "B(f)A({\"i\": \"12)", false},
        {"<tool_call><function=f><parameter=o>\n", "B(f)A({\"o\": \")", false},
        {"<tool_call><function=f><parameter=i", "B(f)A({)T(<parameter=i)", false},
        {"<tool_call><function=f></func", "T(<tool_call><function=f></func)", false},
};

static void test_cases(void **state) {
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    size_t wrong = 0;
    assert_non_null(tools);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *got = events_of(cases[i].in, strlen(cases[i].in), cases[i].thinking, tools, 0, NULL);
        if (strcmp(got, cases[i].out) != 0) {
            print_error("of      '%s'\nexpected %s\ngot      %s\n", cases[i].in, cases[i].out, got);
            wrong++;
        }
        free(got);
    }
    assert_int_equal(wrong, 0);
    json_decref(tools);
}

static void test_no_tools(void **state) {
    (void)state;
    char *got = events_of(CALL("x"), strlen(CALL("x")), false, NULL, 0, NULL);
    assert_string_equal(got, "T(" CALL("x") ")");
    free(got);
}

/* Texts made of what the machine looks at, and of the cases. */
static void make_text(struct byte_buffer *text, uint64_t *seed) {
    static const char *const bits[] = {"<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>",
            "<function=", "</function>", "<parameter=s>", "<parameter=i>", "<parameter=sn>", "<parameter=o>",
            "</parameter>", "\n", "\n\n", " ", "<", ">", "/", "x", "12", "null", "{\"a\":1}", "\"",
            "\xc3\xa9", "\xf0\x9f\x98\x80", "</", "<tool_", "word "};
    text->n = 0;
    if (random_below(seed, 4) == 0)
        byte_buffer_text(text, cases[random_below(seed, sizeof(cases) / sizeof(cases[0]))].in);
    for (size_t n = random_below(seed, 30); n > 0; n--)
        byte_buffer_text(text, bits[random_below(seed, sizeof(bits) / sizeof(bits[0]))]);
    if (random_below(seed, 4) == 0)
        byte_buffer_text(text, cases[random_below(seed, sizeof(cases) / sizeof(cases[0]))].in);
    byte_buffer_reserve(text, 1);
}

static void test_any_split(void **state) {
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    uint64_t seed = 20251123;
    struct byte_buffer text = {0};
    size_t calls = 0;
    for (size_t i = 0; i < 20000; i++) {
        make_text(&text, &seed);
        bool thinking = random_below(&seed, 2);
        json_t *offered = random_below(&seed, 8) ? tools : NULL;
        char *whole = events_of(text.data, text.n, thinking, offered, 0, NULL);
        size_t most = 1 + random_below(&seed, 12);
        char *cut = events_of(text.data, text.n, thinking, offered, most, &seed);
        if (strcmp(whole, cut) != 0)
            fail_msg("case %zu: '%.*s' gives\n%s whole, but in pieces\n%s", i, (int)text.n, text.data, whole,
                    cut);
        calls += strstr(whole, "E()") != NULL;
        free(whole);
        free(cut);
    }
    assert_true(calls > 1000); /* the texts are worth something */
    free(text.data);
    json_decref(tools);
}

struct joined {
    struct byte_buffer arguments;
    size_t checked;
};

static int join(void *user, const struct output_event *event) {
    struct joined *j = user;
    if (event->kind == OUTPUT_TOOL_BEGIN)
        j->arguments.n = 0;
    if (event->kind == OUTPUT_TOOL_ARGUMENTS)
        return byte_buffer_add(&j->arguments, event->data, event->bytes);
    if (event->kind == OUTPUT_TOOL_END) {
        json_t *value = json_loadb(j->arguments.data, j->arguments.n, JSON_DECODE_INT_AS_REAL, NULL);
        if (!json_is_object(value))
            fail_msg("these arguments are no JSON object: %.*s", (int)j->arguments.n, j->arguments.data);
        json_decref(value);
        j->checked++;
    }
    return 0;
}

/* The arguments of a whole call are one JSON object, whatever stands in the call. */
static void test_arguments_are_json(void **state) {
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    uint64_t seed = 7;
    struct byte_buffer text = {0}, call = {0};
    struct joined j = {0};
    for (size_t i = 0; i < 5000; i++) {
        make_text(&text, &seed);
        call.n = 0;
        byte_buffer_text(&call, "<tool_call>\n<function=f>\n<parameter=s>\n");
        byte_buffer_add(&call, text.data, text.n);
        byte_buffer_text(&call, "\n</parameter>\n</function>\n</tool_call>");
        struct output_parser *p;
        assert_int_equal(output_parser_new(false, tools, &p), 0);
        assert_int_equal(output_parser_feed(p, call.data, call.n, join, &j), 0);
        assert_int_equal(output_parser_end(p, true, join, &j), 0);
        output_parser_free(p);
    }
    assert_true(j.checked >= 5000);
    free(j.arguments.data);
    free(text.data);
    free(call.data);
    json_decref(tools);
}

/* Text that cannot be a tag is shown at once. */
static void test_nothing_held_back(void **state) {
    (void)state;
    struct output_parser *p;
    struct record r = {.kind = -1};
    json_t *tools = json_loads(tools_text, 0, NULL);
    assert_int_equal(output_parser_new(true, tools, &p), 0);
    json_decref(tools);
    assert_true(output_parser_in_reasoning(p));
    assert_int_equal(output_parser_feed(p, "abc", 3, on_event, &r), 0);
    assert_int_equal(r.text.n, 5); /* "R(abc" */
    assert_int_equal(output_parser_feed(p, " </th", 5, on_event, &r), 0);
    assert_int_equal(r.text.n, 6);
    assert_int_equal(output_parser_feed(p, "ink>\n\nxyz<tool_call>", 20, on_event, &r), 0);
    assert_false(output_parser_in_reasoning(p));
    assert_memory_equal(r.text.data, "R(abc )T(xyz", 12);
    assert_int_equal(r.text.n, 12);
    assert_int_equal(output_parser_feed(p, "<function=f><parameter=s>va", 27, on_event, &r), 0);
    assert_memory_equal(r.text.data + r.text.n - 8, "\"s\": \"va", 8);
    output_parser_free(p);
    free(r.text.data);
}

static int stop_at_begin(void *user, const struct output_event *event) {
    (void)user;
    return event->kind == OUTPUT_TOOL_BEGIN ? -EPIPE : 0;
}

static void test_callback_stops(void **state) {
    (void)state;
    struct output_parser *p;
    json_t *tools = json_loads(tools_text, 0, NULL);
    assert_int_equal(output_parser_new(false, tools, &p), 0);
    json_decref(tools);
    assert_int_equal(output_parser_feed(p, CALL(""), strlen(CALL("")), stop_at_begin, NULL), -EPIPE);
    output_parser_free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_cases),
            cmocka_unit_test(test_no_tools),
            cmocka_unit_test(test_any_split),
            cmocka_unit_test(test_arguments_are_json),
            cmocka_unit_test(test_nothing_held_back),
            cmocka_unit_test(test_callback_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
