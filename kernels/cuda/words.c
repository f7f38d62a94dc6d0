/* words.c - see words.h. */
#include "kernels/cuda/words.h"

#include "kernels/cuda/internal.h"

#include <string.h>

void words_send(struct k_stream *s, struct words *w) {
    if (!w->used)
        return;
    for (uint32_t i = w->parts; i < WORDS_PARTS; i++)
        w->args.end[i] = w->used;
    CUDA_QUEUED(s, queue_words(s->stream, &w->args));
    w->parts = w->used = 0;
}
void words_put(struct k_stream *s, struct words *w, void *d_to, const void *from, uint64_t n_words) {
    uint32_t *d_at = d_to;
    const uint32_t *next = from;
    while (n_words) {
        const uint32_t room = WORDS_MAX - w->used, n = n_words < room ? (uint32_t)n_words : room;
        if (n == 0 || w->parts == WORDS_PARTS) {
            words_send(s, w);
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
}
