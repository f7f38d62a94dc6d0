/* mask.h - a bit for each id of a vocabulary: whether it may be sampled. Bit id % 32 of word id / 32; bits beyond the
 * vocabulary mean nothing. C17, C++17 and CUDA at once. */
#pragma once

#include "base/portable.h"

#include <stdbool.h>
#include <stdint.h>

PORTABLE_INLINE uint32_t mask_words(uint32_t vocab) {
    return vocab / 32 + (vocab % 32 != 0);
}
PORTABLE_INLINE bool mask_has(const uint32_t *mask, uint32_t id) {
    return mask[id / 32] >> id % 32 & 1;
}
PORTABLE_INLINE void mask_add(uint32_t *mask, uint32_t id) {
    mask[id / 32] |= 1u << id % 32;
}
PORTABLE_INLINE void mask_remove(uint32_t *mask, uint32_t id) {
    mask[id / 32] &= ~(1u << id % 32);
}
