/* mark.h - where a stream is, told to the host: between context.c and mark.cu. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* *word = value, in pinned memory of the host. */
cudaError_t queue_mark(cudaStream_t s, uint32_t *word, uint32_t value);

#ifdef __cplusplus
}
#endif
