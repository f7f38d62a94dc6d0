/* body_walk.h - in what order the weights of some strips are read, and how far ahead they are fetched. */
#pragma once

#include "kernels/cpu/internal.h"

/* Weights that are used one strip after another are one stream through the memory of a leaf. Fetching about this
 * far ahead of their use measures best; nearer loses more than farther. */
#define AHEAD_BYTES 8192u

/* Where the walk over n neighbouring strips from `first` on goes after leaf l: to their next leaf, or to the strips
 * after them. */
static inline const uint8_t *run_after(const struct k_linear *w, uint32_t first, uint32_t n, uint32_t l) {
    const struct strip *strip = &w->strips[first];
    if (l + 1 < w->leaves)
        return strip->data + (l + 1) * strip->leaf_stride;
    return first + n < w->n_strips ? strip[n].data : strip->data;
}

/* What to fetch while block s of n neighbouring strips from `first` on is used in leaf l, together with the
 * blocks up to s + together: further on in this leaf, then in the next one, then in the strips that come after
 * these. */
static inline const uint8_t *block_ahead(const struct k_linear *w, uint32_t first, uint32_t n, uint32_t s,
        uint32_t l, uint32_t together, uint32_t block_bytes) {
    const struct strip *strip = &w->strips[first];
    if (together == 1 && block_bytes >= AHEAD_BYTES)
        return strip->data + l * strip->leaf_stride + (uint64_t)s * block_bytes + AHEAD_BYTES;
    const uint32_t blocks = (AHEAD_BYTES + block_bytes - 1) / block_bytes;
    for (s += blocks > together ? blocks : together; s >= n && l + 1 < w->leaves; l++)
        s -= n;
    if (s >= n) {
        strip += first + s < w->n_strips ? s : 0;
        return strip->data;
    }
    return strip->data + l * strip->leaf_stride + (uint64_t)s * block_bytes;
}
