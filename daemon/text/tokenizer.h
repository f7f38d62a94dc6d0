/* tokenizer.h - byte-level BPE straight from a Hugging Face tokenizer.json.
 *
 * Called by gRPC workers (many threads at once: a loaded tokenizer is immutable). Owns its tables; nothing is
 * shared with the caller. Supports what the Qwen family uses: NFC or no normalizer, Split(regex, Isolated) +
 * ByteLevel (use_regex false or true) pre-tokenizers, BPE with merges (both list forms), added tokens,
 * ByteLevel decoder. Anything else in the file is refused by name, but for truncation and padding, which are settings
 * of batches and are passed over. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* path: tokenizer.json. -ENOENT, -EBADMSG (broken), -ENOTSUP (a feature that is not supported), -E2BIG. */
int tokenizer_load(const char *path, struct tokenizer **ret, struct error *e);
/* The same from memory; file is for messages. */
int tokenizer_parse(
        const char *text, size_t bytes, const char *file, struct tokenizer **ret, struct error *e);
struct tokenizer *tokenizer_free(struct tokenizer *t);
/* What the file sets and was passed over: "truncation", "padding", "truncation and padding"; NULL: nothing. */
const char *tokenizer_ignored(const struct tokenizer *t);

uint32_t tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1, added tokens included */
/* Id of an added token by its text ("<|im_end|>"), else of an entry by what it decodes to (" the"); -ENOENT. */
int tokenizer_find(const struct tokenizer *t, const char *text, uint32_t *ret_id);
/* Bytes of a token (what it decodes to), owned by t; NULL for an id that is in no table. *ret_special: an
 * added token with special = true. */
const char *tokenizer_piece(const struct tokenizer *t, uint32_t id, size_t *ret_bytes, bool *ret_special);

/* Encodes UTF-8 text. With parse_special added tokens in the text become their ids; without, they are plain
 * text. *ret_ids is malloc'ed (free()). -EILSEQ: not UTF-8 (the sentence names the byte offset); -E2BIG: more
 * than max_ids (the sentence names both counts where known); -ENOMEM. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool parse_special,
        size_t max_ids, uint32_t **ret_ids, size_t *ret_n, struct error *e);

/* A piece of text with its own trust: template text may hold control tokens, user text may not. */
struct text_span {
    const char *text;
    size_t bytes;
    bool parse_special;
};
/* Encodes the concatenation of spans as one text, except that added tokens are matched only where the whole
 * match lies inside spans with parse_special. Pre-tokenization runs across span borders, so that the ids of
 * trusted text are exactly those of encoding the joined text. */
int tokenizer_encode_spans(const struct tokenizer *t, const struct text_span *spans, size_t n_spans,
        size_t max_ids, uint32_t **ret_ids, size_t *ret_n, struct error *e);

/* Incremental detokenizer: one per stream, a value without pointers to free. */
struct detokenizer {
    unsigned char pending[8]; /* bytes of an unfinished character */
    uint8_t n_pending;
    bool show_special;
};
void detokenizer_init(struct detokenizer *d, bool show_special);
/* Appends the text of one id to *buf (malloc'ed, grown with realloc; *n bytes used, *size allocated). Only
 * whole characters are appended; invalid bytes become U+FFFD exactly as Python's
 * bytes.decode(errors="replace") has them. -EINVAL: id in no table; -ENOMEM. */
int detokenizer_add(
        struct detokenizer *d, const struct tokenizer *t, uint32_t id, char **buf, size_t *n, size_t *size);
/* Flushes what is pending as U+FFFD at the end of the stream. */
int detokenizer_end(struct detokenizer *d, char **buf, size_t *n, size_t *size);
