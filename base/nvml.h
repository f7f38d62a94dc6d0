/* nvml.h - what the driver's own library, libnvidia-ml.so.1, tells about the GPUs of this machine.
 *
 * The library is opened at run time and every call is optional: where it is absent, too old or refuses, the reading
 * says so and nothing fails. Readings only; what they mean is judged by who asked. Texts come out as printable
 * ASCII, whatever the library wrote. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NVML_GPUS_MAX      64u /* more are counted and not looked at */
#define NVML_PROCESSES_MAX 64u /* of one GPU */
#define NVML_LINKS_MAX     36u /* of one GPU */
#define NVML_TEXT_MAX      96u

/* nvmlReturn_t, as far as somebody looks at it. */
enum nvml_status {
    NVML_OK = 0,
    NVML_NOT_SUPPORTED = 3,
    NVML_NO_PERMISSION = 4,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9,
    NVML_NO_FUNCTION = 13, /* the library is older than the question */
    NVML_GPU_IS_LOST = 15,
    NVML_RESET_REQUIRED = 16,
    NVML_BLOCKED = 17, /* by the operating system: a control group, mostly */
    NVML_VERSION_MISMATCH = 18,
    NVML_UNKNOWN = 999,
};

/* nvmlClocksEventReasons: why the clocks are what they are. */
#define NVML_CLOCKS_IDLE        0x001u
#define NVML_CLOCKS_SETTING     0x002u
#define NVML_CLOCKS_POWER_CAP   0x004u
#define NVML_CLOCKS_HW_SLOWDOWN 0x008u
#define NVML_CLOCKS_SW_THERMAL  0x020u
#define NVML_CLOCKS_HW_THERMAL  0x040u
#define NVML_CLOCKS_POWER_BRAKE 0x080u

/* nvmlComputeMode_t */
#define NVML_MODE_DEFAULT           0u
#define NVML_MODE_PROHIBITED        2u
#define NVML_MODE_EXCLUSIVE_PROCESS 3u

/* One number that a GPU tells: READING(id, name in JSON). Bytes, MHz, milliwatts, degrees; a switch is 0 or 1. */
#define NVML_READINGS(READING)                                                                               \
    READING(MEMORY_TOTAL, "memory_total_bytes")                                                              \
    READING(MEMORY_FREE, "memory_free_bytes")                                                                \
    READING(MEMORY_USED, "memory_used_bytes")                                                                \
    READING(CAPABILITY, "compute_capability")                                                                \
    READING(ECC, "ecc_enabled")                                                                              \
    READING(ECC_PENDING, "ecc_enabled_after_reboot")                                                         \
    READING(ECC_UNCORRECTED, "ecc_uncorrected_errors")                                                       \
    READING(PERSISTENCE, "persistence_mode")                                                                 \
    READING(POWER_DRAW, "power_draw_mw")                                                                     \
    READING(POWER_LIMIT, "power_limit_mw")                                                                   \
    READING(POWER_DEFAULT, "power_default_limit_mw")                                                         \
    READING(SM_CLOCK, "sm_clock_mhz")                                                                        \
    READING(SM_CLOCK_MAX, "sm_clock_max_mhz")                                                                \
    READING(MEMORY_CLOCK, "memory_clock_mhz")                                                                \
    READING(MEMORY_CLOCK_MAX, "memory_clock_max_mhz")                                                        \
    READING(CLOCK_REASONS, "clock_reasons")                                                                  \
    READING(TEMPERATURE, "temperature_c")                                                                    \
    READING(PCIE_GENERATION, "pcie_generation")                                                              \
    READING(PCIE_GENERATION_MAX, "pcie_generation_max")                                                      \
    READING(PCIE_WIDTH, "pcie_width")                                                                        \
    READING(PCIE_WIDTH_MAX, "pcie_width_max")                                                                \
    READING(COMPUTE_MODE, "compute_mode")                                                                    \
    READING(MIG, "mig_mode")                                                                                 \
    READING(MINOR, "minor_number")

enum nvml_reading {
#define READING_ID(id, name) NVML_##id,
    NVML_READINGS(READING_ID)
#undef READING_ID
            NVML_READINGS_N,
};
const char *nvml_reading_name(enum nvml_reading r);

struct nvml_number {
    int status; /* NVML_OK: value is one. Others of enum nvml_status, or any that the library thought of */
    uint64_t value;
};

struct nvml_process {
    uint32_t pid;
    bool bytes_known;
    uint64_t bytes; /* of this GPU's memory */
};

struct nvml_link {
    bool active;
    bool to_switch; /* NVSwitch: every other GPU of the machine is behind it */
    int peer;       /* index of the GPU at its other end; -1 = none of them */
};

struct nvml_gpu {
    int status; /* of its handle; where it is not NVML_OK nothing else is known */
    char name[NVML_TEXT_MAX], uuid[NVML_TEXT_MAX];
    char place[32]; /* "00000000:65:00.0"; "" = unknown */
    struct nvml_number readings[NVML_READINGS_N];
    int processes_status; /* of the list of programs that compute */
    struct nvml_process processes[NVML_PROCESSES_MAX];
    uint32_t n_processes;
    bool more_processes; /* than these */
    struct nvml_link links[NVML_LINKS_MAX];
    uint32_t n_links; /* that the card has */
};

struct nvml {
    bool opened;      /* the library is there */
    char absent[256]; /* why not */
    int status;       /* of nvmlInit_v2(); where it is not NVML_OK nothing below is known */
    char driver[NVML_TEXT_MAX];
    uint32_t cuda; /* 12040 = 12.4, the newest that the driver can do; 0 = unknown */
    int count_status;
    uint32_t n_found;      /* that the library counts */
    uint32_t n_gpus;       /* looked at */
    struct nvml_gpu *gpus; /* [n_gpus] */
};

/* library: NULL = "libnvidia-ml.so.1", where the loader finds it. Always fills *ret; nvml_done() afterwards. */
void nvml_look(const char *library, struct nvml *ret);
void nvml_done(struct nvml *n);

/* The GPU at a place, of any case; NULL = none. */
const struct nvml_gpu *nvml_gpu_at(const struct nvml *n, const char *place);
/* Does NVLink lead from one to the other, by a bridge or by a switch that both are behind? */
bool nvml_linked(const struct nvml *n, const struct nvml_gpu *a, const struct nvml_gpu *b);

/* "is not supported on this card", the second half of a sentence. */
const char *nvml_status_text(int status);

static inline bool nvml_known(const struct nvml_gpu *g, enum nvml_reading r) {
    return g->readings[r].status == NVML_OK;
}
