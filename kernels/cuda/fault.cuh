/* fault.cuh - how a kernel tells the host what it found wrong. */
#pragma once

#include "kernels/cuda/views.h"

#include <cuda_runtime.h>

/* The first to come tells; `kind` last, so that a host which sees it sees all. The claim lies on the device, since
 * atomics on host memory are not what every bus can do. */
static __device__ void fault_tell(const struct fault_view &f, enum device_fault_kind kind, uint64_t a,
        uint64_t b, uint64_t c, uint64_t d) {
    if (atomicCAS(f.d_claimed, 0u, 1u) != 0)
        return;
    f.told->a = a;
    f.told->b = b;
    f.told->c = c;
    f.told->d = d;
    __threadfence_system();
    *(volatile uint32_t *)&f.told->kind = kind;
}
