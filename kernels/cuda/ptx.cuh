/* ptx.cuh - every instruction that CUDA C++ has no word for, as a small function, and nothing else.
 *
 * tests/cuda_emu has a twin of this header, so that kernels also run on a CPU: what is added here is added there, with
 * a test in tests/unit/cuda_emu. All of them exist on sm_80 and later. Lane l of a warp has g = l / 4 and i = l % 4. */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

/* Dynamic shared memory, at a multiple of 128 bytes. */
extern __shared__ __align__(128) uint8_t dynamic_shared_bytes[];
static __device__ __forceinline__ uint8_t *dynamic_shared() {
    return dynamic_shared_bytes;
}
static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* --- tensor cores --- */

/* d = a b + c of 16 x 32 and 32 x 8 signed bytes. a: row g k 4i.., row g + 8 k 4i.., row g k 16 + 4i.., row g + 8 the
 * same; b: column g, k 4i.. and 16 + 4i..; c, d: row g columns 2i and 2i + 1, row g + 8 the same. */
static __device__ __forceinline__ void mma_s8(
        int32_t *d, const uint32_t *a, uint32_t b0, uint32_t b1, const int32_t *c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]),
            "r"(c[3]));
}

/* d = a b + c of 16 x 16 and 16 x 8 bf16 pairs, fp32 sums. a: row g k 2i.., row g + 8, row g k 8 + 2i.., row g + 8; b:
 * column g, k 2i.. and 8 + 2i..; c, d as above. */
static __device__ __forceinline__ void mma_bf16(
        float *d, const uint32_t *a, uint32_t b0, uint32_t b1, const float *c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
            "f"(c[3]));
}

/* Four 8 x 8 matrices of 16 bits: lane 8 m + r brings the address of the 16 bytes of row r of matrix m; d[m] is row g,
 * elements 2i and 2i + 1. */
static __device__ __forceinline__ void ldmatrix_4(uint32_t *d, const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* The same, each matrix transposed: d[m] is column g, rows 2i and 2i + 1. */
static __device__ __forceinline__ void ldmatrix_4_transposed(uint32_t *d, const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* Two floats rounded to bf16, to nearest even: low in the low half. */
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

/* An fp16 as fp32, and an fp32 rounded to fp16, to nearest even. */
static __device__ __forceinline__ float f32_of_f16(uint16_t x) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
    return d;
}
static __device__ __forceinline__ uint16_t f16_of_f32(float x) {
    uint16_t d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
}

/* a b + c of pairs of bf16, where that is a bf16. */
static __device__ __forceinline__ uint32_t bf16_pair_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* --- copies and loads --- */

/* 16 bytes to shared memory without waiting, past L1. */
static __device__ __forceinline__ void copy_16(void *to_shared, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)), "l"(from)
                 : "memory");
}
/* The same of bytes that are used once: the first to leave L2. */
static __device__ __forceinline__ void copy_16_once(void *to_shared, const void *from) {
#if __CUDA_ARCH__ >= 900
    /* ptxas 13.0 makes an illegal instruction of the hint where the target is a register plus a uniform one. */
    copy_16(to_shared, from);
#else
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
            "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
            "l"(from), "l"(policy)
            : "memory");
#endif
}
/* Ends a group of this thread's copies; waits until at most N of its groups, the last ones, are on their way. */
static __device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> static __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* The 128 bytes around p are to be in L2 when they are loaded. */
static __device__ __forceinline__ void ask_for_line(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
}

/* The same of n bytes from p on, both multiples of 16; by a warp. */
static __device__ __forceinline__ void ask_for_bytes(const uint8_t *p, uint32_t n) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(n)
                     : "memory");
#else
    for (uint32_t at = threadIdx.x % 32 * 128; at < n; at += 32 * 128)
        ask_for_line(p + at);
#endif
}

/* Loads above it are asked for even where a branch below it does not need them. */
static __device__ __forceinline__ void ask_above() {
    asm volatile("" ::: "memory");
}

/* Of memory that another block has written in this kernel: past L1. */
static __device__ __forceinline__ float4 load_of_others(const float4 *p) {
    return __ldcg(p);
}

/* Of memory that nobody writes while the kernel runs. */
template <class T> static __device__ __forceinline__ T load_read_only(const T *p) {
    return __ldg(p);
}
/* Of memory that other blocks of the same kernel have written: past L1, which may hold what was there before. */
template <class T> static __device__ __forceinline__ T load_shared_by_blocks(const T *p) {
    return __ldcg(p);
}
/* Counts one up, and returns what was counted before: all that blocks had written before they counted is seen. */
static __device__ __forceinline__ uint32_t count_by_blocks(uint32_t *d_count) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(d_count))
                 : "memory");
    return before;
}
/* Words that other blocks load or store meanwhile: each by itself is old or new, in no order with others. */
static __device__ __forceinline__ uint4 load_words(const uint32_t *d_p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(d_p))
                 : "memory");
    return v;
}
static __device__ __forceinline__ void store_word(uint32_t *d_p, uint32_t v) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(d_p)), "r"(v)
                 : "memory");
}

/* --- other devices --- */

/* 16 bytes into memory of another device or of the host: each half comes as a whole. */
static __device__ __forceinline__ void store_to_peer(uint4 *to, uint4 v) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}
/* Half of that. */
static __device__ __forceinline__ void store_to_peer(uint2 *to, uint2 v) {
    asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}
/* What another device may be writing. */
static __device__ __forceinline__ uint4 load_from_peer(const uint4 *from) {
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
/* A word that another device waits for: who finds it there finds all that this thread, and those of its block that it
 * has met at a barrier, had written before. */
static __device__ __forceinline__ void signal_peer(uint32_t *to, uint32_t v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
static __device__ __forceinline__ uint32_t load_signal(const uint32_t *from) {
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
static __device__ __forceinline__ uint64_t clock_of_device_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}
/* Where a thread looks again and again. */
static __device__ __forceinline__ void spin_pause() {}
