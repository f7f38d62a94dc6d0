/* utf8.h - is this text UTF-8?
 *
 * Called wherever bytes come from outside: request strings (rpc), prompts (text), JSON files (json_pull).
 * Strict: overlong forms, surrogates (U+D800..DFFF) and values above U+10FFFF are not UTF-8; U+0000 is. Pure
 * functions. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True if all n bytes are UTF-8 (n = 0 is; text may be NULL then). Otherwise *ret_bad_offset (if not NULL) is
 * where the first sequence that is not begins; it is left alone when the text is valid. */
bool utf8_valid(const char *text, size_t n, size_t *ret_bad_offset);

/* Bytes (1..4) of the character at text[0], or 0 if no whole valid sequence starts there within n bytes. */
size_t utf8_sequence(const char *text, size_t n);

/* How much of a text of n bytes to show where there is room for max: n, or max less the beginning of a character that
 * would be cut in two. Reads no more than the first max bytes. */
size_t utf8_cut(const char *text, size_t n, size_t max);

/* Writes a code point that is not a surrogate and is <= U+10FFFF; returns the bytes written (1..4). */
size_t utf8_encode(uint32_t code_point, char out[4]);
