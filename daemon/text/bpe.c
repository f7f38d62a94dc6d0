/* The pair table is open addressing on (left id, right id). Both ways of merging give the same ids;
 * tests/unit/text compares long and short words with Hugging Face. */
#include "daemon/text/bpe.h"

#define BPE_NO_PAIR    UINT64_MAX
#define RANK_NONE      UINT32_MAX
#define SHORT_WORD     40u /* below, n^2 looks at an array cost less than a heap */
#define WORD_BYTES_MAX (UINT32_MAX / 4)
#define SYMBOL_NONE    UINT32_MAX
#define SYMBOL_END     0x80000000u /* ids are below TOKENIZER_VOCAB_MAX */

/* --- the pair table --- */

void bpe_done(struct bpe *b) {
    free(b->merges);
    *b = (struct bpe){0};
}

static struct merge *slot_of(const struct bpe *b, uint64_t pair) {
    uint32_t mask = b->n_slots - 1;
    uint64_t h = pair * 0x9e3779b97f4a7c15ull;
    for (uint32_t i = (uint32_t)(h >> 32) & mask;; i = (i + 1) & mask)
        if (b->merges[i].pair == pair || b->merges[i].pair == BPE_NO_PAIR)
            return &b->merges[i];
}

static int grow(struct bpe *b) {
    struct bpe grown = *b;
    grown.n_slots = b->n_slots ? b->n_slots * 2 : 1024;
    grown.merges = reallocarray(NULL, grown.n_slots, sizeof(*grown.merges));
    if (!grown.merges)
        return -ENOMEM;
    for (uint32_t i = 0; i < grown.n_slots; i++)
        grown.merges[i].pair = BPE_NO_PAIR;
    for (uint32_t i = 0; i < b->n_slots; i++)
        if (b->merges[i].pair != BPE_NO_PAIR)
            *slot_of(&grown, b->merges[i].pair) = b->merges[i];
    free(b->merges);
    *b = grown;
    return 0;
}

int bpe_add_merge(struct bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
    if (b->n_used >= b->n_slots / 2) {
        int r = grow(b);
        if (r < 0)
            return r;
    }
    uint64_t pair = (uint64_t)left << 32 | right;
    struct merge *slot = slot_of(b, pair);
    if (slot->pair == pair)
        return -EEXIST;
    *slot = (struct merge){pair, rank, id};
    b->n_used++;
    return 0;
}

/* The rank of a pair, and what it becomes. */
static inline uint32_t rank_of(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *ret_id) {
    if (b->n_slots == 0)
        return RANK_NONE;
    const struct merge *slot = slot_of(b, (uint64_t)left << 32 | right);
    if (slot->pair == BPE_NO_PAIR)
        return RANK_NONE;
    *ret_id = slot->id;
    return slot->rank;
}

/* --- short words --- */

static int encode_short(const struct bpe *b, const char *word, size_t n, struct id_buffer *out) {
    uint32_t ids[SHORT_WORD], ranks[SHORT_WORD], merged[SHORT_WORD]; /* of the pair (i, i + 1) */
    for (size_t i = 0; i < n; i++)
        ids[i] = b->byte_ids[(unsigned char)word[i]];
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = rank_of(b, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == RANK_NONE)
            break;
        ids[best] = merged[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(*ids));
        memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof(*ranks));
        memmove(merged + best, merged + best + 1, (n - best - 1) * sizeof(*merged));
        if (best > 0)
            ranks[best - 1] = rank_of(b, ids[best - 1], ids[best], &merged[best - 1]);
        if (best + 1 < n)
            ranks[best] = rank_of(b, ids[best], ids[best + 1], &merged[best]);
    }
    for (size_t i = 0; i < n; i++) {
        int r = id_buffer_add(out, ids[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- long words ---
 * symbols[] has one place for each byte. A symbol that covers bytes p..q has its id at p and, with
 * SYMBOL_END, at q (a symbol of one byte only the first); what lies between is SYMBOL_NONE. So both
 * neighbours are found from the lengths of the ids, without links. Entries of the heap are not taken out when
 * their pair goes: they are seen to be stale when they come up. */

static int heap_push(struct bpe_scratch *s, uint64_t entry) {
    if (s->n_heap == s->heap_size) {
        size_t size = s->heap_size ? s->heap_size + s->heap_size / 2 : 256;
        uint64_t *heap = reallocarray(s->heap, size, sizeof(*heap));
        if (!heap)
            return -ENOMEM;
        s->heap = heap;
        s->heap_size = size;
    }
    size_t i = s->n_heap++;
    while (i > 0 && s->heap[(i - 1) / 2] > entry) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = entry;
    return 0;
}

static uint64_t heap_pop(struct bpe_scratch *s) {
    uint64_t first = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < s->n_heap) {
        if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= last)
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return first;
}

static size_t length_of(const struct bpe *b, uint32_t id) {
    return b->vocab->pieces[id].bytes;
}

static int push_pair(const struct bpe *b, struct bpe_scratch *s, size_t left, size_t right) {
    uint32_t id, rank = rank_of(b, s->symbols[left], s->symbols[right], &id);
    return rank == RANK_NONE ? 0 : heap_push(s, (uint64_t)rank << 32 | left);
}

/* Merges the pair that an entry of the heap names, if it is still there. */
static int merge_entry(const struct bpe *b, struct bpe_scratch *s, uint64_t entry, size_t n) {
    size_t left = (uint32_t)entry;
    uint32_t *symbols = s->symbols, id = 0;
    if (symbols[left] == SYMBOL_NONE || (symbols[left] & SYMBOL_END))
        return 0;
    size_t right = left + length_of(b, symbols[left]);
    if (right >= n || rank_of(b, symbols[left], symbols[right], &id) != entry >> 32)
        return 0;
    size_t end = right + length_of(b, symbols[right]);
    symbols[right - 1] = SYMBOL_NONE;
    symbols[right] = SYMBOL_NONE;
    symbols[left] = id;
    symbols[end - 1] = id | SYMBOL_END;
    int r = 0;
    if (left > 0)
        r = push_pair(b, s, left - length_of(b, symbols[left - 1] & ~SYMBOL_END), left);
    if (r >= 0 && end < n)
        r = push_pair(b, s, left, end);
    return r;
}

static int encode_long(
        const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n, struct id_buffer *out) {
    if (n > WORD_BYTES_MAX)
        return -E2BIG;
    if (n > s->symbols_size) {
        uint32_t *symbols = reallocarray(s->symbols, n, sizeof(*symbols));
        if (!symbols)
            return -ENOMEM;
        s->symbols = symbols;
        s->symbols_size = n;
    }
    for (size_t i = 0; i < n; i++)
        s->symbols[i] = b->byte_ids[(unsigned char)word[i]];
    int r = 0;
    s->n_heap = 0;
    for (size_t i = 0; i + 1 < n && r >= 0; i++)
        r = push_pair(b, s, i, i + 1);
    while (r >= 0 && s->n_heap > 0)
        r = merge_entry(b, s, heap_pop(s), n);
    for (size_t i = 0; i < n && r >= 0; i += length_of(b, s->symbols[i]))
        r = id_buffer_add(out, s->symbols[i]);
    return r;
}

int bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const char *word, size_t bytes,
        struct id_buffer *out) {
    uint32_t id;
    if (vocab_find(b->vocab, word, bytes, &id) && (b->vocab->pieces[id].flags & PIECE_WORD))
        return id_buffer_add(out, id);
    if (bytes > SHORT_WORD)
        return encode_long(b, scratch, word, bytes, out);
    return encode_short(b, word, bytes, out);
}

void bpe_scratch_done(struct bpe_scratch *scratch) {
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct bpe_scratch){0};
}
