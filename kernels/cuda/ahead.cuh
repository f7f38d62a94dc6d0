/* ahead.cuh - asking for what the next product reads first (ahead.h), by blocks of a product that are nearly done.
 *
 * A warp takes ranges, a block pieces of AHEAD_PIECE bytes of each. Nobody waits for them, but the kernel ends only
 * when they have come: so they are few. Bytes moved: those that the next product finds in L2. */
#pragma once

#include "kernels/cuda/ahead.h"
#include "kernels/cuda/ptx.cuh"

#define AHEAD_PIECE 4096u

static __device__ __forceinline__ void ahead_ranges_ask(
        const struct ahead_ranges &r, uint32_t warps, uint32_t block, uint32_t blocks) {
    for (uint32_t n = threadIdx.x / 32; n < r.ranges; n += warps)
        for (uint32_t at = block * AHEAD_PIECE; at < r.bytes; at += blocks * AHEAD_PIECE)
            ask_for_bytes(
                    r.d_from + n * r.pitch + at, r.bytes - at < AHEAD_PIECE ? r.bytes - at : AHEAD_PIECE);
}
/* By all of block `block` of `blocks`. */
static __device__ __forceinline__ void ahead_ask(
        const struct ahead &a, uint32_t warps, uint32_t block, uint32_t blocks) {
    ahead_ranges_ask(a.codes, warps, block, blocks);
    ahead_ranges_ask(a.scales, warps, block, blocks);
}
