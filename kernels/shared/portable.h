/* portable.h - what lets the headers of this folder be C17, C++17 and CUDA at once.
 *
 * Included by every header of kernels/shared. Functions marked K_INLINE are plain arithmetic: they may be called from
 * host code and, where a .cu file includes them, from kernels. The bits are the same everywhere if nothing contracts or
 * reorders: -ffp-contract=off for host code; for nvcc -fmad=false, and neither -use_fast_math nor -ftz=true. fmaf() is
 * rounded once by the standard, on a GPU as __fmaf_rn() is. */
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define K_INLINE static __host__ __device__ __forceinline__
#else
#define K_INLINE static inline
#endif

K_INLINE float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
K_INLINE uint32_t bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
