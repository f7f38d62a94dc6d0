/* heap.h - a binary heap of sequences that knows where each one is, so that any can be taken out. Fixed
 * capacity; the sequences are not the heap's. Engine thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define HEAP_NONE UINT32_MAX /* the place of a sequence that is not in it */

struct sequence;
struct heap {
    struct sequence **items; /* [capacity] */
    uint32_t n, capacity;
    bool by_deadline; /* else suspects first, those set back or held last, then priority (higher first), then arrival */
};

int heap_init(struct heap *h, uint32_t capacity, bool by_deadline);
void heap_done(struct heap *h);
void heap_push(struct heap *h, struct sequence *s);
void heap_remove(struct heap *h, struct sequence *s); /* nothing when it is not in it */
/* Whether a is to be served before b; also the order of g->running. */
bool sequence_before(const struct sequence *a, const struct sequence *b);
