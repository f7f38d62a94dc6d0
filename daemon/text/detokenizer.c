/* Ids to text, a stream at a time. The state is the beginning of one character, in struct detokenizer; the
 * text is the caller's buffer. */
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void detokenizer_init(struct detokenizer *d, bool show_special) {
    *d = (struct detokenizer){.show_special = show_special};
}

static int reserve(char **buf, size_t n, size_t *size, size_t more) {
    size_t need, grown = *size ? *size : 64;
    if (__builtin_add_overflow(n, more, &need) || need > SIZE_MAX / 2)
        return -ENOMEM;
    if (need <= *size)
        return 0;
    while (grown < need)
        grown *= 2;
    char *data = realloc(*buf, grown);
    if (!data)
        return -ENOMEM;
    *buf = data;
    *size = grown;
    return 0;
}

/* The bounds of the byte that may follow: Unicode's table of well-formed sequences (D92) has them narrower
 * after E0, ED, F0 and F4. */
static bool may_follow(const unsigned char *pending, size_t n, unsigned char c) {
    unsigned char low = 0x80, high = 0xbf;
    if (n == 1) {
        low = pending[0] == 0xe0 ? 0xa0 : pending[0] == 0xf0 ? 0x90 : 0x80;
        high = pending[0] == 0xed ? 0x9f : pending[0] == 0xf4 ? 0x8f : 0xbf;
    }
    return c >= low && c <= high;
}

/* Length of the sequence that a byte begins; 0: it begins none. */
static size_t sequence_bytes(unsigned char c) {
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        return 2;
    if (c >= 0xe0 && c <= 0xef)
        return 3;
    return c >= 0xf0 && c <= 0xf4 ? 4 : 0;
}

static void append(char *buf, size_t *n, const void *data, size_t bytes) {
    memcpy(buf + *n, data, bytes);
    *n += bytes;
}

static const char replacement[] = "\xef\xbf\xbd";

/* Each maximal part of a sequence that breaks off, and each byte that begins none, becomes one U+FFFD. buf
 * has room for three bytes for each byte given and pending. */
static void add_byte(struct detokenizer *d, unsigned char c, char *buf, size_t *n) {
    if (d->n_pending > 0 && !may_follow(d->pending, d->n_pending, c)) {
        append(buf, n, replacement, 3);
        d->n_pending = 0;
    }
    if (d->n_pending == 0) {
        size_t bytes = sequence_bytes(c);
        if (bytes == 0)
            append(buf, n, replacement, 3);
        else if (bytes == 1)
            append(buf, n, &c, 1);
        else
            d->pending[d->n_pending++] = c;
        return;
    }
    d->pending[d->n_pending++] = c;
    if (d->n_pending == sequence_bytes(d->pending[0])) {
        append(buf, n, d->pending, d->n_pending);
        d->n_pending = 0;
    }
}

int detokenizer_add(
        struct detokenizer *d, const struct tokenizer *t, uint32_t id, char **buf, size_t *n, size_t *size) {
    size_t bytes, more;
    bool special;
    const char *piece = tokenizer_piece(t, id, &bytes, &special);
    if (!piece)
        return -EINVAL;
    if (special && !d->show_special)
        return 0;
    if (__builtin_mul_overflow(bytes + d->n_pending, 3, &more))
        return -ENOMEM;
    int r = reserve(buf, *n, size, more);
    if (r < 0)
        return r;
    for (size_t i = 0; i < bytes; i++)
        add_byte(d, (unsigned char)piece[i], *buf, n);
    return 0;
}

int detokenizer_end(struct detokenizer *d, char **buf, size_t *n, size_t *size) {
    if (d->n_pending == 0)
        return 0;
    int r = reserve(buf, *n, size, 3);
    if (r < 0)
        return r;
    append(*buf, n, replacement, 3);
    d->n_pending = 0;
    return 0;
}
