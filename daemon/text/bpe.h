/* bpe.h - byte pair encoding of one word: the pair of lowest rank is merged first, the leftmost of equals.
 *
 * Used by tokenizer.c and tokenizer_load.c. The pair table is immutable after loading; a bpe_scratch belongs
 * to one call. Short words are merged by looking at all pairs each time; long ones with a heap, in O(n log n)
 * and at most 20 bytes of memory for each byte of the word. */
#pragma once

#include "daemon/text/buffer.h"
#include "daemon/text/vocab.h"

struct merge {
    uint64_t pair; /* left id << 32 | right id; BPE_NO_PAIR = free slot */
    uint32_t rank, id;
};

struct bpe {
    const struct vocab *vocab;
    uint32_t byte_ids[256];
    struct merge *merges; /* (n_slots) */
    uint32_t n_slots, n_used;
};

struct bpe_scratch {
    uint32_t *symbols;
    uint64_t *heap; /* rank << 32 | position */
    size_t symbols_size, heap_size, n_heap;
};

void bpe_done(struct bpe *b);
/* -EEXIST: the pair has a rank already; -ENOMEM. */
int bpe_add_merge(struct bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
/* Appends the ids of a word of at least one byte. -E2BIG: longer than 1 GiB; -ENOMEM. */
int bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const char *word, size_t bytes,
        struct id_buffer *out);
void bpe_scratch_done(struct bpe_scratch *scratch);
