/* counts.h - a slot's token counts: 16 bits per id of the vocabulary, and the penalties made of them.
 *
 * The high bit says that the id occurred in the prompt, the others how often it was generated. */
#pragma once

#include "kernels/shared/portable.h"

#include <float.h>
#include <stdbool.h>

#define COUNT_PROMPT 0x8000u
#define COUNT_OUTPUT 0x7fffu /* saturating */

/* The count of an id after it occurred once more. */
K_INLINE uint16_t count_once_more(uint16_t count, bool generated) {
    if (!generated)
        return (uint16_t)(count | COUNT_PROMPT);
    return (count & COUNT_OUTPUT) == COUNT_OUTPUT ? count : (uint16_t)(count + 1);
}

/* Whether a snapshot has seen the id. pending: it is the one that was sampled, and so counted, but is not yet at one of
 * the positions that the snapshot covers. */
K_INLINE bool count_seen(uint16_t count, bool pending) {
    return count > (pending ? 1 : 0);
}

/* A changed logit in the range of fp32: what overflows stays comparable, and above what is suppressed. */
K_INLINE float logit_bounded(float x) {
    x = x > FLT_MAX ? FLT_MAX : x;
    return x < -FLT_MAX ? -FLT_MAX : x;
}

/* A logit with the penalties of its count, which is not 0. */
K_INLINE float count_penalise(float x, uint16_t count, float repetition, float presence, float frequency) {
    const uint32_t times = count & COUNT_OUTPUT;
    x = logit_bounded(x > 0 ? x / repetition : x * repetition);
    return times ? logit_bounded(x - frequency * (float)times - presence) : x;
}
