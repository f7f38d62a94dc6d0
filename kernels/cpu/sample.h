/* sample.h - sampling one row; called by head.c. */
#pragma once

#include "kernels/cpu/internal.h"

struct sample_task {
    const struct isa *isa;
    const struct k_sampling *sampling;
    const uint16_t *counts; /* [vocab] COUNT_PROMPT and COUNT_OUTPUT of the slot */
    const uint32_t *drafts; /* [n_drafts] taken as sampled before this row, but not in counts */
    uint32_t n_drafts;
    const uint32_t *mask; /* NULL: none */
    uint32_t vocab, sample_index, position, top_logprobs;
};

struct score_task {
    const struct isa *isa;
    uint32_t vocab, id, top_logprobs;
};

/* The logprob of an id that is there already. */
void score_row(const struct score_task *t, const float *raw, struct k_result *ret);
/* raw[vocab], work[vocab]: overwritten. Without a token *ret is zero but for its status. */
void sample_row(const struct sample_task *t, const float *raw, float *work, struct k_result *ret);
