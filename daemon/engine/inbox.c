/* inbox.c - how other threads reach the engine thread: a list of streams that have events.
 *
 * A stream is in the list at most once, however many events it has, so the list is as bounded as the streams
 * are and a cancel can never be refused for lack of room. Push is lock-free; only the engine thread takes. */
#include "daemon/engine/inbox.h"

void inbox_post(struct engine *g, struct engine_stream *s, uint32_t event) {
    if (atomic_fetch_or(&s->events, event) != 0)
        return; /* in the list already: who takes it sees this event as well */
    stream_ref(s);
    struct engine_stream *first = atomic_load_explicit(&g->inbox, memory_order_relaxed);
    do
        s->inbox_next = first;
    while (!atomic_compare_exchange_weak_explicit(
            &g->inbox, &first, s, memory_order_release, memory_order_relaxed));
}

struct engine_stream *inbox_take_all(struct engine *g) {
    if (atomic_load_explicit(&g->inbox, memory_order_relaxed) == NULL)
        return NULL;
    struct engine_stream *s = atomic_exchange_explicit(&g->inbox, NULL, memory_order_acquire), *oldest = NULL;
    while (s != NULL) {
        struct engine_stream *next = s->inbox_next;
        s->inbox_next = oldest;
        oldest = s;
        s = next;
    }
    return oldest;
}
