/* self_test.h - kernels that try the emulation itself, and kernels/cuda/ptx.cuh where there is a card: each is queued
 * on the stream with device arrays of the caller. Called by tests/unit/cuda_emu. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = sum over the block of in, by a tree in shared memory; threads a power of two. barriers = 0: without any. */
cudaError_t try_block_sum(cudaStream_t s, uint32_t blocks, uint32_t threads, uint32_t barriers,
        const uint32_t *d_in, uint32_t *d_out);
/* out[t] = sum over n rounds of what the other warp's thread wrote in the round; buffers = 1 reuses one buffer with one
 * barrier a round, which is a race, 2 takes turns. Two warps. */
cudaError_t try_exchange(cudaStream_t s, uint32_t n, uint32_t buffers, uint32_t *d_out);
/* A warp: out[0][lane] = xor shuffle by 5, [1] = lane 9's, [2] = down by 3, [3] = ballot of odd ones, [4] = highest,
 * [5] = bytes 0 and 2 of in, then 1 and 3 of its complement. */
cudaError_t try_warp(cudaStream_t s, const uint32_t *d_in, uint32_t *d_out);
/* out[16][8] = a[16][32] b[8][32]^T + c[16][8], plain row-major arrays. */
cudaError_t try_mma_s8(
        cudaStream_t s, const int8_t *d_a, const int8_t *d_b, const int32_t *d_c, int32_t *d_out);
/* out[16][8] = a[16][16] b[8][16]^T + c[16][8]; a goes through shared memory and ldmatrix. */
cudaError_t try_mma_bf16(
        cudaStream_t s, const uint16_t *d_a, const uint16_t *d_b, const float *d_c, float *d_out);
/* The same of b[16][8], which goes through shared memory and transposed; a and b are floats that are rounded. */
cudaError_t try_mma_bf16_rounded(
        cudaStream_t s, const float *d_a, const float *d_b, const float *d_c, float *d_out);
/* A warp: out[lane] = a b + c of pairs of bf16. */
cudaError_t try_bf16_pairs(cudaStream_t s, const uint32_t *d_a, uint32_t b, uint32_t c, uint32_t *d_out);
cudaError_t try_f16(cudaStream_t s, const float *d_in, uint16_t *d_bits, float *d_out);
/* out[i] = in[i] through a ring of two slots of 512 bytes in shared memory, n runs of 128 words. waits = 0 reads before
 * the copies have come; early = 1 fills a slot again before it was read. */
cudaError_t try_copies(
        cudaStream_t s, uint32_t n, uint32_t waits, uint32_t early, const uint32_t *d_in, uint32_t *d_out);
/* Thread 0 writes (write = 1) or reads word `at` of dynamic shared memory of `bytes`. */
cudaError_t try_shared_access(cudaStream_t s, uint32_t bytes, uint32_t at, uint32_t write, uint32_t *d_out);
/* Writes word `at` of d_out. */
cudaError_t try_device_access(cudaStream_t s, uint32_t at, uint32_t *d_out);
/* Half of the block goes to the barrier, the other half waits for lanes that do not come. */
cudaError_t try_deadlock(cudaStream_t s);
/* out[0] += 1 */
cudaError_t try_add_one(cudaStream_t s, uint32_t *d_out);

#ifdef __cplusplus
}
#endif
