/* sample.h - from hidden rows to tokens on the device: what the kernels are given, and the functions that queue them.
 *
 * Between head.c, which owns the scratch that all this lies in, and collect.cu and sample.cu. A round is up to
 * HEAD_ROWS rows that somebody wants logits of; how many they are is known on the device (d_round), the host has a
 * bound. */
#pragma once

#include "kernels/cuda/views.h"
#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEAD_ROWS     64u
#define SAMPLE_GROUPS 2048u /* parts of a vocabulary, 32 a segment: their highest logits bound candidates */
#define SAMPLE_LIST   8192u /* candidates at most; where there are more, all ids are looked at */
#define MASS_BINS     2048u /* of x, 64 for every 1 below the highest; the last has what weighs nothing */

struct head_row {
    uint32_t row, entry;      /* of the batch */
    uint32_t sampled, scored; /* which of them has a result; neither: its logits are asked for */
    uint32_t result;          /* its place among results */
    uint32_t id;              /* scored: whose logprob is asked for */
    /* Of a sample: the drafts that it takes as given, the position of its noise; its mask, UINT32_MAX: none. */
    uint32_t n_drafts, position, mask;
    uint32_t logits_at; /* row of the logits buffer; UINT32_MAX: nobody asked */
};

/* What is left to do for a sample, one bit each: most passes have nothing to do for most samples. */
enum sample_left {
    LEFT_LOGPROBS = 1u << 0,
    LEFT_NOISE = 1u << 1, /* the highest of all ids with noise */
    LEFT_TOP_K = 1u << 2, /* top k, and what comes after it */
    LEFT_TOP_P = 1u << 3, /* top p of the whole vocabulary, and what comes after it */
};
enum sample_pass { PASS_SCAN, PASS_WEIGH, PASS_GATHER, SAMPLE_PASSES };

struct sample_state {
    uint32_t arrived[SAMPLE_PASSES]; /* blocks that are done; the last one draws a pass together */
    uint32_t left;
    float raw_top, top; /* the highest logit; the same after changes */
    float lse;          /* ln sum e^raw */
    float low;          /* ids whose (logit - top) / T is lower do not survive the cuts */
    uint32_t top_low;   /* order of the raw logits that can be in the list of top logprobs */
    uint32_t n_list, n_top_list;
    uint32_t whole; /* there are too many candidates for a list */
    /* Top p of the whole vocabulary: the bin that its cut is in, what it keeps of that bin, and of all. */
    uint32_t bin;
    uint64_t target, target_all;
};

/* Highest logits of one block of a pass, as (order, ~id). */
struct sample_part {
    uint64_t raw_best, best; /* raw_best: all ones where a logit is not finite */
};

struct collect_args {
    const struct k_plan *d_plan;
    const struct k_entry *d_entries;
    const uint32_t *d_row_pos, *d_row_id;
    const struct slot *d_slots;
    const float *d_hidden; /* [rows of the batch][hidden_size] */
    uint32_t hidden_size;
    uint32_t first;           /* of all rows that are wanted, the round's first */
    uint32_t logits_rows_max; /* 0: there is no buffer for logits */
    struct k_plan *d_round;   /* n_rows */
    struct head_row *d_rows;  /* [HEAD_ROWS] */
    struct sample_state *d_states;
    uint64_t *d_masses;
    float *d_x; /* [HEAD_ROWS][hidden_size] */
};
/* The round's rows: which they are, and a copy of their hidden vectors. */
cudaError_t queue_collect(cudaStream_t s, const struct collect_args *a, uint32_t rows_bound);

struct sample_args {
    struct pool_view p;
    uint32_t segment; /* ids of a segment of the vocabulary */
    const struct k_entry *d_entries;
    const uint32_t *d_masks; /* [..][mask_words] of the batch; NULL: it has none */
    const struct k_plan *d_round;
    const struct head_row *d_rows;
    struct sample_state *d_states; /* [HEAD_ROWS] */
    struct sample_part *d_parts;   /* [HEAD_ROWS][VOCAB_SEGMENTS], of blocks */
    float *d_sums;                 /* [HEAD_ROWS][VOCAB_SEGMENTS] of e^(raw - highest) */
    uint64_t *d_masses;            /* [HEAD_ROWS][MASS_BINS], 0 when a round begins */
    uint32_t *d_maxima;            /* [HEAD_ROWS][raw, changed][SAMPLE_GROUPS] orders */
    uint32_t *d_lists;             /* [HEAD_ROWS][top logprobs, cuts][SAMPLE_LIST] ids */
    const float *d_raw;            /* [HEAD_ROWS][V] */
    float *d_changed; /* [HEAD_ROWS][V], of samples with bias, penalties, suppressed ids, masks */
    struct k_result *d_results;
    struct k_outcome *d_outcomes; /* NULL: nobody asks, or queue_outcomes() gives them */
    float *d_logits;              /* NULL, or [logits_rows_max][vocab_rows of this rank] */
};
/* Results, outcomes and logits of the round's rows. */
cudaError_t queue_samples(cudaStream_t s, const struct sample_args *a, uint32_t rows_bound);

struct outcome_args {
    const struct k_plan *d_plan;
    const struct k_entry *d_entries;
    struct pool_view p;
    const float *d_hidden; /* [rows of the batch][hidden_size] */
    const struct k_result *d_results;
    struct k_outcome *d_outcomes;
};
/* Of a pool that takes drafts: what became of all entries, after all rounds; the hidden row behind which a slot goes
 * on. */
cudaError_t queue_outcomes(cudaStream_t s, const struct outcome_args *a, uint32_t entries_bound);

#ifdef __cplusplus
}
#endif
