/* constants.h - the sizes that a contract's numbers or its refusals depend on: the same in every backend.
 *
 * What only one backend cuts its work by (tiles, chunks, shares) stays with it; limits on models and requests are in
 * base/limits.h. */
#pragma once

#include "base/limits.h"

#define STRIP_ROWS      16u    /* outputs of a strip; rows are padded to whole strips */
#define ACTIVATION_RUN  128u   /* k of a leaf that share one scale when activations are INT8 */
#define CODE_STEPS      127.0f /* INT8: of the largest |x| of a scale */
#define WORD_STEPS      32512.0f /* 127 * 256: the same of 16 bits, cut into two signed bytes without overflow */
#define NORM_CHAINS     256u     /* of the sum of squares of a norm */
#define NORM_SHORT      512u     /* elements; of up to so many it has 16 chains */
#define PIECES_MAX      8u       /* of a linear */
#define CUTS_MAX        4u       /* different weight groups in one linear */
#define HEAD_DIM_MAX    512u     /* attention head size */
#define GDN_DIM_MAX     256u     /* GDN key and value head size */
#define CONV_KERNEL_MAX 8u
#define SUPPRESS_MAX    (STOP_IDS_MAX + 16u) /* ids that a slot may suppress */
#define BIAS_BYTES      (LOGIT_BIAS_MAX * 8u)
