/* nvml.c - see nvml.h. The only file that knows libnvidia-ml: names, constants and structures are those of NVIDIA's
 * public API reference, declared here as far as they are used, so that nothing of NVIDIA's is needed to build. */
#include "base/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NVML_LIBRARY "libnvidia-ml.so.1"

/* --- NVIDIA's declarations --- */

typedef void *nvml_device; /* nvmlDevice_t */

struct nvml_memory { /* nvmlMemory_t */
    unsigned long long total, free, used;
};

struct nvml_pci { /* nvmlPciInfo_t */
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};
_Static_assert(sizeof(struct nvml_pci) == 68, "as nvmlDeviceGetPciInfo_v3() fills it");

struct nvml_process_info { /* nvmlProcessInfo_v2_t, that of the functions _v2 and _v3 */
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};
_Static_assert(
        sizeof(struct nvml_process_info) == 24, "as nvmlDeviceGetComputeRunningProcesses_v3() fills it");

#define NVML_VALUE_NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFull
#define NVML_CLOCK_SM            1u
#define NVML_CLOCK_MEM           2u
#define NVML_TEMPERATURE_GPU     0u
#define NVML_UNCORRECTED         1u /* NVML_MEMORY_ERROR_TYPE_UNCORRECTED */
#define NVML_VOLATILE_ECC        0u /* since the driver was loaded */
#define NVML_DEVICE_TYPE_SWITCH  2u

typedef int (*ask_nothing)(void);
typedef int (*ask_version)(char *text, unsigned size);
typedef int (*ask_int)(int *value);
typedef int (*ask_count)(unsigned *value);
typedef int (*ask_handle)(unsigned index, nvml_device *device);
typedef int (*ask_text)(nvml_device, char *text, unsigned size);
typedef int (*ask_number)(nvml_device, unsigned *value);
typedef int (*ask_number_of)(nvml_device, unsigned which, unsigned *value);
typedef int (*ask_two)(nvml_device, unsigned *a, unsigned *b);
typedef int (*ask_capability)(nvml_device, int *major, int *minor);
typedef int (*ask_memory)(nvml_device, struct nvml_memory *memory);
typedef int (*ask_errors)(nvml_device, unsigned type, unsigned counter, unsigned long long *count);
typedef int (*ask_reasons)(nvml_device, unsigned long long *reasons);
typedef int (*ask_pci)(nvml_device, struct nvml_pci *pci);
typedef int (*ask_peer)(nvml_device, unsigned link, struct nvml_pci *pci);
typedef int (*ask_processes)(nvml_device, unsigned *count, struct nvml_process_info *infos);

/* Calls a function of the library, or says that it has none of this name. */
#define ASK(library, type, name, ...)                                                                        \
    __extension__({                                                                                          \
        type function = (type)dlsym((library), (name));                                                      \
        function ? function(__VA_ARGS__) : NVML_NO_FUNCTION;                                                 \
    })

/* --- texts --- */

const char *nvml_reading_name(enum nvml_reading r) {
    static const char *const names[] = {
#define READING_NAME(id, name) [NVML_##id] = name,
            NVML_READINGS(READING_NAME)
#undef READING_NAME
    };
    return names[r];
}

const char *nvml_status_text(int status) {
    switch (status) {
    case NVML_OK:
        return "works";
    case NVML_NOT_SUPPORTED:
        return "is not supported on this card";
    case NVML_NO_PERMISSION:
        return "is not permitted to this user";
    case NVML_DRIVER_NOT_LOADED:
        return "fails: the driver's kernel module is not loaded";
    case NVML_NO_FUNCTION:
        return "is not known to this driver";
    case NVML_GPU_IS_LOST:
        return "fails: the GPU has fallen off the bus";
    case NVML_RESET_REQUIRED:
        return "fails: the GPU needs a reset";
    case NVML_BLOCKED:
        return "is blocked by the operating system";
    case NVML_VERSION_MISMATCH:
        return "fails: the driver's library and its kernel module are of different versions";
    default:
        return "fails";
    }
}

/* What a library wrote ends where it must, and no terminal obeys it. */
static void clean(char *text, size_t size) {
    text[size - 1] = '\0';
    for (char *c = text; *c; c++)
        if (*c < 0x20 || *c > 0x7E)
            *c = '?';
}

/* --- one GPU --- */

struct question { /* answered by one unsigned number */
    enum nvml_reading reading;
    const char *name;
};
static const struct question questions[] = {
        {NVML_PERSISTENCE, "nvmlDeviceGetPersistenceMode"},
        {NVML_POWER_DRAW, "nvmlDeviceGetPowerUsage"},
        {NVML_POWER_LIMIT, "nvmlDeviceGetEnforcedPowerLimit"},
        {NVML_POWER_DEFAULT, "nvmlDeviceGetPowerManagementDefaultLimit"},
        {NVML_PCIE_GENERATION, "nvmlDeviceGetCurrPcieLinkGeneration"},
        {NVML_PCIE_GENERATION_MAX, "nvmlDeviceGetMaxPcieLinkGeneration"},
        {NVML_PCIE_WIDTH, "nvmlDeviceGetCurrPcieLinkWidth"},
        {NVML_PCIE_WIDTH_MAX, "nvmlDeviceGetMaxPcieLinkWidth"},
        {NVML_COMPUTE_MODE, "nvmlDeviceGetComputeMode"},
        {NVML_MINOR, "nvmlDeviceGetMinorNumber"},
};
struct question_of { /* the same about one of several things */
    struct question question;
    unsigned which;
};
static const struct question_of questions_of[] = {
        {{NVML_SM_CLOCK, "nvmlDeviceGetClockInfo"}, NVML_CLOCK_SM},
        {{NVML_SM_CLOCK_MAX, "nvmlDeviceGetMaxClockInfo"}, NVML_CLOCK_SM},
        {{NVML_MEMORY_CLOCK, "nvmlDeviceGetClockInfo"}, NVML_CLOCK_MEM},
        {{NVML_MEMORY_CLOCK_MAX, "nvmlDeviceGetMaxClockInfo"}, NVML_CLOCK_MEM},
        {{NVML_TEMPERATURE, "nvmlDeviceGetTemperature"}, NVML_TEMPERATURE_GPU},
};

static void keep(struct nvml_gpu *g, enum nvml_reading r, int status, uint64_t value) {
    g->readings[r] = (struct nvml_number){status, status == NVML_OK ? value : 0};
}

static void read_plain(void *library, nvml_device device, struct nvml_gpu *g) {
    for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++) {
        unsigned value = 0;
        int status = ASK(library, ask_number, questions[i].name, device, &value);
        keep(g, questions[i].reading, status, value);
    }
    for (size_t i = 0; i < sizeof(questions_of) / sizeof(questions_of[0]); i++) {
        const struct question_of *q = &questions_of[i];
        unsigned value = 0;
        int status = ASK(library, ask_number_of, q->question.name, device, q->which, &value);
        keep(g, q->question.reading, status, value);
    }
}

static void read_memory(void *library, nvml_device device, struct nvml_gpu *g) {
    struct nvml_memory m = {0};
    unsigned now = 0, pending = 0;
    unsigned long long errors = 0;
    int status = ASK(library, ask_memory, "nvmlDeviceGetMemoryInfo", device, &m);
    keep(g, NVML_MEMORY_TOTAL, status, m.total);
    keep(g, NVML_MEMORY_FREE, status, m.free);
    keep(g, NVML_MEMORY_USED, status, m.used);
    status = ASK(library, ask_two, "nvmlDeviceGetEccMode", device, &now, &pending);
    keep(g, NVML_ECC, status, now);
    keep(g, NVML_ECC_PENDING, status, pending);
    status = ASK(library, ask_errors, "nvmlDeviceGetTotalEccErrors", device, NVML_UNCORRECTED,
            NVML_VOLATILE_ECC, &errors);
    keep(g, NVML_ECC_UNCORRECTED, status, errors);
}

static void read_other(void *library, nvml_device device, struct nvml_gpu *g) {
    int major = 0, minor = 0;
    unsigned mig = 0, pending = 0;
    unsigned long long reasons = 0;
    struct nvml_pci pci = {0};
    int status = ASK(library, ask_capability, "nvmlDeviceGetCudaComputeCapability", device, &major, &minor);
    keep(g, NVML_CAPABILITY, status, major > 0 && minor >= 0 ? (uint64_t)major * 10 + (uint64_t)minor : 0);
    status = ASK(library, ask_two, "nvmlDeviceGetMigMode", device, &mig, &pending);
    keep(g, NVML_MIG, status, mig);
    status = ASK(library, ask_reasons, "nvmlDeviceGetCurrentClocksEventReasons", device, &reasons);
    if (status == NVML_NO_FUNCTION) /* its name before driver 535 */
        status = ASK(library, ask_reasons, "nvmlDeviceGetCurrentClocksThrottleReasons", device, &reasons);
    keep(g, NVML_CLOCK_REASONS, status, reasons);
    if (ASK(library, ask_pci, "nvmlDeviceGetPciInfo_v3", device, &pci) == NVML_OK) {
        clean(pci.bus_id, sizeof(pci.bus_id));
        memcpy(g->place, pci.bus_id, sizeof(g->place));
    }
    (void)ASK(library, ask_text, "nvmlDeviceGetName", device, g->name, sizeof(g->name));
    (void)ASK(library, ask_text, "nvmlDeviceGetUUID", device, g->uuid, sizeof(g->uuid));
    clean(g->name, sizeof(g->name));
    clean(g->uuid, sizeof(g->uuid));
}

static void add_process(struct nvml_gpu *g, const struct nvml_process_info *info) {
    const bool known = info->bytes != NVML_VALUE_NOT_AVAILABLE;
    for (uint32_t i = 0; i < g->n_processes; i++)
        if (g->processes[i].pid ==
                info->pid) /* it computes and draws: both lists name it, with all that it has */
            return;
    if (g->n_processes == NVML_PROCESSES_MAX)
        g->more_processes = true;
    else
        g->processes[g->n_processes++] = (struct nvml_process){info->pid, known, known ? info->bytes : 0};
}

/* One list of the library: of the programs that compute, or of those that draw. */
static int read_list(
        void *library, nvml_device device, const char *newer, const char *older, struct nvml_gpu *g) {
    struct nvml_process_info infos[NVML_PROCESSES_MAX];
    unsigned n = NVML_PROCESSES_MAX;
    memset(infos, 0, sizeof(infos));
    int status = ASK(library, ask_processes, newer, device, &n, infos);
    if (status == NVML_NO_FUNCTION)
        status = ASK(library, ask_processes, older, device, &n, infos);
    g->more_processes |= status == NVML_INSUFFICIENT_SIZE || (status == NVML_OK && n > NVML_PROCESSES_MAX);
    for (unsigned i = 0; status == NVML_OK && i < n && i < NVML_PROCESSES_MAX; i++)
        add_process(g, &infos[i]);
    return status;
}

static void read_processes(void *library, nvml_device device, struct nvml_gpu *g) {
    g->processes_status = read_list(library, device, "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetComputeRunningProcesses_v2", g);
    (void)read_list(library, device, "nvmlDeviceGetGraphicsRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses_v2", g);
}

/* A card without links refuses the first. */
static void read_links(
        void *library, nvml_device device, struct nvml_gpu *g, char peers[NVML_LINKS_MAX][32]) {
    for (uint32_t i = 0; i < NVML_LINKS_MAX; i++) {
        unsigned active = 0, type = 0;
        struct nvml_pci pci = {0};
        if (ASK(library, ask_number_of, "nvmlDeviceGetNvLinkState", device, i, &active) != NVML_OK)
            break;
        g->links[g->n_links++] = (struct nvml_link){.active = active == 1, .peer = -1};
        if (active != 1)
            continue;
        if (ASK(library, ask_number_of, "nvmlDeviceGetNvLinkRemoteDeviceType", device, i, &type) == NVML_OK)
            g->links[i].to_switch = type == NVML_DEVICE_TYPE_SWITCH;
        if (ASK(library, ask_peer, "nvmlDeviceGetNvLinkRemotePciInfo_v2", device, i, &pci) == NVML_OK) {
            clean(pci.bus_id, sizeof(pci.bus_id));
            memcpy(peers[i], pci.bus_id, sizeof(pci.bus_id));
        }
    }
}

/* --- all of them --- */

static void name_peers(struct nvml *n, char (*peers)[NVML_LINKS_MAX][32]) {
    for (uint32_t i = 0; i < n->n_gpus; i++)
        for (uint32_t l = 0; l < n->gpus[i].n_links; l++)
            for (uint32_t k = 0; k < n->n_gpus; k++)
                if (peers[i][l][0] && strcasecmp(peers[i][l], n->gpus[k].place) == 0)
                    n->gpus[i].links[l].peer = (int)k;
}

const struct nvml_gpu *nvml_gpu_at(const struct nvml *n, const char *place) {
    for (uint32_t i = 0; i < n->n_gpus; i++)
        if (*place && strcasecmp(n->gpus[i].place, place) == 0)
            return &n->gpus[i];
    return NULL;
}
static bool behind_switch(const struct nvml_gpu *g) {
    for (uint32_t i = 0; i < g->n_links; i++)
        if (g->links[i].active && g->links[i].to_switch)
            return true;
    return false;
}
bool nvml_linked(const struct nvml *n, const struct nvml_gpu *a, const struct nvml_gpu *b) {
    for (uint32_t i = 0; i < a->n_links && a != b; i++)
        if (a->links[i].active && a->links[i].peer >= 0 && &n->gpus[a->links[i].peer] == b)
            return true;
    return a != b && behind_switch(a) && behind_switch(b);
}

static void look_at_gpus(void *library, struct nvml *n) {
    unsigned count = 0;
    n->count_status = ASK(library, ask_count, "nvmlDeviceGetCount_v2", &count);
    n->n_found = n->count_status == NVML_OK ? count : 0;
    n->n_gpus = n->n_found < NVML_GPUS_MAX ? n->n_found : NVML_GPUS_MAX;
    n->gpus = calloc(n->n_gpus + 1u, sizeof(n->gpus[0]));
    char(*peers)[NVML_LINKS_MAX][32] = calloc(n->n_gpus + 1u, sizeof(*peers));
    if (!n->gpus || !peers)
        n->n_gpus = 0;
    for (uint32_t i = 0; i < n->n_gpus; i++) {
        struct nvml_gpu *g = &n->gpus[i];
        nvml_device device = NULL;
        g->status = ASK(library, ask_handle, "nvmlDeviceGetHandleByIndex_v2", i, &device);
        for (int r = 0; r < NVML_READINGS_N; r++)
            keep(g, (enum nvml_reading)r, NVML_UNKNOWN, 0);
        if (g->status != NVML_OK)
            continue;
        read_plain(library, device, g);
        read_memory(library, device, g);
        read_other(library, device, g);
        read_processes(library, device, g);
        read_links(library, device, g, peers[i]);
    }
    if (peers)
        name_peers(n, peers);
    free(peers);
}

void nvml_look(const char *name, struct nvml *ret) {
    int cuda = 0;
    *ret = (struct nvml){0};
    void *library = dlopen(name ? name : NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    ret->opened = library != NULL;
    if (!library) {
        const char *why = dlerror();
        snprintf(ret->absent, sizeof(ret->absent), "%s", why ? why : NVML_LIBRARY " is not there");
        clean(ret->absent, sizeof(ret->absent));
        return;
    }
    ret->status = ASK(library, ask_nothing, "nvmlInit_v2");
    if (ret->status == NVML_OK) {
        (void)ASK(library, ask_version, "nvmlSystemGetDriverVersion", ret->driver, sizeof(ret->driver));
        clean(ret->driver, sizeof(ret->driver));
        if (ASK(library, ask_int, "nvmlSystemGetCudaDriverVersion_v2", &cuda) == NVML_OK && cuda > 0)
            ret->cuda = (uint32_t)cuda;
        look_at_gpus(library, ret);
        (void)ASK(library, ask_nothing, "nvmlShutdown");
    }
    dlclose(library);
}

void nvml_done(struct nvml *n) {
    free(n->gpus);
    *n = (struct nvml){0};
}
