/* host.c - see host.h. */
#include "launcher/doctor/host.h"

#include "base/host_memory.h"
#include "launcher/pci.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LINE_BYTES 8192 /* the flags of /proc/cpuinfo are one line of 2000 */

/* --- reading --- */

__attribute__((format(printf, 3, 4))) static const char *below(
        const char *root, char path[PATH_MAX], const char *format, ...) {
    va_list ap;
    int n = snprintf(path, PATH_MAX, "%s", root);
    if (n < 0 || n >= PATH_MAX)
        n = 0;
    va_start(ap, format);
    vsnprintf(path + n, PATH_MAX - (size_t)n, format, ap);
    va_end(ap);
    return path;
}

static void clean(char *text) {
    for (char *c = text; *c; c++)
        if (*c < 0x20 || *c > 0x7E)
            *c = '?';
}

/* The first line, without its end. */
static bool first_line(const char *path, char *line, size_t size) {
    FILE *f = fopen(path, "re");
    bool there = f && fgets(line, (int)size, f);
    if (f)
        fclose(f);
    line[there ? strcspn(line, "\n") : 0] = '\0';
    clean(line);
    return there;
}

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

/* --- the driver --- */

struct bus {
    const char *root;
    struct host *h;
};

static bool read_gpu(void *user, const char *place) {
    const struct bus *b = user;
    const char *root = b->root;
    struct host *h = b->h;
    char path[PATH_MAX], target[PATH_MAX];
    if (h->n_gpus == HOST_GPUS_MAX)
        return true;
    struct host_gpu *g = &h->gpus[h->n_gpus++];
    snprintf(g->place, sizeof(g->place), "%.31s", place);
    char line[16] = "";
    g->numa_node = -1;
    if (first_line(below(root, path, "/sys/bus/pci/devices/%s/numa_node", place), line, sizeof(line)) &&
            isdigit(*line))
        g->numa_node = (int)strtol(line, NULL, 10);
    ssize_t n =
            readlink(below(root, path, "/sys/bus/pci/devices/%s/driver", place), target, sizeof(target) - 1);
    target[n > 0 ? n : 0] = '\0';
    const char *slash = strrchr(target, '/');
    snprintf(g->driver, sizeof(g->driver), "%.31s", slash ? slash + 1 : target);
    clean(g->driver);
    return false;
}

static int by_place(const void *a, const void *b) {
    return strcmp(((const struct host_gpu *)a)->place, ((const struct host_gpu *)b)->place);
}

static void read_gpus(const char *root, struct host *h) {
    pci_gpus(root, read_gpu, &(struct bus){root, h});
    qsort(h->gpus, h->n_gpus, sizeof(h->gpus[0]), by_place);
}

/* "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan ..."; the open one says "Open Kernel Module for
 * x86_64". The version is the first word that begins with a digit and has a dot. */
static void read_module(const char *root, struct host *h) {
    char path[PATH_MAX], line[512], *rest = line, *word;
    if (!first_line(below(root, path, "/proc/driver/nvidia/version"), line, sizeof(line)))
        return;
    while ((word = strsep(&rest, " ")))
        if (isdigit(*word) && strchr(word, '.'))
            break;
    snprintf(h->module, sizeof(h->module), "%s", word ? word : "of unknown version");
}

static void add_node(const char *root, const char *name, bool always, struct host *h) {
    char path[PATH_MAX];
    struct stat st;
    below(root, path, "/dev/%s", name);
    bool present = stat(path, &st) == 0;
    if ((!present && !always) || h->n_nodes == HOST_NODES_MAX)
        return;
    struct host_node *n = &h->nodes[h->n_nodes++];
    snprintf(n->path, sizeof(n->path), "/dev/%s", name);
    n->present = present;
    n->mode = present ? st.st_mode & 07777u : 0;
    n->refused = present && access(path, R_OK | W_OK) < 0 ? errno : 0;
}

static void read_nodes(const char *root, struct host *h) {
    char path[PATH_MAX], name[32];
    struct stat st;
    add_node(root, "nvidiactl", true, h);
    add_node(root, "nvidia-uvm", true, h);
    for (unsigned i = 0; i < HOST_GPUS_MAX; i++) {
        snprintf(name, sizeof(name), "nvidia%u", i);
        add_node(root, name, false, h);
    }
    h->modprobe = stat(below(root, path, "/usr/bin/nvidia-modprobe"), &st) == 0 && (st.st_mode & S_ISUID);
    h->wsl = exists(below(root, path, "/dev/dxg"));
    h->container =
            exists(below(root, path, "/.dockerenv")) || exists(below(root, path, "/run/.containerenv"));
}

/* --- the machine --- */

/* As k_context_create() of kernels/cpu chooses. */
static const char *best_isa(const char *flags) {
    static const char *const avx512[] = {" avx512f ", " avx512bw ", " avx512vl ", " avx512dq "};
    static const char *const avx2[] = {" avx2 ", " fma ", " f16c "};
    bool has512 = true, has2 = true;
    for (size_t i = 0; i < sizeof(avx512) / sizeof(avx512[0]); i++)
        has512 &= strstr(flags, avx512[i]) != NULL;
    for (size_t i = 0; i < sizeof(avx2) / sizeof(avx2[0]); i++)
        has2 &= strstr(flags, avx2[i]) != NULL;
    return has512 && has2 ? "avx512" : has2 ? "avx2" : "plain";
}

static void read_cpu(const char *root, struct host *h) {
    char path[PATH_MAX], line[LINE_BYTES];
    FILE *f = fopen(below(root, path, "/proc/cpuinfo"), "re");
    h->isa = "plain";
    while (f && fgets(line, sizeof(line), f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "processor", 9) == 0)
            h->threads_total++;
        if (!value || h->threads_total > 1) /* all are alike */
            continue;
        line[strcspn(line, "\n")] = ' '; /* the last flag ends like the others */
        if (strncmp(line, "flags", 5) == 0)
            h->isa = best_isa(value + 1);
        if (strncmp(line, "model name", 10) == 0)
            snprintf(h->cpu, sizeof(h->cpu), "%.90s", value + 1 + strspn(value + 1, " "));
    }
    if (f)
        fclose(f);
    clean(h->cpu);
    for (size_t n = strlen(h->cpu); n && h->cpu[n - 1] == ' '; n--)
        h->cpu[n - 1] = '\0';
    cpu_set_t cores;
    h->threads = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? (uint32_t)CPU_COUNT(&cores) : 1;
    while (h->numa_nodes < 1024 &&
            exists(below(root, path, "/sys/devices/system/node/node%u", h->numa_nodes)))
        h->numa_nodes++;
}

static void read_memory(const char *root, struct host *h) {
    char path[PATH_MAX], line[256];
    FILE *f = fopen(below(root, path, "/proc/meminfo"), "re");
    const struct {
        const char *key;
        uint64_t *to, unit;
    } keys[] = {{"MemTotal:", &h->memory_total, 1024}, {"MemAvailable:", &h->memory_available, 1024},
            {"HugePages_Total:", &h->huge_pages, 1}, {"Hugepagesize:", &h->huge_page_bytes, 1024}};
    while (f && fgets(line, sizeof(line), f))
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            const size_t n = strlen(keys[i].key);
            if (strncmp(line, keys[i].key, n) == 0)
                *keys[i].to = strtoull(line + n, NULL, 10) * keys[i].unit;
        }
    if (f)
        fclose(f);
    host_memory_group(root, &h->group_limit, &h->group_used);
    if (first_line(below(root, path, "/sys/kernel/mm/transparent_hugepage/enabled"), line, sizeof(line))) {
        const char *chosen = strchr(line, '[');
        size_t n = chosen ? strcspn(chosen + 1, "]") : 0;
        if (n < sizeof(h->transparent))
            snprintf(h->transparent, sizeof(h->transparent), "%.*s", (int)n, chosen ? chosen + 1 : "");
    }
}

static void read_limits(const char *root, struct host *h) {
    char path[PATH_MAX];
    struct statvfs fs;
    struct rlimit limit;
    if (statvfs(below(root, path, "/dev/shm"), &fs) == 0) {
        h->shm_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
        h->shm_free = (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0)
        h->memlock_bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

void host_look(const char *root, struct host *ret) {
    *ret = (struct host){0};
    read_gpus(root, ret);
    read_module(root, ret);
    read_nodes(root, ret);
    read_cpu(root, ret);
    read_memory(root, ret);
    read_limits(root, ret);
}

/* --- asked afterwards --- */

const struct host_node *host_gpu_node(const struct host *h, uint64_t minor) {
    char path[32];
    snprintf(path, sizeof(path), "/dev/nvidia%" PRIu64, minor);
    for (uint32_t i = HOST_NODE_UVM + 1; i < h->n_nodes; i++)
        if (strcmp(h->nodes[i].path, path) == 0)
            return &h->nodes[i];
    return NULL;
}

const struct host_gpu *host_gpu_at(const struct host *h, const char *place) {
    size_t length = strlen(place);
    for (uint32_t i = 0; i < h->n_gpus; i++) {
        size_t n = strlen(h->gpus[i].place); /* NVML's domain has more digits */
        if (n && n <= length && strcasecmp(place + length - n, h->gpus[i].place) == 0)
            return &h->gpus[i];
    }
    return NULL;
}

void host_process_name(const char *root, uint32_t pid, char *name, size_t size) {
    char path[PATH_MAX];
    first_line(below(root, path, "/proc/%u/comm", pid), name, size);
}

uint64_t host_memory_left(const struct host *h) {
    uint64_t left = h->group_limit > h->group_used ? h->group_limit - h->group_used : 0;
    return h->group_limit && left < h->memory_available ? left : h->memory_available;
}
