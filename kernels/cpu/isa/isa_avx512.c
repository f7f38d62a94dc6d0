/* isa_avx512.c - the numeric bodies compiled for one instruction set. Called through struct isa only. */
#include "kernels/cpu/isa/lanes_avx512.h"

#include "kernels/cpu/isa/body.h"

const struct isa isa_avx512 = ISA_TABLE;
