/* quant_tensor.h - puts the parts of a quantised matrix together: codes, scales, zeros and order become one tensor
 * that reads like a dense one.
 *
 * Called by tensor_names.c for each matrix of the model. What a module's tensors are decides how it is read:
 *
 *     X.weight (F32, BF16, F16)                        dense, nothing to do here
 *     X.qweight [K/8][N] or [K/4][N] + scales, qzeros  GPTQ; optional g_idx
 *     X.qweight [K][N/8] + scales, qzeros              AWQ "gemm"
 *     X.weight_packed + weight_scale                   compressed-tensors, 4 or 8 bits; optional weight_zero_point,
 *                                                      weight_g_idx, weight_shape
 *     X.weight (I8) + weight_scale                     compressed-tensors, 8 bits; optional weight_zero_point
 *     X.weight (F8_E4M3) + weight_scale_inv            FP8 in blocks
 *     X.weight (F8_E4M3) + weight_scale                FP8 by tensor, row, group or block
 *
 * Where the configuration says something else, the matrix is refused: one of the two is from another checkpoint. */
#pragma once

#include "tp/checkpoint/quant_config.h"
#include "tp/checkpoint/quant_layout.h"

#define QUANT_PARTS_MAX 5u

struct quant_tensor {          /* does not move: its pointers are into itself and into the checkpoint */
    struct quant_tensor *next; /* the owner's */
    struct tensor tensor;      /* named X.weight, in the file of the codes */
    struct quant_matrix matrix;
    struct quant_layout layout;
    uint32_t *order;
    const struct tensor *parts[QUANT_PARTS_MAX]; /* what it is made of */
    uint32_t n_parts;
    char name[160], label[64];
};

struct quant_request {
    const struct checkpoint *checkpoint; /* outlives the tensor */
    const struct quant_config *config;   /* NULL: the folder says nothing */
    const char *module;                  /* the name without ".weight" */
    uint32_t rows, columns;              /* what the matrix must have, 1..MODEL_DIM_MAX */
};
/* 1: *ret is the matrix; 0: the module is not quantised, there are no parts of it. -ENOENT: a part is missing; -EINVAL:
 * a shape, or it contradicts the configuration; -EBADMSG: contents; -ENOTSUP: a variant that is not read. */
int quant_tensor_make(const struct quant_request *q, struct quant_tensor **ret, struct error *e);
struct quant_tensor *quant_tensor_free(struct quant_tensor *t); /* NULL ok; returns NULL; not the next ones */
