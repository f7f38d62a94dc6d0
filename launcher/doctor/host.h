/* host.h - what /proc, /sys and /dev tell of this machine, for `shardd doctor`.
 *
 * Readings only; what they mean is judged in host_checks.c and gpu_checks.c. All paths are below `root`: "" for this
 * machine, a folder for a test. What cannot be read stays zero. Texts come out as printable ASCII. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HOST_GPUS_MAX  64u
#define HOST_NODES_MAX (HOST_GPUS_MAX + 2u)
#define HOST_TEXT_MAX  96u

struct host_gpu {    /* an NVIDIA GPU on the PCI bus, whether or not a driver has it */
    char place[32];  /* "0000:65:00.0" */
    char driver[32]; /* kernel driver bound to it: "nvidia", "nouveau", "vfio-pci"; "" = none */
    int numa_node;   /* -1 = none is told */
};

struct host_node { /* a device file of the driver */
    char path[32]; /* "/dev/nvidia0" */
    bool present;
    int refused; /* errno of opening it for reading and writing, by its permissions; 0 = it may be opened */
    uint32_t mode;
};

struct host {
    struct host_gpu gpus[HOST_GPUS_MAX];
    uint32_t n_gpus;
    char module[HOST_TEXT_MAX];             /* version of the loaded nvidia.ko; "" = it is not loaded */
    struct host_node nodes[HOST_NODES_MAX]; /* nvidiactl, nvidia-uvm, then each nvidiaN that is there */
    uint32_t n_nodes;
    bool modprobe;  /* the setuid nvidia-modprobe, which makes missing nodes when CUDA starts */
    bool wsl;       /* /dev/dxg: Windows has the driver */
    bool container; /* nodes come from outside */

    char cpu[HOST_TEXT_MAX];
    const char *isa;        /* the best that kernels/cpu has a body for: "avx512", "avx2", "plain" */
    uint32_t threads;       /* that this process may use */
    uint32_t threads_total; /* of the machine */
    uint32_t numa_nodes;
    uint64_t memory_total, memory_available;
    uint64_t group_limit, group_used; /* the control group's; limit 0 = none */
    uint64_t huge_pages, huge_page_bytes;
    char transparent[16];         /* transparent huge pages: "always", "madvise", "never"; "" = unknown */
    uint64_t shm_bytes, shm_free; /* /dev/shm; 0 = it is not there */
    uint64_t memlock_bytes;       /* UINT64_MAX = no limit */
};

#define HOST_NODE_CONTROL 0u /* in nodes[] */
#define HOST_NODE_UVM     1u

void host_look(const char *root, struct host *ret);
/* The node of a GPU's minor number; NULL = it is not there. */
const struct host_node *host_gpu_node(const struct host *h, uint64_t minor);
/* The GPU at an address as NVML writes it ("00000000:65:00.0"); NULL = none. */
const struct host_gpu *host_gpu_at(const struct host *h, const char *place);
/* "python3"; "" where it is not told (another user's process, or one outside of this container). */
void host_process_name(const char *root, uint32_t pid, char *name, size_t size);
/* What the machine, or the control group if that is less, has left. */
uint64_t host_memory_left(const struct host *h);
