/* emu_control.h - what a test may tell the CUDA emulation (emu.h). C. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The order in which threads and blocks run from now on: 0 = ascending, another seed = a permutation that changes at
 * every barrier; even: threads take turns, odd: a warp runs ahead of the others as far as it can. At first it is the
 * environment's CUDA_EMU_SEED, or 0. */
void emu_seed(uint64_t seed);
/* Of the streams that are made from now on, number i runs what is queued on it at once, as far ahead of the others as
 * events let it, where bit i is set; all others run it when somebody waits. */
void emu_eager(uint32_t streams);
/* The machine, by the environment of the process: CUDA_EMU_DEVICES=N (2; 0 = the driver shows none), CUDA_EMU_DRIVER=N
 * (13000: what CUDA it can do; 0 = there is none), CUDA_EMU_CAPABILITY=N (86; no code is there for 80),
 * CUDA_EMU_BYTES=N of memory (8 GiB), CUDA_EMU_SHARED=0: none that another process can map
 * by a descriptor, CUDA_EMU_IPC=0: nor by CUDA IPC, as between containers;
 * CUDA_EMU_PINNED=N: so many bytes of the host can be pinned in one piece, and those that are there already in all;
 * CUDA_EMU_PEERS=0: devices do not reach each other's, 2: they seem to, and what they write there gets lost;
 * CUDA_EMU_BUS=N (1: PCI bus of device 0; device 1 is on the next), CUDA_EMU_NO_NCCL=1: there is no NCCL. Where
 * CUDA_EMU_HANG names a file with a number, devices do so many works more and then stand still while it is there. Where
 * CUDA_EMU_FAULT names one, the first process to find it loses its device, and with CUDA_EMU_NCCL_FAULT its NCCL: the
 * file is gone then. */

/* Kernels and copies that ran so far. */
uint64_t emu_works(void);

/* For the emulation itself: whether a file that the environment names is there, which is gone then. */
bool emu_breaks(const char *name);

#ifdef __cplusplus
}
#endif
