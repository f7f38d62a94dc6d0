/* self_test.cu - see self_test.h. Compiled by nvcc as well, so that the wrappers of ptx.cuh can be tried on a card. */
#include "tests/cuda_emu/self_test.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

__global__ void block_sum_kernel(uint32_t barriers, const uint32_t *d_in, uint32_t *d_out) {
    uint32_t *shared = (uint32_t *)dynamic_shared();
    const uint32_t i = threadIdx.x;
    shared[i] = d_in[blockIdx.x * blockDim.x + i];
    for (uint32_t n = blockDim.x / 2; n > 0; n /= 2) {
        if (barriers)
            __syncthreads();
        if (i < n)
            shared[i] += shared[i + n];
    }
    if (barriers)
        __syncthreads();
    d_out[blockIdx.x * blockDim.x + i] = shared[0];
}
cudaError_t try_block_sum(cudaStream_t s, uint32_t blocks, uint32_t threads, uint32_t barriers,
        const uint32_t *d_in, uint32_t *d_out) {
    return K_LAUNCH(block_sum_kernel, blocks, threads, threads * 4, s, barriers, d_in, d_out);
}

__global__ void exchange_kernel(uint32_t n, uint32_t buffers, uint32_t *d_out) {
    uint32_t *shared = (uint32_t *)dynamic_shared(), sum = 0; /* [buffers][64] */
    for (uint32_t round = 0; round < n; round++) {
        uint32_t *buffer = shared + round % buffers * 64;
        buffer[threadIdx.x] = round * 64 + threadIdx.x;
        __syncthreads();
        sum += buffer[threadIdx.x ^ 32];
        __syncwarp();
    }
    d_out[threadIdx.x] = sum;
}
cudaError_t try_exchange(cudaStream_t s, uint32_t n, uint32_t buffers, uint32_t *d_out) {
    return K_LAUNCH(exchange_kernel, 1, 64, buffers * 256, s, n, buffers, d_out);
}

__global__ void warp_kernel(const uint32_t *d_in, uint32_t *d_out) {
    const uint32_t lane = threadIdx.x, v = d_in[lane];
    d_out[lane] = __shfl_xor_sync(0xffffffffu, v, 5);
    d_out[32 + lane] = __shfl_sync(0xffffffffu, v, 9);
    d_out[64 + lane] = __shfl_down_sync(0xffffffffu, v, 3);
    d_out[96 + lane] = __ballot_sync(0xffffffffu, v & 1);
    d_out[128 + lane] = __reduce_max_sync(0xffffffffu, v);
    d_out[160 + lane] = __byte_perm(v, ~v, 0x7520);
}
cudaError_t try_warp(cudaStream_t s, const uint32_t *d_in, uint32_t *d_out) {
    return K_LAUNCH(warp_kernel, 1, 32, 0, s, d_in, d_out);
}

__global__ void mma_s8_kernel(const int8_t *d_a, const int8_t *d_b, const int32_t *d_c, int32_t *d_out) {
    const uint32_t g = threadIdx.x / 4, i = threadIdx.x % 4;
    uint32_t a[4], b[2];
    int32_t c[4];
    for (uint32_t r = 0; r < 4; r++)
        a[r] = *(const uint32_t *)(d_a + (g + r % 2 * 8) * 32 + r / 2 * 16 + i * 4);
    for (uint32_t r = 0; r < 2; r++)
        b[r] = *(const uint32_t *)(d_b + g * 32 + r * 16 + i * 4);
    for (uint32_t e = 0; e < 4; e++)
        c[e] = d_c[(g + e / 2 * 8) * 8 + 2 * i + e % 2];
    mma_s8(c, a, b[0], b[1], c);
    for (uint32_t e = 0; e < 4; e++)
        d_out[(g + e / 2 * 8) * 8 + 2 * i + e % 2] = c[e];
}
cudaError_t try_mma_s8(
        cudaStream_t s, const int8_t *d_a, const int8_t *d_b, const int32_t *d_c, int32_t *d_out) {
    return K_LAUNCH(mma_s8_kernel, 1, 32, 0, s, d_a, d_b, d_c, d_out);
}

__global__ void mma_bf16_kernel(const uint16_t *d_a, const uint16_t *d_b, const float *d_c, float *d_out) {
    const uint32_t lane = threadIdx.x, g = lane / 4, i = lane % 4;
    uint16_t *shared = (uint16_t *)dynamic_shared(); /* [16][16] */
    uint32_t a[4], b[2];
    float c[4];
    for (uint32_t k = lane; k < 256; k += 32)
        shared[k] = d_a[k];
    __syncwarp();
    /* matrices: rows 0..7 k 0..7, rows 8..15 k 0..7, rows 0..7 k 8..15, rows 8..15 k 8..15 */
    ldmatrix_4(a, shared + (lane % 16) * 16 + lane / 16 * 8);
    for (uint32_t r = 0; r < 2; r++)
        b[r] = *(const uint32_t *)(d_b + g * 16 + r * 8 + i * 2);
    for (uint32_t e = 0; e < 4; e++)
        c[e] = d_c[(g + e / 2 * 8) * 8 + 2 * i + e % 2];
    mma_bf16(c, a, b[0], b[1], c);
    for (uint32_t e = 0; e < 4; e++)
        d_out[(g + e / 2 * 8) * 8 + 2 * i + e % 2] = c[e];
}
cudaError_t try_mma_bf16(
        cudaStream_t s, const uint16_t *d_a, const uint16_t *d_b, const float *d_c, float *d_out) {
    return K_LAUNCH(mma_bf16_kernel, 1, 32, 512, s, d_a, d_b, d_c, d_out);
}

__global__ void mma_bf16_rounded_kernel(const float *d_a, const float *d_b, const float *d_c, float *d_out) {
    const uint32_t lane = threadIdx.x, g = lane / 4, i = lane % 4;
    uint32_t *shared = (uint32_t *)dynamic_shared(); /* pairs: a[16][16], then b[16][8] twice, side by side */
    uint32_t a[4], b[4];
    float c[4];
    for (uint32_t k = lane; k < 128; k += 32) {
        shared[k] = bf16_pair(d_a[2 * k], d_a[2 * k + 1]);
        const uint32_t at = k / 8 * 8 + k % 4 * 2;
        shared[128 + k] = bf16_pair(d_b[at], d_b[at + 1]);
    }
    __syncwarp();
    ldmatrix_4(a, shared + (lane % 16) * 8 + lane / 16 * 4);
    /* matrices: rows 0..7 and 8..15 of the first b, the same of the second */
    ldmatrix_4_transposed(b, shared + 128 + (lane % 16) * 8 + lane / 16 * 4);
    for (uint32_t e = 0; e < 4; e++)
        c[e] = d_c[(g + e / 2 * 8) * 8 + 2 * i + e % 2];
    mma_bf16(c, a, b[0], b[3], c);
    for (uint32_t e = 0; e < 4; e++)
        d_out[(g + e / 2 * 8) * 8 + 2 * i + e % 2] = c[e];
}
cudaError_t try_mma_bf16_rounded(
        cudaStream_t s, const float *d_a, const float *d_b, const float *d_c, float *d_out) {
    return K_LAUNCH(mma_bf16_rounded_kernel, 1, 32, 1024, s, d_a, d_b, d_c, d_out);
}

__global__ void bf16_pairs_kernel(const uint32_t *d_a, uint32_t b, uint32_t c, uint32_t *d_out) {
    d_out[threadIdx.x] = bf16_pair_fma(d_a[threadIdx.x], b, c);
}
cudaError_t try_bf16_pairs(cudaStream_t s, const uint32_t *d_a, uint32_t b, uint32_t c, uint32_t *d_out) {
    return K_LAUNCH(bf16_pairs_kernel, 1, 32, 0, s, d_a, b, c, d_out);
}

__global__ void f16_kernel(const float *d_in, uint16_t *d_bits, float *d_out) {
    d_bits[threadIdx.x] = f16_of_f32(d_in[threadIdx.x]);
    d_out[threadIdx.x] = f32_of_f16(d_bits[threadIdx.x]);
}
cudaError_t try_f16(cudaStream_t s, const float *d_in, uint16_t *d_bits, float *d_out) {
    return K_LAUNCH(f16_kernel, 1, 32, 0, s, d_in, d_bits, d_out);
}

/* A lane copies and reads the same 16 bytes of a slot, so no barrier is needed: only the waits. */
__global__ void copies_kernel(
        uint32_t n, uint32_t waits, uint32_t early, const uint32_t *d_in, uint32_t *d_out) {
    const uint32_t lane = threadIdx.x;
    uint4 *ring = (uint4 *)dynamic_shared();
    copy_16(&ring[lane], (const uint4 *)d_in + lane);
    copy_commit();
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t next = early ? t % 2 : (t + 1) % 2;
        if (t + 1 < n)
            copy_16(&ring[next * 32 + lane], (const uint4 *)d_in + (t + 1) * 32 + lane);
        copy_commit();
        if (waits)
            copy_wait<1>();
        ((uint4 *)d_out)[t * 32 + lane] = ring[t % 2 * 32 + lane];
    }
}
cudaError_t try_copies(
        cudaStream_t s, uint32_t n, uint32_t waits, uint32_t early, const uint32_t *d_in, uint32_t *d_out) {
    return K_LAUNCH(copies_kernel, 1, 32, 1024, s, n, waits, early, d_in, d_out);
}

__global__ void shared_access_kernel(uint32_t at, uint32_t write, uint32_t *d_out) {
    volatile uint32_t *shared = (volatile uint32_t *)dynamic_shared();
    if (threadIdx.x != 0)
        return;
    if (write)
        shared[at] = 1;
    else
        d_out[0] = shared[at];
}
cudaError_t try_shared_access(cudaStream_t s, uint32_t bytes, uint32_t at, uint32_t write, uint32_t *d_out) {
    return K_LAUNCH(shared_access_kernel, 1, 32, bytes, s, at, write, d_out);
}
__global__ void device_access_kernel(uint32_t at, uint32_t *d_out) {
    if (threadIdx.x == 0)
        ((volatile uint32_t *)d_out)[at] = 1;
}
cudaError_t try_device_access(cudaStream_t s, uint32_t at, uint32_t *d_out) {
    return K_LAUNCH(device_access_kernel, 1, 32, 0, s, at, d_out);
}

__global__ void deadlock_kernel(uint32_t half) {
    if (threadIdx.x % 32 < half)
        __syncthreads();
    else
        __syncwarp();
}
cudaError_t try_deadlock(cudaStream_t s) {
    return K_LAUNCH(deadlock_kernel, 1, 64, 0, s, 16u);
}

__global__ void add_one_kernel(uint32_t *d_out) {
    if (threadIdx.x == 0)
        d_out[0] += 1;
}
cudaError_t try_add_one(cudaStream_t s, uint32_t *d_out) {
    return K_LAUNCH(add_one_kernel, 1, 1, 0, s, d_out);
}
