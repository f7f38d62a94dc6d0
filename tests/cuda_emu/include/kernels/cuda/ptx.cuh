/* ptx.cuh - the emulated twins of kernels/cuda/ptx.cuh, whose comments say what each does: here by the fragment tables
 * of the PTX ISA, element by element. */
#pragma once

#include "base/half.h"

#include <cuda_runtime.h>
#include <sched.h>
#include <time.h>

static inline uint8_t *dynamic_shared() {
    return emu_dynamic_shared();
}

/* --- mma: all lanes' registers as matrices, the product, and back --- */

struct emu_mma { /* of one lane */
    uint32_t a[4], b[2], c[4];
};
static inline void emu_mma_s8_all(uint32_t, uint8_t (*lane)[EMU_LANE_BYTES]) {
    int8_t a[16][32], b[8][32]; /* b: [n][k] */
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        emu_mma m;
        const uint32_t g = l / 4, i = l % 4;
        memcpy(&m, lane[l], sizeof m);
        for (uint32_t r = 0; r < 4; r++) /* a0: row g k 4i; a1: row g + 8; a2: k + 16; a3: both */
            memcpy(&a[g + r % 2 * 8][r / 2 * 16 + i * 4], &m.a[r], 4);
        for (uint32_t r = 0; r < 2; r++)
            memcpy(&b[g][r * 16 + i * 4], &m.b[r], 4);
    }
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        const uint32_t g = l / 4, i = l % 4;
        emu_mma m;
        memcpy(&m, lane[l], sizeof m);
        for (uint32_t e = 0; e < 4; e++) {
            const int8_t *row = a[g + e / 2 * 8], *column = b[2 * i + e % 2];
            int32_t sum = 0;
            for (uint32_t k = 0; k < 32; k++)
                sum += row[k] * column[k];
            m.c[e] += (uint32_t)sum;
        }
        memcpy(lane[l], m.c, sizeof m.c);
    }
}
static inline void mma_s8(int32_t *d, const uint32_t *a, uint32_t b0, uint32_t b1, const int32_t *c) {
    emu_mma m = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {}};
    memcpy(m.c, c, sizeof m.c);
    emu_warp("mma_s8", 0xffffffffu, &m, sizeof m, emu_mma_s8_all);
    memcpy(d, &m, 4 * sizeof *d);
}

static inline void emu_mma_bf16_all(uint32_t, uint8_t (*lane)[EMU_LANE_BYTES]) {
    float a[16][16], b[8][16];
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        emu_mma m;
        const uint32_t g = l / 4, i = l % 4;
        memcpy(&m, lane[l], sizeof m);
        for (uint32_t h = 0; h < 2; h++) {
            for (uint32_t r = 0; r < 4; r++)
                a[g + r % 2 * 8][r / 2 * 8 + i * 2 + h] = float_of_bf16((uint16_t)(m.a[r] >> (16 * h)));
            for (uint32_t r = 0; r < 2; r++)
                b[g][r * 8 + i * 2 + h] = float_of_bf16((uint16_t)(m.b[r] >> (16 * h)));
        }
    }
    for (uint32_t l = 0; l < EMU_WARP; l++) {
        const uint32_t g = l / 4, i = l % 4;
        emu_mma m;
        float c[4];
        memcpy(&m, lane[l], sizeof m);
        memcpy(c, m.c, sizeof c);
        for (uint32_t e = 0; e < 4; e++)
            for (uint32_t k = 0; k < 16; k++)
                c[e] = fmaf(a[g + e / 2 * 8][k], b[2 * i + e % 2][k], c[e]);
        memcpy(lane[l], c, sizeof c);
    }
}
/* The card adds products in an order and with a rounding of its own: equal within rounding only. */
static inline void mma_bf16(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, const float *c) {
    emu_mma m = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {}};
    memcpy(m.c, c, sizeof m.c);
    emu_warp("mma_bf16", 0xffffffffu, &m, sizeof m, emu_mma_bf16_all);
    memcpy(d, &m, 4 * sizeof *d);
}

static inline void emu_ldmatrix_all(uint32_t, uint8_t (*lane)[EMU_LANE_BYTES]) {
    const uint8_t *rows[EMU_WARP]; /* lane 8 m + r brings row r of matrix m */
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(&rows[l], lane[l], sizeof rows[l]);
    for (uint32_t l = 0; l < EMU_WARP; l++)
        for (uint32_t m = 0; m < 4; m++)
            memcpy(lane[l] + 4 * m, rows[8 * m + l / 4] + l % 4 * 4, 4);
}
static inline void ldmatrix_4(uint32_t *d, const void *shared_row) {
    uint8_t own[16];
    memcpy(own, &shared_row, sizeof shared_row);
    emu_warp("ldmatrix_4", 0xffffffffu, own, sizeof own, emu_ldmatrix_all);
    memcpy(d, own, sizeof own);
}

static inline void emu_ldmatrix_transposed_all(uint32_t, uint8_t (*lane)[EMU_LANE_BYTES]) {
    const uint16_t *rows[EMU_WARP];
    for (uint32_t l = 0; l < EMU_WARP; l++)
        memcpy(&rows[l], lane[l], sizeof rows[l]);
    for (uint32_t l = 0; l < EMU_WARP; l++)
        for (uint32_t m = 0; m < 4; m++)
            for (uint32_t h = 0; h < 2; h++)
                memcpy(lane[l] + 4 * m + 2 * h, rows[8 * m + l % 4 * 2 + h] + l / 4, 2);
}
static inline void ldmatrix_4_transposed(uint32_t *d, const void *shared_row) {
    uint8_t own[16];
    memcpy(own, &shared_row, sizeof shared_row);
    emu_warp("ldmatrix_4_transposed", 0xffffffffu, own, sizeof own, emu_ldmatrix_transposed_all);
    memcpy(d, own, sizeof own);
}
static inline uint32_t bf16_pair(float low, float high) {
    return (uint32_t)bf16_of(high) << 16 | bf16_of(low);
}

static inline float f32_of_f16(uint16_t x) {
    return float_of_f16(x);
}
static inline uint16_t f16_of_f32(float x) {
    return f16_of(x);
}

static inline uint16_t emu_bf16_fma(uint32_t a, uint32_t b, uint32_t c) {
    return bf16_of(fmaf(float_of_bf16((uint16_t)a), float_of_bf16((uint16_t)b), float_of_bf16((uint16_t)c)));
}
static inline uint32_t bf16_pair_fma(uint32_t a, uint32_t b, uint32_t c) {
    return (uint32_t)emu_bf16_fma(a >> 16, b >> 16, c >> 16) << 16 | emu_bf16_fma(a, b, c);
}

/* --- copies and loads --- */

static inline void copy_16(void *to_shared, const void *from) {
    emu_copy_async(to_shared, from, 16);
}
static inline void copy_16_once(void *to_shared, const void *from) {
    emu_copy_async(to_shared, from, 16);
}
static inline void copy_commit() {
    emu_copy_commit();
}
template <int N> static inline void copy_wait() {
    emu_copy_wait(N);
}
static inline void ask_for_line(const void *p) {
    (void)p;
}
/* Its twin changes nothing, so it reads: what is not there is found. */
static inline void ask_for_bytes(const uint8_t *p, uint32_t n) {
    volatile uint8_t seen = 0;
    for (uint32_t at = threadIdx.x % 32 * 16; at < n; at += 32 * 16)
        seen = p[at + 15];
    (void)seen;
}
static inline void ask_above() {}
static inline float4 load_of_others(const float4 *p) {
    return *p;
}
template <class T> static inline T load_read_only(const T *p) {
    return *p;
}
template <class T> static inline T load_shared_by_blocks(const T *p) {
    return *p;
}
static inline uint32_t count_by_blocks(uint32_t *d_count) {
    return atomicAdd(d_count, 1u);
}
static inline uint4 load_words(const uint32_t *d_p) {
    return *(const uint4 *)d_p;
}
static inline void store_word(uint32_t *d_p, uint32_t v) {
    *d_p = v;
}

/* --- other devices: other processes --- */

static inline void store_to_peer(uint4 *to, uint4 v) {
    const uint64_t halves[2] = {(uint64_t)v.y << 32 | v.x, (uint64_t)v.w << 32 | v.z};
    for (uint32_t i = 0; i < 2; i++)
        __atomic_store_n((uint64_t *)to + i, halves[i], __ATOMIC_RELEASE);
}
static inline void store_to_peer(uint2 *to, uint2 v) {
    __atomic_store_n((uint64_t *)to, (uint64_t)v.y << 32 | v.x, __ATOMIC_RELEASE);
}
static inline uint4 load_from_peer(const uint4 *from) {
    const uint64_t low = __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE),
                   high = __atomic_load_n((const uint64_t *)from + 1, __ATOMIC_ACQUIRE);
    return {(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)};
}
static inline void signal_peer(uint32_t *to, uint32_t v) {
    __atomic_store_n(to, v, __ATOMIC_RELEASE);
}
static inline uint32_t load_signal(const uint32_t *from) {
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
static inline uint64_t clock_of_device_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static inline void spin_pause() {
    sched_yield();
}
