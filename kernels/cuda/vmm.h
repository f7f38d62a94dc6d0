/* vmm.h - device memory that another process can map: a range of addresses, and behind it an allocation of the driver
 * that has a file descriptor. The memory lives as long as anybody has it mapped or holds a descriptor of it, also when
 * the process that made it is gone.
 *
 * Called by kept.c and comm_inbox.c. The driver is asked for its entry points, so that nothing is linked with it. */
#pragma once

#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

struct vmm_memory {
    void *d_p;    /* NULL = there is none */
    size_t bytes; /* whole units of the driver */
};
enum vmm_access { VMM_READ, VMM_WRITE };

/* At least `bytes` of a device, not zeroed, to be written. *ret_fd is the caller's to close. -ENOTSUP: the driver has
 * no such memory; -ENOMEM. */
int vmm_create(const struct k_context *c, size_t bytes, struct vmm_memory *ret, int *ret_fd, struct error *e);
/* The same memory, made with as many bytes, by its descriptor, which stays the caller's. */
int vmm_open(const struct k_context *c, size_t bytes, int fd, enum vmm_access access, struct vmm_memory *ret,
        struct error *e);
/* Once nothing runs that does otherwise. */
int vmm_set_access(
        const struct k_context *c, const struct vmm_memory *m, enum vmm_access access, struct error *e);
/* Another device of this process may write there too; the two reach each other. */
int vmm_allow(const struct k_context *c, const struct vmm_memory *m, int device, struct error *e);
void vmm_close(const struct k_context *c, struct vmm_memory *m); /* NULL memory ok; *m is {0} afterwards */
