/* What models are known to say where they should have said a call, and what is made of it. */
#include "text_test.h"

#include "base/buffer.h"
#include "daemon/text/output_parser.h"

#include <jansson.h>

/* Events as one line: T(text) R(reasoning) name{arguments}, and ! behind a call that has no end. */
struct line {
    struct byte_buffer text;
    int kind;
};

static int on_event(void *user, const struct output_event *event) {
    struct line *l = user;
    static const char *const opened[] = {"T(", "R(", "", "", ""};
    bool said = event->kind == OUTPUT_TEXT || event->kind == OUTPUT_REASONING;
    if (l->kind == OUTPUT_TOOL_ARGUMENTS && event->kind != OUTPUT_TOOL_ARGUMENTS &&
            event->kind != OUTPUT_TOOL_END)
        byte_buffer_text(&l->text, "!");
    if ((l->kind == OUTPUT_TEXT || l->kind == OUTPUT_REASONING) && (int)event->kind != l->kind)
        byte_buffer_text(&l->text, ")");
    if (said && (int)event->kind != l->kind)
        byte_buffer_text(&l->text, opened[event->kind]);
    l->kind = (int)event->kind;
    return byte_buffer_add(&l->text, event->data, event->bytes);
}

static char *line_of(const char *said, bool thinking, bool end_of_turn, json_t *tools, size_t step) {
    struct output_parser *p = NULL;
    struct line l = {.kind = -1};
    size_t bytes = strlen(said);
    assert_int_equal(output_parser_new(thinking, tools, &p), 0);
    for (size_t at = 0; at < bytes; at += step)
        assert_int_equal(
                output_parser_feed(p, said + at, step < bytes - at ? step : bytes - at, on_event, &l), 0);
    assert_int_equal(output_parser_end(p, end_of_turn, on_event, &l), 0);
    output_parser_free(p);
    byte_buffer_text(&l.text, l.kind == OUTPUT_TOOL_ARGUMENTS                       ? "!"
                              : l.kind == OUTPUT_TEXT || l.kind == OUTPUT_REASONING ? ")"
                                                                                    : "");
    byte_buffer_add(&l.text, "", 1);
    return l.text.data;
}

static const char tools_text[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"t\",\"parameters\":{\"type\":\"object\",\"properties\":{"
        "\"s\":{\"type\":\"string\"},\"o\":{\"type\":\"object\"},\"i\":{\"type\":\"integer\"},"
        "\"ni\":{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}]},\"ns\":{\"type\":[\"string\",\"null\"]},"
        "\"no\":{\"oneOf\":[{\"$ref\":\"#/$defs/In\"},{\"type\":\"null\"}]},\"any\":{},"
        "\"p\":{\"$ref\":\"#/$defs/In\"},\"a\":{\"allOf\":[{\"type\":\"object\"}]},"
        "\"d\":{\"anyOf\":[{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}]}]},\"e\":{\"enum\":[1,2,3]},"
        "\"c\":{\"const\":true},\"pr\":{\"properties\":{}},\"it\":{\"items\":{}},"
        "\"si\":{\"type\":[\"string\",\"integer\"]},\"sl\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\"}]},"
        "\"up\":{\"type\":\"INTEGER\"},\"pct\":{\"$ref\":\"#/%24defs/a%7e1b\"},\"mp\":{\"minProperties\":0},"
        "\"ui\":{\"unevaluatedItems\":false},\"an\":{\"$ref\":\"#anchor\"},"
        "\"two words\":{\"type\":\"string\"}},"
        "\"$defs\":{\"a/b\":{\"type\":\"integer\"},"
        "\"In\":{\"type\":\"object\",\"properties\":{\"q\":{\"type\":\"string\"}}}}}}},"
        "{\"type\":\"function\",\"function\":{\"name\":\"need\",\"parameters\":{\"properties\":{\"s\":{\"type\":"
        "\"string\"}},\"required\":[\"s\"]}}}]";

#define BEGIN     "<tool_call>\n<function=t>\n"
#define END       "</function>\n</tool_call>"
#define SET(n, v) "<parameter=" n ">\n" v "\n</parameter>\n"

enum { THINKING = 1, CUT = 2 }; /* the reasoning is open; the stream did not end by a stop id */

static const struct {
    const char *said, *made;
    unsigned flags;
} cases[] = {
        /* a close tag inside a value */
        {BEGIN SET("s", "echo \"</parameter>\" done") END, "t{\"s\": \"echo \\\"</parameter>\\\" done\"}", 0},
        {BEGIN SET("s", "a\n</parameter>\nb") END, "t{\"s\": \"a\\n</parameter>\\nb\"}", 0},
        {BEGIN SET("s", "a\n</function>\nb") END, "t{\"s\": \"a\\n</function>\\nb\"}", 0},
        {BEGIN SET("s", "a\n</tool_call>\nb") END, "t{\"s\": \"a\\n</tool_call>\\nb\"}", 0},
        {BEGIN SET("s", "a\n<parameter=x>\nb") END, "t{\"s\": \"a\\n<parameter=x>\\nb\"}", 0},
        {BEGIN SET("o", "{\"k\": \"</parameter>\"}") END, "t{\"o\": {\"k\": \"</parameter>\"}}", 0},
        {BEGIN SET("o", "{\"k\": \"\\n</function>\\n</tool_call>\"}") END,
                "t{\"o\": {\"k\": \"\\n</function>\\n</tool_call>\"}}", 0},
        {BEGIN SET("s", "a\n</parameter>\n</function>\n</tool_call>\nb") END,
                "t{\"s\": \"a\\n</parameter>\\n</function>\\n</tool_call>\\nb\"}", 0},
        {BEGIN SET("s", "a") END "\nb", "t{\"s\": \"a\"}T(\nb)", 0},
        {BEGIN SET("s", "a") END "\nb\n" BEGIN SET("s", "c") END, "t{\"s\": \"a\"}T(\nb)t{\"s\": \"c\"}", 0},
        {BEGIN SET("s", BEGIN SET("s", "x") END "\nand\n" BEGIN SET("i", "1") END) END,
                "t{\"s\": \"<tool_call>\\n<function=t>\\n<parameter=s>\\nx\\n</parameter>\\n</function>\\n"
                "</tool_call>"
                "\\nand\\n<tool_call>\\n<function=t>\\n<parameter=i>\\n1\\n</parameter>\\n</function>\\n"
                "</tool_call>\"}",
                0},
        /* a close tag left out */
        {BEGIN "<parameter=o>\n{\"x\": 1}" END, "t{\"o\": {\"x\": 1}}", 0},
        {BEGIN "<parameter=s>\nx" END, "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n" END, "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx</tool_call>", "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n</parameter>\n</tool_call>", "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n</parameter>\n</function>", "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n</parameter>\n</function>\nBye", "t{\"s\": \"x\"}T(\nBye)", 0},
        {BEGIN "<parameter=s>\nx\n<parameter=i>\n4\n</parameter>\n" END, "t{\"s\": \"x\", \"i\": 4}", 0},
        {BEGIN "<parameter=i>\n4<parameter=s>\nx\n</parameter>\n" END, "t{\"i\": 4, \"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n<parameter=i> is one\n</parameter>\n" END,
                "t{\"s\": \"x\\n<parameter=i> is one\"}", 0},
        {BEGIN SET("s", "<parameter=o>") END, "t{\"s\": \"<parameter=o>\"}", 0},
        {BEGIN SET("s", "<parameter=o>x") END, "t{\"s\": \"<parameter=o>x\"}", 0},
        {BEGIN SET("s", "x") "</function>\n" BEGIN SET("i", "4") END, "t{\"s\": \"x\"}t{\"i\": 4}", 0},
        {BEGIN "<parameter=o>\n{\"x\": \"1\n</parameter>\n" END, "t{\"o\": \"{\\\"x\\\": \\\"1\"}", 0},
        /* null */
        {BEGIN SET("ni", "None") SET("ns", "None") SET("no", "None") SET("i", "None") END,
                "t{\"ni\": null, \"ns\": null, \"no\": null, \"i\": null}", 0},
        {BEGIN SET("ni", "null") SET("ns", "null") SET("no", "null") SET("i", "null") END,
                "t{\"ni\": null, \"ns\": null, \"no\": null, \"i\": null}", 0},
        {BEGIN SET("s", "None") SET("any", "null") END, "t{\"s\": \"None\", \"any\": \"null\"}", 0},
        {BEGIN SET("ns", "Nonesuch") SET("ni", "Nonesuch") END,
                "t{\"ns\": \"Nonesuch\", \"ni\": \"Nonesuch\"}", 0},
        /* schemas */
        {BEGIN SET("p", "{\"q\": \"z\"}") SET("a", "{\"q\": 1}") SET("d", "7") SET("e", "2") END,
                "t{\"p\": {\"q\": \"z\"}, \"a\": {\"q\": 1}, \"d\": 7, \"e\": 2}", 0},
        {BEGIN SET("c", "True") SET("pr", "{}") SET("it", "[1]") END,
                "t{\"c\": true, \"pr\": {}, \"it\": [1]}", 0},
        {BEGIN SET("up", "7") SET("pct", "7") SET("mp", "{}") SET("ui", "[]") SET("an", "7") END,
                "t{\"up\": 7, \"pct\": 7, \"mp\": {}, \"ui\": [], \"an\": \"7\"}", 0},
        {BEGIN SET("si", "5") SET("sl", "[\"5\"]") END, "t{\"si\": 5, \"sl\": [\"5\"]}", 0},
        {BEGIN SET("si", "5 apples") SET("sl", "[no") END, "t{\"si\": \"5 apples\", \"sl\": \"[no\"}", 0},
        /* keys that come twice count once, so that the call can come back as history */
        {BEGIN SET("s", "one") SET("s", "two") END, "t{\"s\": \"one\"}", 0},
        {BEGIN SET("i", "1") SET("s", "x") SET("i", "2") SET("o", "{}") END,
                "t{\"i\": 1, \"s\": \"x\", \"o\": {}}", 0},
        {BEGIN SET("o", "{\"k\": 1, \"k\": 2}") END, "t{\"o\": {\"k\": 2}}", 0},
        /* the end of the turn, and a stream that was cut, inside a call */
        {BEGIN SET("s", "x"), "t{\"s\": \"x\"}", 0},
        {BEGIN "<parameter=s>\nx\n</parameter>", "t{\"s\": \"x\"}", 0},
        {BEGIN SET("s", "x") "</function>\n", "t{\"s\": \"x\"}", 0},
        {BEGIN SET("s", "x") "<parameter=o>\n{\"x\": 1}", "t{\"s\": \"x\", \"o\": {\"x\": 1}}", 0},
        {BEGIN SET("s", "x") "<parameter=o>\n{\"x\": ", "t{\"s\": \"x\", \"o\": \"{\\\"x\\\": !", 0},
        {BEGIN "<parameter=s>\nrm -rf /tmp/", "t{\"s\": \"rm -rf /tmp/!", 0},
        {BEGIN SET("s", "x"), "t{\"s\": \"x\"!", CUT},
        {BEGIN "<parameter=s>\nsay </function>", "t{\"s\": \"say </function>!", CUT},
        {BEGIN, "t{}", 0},
        {BEGIN, "T(" BEGIN ")", CUT},
        {"<tool_call>\n<function=need>\n", "T(<tool_call>\n<function=need>\n)", 0},
        /* the opening left out; quotes around names */
        {"Ok.\n\n<function=t>\n" SET("s", "x") END, "T(Ok.)t{\"s\": \"x\"}", 0},
        {"<function=t>\n" SET("s", "x") "</function>", "t{\"s\": \"x\"}", 0},
        {"<function=u>\n" SET("s", "x") END, "T(<function=u>\n" SET("s", "x") END ")", 0},
        {"<tool_call>\n<function=\"t\">\n<parameter=\"s\">\nx\n</parameter>\n" END, "t{\"s\": \"x\"}", 0},
        {"<tool_call>\n<function='t'>\n<parameter= s >\nx\n</parameter>\n" END, "t{\"s\": \"x\"}", 0},
        {BEGIN SET("two words", "x") SET("\"new\"", "y") END,
                "t{\"two words\": \"x\", \"\\\"new\\\"\": \"y\"}", 0},
        /* prose that shows the syntax, and tools that were not offered */
        {"Write <tool_call>\n<function=NAME>\nand so on. Bye",
                "T(Write <tool_call>\n<function=NAME>\nand so on. Bye)", 0},
        {"Write <tool_call>\n<function=t>\nand so on. Bye\n",
                "T(Write <tool_call>\n<function=t>\nand so on. Bye\n)", 0},
        {"Use <function=t> and </function>.", "T(Use <function=t> and </function>.)", 0},
        {"<tool_call>\n<function=NAME>\n" SET("s", "x") END,
                "T(<tool_call>\n<function=NAME>\n" SET("s", "x") END ")", 0},
        {"<tool_call>\n<function=NAME>\n" SET("s", "x"), "T(<tool_call>\n<function=NAME>\n" SET("s", "x") ")",
                0},
        {BEGIN SET("i", "4") END "\n<tool_call>\n<function=NAME>\n" END,
                "t{\"i\": 4}T(\n<tool_call>\n<function=NAME>\n" END ")", 0},
        /* a call in reasoning */
        {"Need it.\n" BEGIN SET("s", "x") END, "R(Need it.)t{\"s\": \"x\"}", THINKING},
        {BEGIN SET("s", "x") END, "t{\"s\": \"x\"}", THINKING},
        {"Need it.\n" BEGIN SET("s", "x"), "R(Need it.)t{\"s\": \"x\"}", THINKING},
        {"<think>\nNeed it.\n" BEGIN SET("s", "x") END "\n", "R(Need it.)t{\"s\": \"x\"}", 0},
        {"Maybe\n" BEGIN SET("s", "x") END "\nor not.\n</think>\n\nNo.",
                "R(Maybe\n" BEGIN SET("s", "x") END "\nor not.)T(No.)", THINKING},
        {"Maybe\n" BEGIN SET("s", "x") END "\n</think>\n\n" BEGIN SET("s", "y") END,
                "R(Maybe\n" BEGIN SET("s", "x") END ")t{\"s\": \"y\"}", THINKING},
        {"Maybe\n" BEGIN "<parameter=s>\nx", "R(Maybe\n" BEGIN "<parameter=s>\nx)", THINKING},
        {"Need it.\n<function=t>\n" SET("s", "x") END, "R(Need it.)t{\"s\": \"x\"}", THINKING},
        {"So <function=t> it is.\n" BEGIN SET("s", "x") END, "R(So <function=t> it is.)t{\"s\": \"x\"}",
                THINKING},
        {"Maybe\n<function=t>\n" SET("s", "x") "</function>\n</think>\n\nNo.",
                "R(Maybe\n<function=t>\n" SET("s", "x") "</function>)T(No.)", THINKING},
        {"Say <tool_call>\n<function=NAME>.\n", "R(Say <tool_call>\n<function=NAME>.\n)", THINKING},
        /* white space around the tags of thinking */
        {"\n<think>\nhm\n</think>\n\nhi", "R(hm)T(hi)", 0},
        {"\n<think>\nhm\n</think>\n\nhi", "R(hm)T(hi)", THINKING},
        {"\n\nhi", "T(\n\nhi)", 0},
};

static void test_cases(void **state) {
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    size_t wrong = 0;
    assert_non_null(tools);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (size_t step = 1; step < 30; step += 7) {
            char *got =
                    line_of(cases[i].said, cases[i].flags & THINKING, !(cases[i].flags & CUT), tools, step);
            if (strcmp(got, cases[i].made) != 0 && wrong++ < 20)
                print_error("said   '%s'\nwanted %s\ngot    %s\n", cases[i].said, cases[i].made, got);
            free(got);
        }
    assert_int_equal(wrong, 0);
    json_decref(tools);
}

/* What is said of the text after so many bytes. */
static void test_streams(void **state) {
    (void)state;
    static const char said[] = BEGIN "<parameter=s>\necho \"</parameter>\" and so on";
    json_t *tools = json_loads(tools_text, 0, NULL);
    struct output_parser *p = NULL;
    struct line l = {.kind = -1};
    assert_int_equal(output_parser_new(false, tools, &p), 0);
    assert_int_equal(output_parser_feed(p, said, sizeof(said) - 1, on_event, &l), 0);
    byte_buffer_add(&l.text, "", 1);
    assert_string_equal(l.text.data, "t{\"s\": \"echo \\\"</parameter>\\\" and so on");
    output_parser_free(p);
    free(l.text.data);
    json_decref(tools);
}

/* A schema that never ends is no reason to look for ever, nor is a text of nothing but beginnings. */
static void test_hostile(void **state) {
    (void)state;
    static const char schema[] =
            "[{\"function\":{\"name\":\"t\",\"parameters\":{\"properties\":{\"s\":{\"$ref\":\"#/$defs/A\"}},"
            "\"$defs\":{\"A\":{\"anyOf\":[{\"$ref\":\"#/$defs/A\"},{\"$ref\":\"#/$defs/A\"},{\"$ref\":\"#/$defs/A\"},"
            "{\"$ref\":\"#/$defs/A\"},{\"$ref\":\"#/$defs/A\"},{\"$ref\":\"#/$defs/A\"}]}}}}}]";
    static const char *const bits[] = {"</parameter>", "</parameter>\n</function>\n</tool_call>x",
            "<tool_call>", "<function=", BEGIN, " ", "<", SET("s", "x")};
    json_t *tools = json_loads(schema, 0, NULL);
    assert_non_null(tools);
    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        struct byte_buffer text = {0};
        byte_buffer_text(&text, BEGIN "<parameter=s>\n");
        while (text.n < 50000)
            byte_buffer_text(&text, bits[i]);
        byte_buffer_add(&text, "", 1);
        free(line_of(text.data, false, true, tools, 13));
        free(line_of(text.data, true, true, tools, 13));
        free(text.data);
    }
    json_decref(tools);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_cases),
            cmocka_unit_test(test_streams),
            cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
