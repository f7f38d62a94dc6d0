/* group.c - finds the scale of one group of weights that loses least.
 *
 * Candidates are tried side by side, one per lane of a vector: a coarse grid from no clipping to heavy clipping
 * (and for asymmetric schemes three zeros for each), then a fine one around the best. Since a candidate is a lane,
 * no sum depends on the width of the machine's vectors. Called by matrix.c for every group of a model, so
 * this loop is what quantising without calibration costs. */
#include "tp/quantize/parts.h"

#include <math.h>
#include <string.h>

#define LANES   16u
#define VECTORS 3u /* of candidates at a time */

typedef float lanes_f __attribute__((vector_size(64)));
typedef int32_t lanes_i __attribute__((vector_size(64)));

struct candidates {
    lanes_f scale[VECTORS], inverse[VECTORS], low[VECTORS], high[VECTORS]; /* codes less zero: low..high */
    lanes_f error[VECTORS];
    uint32_t n; /* vectors used */
};

float quantize_round_scale(float value, enum tensor_dtype dtype) {
    uint32_t bits, drop = dtype == TENSOR_BF16 ? 16 : dtype == TENSOR_F16 ? 13 : 0;
    if (dtype == TENSOR_F16) { /* its smallest normal value and its largest */
        value = value < 0x1p-14f ? 0x1p-14f : value;
        value = value > 65504.0f ? 65504.0f : value;
    }
    if (value < 0x1p-120f)
        value = 0x1p-120f;
    if (!drop)
        return value;
    memcpy(&bits, &value, sizeof(bits));
    bits += (1u << (drop - 1)) - 1 + (bits >> drop & 1);
    bits &= ~((1u << drop) - 1);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The errors of all candidates. -O2 keeps the vectors in registers; the wrappers below choose how wide they are. */
static inline __attribute__((always_inline)) void try_all(
        const float *w, const float *importance, uint32_t n, struct candidates *c) {
    const lanes_f magic = (lanes_f){0} + 12582912.0f;
    for (uint32_t v = 0; v < c->n; v++) {
        const lanes_f scale = c->scale[v], inverse = c->inverse[v], low = c->low[v], high = c->high[v];
        lanes_f sum = {0};
        for (uint32_t i = 0; i < n; i++) {
            lanes_f t = inverse * w[i];
            lanes_i under = t<low, over = t> high;
            t = (lanes_f)(((lanes_i)low & under) | ((lanes_i)t & ~under));
            t = (lanes_f)(((lanes_i)high & over) | ((lanes_i)t & ~over));
            t = (t + magic) - magic;
            lanes_f miss = w[i] - t * scale;
            miss *= miss;
            sum += importance ? miss * importance[i] : miss;
        }
        c->error[v] = sum;
    }
}

static void try_plain(const float *w, const float *importance, uint32_t n, struct candidates *c) {
    try_all(w, importance, n, c);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void try_avx2(
        const float *w, const float *importance, uint32_t n, struct candidates *c) {
    try_all(w, importance, n, c);
}

__attribute__((target("avx512f,avx512dq"))) static void try_avx512(
        const float *w, const float *importance, uint32_t n, struct candidates *c) {
    try_all(w, importance, n, c);
}
#endif

static void try_candidates(const float *w, const float *importance, uint32_t n, struct candidates *c) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        try_avx512(w, importance, n, c);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        try_avx2(w, importance, n, c);
        return;
    }
#endif
    try_plain(w, importance, n, c);
}

struct best {
    struct quantize_params params;
    float error;
};

static void put(struct candidates *c, uint32_t at, float scale, float zero, const struct quantize_scheme *s) {
    float codes = (float)((1u << s->bits) - 1);
    scale = quantize_round_scale(scale, s->scale);
    c->scale[at / LANES][at % LANES] = scale;
    c->inverse[at / LANES][at % LANES] = 1.0f / scale;
    c->low[at / LANES][at % LANES] = -zero;
    c->high[at / LANES][at % LANES] = codes - zero;
}

static void keep_best(
        const float *w, const float *importance, uint32_t n, struct candidates *c, struct best *best) {
    try_candidates(w, importance, n, c);
    for (uint32_t i = 0; i < c->n * LANES; i++) {
        float error = c->error[i / LANES][i % LANES];
        if (error < best->error)
            *best = (struct best){
                    {c->scale[i / LANES][i % LANES], (uint8_t)-c->low[i / LANES][i % LANES]}, error};
    }
}

/* Steps from one candidate to the next, as a part of the unclipped scale: 8 bits gain little by clipping. */
static float coarse_step(const struct quantize_scheme *s) {
    return s->bits == 4 ? 0.02f : 0.003f;
}

static void coarse_symmetric(float largest, const struct quantize_scheme *s, struct candidates *c) {
    float zero = (float)(1u << (s->bits - 1)), top = zero - 1, unclipped = largest / top;
    c->n = 2;
    for (uint32_t i = 0; i < 2 * LANES - 2; i++)
        put(c, i, unclipped * (1.0f - coarse_step(s) * (float)i), zero, s);
    /* What others round with, where the end of the scale is half a code outside or a negative code more. */
    put(c, 2 * LANES - 2, largest / (top + 0.5f), zero, s);
    put(c, 2 * LANES - 1, largest / zero, zero, s);
}

static void coarse_asymmetric(float low, float high, const struct quantize_scheme *s, struct candidates *c) {
    float codes = (float)((1u << s->bits) - 1), unclipped = (high - low) / codes;
    float middle = quantize_whole(-low / unclipped);
    c->n = 3;
    for (uint32_t i = 0; i < 3 * LANES; i++) {
        float zero = middle + (float)(i / LANES) - 1.0f;
        zero = zero < 0 ? 0 : zero > codes ? codes : zero;
        put(c, i, unclipped * (1.0f - 1.5f * coarse_step(s) * (float)(i % LANES)), zero, s);
    }
}

struct quantize_params quantize_search(
        const float *w, const float *importance, uint32_t n, const struct quantize_scheme *s) {
    struct candidates c = {.n = 0};
    float low = 0, high = 0; /* zero is always representable: weights of 0 stay 0 */
    for (uint32_t i = 0; i < n; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    struct best best = {{1.0f, (uint8_t)(1u << (s->bits - 1))}, INFINITY};
    if (low == 0 && high == 0)
        return best.params;
    if (s->asymmetric)
        coarse_asymmetric(low, high, s, &c);
    else
        coarse_symmetric(-low > high ? -low : high, s, &c);
    /* Candidate 0 (asymmetric: 16) is not clipped: what is left where errors are too large for a number. */
    uint32_t first = s->asymmetric ? 1 : 0;
    best.params = (struct quantize_params){c.scale[first][0], (uint8_t)-c.low[first][0]};
    keep_best(w, importance, n, &c, &best);
    const struct quantize_params coarse = best.params;
    c.n = 1;
    for (uint32_t i = 0; i < LANES; i++)
        put(&c, i, coarse.scale * (1.0f + coarse_step(s) * 0.125f * ((float)i - 7.5f)), coarse.zero, s);
    keep_best(w, importance, n, &c, &best);
    return best.params;
}
