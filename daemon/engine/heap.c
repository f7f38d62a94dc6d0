/* heap.c - waiting sequences by order of service, and sequences by deadline. Fixed capacity, no allocation
 * later. */
#include "daemon/engine/heap.h"

#include "daemon/engine/state.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int heap_init(struct heap *h, uint32_t capacity, bool by_deadline) {
    h->items = calloc(capacity, sizeof(*h->items));
    h->capacity = capacity;
    h->n = 0;
    h->by_deadline = by_deadline;
    return h->items == NULL ? -ENOMEM : 0;
}

void heap_done(struct heap *h) {
    free(h->items);
    *h = (struct heap){0};
}

bool sequence_before(const struct sequence *a, const struct sequence *b) {
    if (a->priority != b->priority)
        return a->priority > b->priority;
    return a->arrival < b->arrival;
}

static bool before(const struct heap *h, const struct sequence *a, const struct sequence *b) {
    if (h->by_deadline)
        return a->due_ns < b->due_ns;
    if (a->suspect != b->suspect)
        return a->suspect;
    bool a_last = a->set_back || a->held, b_last = b->set_back || b->held;
    return a_last != b_last ? b_last : sequence_before(a, b);
}

static void put(struct heap *h, uint32_t at, struct sequence *s) {
    h->items[at] = s;
    if (h->by_deadline)
        s->deadline_at = at;
    else
        s->waiting_at = at;
}

static void sift_up(struct heap *h, uint32_t at, struct sequence *s) {
    while (at > 0 && before(h, s, h->items[(at - 1) / 2])) {
        put(h, at, h->items[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put(h, at, s);
}

static void sift_down(struct heap *h, uint32_t at, struct sequence *s) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && before(h, h->items[child + 1], h->items[child]))
            child++;
        if (!before(h, h->items[child], s))
            break;
        put(h, at, h->items[child]);
        at = child;
    }
    put(h, at, s);
}

void heap_push(struct heap *h, struct sequence *s) {
    assert(h->n < h->capacity);
    assert((h->by_deadline ? s->deadline_at : s->waiting_at) == HEAP_NONE);
    sift_up(h, h->n++, s);
}

void heap_remove(struct heap *h, struct sequence *s) {
    uint32_t at = h->by_deadline ? s->deadline_at : s->waiting_at;
    if (at == HEAP_NONE)
        return;
    assert(at < h->n && h->items[at] == s);
    struct sequence *last = h->items[--h->n];
    if (last != s) {
        if (at > 0 && before(h, last, h->items[(at - 1) / 2]))
            sift_up(h, at, last);
        else
            sift_down(h, at, last);
    }
    if (h->by_deadline)
        s->deadline_at = HEAP_NONE;
    else
        s->waiting_at = HEAP_NONE;
}
