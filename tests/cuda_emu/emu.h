/* emu.h - the inside of the CUDA emulation: .cu files compiled as host C++ and run on a CPU, one kernel at a time for
 * each thread of the host that waits for one, so that ranks of a process can wait for each other.
 *
 * The threads of a block are fibers of one host thread. Each runs until it waits for others: at __syncthreads(), or
 * where its warp does something together (emu_warp(): shuffles, votes, mma). Blocks run one after another. The order of
 * threads and blocks is a seed's (emu_control.h), so that a missing barrier changes results. Shared memory begins
 * poisoned and ends at a page that cannot be touched, as every device allocation does; device memory is closed to the
 * host between the works of a stream.
 *
 * What it does not find: races between blocks in memory, wrong launch bounds, bank conflicts, time.
 *
 * Included by the files of this folder and by the headers in include/ that .cu files see. fibers.cc runs kernels,
 * runtime.cc is streams and memory, driver.cc memory that processes share. */
#pragma once

#include "tests/cuda_emu/include/cuda_runtime_api.h"

#include <functional>

#define EMU_WARP         32u
#define EMU_THREADS_MAX  1024u
#define EMU_SHARED_MAX   (99u << 10) /* of a block, as on sm_86 */
#define EMU_SHARED_PLAIN (48u << 10) /* without cudaFuncSetAttribute() */
#define EMU_L2_BYTES     (6 << 20)
#define EMU_SMS          2u /* few, so that a grid made for the device goes around several times */
#define EMU_LANE_BYTES   64u
#define EMU_POISON       0xcd /* in memory that nobody has written */

/* Of a thread of the host. Not of a model that needs its place before a program starts: tests open the library. */
#define EMU_THREAD thread_local

struct emu_index {
    uint32_t x, y, z;
};
/* What a kernel knows of where it is; set before a fiber goes on. */
struct emu_place {
    emu_index thread, block, block_dim, grid_dim;
};
extern EMU_THREAD emu_place emu_here;

/* --- what device code calls --- */

void emu_sync_block();
/* Every lane of `mask` comes with `bytes` of its own; when the last is there, fn() works on all of them (lane[l] for l
 * in mask), and each goes on with its own bytes again. Lanes of one meeting must name the same `what`. */
typedef void (*emu_warp_fn)(uint32_t mask, uint8_t (*lane)[EMU_LANE_BYTES]);
void emu_warp(const char *what, uint32_t mask, void *own, size_t bytes, emu_warp_fn fn);
uint8_t *emu_dynamic_shared();
/* cp.async: the bytes are read and written at the wait that covers them, and the target is poisoned until then. */
void emu_copy_async(void *to, const void *from, size_t bytes);
void emu_copy_commit();
void emu_copy_wait(uint32_t groups_left);

/* --- what launches call --- */

struct emu_launch {
    const char *kernel;     /* its name, for people */
    const void *kernel_key; /* as cudaFuncSetAttribute() got it */
    emu_index grid;
    uint32_t threads;
    size_t shared_bytes;
    std::function<void()> body;
};
/* Queues it, as <<<>>> does. */
cudaError_t emu_queue_kernel(cudaStream_t s, const emu_launch &l);
cudaError_t emu_set_shared_limit(const void *kernel_key, int bytes);

/* --- between driver.cc and runtime.cc --- */

/* A number of the environment (emu_control.h). */
uint64_t emu_setting(const char *name, uint64_t preset);
uint64_t emu_bytes_free();
/* Addresses of device memory, whole pages, never used twice; NULL: there are no more. */
uint8_t *emu_addresses(size_t page_bytes);
/* Memory is there now, and kernels cannot touch it until emu_set_access() says how (PROT_...). */
void emu_mapped(uint8_t *p, size_t bytes);
bool emu_unmapped(uint8_t *p);
bool emu_set_access(uint8_t *p, int how);
/* The mapping that *p lies in: its beginning and bytes. */
bool emu_mapping(uint8_t **p, size_t *ret_bytes);
/* Makes the pages of an allocation a file that another process can map, with what is in them. */
bool emu_share(uint8_t *p, int *ret_fd, size_t *ret_page_bytes, size_t *ret_offset);

/* --- between fibers.cc and runtime.cc --- */

/* Runs all blocks; the sentence of a fault, or NULL. */
const char *emu_run_kernel(const emu_launch &l);
/* "byte 12 behind device memory of 300 bytes", or NULL where the address is of no allocation. */
const char *emu_device_address(const void *p);
