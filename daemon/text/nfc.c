/* Nearly all text is stable: it is copied. What is not is taken as a stretch from the last stable character
 * to the next, decomposed, ordered and composed by itself. Buffers are the caller's. */
#include "daemon/text/nfc.h"

#include "base/utf8.h"
#include "daemon/text/unicode_class.h"

#include <utf8proc.h>

#define DECOMPOSED_MAX 8 /* code points of one canonical decomposition; Unicode's longest has 4 */

/* Characters that Unicode gave a part in normalization after version 9: marks and halves or results of
 * compositions. Hugging Face tokenizers has the tables of version 9, where they have none, and what a model
 * was trained on is what counts. (Its pre-tokenizer is newer: unicode_class.c.) */
static const struct {
    uint32_t first, last;
} inert[] = {
        {0x7fd, 0x7fd},
        {0x897, 0x89f},
        {0x8ca, 0x8d3},
        {0x9fe, 0x9fe},
        {0xc3c, 0xc3c},
        {0xd3b, 0xd3c},
        {0xeba, 0xeba},
        {0x1715, 0x1715},
        {0x1abf, 0x1ace},
        {0x1df6, 0x1dfa},
        {0xa82c, 0xa82c},
        {0x105c9, 0x105c9},
        {0x105d2, 0x105d2},
        {0x105da, 0x105da},
        {0x105e4, 0x105e4},
        {0x10d24, 0x10d27},
        {0x10d69, 0x10d6d},
        {0x10eab, 0x10eac},
        {0x10efd, 0x10eff},
        {0x10f46, 0x10f50},
        {0x10f82, 0x10f85},
        {0x11070, 0x11070},
        {0x1133b, 0x1133b},
        {0x11382, 0x11385},
        {0x1138b, 0x1138b},
        {0x1138e, 0x1138e},
        {0x11390, 0x11391},
        {0x113b8, 0x113b8},
        {0x113bb, 0x113bb},
        {0x113c2, 0x113c2},
        {0x113c5, 0x113c5},
        {0x113c7, 0x113c9},
        {0x113ce, 0x113d0},
        {0x1145e, 0x1145e},
        {0x11839, 0x1183a},
        {0x11930, 0x11930},
        {0x11935, 0x11935},
        {0x11938, 0x11938},
        {0x1193d, 0x1193e},
        {0x11943, 0x11943},
        {0x119e0, 0x119e0},
        {0x11a34, 0x11a34},
        {0x11a47, 0x11a47},
        {0x11a99, 0x11a99},
        {0x11d42, 0x11d42},
        {0x11d44, 0x11d45},
        {0x11d97, 0x11d97},
        {0x11f41, 0x11f42},
        {0x1611e, 0x16129},
        {0x1612f, 0x1612f},
        {0x16d63, 0x16d63},
        {0x16d67, 0x16d6a},
        {0x16ff0, 0x16ff1},
        {0x1e08f, 0x1e08f},
        {0x1e130, 0x1e136},
        {0x1e2ae, 0x1e2ae},
        {0x1e2ec, 0x1e2ef},
        {0x1e4ec, 0x1e4ef},
        {0x1e5ee, 0x1e5ef},
};

static bool is_inert(uint32_t c) {
    size_t low = 0, high = sizeof(inert) / sizeof(inert[0]);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > inert[middle].last)
            low = middle + 1;
        else if (c < inert[middle].first)
            high = middle;
        else
            return true;
    }
    return false;
}

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

/* Could it by the tables of today? */
static bool is_unstable(uint32_t c) {
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

bool nfc_is_unstable(uint32_t c) {
    return c >= 0x300 && is_unstable(c) && !is_inert(c);
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

/* Appends NFC of a stretch whose characters, but for the first, are all unstable. */
static int append_composed(const char *text, size_t bytes, struct byte_buffer *out) {
    size_t n = 0, len, size;
    if (is_inert(unicode_decode(text, &len))) { /* composes with nothing, so what follows it has no starter */
        int r = byte_buffer_add(out, text, len);
        if (r < 0)
            return r;
        text += len;
        bytes -= len;
    }
    /* Two bytes become at most three characters, three at most four. */
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
