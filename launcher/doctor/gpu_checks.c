/* gpu_checks.c - each GPU: would it serve, at full speed, with all of its memory? */
#include "launcher/doctor/checkup.h"

#include "base/sizes.h"

#include <inttypes.h>
#include <string.h>

/* kernels/cuda needs cp.async and mma of INT8; a build may have code for fewer cards, which its worker says. */
#define CAPABILITY_LEAST 80u

struct gpu_check { /* what the checks of one GPU share */
    struct checkup *c;
    struct findings *f;
    const struct nvml_gpu *g;
    uint32_t index;
    char where[24];
    bool used; /* a rank would take it: what is wrong with another one keeps nobody from serving */
};

static enum finding_level problem(const struct gpu_check *k) {
    return k->used ? FOUND_PROBLEM : FOUND_WARNING;
}

static bool known(const struct gpu_check *k, enum nvml_reading r) {
    return nvml_known(k->g, r);
}

static uint64_t value(const struct gpu_check *k, enum nvml_reading r) {
    return k->g->readings[r].value;
}

/* --- what it is --- */

static void check_identity(struct gpu_check *k) {
    const struct host_gpu *at = host_gpu_at(&k->c->host, k->g->place);
    char numa[48] = "";
    if (at && at->numa_node >= 0 && k->c->host.numa_nodes > 1)
        snprintf(numa, sizeof(numa), ", NUMA node %d", at->numa_node);
    found(k->f, k->where, "gpu.name", FOUND_OK, "%s at %s%s%s",
            k->g->name[0] ? k->g->name : "a GPU without a name",
            k->g->place[0] ? k->g->place : "an unknown place", numa,
            k->used ? "" : "; no rank would take it");
}

static void check_capability(struct gpu_check *k) {
    const uint64_t capability = value(k, NVML_CAPABILITY);
    if (!known(k, NVML_CAPABILITY))
        return;
    if (capability >= CAPABILITY_LEAST) {
        found(k->f, k->where, "gpu.capability", FOUND_OK, "compute capability %" PRIu64 ".%" PRIu64,
                capability / 10, capability % 10);
        return;
    }
    found(k->f, k->where, "gpu.capability", problem(k),
            "compute capability %" PRIu64 ".%" PRIu64 " is too old: %u.%u or newer is needed",
            capability / 10, capability % 10, CAPABILITY_LEAST / 10, CAPABILITY_LEAST % 10);
    advise(k->f, "Take another GPU (CUDA_VISIBLE_DEVICES chooses), or --device cpu.");
}

static void check_node(struct gpu_check *k) {
    if (!known(k, NVML_MINOR) || k->c->host.wsl || host_gpu_node(&k->c->host, value(k, NVML_MINOR)))
        return;
    found(k->f, k->where, "gpu.device", k->c->host.modprobe ? FOUND_NOTE : problem(k),
            "/dev/nvidia%" PRIu64 " is missing%s", value(k, NVML_MINOR),
            k->c->host.modprobe ? "; nvidia-modprobe makes it when CUDA starts" : "");
    if (!k->c->host.modprobe)
        advise(k->f, k->c->host.container ? "Start the container with this GPU (docker run --gpus all)."
                                          : "Run `sudo nvidia-smi` once, which makes it.");
}

/* --- memory, and who has it --- */

static void check_holders(struct gpu_check *k) {
    const struct nvml_gpu *g = k->g;
    for (uint32_t i = 0; i < g->n_processes; i++) {
        const struct nvml_process *p = &g->processes[i];
        char name[64];
        host_process_name(k->c->root, p->pid, name, sizeof(name));
        found(k->f, k->where, "gpu.holder", FOUND_NOTE, "process %u (%s) holds %s of it%s", p->pid,
                name[0] ? name : "of an unknown name",
                p->bytes_known ? SIZE_TEXT(p->bytes) : "an unknown part",
                strncmp(name, "shardd-worker", 13) == 0 ? ": shardd is running" : "");
    }
    if (g->processes_status != NVML_OK && !g->more_processes)
        found(k->f, k->where, "gpu.holder", FOUND_NOTE, "who uses it is not told: asking %s",
                nvml_status_text(g->processes_status));
    if (g->more_processes)
        found(k->f, k->where, "gpu.holder", FOUND_NOTE, "more than %u processes use it", NVML_PROCESSES_MAX);
}

/* A tenth that is gone before we start is somebody's; the driver itself takes less. */
static void check_memory(struct gpu_check *k) {
    const uint64_t total = value(k, NVML_MEMORY_TOTAL), left = value(k, NVML_MEMORY_FREE);
    if (!known(k, NVML_MEMORY_TOTAL)) {
        found(k->f, k->where, "gpu.memory", FOUND_WARNING, "asking for its memory %s",
                nvml_status_text(k->g->readings[NVML_MEMORY_TOTAL].status));
        advise(k->f, "`nvidia-smi` and `sudo dmesg | grep -i -e nvrm -e xid` may say why.");
        return;
    }
    const bool held = left < total - total / 10;
    found(k->f, k->where, "gpu.memory", held ? FOUND_WARNING : FOUND_OK, "memory %s, %s free%s",
            SIZE_TEXT(total), SIZE_TEXT(left), held ? ": the rest is in use" : "");
    if (held)
        advise(k->f,
                k->g->n_processes
                        ? "End the processes below, or take another GPU with CUDA_VISIBLE_DEVICES."
                        : "`nvidia-smi` as root says who has it; in a container it is somebody outside.");
}

static void check_ecc(struct gpu_check *k) {
    const uint64_t errors = value(k, NVML_ECC_UNCORRECTED);
    if (!known(k, NVML_ECC)) {
        found(k->f, k->where, "gpu.ecc", FOUND_NOTE, "ECC %s",
                nvml_status_text(k->g->readings[NVML_ECC].status));
        return;
    }
    if (value(k, NVML_ECC))
        found(k->f, k->where, "gpu.ecc", FOUND_OK, "ECC is on");
    else {
        found(k->f, k->where, "gpu.ecc", FOUND_NOTE,
                "ECC is off: faster on cards with GDDR memory, but an answer made of a flipped bit goes unnoticed");
        advise(k->f, "`sudo nvidia-smi -i %u -e 1` and a reboot turn it on.", k->index);
    }
    if (known(k, NVML_ECC_PENDING) && value(k, NVML_ECC_PENDING) != value(k, NVML_ECC))
        found(k->f, k->where, "gpu.ecc", FOUND_NOTE, "ECC will be %s after a reboot",
                value(k, NVML_ECC_PENDING) ? "on" : "off");
    if (known(k, NVML_ECC_UNCORRECTED) && errors > 0) {
        found(k->f, k->where, "gpu.memory_errors", FOUND_WARNING,
                "%" PRIu64 " memory error%s could not be corrected since the driver was loaded", errors,
                errors == 1 ? "" : "s");
        advise(k->f,
                "Reset the GPU or reboot, which retires bad memory; replace the card when they come back.");
    }
}

/* --- speed --- */

struct clock_reason {
    uint32_t bit;
    enum finding_level level;
    const char *text, *advice;
};
static const struct clock_reason clock_reasons[] = {
        {NVML_CLOCKS_POWER_BRAKE, FOUND_WARNING, "its clocks are held down by the power brake",
                "Check the power supply and the GPU's power cables."},
        {NVML_CLOCKS_HW_THERMAL, FOUND_WARNING, "its clocks are held down because it is too hot",
                "Check fans, filters and the air that reaches the card."},
        {NVML_CLOCKS_SW_THERMAL, FOUND_WARNING,
                "its clocks are held down because it or its memory is near too hot",
                "Check fans, filters and the air that reaches the card."},
        {NVML_CLOCKS_HW_SLOWDOWN, FOUND_WARNING, "the hardware holds its clocks down to half or less",
                "Check temperature and power cables."},
        {NVML_CLOCKS_SETTING, FOUND_NOTE, "its clocks are set by a person",
                "`sudo nvidia-smi -rac` and `sudo nvidia-smi -rgc` take the setting back."},
        {NVML_CLOCKS_POWER_CAP, FOUND_NOTE,
                "its clocks are held down by the power limit, as they are under load", NULL},
};

static void check_clocks(struct gpu_check *k) {
    const uint64_t reasons = value(k, NVML_CLOCK_REASONS);
    if (known(k, NVML_SM_CLOCK) && known(k, NVML_MEMORY_CLOCK)) {
        char heat[32] = "";
        if (known(k, NVML_TEMPERATURE))
            snprintf(heat, sizeof(heat), ", %" PRIu64 " degrees C", value(k, NVML_TEMPERATURE));
        found(k->f, k->where, "gpu.clocks", FOUND_OK,
                "clocks: SM %" PRIu64 " of %" PRIu64 " MHz, memory %" PRIu64 " of %" PRIu64 " MHz%s%s",
                value(k, NVML_SM_CLOCK), value(k, NVML_SM_CLOCK_MAX), value(k, NVML_MEMORY_CLOCK),
                value(k, NVML_MEMORY_CLOCK_MAX), reasons & NVML_CLOCKS_IDLE ? " (idle)" : "", heat);
    }
    for (size_t i = 0; known(k, NVML_CLOCK_REASONS) && i < sizeof(clock_reasons) / sizeof(clock_reasons[0]);
            i++) {
        const struct clock_reason *r = &clock_reasons[i];
        if (!(reasons & r->bit))
            continue;
        found(k->f, k->where, "gpu.throttled", r->level, "%s", r->text);
        if (r->advice)
            advise(k->f, "%s", r->advice);
    }
}

static void check_power(struct gpu_check *k) {
    const uint64_t limit = value(k, NVML_POWER_LIMIT), preset = value(k, NVML_POWER_DEFAULT);
    char draw[32] = "";
    if (!known(k, NVML_POWER_LIMIT))
        return;
    if (known(k, NVML_POWER_DRAW))
        snprintf(draw, sizeof(draw), "%" PRIu64 " W of ", value(k, NVML_POWER_DRAW) / 1000);
    const bool lower = known(k, NVML_POWER_DEFAULT) && limit < preset;
    char below[48] = "";
    if (lower)
        snprintf(below, sizeof(below), ", below the card's own %" PRIu64 " W", preset / 1000);
    found(k->f, k->where, "gpu.power", lower ? FOUND_WARNING : FOUND_OK, "power: %sat most %" PRIu64 " W%s",
            draw, limit / 1000, below);
    if (lower)
        advise(k->f,
                "`sudo nvidia-smi -i %u -pl %" PRIu64
                "` sets the card's own limit back; with less it is slower where "
                "it computes much (prompts, many streams).",
                k->index, preset / 1000);
}

static void check_persistence(struct gpu_check *k) {
    if (!known(k, NVML_PERSISTENCE) || value(k, NVML_PERSISTENCE))
        return;
    found(k->f, k->where, "gpu.persistence", FOUND_NOTE,
            "persistence mode is off: the driver starts the card anew for each first user, which takes seconds");
    advise(k->f, "`sudo systemctl enable --now nvidia-persistenced`, or `sudo nvidia-smi -pm 1`.");
}

/* --- how it is connected --- */

static void check_pcie(struct gpu_check *k) {
    const uint64_t width = value(k, NVML_PCIE_WIDTH), widest = value(k, NVML_PCIE_WIDTH_MAX);
    if (!known(k, NVML_PCIE_GENERATION) || !known(k, NVML_PCIE_WIDTH))
        return;
    const bool narrow = known(k, NVML_PCIE_WIDTH_MAX) && width < widest;
    found(k->f, k->where, "gpu.pcie", narrow ? FOUND_WARNING : FOUND_OK,
            "PCIe generation %" PRIu64 " of %" PRIu64 ", %" PRIu64 " of %" PRIu64 " lanes%s",
            value(k, NVML_PCIE_GENERATION), value(k, NVML_PCIE_GENERATION_MAX), width, widest,
            value(k, NVML_PCIE_GENERATION) < value(k, NVML_PCIE_GENERATION_MAX) ? " (an idle card falls back)"
                                                                                : "");
    if (narrow)
        advise(k->f,
                "Seat the card anew or give it a slot with all lanes: loading takes longer, and so do the "
                "all-reduces of several GPUs without NVLink.");
}

static void check_links(struct gpu_check *k) {
    const struct nvml_gpu *g = k->g;
    uint32_t active = 0, switches = 0, to[NVML_GPUS_MAX] = {0};
    char peers[192] = "";
    for (uint32_t i = 0; i < g->n_links; i++) {
        active += g->links[i].active;
        switches += g->links[i].active && g->links[i].to_switch;
        if (g->links[i].active && g->links[i].peer >= 0)
            to[g->links[i].peer]++;
    }
    size_t used = 0;
    if (switches)
        used = (size_t)snprintf(peers, sizeof(peers), ", %u to an NVSwitch", switches);
    for (uint32_t i = 0; i < k->c->nvml.n_gpus && used < sizeof(peers); i++)
        if (to[i])
            used += (size_t)snprintf(peers + used, sizeof(peers) - used, ", %u to GPU %u", to[i], i);
    if (active && active < g->n_links) {
        found(k->f, k->where, "gpu.nvlink", FOUND_NOTE, "NVLink: %u of %u links are up%s", active, g->n_links,
                peers);
        advise(k->f, "`nvidia-smi nvlink -s` shows which; where all should be, check the bridges.");
    } else if (active)
        found(k->f, k->where, "gpu.nvlink", FOUND_OK, "NVLink: %u links%s", active, peers);
    else if (k->used && k->c->tp > 1)
        found(k->f, k->where, "gpu.nvlink", FOUND_NOTE, "no NVLink: its ranks' all-reduces go over PCIe");
}

/* --- who may use it --- */

static void check_mode(struct gpu_check *k) {
    const uint64_t mode = value(k, NVML_COMPUTE_MODE);
    if (known(k, NVML_COMPUTE_MODE) && mode == NVML_MODE_PROHIBITED) {
        found(k->f, k->where, "gpu.mode", problem(k),
                "its compute mode is `prohibited`: no program may compute on it");
        advise(k->f, "`sudo nvidia-smi -i %u -c 0` lets programs in.", k->index);
    } else if (known(k, NVML_COMPUTE_MODE) && mode == NVML_MODE_EXCLUSIVE_PROCESS && k->g->n_processes) {
        found(k->f, k->where, "gpu.mode", problem(k),
                "its compute mode is `exclusive process`, and process %u has it", k->g->processes[0].pid);
        advise(k->f, "End that process, or `sudo nvidia-smi -i %u -c 0` lets others in.", k->index);
    }
    if (known(k, NVML_MIG) && value(k, NVML_MIG)) {
        found(k->f, k->where, "gpu.mig", FOUND_WARNING,
                "it is divided (MIG is on): a rank gets one of its instances");
        advise(k->f,
                "Name the instance in CUDA_VISIBLE_DEVICES, or `sudo nvidia-smi -i %u -mig 0` makes it one again.",
                k->index);
    }
}

static void check_gpu(struct checkup *c, uint32_t index) {
    struct gpu_check k = {.c = c,
            .f = &c->findings,
            .g = &c->nvml.gpus[index],
            .index = index,
            .used = checkup_uses(c, index)};
    snprintf(k.where, sizeof(k.where), "gpu %u", index);
    if (k.g->status != NVML_OK) {
        found(k.f, k.where, "gpu.name", problem(&k), "opening it %s (%d)", nvml_status_text(k.g->status),
                k.g->status);
        advise(k.f, "`sudo dmesg | grep -i xid` says what became of it; reset it or reboot.");
        return;
    }
    check_identity(&k);
    check_capability(&k);
    check_node(&k);
    check_memory(&k);
    check_holders(&k);
    check_ecc(&k);
    check_mode(&k);
    check_clocks(&k);
    check_power(&k);
    check_persistence(&k);
    check_pcie(&k);
    check_links(&k);
}

void check_gpus(struct checkup *c) {
    for (uint32_t i = 0; c->cuda && i < c->nvml.n_gpus; i++)
        check_gpu(c, i);
}
