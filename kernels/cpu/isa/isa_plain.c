/* isa_plain.c - the numeric bodies compiled for one instruction set. Called through struct isa only. */
#include "kernels/cpu/isa/lanes_plain.h"

#include "kernels/cpu/isa/body.h"

const struct isa isa_plain = ISA_TABLE;
