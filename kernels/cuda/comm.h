/* comm.h - what ranks exchange in a step: for the operations of kernels.h that are collective. */
#pragma once

#include "kernels/cuda/internal.h"

/* Nobody has to be asked. The others are for groups. */
bool comm_alone(const struct k_comm *m);
/* x[rows][columns] += the tree over ranks of part, of the batch's rows. */
void comm_add(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part, float *x,
        uint32_t columns);
/* The same, and it leaves its rows in the forms that `made` says, for who multiplies `in`, which begins with a norm. */
struct comm_add {
    const struct k_batch *b;
    const float *part;
    float *x;
    bool pushed; /* the others have been sent part, by comm_push() */
};
void comm_add_made(struct k_stream *s, struct k_comm *m, const struct comm_add *add, const struct input *in,
        const struct made *made);
/* How a product sends its result for the next exchange. False: a fault was kept. */
bool comm_push(struct k_stream *s, struct k_comm *m, struct push_view *ret);
/* Do sums of so many floats, of few rows, go in words? Otherwise the two cannot be asked. */
bool comm_by_words(const struct k_comm *m, uint64_t floats);
/* Of the norms of the group's model. */
float comm_eps(const struct k_comm *m);
/* all[rows][columns] = the vocabulary's rows of all ranks, of up to `rows` rows of a plan; part[rows][own]. */
void comm_gather_vocab(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, uint32_t rows,
        const float *part, float *all, uint32_t columns);
/* The same of rows that ranks share evenly, rank after rank. */
void comm_gather_shares(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, uint32_t rows,
        const float *part, float *all, uint32_t columns);
