/* vocab.h - the entries of a vocabulary: id -> bytes, bytes -> id.
 *
 * Filled by tokenizer_load.c, immutable afterwards. Entries are kept as the bytes that they decode to; in
 * tokenizer.json each byte is written as one character of the GPT-2 byte alphabet. */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>

#define PIECE_PRESENT 1u
#define PIECE_ADDED   2u
#define PIECE_SPECIAL 4u
#define PIECE_WORD    8u /* a word with these bytes encodes to this id alone */

struct piece {
    uint32_t at; /* into bytes.data */
    uint16_t bytes;
    uint8_t flags;
};

struct vocab {
    struct byte_buffer bytes;
    struct piece *pieces; /* (n_pieces), by id; holes have no flags */
    uint32_t n_pieces, pieces_size;
    uint32_t *slots; /* (n_slots) id + 1 of model entries, 0 = free; by bytes */
    uint32_t n_slots, n_used;
};

void vocab_done(struct vocab *v);
/* Text in the byte alphabet as bytes, appended to *out. False (and nothing appended): a character is not of
 * the alphabet. */
int vocab_from_alphabet(const char *text, size_t bytes, struct byte_buffer *out, bool *ret_all);
/* -EEXIST: the id is taken; -E2BIG: id >= TOKENIZER_VOCAB_MAX, the entry is longer than TOKEN_BYTES_MAX, or
 * all are longer than TOKENIZER_BYTES_MAX; -ENOMEM. */
int vocab_add(struct vocab *v, uint32_t id, const char *data, size_t bytes, uint8_t flags);
/* Makes a present entry findable by its bytes. -EEXIST: another one has the same. */
int vocab_index(struct vocab *v, uint32_t id);
bool vocab_find(const struct vocab *v, const char *data, size_t bytes, uint32_t *ret_id);

static inline bool vocab_has(const struct vocab *v, uint32_t id) {
    return id < v->n_pieces && (v->pieces[id].flags & PIECE_PRESENT);
}

static inline const char *vocab_bytes(const struct vocab *v, uint32_t id) {
    return v->bytes.data + v->pieces[id].at;
}
