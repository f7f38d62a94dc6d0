/* isa_plain.c - the numeric bodies compiled for one instruction set. Called through struct isa (internal.h)
 * only. */
#include "kernels/cpu/lanes_plain.h"

#include "kernels/cpu/body.h"

const struct isa isa_plain = ISA_TABLE;
