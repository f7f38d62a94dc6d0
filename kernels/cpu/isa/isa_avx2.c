/* isa_avx2.c - the numeric bodies compiled for one instruction set. Called through struct isa only. */
#include "kernels/cpu/isa/lanes_avx2.h"

#include "kernels/cpu/isa/body.h"

const struct isa isa_avx2 = ISA_TABLE;
