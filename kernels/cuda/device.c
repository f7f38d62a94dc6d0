/* device.c - what is on this machine: the driver, and devices with the reasons why one cannot be used.
 *
 * Called by contexts, and by who wants to know before one is made. Looking at a device takes some of its memory until
 * the process ends: the CUDA runtime makes its own context there. */
#include "kernels/cuda/gdn.h"
#include "kernels/cuda/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPABILITY_LEAST 80 /* cp.async, and mma of INT8 in the shapes that ptx.cuh has */

/* --- the driver --- */

/* Why cudaGetDeviceCount() failed, for who can do something about it. */
static int platform_refused(cudaError_t r, const struct k_platform *p, struct error *e) {
    const uint32_t driver = p->driver, runtime = p->runtime;
    if (driver == 0)
        return error_set(e, -ENODEV,
                "no NVIDIA driver is there (libcuda.so.1 is not found, or its module not loaded)");
    if (r == cudaErrorInsufficientDriver)
        return error_set(e, -ENOTSUP,
                "the driver can do CUDA %u.%u and this build needs %u.%u: install a newer driver, or build with a CUDA "
                "toolkit of version %u",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10, driver / 1000);
    if (r == cudaSuccess || r == cudaErrorNoDevice)
        return error_set(e, -ENODEV, "the driver shows no GPU%s",
                getenv("CUDA_VISIBLE_DEVICES") ? " (CUDA_VISIBLE_DEVICES is set)" : "");
    return error_set(e, -EIO, "the driver cannot be used: %s", cudaGetErrorString(r));
}

static int platform_look(struct k_platform *ret, struct error *e) {
    int driver = 0, runtime = 0, n = 0;
    *ret = (struct k_platform){.kind = "cuda"};
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    ret->driver = (uint32_t)driver;
    ret->runtime = (uint32_t)runtime;
    const cudaError_t r = cudaGetDeviceCount(&n);
    cudaGetLastError();
    if (r != cudaSuccess || n == 0)
        return platform_refused(r, ret, e);
    ret->n_devices = (uint32_t)n;
    return 0;
}

/* --- one device --- */

static int device_refused(int device, const struct cudaDeviceProp *p, cudaError_t r, struct error *e) {
    cudaGetLastError();
    switch (r) {
    case cudaErrorNoKernelImageForDevice:
        return error_set(e, -ENOTSUP,
                "device %d (%s): this build has no code for compute capability %d.%d; build it with "
                "-DSHARDD_CUDA_ARCHITECTURES=%d%d",
                device, p->name, p->major, p->minor, p->major, p->minor);
    case cudaErrorDevicesUnavailable:
        return error_set(e, -EBUSY,
                "device %d (%s) is busy: another process has it for itself (nvidia-smi -c shows it)", device,
                p->name);
    case cudaErrorMemoryAllocation:
        return error_set(
                e, -ENOMEM, "device %d (%s) has no memory left for another process", device, p->name);
    default:
        return error_set(e, -EIO, "device %d (%s): %s", device, p->name, cudaGetErrorString(r));
    }
}

int device_open(int device, struct cudaDeviceProp *ret, struct error *e) {
    struct k_platform platform;
    int r = platform_look(&platform, e);
    if (r < 0)
        return r;
    if (device < 0 || (uint32_t)device >= platform.n_devices)
        return error_set(
                e, -ENODEV, "there is no CUDA device %d; this machine shows %u", device, platform.n_devices);
    memset(ret, 0, sizeof *ret);
    cudaError_t made = cudaGetDeviceProperties(ret, device);
    if (made == cudaSuccess && ret->major * 10 + ret->minor < CAPABILITY_LEAST)
        return error_set(e, -ENOTSUP,
                "device %d (%s) has compute capability %d.%d; %d.%d or higher is needed", device, ret->name,
                ret->major, ret->minor, CAPABILITY_LEAST / 10, CAPABILITY_LEAST % 10);
    if (made == cudaSuccess)
        made = cudaSetDevice(device);
    if (made == cudaSuccess)
        made = stream_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = tiles_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = terms_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = terms_tiles_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = bf16_tiles_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = gdn_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = gdn_blocks_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    if (made == cudaSuccess)
        made = attend_prepare((uint32_t)ret->sharedMemPerBlockOptin);
    return made == cudaSuccess ? 0 : device_refused(device, ret, made, e);
}

static void write_place(const struct cudaDeviceProp *p, char *ret, size_t size) {
    snprintf(ret, size, "%08x:%02x:%02x.0", (unsigned)p->pciDomainID, (unsigned)p->pciBusID & 255u,
            (unsigned)p->pciDeviceID & 255u);
}
void k_device_place(uint32_t device, char *ret, size_t size) {
    struct cudaDeviceProp p;
    if (size)
        ret[0] = '\0';
    if (cudaGetDeviceProperties(&p, (int)device) == cudaSuccess)
        write_place(&p, ret, size);
    cudaGetLastError(); /* what is wrong is said by who opens it */
}

/* "GPU-" and 16 bytes in the groups that nvidia-smi writes. */
static void write_uuid(const cudaUUID_t *uuid, char *ret, size_t bytes) {
    size_t n = (size_t)snprintf(ret, bytes, "GPU");
    for (size_t i = 0; i < sizeof uuid->bytes && n < bytes; i++)
        n += (size_t)snprintf(ret + n, bytes - n, "%s%02x",
                i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", (unsigned)uuid->bytes[i] & 255u);
}
static uint64_t peers_of(int device, uint32_t n_devices) {
    uint64_t peers = 0;
    for (uint32_t i = 0; i < n_devices && i < 64; i++) {
        int can = 0;
        if ((int)i != device && cudaDeviceCanAccessPeer(&can, device, (int)i) == cudaSuccess && can)
            peers |= UINT64_C(1) << i;
    }
    cudaGetLastError();
    return peers;
}
/* What can be known of a device that is not opened. */
static void look_at_properties(int device, struct cudaDeviceProp *ret) {
    memset(ret, 0, sizeof *ret);
    cudaGetDeviceProperties(ret, device);
    cudaGetLastError();
}
static void device_describe(int device, uint32_t n_devices, struct k_device *ret) {
    struct cudaDeviceProp p;
    size_t bytes_free = 0, total = 0;
    *ret = (struct k_device){.peers = peers_of(device, n_devices), .refused = ret->refused};
    if (ret->refused.code)
        look_at_properties(device, &p);
    else if (device_open(device, &p, &ret->refused) == 0)
        cudaMemGetInfo(&bytes_free, &total);
    ret->capability = (uint32_t)(p.major * 10 + p.minor);
    ret->units = (uint32_t)p.multiProcessorCount;
    ret->memory_total = p.totalGlobalMem;
    ret->memory_free = bytes_free;
    snprintf(ret->name, sizeof ret->name, "%.*s", (int)sizeof ret->name - 1, p.name);
    write_place(&p, ret->place, sizeof ret->place);
    write_uuid(&p.uuid, ret->uuid, sizeof ret->uuid);
}

int k_devices(struct k_platform *ret, struct k_device *devices, uint32_t max, struct error *e) {
    int r = platform_look(ret, e);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < ret->n_devices && i < max; i++)
        device_describe((int)i, ret->n_devices, &devices[i]);
    return 0;
}
