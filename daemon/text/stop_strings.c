/* The text that is not shown yet stands in one buffer; each new byte is asked whether a string ends there.
 * Strings are few and short (base/limits.h), so nothing cleverer is needed. Owns copies of the strings. */
#include "daemon/text/stop_strings.h"

#include "base/buffer.h"
#include "base/limits.h"

struct stop_string {
    char *data; /* owned */
    size_t n;
};

struct stop_strings {
    struct stop_string *strings; /* (n) */
    size_t n, longest;
    bool include;
    struct byte_buffer text; /* what was held back, and after it the text that came last */
    size_t shown;            /* bytes of it that the caller was given */
};

int stop_strings_new(
        const char *const *strings, const size_t *bytes, size_t n, bool include, struct stop_strings **ret) {
    if (n > STOP_STRINGS_MAX)
        return -E2BIG;
    struct stop_strings *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    int r = -ENOMEM;
    s->include = include;
    s->strings = calloc(n + 1, sizeof(*s->strings));
    if (!s->strings)
        goto fail;
    for (; s->n < n; s->n++) {
        struct stop_string *string = &s->strings[s->n];
        string->n = bytes[s->n];
        r = string->n == 0 ? -EINVAL : string->n > STOP_STRING_BYTES_MAX ? -E2BIG : 0;
        if (r < 0)
            goto fail;
        string->data = malloc(string->n);
        r = -ENOMEM;
        if (!string->data)
            goto fail;
        memcpy(string->data, strings[s->n], string->n);
        s->longest = string->n > s->longest ? string->n : s->longest;
    }
    *ret = s;
    return 0;
fail:
    stop_strings_free(s);
    return r;
}

struct stop_strings *stop_strings_free(struct stop_strings *s) {
    if (!s)
        return NULL;
    for (size_t i = 0; i < s->n; i++)
        free(s->strings[i].data);
    free(s->strings);
    free(s->text.data);
    free(s);
    return NULL;
}

/* The longest string that ends at end, the first of equals; NULL. */
static const struct stop_string *ending_at(const struct stop_strings *s, size_t end) {
    const struct stop_string *found = NULL;
    for (size_t i = 0; i < s->n; i++) {
        const struct stop_string *string = &s->strings[i];
        if (string->n <= end && (!found || string->n > found->n) &&
                memcmp(s->text.data + end - string->n, string->data, string->n) == 0)
            found = string;
    }
    return found;
}

/* How many bytes at the end of the text may become a stop string. */
static size_t may_become_one(const struct stop_strings *s) {
    size_t n = s->longest > 0 ? s->longest - 1 : 0;
    n = n < s->text.n ? n : s->text.n;
    for (; n > 0; n--)
        for (size_t i = 0; i < s->n; i++)
            if (n < s->strings[i].n && memcmp(s->text.data + s->text.n - n, s->strings[i].data, n) == 0)
                return n;
    return 0;
}

int stop_strings_feed(struct stop_strings *s, const char *text, size_t bytes, bool may_match,
        const char **ret_text, size_t *ret_bytes) {
    *ret_text = "";
    *ret_bytes = 0;
    size_t held = s->text.n - s->shown;
    if (s->shown > 0)
        memmove(s->text.data, s->text.data + s->shown, held);
    s->text.n = held;
    s->shown = 0;
    int r = byte_buffer_add(&s->text, text, bytes);
    if (r < 0)
        return r;
    *ret_text = s->text.data ? s->text.data : "";
    for (size_t end = held + 1; end <= s->text.n && s->n > 0 && may_match; end++) {
        const struct stop_string *found = ending_at(s, end);
        if (!found)
            continue;
        *ret_bytes = s->include ? end : end - found->n;
        s->shown = s->text.n; /* what follows is nobody's */
        return (int)(found - s->strings);
    }
    s->shown = s->text.n - may_become_one(s);
    *ret_bytes = s->shown;
    return -1;
}

void stop_strings_end(struct stop_strings *s, const char **ret_text, size_t *ret_bytes) {
    *ret_bytes = s->text.n - s->shown;
    *ret_text = *ret_bytes ? s->text.data + s->shown : "";
    s->shown = s->text.n;
}
