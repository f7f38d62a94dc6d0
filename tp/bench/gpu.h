/* gpu.h - what the driver says of the GPUs of this machine, for the report: numbers without power limit, ECC and clocks
 * cannot be compared. */
#pragma once

#include <jansson.h>
#include <stdio.h>

/* All cards that the driver counts, with all their readings, null where there is none: {"driver": "570.86.15", "cuda":
 * "12.8", "cards": [{"index", "name", "place", "power_limit_mw", ...}]}; NULL where there is no driver. library: as
 * nvml_look() takes it. The caller's. */
json_t *bench_gpu(const char *library);
/* What numbers depend on, a line for each kind of card in that object: driver, power limit, highest clocks, ECC; "?"
 * where the driver does not tell. NULL and null print nothing. */
void bench_gpu_print(FILE *out, const json_t *gpu);
/* What changes with the load, of each card: [{"sm_clock_mhz", "memory_clock_mhz", "power_draw_mw", "temperature_c",
 * "clock_reasons"}]. NULL as above. */
json_t *bench_gpu_load(const char *library);
