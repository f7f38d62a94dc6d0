/* The format is that of the published Qwen3.5 template (4B and larger); every function here is one of its
 * blocks, in its order, so that what it refuses is refused for the same reason. */
#include "daemon/text/chat_template.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/json_config.h"
#include "base/limits.h"
#include "base/sha256.h"
#include "daemon/text/chat_json.h"
#include "daemon/text/unicode_class.h"

/* A piece of text that somebody gave us. */
struct slice {
    const char *data;
    size_t n;
};

static bool ends_with(struct slice s, const char *what) {
    return s.n >= strlen(what) && memcmp(s.data + s.n - strlen(what), what, strlen(what)) == 0;
}

/* --- which template --- */

static const struct {
    const char *sha256; /* of the text as_jinja_reads() it */
    struct chat_template template;
} known_templates[] = {
        /* Qwen3.5-4B, -9B, -27B: chat_template.jinja */
        {"a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715",
                {CHAT_TEMPLATE_QWEN35, "qwen3.5", true}},
        /* Qwen3.5-0.8B, -2B: the same text, but that it thinks only where enable_thinking is true */
        {"273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80",
                {CHAT_TEMPLATE_QWEN35, "qwen3.5-small", false}},
        /* models/chat_template.jinja: the same format, for checkpoints of our own */
        {"2885918451b08763e850e54d9ef961dc69a599929a6d6fe966b9f8d9d7c8de29",
                {CHAT_TEMPLATE_QWEN35, "shardd-qwen3.5", true}},
};

static bool find_known(const char *text, size_t bytes, struct chat_template *ret) {
    char hex[SHA256_HEX_BYTES];
    sha256_hex(text, bytes, hex);
    for (size_t i = 0; i < sizeof(known_templates) / sizeof(known_templates[0]); i++)
        if (strcmp(hex, known_templates[i].sha256) == 0) {
            *ret = known_templates[i].template;
            return true;
        }
    return false;
}

/* What of the text is left without the end that Jinja2 passes over: a newline; after a tag that strips white space,
 * all of it; after another block, as transformers sets it up, one newline more. */
static size_t without_end(struct slice s) {
    s.n -= ends_with(s, "\n");
    struct slice stripped = s;
    while (stripped.n > 0 && memchr(" \t\n", stripped.data[stripped.n - 1], 3))
        stripped.n--;
    if (ends_with(stripped, "-%}") || ends_with(stripped, "-}}"))
        return stripped.n;
    return s.n - ends_with(s, "%}\n");
}

/* The template as Jinja2 reads it: each CRLF and CR is a newline, and the end is as above. So what an editor or git
 * does to the ends of lines makes no other template. malloc'ed; NULL: no memory. */
static char *as_jinja_reads(const char *text, size_t bytes, size_t *ret_bytes) {
    char *read = malloc(bytes + 1);
    size_t n = 0;
    if (!read)
        return NULL;
    for (size_t i = 0; i < bytes; i++) {
        read[n++] = text[i] == '\r' ? '\n' : text[i];
        i += text[i] == '\r' && i + 1 < bytes && text[i + 1] == '\n';
    }
    *ret_bytes = without_end((struct slice){read, n});
    return read;
}

int chat_template_recognise(
        const char *template_text, size_t bytes, struct chat_template *ret, struct error *e) {
    char hex[SHA256_HEX_BYTES];
    size_t n = 0;
    *ret = (struct chat_template){CHAT_TEMPLATE_NONE, "", false};
    if (!template_text) {
        error_set(e, -ENOENT, "the model has no chat template");
        return 0;
    }
    char *read = as_jinja_reads(template_text, bytes, &n);
    if (!read)
        return error_set(e, -ENOMEM, "no memory for the chat template");
    bool known = find_known(read, n, ret);
    free(read);
    if (!known) {
        sha256_hex(template_text, bytes, hex);
        error_set(e, -ENOTSUP, "the model's chat template (SHA-256 %s) is not one that this version knows",
                hex);
    }
    return 0;
}

/* chat_template of tokenizer_config.json: a string, or a list of {name, template} of which "default" counts. */
static const json_t *template_in_config(const json_t *config) {
    const json_t *found = json_object_get(config, "chat_template"), *entry;
    size_t i;
    if (!json_is_array(found))
        return json_is_string(found) ? found : NULL;
    json_array_foreach(found, i, entry) {
        const json_t *name = json_object_get(entry, "name"), *text = json_object_get(entry, "template");
        if (json_is_string(name) && strcmp(json_string_value(name), "default") == 0 && json_is_string(text))
            return text;
    }
    return NULL;
}

static int recognise_in_config(const char *path, struct chat_template *ret, struct error *e) {
    char *text = NULL;
    size_t bytes;
    json_t *config = NULL;
    int r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == -ENOENT)
        return chat_template_recognise(NULL, 0, ret, e);
    if (r == 0)
        r = json_config_parse_as(text, bytes, JSON_ALLOW_NUL, path, &config, e);
    free(text);
    if (r < 0)
        return r;
    const json_t *found = template_in_config(config);
    r = chat_template_recognise(json_string_value(found), found ? json_string_length(found) : 0, ret, e);
    if (r >= 0 && found && ret->kind == CHAT_TEMPLATE_NONE)
        error_prefix(e, -ENOTSUP, "%s", path);
    json_decref(config);
    return r;
}

int chat_template_load(const char *model_dir, struct chat_template *ret, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes;
    int r = file_path(model_dir, "chat_template.jinja", path, e);
    if (r < 0)
        return r;
    r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == -ENOENT) {
        r = file_path(model_dir, "tokenizer_config.json", path, e);
        return r < 0 ? r : recognise_in_config(path, ret, e);
    }
    if (r < 0)
        return r;
    r = chat_template_recognise(text, bytes, ret, e);
    if (r >= 0 && ret->kind == CHAT_TEMPLATE_NONE)
        error_prefix(e, -ENOTSUP, "%s", path);
    free(text);
    return r;
}

/* --- the text, as it grows --- */

struct mark {
    size_t begin;
    bool trusted;
};

struct render {
    struct byte_buffer text;
    struct mark *marks; /* (n_marks) where the trust changes */
    size_t n_marks, marks_size;
    const json_t *messages;
    size_t last_query; /* index of the last message that is a user's question */
    struct error *e;
};

static int add(struct render *r, const char *data, size_t bytes, bool trusted) {
    if (bytes == 0)
        return 0;
    if (r->n_marks == 0 || r->marks[r->n_marks - 1].trusted != trusted) {
        if (r->n_marks == r->marks_size) {
            size_t size = r->marks_size ? r->marks_size * 2 : 16;
            struct mark *marks = reallocarray(r->marks, size, sizeof(*marks));
            if (!marks)
                return -ENOMEM;
            r->marks = marks;
            r->marks_size = size;
        }
        r->marks[r->n_marks++] = (struct mark){r->text.n, trusted};
    }
    return byte_buffer_add(&r->text, data, bytes);
}

/* What the template itself writes. */
static int add_template(struct render *r, const char *text) {
    return add(r, text, strlen(text), true);
}

static int add_slice(struct render *r, struct slice s) {
    return add(r, s.data, s.n, false);
}

/* --- Python's string functions --- */

/* str.isspace: White_Space and the separators U+001C..1F. */
static bool is_python_space(uint32_t c) {
    return (c >= 0x1c && c <= 0x1f) || unicode_class_of(c) == UNICODE_SPACE;
}

static size_t last_character(struct slice s) {
    size_t at = s.n - 1;
    while (at > 0 && ((unsigned char)s.data[at] & 0xc0) == 0x80)
        at--;
    return at;
}

static struct slice strip(struct slice s) {
    size_t len;
    while (s.n > 0 && is_python_space(unicode_decode(s.data, &len))) {
        s.data += len;
        s.n -= len;
    }
    while (s.n > 0) {
        size_t at = last_character(s);
        if (!is_python_space(unicode_decode(s.data + at, &len)))
            break;
        s.n = at;
    }
    return s;
}

static struct slice strip_newlines(struct slice s, bool left, bool right) {
    while (left && s.n > 0 && s.data[0] == '\n') {
        s.data++;
        s.n--;
    }
    while (right && s.n > 0 && s.data[s.n - 1] == '\n')
        s.n--;
    return s;
}

static const char *find(struct slice s, const char *what) {
    return s.n ? memmem(s.data, s.n, what, strlen(what)) : NULL;
}

/* What stands after the last occurrence; all of it if there is none. */
static struct slice after_last(struct slice s, const char *what) {
    size_t bytes = strlen(what);
    for (const char *found; (found = find(s, what)) != NULL;) {
        s.n -= (size_t)(found - s.data) + bytes;
        s.data = found + bytes;
    }
    return s;
}

static bool starts_with(struct slice s, const char *what) {
    return s.n >= strlen(what) && memcmp(s.data, what, strlen(what)) == 0;
}

/* --- contents --- */

static bool is_text(const json_t *value, const char *text) {
    return json_is_string(value) && json_string_length(value) == strlen(text) &&
           memcmp(json_string_value(value), text, strlen(text)) == 0;
}

static bool has_role(const json_t *message, const char *role) {
    return is_text(json_object_get(message, "role"), role);
}

static int refuse(struct render *r, const char *sentence) {
    return error_set(r->e, -EINVAL, "%s", sentence);
}

static int append_part(struct render *r, const json_t *part, bool is_system, struct byte_buffer *out) {
    const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
    if (json_object_get(part, "image") || json_object_get(part, "image_url") || is_text(type, "image"))
        return refuse(r, is_system ? "System message cannot contain images."
                                   : "A message contains an image; this server takes text only.");
    if (json_object_get(part, "video") || is_text(type, "video"))
        return refuse(r, is_system ? "System message cannot contain videos."
                                   : "A message contains a video; this server takes text only.");
    if (!text)
        return refuse(r, "Unexpected item type in content.");
    return chat_json_append_str(out, text);
}

/* The text of a message, trimmed: a slice of the message itself, or of *parts if it had to be put together. */
static int content_of(struct render *r, const json_t *message, bool is_system, struct byte_buffer *parts,
        struct slice *ret) {
    const json_t *content = json_object_get(message, "content"), *part;
    size_t i;
    *ret = (struct slice){"", 0};
    if (!content || json_is_null(content))
        return 0;
    if (json_is_string(content)) {
        *ret = strip((struct slice){json_string_value(content), json_string_length(content)});
        return 0;
    }
    if (!json_is_array(content))
        return refuse(r, "Unexpected content type.");
    parts->n = 0;
    json_array_foreach(content, i, part) {
        int code = append_part(r, part, is_system, parts);
        if (code < 0)
            return code;
    }
    if (parts->n > 0)
        *ret = strip((struct slice){parts->data, parts->n});
    return 0;
}

/* --- the blocks of the template --- */

static const char tools_begin[] = "# Tools\n\nYou have access to the following functions:\n\n<tools>";
static const char tools_end[] =
        "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
        "</parameter>\n"
        "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\n"
        "multiple lines\n"
        "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
        "- Function calls MUST follow the specified format: an inner <function=...></function> block must "
        "be nested "
        "within <tool_call></tool_call> XML tags\n"
        "- Required parameters MUST be specified\n"
        "- You may provide optional reasoning for your function call in natural language BEFORE the "
        "function call, "
        "but NOT after\n"
        "- If there is no function call available, answer the question like normal with your current "
        "knowledge and "
        "do not tell the user about function calls\n</IMPORTANT>";

static int add_tools(struct render *r, const json_t *tools) {
    struct byte_buffer json = {0};
    const json_t *tool;
    size_t i;
    int code = add_template(r, tools_begin);
    json_array_foreach(tools, i, tool) {
        json.n = 0;
        if (code >= 0)
            code = add_template(r, "\n");
        if (code >= 0)
            code = chat_json_append(&json, tool);
        if (code >= 0)
            code = add_slice(r, (struct slice){json.data, json.n});
        if (code < 0)
            break;
    }
    free(json.data);
    return code < 0 ? code : add_template(r, tools_end);
}

/* The system message: the tools, the first message if it is the system's, or both. */
static int add_system(struct render *r, const json_t *tools, struct byte_buffer *parts) {
    const json_t *first = json_array_get(r->messages, 0);
    bool has_system = has_role(first, "system"), has_tools = json_array_size(tools) > 0;
    struct slice content = {"", 0};
    if (!has_system && !has_tools)
        return 0;
    int code = add_template(r, "<|im_start|>system\n");
    if (code >= 0 && has_tools)
        code = add_tools(r, tools);
    if (code >= 0 && has_system)
        code = content_of(r, first, /* is_system= */ true, parts, &content);
    if (code >= 0 && has_tools && content.n > 0)
        code = add_template(r, "\n\n");
    if (code >= 0)
        code = add_slice(r, content);
    return code < 0 ? code : add_template(r, "<|im_end|>\n");
}

/* The last user message that is not the result of a tool. */
static int find_last_query(struct render *r, struct byte_buffer *parts) {
    for (size_t i = json_array_size(r->messages); i-- > 0;) {
        const json_t *message = json_array_get(r->messages, i);
        struct slice content;
        if (!has_role(message, "user"))
            continue;
        int code = content_of(r, message, /* is_system= */ false, parts, &content);
        if (code < 0)
            return code;
        if (!starts_with(content, "<tool_response>") || !ends_with(content, "</tool_response>")) {
            r->last_query = i;
            return 0;
        }
    }
    return refuse(r, "No user query found in messages.");
}

static int add_argument(
        struct render *r, const char *name, const json_t *value, struct byte_buffer *scratch) {
    scratch->n = 0;
    int code = chat_json_append_str(scratch, value);
    if (code >= 0)
        code = add_template(r, "<parameter=");
    if (code >= 0)
        code = add_slice(r, (struct slice){name, strlen(name)});
    if (code >= 0)
        code = add_template(r, ">\n");
    if (code >= 0)
        code = add_slice(r, (struct slice){scratch->data, scratch->n});
    return code < 0 ? code : add_template(r, "\n</parameter>\n");
}

static int add_tool_call(
        struct render *r, const json_t *call, const char *before, struct byte_buffer *scratch) {
    const json_t *function = json_object_get(call, "function");
    function = function ? function : call;
    const json_t *name = json_object_get(function, "name"),
                 *arguments = json_object_get(function, "arguments");
    if (!json_is_string(name))
        return refuse(r, "A tool call has no function name.");
    if (json_is_null(arguments))
        arguments = NULL;
    if (arguments && !json_is_object(arguments))
        return refuse(r, "The arguments of a tool call must be an object; give {} where there are none.");
    int code = add_template(r, before);
    if (code >= 0)
        code = add_template(r, "<tool_call>\n<function=");
    if (code >= 0)
        code = add_slice(r, (struct slice){json_string_value(name), json_string_length(name)});
    if (code >= 0)
        code = add_template(r, ">\n");
    void *at = arguments ? json_object_iter((json_t *)arguments) : NULL;
    for (; at && code >= 0; at = json_object_iter_next((json_t *)arguments, at))
        code = add_argument(r, json_object_iter_key(at), json_object_iter_value(at), scratch);
    return code < 0 ? code : add_template(r, "</function>\n</tool_call>");
}

/* Tells reasoning from content, where the message does not. */
static void split_reasoning(const json_t *message, struct slice *content, struct slice *ret_reasoning) {
    const json_t *given = json_object_get(message, "reasoning_content");
    *ret_reasoning = (struct slice){"", 0};
    if (json_is_string(given)) {
        *ret_reasoning = strip((struct slice){json_string_value(given), json_string_length(given)});
        return;
    }
    const char *end = find(*content, "</think>");
    if (!end)
        return;
    struct slice before = {content->data, (size_t)(end - content->data)};
    before = after_last(strip_newlines(before, false, true), "<think>");
    *ret_reasoning = strip(strip_newlines(before, true, false));
    *content = strip_newlines(after_last(*content, "</think>"), true, false);
}

static int add_assistant(struct render *r, const json_t *message, size_t index, struct slice content,
        struct byte_buffer *scratch) {
    const json_t *calls = json_object_get(message, "tool_calls"), *call;
    struct slice reasoning;
    size_t i;
    split_reasoning(message, &content, &reasoning);
    int code = add_template(r, "<|im_start|>assistant\n");
    if (code >= 0 && index > r->last_query) { /* the reasoning of earlier turns is not shown again */
        code = add_template(r, "<think>\n");
        if (code >= 0)
            code = add_slice(r, reasoning);
        if (code >= 0)
            code = add_template(r, "\n</think>\n\n");
    }
    if (code >= 0)
        code = add_slice(r, content);
    if (code >= 0 && calls && !json_is_array(calls) && !json_is_null(calls))
        return refuse(r, "The tool calls of a message must be an array.");
    json_array_foreach(calls, i, call) {
        if (code < 0)
            return code;
        code = add_tool_call(r, call, i > 0 ? "\n" : strip(content).n > 0 ? "\n\n" : "", scratch);
    }
    return code < 0 ? code : add_template(r, "<|im_end|>\n");
}

/* The results of a run of tool messages make one user message. */
static int add_tool_result(struct render *r, size_t index, struct slice content) {
    bool first = index > 0 && !has_role(json_array_get(r->messages, index - 1), "tool");
    bool last = index + 1 == json_array_size(r->messages) ||
                !has_role(json_array_get(r->messages, index + 1), "tool");
    int code = first ? add_template(r, "<|im_start|>user") : 0;
    if (code >= 0)
        code = add_template(r, "\n<tool_response>\n");
    if (code >= 0)
        code = add_slice(r, content);
    if (code >= 0)
        code = add_template(r, "\n</tool_response>");
    return code >= 0 && last ? add_template(r, "<|im_end|>\n") : code;
}

static int add_message(
        struct render *r, size_t index, struct byte_buffer *parts, struct byte_buffer *scratch) {
    const json_t *message = json_array_get(r->messages, index);
    struct slice content;
    int code = content_of(r, message, /* is_system= */ false, parts, &content);
    if (code < 0)
        return code;
    if (has_role(message, "system"))
        return index == 0 ? 0 : refuse(r, "System message must be at the beginning.");
    if (has_role(message, "assistant"))
        return add_assistant(r, message, index, content, scratch);
    if (has_role(message, "tool"))
        return add_tool_result(r, index, content);
    if (!has_role(message, "user"))
        return refuse(r, "Unexpected message role.");
    code = add_template(r, "<|im_start|>user\n");
    if (code >= 0)
        code = add_slice(r, content);
    return code < 0 ? code : add_template(r, "<|im_end|>\n");
}

static int add_all(
        struct render *r, const struct chat_template *t, const struct chat_options *o, bool *ret_open) {
    struct byte_buffer parts = {0}, scratch = {0};
    bool think = o->enable_thinking < 0 ? t->thinks_by_default : o->enable_thinking != 0;
    int code = json_array_size(r->messages) > 0 ? 0 : refuse(r, "No messages provided.");
    if (code >= 0)
        code = add_system(r, o->tools, &parts);
    if (code >= 0)
        code = find_last_query(r, &parts);
    for (size_t i = 0; i < json_array_size(r->messages) && code >= 0; i++)
        code = add_message(r, i, &parts, &scratch);
    if (code >= 0 && o->add_generation_prompt)
        code = add_template(r, think ? "<|im_start|>assistant\n<think>\n"
                                     : "<|im_start|>assistant\n<think>\n\n</think>\n\n");
    *ret_open = o->add_generation_prompt && think;
    free(parts.data);
    free(scratch.data);
    return code;
}

/* The text is whole: the marks become spans. */
static int to_spans(struct render *r, struct chat_rendered *ret) {
    size_t bytes = r->text.n;
    int code = byte_buffer_add(&r->text, "", 1);
    struct text_span *spans = reallocarray(NULL, r->n_marks + 1, sizeof(*spans));
    if (code < 0 || !spans) {
        free(spans);
        return -ENOMEM;
    }
    for (size_t i = 0; i < r->n_marks; i++) {
        size_t end = i + 1 < r->n_marks ? r->marks[i + 1].begin : bytes;
        spans[i] = (struct text_span){
                r->text.data + r->marks[i].begin, end - r->marks[i].begin, r->marks[i].trusted};
    }
    ret->text = r->text.data;
    ret->bytes = bytes;
    ret->spans = spans;
    ret->n_spans = r->n_marks;
    r->text = (struct byte_buffer){0};
    return 0;
}

int chat_template_render(const struct chat_template *t, const json_t *messages,
        const struct chat_options *options, struct chat_rendered *ret, struct error *e) {
    struct render r = {.messages = messages, .e = e};
    struct chat_rendered done = {0};
    if (t->kind == CHAT_TEMPLATE_NONE)
        return error_set(e, -ENOTSUP,
                "the model has no chat template that this version knows; send text or token ids");
    int code = add_all(&r, t, options, &done.thinking_open);
    if (code >= 0)
        code = to_spans(&r, &done);
    free(r.text.data);
    free(r.marks);
    if (code < 0)
        return code == -ENOMEM ? error_set(e, code, "not enough memory to render the conversation") : code;
    *ret = done;
    return 0;
}

void chat_rendered_done(struct chat_rendered *r) {
    free(r->text);
    free(r->spans);
    *r = (struct chat_rendered){0};
}
