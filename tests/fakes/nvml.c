/* nvml.c - a libnvidia-ml.so.1 for tests: made-up cards, chosen by the words in FAKE_NVML.
 *
 * Opened by base/nvml.c in place of the driver's. Without words it is one healthy card with 48 GB. Each word
 * changes one thing; several are separated by commas:
 *   mismatch, denied, unloaded   nvmlInit refuses: versions differ, no permission, no kernel module
 *   none, two, crowd             no card, two with NVLink between them, a count of 4 billion
 *   adjacent                     the second card is on the bus after the first one's
 *   lost                         the last card cannot be opened
 *   ecc-off, ecc-errors, no-ecc  ECC off and on after a reboot, with uncorrected errors, not supported
 *   hot, braked, capped          reasons of the clocks
 *   low-power, narrow, sleepy    power limit, PCIe lanes, persistence mode
 *   old                          compute capability 7.5
 *   prohibited, exclusive, mig   who may use it
 *   held, swarm, desktop         a process holds 40 GB; 100 processes, more than one asks for; one that draws and one
 *                                that does both
 *   silly                        strings without an end, numbers without a meaning
 *   failing                      every question about a card fails
 * FAKE_NVML_PID is the process that holds memory (default 1). */
#include <stdlib.h>
#include <string.h>

#define OK            0
#define NOT_SUPPORTED 3
#define NO_PERMISSION 4
#define TOO_SMALL     7
#define NOT_LOADED    9
#define LOST          15
#define MISMATCH      18
#define UNKNOWN       999
#define GB            1000000000ull
#define TOTAL         (48 * GB)

/* As the library's own: the launcher's declarations are not used, so that they are tested. */
struct pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
};
struct memory {
    unsigned long long total, free, used;
};
struct process {
    unsigned pid;
    unsigned long long bytes;
    unsigned instance, compute;
};

static int has(const char *word) {
    const char *words = getenv("FAKE_NVML");
    const size_t n = strlen(word);
    for (const char *at = words; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && strncmp(at, word, n) == 0)
            return 1;
    return 0;
}

static unsigned cards(void) {
    return has("none") ? 0 : has("crowd") ? 4000000000u : has("two") ? 2 : 1;
}

/* What is asked of a card fails where all does. */
static int answer(void) {
    return has("failing") ? UNKNOWN : OK;
}

static int number(unsigned *to, unsigned value) {
    *to = has("silly") ? 0xFFFFFFFFu : value;
    return answer();
}

static int words(char *to, unsigned size, const char *text) {
    if (has("silly"))
        memset(to, 0x1B, size);
    else
        strncpy(to, text, size);
    return OK;
}

static void place(struct pci *pci, unsigned card) {
    memset(pci, has("silly") ? 0xFF : 0, sizeof(*pci));
    if (!has("silly"))
        memcpy(pci->bus_id,
                !card             ? "00000000:65:00.0"
                : has("adjacent") ? "00000000:66:00.0"
                                  : "00000000:B3:00.0",
                17);
}

/* A handle is the card's number, and one: it is not NULL. */
static unsigned card_of(void *device) {
    return (unsigned)(unsigned long)device - 1;
}

int nvmlInit_v2(void);
int nvmlInit_v2(void) {
    return has("mismatch") ? MISMATCH : has("denied") ? NO_PERMISSION : has("unloaded") ? NOT_LOADED : OK;
}
int nvmlShutdown(void);
int nvmlShutdown(void) {
    return OK;
}
int nvmlSystemGetDriverVersion(char *text, unsigned size);
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    return words(text, size, "570.86.15");
}
int nvmlSystemGetCudaDriverVersion_v2(int *version);
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = has("silly") ? -7 : 12080;
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = cards();
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return has("lost") && index + 1 == cards() ? LOST : OK;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size);
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    (void)device;
    return words(text, size, "NVIDIA RTX A6000");
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned size);
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    return words(text, size, card_of(device) ? "GPU-22222222" : "GPU-11111111");
}
int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci);
int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    place(pci, card_of(device));
    return OK;
}

/* --- memory --- */

int nvmlDeviceGetMemoryInfo(void *device, struct memory *m);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *m) {
    (void)device;
    const unsigned long long used = has("held") ? 40 * GB : GB / 2;
    *m = (struct memory){TOTAL, TOTAL - used, used};
    if (has("silly"))
        memset(m, 0xFF, sizeof(*m));
    return answer();
}
int nvmlDeviceGetEccMode(void *device, unsigned *now, unsigned *pending);
int nvmlDeviceGetEccMode(void *device, unsigned *now, unsigned *pending) {
    (void)device;
    *now = !has("ecc-off");
    *pending = 1;
    return has("no-ecc") ? NOT_SUPPORTED : answer();
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *count);
int nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *count) {
    (void)device;
    *count = has("ecc-errors") && type == 1 && counter == 0 ? 3 : 0;
    return has("no-ecc") ? NOT_SUPPORTED : answer();
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *to);
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *to) {
    (void)device;
    const char *pid = getenv("FAKE_NVML_PID");
    const unsigned room = *count, n = has("swarm") ? 100 : has("held") || has("exclusive") ? 1 : 0;
    *count = has("silly") ? 0xFFFFFFFFu : n;
    if (n > room)
        return TOO_SMALL;
    for (unsigned i = 0; i < n; i++)
        to[i] = (struct process){pid ? (unsigned)strtoul(pid, NULL, 10) : 1, 40 * GB - GB / 2, ~0u, ~0u};
    return answer();
}

/* The name of an older driver: the newer one is not here. */
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *device, unsigned *count, struct process *to);
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *device, unsigned *count, struct process *to) {
    (void)device;
    const char *pid = getenv("FAKE_NVML_PID");
    *count = has("desktop") ? 2 : 0;
    if (*count) {
        to[0] = (struct process){pid ? (unsigned)strtoul(pid, NULL, 10) : 1, 40 * GB - GB / 2, ~0u, ~0u};
        to[1] = (struct process){78, ~0ull, ~0u, ~0u};
    }
    return answer();
}

/* --- speed --- */

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor);
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device;
    *major = has("silly") ? -2147483647 : has("old") ? 7 : 8;
    *minor = has("old") ? 5 : 6;
    return answer();
}
int nvmlDeviceGetPersistenceMode(void *device, unsigned *mode);
int nvmlDeviceGetPersistenceMode(void *device, unsigned *mode) {
    (void)device;
    return number(mode, !has("sleepy"));
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw);
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    (void)device;
    return number(mw, 22500);
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw);
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
    (void)device;
    return number(mw, has("low-power") ? 150000 : 300000);
}
int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *mw);
int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *mw) {
    (void)device;
    return number(mw, 300000);
}
int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz);
int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz) {
    (void)device;
    return number(mhz, type == 1 ? 210 : type == 2 ? 405 : 0);
}
int nvmlDeviceGetMaxClockInfo(void *device, unsigned type, unsigned *mhz);
int nvmlDeviceGetMaxClockInfo(void *device, unsigned type, unsigned *mhz) {
    (void)device;
    return number(mhz, type == 1 ? 2100 : type == 2 ? 8001 : 0);
}
/* The name of a driver before 535: the newer one is not here. */
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons);
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    (void)device;
    *reasons = has("hot") ? 0x48 : has("braked") ? 0x80 : has("capped") ? 0x4 : 0x1;
    if (has("silly"))
        *reasons = ~0ull;
    return answer();
}
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *degrees);
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *degrees) {
    (void)device;
    return number(degrees, sensor == 0 ? (has("hot") ? 97 : 41) : 0);
}

/* --- connections --- */

int nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned *to);
int nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned *to) {
    (void)device;
    return number(to, 1);
}
int nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned *to);
int nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned *to) {
    (void)device;
    return number(to, 4);
}
int nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned *to);
int nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned *to) {
    (void)device;
    return number(to, has("narrow") ? 4 : 16);
}
int nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *to);
int nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *to) {
    (void)device;
    return number(to, 16);
}
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active);
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    (void)device;
    *active = has("two") || has("silly");
    return has("silly") || link < 4 ? answer() : NOT_SUPPORTED;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, struct pci *pci);
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, struct pci *pci) {
    (void)link;
    place(pci, !card_of(device));
    return answer();
}

/* --- who may use it --- */

int nvmlDeviceGetComputeMode(void *device, unsigned *mode);
int nvmlDeviceGetComputeMode(void *device, unsigned *mode) {
    (void)device;
    return number(mode, has("prohibited") ? 2 : has("exclusive") ? 3 : 0);
}
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending);
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
    (void)device;
    *now = *pending = has("mig");
    return has("mig") ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor);
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) {
    return number(minor, card_of(device));
}
