/* parallel.h - work of the host on several threads, for what is done at load: packing weights, copying them.
 *
 * Threads are started for one call and end with it; nothing of a step uses this. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Calls fn(arg, i) for every i below n on up to `threads` threads, the calling one included; 0 = all that this process
 * may use. Each takes the next i when it is done with one. */
void parallel_run(uint32_t threads, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg);

#ifdef __cplusplus
}
#endif
