/* isa_avx512_vnni.c - the numeric bodies compiled for AVX-512 with VNNI: the same bits as isa_avx512.c, faster INT4 and
 * INT8. Called through struct isa only. */
#include "kernels/cpu/isa/lanes_avx512.h"

#include "kernels/cpu/isa/body.h"

const struct isa isa_avx512_vnni = ISA_TABLE;
