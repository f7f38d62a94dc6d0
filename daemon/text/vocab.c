/* All entries stand in one arena, found by id through an array and by bytes through open addressing. The
 * loader fills it, then nobody writes. */
#include "daemon/text/vocab.h"

#include "base/limits.h"
#include "daemon/text/unicode_class.h"

_Static_assert(TOKEN_BYTES_MAX <= UINT16_MAX, "a piece's length fits its field");
_Static_assert(TOKENIZER_BYTES_MAX <= UINT32_MAX, "a piece's place fits its field");

void vocab_done(struct vocab *v) {
    free(v->bytes.data);
    free(v->pieces);
    free(v->slots);
    *v = (struct vocab){0};
}

/* GPT-2's alphabet: a printable Latin-1 character stands for its own byte, the 68 other bytes are U+0100 and
 * on, in order. Returns the byte or -1. */
static int alphabet_byte(uint32_t c) {
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int)c;
    if (c < 0x100 || c >= 0x144)
        return -1;
    uint32_t nth = c - 0x100;
    if (nth < 0x21) /* 00..20 */
        return (int)nth;
    if (nth < 0x43) /* 7f..a0 */
        return (int)(nth - 0x21 + 0x7f);
    return 0xad;
}

int vocab_from_alphabet(const char *text, size_t bytes, struct byte_buffer *out, bool *ret_all) {
    size_t len, before = out->n;
    int r = byte_buffer_reserve(out, bytes);
    if (r < 0)
        return r;
    for (size_t at = 0; at < bytes; at += len) {
        int byte = alphabet_byte(unicode_decode(text + at, &len));
        if (byte < 0) {
            out->n = before;
            *ret_all = false;
            return 0;
        }
        out->data[out->n++] = (char)byte;
    }
    *ret_all = true;
    return 0;
}

int vocab_add(struct vocab *v, uint32_t id, const char *data, size_t bytes, uint8_t flags) {
    if (id >= TOKENIZER_VOCAB_MAX || bytes > TOKEN_BYTES_MAX || v->bytes.n + bytes > TOKENIZER_BYTES_MAX)
        return -E2BIG;
    if (vocab_has(v, id))
        return -EEXIST;
    if (id >= v->pieces_size) {
        uint32_t size = v->pieces_size ? v->pieces_size : 1024;
        while (size <= id)
            size *= 2;
        struct piece *pieces = reallocarray(v->pieces, size, sizeof(*pieces));
        if (!pieces)
            return -ENOMEM;
        memset(pieces + v->pieces_size, 0, (size - v->pieces_size) * sizeof(*pieces));
        v->pieces = pieces;
        v->pieces_size = size;
    }
    size_t at = v->bytes.n;
    int r = byte_buffer_reserve(&v->bytes, bytes + 1); /* an empty entry has an address too */
    if (r >= 0)
        r = byte_buffer_add(&v->bytes, data, bytes);
    if (r < 0)
        return r;
    v->pieces[id] = (struct piece){(uint32_t)at, (uint16_t)bytes, (uint8_t)(flags | PIECE_PRESENT)};
    if (id >= v->n_pieces)
        v->n_pieces = id + 1;
    return 0;
}

/* Words are short: eight bytes at a time, mixed by a multiplication. */
static uint32_t hash_of(const char *data, size_t bytes) {
    uint64_t h = bytes * 0x9e3779b97f4a7c15ull, word;
    while (bytes >= 8) {
        memcpy(&word, data, 8);
        h = (h ^ word) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
        data += 8;
        bytes -= 8;
    }
    word = 0;
    if (bytes)
        memcpy(&word, data, bytes);
    h = (h ^ word) * 0xff51afd7ed558ccdull;
    return (uint32_t)(h >> 32);
}

/* The slot of these bytes, or the free one where they belong. */
static uint32_t *slot_of(const struct vocab *v, const char *data, size_t bytes) {
    uint32_t mask = v->n_slots - 1;
    for (uint32_t i = hash_of(data, bytes) & mask;; i = (i + 1) & mask) {
        uint32_t *slot = &v->slots[i];
        if (*slot == 0)
            return slot;
        const struct piece *p = &v->pieces[*slot - 1];
        if (p->bytes == bytes && memcmp(v->bytes.data + p->at, data, bytes) == 0)
            return slot;
    }
}

static int grow_slots(struct vocab *v) {
    struct vocab grown = *v;
    grown.n_slots = v->n_slots ? v->n_slots * 2 : 1024;
    grown.slots = calloc(grown.n_slots, sizeof(*grown.slots));
    if (!grown.slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < v->n_slots; i++)
        if (v->slots[i])
            *slot_of(&grown, vocab_bytes(v, v->slots[i] - 1), v->pieces[v->slots[i] - 1].bytes) = v->slots[i];
    free(v->slots);
    *v = grown;
    return 0;
}

int vocab_index(struct vocab *v, uint32_t id) {
    if (v->n_used >= v->n_slots / 2) {
        int r = grow_slots(v);
        if (r < 0)
            return r;
    }
    uint32_t *slot = slot_of(v, vocab_bytes(v, id), v->pieces[id].bytes);
    if (*slot)
        return -EEXIST;
    *slot = id + 1;
    v->n_used++;
    return 0;
}

bool vocab_find(const struct vocab *v, const char *data, size_t bytes, uint32_t *ret_id) {
    if (v->n_slots == 0)
        return false;
    uint32_t slot = *slot_of(v, data, bytes);
    if (slot == 0)
        return false;
    *ret_id = slot - 1;
    return true;
}
