/* round_cost.h - what a step takes as a function of its rows, learned from the steps that were measured.
 *
 * Steps without prompt rows only. What was not measured yet lies between its neighbours, nearer to the lower one, and
 * above the last of them on a slope that is likely too flat: who looks for the best number of rows then tries it, and
 * knows. The first step of a kind does not count (a worker may record a graph in it), and what was measured long ago is
 * forgotten. Not locked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define ROUND_COST_BUCKETS 56u /* one for each number of rows up to 16, then four for each doubling */

struct round_cost {
    /* Bit sets of buckets; begun: once; plain: without drafts made at the step's end. */
    uint64_t begun, measured, plain;
    float ns[ROUND_COST_BUCKETS], rows[ROUND_COST_BUCKETS];
    uint32_t n[ROUND_COST_BUCKETS]; /* measurements, up to a limit */
    /* The rounds of the last one, and of the last one that was plain. */
    uint64_t last[ROUND_COST_BUCKETS], last_plain[ROUND_COST_BUCKETS];
    float draft_ns; /* of each draft after another that the ranks' drafter makes */
};

/* A step of `rows` rows, whose ranks made up to `depth` drafts for each sequence, took ns. */
void round_cost_measured(struct round_cost *c, uint64_t round, uint32_t rows, uint32_t depth, float ns);
/* 0 while nothing was measured. */
float round_cost_of(const struct round_cost *c, uint32_t rows, uint32_t depth);
/* Whether a step of so many rows, that made no drafts, was measured since `round`. */
bool round_cost_known(const struct round_cost *c, uint32_t rows, uint64_t round);
