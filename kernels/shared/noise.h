/* noise.h - the randomness of sampling: no state, only hashes of what is sampled where.
 *
 * A sample's noise for a token is Gumbel(seed, sample index, position, token id), so every rank and every backend draws
 * the same, whatever it samples beside it. 64 bits become a key per sample; 32 bits per id become -ln(-ln(u)). */
#pragma once

#include "base/hash.h"
#include "kernels/shared/elementary.h"

struct gumbel_key {
    uint32_t a, b;
};
K_INLINE struct gumbel_key gumbel_key_of(uint64_t seed, uint32_t sample_index, uint32_t position) {
    const uint64_t bits = splitmix64(seed ^ splitmix64((uint64_t)sample_index << 32 | position));
    struct gumbel_key key;
    key.a = (uint32_t)(bits >> 32);
    key.b = (uint32_t)bits;
    return key;
}

/* h = id * M0 ^ a; h = (h ^ h >> S1) * M1; h = (h ^ h >> S2) + b; h = (h ^ h >> S3) * M3; ... */
#define GUMBEL_M0    0x9e3779b1u
#define GUMBEL_M1    0x85ebca6bu
#define GUMBEL_M3    0xc2b2ae35u
#define GUMBEL_M4    0x27d4eb2fu
#define GUMBEL_S1    16
#define GUMBEL_S2    13
#define GUMBEL_S3    16
#define GUMBEL_S4    15
#define GUMBEL_S5    15
#define GUMBEL_V_MAX (1.0f - 0x1p-24f)

K_INLINE uint32_t gumbel_hash(uint32_t id, struct gumbel_key key) {
    uint32_t h = (id * GUMBEL_M0) ^ key.a;
    h = (h ^ (h >> GUMBEL_S1)) * GUMBEL_M1;
    h = (h ^ (h >> GUMBEL_S2)) + key.b;
    h = (h ^ (h >> GUMBEL_S3)) * GUMBEL_M3;
    h = (h ^ (h >> GUMBEL_S4)) * GUMBEL_M4;
    return h ^ (h >> GUMBEL_S5);
}

/* -ln(-ln(u)) for a uniform u made of (key, id). With v = 1 - u, -ln u = -log1p(-v): fine steps near v = 0, which is
 * where the large values come from. */
K_INLINE float gumbel_noise(uint32_t id, struct gumbel_key key) {
    float v = ((float)(int32_t)(gumbel_hash(id, key) >> 1) + 0.5f) * 0x1p-31f;
    v = GUMBEL_V_MAX < v ? GUMBEL_V_MAX : v;
    const float e = 0.0f - f32_log1p(0.0f - v);
    return 0.0f - f32_log(e);
}
