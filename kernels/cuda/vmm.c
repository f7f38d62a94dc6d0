/* vmm.c - see vmm.h. "Virtual memory management" of CUDA's driver API; every device of compute capability 8.0 has it on
 * Linux, some virtual GPUs do not. */
#include "kernels/cuda/vmm.h"

#include "kernels/cuda/internal.h"

#include <cuda.h>

#include <errno.h>
#include <unistd.h>

#define DRIVER_VERSION 11000 /* what these functions came with, or before */

struct driver { /* entry points */
    __typeof__(cuGetErrorString) *get_error_string;
    __typeof__(cuMemGetAllocationGranularity) *get_granularity;
    __typeof__(cuMemCreate) *create;
    __typeof__(cuMemRelease) *release;
    __typeof__(cuMemExportToShareableHandle) *export_handle;
    __typeof__(cuMemImportFromShareableHandle) *import_handle;
    __typeof__(cuMemAddressReserve) *reserve;
    __typeof__(cuMemAddressFree) *free_addresses;
    __typeof__(cuMemMap) *map;
    __typeof__(cuMemUnmap) *unmap;
    __typeof__(cuMemSetAccess) *set_access;
};

static bool find(const char *name, void *ret) {
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t r =
            cudaGetDriverEntryPointByVersion(name, (void **)ret, DRIVER_VERSION, cudaEnableDefault, &found);
#elif CUDART_VERSION >= 12000
    const cudaError_t r = cudaGetDriverEntryPoint(name, (void **)ret, cudaEnableDefault, &found);
#else
    const cudaError_t r = cudaGetDriverEntryPoint(name, (void **)ret, cudaEnableDefault);
    found = cudaDriverEntryPointSuccess;
#endif
    cudaGetLastError();
    return r == cudaSuccess && found == cudaDriverEntryPointSuccess && *(void **)ret;
}

/* Makes the device's context the thread's, too, which the driver's functions want. */
static int driver_find(const struct k_context *c, struct driver *d, struct error *e) {
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    if (!find("cuGetErrorString", &d->get_error_string) ||
            !find("cuMemGetAllocationGranularity", &d->get_granularity) || !find("cuMemCreate", &d->create) ||
            !find("cuMemRelease", &d->release) || !find("cuMemExportToShareableHandle", &d->export_handle) ||
            !find("cuMemImportFromShareableHandle", &d->import_handle) ||
            !find("cuMemAddressReserve", &d->reserve) || !find("cuMemAddressFree", &d->free_addresses) ||
            !find("cuMemMap", &d->map) || !find("cuMemUnmap", &d->unmap) ||
            !find("cuMemSetAccess", &d->set_access))
        return error_set(e, -ENOTSUP,
                "device %d: the driver has no memory that processes can share: install a newer one",
                c->device);
    return 0;
}

static int failed(
        const struct k_context *c, const struct driver *d, CUresult r, const char *what, struct error *e) {
    const char *why = NULL;
    if (d->get_error_string(r, &why) != CUDA_SUCCESS || !why)
        why = "unknown error";
    return error_set(e,
            r == CUDA_ERROR_OUT_OF_MEMORY   ? -ENOMEM
            : r == CUDA_ERROR_NOT_SUPPORTED ? -ENOTSUP
                                            : -EIO,
            "device %d: %s: %s", c->device, what, why);
}

static CUmemAllocationProp properties(const struct k_context *c) {
    return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
            .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = c->device}};
}

static int set_access(const struct k_context *c, const struct driver *d, const struct vmm_memory *m,
        int device, enum vmm_access access, struct error *e) {
    const CUmemAccessDesc how = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
            .flags = access == VMM_READ ? CU_MEM_ACCESS_FLAGS_PROT_READ : CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const CUresult r = d->set_access((CUdeviceptr)m->d_p, m->bytes, &how, 1);
    return r == CUDA_SUCCESS ? 0 : failed(c, d, r, "cuMemSetAccess", e);
}

/* *ret = whole units that hold so many bytes. */
static int round_up(
        const struct k_context *c, const struct driver *d, size_t bytes, size_t *ret, struct error *e) {
    const CUmemAllocationProp p = properties(c);
    size_t unit = 0;
    const CUresult r = d->get_granularity(&unit, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (r != CUDA_SUCCESS || unit == 0)
        return failed(c, d, r, "cuMemGetAllocationGranularity", e);
    *ret = (bytes + unit - 1) / unit * unit;
    return 0;
}

/* At addresses of its own; the mapping holds the memory then, and the handle is not needed any more. */
static int map(const struct k_context *c, const struct driver *d, CUmemGenericAllocationHandle handle,
        size_t bytes, enum vmm_access access, struct vmm_memory *ret, struct error *e) {
    CUdeviceptr at = 0;
    CUresult r = d->reserve(&at, bytes, 0, 0, 0);
    if (r != CUDA_SUCCESS)
        return failed(c, d, r, "cuMemAddressReserve", e);
    r = d->map(at, bytes, 0, handle, 0);
    if (r != CUDA_SUCCESS) {
        d->free_addresses(at, bytes);
        return failed(c, d, r, "cuMemMap", e);
    }
    *ret = (struct vmm_memory){.d_p = (void *)at, .bytes = bytes};
    const int failure = set_access(c, d, ret, c->device, access, e);
    if (failure < 0)
        vmm_close(c, ret);
    return failure;
}

int vmm_create(
        const struct k_context *c, size_t bytes, struct vmm_memory *ret, int *ret_fd, struct error *e) {
    const CUmemAllocationProp p = properties(c);
    CUmemGenericAllocationHandle handle;
    struct driver d;
    int fd = -1, rc = driver_find(c, &d, e);
    if (rc == 0)
        rc = round_up(c, &d, bytes, &bytes, e);
    if (rc < 0)
        return rc;
    CUresult r = d.create(&handle, bytes, &p, 0);
    if (r != CUDA_SUCCESS)
        return failed(c, &d, r, "cuMemCreate", e);
    r = d.export_handle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    rc = r != CUDA_SUCCESS ? failed(c, &d, r, "cuMemExportToShareableHandle", e)
                           : map(c, &d, handle, bytes, VMM_WRITE, ret, e);
    d.release(handle);
    if (rc == 0)
        *ret_fd = fd;
    else if (fd >= 0)
        close(fd);
    return rc;
}

int vmm_open(const struct k_context *c, size_t bytes, int fd, enum vmm_access access, struct vmm_memory *ret,
        struct error *e) {
    CUmemGenericAllocationHandle handle;
    struct driver d;
    int rc = driver_find(c, &d, e);
    if (rc == 0)
        rc = round_up(c, &d, bytes, &bytes, e);
    if (rc < 0)
        return rc;
    const CUresult r =
            d.import_handle(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    if (r != CUDA_SUCCESS)
        return failed(c, &d, r, "cuMemImportFromShareableHandle", e);
    rc = map(c, &d, handle, bytes, access, ret, e);
    d.release(handle);
    return rc;
}

int vmm_set_access(
        const struct k_context *c, const struct vmm_memory *m, enum vmm_access access, struct error *e) {
    struct driver d;
    int r = driver_find(c, &d, e);
    return r < 0 ? r : set_access(c, &d, m, c->device, access, e);
}

int vmm_allow(const struct k_context *c, const struct vmm_memory *m, int device, struct error *e) {
    struct driver d;
    int r = driver_find(c, &d, e);
    return r < 0 ? r : set_access(c, &d, m, device, VMM_WRITE, e);
}

void vmm_close(const struct k_context *c, struct vmm_memory *m) {
    struct driver d;
    if (m->d_p && driver_find(c, &d, NULL) == 0) {
        d.unmap((CUdeviceptr)m->d_p, m->bytes);
        d.free_addresses((CUdeviceptr)m->d_p, m->bytes);
    }
    *m = (struct vmm_memory){0};
}
