/* host_memory.h - what the machine has left for this process. */
#pragma once

#include <stdint.h>

/* `root` is "", or the folder whose proc and sys are looked at instead of the machine's. */

/* Bytes that are free or can be made so, or what the control group leaves if that is less; 0 = not known. */
uint64_t host_memory_free(const char *root);
/* The limit of the control group (a container's, a unit's; 0 = none) and what counts against it, without the cache of
 * files that the kernel drops first: copying or packing a checkpoint leaves gigabytes of that. */
void host_memory_group(const char *root, uint64_t *ret_limit, uint64_t *ret_used);
