/* utf8.c - see utf8.h. The table is Unicode 15, table 3-7 (well-formed UTF-8 byte sequences). */
#include "base/utf8.h"

#include <assert.h>
#include <string.h>

static bool is_continuation(unsigned char c) {
    return (c & 0xC0) == 0x80;
}

size_t utf8_sequence(const char *text, size_t n) {
    const unsigned char *s = (const unsigned char *)text;
    if (n == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2) /* a continuation byte, or the overlong C0 and C1 */
        return 0;
    if (s[0] < 0xE0)
        return n >= 2 && is_continuation(s[1]) ? 2 : 0;
    if (s[0] < 0xF0) {
        unsigned char low = s[0] == 0xE0 ? 0xA0 : 0x80;  /* overlong */
        unsigned char high = s[0] == 0xED ? 0x9F : 0xBF; /* surrogates */
        return n >= 3 && s[1] >= low && s[1] <= high && is_continuation(s[2]) ? 3 : 0;
    }
    if (s[0] > 0xF4)
        return 0;
    unsigned char low = s[0] == 0xF0 ? 0x90 : 0x80;  /* overlong */
    unsigned char high = s[0] == 0xF4 ? 0x8F : 0xBF; /* above U+10FFFF */
    return n >= 4 && s[1] >= low && s[1] <= high && is_continuation(s[2]) && is_continuation(s[3]) ? 4 : 0;
}

bool utf8_valid(const char *text, size_t n, size_t *ret_bad_offset) {
    size_t i = 0;
    while (i < n) {
        /* Most text is ASCII: eight bytes at once while none has its high bit set. */
        while (n - i >= 8) {
            uint64_t word;
            memcpy(&word, text + i, sizeof(word));
            if (word & 0x8080808080808080ull)
                break;
            i += 8;
        }
        if (i == n)
            break;
        size_t length = utf8_sequence(text + i, n - i);
        if (length == 0) {
            if (ret_bad_offset)
                *ret_bad_offset = i;
            return false;
        }
        i += length;
    }
    return true;
}

size_t utf8_cut(const char *text, size_t n, size_t max) {
    if (n <= max)
        return n;
    /* The character that stands across the edge begins at most three bytes before it. */
    for (size_t at = max; at-- > 0 && max - at < 4;) {
        unsigned char c = (unsigned char)text[at];
        if (!is_continuation(c))
            return at + (c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1) > max ? at : max;
    }
    return max;
}

size_t utf8_encode(uint32_t code_point, char out[4]) {
    assert(code_point <= 0x10FFFF);
    assert(code_point < 0xD800 || code_point > 0xDFFF);
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xC0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (char)(0xE0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code_point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code_point & 0x3F));
    return 4;
}
