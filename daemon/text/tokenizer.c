/* The way of a text: UTF-8 check - added tokens cut out - NFC of what lies between - added tokens of the
 * normalized kind cut out - words - BPE. With spans, one byte of flags goes along with each byte of text: may
 * it be part of an added token? */
#include "daemon/text/tokenizer.h"

#include "base/utf8.h"
#include "daemon/text/nfc.h"
#include "daemon/text/tokenizer_tables.h"

struct tokenizer *tokenizer_free(struct tokenizer *t) {
    if (!t)
        return NULL;
    vocab_done(&t->vocab);
    bpe_done(&t->bpe);
    added_tokens_done(&t->raw);
    added_tokens_done(&t->normal);
    splitter_free(t->splitter);
    free(t);
    return NULL;
}

const char *tokenizer_ignored(const struct tokenizer *t) {
    static const char *const names[] = {NULL, "truncation", "padding", "truncation and padding"};
    return names[t->ignored];
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->vocab.n_pieces;
}

int tokenizer_find(const struct tokenizer *t, const char *text, uint32_t *ret_id) {
    size_t bytes = strlen(text);
    const struct added_token *added = added_tokens_named(&t->raw, text, bytes);
    if (!added)
        added = added_tokens_named(&t->normal, text, bytes);
    if (added) {
        *ret_id = added->id;
        return 0;
    }
    return vocab_find(&t->vocab, text, bytes, ret_id) ? 0 : -ENOENT;
}

const char *tokenizer_piece(const struct tokenizer *t, uint32_t id, size_t *ret_bytes, bool *ret_special) {
    if (!vocab_has(&t->vocab, id))
        return NULL;
    *ret_bytes = t->vocab.pieces[id].bytes;
    *ret_special = t->vocab.pieces[id].flags & PIECE_SPECIAL;
    return vocab_bytes(&t->vocab, id);
}

/* One call of tokenizer_encode*(). */
struct encoding {
    const struct tokenizer *t;
    struct splitter_run splitter;
    struct bpe_scratch scratch;
    struct byte_buffer normal, normal_flags;
    struct id_buffer ids;
    size_t ids_max;
    struct error *e;
};

struct stretch {
    const char *text;
    size_t bytes;
    const unsigned char *flags; /* by byte: 1 = may be part of an added token; NULL: none may */
};

static int too_many(struct encoding *c) {
    return error_set(
            c->e, -E2BIG, "the text has more than the %zu tokens that fit; send a shorter one", c->ids_max);
}

static int encode_words(struct encoding *c, struct stretch s) {
    for (size_t at = 0, end = 0; at < s.bytes; at = end) {
        int r = splitter_next(&c->splitter, s.text, s.bytes, at, &end, c->e);
        if (r >= 0)
            r = bpe_encode(&c->t->bpe, &c->scratch, s.text + at, end - at, &c->ids);
        if (r < 0)
            return r;
        if (c->ids.n > c->ids_max)
            return too_many(c);
    }
    return 0;
}

/* The first added token at or after at that lies wholly in bytes whose flag is set. *limit is the end of the
 * run of such bytes that at is in (0 at first): it is kept between calls, so that all of them together are
 * linear. */
static const struct added_token *find_added(
        const struct added_tokens *a, struct stretch s, size_t at, size_t *limit, size_t *ret_at) {
    if (!s.flags || a->n == 0)
        return NULL;
    for (; at < s.bytes; at = *limit) {
        if (at >= *limit) {
            const unsigned char *trusted = memchr(s.flags + at, 1, s.bytes - at);
            if (!trusted)
                return NULL;
            at = (size_t)(trusted - s.flags);
            const unsigned char *end = memchr(trusted, 0, s.bytes - at);
            *limit = end ? (size_t)(end - s.flags) : s.bytes;
        }
        const struct added_token *found = added_tokens_find(a, s.text, at, *limit, ret_at);
        if (found)
            return found;
    }
    return NULL;
}

typedef int (*encode_fn)(struct encoding *c, struct stretch s);

/* Cuts the added tokens of one kind out and gives what lies between to encode. */
static int encode_around(
        struct encoding *c, struct stretch s, const struct added_tokens *added, encode_fn encode) {
    size_t at = 0, limit = 0, found_at = 0;
    for (;;) {
        const struct added_token *found = find_added(added, s, at, &limit, &found_at);
        size_t end = found ? found_at : s.bytes;
        int r = 0;
        if (end > at)
            r = encode(c, (struct stretch){s.text + at, end - at, s.flags ? s.flags + at : NULL});
        if (r < 0 || !found)
            return r;
        r = id_buffer_add(&c->ids, found->id);
        if (r < 0)
            return r;
        if (c->ids.n > c->ids_max)
            return too_many(c);
        at = found_at + found->bytes;
    }
}

static int encode_normalized(struct encoding *c, struct stretch s) {
    return encode_around(c, s, &c->t->normal, encode_words);
}

static int encode_between(struct encoding *c, struct stretch s) {
    if (!c->t->nfc || nfc_stable_prefix(s.text, s.bytes) == s.bytes)
        return encode_normalized(c, s);
    c->normal.n = 0;
    c->normal_flags.n = 0;
    int r = nfc_append(s.text, s.bytes, s.flags, &c->normal, &c->normal_flags);
    if (r < 0)
        return r;
    const unsigned char *flags = s.flags ? (const unsigned char *)c->normal_flags.data : NULL;
    return encode_normalized(c, (struct stretch){c->normal.data, c->normal.n, flags});
}

static int encode_stretch(const struct tokenizer *t, struct stretch s, size_t max_ids, uint32_t **ret_ids,
        size_t *ret_n, struct error *e) {
    struct encoding c = {.t = t, .ids_max = max_ids, .e = e};
    size_t bad;
    int r;
    if (!utf8_valid(s.text, s.bytes, &bad))
        return error_set(e, -EILSEQ, "the text is not UTF-8: byte %zu begins no valid character", bad);
    /* Normalization can only shorten a text to a third, so this refuses nothing that would fit. */
    if (s.bytes / 3 / t->longest_piece > max_ids)
        return too_many(&c);
    r = splitter_run_begin(t->splitter, &c.splitter);
    if (r < 0)
        return r;
    r = encode_around(&c, s, &t->raw, encode_between);
    if (r >= 0 && !c.ids.data) {
        c.ids.data = malloc(sizeof(*c.ids.data)); /* no ids are an array too */
        r = c.ids.data ? 0 : -ENOMEM;
    }
    splitter_run_end(&c.splitter);
    bpe_scratch_done(&c.scratch);
    free(c.normal.data);
    free(c.normal_flags.data);
    if (r < 0) {
        free(c.ids.data);
        return r == -ENOMEM ? error_set(e, r, "not enough memory to encode a text of %zu bytes", s.bytes) : r;
    }
    *ret_ids = c.ids.data;
    *ret_n = c.ids.n;
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool parse_special,
        size_t max_ids, uint32_t **ret_ids, size_t *ret_n, struct error *e) {
    struct text_span span = {text, bytes, parse_special};
    return tokenizer_encode_spans(t, &span, 1, max_ids, ret_ids, ret_n, e);
}

static int sum_spans(const struct text_span *spans, size_t n, size_t *ret_bytes, bool *ret_special) {
    size_t bytes = 0;
    bool special = false;
    for (size_t i = 0; i < n; i++) {
        if (__builtin_add_overflow(bytes, spans[i].bytes, &bytes))
            return -E2BIG;
        special = special || (spans[i].parse_special && spans[i].bytes > 0);
    }
    *ret_bytes = bytes;
    *ret_special = special;
    return 0;
}

int tokenizer_encode_spans(const struct tokenizer *t, const struct text_span *spans, size_t n_spans,
        size_t max_ids, uint32_t **ret_ids, size_t *ret_n, struct error *e) {
    size_t bytes, at = 0;
    bool special;
    int r = sum_spans(spans, n_spans, &bytes, &special);
    if (r < 0)
        return error_set(e, r, "the text is longer than memory");
    char *joined = NULL;
    unsigned char *flags = NULL;
    if (n_spans != 1)
        joined = malloc(bytes + 1);
    if (special)
        flags = malloc(bytes);
    if ((n_spans != 1 && !joined) || (special && !flags)) {
        r = error_set(e, -ENOMEM, "not enough memory to encode a text of %zu bytes", bytes);
        goto finish;
    }
    for (size_t i = 0; i < n_spans; i++) {
        if (joined && spans[i].bytes)
            memcpy(joined + at, spans[i].text, spans[i].bytes);
        if (flags && spans[i].bytes)
            memset(flags + at, spans[i].parse_special, spans[i].bytes);
        at += spans[i].bytes;
    }
    r = encode_stretch(
            t, (struct stretch){joined ? joined : spans[0].text, bytes, flags}, max_ids, ret_ids, ret_n, e);
finish:
    free(joined);
    free(flags);
    return r;
}
