/* body.h - all numeric bodies; included after a lanes_*.h. */
#pragma once

#include "kernels/cpu/internal.h"

#include <math.h>
#include <string.h>

/* LANES_FEW: sanitizer builds, where unrolled copies take minutes to compile. The bits are the same. */
#ifdef LANES_FEW
#undef LANES_TILE_ROWS
#define LANES_TILE_ROWS 1
#undef LANES_CODES_ROWS
#define LANES_CODES_ROWS 1
#undef LANES_CODES_STRIPS
#define LANES_CODES_STRIPS 1
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define ROLLED _Pragma("GCC unroll 1")
#endif
#if defined(LANES_FEW) || LANES_TILE_ROWS == 1
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Up to 16 lanes where a full vector is the common case. */
static inline v16 v_load_m(const float *p, uint32_t n) {
    return n >= 16 ? v_load(p) : v_load_n(p, n);
}
static inline void v_store_m(float *p, v16 x, uint32_t n) {
    if (n >= 16)
        v_store(p, x);
    else
        v_store_n(p, x, n);
}

#include "kernels/cpu/isa/body_attention.h"
#include "kernels/cpu/isa/body_codes.h"
#include "kernels/cpu/isa/body_gdn.h"
#include "kernels/cpu/isa/body_linear.h"
#include "kernels/cpu/isa/body_math.h"
#include "kernels/cpu/isa/body_rows.h"
#include "kernels/cpu/isa/body_sampling.h"

#define ISA_TABLE                                                                                            \
    {                                                                                                        \
        .name = LANES_NAME, .linear_small = linear_small, .linear_block = linear_block,                      \
        .linear_codes = linear_codes, .quantise_row = quantise_row, .quantise_run = quantise_run,            \
        .norm_row = norm_row, .silu_mul = silu_mul, .conv_row = conv_row, .l2_row = l2_row,                  \
        .gdn_gates = gdn_gates, .gdn_rows = gdn_rows, .gdn_fold = gdn_fold, .gated_norm = gated_norm,        \
        .rope = rope, .attention = attention, .attention_leaf = attention_leaf,                              \
        .attention_merge = attention_merge, .sigmoid_mul = sigmoid_mul, .highest = highest,                  \
        .sum_exp = sum_exp, .exp_minus = exp_minus, .log_one = log_one, .argmax = argmax,                    \
        .gumbel_argmax = gumbel_argmax,                                                                      \
    }
