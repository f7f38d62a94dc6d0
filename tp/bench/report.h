/* report.h - what `bench` tells: a table for people as the tests come, and JSON of everything for programs.
 *
 * One object:
 *
 *   version, kernels ("cpu avx512, 2 threads"), host (its processor), model (its folder), tensor_parallel_size,
 *   threads, rows_max, kv_pages, kv_dtype, state_dtype
 *   weights       form of the layers and of the head where flags asked for one, bytes of all ranks
 *   cost          bytes and multiply-adds of cost.h
 *   gpu           of gpu.h: power limit, ECC, clocks and so on before the tests; null on a CPU or without a driver
 *   mtp           every step runs the MTP layer
 *   tests         kind, tokens, depth, batch, drafts, steps, and skipped (why), or
 *                 tokens_per_second {mean, deviation, samples}, step_ms, memory_bytes_per_second; prompts:
 *                 flops_per_second; with drafts: acceptance, tokens_per_round of a sequence, and against the test of
 *                 the same depth and batch without drafts, where there is one, round_of_plain (time of a step) and
 *                 speed_up (tokens/s); decoding: bytes_per_step, bytes_per_token, bytes_per_second, part_of_memory;
 *                 host_us and host_mean_us of a step and graph_nodes of run.h, null on a CPU;
 *                 gpu_load of gpu.h, right after the test; null as above */
#pragma once

#include "tp/bench/run.h"

#include <jansson.h>
#include <stdio.h>

struct report {
    const struct bench_options *options;
    const struct group *group;
    struct bench_cost cost;
    FILE *table;
    struct {
        uint32_t depth, batch; /* of the last test of steps without drafts; batch 0: there was none */
        double step_ms, rate;
    } plain;
    json_t *gpu;  /* of gpu.h; NULL = nothing is known; owned */
    json_t *root; /* the object; owned; NULL = out of memory */
};

void report_begin(struct report *r);
/* gpu_load: of gpu.h; taken over; may be NULL. */
void report_test(struct report *r, const struct bench_test *t, json_t *gpu_load);
int report_write(const struct report *r, const char *path, struct error *e); /* "-" = stdout */
void report_done(struct report *r);
