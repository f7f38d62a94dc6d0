/* words.cu - see words.h: a thread a word. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/words.h"

#define WORDS_THREADS 256u

static_assert(sizeof(struct words_args) <= 4096, "what every driver takes as kernel arguments");

__global__ void words_kernel(const struct words_args a) {
    const uint32_t i = blockIdx.x * WORDS_THREADS + threadIdx.x;
    uint32_t begin = 0;
#pragma unroll
    for (uint32_t part = 0; part < WORDS_PARTS; part++) {
        if (i >= begin && i < a.end[part])
            a.d_to[part][i - begin] = a.words[i];
        begin = a.end[part];
    }
}
cudaError_t queue_words(cudaStream_t s, const struct words_args *a) {
    const uint32_t n = a->end[WORDS_PARTS - 1];
    return K_LAUNCH(words_kernel, dim3((n + WORDS_THREADS - 1) / WORDS_THREADS), WORDS_THREADS, 0, s, *a);
}
