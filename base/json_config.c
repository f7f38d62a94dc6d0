/* json_config.c - see json_config.h. */
#include "base/json_config.h"

#include "base/limits.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

const char *json_config_type(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

/* The length of a literal of Python's that begins here, or 0. */
static size_t literal_at(const char *at, size_t left) {
    static const char *const literals[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof(literals) / sizeof(*literals); i++) {
        const size_t n = strlen(literals[i]);
        if (left >= n && memcmp(at, literals[i], n) == 0)
            return n;
    }
    return 0;
}

/* Copies text with its literals in quotes, unless to is NULL. Returns how many bytes that makes. */
static size_t quote_literals(const char *text, size_t bytes, char *to) {
    bool inside = false; /* a string */
    size_t n = 0;
    for (size_t i = 0, part; i < bytes; i += part) {
        const size_t literal = inside ? 0 : literal_at(text + i, bytes - i);
        part = literal ? literal : inside && text[i] == '\\' && i + 1 < bytes ? 2 : 1;
        if (part == 1 && text[i] == '"')
            inside = !inside;
        if (to && literal)
            to[n] = to[n + 1 + literal] = '"';
        if (to)
            memcpy(to + n + (literal > 0), text + i, part);
        n += part + (literal ? 2 : 0);
    }
    return n;
}

int json_config_parse(const char *text, size_t bytes, const char *file, json_t **ret, struct error *e) {
    return json_config_parse_as(text, bytes, JSON_REJECT_DUPLICATES, file, ret, e);
}

int json_config_parse_as(
        const char *text, size_t bytes, size_t flags, const char *file, json_t **ret, struct error *e) {
    json_error_t at;
    char *quoted = NULL;
    if (bytes > CONFIG_BYTES_MAX)
        return error_set(e, -EFBIG, "%s: has %zu bytes, at most %u are read", file, bytes, CONFIG_BYTES_MAX);
    const size_t needed = quote_literals(text, bytes, NULL);
    if (needed != bytes) {
        quoted = malloc(needed);
        if (!quoted)
            return error_set(e, -ENOMEM, "%s: out of memory", file);
        quote_literals(text, bytes, quoted);
    }
    json_t *root = json_loadb(quoted ? quoted : text, needed, flags, &at);
    free(quoted);
    if (!root)
        return error_set(e, -EBADMSG, "%s: line %d column %d: %s", file, at.line, at.column, at.text);
    if (!json_is_object(root)) {
        error_set(e, -EBADMSG, "%s: expected an object, found %s", file, json_config_type(root));
        json_decref(root);
        return -EBADMSG;
    }
    *ret = root;
    return 0;
}
