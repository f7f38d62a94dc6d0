/* launch.cuh - how a kernel is queued. tests/cuda_emu has a twin of this header, which queues it in the emulation. */
#pragma once

#include <cuda_runtime.h>

template <class... P, class... A>
static inline cudaError_t launch_kernel(
        void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared_bytes, cudaStream_t s, A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = s;
    return cudaLaunchKernelEx(&config, kernel, args...);
}
/* Returns the launch's cudaError_t. */
#define K_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                           \
    launch_kernel(kernel, grid, threads, shared_bytes, stream, __VA_ARGS__)
