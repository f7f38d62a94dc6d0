/* host_memory.h - what the machine has left for this process. */
#pragma once

#include <stdint.h>

/* Bytes that are free or can be made so, or what the control group leaves if that is less; 0 = not known. */
uint64_t host_memory_free(void);
