/* launch.cuh - how a kernel is queued. tests/cuda_emu has a twin of this header, which queues it in the emulation. */
#pragma once

#include <cuda_runtime.h>

/* Device memory that a kernel reads once: it is the first to leave L2, so that what other kernels use again stays
 * there, their instructions too. bytes 0: none; at most what the device allows, device_size.once_most. */
struct read_once {
    const void *d_from;
    size_t bytes;
};
template <class... P, class... A>
static inline cudaError_t launch_kernel(void (*kernel)(P...), const struct read_once &once, dim3 grid,
        unsigned threads, size_t shared_bytes, cudaStream_t s, A... args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute window = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = s;
    if (once.bytes) {
        window.id = cudaLaunchAttributeAccessPolicyWindow;
        window.val.accessPolicyWindow.base_ptr = (void *)once.d_from;
        window.val.accessPolicyWindow.num_bytes = once.bytes;
        window.val.accessPolicyWindow.hitRatio = 1.0f;
        window.val.accessPolicyWindow.hitProp = cudaAccessPropertyStreaming;
        window.val.accessPolicyWindow.missProp = cudaAccessPropertyStreaming;
        config.attrs = &window;
        config.numAttrs = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, args...);
}
/* Blocks of a kernel, of up to 256 threads and with hardly any shared memory, that have a place at the same time on
 * every device: so many may wait for blocks of a kernel of another device that wait for them. */
#define K_BLOCKS_TOGETHER 64u
/* Both return the launch's cudaError_t. */
#define K_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                           \
    launch_kernel(kernel, read_once{}, grid, threads, shared_bytes, stream, __VA_ARGS__)
#define K_LAUNCH_ONCE(kernel, once, grid, threads, shared_bytes, stream, ...)                                \
    launch_kernel(kernel, once, grid, threads, shared_bytes, stream, __VA_ARGS__)
