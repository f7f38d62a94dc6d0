/* conversation.c - see conversation.h. */
#include "daemon/service/conversation.h"

#include "base/limits.h"
#include "daemon/service/message.h"
#include "daemon/service/refusal.h"
#include "daemon/text/chat_template.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FIELD_NAME_MAX 96

json_t *conversation_parse_object(
        ProtobufCBinaryData text, const char *field, size_t *bytes_left, struct rpc_status *s) {
    if (text.len > *bytes_left) {
        refuse(s, REFUSAL_INVALID_JSON,
                "%s: tools and arguments have more than %u bytes of JSON together; send less", field,
                REQUEST_JSON_BYTES_MAX);
        return NULL;
    }
    *bytes_left -= text.len;
    json_t *j = NULL;
    struct error e = {0};
    int r = chat_json_loads((const char *)text.data, text.len, /* unique= */ true, field, &j, &e);
    if (r == -ENOMEM)
        refuse(s, REFUSAL_INTERNAL, "%s", e.text);
    else if (r < 0)
        refuse(s, REFUSAL_INVALID_JSON, "%s", e.text);
    else if (!json_is_object(j))
        refuse(s, REFUSAL_INVALID_JSON, "%s must be a JSON object: {...}", field);
    else
        return j;
    json_decref(j);
    return NULL;
}

static int no_memory(struct rpc_status *s) {
    return refuse(s, REFUSAL_INTERNAL, "no memory for the conversation");
}

/* Puts checked text under key. */
static int set_text(
        json_t *object, const char *key, ProtobufCBinaryData text, const char *field, struct rpc_status *s) {
    if (message_check_utf8(text, field, s) < 0)
        return -1;
    json_t *j = json_stringn_nocheck(text.len ? (const char *)text.data : "", text.len);
    return json_object_set_new_nocheck(object, key, j) < 0 ? no_memory(s) : 0;
}

/* Content is one string: the parts concatenated; none is null. */
static int add_content(json_t *message, const Shardd__V1__Message *m, size_t index, struct rpc_status *s) {
    char field[FIELD_NAME_MAX];
    if (m->n_content == 0)
        return json_object_set_new(message, "content", json_null()) < 0 ? no_memory(s) : 0;
    if (m->n_content > PARTS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "chat.messages[%zu].content has %zu parts; give at most %u",
                index, m->n_content, PARTS_MAX);
    size_t bytes = 0, at = 0;
    for (size_t i = 0; i < m->n_content; i++) {
        snprintf(field, sizeof(field), "chat.messages[%zu].content[%zu].text", index, i);
        if (m->content[i]->part_case != SHARDD__V1__PART__PART_TEXT)
            return refuse(s, REFUSAL_MISSING_INPUT, "chat.messages[%zu].content[%zu] is empty; set its text",
                    index, i);
        if (message_check_utf8(m->content[i]->text, field, s) < 0)
            return -1;
        bytes += m->content[i]->text.len; /* bounded by the request's size */
    }
    char *joined = malloc(bytes + 1);
    if (!joined)
        return no_memory(s);
    for (size_t i = 0; i < m->n_content; at += m->content[i++]->text.len)
        if (m->content[i]->text.len > 0)
            memcpy(joined + at, m->content[i]->text.data, m->content[i]->text.len);
    json_t *j = json_stringn_nocheck(joined, bytes);
    free(joined);
    return json_object_set_new_nocheck(message, "content", j) < 0 ? no_memory(s) : 0;
}

static bool is_json_space(uint8_t c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* A call without arguments: the field is unset, white space or null, as clients have it. */
static bool is_nothing(ProtobufCBinaryData text) {
    size_t begin = 0, end = text.len;
    while (begin < end && is_json_space(text.data[begin]))
        begin++;
    while (end > begin && is_json_space(text.data[end - 1]))
        end--;
    return begin == end || (end - begin == 4 && memcmp(text.data + begin, "null", 4) == 0);
}

static json_t *parse_arguments(
        ProtobufCBinaryData text, const char *field, size_t *json_left, struct rpc_status *s) {
    if (!is_nothing(text) || text.len > *json_left)
        return conversation_parse_object(text, field, json_left, s);
    json_t *none = json_object();
    *json_left -= text.len;
    if (!none)
        no_memory(s);
    return none;
}

static int add_tool_call(json_t *list, const Shardd__V1__ToolCall *t, const char *prefix, size_t *json_left,
        struct rpc_status *s) {
    char field[FIELD_NAME_MAX + 32];
    json_t *call = json_object(), *function = json_object();
    int r = json_array_append_new(list, call) < 0 || json_object_set_new(call, "function", function) < 0
                    ? no_memory(s)
                    : 0;
    snprintf(field, sizeof(field), "%s.id", prefix);
    if (r == 0 && t->id.len > 0)
        r = set_text(call, "id", t->id, field, s);
    if (r == 0)
        r = json_object_set_new(call, "type", json_string("function")) < 0 ? no_memory(s) : 0;
    if (r == 0 && t->name.len == 0)
        r = refuse(s, REFUSAL_INVALID_FIELD, "%s.name is empty; name the function that was called", prefix);
    snprintf(field, sizeof(field), "%s.name", prefix);
    if (r == 0)
        r = set_text(function, "name", t->name, field, s);
    if (r < 0)
        return r;
    snprintf(field, sizeof(field), "%s.arguments_json", prefix);
    json_t *arguments = parse_arguments(t->arguments_json, field, json_left, s);
    if (!arguments)
        return -1;
    return json_object_set_new(function, "arguments", arguments) < 0 ? no_memory(s) : 0;
}

static int add_tool_calls(json_t *message, const Shardd__V1__Message *m, size_t index, size_t *json_left,
        struct rpc_status *s) {
    if (m->n_tool_calls == 0)
        return 0;
    if (m->n_tool_calls > TOOL_CALLS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD,
                "chat.messages[%zu].tool_calls has %zu entries; give at most %u", index, m->n_tool_calls,
                TOOL_CALLS_MAX);
    json_t *list = json_array();
    if (json_object_set_new(message, "tool_calls", list) < 0)
        return no_memory(s);
    for (size_t i = 0; i < m->n_tool_calls; i++) {
        char prefix[FIELD_NAME_MAX];
        snprintf(prefix, sizeof(prefix), "chat.messages[%zu].tool_calls[%zu]", index, i);
        if (add_tool_call(list, m->tool_calls[i], prefix, json_left, s) < 0)
            return -1;
    }
    return 0;
}

/* What a role may not carry would be dropped by the template in silence. */
static int check_role(const Shardd__V1__Message *m, size_t index, struct rpc_status *s) {
    bool assistant = message_is(m->role, "assistant"), tool = message_is(m->role, "tool");
    if (!assistant && !tool && !message_is(m->role, "system") && !message_is(m->role, "user"))
        return refuse(s, REFUSAL_INVALID_FIELD,
                "chat.messages[%zu].role must be \"system\", \"user\", \"assistant\" or \"tool\"", index);
    if (!assistant && (m->n_tool_calls > 0 || m->_reasoning_case))
        return refuse(s, REFUSAL_CONFLICT,
                "chat.messages[%zu]: only a message of the assistant has %s; remove it or correct the role",
                index, m->n_tool_calls > 0 ? "tool_calls" : "reasoning");
    if (!tool && m->tool_call_id.len > 0)
        return refuse(s, REFUSAL_CONFLICT,
                "chat.messages[%zu]: only a message of role \"tool\" has tool_call_id; "
                "remove it or correct the role",
                index);
    return 0;
}

static int add_message(
        json_t *list, const Shardd__V1__Message *m, size_t index, size_t *json_left, struct rpc_status *s) {
    char field[FIELD_NAME_MAX];
    if (check_role(m, index, s) < 0)
        return -1;
    json_t *message = json_object();
    if (json_array_append_new(list, message) < 0)
        return no_memory(s);
    int r = set_text(message, "role", m->role, "role", s);
    if (r == 0)
        r = add_content(message, m, index, s);
    snprintf(field, sizeof(field), "chat.messages[%zu].reasoning", index);
    if (r == 0 && m->_reasoning_case)
        r = set_text(message, "reasoning_content", m->reasoning, field, s);
    snprintf(field, sizeof(field), "chat.messages[%zu].tool_call_id", index);
    if (r == 0 && m->tool_call_id.len > 0)
        r = set_text(message, "tool_call_id", m->tool_call_id, field, s);
    return r == 0 ? add_tool_calls(message, m, index, json_left, s) : r;
}

static int check_tool(const json_t *tool, size_t index, struct rpc_status *s) {
    const char *type = json_string_value(json_object_get(tool, "type"));
    const json_t *function = json_object_get(tool, "function");
    const char *name = json_string_value(json_object_get(function, "name"));
    if (!type || strcmp(type, "function") != 0 || !name || !*name)
        return refuse(s, REFUSAL_INVALID_JSON,
                "chat.tools[%zu].json must look like {\"type\":\"function\",\"function\":{\"name\":...}}",
                index);
    return 0;
}

static int add_tools(
        json_t *list, const Shardd__V1__ChatInput *chat, size_t *json_left, struct rpc_status *s) {
    if (chat->n_tools > TOOLS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "chat.tools has %zu entries; give at most %u", chat->n_tools,
                TOOLS_MAX);
    for (size_t i = 0; i < chat->n_tools; i++) {
        char field[FIELD_NAME_MAX];
        snprintf(field, sizeof(field), "chat.tools[%zu].json", i);
        json_t *tool = conversation_parse_object(chat->tools[i]->json, field, json_left, s);
        if (!tool)
            return -1;
        if (json_array_append_new(list, tool) < 0)
            return no_memory(s);
        if (check_tool(tool, i, s) < 0)
            return -1;
    }
    return 0;
}

int conversation_build(const Shardd__V1__ChatInput *chat, struct conversation *ret, struct rpc_status *s) {
    if (chat->n_messages < 1 || chat->n_messages > MESSAGES_MAX)
        return refuse(s, chat->n_messages ? REFUSAL_INVALID_FIELD : REFUSAL_MISSING_INPUT,
                "chat.messages has %zu entries; give 1 to %u", chat->n_messages, MESSAGES_MAX);
    size_t json_left = REQUEST_JSON_BYTES_MAX;
    struct conversation c = {.messages = json_array(), .tools = chat->n_tools ? json_array() : NULL};
    int r = !c.messages || (chat->n_tools && !c.tools) ? no_memory(s) : 0;
    if (r == 0 && c.tools)
        r = add_tools(c.tools, chat, &json_left, s);
    for (size_t i = 0; i < chat->n_messages && r == 0; i++)
        r = add_message(c.messages, chat->messages[i], i, &json_left, s);
    if (r < 0)
        conversation_done(&c);
    else
        *ret = c;
    return r;
}

void conversation_done(struct conversation *c) {
    json_decref(c->messages);
    json_decref(c->tools);
    *c = (struct conversation){0};
}
