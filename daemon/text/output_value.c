/* Parameters come as text; the schema of the tool says what they were meant to be. Called by output_parser.c at
 * the begin, on the way and at the end of a value; keeps nothing. */
#include "daemon/text/output_value.h"

#include "daemon/text/chat_json.h"
#include "daemon/text/chat_template.h"

#include <ctype.h>
#include <math.h>
#include <strings.h>

#define SCHEMA_DEPTH_MAX  16u   /* schemas in schemas, $ref followed */
#define SCHEMA_VISITS_MAX 1000u /* of one parameter: a cycle of unions has no end */
#define SPACE_BYTES_MAX   64u   /* around a value that is no string */

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* --- names --- */

static struct output_name without_quotes(struct output_name name) {
    const char *s = name.data;
    size_t n = name.bytes;
    for (; n > 0 && is_space(s[0]); s++)
        n--;
    while (n > 0 && is_space(s[n - 1]))
        n--;
    if (n >= 2 && (s[0] == '"' || s[0] == '\'' || s[0] == '`') && s[n - 1] == s[0])
        return (struct output_name){s + 1, n - 2};
    return (struct output_name){s, n};
}

static const json_t *tool_named(const json_t *tools, struct output_name name) {
    const json_t *tool;
    size_t i;
    json_array_foreach(tools, i, tool) {
        const json_t *inner = json_object_get(tool, "function");
        inner = inner ? inner : tool;
        const json_t *its = json_object_get(inner, "name");
        if (json_is_string(its) && json_string_length(its) == name.bytes &&
                memcmp(json_string_value(its), name.data, name.bytes) == 0)
            return inner;
    }
    return NULL;
}

const json_t *output_tool_find(const json_t *tools, struct output_name *name) {
    const json_t *found = tool_named(tools, *name);
    if (found)
        return found;
    struct output_name bare = without_quotes(*name);
    found = tool_named(tools, bare);
    if (found)
        *name = bare;
    return found;
}

const json_t *output_parameter_find(const json_t *function, struct output_name *name) {
    const json_t *properties = json_object_get(json_object_get(function, "parameters"), "properties");
    const json_t *found = json_object_getn(properties, name->data, name->bytes);
    if (found)
        return found;
    struct output_name bare = without_quotes(*name);
    found = json_object_getn(properties, bare.data, bare.bytes);
    if (found)
        *name = bare;
    return found;
}

bool output_tool_needs_nothing(const json_t *function) {
    return json_array_size(json_object_get(json_object_get(function, "parameters"), "required")) == 0;
}

/* --- types --- */

struct schema_walk {
    const json_t *root; /* what "#" means */
    unsigned visits;
};

static unsigned types_of(struct schema_walk *w, const json_t *schema, unsigned depth);

static unsigned type_named(const char *name) {
    static const struct {
        const char *name;
        unsigned types;
    } names[] = {{"null", VALUE_NULL}, {"boolean", VALUE_BOOLEAN}, {"integer", VALUE_INTEGER},
            {"number", VALUE_NUMBER | VALUE_INTEGER}, {"object", VALUE_OBJECT}, {"array", VALUE_ARRAY},
            /* Python's, which tools written by hand have */
            {"bool", VALUE_BOOLEAN}, {"int", VALUE_INTEGER}, {"float", VALUE_NUMBER | VALUE_INTEGER},
            {"dict", VALUE_OBJECT}, {"list", VALUE_ARRAY}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcasecmp(name, names[i].name) == 0) /* some write INTEGER */
            return names[i].types;
    return VALUE_STRING;
}

static unsigned type_of_value(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return VALUE_OBJECT;
    case JSON_ARRAY:
        return VALUE_ARRAY;
    case JSON_INTEGER:
        return VALUE_INTEGER;
    case JSON_REAL:
        return VALUE_NUMBER | VALUE_INTEGER;
    case JSON_NULL:
        return VALUE_NULL;
    case JSON_STRING:
        return VALUE_STRING;
    default:
        return VALUE_BOOLEAN;
    }
}

/* One character of a reference, which is a fragment of a URL: %24 is a dollar. */
static char next_of_reference(const char **p) {
    char hex[3] = {0};
    if (**p == '%' && isxdigit((unsigned char)(*p)[1]) && isxdigit((unsigned char)(*p)[2])) {
        memcpy(hex, *p + 1, 2);
        *p += 3;
        return (char)strtoul(hex, NULL, 16);
    }
    return *(*p)++;
}

/* A reference inside the document: "#" or "#/$defs/Name", with ~1 for / and ~0 for ~. */
static const json_t *follow(const json_t *root, const char *reference) {
    const json_t *at = root;
    if (reference[0] != '#' || (reference[1] && reference[1] != '/'))
        return NULL;
    for (const char *p = reference + 1; at && *p == '/';) {
        char key[256];
        size_t n = 0;
        for (p++; *p && *p != '/' && n < sizeof(key) - 1;) {
            key[n] = next_of_reference(&p);
            bool escaped = key[n] == '~' && (*p == '0' || *p == '1');
            if (escaped)
                key[n] = *p++ == '0' ? '~' : '/';
            n++;
        }
        key[n] = 0;
        at = json_is_array(at) ? json_array_get(at, strtoul(key, NULL, 10)) : json_object_get(at, key);
    }
    return at;
}

/* What one word of a schema allows; 0 = it says nothing of types. */
static unsigned types_of_type(const json_t *type) {
    const json_t *entry;
    unsigned types = 0;
    size_t i;
    if (json_is_string(type))
        return type_named(json_string_value(type));
    json_array_foreach(type, i, entry) types |=
            json_is_string(entry) ? type_named(json_string_value(entry)) : 0;
    return types;
}

static unsigned types_of_members(const json_t *schema) {
    const json_t *constant = json_object_get(schema, "const"), *entry;
    unsigned types = constant ? type_of_value(constant) : 0;
    size_t i;
    json_array_foreach(json_object_get(schema, "enum"), i, entry) types |= type_of_value(entry);
    return types;
}

/* One that says nothing may be anything, which is a string as far as we can tell. */
static unsigned types_of_union(struct schema_walk *w, const json_t *list, unsigned depth) {
    const json_t *entry;
    unsigned types = 0;
    size_t i;
    json_array_foreach(list, i, entry) {
        unsigned of_entry = types_of(w, entry, depth);
        types |= of_entry ? of_entry : VALUE_STRING;
    }
    return types;
}

/* Both have to allow it. Where they contradict each other the first is believed. */
static unsigned both(unsigned a, unsigned b) {
    return a && b && (a & b) ? a & b : a ? a : b;
}

/* A schema without a type that speaks of the parts of one. */
static unsigned types_by_keyword(const json_t *schema) {
    static const struct {
        const char *keyword;
        unsigned types;
    } keywords[] = {{"properties", VALUE_OBJECT}, {"additionalProperties", VALUE_OBJECT},
            {"patternProperties", VALUE_OBJECT}, {"propertyNames", VALUE_OBJECT}, {"required", VALUE_OBJECT},
            {"minProperties", VALUE_OBJECT}, {"maxProperties", VALUE_OBJECT},
            {"dependentRequired", VALUE_OBJECT}, {"dependentSchemas", VALUE_OBJECT},
            {"unevaluatedProperties", VALUE_OBJECT}, {"items", VALUE_ARRAY}, {"prefixItems", VALUE_ARRAY},
            {"additionalItems", VALUE_ARRAY}, {"unevaluatedItems", VALUE_ARRAY}, {"minItems", VALUE_ARRAY},
            {"maxItems", VALUE_ARRAY}, {"uniqueItems", VALUE_ARRAY}, {"contains", VALUE_ARRAY},
            {"minimum", VALUE_NUMBER | VALUE_INTEGER}, {"maximum", VALUE_NUMBER | VALUE_INTEGER},
            {"exclusiveMinimum", VALUE_NUMBER | VALUE_INTEGER},
            {"exclusiveMaximum", VALUE_NUMBER | VALUE_INTEGER}, {"multipleOf", VALUE_NUMBER | VALUE_INTEGER}};
    for (size_t i = 0; i < sizeof(keywords) / sizeof(keywords[0]); i++)
        if (json_object_get(schema, keywords[i].keyword))
            return keywords[i].types;
    return 0;
}

static unsigned types_of(struct schema_walk *w, const json_t *schema, unsigned depth) {
    if (!json_is_object(schema) || depth == 0 || w->visits == 0)
        return 0;
    w->visits--;
    unsigned types = both(types_of_type(json_object_get(schema, "type")), types_of_members(schema));
    const char *reference = json_string_value(json_object_get(schema, "$ref"));
    if (reference)
        types = both(types, types_of(w, follow(w->root, reference), depth - 1));
    types = both(types, types_of_union(w, json_object_get(schema, "anyOf"), depth - 1));
    types = both(types, types_of_union(w, json_object_get(schema, "oneOf"), depth - 1));
    const json_t *entry;
    size_t i;
    json_array_foreach(json_object_get(schema, "allOf"), i, entry) types =
            both(types, types_of(w, entry, depth - 1));
    if (!types)
        types = types_by_keyword(schema);
    if (types && json_is_true(json_object_get(schema, "nullable")))
        types |= VALUE_NULL;
    return types;
}

unsigned output_value_types(const json_t *function, const json_t *schema) {
    struct schema_walk walk = {json_object_get(function, "parameters"), SCHEMA_VISITS_MAX};
    unsigned types = types_of(&walk, schema, SCHEMA_DEPTH_MAX);
    return types ? types : VALUE_STRING;
}

/* --- values --- */

static void trim(const char **text, size_t *bytes) {
    while (*bytes > 0 && is_space((*text)[0])) {
        ++*text;
        --*bytes;
    }
    while (*bytes > 0 && is_space((*text)[*bytes - 1]))
        --*bytes;
}

/* null as JSON and as the chat template (Python) writes it. True and False are told by their letters. */
static bool is_null(const char *text, size_t bytes) {
    return bytes == 4 && (memcmp(text, "null", 4) == 0 || memcmp(text, "None", 4) == 0);
}

static bool begins_word(unsigned types, const char *text, size_t bytes) {
    if ((types & VALUE_NULL) && bytes <= 4 &&
            (memcmp(text, "null", bytes) == 0 || memcmp(text, "None", bytes) == 0))
        return true;
    return (types & VALUE_BOOLEAN) && ((bytes <= 4 && strncasecmp(text, "true", bytes) == 0) ||
                                              (bytes <= 5 && strncasecmp(text, "false", bytes) == 0));
}

/* Where no string is allowed, null is read whether the schema has it or not. */
static unsigned with_null(unsigned types) {
    return types & VALUE_STRING ? types : types | VALUE_NULL;
}

bool output_value_may_be_other(unsigned types, const char *text, size_t bytes) {
    types = with_null(types);
    if (!(types & ~VALUE_STRING))
        return false;
    size_t at = 0;
    while (at < bytes && is_space(text[at]))
        at++;
    if (at > SPACE_BYTES_MAX)
        return false;
    if (at == bytes)
        return true;
    char first = text[at], last = text[bytes - 1];
    if (first == '{')
        return types & VALUE_OBJECT;
    if (first == '[')
        return types & VALUE_ARRAY;
    if (first == '-' || isdigit((unsigned char)first))
        return (types & (VALUE_NUMBER | VALUE_INTEGER)) &&
               (isdigit((unsigned char)last) || is_space(last) || memchr("+-.eE", last, 5));
    if (bytes > 2 * SPACE_BYTES_MAX)
        return false;
    trim(&text, &bytes);
    return begins_word(types, text, bytes);
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

/* JSON's number. 1.0 and 1e3 are integers too, as JSON Schema has it. */
static bool is_number(const char *text, size_t bytes, bool integer) {
    json_t *value = NULL;
    if (bytes == 0 || (text[0] != '-' && !isdigit((unsigned char)text[0])))
        return false;
    if (chat_json_loads(text, bytes, false, "value", &value, NULL) < 0)
        return false;
    bool whole = !json_is_real(value) || json_real_value(value) == trunc(json_real_value(value));
    json_decref(value);
    return whole || !integer;
}

/* *ret: the JSON of the value, unless the text itself is. */
static bool read_other(unsigned types, const char *text, size_t bytes, const char **ret) {
    *ret = NULL;
    types = with_null(types);
    if (types & VALUE_NULL && is_null(text, bytes))
        *ret = "null";
    else if ((types & VALUE_BOOLEAN) && bytes == 4 && strncasecmp(text, "true", 4) == 0)
        *ret = "true";
    else if ((types & VALUE_BOOLEAN) && bytes == 5 && strncasecmp(text, "false", 5) == 0)
        *ret = "false";
    return *ret || ((types & VALUE_NUMBER) && is_number(text, bytes, false)) ||
           ((types & VALUE_INTEGER) && is_number(text, bytes, true)) ||
           ((types & (VALUE_OBJECT | VALUE_ARRAY)) && is_json_of(types, text, bytes));
}

bool output_value_is_other(unsigned types, const char *text, size_t bytes) {
    const char *json;
    trim(&text, &bytes);
    return read_other(types, text, bytes, &json);
}

/* Objects and arrays as they stand, but for keys that are there twice: the last counts, as it does to those who
 * read it. What we give out has to be taken when it comes back as history. */
static int append_json(struct byte_buffer *out, const char *text, size_t bytes) {
    json_t *value = NULL;
    int r = chat_json_loads(text, bytes, /* unique= */ true, "value", &value, NULL);
    if (r == 0)
        r = byte_buffer_add(out, text, bytes);
    else if (r != -ENOMEM &&
             (r = chat_json_loads(text, bytes, /* unique= */ false, "value", &value, NULL)) == 0)
        r = chat_json_append(out, value);
    json_decref(value);
    return r;
}

int output_value_append(struct byte_buffer *out, unsigned types, const char *text, size_t bytes) {
    const char *trimmed = text, *json;
    size_t n = bytes;
    trim(&trimmed, &n);
    if (!read_other(types, trimmed, n, &json))
        return chat_json_append_string(out, text, bytes);
    return json ? byte_buffer_text(out, json) : append_json(out, trimmed, n);
}
