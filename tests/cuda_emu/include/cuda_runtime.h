/* cuda_runtime.h - what nvcc gives every .cu file, for the emulation (emu.h): the words of the language, built-in
 * variables, vector types, and the device functions that kernels/cuda calls. Nothing else is there, so that a kernel
 * which uses more does not compile here. */
#pragma once

#include "tests/cuda_emu/emu.h"

#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__    __attribute__((noinline))
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
/* One block of a thread of the host runs at a time; not poisoned: kernels/cuda uses dynamic shared memory. */
#define __shared__ static EMU_THREAD

#define threadIdx emu_here.thread
#define blockIdx  emu_here.block
#define blockDim  emu_here.block_dim
#define gridDim   emu_here.grid_dim

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

/* --- barriers and meetings of a warp --- */

static inline void __syncthreads() {
    emu_sync_block();
}
static inline void emu_nothing(uint32_t, uint8_t (*)[EMU_LANE_BYTES]) {}
static inline void __syncwarp(uint32_t mask = 0xffffffffu) {
    uint32_t none = 0;
    emu_warp("__syncwarp", mask, &none, sizeof none, emu_nothing);
}
static inline void __threadfence() {}
static inline void __threadfence_system() {}

struct emu_shuffle { /* of one lane: what it brings, and whose it takes */
    uint32_t value, from;
};
static inline void emu_shuffle_all(uint32_t mask, uint8_t (*lane)[EMU_LANE_BYTES]) {
    emu_shuffle all[EMU_WARP];
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(&all[l], lane[l], sizeof all[l]);
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        if (!(mask >> l & 1))
            continue;
        const uint32_t from = all[l].from % EMU_WARP;
        const uint32_t value =
                mask >> from & 1 ? all[from].value : 0xcdcdcdcdu; /* of a lane that is not there */
        memcpy(lane[l], &value, sizeof value);
    }
}
template <class T> static inline T emu_shuffle_of(const char *what, uint32_t mask, T v, uint32_t from) {
    static_assert(sizeof(T) == 4, "shuffles are of 32 bits");
    emu_shuffle own = {0, from};
    memcpy(&own.value, &v, sizeof v);
    emu_warp(what, mask, &own, sizeof own, emu_shuffle_all);
    memcpy(&v, &own.value, sizeof v);
    return v;
}
template <class T> static inline T __shfl_sync(uint32_t mask, T v, int from) {
    return emu_shuffle_of("__shfl_sync", mask, v, (uint32_t)from);
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T v, int x) {
    return emu_shuffle_of("__shfl_xor_sync", mask, v, threadIdx.x % EMU_WARP ^ (uint32_t)x);
}
static inline uint32_t emu_lane() {
    return threadIdx.x % EMU_WARP;
}
/* A lane whose source would be before or behind the warp keeps its own. */
template <class T> static inline T __shfl_up_sync(uint32_t mask, T v, unsigned n) {
    return emu_shuffle_of("__shfl_up_sync", mask, v, emu_lane() >= n ? emu_lane() - n : emu_lane());
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T v, unsigned n) {
    const uint32_t lane = threadIdx.x % EMU_WARP;
    return emu_shuffle_of("__shfl_down_sync", mask, v, lane + n < EMU_WARP ? lane + n : lane);
}

static inline void emu_ballot_all(uint32_t mask, uint8_t (*lane)[EMU_LANE_BYTES]) {
    uint32_t votes = 0, v;
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        memcpy(&v, lane[l], sizeof v);
        votes |= (uint32_t)(mask >> l & 1 && v) << l;
    }
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(lane[l], &votes, sizeof votes);
}
static inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
    uint32_t v = predicate != 0;
    emu_warp("__ballot_sync", mask, &v, sizeof v, emu_ballot_all);
    return v;
}
static inline int __any_sync(uint32_t mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate) {
    return (__ballot_sync(mask, predicate) & mask) == mask;
}
static inline void emu_add_all(uint32_t mask, uint8_t (*lane)[EMU_LANE_BYTES]) {
    uint32_t sum = 0, v;
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        memcpy(&v, lane[l], sizeof v);
        sum += mask >> l & 1 ? v : 0;
    }
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(lane[l], &sum, sizeof sum);
}
static inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v) {
    emu_warp("__reduce_add_sync", mask, &v, sizeof v, emu_add_all);
    return v;
}
static inline void emu_max_all(uint32_t mask, uint8_t (*lane)[EMU_LANE_BYTES]) {
    uint32_t most = 0, v;
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        memcpy(&v, lane[l], sizeof v);
        most = mask >> l & 1 && v > most ? v : most;
    }
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(lane[l], &most, sizeof most);
}
static inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v) {
    emu_warp("__reduce_max_sync", mask, &v, sizeof v, emu_max_all);
    return v;
}

/* --- memory --- */

template <class T> static inline T __ldg(const T *p) {
    return *p;
}
static_assert(sizeof(unsigned long long) == sizeof(uint64_t), "64-bit atomics are of unsigned long long");
template <class T> static inline T emu_put(T *p, T value) {
    const T before = *p;
    *p = value;
    return before;
}
static inline uint32_t atomicAdd(uint32_t *p, uint32_t n) {
    return emu_put(p, *p + n);
}
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long n) {
    return emu_put(p, *p + n);
}
static inline uint32_t atomicMax(uint32_t *p, uint32_t n) {
    return emu_put(p, n > *p ? n : *p);
}
static inline unsigned long long atomicMax(unsigned long long *p, unsigned long long n) {
    return emu_put(p, n > *p ? n : *p);
}
static inline uint32_t atomicMin(uint32_t *p, uint32_t n) {
    return emu_put(p, n < *p ? n : *p);
}
static inline uint32_t atomicOr(uint32_t *p, uint32_t n) {
    return emu_put(p, *p | n);
}
static inline uint32_t atomicExch(uint32_t *p, uint32_t n) {
    return emu_put(p, n);
}
static inline uint32_t atomicCAS(uint32_t *p, uint32_t expected, uint32_t n) {
    return emu_put(p, *p == expected ? n : *p);
}
/* Byte k of the result is byte `selector >> 4 k & 7` of x, then y; with bit 3 its sign, which nobody asks for here. */
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    const uint64_t both = x | (uint64_t)y << 32;
    uint32_t bytes = 0;
    for (uint32_t k = 0; k < 4; k++)
        bytes |= (uint32_t)(both >> (selector >> 4 * k & 7) * 8 & 255) << 8 * k;
    return bytes;
}
static inline int __popc(uint32_t x) {
    return __builtin_popcount(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((uint32_t)x) : 32;
}

template <class K>
static inline cudaError_t cudaFuncSetAttribute(K *kernel, enum cudaFuncAttribute attribute, int value) {
    return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
                   ? emu_set_shared_limit((const void *)kernel, value)
                   : cudaErrorInvalidValue;
}
