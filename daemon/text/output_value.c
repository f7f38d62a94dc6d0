/* Parameters come as text; the schema of the tool says what they were meant to be. Called by output_parser.c
 * at the begin and at the end of a value; keeps nothing. */
#include "daemon/text/output_value.h"

#include "daemon/text/chat_json.h"
#include "daemon/text/chat_template.h"

#include <strings.h>

static bool is_text(const json_t *value, const char *text, size_t bytes) {
    return json_is_string(value) && json_string_length(value) == bytes &&
           memcmp(json_string_value(value), text, bytes) == 0;
}

static unsigned type_named(const json_t *name) {
    static const struct {
        const char *name;
        unsigned type;
    } types[] = {{"null", VALUE_NULL}, {"boolean", VALUE_BOOLEAN}, {"integer", VALUE_INTEGER},
            {"number", VALUE_NUMBER}, {"object", VALUE_OBJECT}, {"array", VALUE_ARRAY}};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (is_text(name, types[i].name, strlen(types[i].name)))
            return types[i].type;
    return VALUE_STRING;
}

/* type may be a name or a list of them; anyOf and oneOf, one level deep, hold schemas. */
static unsigned types_of(const json_t *schema, bool look_inside) {
    const json_t *type = json_object_get(schema, "type"), *entry;
    unsigned types = 0;
    size_t i;
    if (json_is_string(type))
        return type_named(type);
    json_array_foreach(type, i, entry) types |= type_named(entry);
    static const char *const unions[] = {"anyOf", "oneOf"};
    for (size_t k = 0; k < 2 && look_inside; k++)
        json_array_foreach(json_object_get(schema, unions[k]), i, entry) types |= types_of(entry, false);
    return types ? types : VALUE_STRING;
}

unsigned output_value_types(const json_t *tools, const char *function, size_t function_bytes,
        const char *parameter, size_t parameter_bytes) {
    const json_t *tool;
    size_t i;
    json_array_foreach(tools, i, tool) {
        const json_t *inner = json_object_get(tool, "function");
        inner = inner ? inner : tool;
        if (!is_text(json_object_get(inner, "name"), function, function_bytes))
            continue;
        const json_t *properties = json_object_get(json_object_get(inner, "parameters"), "properties");
        void *at = json_object_iter((json_t *)properties);
        for (; at; at = json_object_iter_next((json_t *)properties, at)) {
            const char *key = json_object_iter_key(at);
            if (strlen(key) == parameter_bytes && memcmp(key, parameter, parameter_bytes) == 0)
                return types_of(json_object_iter_value(at), true);
        }
        return VALUE_STRING;
    }
    return VALUE_STRING;
}

static bool is_json_of(unsigned types, const char *text, size_t bytes) {
    json_t *value = NULL;
    if (chat_json_loads(text, bytes, false, "value", &value, NULL) < 0)
        return false;
    bool right = (json_is_object(value) && (types & VALUE_OBJECT)) ||
                 (json_is_array(value) && (types & VALUE_ARRAY));
    json_decref(value);
    return right;
}

/* JSON's number; no fraction and no exponent if it has to be an integer. */
static bool is_number(const char *text, size_t bytes, bool integer) {
    json_t *value = NULL;
    if (bytes == 0 || (text[0] != '-' && (text[0] < '0' || text[0] > '9')))
        return false;
    for (size_t i = 0; i < bytes && integer; i++)
        if (text[i] == '.' || text[i] == 'e' || text[i] == 'E')
            return false;
    if (chat_json_loads(text, bytes, false, "value", &value, NULL) < 0)
        return false;
    json_decref(value);
    return true;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

int output_value_append(struct byte_buffer *out, unsigned types, const char *text, size_t bytes) {
    const char *trimmed = text;
    size_t n = bytes;
    while (n > 0 && is_space(trimmed[0])) {
        trimmed++;
        n--;
    }
    while (n > 0 && is_space(trimmed[n - 1]))
        n--;
    if (n == 4 && memcmp(trimmed, "null", 4) == 0 && (types & VALUE_NULL || !(types & VALUE_STRING)))
        return byte_buffer_text(out, "null");
    if (types & VALUE_STRING)
        return chat_json_append_string(out, text, bytes);
    if ((types & VALUE_BOOLEAN) && n == 4 && strncasecmp(trimmed, "true", 4) == 0)
        return byte_buffer_text(out, "true");
    if ((types & VALUE_BOOLEAN) && n == 5 && strncasecmp(trimmed, "false", 5) == 0)
        return byte_buffer_text(out, "false");
    if (((types & VALUE_NUMBER) && is_number(trimmed, n, false)) ||
            ((types & VALUE_INTEGER) && is_number(trimmed, n, true)) ||
            ((types & (VALUE_OBJECT | VALUE_ARRAY)) && is_json_of(types, trimmed, n)))
        return byte_buffer_add(out, trimmed, n);
    return chat_json_append_string(out, text, bytes);
}
