/* Long words. symbols[] has one place for each byte. A symbol that covers bytes p..q has its id at p and,
 * with SYMBOL_END, at q (a symbol of one byte only the first); what lies between is SYMBOL_NONE. So both
 * neighbours are found from the lengths of the ids, without links. Pairs that wait for their turn are not
 * taken out when one of their halves goes: they are seen to be stale when they come up.
 *
 * Where they wait: in a heap; or, for very long words, in one queue for each rank. The queues are worked off
 * from rank 0 up in one go, which is right only if a merge makes no pair of lower rank (bpe.rising). It is
 * several times as fast: a word of millions of bytes does not fit the caches, and the heap jumps about in it. */
#include "daemon/text/bpe.h"

#define WORD_BYTES_MAX (UINT32_MAX / 4)
#define QUEUES_FROM    (32u << 10) /* bytes; below, looking at every rank's queue costs more than the heap */
#define SYMBOL_NONE    UINT32_MAX
#define SYMBOL_END     0x80000000u /* ids are below TOKENIZER_VOCAB_MAX */

/* --- waiting in a heap --- */

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

/* --- waiting in queues --- */

static int queue_push(struct bpe_scratch *s, uint32_t rank, uint32_t at) {
    uint32_t entry = s->unused;
    if (entry)
        s->unused = s->waiting[entry - 1].next;
    else {
        if (s->n_waiting == s->waiting_size) {
            size_t size = s->waiting_size ? s->waiting_size + s->waiting_size / 2 : QUEUES_FROM;
            struct bpe_waiting *waiting = reallocarray(s->waiting, size, sizeof(*waiting));
            if (!waiting)
                return -ENOMEM;
            s->waiting = waiting;
            s->waiting_size = size;
        }
        entry = (uint32_t)++s->n_waiting;
    }
    s->waiting[entry - 1] = (struct bpe_waiting){at, 0};
    if (s->first[rank])
        s->waiting[s->last[rank] - 1].next = entry;
    else
        s->first[rank] = entry;
    s->last[rank] = entry;
    return 0;
}

/* Moves a rank's queue to turn[]. */
static int queue_take(struct bpe_scratch *s, uint32_t rank, size_t *ret_n) {
    size_t n = 0;
    for (uint32_t entry = s->first[rank]; entry; entry = s->waiting[entry - 1].next) {
        if (n == s->turn_size) {
            size_t size = s->turn_size ? s->turn_size * 2 : 1024;
            uint32_t *turn = reallocarray(s->turn, size, sizeof(*turn));
            if (!turn)
                return -ENOMEM;
            s->turn = turn;
            s->turn_size = size;
        }
        s->turn[n++] = s->waiting[entry - 1].at;
    }
    s->waiting[s->last[rank] - 1].next = s->unused;
    s->unused = s->first[rank];
    s->first[rank] = 0;
    *ret_n = n;
    return 0;
}

/* --- merging --- */

static size_t length_of(const struct bpe *b, uint32_t id) {
    return b->vocab->pieces[id].bytes;
}

static int push_pair(const struct bpe *b, struct bpe_scratch *s, bool queues, size_t left, size_t right) {
    uint32_t id, rank = bpe_rank(b, s->symbols[left], s->symbols[right], &id);
    if (rank == BPE_RANK_NONE)
        return 0;
    return queues ? queue_push(s, rank, (uint32_t)left) : heap_push(s, (uint64_t)rank << 32 | left);
}

/* Is a pair of this rank still at left? */
static bool is_there(const struct bpe *b, const uint32_t *symbols, uint32_t rank, size_t left, size_t n,
        size_t *ret_right, uint32_t *ret_id) {
    if (symbols[left] == SYMBOL_NONE || (symbols[left] & SYMBOL_END))
        return false;
    *ret_right = left + length_of(b, symbols[left]);
    return *ret_right < n && bpe_rank(b, symbols[left], symbols[*ret_right], ret_id) == rank;
}

static int merge_at(
        const struct bpe *b, struct bpe_scratch *s, bool queues, uint32_t rank, size_t left, size_t n) {
    uint32_t *symbols = s->symbols, id = 0;
    size_t right = 0;
    if (!is_there(b, symbols, rank, left, n, &right, &id))
        return 0;
    size_t end = right + length_of(b, symbols[right]);
    symbols[right - 1] = SYMBOL_NONE;
    symbols[right] = SYMBOL_NONE;
    symbols[left] = id;
    symbols[end - 1] = id | SYMBOL_END;
    int r = 0;
    if (left > 0)
        r = push_pair(b, s, queues, left - length_of(b, symbols[left - 1] & ~SYMBOL_END), left);
    if (r >= 0 && end < n)
        r = push_pair(b, s, queues, left, end);
    return r;
}

static int merge_by_heap(const struct bpe *b, struct bpe_scratch *s, size_t n) {
    int r = 0;
    s->n_heap = 0;
    for (size_t i = 0; i + 1 < n && r >= 0; i++)
        r = push_pair(b, s, /* queues= */ false, i, i + 1);
    while (r >= 0 && s->n_heap > 0) {
        uint64_t entry = heap_pop(s);
        r = merge_at(b, s, /* queues= */ false, (uint32_t)(entry >> 32), (uint32_t)entry, n);
    }
    return r;
}

static int compare(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* Pairs of one rank can only overlap if both halves are the same; then the leftmost has to be first. */
static void order_turn(const struct bpe *b, struct bpe_scratch *s, uint32_t rank, size_t n_turn, size_t n) {
    uint32_t id;
    size_t i = 0, right = 0;
    while (i < n_turn && !is_there(b, s->symbols, rank, s->turn[i], n, &right, &id))
        i++;
    if (i == n_turn || s->symbols[s->turn[i]] != s->symbols[right])
        return;
    for (i = 1; i < n_turn && s->turn[i - 1] <= s->turn[i];)
        i++;
    if (i < n_turn)
        qsort(s->turn, n_turn, sizeof(*s->turn), compare);
}

static int merge_by_queues(const struct bpe *b, struct bpe_scratch *s, size_t n) {
    int r = 0;
    if (!s->first) {
        s->first = calloc((size_t)b->n_used + 1, sizeof(*s->first));
        s->last = calloc((size_t)b->n_used + 1, sizeof(*s->last));
        if (!s->first || !s->last)
            return -ENOMEM;
    }
    for (size_t i = 0; i + 1 < n && r >= 0; i++)
        r = push_pair(b, s, /* queues= */ true, i, i + 1);
    for (uint32_t rank = 0; rank < b->n_used && r >= 0; rank++) {
        size_t n_turn;
        if (!s->first[rank])
            continue;
        r = queue_take(s, rank, &n_turn);
        if (r < 0)
            return r;
        order_turn(b, s, rank, n_turn, n);
        for (size_t i = 0; i < n_turn && r >= 0; i++)
            r = merge_at(b, s, /* queues= */ true, rank, s->turn[i], n);
    }
    return r;
}

int bpe_encode_long(
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
    int r = b->rising && n >= QUEUES_FROM ? merge_by_queues(b, s, n) : merge_by_heap(b, s, n);
    for (size_t i = 0; i < n && r >= 0; i += length_of(b, s->symbols[i]))
        r = id_buffer_add(out, s->symbols[i]);
    return r;
}

void bpe_scratch_done(struct bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    free(s->first);
    free(s->last);
    free(s->waiting);
    free(s->turn);
    *s = (struct bpe_scratch){0};
}
