/* slots.h - what happens to slots and pages between steps: arguments of the kernels of slots.cu, and the functions that
 * queue them. Arguments are copied when a kernel is queued. */
#pragma once

#include "kernels/cuda/views.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Header and ids seen of a slot unit, from the slot and back; the unit lies in a stage on the device (units.h). */
struct unit_args {
    struct pool_view p;
    uint32_t slot;
    uint8_t *d_unit;
};
cudaError_t queue_snapshot(cudaStream_t s, const struct unit_args *a);
cudaError_t queue_restore(cudaStream_t s, const struct unit_args *a);

/* The layers of a page: to[layer] = from[layer], on the device or in a page unit. */
struct page_args {
    const uint8_t *from;
    uint8_t *to;
    uint64_t from_stride, to_stride; /* bytes between layers */
    uint64_t bytes;                  /* of one layer; a multiple of 16 */
    uint32_t layers;
};
cudaError_t queue_page(cudaStream_t s, const struct page_args *a);

#ifdef __cplusplus
}
#endif
