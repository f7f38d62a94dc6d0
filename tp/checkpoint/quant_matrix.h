/* quant_matrix.h - what tp/ asks of a quantised matrix before it packs it, and of its tensor to print it.
 *
 * Works on any struct quant_matrix, whichever file format it is from. */
#pragma once

#include "base/error.h"
#include "base/quant.h"
#include "tp/checkpoint/safetensors.h"

/* The checks that take reading the data, to be called right before a matrix is packed (its pages are read then anyway):
 * scales and minimums are finite; no FP8 code is a NaN. t is TENSOR_QUANTISED. -EBADMSG with a sentence that names the
 * tensor, the row and the column. Zero and negative scales are values like others. */
int quant_matrix_check(const struct tensor *t, struct error *e);
