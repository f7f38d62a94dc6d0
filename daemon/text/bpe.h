/* bpe.h - byte pair encoding of one word: the pair of lowest rank is merged first, the leftmost of equals.
 *
 * Used by tokenizer.c and tokenizer_load.c. The pair table is immutable after bpe_finish(); a bpe_scratch
 * belongs to one call. Short words are merged by looking at all pairs each time (bpe.c), long ones with a
 * heap, in O(n log n), and very long ones rank by rank, in O(n) (bpe_long.c); some 25 bytes of memory at most
 * for each byte of the word. */
#pragma once

#include "base/buffer.h"
#include "daemon/text/vocab.h"

#define BPE_RANK_NONE UINT32_MAX

struct merge {
    uint64_t pair; /* left id << 32 | right id; BPE_NO_PAIR = free slot */
    uint32_t rank, id;
};

struct bpe {
    const struct vocab *vocab;
    uint32_t byte_ids[256];
    struct merge *merges;     /* (n_slots) */
    uint32_t n_slots, n_used; /* ranks are 0 to n_used - 1 */
    bool rising; /* a merge only makes pairs of higher rank: true for every table that was trained */
};

/* A pair that waits for its rank's turn. */
struct bpe_waiting {
    uint32_t at, next; /* next: index + 1, 0 = none */
};

struct bpe_scratch {
    uint32_t *symbols; /* (symbols_size) */
    uint64_t *heap;    /* (n_heap) rank << 32 | position */
    size_t symbols_size, heap_size, n_heap;
    uint32_t *first, *last;      /* (n_ranks) ends of each rank's queue, as in next; NULL until needed */
    struct bpe_waiting *waiting; /* (n_waiting) */
    uint32_t *turn;              /* (turn_size) the positions of the rank whose turn it is */
    size_t waiting_size, n_waiting, turn_size;
    uint32_t unused; /* list of entries to use again */
};

void bpe_done(struct bpe *b);
/* Ranks are given in order, from 0. -EEXIST: the pair has a rank already; -ENOMEM. */
int bpe_add_merge(struct bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
/* To be called once all merges are there. -ENOMEM. */
int bpe_finish(struct bpe *b);
/* The rank of a pair and what it becomes, or BPE_RANK_NONE. */
uint32_t bpe_rank(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *ret_id);
/* Appends the ids of a word of at least one byte. -E2BIG: longer than 1 GiB; -ENOMEM. */
int bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const char *word, size_t bytes,
        struct id_buffer *out);
/* The same, for any word, by the ways for long ones. */
int bpe_encode_long(const struct bpe *b, struct bpe_scratch *scratch, const char *word, size_t bytes,
        struct id_buffer *out);
void bpe_scratch_done(struct bpe_scratch *scratch);
