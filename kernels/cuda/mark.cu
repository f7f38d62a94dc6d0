/* mark.cu - one word to the host, by a kernel, so that a graph may hold it. A node costs what an empty one costs, about
 * 1 us; so there is one for several layers (tp/worker/forward.c), and not one for each operation. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mark.h"

/* one thread; 4 bytes over the bus, which nobody waits for */
__global__ void mark_kernel(volatile uint32_t *word, uint32_t value) {
    *word = value;
}
cudaError_t queue_mark(cudaStream_t s, uint32_t *word, uint32_t value) {
    return K_LAUNCH(mark_kernel, dim3(1), 1, 0, s, (volatile uint32_t *)word, value);
}
