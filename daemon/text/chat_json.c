/* Writing follows Python's json.encoder and repr(float); reading builds jansson values with base/json_pull,
 * so that depth and numbers are ours to judge. What is written is appended to the caller's buffer. */
#include "daemon/text/chat_json.h"

#include "base/json_pull.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "daemon/text/chat_template.h"

#include <math.h>
#include <stdio.h>

/* Python's integers have no end, jansson's have 64 bits: a larger one is kept as a string that begins so. No
 * JSON string can look like it, because U+0000 is refused in all of them. */
static const char big_integer[] = "\0integer:";
#define BIG_INTEGER_BYTES (sizeof(big_integer) - 1)

#define KEY_SHOWN_MAX 64u /* bytes of a key that a sentence quotes */

/* --- writing --- */

/* repr(float) of digits d1d2d3... with value 0.d1d2d3... * 10^point. */
static int append_digits(struct byte_buffer *out, const char *digits, int n, int point) {
    static const char zeros[] = "0000000000000000";
    int r;
    if (point > 16 || point < -3) {
        char exponent[16];
        snprintf(exponent, sizeof(exponent), "e%+03d", point - 1);
        r = byte_buffer_add(out, digits, 1);
        if (r >= 0 && n > 1)
            r = byte_buffer_text(out, ".");
        if (r >= 0)
            r = byte_buffer_add(out, digits + 1, (size_t)n - 1);
        return r < 0 ? r : byte_buffer_text(out, exponent);
    }
    if (point <= 0) {
        r = byte_buffer_text(out, "0.");
        if (r >= 0)
            r = byte_buffer_add(out, zeros, (size_t)-point);
        return r < 0 ? r : byte_buffer_add(out, digits, (size_t)n);
    }
    if (n <= point) {
        r = byte_buffer_add(out, digits, (size_t)n);
        if (r >= 0)
            r = byte_buffer_add(out, zeros, (size_t)(point - n));
        return r < 0 ? r : byte_buffer_text(out, ".0");
    }
    r = byte_buffer_add(out, digits, (size_t)point);
    if (r >= 0)
        r = byte_buffer_text(out, ".");
    return r < 0 ? r : byte_buffer_add(out, digits + point, (size_t)(n - point));
}

static double read_back(const char *digits, int n, int exponent) {
    char text[48];
    snprintf(text, sizeof(text), "%.*se%d", n, digits, exponent - (n - 1));
    return strtod(text, NULL);
}

/* One more in the last of n digits; false when all are nines. */
static bool count_up(char *digits, int n) {
    if (digits[n - 1] == '9')
        return false;
    digits[n - 1]++;
    return true;
}

/* repr(float): the fewest digits that read back as the same number; of those, the nearest. Just above a power
 * of two the nearest of n digits may lie on the near side, where numbers are denser, and not read back, when
 * its upper neighbour does. */
static int append_real(struct byte_buffer *out, double value) {
    char text[40], digits[20];
    int n, exponent = 0;
    if (value == 0)
        return byte_buffer_text(out, signbit(value) ? "-0.0" : "0.0");
    double size = fabs(value);
    for (n = 1; n <= 17; n++) {
        snprintf(text, sizeof(text), "%.*e", n - 1, size);
        const char *mark = strchr(text, 'e');
        digits[0] = text[0];
        if (n > 1)
            memcpy(digits + 1, text + 2, (size_t)n - 1);
        exponent = (int)strtol(mark + 1, NULL, 10);
        if (read_back(digits, n, exponent) == size ||
                (count_up(digits, n) && read_back(digits, n, exponent) == size))
            break;
    }
    while (n > 1 && digits[n - 1] == '0')
        n--;
    int r = value < 0 ? byte_buffer_text(out, "-") : 0;
    return r < 0 ? r : append_digits(out, digits, n, exponent + 1);
}

int chat_json_append_string(struct byte_buffer *out, const char *text, size_t bytes) {
    int r = byte_buffer_text(out, "\"");
    size_t plain = 0;
    for (size_t i = 0; i <= bytes && r >= 0; i++) {
        unsigned char c = i < bytes ? (unsigned char)text[i] : '"';
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        r = byte_buffer_add(out, text + plain, i - plain);
        plain = i + 1;
        if (r < 0 || i == bytes)
            break;
        static const char escaped[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
        const char *known = c ? strchr(escaped, c) : NULL;
        char code[8];
        if (known)
            snprintf(code, sizeof(code), "\\%c", names[known - escaped]);
        else
            snprintf(code, sizeof(code), "\\u%04x", c);
        r = byte_buffer_text(out, code);
    }
    return r < 0 ? r : byte_buffer_text(out, "\"");
}

static bool is_big_integer(const json_t *value) {
    return json_is_string(value) && json_string_length(value) > BIG_INTEGER_BYTES &&
           memcmp(json_string_value(value), big_integer, BIG_INTEGER_BYTES) == 0;
}

static int append_object(struct byte_buffer *out, const json_t *value) {
    const char *separator = "{";
    int r = 0;
    void *at = json_object_iter((json_t *)value);
    if (!at)
        return byte_buffer_text(out, "{}");
    for (; at && r >= 0; at = json_object_iter_next((json_t *)value, at)) {
        const char *key = json_object_iter_key(at);
        r = byte_buffer_text(out, separator);
        if (r >= 0)
            r = chat_json_append_string(out, key, strlen(key));
        if (r >= 0)
            r = byte_buffer_text(out, ": ");
        if (r >= 0)
            r = chat_json_append(out, json_object_iter_value(at));
        separator = ", ";
    }
    return r < 0 ? r : byte_buffer_text(out, "}");
}

static int append_array(struct byte_buffer *out, const json_t *value) {
    int r = byte_buffer_text(out, "[");
    for (size_t i = 0; i < json_array_size(value) && r >= 0; i++) {
        if (i > 0)
            r = byte_buffer_text(out, ", ");
        if (r >= 0)
            r = chat_json_append(out, json_array_get(value, i));
    }
    return r < 0 ? r : byte_buffer_text(out, "]");
}

static int append_integer(struct byte_buffer *out, json_int_t value) {
    char text[32];
    snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, value);
    return byte_buffer_text(out, text);
}

int chat_json_append(struct byte_buffer *out, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return append_object(out, value);
    case JSON_ARRAY:
        return append_array(out, value);
    case JSON_STRING:
        if (is_big_integer(value))
            return chat_json_append_str(out, value);
        return chat_json_append_string(out, json_string_value(value), json_string_length(value));
    case JSON_INTEGER:
        return append_integer(out, json_integer_value(value));
    case JSON_REAL:
        return append_real(out, json_real_value(value));
    default:
        return byte_buffer_text(out, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}

int chat_json_append_str(struct byte_buffer *out, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_STRING: {
        size_t skipped = is_big_integer(value) ? BIG_INTEGER_BYTES : 0;
        return byte_buffer_add(out, json_string_value(value) + skipped, json_string_length(value) - skipped);
    }
    case JSON_TRUE:
        return byte_buffer_text(out, "True");
    case JSON_FALSE:
        return byte_buffer_text(out, "False");
    case JSON_NULL:
        return byte_buffer_text(out, "None");
    default:
        return chat_json_append(out, value);
    }
}

char *chat_json_dumps(const json_t *value) {
    struct byte_buffer out = {0};
    if (chat_json_append(&out, value) < 0 || byte_buffer_add(&out, "", 1) < 0) {
        free(out.data);
        return NULL;
    }
    return out.data;
}

/* --- reading --- */

static int read_value(struct json_pull *p, bool unique, int event, json_t **ret, struct error *e);

static int read_integer(struct json_pull *p, json_t **ret) {
    struct byte_buffer text = {0};
    int64_t value;
    if (json_pull_i64(p, &value, NULL) >= 0) {
        *ret = json_integer(value);
        return 0;
    }
    int r = byte_buffer_add(&text, big_integer, BIG_INTEGER_BYTES);
    if (r >= 0)
        r = byte_buffer_add(&text, p->string, p->string_bytes);
    if (r >= 0)
        *ret = json_stringn_nocheck(text.data, text.n);
    free(text.data);
    return r;
}

static int read_number(struct json_pull *p, json_t **ret, struct error *e) {
    double value;
    bool real = false;
    for (size_t i = 0; i < p->string_bytes; i++)
        real = real || strchr(".eE", p->string[i]);
    if (!real)
        return read_integer(p, ret);
    if (json_pull_double(p, &value, NULL) < 0)
        return json_pull_error(p, -EINVAL, e, "the number is too large for double precision");
    *ret = json_real(value);
    return 0;
}

static int read_array(struct json_pull *p, bool unique, json_t *array, struct error *e) {
    int event;
    while ((event = json_pull_next(p, e)) != PULL_ARRAY_END) {
        json_t *item = NULL;
        int r = event < 0 ? event : read_value(p, unique, event, &item, e);
        if (r >= 0 && json_array_append_new(array, item) < 0)
            r = -ENOMEM;
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_object(struct json_pull *p, bool unique, json_t *object, struct error *e) {
    int event;
    while ((event = json_pull_next(p, e)) == PULL_KEY) {
        json_t *item = NULL;
        if (memchr(p->string, 0, p->string_bytes))
            return json_pull_error(p, -EINVAL, e, "a key has the character U+0000");
        if (unique && json_object_getn(object, p->string, p->string_bytes))
            return json_pull_error(p, -EINVAL, e, "duplicate key \"%.*s\"",
                    (int)utf8_cut(p->string, p->string_bytes, KEY_SHOWN_MAX), p->string);
        char *key = strndup(p->string, p->string_bytes);
        int r = key ? json_pull_next(p, e) : -ENOMEM;
        if (r >= 0)
            r = read_value(p, unique, r, &item, e);
        if (r >= 0 && json_object_set_new_nocheck(object, key, item) < 0)
            r = -ENOMEM;
        free(key);
        if (r < 0)
            return r;
    }
    return event < 0 ? event : 0;
}

/* The value that an event begins. Objects and arrays nest as deep as json_pull allows, so recursion is
 * bounded. */
static int read_value(struct json_pull *p, bool unique, int event, json_t **ret, struct error *e) {
    json_t *value = NULL;
    int r = 0;
    switch (event) {
    case PULL_OBJECT_BEGIN:
        value = json_object();
        r = value ? read_object(p, unique, value, e) : -ENOMEM;
        break;
    case PULL_ARRAY_BEGIN:
        value = json_array();
        r = value ? read_array(p, unique, value, e) : -ENOMEM;
        break;
    case PULL_STRING:
        if (memchr(p->string, 0, p->string_bytes))
            return json_pull_error(p, -EINVAL, e, "a string has the character U+0000");
        value = json_stringn_nocheck(p->string, p->string_bytes);
        break;
    case PULL_NUMBER:
        r = read_number(p, &value, e);
        break;
    default:
        value = event == PULL_TRUE ? json_true() : event == PULL_FALSE ? json_false() : json_null();
        break;
    }
    if (r >= 0 && !value)
        r = -ENOMEM;
    if (r < 0) {
        json_decref(value);
        return r;
    }
    *ret = value;
    return 0;
}

int chat_json_loads(
        const char *text, size_t bytes, bool unique, const char *what, json_t **ret, struct error *e) {
    struct json_pull p;
    json_t *value = NULL;
    json_pull_init(&p, text, bytes, what);
    int r = json_pull_next(&p, e);
    if (r >= 0)
        r = read_value(&p, unique, r, &value, e);
    if (r >= 0)
        r = json_pull_expect(&p, PULL_DOCUMENT_END, e);
    json_pull_done(&p);
    if (r == -ENOMEM)
        error_set(e, r, "%s: not enough memory", what);
    if (r < 0) {
        json_decref(value);
        return r == -ENOMEM ? r : -EINVAL;
    }
    *ret = value;
    return 0;
}
