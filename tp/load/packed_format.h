/* packed_format.h - the bytes of a packed file. Between packed.c and packed_write.c; nobody else includes it.
 *
 *   header                struct packed_header
 *   table                 struct packed_entry [n_entries], sorted by name
 *   names                 one after another, each with its NUL
 *   (to data_at, a multiple of 2 MiB)
 *   tiles                 of each matrix, as the layout says (kernels/layout), each matrix at a multiple of 4096 bytes,
 *                         in the order in which a step uses them
 *
 * Numbers are little-endian. A checksum is packed_sum(): 8 lanes of 64 bits, one per 8 bytes of a 64-byte block. Each
 * step of a lane is a bijection, so that a change within one 8-byte word of a part is always seen; others are missed
 * once in 2^64. It is no defence against who wants to deceive. */
#pragma once

#include <stdint.h>
#include <string.h>

#define PACKED_MAGIC   "SHARDDPK"
#define PACKED_VERSION 2u
#define PACKED_ALIGN   4096u      /* of a matrix */
#define PACKED_DATA    (2u << 20) /* of the first */

struct packed_header {
    char magic[8];
    uint32_t version, header_bytes;
    char layout[32]; /* its name, rest NUL */
    uint64_t fingerprint;
    uint64_t file_bytes, data_at, names_bytes;
    uint32_t n_entries, entry_bytes;
    uint64_t table_sum;  /* of table and names */
    uint64_t header_sum; /* of all before it */
};

struct packed_entry {
    uint64_t at, bytes; /* of the tiles, from the file's start */
    uint64_t sum;       /* of the tiles */
    uint64_t name_at;   /* from the names' start */
    uint32_t rows, columns, group;
    uint8_t dtype, quantised, format, scale, zeros, minimums, reserved[6];
};

_Static_assert(sizeof(struct packed_header) == 104, "no holes");
_Static_assert(sizeof(struct packed_entry) == 56, "no holes");

struct packed_sum {
    uint64_t lanes[8], bytes;
};

static inline void packed_sum_begin(struct packed_sum *s) {
    for (uint64_t i = 0; i < 8; i++)
        s->lanes[i] = (i + 1) * 0x9e3779b97f4a7c15ull;
    s->bytes = 0;
}
/* Any number of bytes at the end; before that, multiples of 64. */
static inline void packed_sum_add(struct packed_sum *s, const void *data, uint64_t bytes) {
    const uint8_t *p = data;
    uint64_t lanes[8];
    memcpy(lanes, s->lanes, sizeof(lanes));
    s->bytes += bytes;
    for (; bytes > 0; p += 64, bytes = bytes > 64 ? bytes - 64 : 0) {
        uint64_t words[8] = {0};
        memcpy(words, p, bytes < 64 ? bytes : 64);
        for (int i = 0; i < 8; i++) {
            uint64_t x = (lanes[i] ^ words[i]) * 0xff51afd7ed558ccdull;
            lanes[i] = x << 29 | x >> 35;
        }
    }
    memcpy(s->lanes, lanes, sizeof(lanes));
}
static inline uint64_t packed_sum_end(const struct packed_sum *s) {
    uint64_t h = s->bytes;
    for (int i = 0; i < 8; i++) {
        h = (h ^ s->lanes[i]) * 0xc4ceb9fe1a85ec53ull;
        h ^= h >> 33;
    }
    return h;
}
static inline uint64_t packed_sum_of(const void *data, uint64_t bytes) {
    struct packed_sum s;
    packed_sum_begin(&s);
    packed_sum_add(&s, data, bytes);
    return packed_sum_end(&s);
}
