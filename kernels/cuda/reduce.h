/* reduce.h - sums of rows over ranks on the device: between the host code of this folder (C) and reduce.cu. */
#pragma once

#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* x[rows][columns] += part, of the plan's rows */
struct add_args {
    const struct k_plan *d_plan;
    const float *d_part;
    float *d_x;
    uint32_t columns;
};
cudaError_t queue_add(cudaStream_t s, const struct add_args *a, uint32_t rows_bound);

#ifdef __cplusplus
}
#endif
