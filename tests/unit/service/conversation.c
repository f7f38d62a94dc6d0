/* conversation.c - chat messages and tools as the template's JSON, and every refusal of them. */
#include "daemon/service/conversation.h"

#include "base/limits.h"
#include "daemon/service/message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One message of each kind that a case needs, by value: nothing to free. */
struct draft {
    Shardd__V1__ChatInput chat;
    Shardd__V1__Message messages[3], *message_list[3];
    Shardd__V1__Part parts[2], *part_list[PARTS_MAX + 1];
    Shardd__V1__ToolCall call, *call_list[TOOL_CALLS_MAX + 1];
    Shardd__V1__Tool tool, *tool_list[TOOLS_MAX + 1];
};

static const char tool_json[] = "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}";

static void set_json(ProtobufCBinaryData *to, const char *text) {
    *to = message_string(text);
}

/* user "Hi there" in two parts; assistant with reasoning and a call; tool. One tool offered. */
static void draft_init(struct draft *d) {
    static const char *const roles[] = {"user", "assistant", "tool"};
    memset(d, 0, sizeof(*d));
    shardd__v1__chat_input__init(&d->chat);
    for (int i = 0; i < 3; i++) {
        shardd__v1__message__init(&d->messages[i]);
        d->messages[i].role = message_string(roles[i]);
        d->message_list[i] = &d->messages[i];
    }
    for (int i = 0; i < 2; i++) {
        shardd__v1__part__init(&d->parts[i]);
        d->parts[i].part_case = SHARDD__V1__PART__PART_TEXT;
        d->parts[i].text = message_string(i ? "there" : "Hi ");
    }
    for (size_t i = 0; i <= PARTS_MAX; i++)
        d->part_list[i] = &d->parts[i > 0];
    shardd__v1__tool_call__init(&d->call);
    d->call.id = message_string("c1");
    d->call.name = message_string("f");
    set_json(&d->call.arguments_json, "{\"x\": [1, 2.5, null, \"\\u00e9\"]}");
    for (size_t i = 0; i <= TOOL_CALLS_MAX; i++)
        d->call_list[i] = &d->call;
    shardd__v1__tool__init(&d->tool);
    set_json(&d->tool.json, tool_json);
    for (size_t i = 0; i <= TOOLS_MAX; i++)
        d->tool_list[i] = &d->tool;
    d->chat.messages = d->message_list;
    d->chat.n_messages = 3;
    d->chat.tools = d->tool_list;
    d->chat.n_tools = 1;
    d->messages[0].content = d->messages[2].content = d->part_list;
    d->messages[0].n_content = d->messages[2].n_content = 2;
    d->messages[1]._reasoning_case = SHARDD__V1__MESSAGE___REASONING_REASONING;
    d->messages[1].reasoning = message_string("hm");
    d->messages[1].tool_calls = d->call_list;
    d->messages[1].n_tool_calls = 1;
    d->messages[2].tool_call_id = message_string("c1");
}

static void test_shape(void **state) {
    (void)state;
    static const char wanted[] =
            "{\"m\":[{\"role\":\"user\",\"content\":\"Hi there\"},{\"role\":\"assistant\",\"content\":null,"
            "\"reasoning_content\":\"hm\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
            "{\"x\":[1,2.5,null,\"\303\251\"]}},\"id\":\"c1\",\"type\":\"function\"}]},"
            "{\"role\":\"tool\",\"content\":\"Hi there\","
            "\"tool_call_id\":\"c1\"}],"
            "\"t\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]}";
    struct draft d;
    struct conversation c;
    struct rpc_status s;
    draft_init(&d);
    assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
    json_t *all = json_pack("{s:O,s:O}", "m", c.messages, "t", c.tools);
    json_t *expected = json_loads(wanted, 0, NULL);
    assert_non_null(expected);
    assert_true(json_equal(all, expected));
    json_decref(all);
    json_decref(expected);
    conversation_done(&c);
}

static void test_no_tools(void **state) {
    (void)state;
    struct draft d;
    struct conversation c;
    struct rpc_status s;
    draft_init(&d);
    d.chat.n_tools = 0;
    d.chat.n_messages = 1;
    assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
    assert_null(c.tools);
    assert_int_equal(json_array_size(c.messages), 1);
    conversation_done(&c);
}

static char deep[2 * JSON_DEPTH_MAX + 64], big[REQUEST_JSON_BYTES_MAX + 64];

/* {"a":[[[...]]]} with so many levels in all. */
static const char *nested(size_t levels) {
    size_t n = 0;
    n += (size_t)snprintf(deep, sizeof(deep), "{\"a\":");
    for (size_t i = 1; i < levels; i++)
        deep[n++] = '[';
    for (size_t i = 1; i < levels; i++)
        deep[n++] = ']';
    deep[n++] = '}';
    deep[n] = '\0';
    return deep;
}

static const char *large(size_t bytes) {
    size_t n = (size_t)snprintf(big, sizeof(big), "{\"a\":\"");
    memset(big + n, 'x', bytes - n - 2);
    memcpy(big + bytes - 2, "\"}", 3);
    return big;
}

#define CASES                                                                                                \
    X(0, d->chat.n_messages = 0, "missing_input", "chat.messages has 0")                                     \
    X(1, d->messages[0].role = message_string("robot"), "invalid_field", "chat.messages[0].role")            \
    X(2, d->messages[0].role = message_text("user\0", 5), "invalid_field", "chat.messages[0].role")          \
    X(3, d->messages[0].n_content = PARTS_MAX + 1, "invalid_field", "chat.messages[0].content has 257")      \
    X(4, d->parts[1].part_case = 0, "missing_input", "chat.messages[0].content[1]")                          \
    X(5, d->parts[1].text = message_string("\xc0\x80"), "invalid_utf8", "chat.messages[0].content[1].text")  \
    X(6, d->messages[1].reasoning = message_string("\xed\xa0\x80"), "invalid_utf8",                          \
            "chat.messages[1].reasoning")                                                                    \
    X(7, d->messages[0]._reasoning_case = d->messages[1]._reasoning_case, "conflicting_fields", "reasoning") \
    X(8, (d->messages[0].tool_calls = d->call_list, d->messages[0].n_tool_calls = 1), "conflicting_fields",  \
            "chat.messages[0]: only a message of the assistant has tool_calls")                              \
    X(9, d->messages[0].tool_call_id = message_string("x"), "conflicting_fields", "tool_call_id")            \
    X(10, d->messages[1].n_tool_calls = TOOL_CALLS_MAX + 1, "invalid_field", "tool_calls has 257")           \
    X(11, d->call.name = message_string(""), "invalid_field", "chat.messages[1].tool_calls[0].name")         \
    X(12, d->call.name = message_string("\xff"), "invalid_utf8", "chat.messages[1].tool_calls[0].name")      \
    X(13, d->call.id = message_string("\xff"), "invalid_utf8", "chat.messages[1].tool_calls[0].id")          \
    X(14, set_json(&d->call.arguments_json, "nul"), "invalid_json",                                          \
            "chat.messages[1].tool_calls[0].arguments_json")                                                 \
    X(15, set_json(&d->call.arguments_json, "[1]"), "invalid_json", "must be a JSON object")                 \
    X(16, set_json(&d->call.arguments_json, "{\"a\":1,\"a\":2}"), "invalid_json", "duplicate")               \
    X(17, set_json(&d->call.arguments_json, "{\"a\":\"\xff\"}"), "invalid_json", "arguments_json")           \
    X(18, set_json(&d->call.arguments_json, "{} {}"), "invalid_json", "arguments_json")                      \
    X(19, set_json(&d->call.arguments_json, nested(JSON_DEPTH_MAX + 1)), "invalid_json", "64 levels deep")   \
    X(20, set_json(&d->tool.json, "{}"), "invalid_json", "chat.tools[0].json must look like")                \
    X(21, set_json(&d->tool.json, "{\"type\":\"function\",\"function\":{\"name\":\"\"}}"), "invalid_json",   \
            "chat.tools[0].json must look like")                                                             \
    X(22, d->chat.n_tools = TOOLS_MAX + 1, "invalid_field", "chat.tools has 257")                            \
    X(23, set_json(&d->call.arguments_json, large(REQUEST_JSON_BYTES_MAX)), "invalid_json",                  \
            "more than 1048576 bytes")                                                                       \
    X(24, d->messages[2].tool_call_id = message_string("\xff"), "invalid_utf8",                              \
            "chat.messages[2].tool_call_id")

static void spoil(struct draft *d, int number) {
    switch (number) {
#define X(n, how, code, word)                                                                                \
    case n:                                                                                                  \
        how;                                                                                                 \
        break;
        CASES
#undef X
    }
}

static const struct {
    const char *code, *word;
} expected[] = {
#define X(n, how, code, word) [n] = {code, word},
        CASES
#undef X
};

static void test_refusals(void **state) {
    (void)state;
    for (int i = 0; i < (int)(sizeof(expected) / sizeof(expected[0])); i++) {
        struct draft d;
        struct conversation c;
        struct rpc_status s = {0};
        draft_init(&d);
        spoil(&d, i);
        int r = conversation_build(&d.chat, &c, &s);
        if (r == 0 || strcmp(s.code, expected[i].code) != 0 || !strstr(s.text, expected[i].word))
            print_message("case %d: %d %s: %s\n", i, r, r < 0 ? s.code : "", s.text);
        assert_true(r < 0);
        assert_string_equal(s.code, expected[i].code);
        assert_non_null(strstr(s.text, expected[i].word));
    }
}

/* Clients leave out the arguments of a function that has none. */
static void test_no_arguments_are_an_empty_object(void **state) {
    (void)state;
    static const char *const nothing[] = {NULL, "", " ", "\n\t \r", "null", " null\n", "{}", " { } "};
    for (size_t i = 0; i < sizeof(nothing) / sizeof(nothing[0]); i++) {
        struct draft d;
        struct conversation c;
        struct rpc_status s;
        draft_init(&d);
        d.call.arguments_json = nothing[i] ? message_string(nothing[i]) : (ProtobufCBinaryData){0, NULL};
        assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
        const json_t *call = json_array_get(json_object_get(json_array_get(c.messages, 1), "tool_calls"), 0);
        const json_t *arguments = json_object_get(json_object_get(call, "function"), "arguments");
        assert_true(json_is_object(arguments));
        assert_int_equal(json_object_size(arguments), 0);
        conversation_done(&c);
    }
}

static void test_limits_are_reached_not_passed(void **state) {
    (void)state;
    struct draft d;
    struct conversation c;
    struct rpc_status s;
    draft_init(&d);
    set_json(&d.call.arguments_json, nested(JSON_DEPTH_MAX));
    assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
    conversation_done(&c);
    draft_init(&d);
    set_json(&d.call.arguments_json, large(REQUEST_JSON_BYTES_MAX - (sizeof(tool_json) - 1)));
    assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
    conversation_done(&c);
    draft_init(&d); /* brackets in a string are no nesting */
    set_json(&d.call.arguments_json,
            "{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[\"}");
    assert_int_equal(conversation_build(&d.chat, &c, &s), 0);
    conversation_done(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_shape),
            cmocka_unit_test(test_no_tools),
            cmocka_unit_test(test_refusals),
            cmocka_unit_test(test_no_arguments_are_an_empty_object),
            cmocka_unit_test(test_limits_are_reached_not_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
