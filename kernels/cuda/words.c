/* words.c - see words.h. */
#include "kernels/cuda/words.h"

#include "kernels/cuda/internal.h"

#include <string.h>

/* Not by CUDA_QUEUED(), which comes here first. What was made is known by then: words_put() has seen to it. */
void words_send(struct k_stream *s) {
    const struct made made = s->made;
    struct words *w = &s->words;
    if (!w->used || !stream_enter(s))
        return;
    for (uint32_t i = w->parts; i < WORDS_PARTS; i++)
        w->args.end[i] = w->used;
    if (stream_queued(s, queue_words(s->stream, &w->args), "words", __FILE__, __LINE__))
        s->made = made;
    w->parts = w->used = 0;
}
/* Threads of one launch have no order among them. */
static bool overlap(const struct words *w, const uint32_t *d_to, uint64_t n) {
    for (uint32_t i = 0, begin = 0; i < w->parts; begin = w->args.end[i++])
        if (d_to < w->args.d_to[i] + (w->args.end[i] - begin) && w->args.d_to[i] < d_to + n)
            return true;
    return false;
}
void words_put(struct k_stream *s, void *d_to, const void *from, uint64_t n_words) {
    struct words *w = &s->words;
    uint32_t *d_at = d_to;
    const uint32_t *next = from;
    s->made = (struct made){.d_from = NULL}; /* as if it were queued already */
    if (overlap(w, d_to, n_words))
        words_send(s);
    while (n_words) {
        const uint32_t room = WORDS_MAX - w->used, n = n_words < room ? (uint32_t)n_words : room;
        if (n == 0 || w->parts == WORDS_PARTS) {
            words_send(s);
            continue;
        }
        memcpy(w->args.words + w->used, next, n * sizeof *next);
        w->used += n;
        w->args.d_to[w->parts] = d_at;
        w->args.end[w->parts++] = w->used;
        d_at += n;
        next += n;
        n_words -= n;
    }
    if (s->capturing)
        words_send(s);
}
