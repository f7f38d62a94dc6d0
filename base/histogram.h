/* histogram.h - how often a value fell into which range: fed by one thread, read by any; header only.
 *
 * Ranges end at fixed bounds, the last one is open. No locks: the writer alone adds, a reader may see a value in its
 * range before it is in the sum. Adding is a search among the bounds and two stores. */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_BOUNDS_MAX 40u

struct histogram {
    const uint64_t *bounds; /* [n_bounds] ascending; the caller's, usually static */
    uint32_t n_bounds;
    _Atomic uint64_t sum;
    _Atomic uint64_t counts[HISTOGRAM_BOUNDS_MAX + 1]; /* [i]: bounds[i - 1] < value <= bounds[i] */
};

static inline void histogram_init(struct histogram *h, const uint64_t *bounds, uint32_t n_bounds) {
    h->bounds = bounds;
    h->n_bounds = n_bounds < HISTOGRAM_BOUNDS_MAX ? n_bounds : HISTOGRAM_BOUNDS_MAX;
    atomic_init(&h->sum, 0);
    for (uint32_t i = 0; i <= HISTOGRAM_BOUNDS_MAX; i++)
        atomic_init(&h->counts[i], 0);
}

static inline void histogram_raise(_Atomic uint64_t *number, uint64_t by) {
    uint64_t before = atomic_load_explicit(number, memory_order_relaxed);
    atomic_store_explicit(number, before + by, memory_order_relaxed);
}

static inline void histogram_add(struct histogram *h, uint64_t value) {
    uint32_t low = 0, high = h->n_bounds; /* the first bound that is not below the value is in [low, high] */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (h->bounds[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    histogram_raise(&h->counts[low], 1);
    histogram_raise(&h->sum, value);
}

struct histogram_reading {
    uint64_t sum, count;
    uint64_t up_to[HISTOGRAM_BOUNDS_MAX]; /* values that are not above bounds[i] */
};

static inline void histogram_read(const struct histogram *h, struct histogram_reading *ret) {
    ret->count = 0;
    for (uint32_t i = 0; i <= h->n_bounds; i++) {
        ret->count += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        if (i < h->n_bounds)
            ret->up_to[i] = ret->count;
    }
    ret->sum = atomic_load_explicit(&h->sum, memory_order_relaxed);
}
