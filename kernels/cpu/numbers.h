/* numbers.h - scalar number formats and functions of numbers.c, for the operations of this folder. */
#pragma once

#include <stdint.h>

#include "kernels/kernels.h"

uint16_t bf16_of(float x); /* nearest even */
uint16_t f16_of(float x);  /* nearest even */
float float_of_f16(uint16_t h);
void convert_row(enum k_dtype dtype, const void *from, uint32_t n, float *to);
void cos_sin(float angle, float *ret_cos, float *ret_sin); /* |angle| < 2^20; correct to fp32 rounding */
double power(double base, double x);                       /* base > 0; for frequencies, error below 1e-13 */
