/* speed.c - how fast this machine's memory is read: what decoding, which reads every weight once, is compared with.
 *
 * All threads of the context read their own parts at the same time, several times over; the mean is what a run of
 * steps can hope for, not the best of them. */
#include "kernels/cpu/internal.h"

#include "base/clock.h"

#include <immintrin.h>

#define SPEED_ROUNDS 8

struct reading {
    const uint8_t *data;
    size_t part; /* bytes of a task */
    bool avx2;
    _Atomic uint64_t sum; /* what is read has to be used */
};

__attribute__((target("avx2"))) static uint64_t read_avx2(const uint8_t *data, size_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        a = _mm256_add_epi64(a, _mm256_load_si256((const __m256i *)(data + i)));
        b = _mm256_add_epi64(b, _mm256_load_si256((const __m256i *)(data + i + 32)));
        c = _mm256_add_epi64(c, _mm256_load_si256((const __m256i *)(data + i + 64)));
        d = _mm256_add_epi64(d, _mm256_load_si256((const __m256i *)(data + i + 96)));
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0) + (uint64_t)_mm256_extract_epi64(a, 2);
}
static uint64_t read_plain(const uint8_t *data, size_t bytes) {
    const uint64_t *words = (const uint64_t *)(const void *)data;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / sizeof *words; i++)
        sum += words[i];
    return sum;
}

static void read_part(void *arg, uint32_t i) {
    struct reading *r = arg;
    const uint8_t *data = r->data + i * r->part;
    atomic_fetch_add_explicit(
            &r->sum, r->avx2 ? read_avx2(data, r->part) : read_plain(data, r->part), memory_order_relaxed);
}

double k_memory_speed(struct k_stream *s, void *memory, size_t bytes) {
    const uint32_t threads = team_threads(s->context->team);
    struct reading r = {
            .data = memory, .part = bytes / threads & ~(size_t)127, .avx2 = __builtin_cpu_supports("avx2")};
    uint64_t begin = 0;
    if (k_stream_wait(s, 0, NULL) < 0 || r.part == 0)
        return 0;
    /* Pages that were never written are all the same one. */
    memset(memory, 1, bytes);
    for (int i = -1; i < SPEED_ROUNDS; i++) {
        if (i == 0) /* after the one that warms up */
            begin = clock_ns();
        team_run(s->context->team, read_part, &r, threads);
    }
    const uint64_t took = clock_ns() - begin;
    return took ? (double)SPEED_ROUNDS * (double)r.part * threads * 1e9 / (double)took : 0;
}
