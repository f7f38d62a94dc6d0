/* hash.h - small hashes and seeded numbers: FNV-1a for names and fingerprints, splitmix64 for values that must be the
 * same everywhere. Neither is a defence against who wants to deceive. Header only.
 *
 * FNV-1a: http://www.isthe.com/chongo/tech/comp/fnv. splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom
 * number generators", 2014. */
#pragma once

#include "base/portable.h"

#include <stddef.h>
#include <stdint.h>

#define FNV1A_START    0xcbf29ce484222325ull
#define FNV1A_PRIME    0x100000001b3ull
#define SPLITMIX_GAMMA 0x9e3779b97f4a7c15ull

/* h: FNV1A_START, or what the bytes before gave. */
PORTABLE_INLINE uint64_t fnv1a(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * FNV1A_PRIME;
    return h;
}
PORTABLE_INLINE uint64_t fnv1a_text(uint64_t h, const char *text) {
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * FNV1A_PRIME;
    return h;
}

/* A bijection that spreads every bit of x over the result. */
PORTABLE_INLINE uint64_t hash_mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}
/* The number that a sequence seeded with x begins with. */
PORTABLE_INLINE uint64_t splitmix64(uint64_t x) {
    return hash_mix(x + SPLITMIX_GAMMA);
}
/* The next number of a sequence. */
PORTABLE_INLINE uint64_t splitmix64_next(uint64_t *state) {
    *state += SPLITMIX_GAMMA;
    return hash_mix(*state);
}
