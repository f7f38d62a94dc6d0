/* What the chat template writes for a call in a conversation is read back as the same call, for every JSON value:
 * the text is cut anywhere, the arguments are compared as JSON. */
#include "text_test.h"

#include "base/buffer.h"
#include "daemon/text/chat_json.h"
#include "daemon/text/chat_template.h"
#include "daemon/text/output_parser.h"

/* What was called, as one line of JSON: [{"name": ..., "arguments": ...}, ...]; and what was said beside it. */
struct heard {
    struct byte_buffer calls, arguments, said;
    uint32_t begun, ended;
};

static int hear(void *user, const struct output_event *event) {
    struct heard *h = user;
    switch (event->kind) {
    case OUTPUT_TOOL_BEGIN:
        h->begun++;
        byte_buffer_text(&h->calls, h->begun > 1 ? ", {\"name\": " : "{\"name\": ");
        chat_json_append_string(&h->calls, event->data, event->bytes);
        byte_buffer_text(&h->calls, ", \"arguments\": ");
        return 0;
    case OUTPUT_TOOL_ARGUMENTS:
        return byte_buffer_add(&h->calls, event->data, event->bytes);
    case OUTPUT_TOOL_END:
        h->ended++;
        return byte_buffer_text(&h->calls, "}");
    default:
        return byte_buffer_add(&h->said, event->data, event->bytes);
    }
}

static void heard_done(struct heard *h) {
    free(h->calls.data);
    free(h->said.data);
}

static void feed(
        struct heard *h, json_t *tools, const char *text, size_t bytes, size_t most, uint64_t *seed) {
    struct output_parser *p = NULL;
    assert_int_equal(output_parser_new(false, tools, &p), 0);
    byte_buffer_text(&h->calls, "[");
    for (size_t at = 0, n; at < bytes; at += n) {
        n = most ? 1 + random_below(seed, most) : bytes;
        n = n < bytes - at ? n : bytes - at;
        assert_int_equal(output_parser_feed(p, text + at, n, hear, h), 0);
    }
    assert_int_equal(output_parser_end(p, /* end_of_turn= */ true, hear, h), 0);
    output_parser_free(p);
    byte_buffer_add(&h->calls, "]", 2);
    byte_buffer_add(&h->said, "", 1);
}

static json_t *parse(const char *text) {
    json_t *value = NULL;
    struct error e = {0};
    if (chat_json_loads(text, strlen(text), true, "json", &value, &e) < 0)
        fail_msg("%s: %s", e.text, text);
    return value;
}

/* calls: [{name, arguments}]. The text that the template writes for them; free() it. */
static char *render(json_t *calls) {
    static const struct chat_template template = {CHAT_TEMPLATE_QWEN35, "qwen3.5", true};
    static const char begin[] = "assistant\n<think>\n\n</think>\n\n", end[] = "<|im_end|>\n";
    struct chat_options options = {.enable_thinking = 0};
    struct chat_rendered got;
    struct error e = {0};
    json_t *messages = json_pack("[{s:s,s:s},{s:s,s:s,s:O}]", "role", "user", "content", "x", "role",
            "assistant", "content", "", "tool_calls", calls);
    if (chat_template_render(&template, messages, &options, &got, &e) < 0)
        fail_msg("%s", e.text);
    json_decref(messages);
    char *from = strstr(got.text, begin);
    assert_non_null(from);
    from += sizeof(begin) - 1;
    char *text = strndup(from, got.bytes - (size_t)(from - got.text) - (sizeof(end) - 1));
    chat_rendered_done(&got);
    return text;
}

static bool reads_back(json_t *tools, json_t *calls, size_t most, uint64_t *seed, bool loud) {
    struct heard h = {0};
    char *wanted = chat_json_dumps(calls), *text = render(calls);
    feed(&h, tools, text, strlen(text), most, seed);
    bool whole = h.ended == json_array_size(calls) && h.begun == h.ended;
    json_t *got = whole ? parse(h.calls.data) : NULL;
    char *again = got ? chat_json_dumps(got) : NULL;
    bool right = again && strcmp(again, wanted) == 0 && h.said.data[0] == 0;
    if (!right && loud)
        print_error(
                "written:\n%s\nwanted %s\ngot    %s\nsaid   %s\n", text, wanted, h.calls.data, h.said.data);
    json_decref(got);
    free(again);
    free(wanted);
    free(text);
    heard_done(&h);
    return right;
}

/* One function with a parameter of each kind of schema; values[kind] says which JSON it may take. */
static const char tools_text[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
        "\"$defs\":{\"In\":{\"type\":\"object\",\"properties\":{\"next\":{\"$ref\":\"#/$defs/In\"}}},"
        "\"Num\":{\"$ref\":\"#/definitions/N2\"},\"Loop\":{\"anyOf\":[{\"$ref\":\"#/$defs/Loop\"},"
        "{\"$ref\":\"#/$defs/Loop\"}]}},"
        "\"definitions\":{\"N2\":{\"type\":\"number\"}},\"properties\":{"
        "\"s\":{\"type\":\"string\"},\"s_none\":{\"description\":\"no type\"},\"s_enum\":{\"enum\":[\"a\",\"b\"]},"
        "\"s_loop\":{\"$ref\":\"#/$defs/Loop\"},\"s_lost\":{\"$ref\":\"#/$defs/Nothing\"},\"s_true\":true,"
        "\"i\":{\"type\":\"integer\"},\"i_enum\":{\"enum\":[1,2,3]},\"i_const\":{\"const\":7},"
        "\"n_ref\":{\"$ref\":\"#/$defs/Num\"},\"n\":{\"type\":\"number\"},\"n_min\":{\"minimum\":0},"
        "\"b\":{\"type\":\"boolean\"},\"b_all\":{\"allOf\":[{\"title\":\"t\"},{\"type\":\"boolean\"}]},"
        "\"z\":{\"type\":\"null\"},\"iz\":{\"type\":[\"integer\",\"null\"]},"
        "\"iz_any\":{\"anyOf\":[{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}]}]},"
        "\"sz\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},"
        "\"sz_api\":{\"type\":\"string\",\"nullable\":true},"
        "\"o\":{\"type\":\"object\"},\"o_ref\":{\"$ref\":\"#/$defs/In\"},\"o_all\":{\"allOf\":[{\"$ref\":"
        "\"#/$defs/In\"},{\"description\":\"d\"}]},\"o_props\":{\"properties\":{}},"
        "\"oz\":{\"oneOf\":[{\"$ref\":\"#/$defs/In\"},{\"type\":\"null\"}]},"
        "\"a\":{\"type\":\"array\"},\"a_items\":{\"items\":{\"type\":\"string\"}},"
        "\"sa\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\"}]},"
        "\"si\":{\"type\":[\"string\",\"integer\"]}}}}},"
        "{\"type\":\"function\",\"function\":{\"name\":\"g\",\"parameters\":{\"properties\":{}}}},"
        "{\"type\":\"function\",\"function\":{\"name\":\"free\"}}]";

static bool in(const char *list, const char *name) {
    char quoted[64];
    snprintf(quoted, sizeof(quoted), " %s ", name);
    return strstr(list, quoted) != NULL;
}

/* Does the schema of this parameter of f allow the value, and no other value that the template writes the same? */
static bool fits(const char *name, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return in(" o o_ref o_all o_props oz ", name);
    case JSON_ARRAY:
        return in(" a a_items sa ", name);
    case JSON_INTEGER:
        return in(" i i_enum i_const n_ref n n_min iz iz_any si ", name);
    case JSON_REAL:
        return in(" n_ref n n_min ", name);
    case JSON_TRUE:
    case JSON_FALSE:
        return in(" b b_all ", name);
    case JSON_NULL:
        return in(" z iz iz_any sz sz_api oz i n b o a ", name);
    default:
        return in(" s s_none s_enum s_loop s_lost s_true sz sz_api sa si ", name);
    }
}

static const char *const tags[] = {"</parameter>", "</function>", "</tool_call>", "<tool_call>",
        "<function=f>", "<function=other>", "<parameter=other>", "<parameter=>", "<parameter=s>", "</think>",
        "<think>", "<|im_end|>", "<tool_response>", "</parameter>\n</function>",
        "</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n<parameter=s>\nx\n</parameter>\n"
        "</function>\n</tool_call>",
        "<tool_call>\n<function=other>\n</function>\n</tool_call>", "</tool_call>\n</parameter>",
        "</function>\n</tool_call>", "</param", "<", "</parameter", "</parameter>\n</tool_call>"};
static const char *const around[][2] = {{"", ""}, {"echo \"", "\" done"}, {"a\n", "\nb"}, {"a\n", " b"},
        {"a ", "\nb"}, {"\n", "\n"}, {"a\n\n", "\n\n"}, {" ", " "}, {"", "\n"}, {"\n", ""},
        {"\t", "\xc3\xa9\n"}, {"a\r\n", "\r\nb"}};

static json_t *one_call(const char *parameter, json_t *value) {
    return json_pack("[{s:s,s:{s:O}}]", "name", "f", "arguments", parameter, value);
}

/* A value that has, on a line of its own, the head of a parameter that the function has and the call has not, is
 * written as two parameters are, the first without its </parameter>. Models leave that out; it is read so. */
static bool reads_as_left_out(const char *parameter, const char *text) {
    const char *found = strstr(text, "<parameter=s>");
    const char *end = found ? found + strlen("<parameter=s>") : NULL;
    return found && !strstr(text, "<tool_call>") && (found == text || found[-1] == '\n') && *end == '\n' &&
           in(" s_none sz sa unknown ", parameter);
}

/* Each tag at each place of a string: as a value of its own, and inside of an object and of an array. */
static void test_tags_in_strings(void **state) {
    (void)state;
    json_t *tools = parse(tools_text);
    uint64_t seed = 5;
    size_t wrong = 0, n = 0;
    static const char *const parameters[] = {
            "s", "s_none", "sz", "sa", "unknown", "o", "a", "o_ref", "sa_list"};
    for (size_t t = 0; t < sizeof(tags) / sizeof(tags[0]); t++)
        for (size_t a = 0; a < sizeof(around) / sizeof(around[0]); a++)
            for (size_t p = 0; p < sizeof(parameters) / sizeof(parameters[0]); p++) {
                char text[512];
                const char *name = parameters[p];
                snprintf(text, sizeof(text), "%s%s%s", around[a][0], tags[t], around[a][1]);
                if (reads_as_left_out(name, text))
                    continue;
                json_t *value = name[0] == 'o'                 ? json_pack("{s:s}", "k", text)
                                : name[0] == 'a'               ? json_pack("[s,s]", text, text)
                                : strcmp(name, "sa_list") == 0 ? json_pack("[s]", text)
                                                               : json_string(text);
                json_t *calls = one_call(strcmp(name, "sa_list") == 0 ? "sa" : name, value);
                wrong += !reads_back(tools, calls, 0, &seed, wrong < 5);
                wrong += !reads_back(tools, calls, 7, &seed, wrong < 5);
                n++;
                json_decref(calls);
                json_decref(value);
            }
    json_decref(tools);
    if (wrong)
        fail_msg("%zu of %zu do not read back", wrong, 2 * n);
}

/* --- random values --- */

static json_t *random_string(uint64_t *seed, bool tagged) {
    static const char *const bits[] = {"x", "word ", "\n", "\n\n", " ", "\t", "\"", "\\", "{", "}", "[", "]",
            ":", "null", "None", "True", "12", "-0.5", "\xc3\xa9", "\xf0\x9f\x98\x80", "\xe2\x80\xa8", "'",
            "<b>", "&lt;"};
    struct byte_buffer text = {0};
    for (size_t n = random_below(seed, 8); n > 0; n--)
        byte_buffer_text(&text, tagged && random_below(seed, 3) == 0
                                        ? tags[random_below(seed, sizeof(tags) / sizeof(tags[0]))]
                                        : bits[random_below(seed, sizeof(bits) / sizeof(bits[0]))]);
    json_t *value = json_stringn(text.n ? text.data : "", text.n);
    free(text.data);
    return value;
}

static json_t *random_number(uint64_t *seed) {
    static const char *const numbers[] = {"0", "-1", "9223372036854775807", "-9223372036854775808",
            "123456789012345678901234567890", "-99999999999999999999", "0.5", "1e-07", "1e+20", "-0.0", "1.0",
            "1.7976931348623157e+308", "5e-324"};
    json_t *value = NULL;
    const char *text = numbers[random_below(seed, sizeof(numbers) / sizeof(numbers[0]))];
    assert_int_equal(chat_json_loads(text, strlen(text), true, "n", &value, NULL), 0);
    return value;
}

static json_t *random_value(uint64_t *seed, unsigned depth, bool tagged) {
    json_t *value;
    switch (random_below(seed, depth ? 7 : 5)) {
    case 0:
        return random_number(seed);
    case 1:
        return random_below(seed, 2) ? json_true() : json_false();
    case 2:
        return json_null();
    case 5:
        value = json_array();
        for (size_t n = random_below(seed, 4); n > 0; n--)
            json_array_append_new(value, random_value(seed, depth - 1, tagged));
        return value;
    case 6:
        value = json_object();
        for (size_t n = random_below(seed, 4); n > 0; n--) {
            json_t *key = random_string(seed, tagged);
            json_object_set_new(value, json_string_value(key), random_value(seed, depth - 1, tagged));
            json_decref(key);
        }
        return value;
    default:
        return random_string(seed, tagged);
    }
}

/* A big integer is a marked string to jansson, and a real one to no schema. */
static bool is_marked(const json_t *value) {
    return json_is_string(value) && json_string_length(value) > 0 && json_string_value(value)[0] == 0;
}

/* Strings that one of the other types of their schema is written like. */
static bool is_ambiguous(const char *name, const json_t *value) {
    if (!json_is_string(value) || is_marked(value))
        return false;
    const char *text = json_string_value(value) + strspn(json_string_value(value), " \t\n");
    if (in(" sz sz_api ", name))
        return strncmp(text, "null", 4) == 0 || strncmp(text, "None", 4) == 0;
    if (strcmp(name, "sa") == 0)
        return text[0] == '[';
    return strcmp(name, "si") == 0 && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9'));
}

static json_t *random_arguments(uint64_t *seed, const json_t *properties, bool tagged) {
    json_t *arguments = json_object();
    for (size_t tries = 1 + random_below(seed, 12); tries > 0; tries--) {
        size_t nth = random_below(seed, json_object_size(properties));
        void *at = json_object_iter((json_t *)properties);
        while (nth-- > 0)
            at = json_object_iter_next((json_t *)properties, at);
        const char *name = json_object_iter_key(at);
        json_t *value = random_value(seed, 3, tagged);
        bool right = is_marked(value) ? in(" i n n_ref iz ", name) : fits(name, value);
        if (right && !is_ambiguous(name, value))
            json_object_set(arguments, name, value);
        json_decref(value);
    }
    return arguments;
}

/* Calls of any values that the schemas allow. With tags in their strings one call and one parameter at a time,
 * for a value may be written as several calls or parameters are. */
static void test_any_value(void **state) {
    (void)state;
    json_t *tools = parse(tools_text);
    const json_t *properties = json_object_get(
            json_object_get(json_object_get(json_array_get(tools, 0), "function"), "parameters"),
            "properties");
    uint64_t seed = 20251126;
    size_t wrong = 0;
    for (size_t i = 0; i < 20000 && wrong < 5; i++) {
        json_t *calls = json_array();
        for (size_t n = 1 + random_below(&seed, 3); n > 0; n--)
            json_array_append_new(calls, json_pack("{s:s,s:o}", "name", "f", "arguments",
                                                 random_arguments(&seed, properties, false)));
        wrong += !reads_back(tools, calls, random_below(&seed, 9), &seed, true);
        json_decref(calls);
    }
    json_decref(tools);
    assert_int_equal(wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_tags_in_strings),
            cmocka_unit_test(test_any_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
