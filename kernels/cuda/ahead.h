/* ahead.h - weights that come to L2 before the product that reads them begins: what a product is told to ask for.
 *
 * At the end of a product memory has little to do: blocks do not end together, and the next product needs its rows
 * first. So each block, when it has multiplied, asks for a share of what the next one begins with (ahead.cuh).
 * product.c decides how much. Nothing but time depends on whether it comes. */
#pragma once

#include <stdint.h>

/* `ranges` ranges of `bytes`, a multiple of 16, `pitch` apart: as many strips of every leaf, and of gate and up. */
struct ahead_ranges {
    const uint8_t *d_from;
    uint64_t pitch;
    uint32_t ranges, bytes; /* ranges 0 = nothing */
};
struct ahead {
    struct ahead_ranges codes, scales;
};
