#include "daemon/text/nfc.h"

#include "base/utf8.h"
#include "daemon/text/unicode_class.h"

#include <utf8proc.h>

#define DECOMPOSED_MAX 8 /* code points of one canonical decomposition; Unicode's longest has 4 */

static bool is_jamo_vowel_or_tail(uint32_t c) {
    return (c >= 0x1161 && c <= 0x1175) || (c >= 0x11a8 && c <= 0x11c2);
}

/* The canonical decomposition of one character: its length. */
static size_t decompose(uint32_t c, utf8proc_int32_t out[DECOMPOSED_MAX]) {
    int last_boundclass = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(
            (utf8proc_int32_t)c, out, DECOMPOSED_MAX, UTF8PROC_DECOMPOSE, &last_boundclass);
    if (n < 1 || n > DECOMPOSED_MAX) { /* no such character is known; it stays as it is */
        out[0] = (utf8proc_int32_t)c;
        return 1;
    }
    return (size_t)n;
}

bool nfc_is_unstable(uint32_t c) {
    if (c < 0x300)
        return false;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
    if (p->combining_class != 0 || is_jamo_vowel_or_tail(c))
        return true;
    /* utf8proc: below 0x8000 the first half of compositions, above the second */
    if (p->comb_index != UINT16_MAX && p->comb_index >= 0x8000)
        return true;
    if (p->decomp_seqindex == UINT16_MAX || p->decomp_type != 0)
        return false;
    utf8proc_int32_t parts[DECOMPOSED_MAX];
    size_t n = decompose(c, parts);
    return utf8proc_normalize_utf32(parts, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE) != 1 ||
           (uint32_t)parts[0] != c;
}

size_t nfc_stable_prefix(const char *text, size_t bytes) {
    size_t at = 0, before = 0, len;
    while (at < bytes) {
        if ((unsigned char)text[at] < 0xcc) { /* below U+0300 */
            before = at;
            at += (unsigned char)text[at] < 0x80 ? 1 : 2;
            continue;
        }
        if (nfc_is_unstable(unicode_decode(text + at, &len)))
            return before;
        before = at;
        at += len;
    }
    return bytes;
}

/* Where the next character begins that nothing before it can change. */
static size_t next_stable(const char *text, size_t at, size_t bytes) {
    size_t len;
    while (at < bytes && nfc_is_unstable(unicode_decode(text + at, &len)))
        at += len;
    return at;
}

static unsigned char combining_class(utf8proc_int32_t c) {
    return (unsigned char)utf8proc_get_property(c)->combining_class;
}

/* Sorts n marks by combining class; equal ones keep their order. */
static int order_marks(utf8proc_int32_t *marks, size_t n) {
    if (n < 2)
        return 0;
    size_t first[257] = {0};
    bool ordered = true;
    for (size_t i = 0; i < n; i++) {
        first[combining_class(marks[i]) + 1]++;
        ordered = ordered && (i == 0 || combining_class(marks[i - 1]) <= combining_class(marks[i]));
    }
    if (ordered)
        return 0;
    utf8proc_int32_t *sorted = reallocarray(NULL, n, sizeof(*sorted));
    if (!sorted)
        return -ENOMEM;
    for (size_t i = 1; i < 257; i++)
        first[i] += first[i - 1];
    for (size_t i = 0; i < n; i++)
        sorted[first[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, sorted, n * sizeof(*marks));
    free(sorted);
    return 0;
}

static int order_all(utf8proc_int32_t *chars, size_t n) {
    for (size_t i = 0; i < n;) {
        if (combining_class(chars[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i;
        while (end < n && combining_class(chars[end]) != 0)
            end++;
        int r = order_marks(chars + i, end - i);
        if (r < 0)
            return r;
        i = end;
    }
    return 0;
}

/* Appends NFC of a short stretch that begins at a stable character (or at the start of the text). */
static int append_composed(const char *text, size_t bytes, struct byte_buffer *out) {
    size_t n = 0, len, size; /* two bytes become at most three characters, three at most four */
    if (__builtin_mul_overflow(bytes, 2, &size))
        return -ENOMEM;
    utf8proc_int32_t *chars = reallocarray(NULL, size + DECOMPOSED_MAX, sizeof(*chars));
    if (!chars)
        return -ENOMEM;
    for (size_t at = 0; at < bytes; at += len)
        n += decompose(unicode_decode(text + at, &len), chars + n);
    int r = order_all(chars, n);
    if (r < 0)
        goto finish;
    utf8proc_ssize_t composed =
            utf8proc_normalize_utf32(chars, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (composed < 0) {
        r = -ENOMEM;
        goto finish;
    }
    r = byte_buffer_reserve(out, (size_t)composed * 4);
    for (size_t i = 0; r >= 0 && i < (size_t)composed; i++)
        out->n += utf8_encode((uint32_t)chars[i], out->data + out->n);
finish:
    free(chars);
    return r;
}

static int append_flags(const unsigned char *flags, size_t bytes, size_t n_out, struct byte_buffer *out) {
    unsigned char all = 0xff;
    for (size_t i = 0; i < bytes; i++)
        all &= flags[i];
    int r = byte_buffer_reserve(out, n_out);
    if (r < 0)
        return r;
    if (n_out)
        memset(out->data + out->n, all, n_out);
    out->n += n_out;
    return 0;
}

int nfc_append(const char *text, size_t bytes, const unsigned char *flags, struct byte_buffer *out,
        struct byte_buffer *out_flags) {
    size_t at = 0;
    while (at < bytes) {
        size_t stable = nfc_stable_prefix(text + at, bytes - at);
        int r = byte_buffer_add(out, text + at, stable);
        if (r >= 0 && flags)
            r = byte_buffer_add(out_flags, flags + at, stable);
        if (r < 0)
            return r;
        at += stable;
        if (at == bytes)
            break;
        size_t len, before = out->n;
        unicode_decode(text + at, &len);
        size_t end = next_stable(text, at + len, bytes);
        r = append_composed(text + at, end - at, out);
        if (r >= 0 && flags)
            r = append_flags(flags + at, end - at, out->n - before, out_flags);
        if (r < 0)
            return r;
        at = end;
    }
    return 0;
}
