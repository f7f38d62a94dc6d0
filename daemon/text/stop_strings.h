/* stop_strings.h - finds any of several stop strings in streamed text, holding back only what may become one.
 *
 * One per stream. Bytes in, bytes out; a match ends the text before the string (or after it when include is
 * set). After stop_strings_end() another text may follow: no string is found across the two. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stop_strings;
/* strings are copied; n may be 0 (then nothing is ever held back). -EINVAL: an empty string; -E2BIG: more
 * than STOP_STRINGS_MAX, or one longer than STOP_STRING_BYTES_MAX. */
int stop_strings_new(
        const char *const *strings, const size_t *bytes, size_t n, bool include, struct stop_strings **ret);
struct stop_strings *stop_strings_free(struct stop_strings *s);
/* Takes text; ret_text and ret_bytes tell what may be shown now (valid until the next call). Returns the
 * index of the string that matched (nothing may be fed after it), -1 if none did, or -ENOMEM. When several
 * end at the same byte, the one that starts first wins, then the lower index. Without may_match no string ends
 * in this text, though one that ends later may begin in it. */
int stop_strings_feed(struct stop_strings *s, const char *text, size_t bytes, bool may_match,
        const char **ret_text, size_t *ret_bytes);
/* End of the text: what was held back. */
void stop_strings_end(struct stop_strings *s, const char **ret_text, size_t *ret_bytes);
