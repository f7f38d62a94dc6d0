/* round_cost.c - see round_cost.h. */
#include "daemon/engine/round_cost.h"

#define EXACT       16u  /* rows up to which each number has its own bucket */
#define MEMORY      10u  /* a measurement counts one in so many; the first ones are averaged */
#define OUTLIER     3.0f /* more than so many times what was expected is cut: the machine did something else */
#define KEPT_ROUNDS 32768u /* without a measurement, after which those before are forgotten */
/* A row above what was measured is taken to cost so much of the cost that is known, or of a row's part in it. */
#define SLOPE_UNKNOWN 0.02f
#define PART_UNKNOWN  0.25f

static uint32_t bucket_of(uint32_t rows) {
    if (rows <= EXACT)
        return rows > 0 ? rows - 1 : 0;
    uint32_t doubling = 31 - (uint32_t)__builtin_clz(rows); /* 4 and more */
    uint32_t bucket = EXACT + 4 * (doubling - 4) + ((rows >> (doubling - 2)) & 3);
    return bucket < ROUND_COST_BUCKETS ? bucket : ROUND_COST_BUCKETS - 1;
}

static void toward(float *mean, float value, uint32_t n) {
    *mean += (value - *mean) / (float)(n < MEMORY ? n : MEMORY);
}

/* Looks at one bucket a round: contexts have grown since, and what looked dear once may be cheap. */
static void forget_old(struct round_cost *c, uint64_t round) {
    uint32_t b = (uint32_t)(round % ROUND_COST_BUCKETS);
    if (c->last[b] + KEPT_ROUNDS < round) {
        c->measured &= ~(1ull << b);
        c->plain &= ~(1ull << b);
    }
}

void round_cost_measured(struct round_cost *c, uint64_t round, uint32_t rows, uint32_t depth, float ns) {
    uint32_t b = bucket_of(rows);
    uint64_t bit = 1ull << b;
    forget_old(c, round);
    if ((c->begun & bit) == 0) {
        c->begun |= bit;
        return;
    }
    c->last[b] = round;
    float expected = c->ns[b] + (float)depth * c->draft_ns;
    if ((c->measured & bit) != 0 && ns > OUTLIER * expected)
        ns = OUTLIER * expected;
    if (depth > 0 && (c->plain & bit) != 0) { /* what rows take is known better from steps without drafts */
        float each = (ns - c->ns[b]) / (float)depth;
        toward(&c->draft_ns, each > 0 ? each : 0, MEMORY);
        return;
    }
    if ((c->measured & bit) == 0 || (depth == 0 && (c->plain & bit) == 0))
        c->n[b] = 0; /* it was estimated until now */
    ns -= (float)depth * c->draft_ns;
    c->n[b] += c->n[b] < MEMORY;
    toward(&c->ns[b], ns > 0 ? ns : 0, c->n[b]);
    toward(&c->rows[b], (float)rows, c->n[b]);
    c->measured |= bit;
    if (depth == 0) {
        c->plain |= bit;
        c->last_plain[b] = round;
    }
}

static float without_drafts(const struct round_cost *c, uint32_t rows) {
    uint32_t b = bucket_of(rows);
    uint64_t below = c->measured & ((2ull << b) - 1), above = c->measured & ~((2ull << b) - 1);
    if (below == 0)
        return c->ns[__builtin_ctzll(above)]; /* fewer rows cost no more */
    uint32_t i = 63 - (uint32_t)__builtin_clzll(below);
    float more = (float)rows - c->rows[i];
    if (more <= 0)
        return c->ns[i];
    if (above == 0) {
        float part = PART_UNKNOWN / c->rows[i];
        return c->ns[i] * (1 + more * (part < SLOPE_UNKNOWN ? part : SLOPE_UNKNOWN));
    }
    uint32_t k = (uint32_t)__builtin_ctzll(above);
    float part = more / (c->rows[k] - c->rows[i]);
    return c->ns[i] + part * part * (c->ns[k] - c->ns[i]);
}

float round_cost_of(const struct round_cost *c, uint32_t rows, uint32_t depth) {
    return c->measured == 0 ? 0 : without_drafts(c, rows) + (float)depth * c->draft_ns;
}

bool round_cost_known(const struct round_cost *c, uint32_t rows, uint64_t round) {
    uint32_t b = bucket_of(rows);
    return (c->plain >> b & 1) != 0 && c->last_plain[b] >= round;
}
