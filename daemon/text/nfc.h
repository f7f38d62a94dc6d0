/* nfc.h - Unicode normalization form C, linear in the text whatever the text is.
 *
 * Used by tokenizer.c. The tables are utf8proc's (Unicode 15.0); the walk is ours, because utf8proc orders
 * combining marks by swapping neighbours, which a text of a million marks makes quadratic. */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>

/* Could this character change, or be changed by what stands before it? False for nearly all text. */
bool nfc_is_unstable(uint32_t code_point);

/* Appends NFC(text) to *out; text must be valid UTF-8. flags, one byte for each byte of text, is carried
 * along to *out_flags (a sequence that was recomposed gets the AND of its bytes' flags); both NULL if there
 * is none. -ENOMEM. */
int nfc_append(const char *text, size_t bytes, const unsigned char *flags, struct byte_buffer *out,
        struct byte_buffer *out_flags);
/* The first place from which the text may not be NFC (a character boundary; bytes if it is). */
size_t nfc_stable_prefix(const char *text, size_t bytes);
