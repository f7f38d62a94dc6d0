/* The pair table is open addressing on (left id, right id). Both ways of merging give the same ids;
 * tests/unit/text compares long and short words with Hugging Face. */
#include "daemon/text/bpe.h"

#define BPE_NO_PAIR UINT64_MAX
#define SHORT_WORD  40u /* below, n^2 looks at an array cost less than a heap */

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

uint32_t bpe_rank(const struct bpe *b, uint32_t left, uint32_t right, uint32_t *ret_id) {
    if (b->n_slots == 0)
        return BPE_RANK_NONE;
    const struct merge *slot = slot_of(b, (uint64_t)left << 32 | right);
    if (slot->pair == BPE_NO_PAIR)
        return BPE_RANK_NONE;
    *ret_id = slot->id;
    return slot->rank;
}

/* Largest rank that makes an id, smallest that uses it. */
struct ranks {
    uint32_t made, used; /* used is stored as n - rank, so that zero is "never" for both */
};

int bpe_finish(struct bpe *b) {
    struct ranks *ranks = calloc((size_t)b->vocab->n_pieces + 1, sizeof(*ranks));
    if (!ranks)
        return -ENOMEM;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        const struct merge *m = &b->merges[i];
        if (m->pair == BPE_NO_PAIR)
            continue;
        const uint32_t halves[2] = {(uint32_t)(m->pair >> 32), (uint32_t)m->pair};
        for (unsigned half = 0; half < 2; half++)
            if (b->n_used - m->rank > ranks[halves[half]].used)
                ranks[halves[half]].used = b->n_used - m->rank;
        if (m->rank + 1 > ranks[m->id].made)
            ranks[m->id].made = m->rank + 1;
    }
    b->rising = true;
    for (uint32_t id = 0; id < b->vocab->n_pieces; id++)
        if (ranks[id].made > 0 && ranks[id].used > 0 && ranks[id].made - 1 >= b->n_used - ranks[id].used)
            b->rising = false;
    free(ranks);
    return 0;
}

/* --- short words --- */

static int encode_short(const struct bpe *b, const char *word, size_t n, struct id_buffer *out) {
    uint32_t ids[SHORT_WORD], ranks[SHORT_WORD], merged[SHORT_WORD]; /* of the pair (i, i + 1) */
    for (size_t i = 0; i < n; i++)
        ids[i] = b->byte_ids[(unsigned char)word[i]];
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = bpe_rank(b, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == BPE_RANK_NONE)
            break;
        ids[best] = merged[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(*ids));
        memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof(*ranks));
        memmove(merged + best, merged + best + 1, (n - best - 1) * sizeof(*merged));
        if (best > 0)
            ranks[best - 1] = bpe_rank(b, ids[best - 1], ids[best], &merged[best - 1]);
        if (best + 1 < n)
            ranks[best] = bpe_rank(b, ids[best], ids[best + 1], &merged[best]);
    }
    for (size_t i = 0; i < n; i++) {
        int r = id_buffer_add(out, ids[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

int bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const char *word, size_t bytes,
        struct id_buffer *out) {
    uint32_t id;
    if (vocab_find(b->vocab, word, bytes, &id) && (b->vocab->pieces[id].flags & PIECE_WORD))
        return id_buffer_add(out, id);
    if (bytes > SHORT_WORD)
        return bpe_encode_long(b, scratch, word, bytes, out);
    return encode_short(b, word, bytes, out);
}
