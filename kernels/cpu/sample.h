/* sample.h - sampling one row; called by head.c. */
#pragma once

#include "kernels/cpu/internal.h"

struct sample_task {
    const struct isa *isa;
    const struct k_sampling *sampling;
    const uint16_t *counts; /* [vocab] COUNT_PROMPT and COUNT_OUTPUT of the slot */
    const uint32_t *drafts; /* [n_drafts] taken as sampled before this row, but not in counts */
    uint32_t n_drafts;
    uint32_t vocab, sample_index, position, top_logprobs;
};

/* raw[vocab], work[vocab]: overwritten. Without a token *ret is zero but for its status. */
void sample_row(const struct sample_task *t, const float *raw, float *work, struct k_result *ret);
