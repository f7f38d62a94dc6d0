/* launch.cuh - the emulated twin of kernels/cuda/launch.cuh, whose words it keeps. */
#pragma once

#include <cuda_runtime.h>

struct read_once {
    const void *d_from;
    size_t bytes;
};
template <class K, class... A>
static inline cudaError_t emu_launch_of(const char *name, K *kernel, dim3 grid, unsigned threads,
        size_t shared_bytes, cudaStream_t s, A... args) {
    return emu_queue_kernel(s, {name, (const void *)kernel, {grid.x, grid.y, grid.z}, threads, shared_bytes,
                                       [=] { kernel(args...); }});
}
#define K_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                           \
    emu_launch_of(#kernel, kernel, grid, threads, shared_bytes, stream, __VA_ARGS__)
#define K_LAUNCH_ONCE(kernel, once, grid, threads, shared_bytes, stream, ...)                                \
    emu_launch_of(#kernel, kernel, grid, threads, shared_bytes, stream, __VA_ARGS__)
#define K_BLOCKS_TOGETHER 1u /* blocks run one after another */
