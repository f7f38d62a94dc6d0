/* driver.cc - the driver API of the CUDA emulation: memory that another process can map. See emu.h and include/cuda.h.
 *
 * An allocation is a memfd, which lives as long as anybody has a descriptor or a mapping of it, also when the process
 * that made it is gone. What may only be read is closed to writing while kernels run. */
#include "tests/cuda_emu/emu.h"
#include "tests/cuda_emu/include/cuda.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GRANULARITY 65536u

static bool whole(size_t bytes) {
    return bytes && bytes % GRANULARITY == 0;
}
/* A handle is a descriptor plus 1, and a bit of those that were imported. */
#define IMPORTED (UINT64_C(1) << 32)
static int fd_of(CUmemGenericAllocationHandle handle) {
    return (int)(handle & (IMPORTED - 1)) - 1;
}
/* How memory of another process is mapped: where devices only seem to reach each other's, what is written gets lost. */
static int kind_of_mapping(bool of_another) {
    return of_another && emu_setting("CUDA_EMU_PEERS", 1) == 2 ? MAP_PRIVATE : MAP_SHARED;
}

static CUresult get_error_string(CUresult r, const char **ret) {
    *ret = r == CUDA_ERROR_OUT_OF_MEMORY   ? "out of memory"
           : r == CUDA_ERROR_NOT_SUPPORTED ? "operation not supported"
           : r == CUDA_SUCCESS             ? "no error"
                                           : "invalid argument";
    return CUDA_SUCCESS;
}
static CUresult get_granularity(size_t *ret, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
    *ret = GRANULARITY;
    return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *ret, size_t bytes, const CUmemAllocationProp *prop,
        unsigned long long) {
    if (!whole(bytes) || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
            prop->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    if (emu_setting("CUDA_EMU_SHARED", 1) == 0)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (bytes > emu_bytes_free())
        return CUDA_ERROR_OUT_OF_MEMORY;
    const int fd = memfd_create("cuda_emu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(p, EMU_POISON, bytes);
    munmap(p, bytes);
    *ret = (CUmemGenericAllocationHandle)fd + 1;
    return CUDA_SUCCESS;
}
static CUresult release(CUmemGenericAllocationHandle handle) {
    return close(fd_of(handle)) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult copy_fd(int fd, int *ret) {
    struct stat st;
    if (fstat(fd, &st) < 0 || !whole((size_t)st.st_size))
        return CUDA_ERROR_INVALID_VALUE;
    *ret = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return *ret < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
static CUresult export_fd(
        void *ret, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType, unsigned long long) {
    return copy_fd(fd_of(handle), (int *)ret);
}
static CUresult import_fd(CUmemGenericAllocationHandle *ret, void *os_handle, CUmemAllocationHandleType) {
    int fd;
    const CUresult r = copy_fd((int)(uintptr_t)os_handle, &fd);
    if (r == CUDA_SUCCESS)
        *ret = ((CUmemGenericAllocationHandle)fd + 1) | IMPORTED;
    return r;
}

static CUresult reserve(CUdeviceptr *ret, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    uint8_t *p = whole(bytes) ? emu_addresses(bytes) : NULL;
    *ret = (CUdeviceptr)p;
    return p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult free_addresses(CUdeviceptr, size_t) {
    return CUDA_SUCCESS; /* none is used twice */
}
static CUresult map(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
        unsigned long long) {
    struct stat st;
    if (offset || fstat(fd_of(handle), &st) < 0 || (size_t)st.st_size != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > emu_bytes_free())
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (mmap((void *)at, bytes, PROT_NONE, kind_of_mapping(handle & IMPORTED) | MAP_FIXED, fd_of(handle),
                0) == MAP_FAILED)
        return CUDA_ERROR_INVALID_VALUE;
    emu_mapped((uint8_t *)at, bytes);
    return CUDA_SUCCESS;
}
static CUresult unmap(CUdeviceptr at, size_t bytes) {
    if (!emu_unmapped((uint8_t *)at))
        return CUDA_ERROR_INVALID_VALUE;
    mmap((void *)at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return CUDA_SUCCESS;
}
static CUresult set_access(CUdeviceptr at, size_t, const CUmemAccessDesc *access, size_t n) {
    const int how = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    return n == 1 && emu_set_access((uint8_t *)at, how) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* --- IPC of the runtime API --- */

/* What is in a cudaIpcMemHandle_t: where another process finds the memory as a file. */
struct ipc_handle {
    pid_t pid;
    int fd;
    size_t page_bytes, offset; /* of the pointer within its pages */
};
static_assert(sizeof(ipc_handle) <= sizeof(cudaIpcMemHandle_t), "a handle has room for it");

extern "C" cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *ret, void *p) {
    ipc_handle h = {};
    if (!emu_setting("CUDA_EMU_PEERS", 1) || !emu_share((uint8_t *)p, &h.fd, &h.page_bytes, &h.offset))
        return cudaErrorNotSupported;
    h.pid = getpid();
    memset(ret, 0, sizeof *ret);
    memcpy(ret, &h, sizeof h);
    return cudaSuccess;
}
extern "C" cudaError_t cudaIpcOpenMemHandle(void **ret, cudaIpcMemHandle_t handle, unsigned) {
    ipc_handle h;
    char path[64];
    memcpy(&h, &handle, sizeof h);
    if (!emu_setting("CUDA_EMU_PEERS", 1) || !emu_setting("CUDA_EMU_IPC", 1) || h.pid == getpid() ||
            h.page_bytes == 0)
        return cudaErrorNotSupported;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)h.pid, h.fd);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t *at = fd < 0 ? NULL : emu_addresses(h.page_bytes);
    const bool mapped =
            at && mmap(at, h.page_bytes, PROT_NONE, kind_of_mapping(true) | MAP_FIXED, fd, 0) != MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (!mapped)
        return cudaErrorInvalidValue;
    emu_mapped(at, h.page_bytes);
    emu_set_access(at, PROT_READ | PROT_WRITE);
    *ret = at + h.offset;
    return cudaSuccess;
}
extern "C" cudaError_t cudaIpcCloseMemHandle(void *p) {
    uint8_t *at = (uint8_t *)p;
    size_t bytes;
    if (!emu_mapping(&at, &bytes) || !emu_unmapped(at))
        return cudaErrorInvalidValue;
    mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **ret, unsigned,
        unsigned long long, enum cudaDriverEntryPointQueryResult *ret_found) {
    static const struct {
        const char *name;
        void *function;
    } known[] = {{"cuGetErrorString", (void *)get_error_string},
            {"cuMemGetAllocationGranularity", (void *)get_granularity}, {"cuMemCreate", (void *)create},
            {"cuMemRelease", (void *)release}, {"cuMemExportToShareableHandle", (void *)export_fd},
            {"cuMemImportFromShareableHandle", (void *)import_fd}, {"cuMemAddressReserve", (void *)reserve},
            {"cuMemAddressFree", (void *)free_addresses}, {"cuMemMap", (void *)map},
            {"cuMemUnmap", (void *)unmap}, {"cuMemSetAccess", (void *)set_access}};
    *ret = NULL;
    for (const auto &k : known)
        if (strcmp(symbol, k.name) == 0)
            *ret = k.function;
    *ret_found = *ret ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
