/* numbers.h - host functions on numbers: rows of another format as fp32, and powers.
 *
 * Called by backends when they load and create; compiled for the baseline instruction set and free of libm, whose
 * results differ between processors. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/shared/trigonometry.h"

#ifdef __cplusplus
extern "C" {
#endif

void convert_row(enum k_dtype dtype, const void *from, uint32_t n, float *to);
void round_row_f16(uint32_t n, float *x); /* what fp16 makes of them, in place */
double power(double base, double x);      /* base > 0; for frequencies, error below 1e-13 */

#ifdef __cplusplus
}
#endif
