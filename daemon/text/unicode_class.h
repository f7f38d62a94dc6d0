/* unicode_class.h - letter, mark, number, white space or something else: what the pre-tokenizer's patterns
 * ask.
 *
 * Used by pretokenize.c. Unicode 16.0, as Hugging Face tokenizers has it: utf8proc's categories (15.0) and a
 * table of what was assigned since. Pure functions. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_MARK, UNICODE_NUMBER, UNICODE_SPACE };

/* General categories L*, M*, N*; SPACE is the property White_Space (\s of the patterns). */
enum unicode_class unicode_class_of(uint32_t code_point);

/* The character at text, which must be valid UTF-8; *ret_bytes is its length. */
static inline uint32_t unicode_decode(const char *text, size_t *ret_bytes) {
    const unsigned char *t = (const unsigned char *)text;
    if (t[0] < 0x80) {
        *ret_bytes = 1;
        return t[0];
    }
    if (t[0] < 0xe0) {
        *ret_bytes = 2;
        return (t[0] & 0x1fu) << 6 | (t[1] & 0x3fu);
    }
    if (t[0] < 0xf0) {
        *ret_bytes = 3;
        return (t[0] & 0x0fu) << 12 | (t[1] & 0x3fu) << 6 | (t[2] & 0x3fu);
    }
    *ret_bytes = 4;
    return (t[0] & 0x07u) << 18 | (t[1] & 0x3fu) << 12 | (t[2] & 0x3fu) << 6 | (t[3] & 0x3fu);
}
