/* checkup.h - one run of `shardd doctor`: what was read, and the checks that judge it.
 *
 * doctor.c fills a checkup and calls the checks in this order; each adds findings and changes nothing else, apart from
 * check_programs() and check_model(), which ask the workers. report.c shows the whole. Tests fill one by hand. */
#pragma once

#include "base/limits.h"
#include "base/nvml.h"
#include "launcher/devices.h"
#include "launcher/doctor/findings.h"
#include "launcher/doctor/host.h"
#include "launcher/options/options.h"

#include <jansson.h>
#include <stdio.h>

struct checkup {
    const struct options *options;
    const char *root; /* of host.h */
    uint32_t tp;
    bool cuda;       /* GPUs are what serving would use: --device cuda, or auto and there is a sign of one */
    bool cuda_asked; /* --device cuda */
    struct host host;
    struct nvml nvml;               /* not looked at with --device cpu */
    json_t *cpu_probe, *cuda_probe; /* what the workers answered to --probe; NULL = nothing */
    struct devices ranks;           /* the CUDA worker's device of each; n = 0: not chosen */
    json_t *plan;                   /* what one answered to --plan; NULL = nothing, or no --model */
    struct findings findings;
};

/* Anything that says that an NVIDIA GPU is or should be here. */
bool checkup_sees_gpu(const struct checkup *c);
/* The device of the CUDA worker that rank `rank` would take; NULL = it knows none. */
const json_t *checkup_device(const struct checkup *c, uint32_t rank);
/* Would a rank use the GPU of this index in nvml.gpus? By the CUDA worker's order, or else by NVML's. */
bool checkup_uses(const struct checkup *c, uint32_t gpu);

void check_driver(struct checkup *c);
void check_gpus(struct checkup *c);
void check_machine(struct checkup *c);
void check_programs(struct checkup *c); /* asks the workers what they find: before check_gpus() */
void check_model(struct checkup *c);    /* asks one what the model takes */

bool checkup_would_serve(const struct checkup *c);
void report_text(const struct checkup *c, FILE *out);
int report_json(const struct checkup *c, FILE *out); /* -ENOMEM */
void checkup_done(struct checkup *c);
