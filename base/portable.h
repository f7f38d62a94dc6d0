/* portable.h - what lets a header of plain arithmetic be C17, C++17 and CUDA at once.
 *
 * Functions marked PORTABLE_INLINE may be called from host code and, where a .cu file includes them, from kernels. The
 * bits are the same everywhere if nothing contracts or reorders: -ffp-contract=off for host code; for nvcc -fmad=false,
 * and neither -use_fast_math nor -ftz=true. fmaf() is rounded once by the standard, on a GPU as __fmaf_rn() is. */
#pragma once

#ifdef __CUDACC__
#define PORTABLE_INLINE static __host__ __device__ __forceinline__
#else
#define PORTABLE_INLINE static inline
#endif
