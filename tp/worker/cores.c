/* cores.c - see cores.h. */
#include "tp/worker/cores.h"

#include "base/sysfs.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 4096 /* of a list of cores: "0-31,64-95" */

/* "0-3,8,10-11\n" into a set; false where it is something else. */
static bool parse_list(const char *text, cpu_set_t *ret) {
    CPU_ZERO(ret);
    for (const char *at = text;; at++) {
        char *end;
        const unsigned long first = strtoul(at, &end, 10);
        unsigned long last = first;
        if (end == at)
            return false;
        at = end;
        if (*at == '-') {
            last = strtoul(at + 1, &end, 10);
            if (end == at + 1 || last < first)
                return false;
            at = end;
        }
        for (unsigned long i = first; i <= last && i < CPU_SETSIZE; i++)
            CPU_SET(i, ret);
        if (*at != ',')
            return *at == '\0' || *at == '\n';
    }
}

static bool device_line(const char *root, const char *place, const char *name, char *line, size_t size) {
    char path[PATH_MAX];
    return sysfs_pci_path(root, place, name, path, sizeof(path)) && sysfs_line(path, line, size);
}

bool cores_near(
        const char *root, const char *place, const cpu_set_t *allowed, cpu_set_t *ret, int *ret_node) {
    char line[LINE_MAX_BYTES];
    cpu_set_t near;
    if (!device_line(root, place, "numa_node", line, sizeof(line)))
        return false;
    const long node = strtol(line, NULL, 10);
    if (node < 0 || !device_line(root, place, "local_cpulist", line, sizeof(line)) ||
            !parse_list(line, &near))
        return false;
    CPU_AND(&near, &near, allowed);
    if (CPU_COUNT(&near) == 0 || CPU_EQUAL(&near, allowed))
        return false;
    *ret = near;
    *ret_node = (int)node;
    return true;
}

/* Is it the first of the threads of its core that are in the set? */
static bool first_thread(const char *root, const cpu_set_t *set, int cpu) {
    char path[PATH_MAX], line[LINE_MAX_BYTES];
    cpu_set_t threads;
    snprintf(path, sizeof(path), "%s/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", root, cpu);
    if (!sysfs_line(path, line, sizeof(line)) || !parse_list(line, &threads))
        return true;
    for (int i = 0; i < cpu; i++)
        if (CPU_ISSET(i, &threads) && CPU_ISSET(i, set))
            return false;
    return true;
}

int cores_one(const char *root, const cpu_set_t *near, uint32_t rank, uint32_t ranks) {
    int cores[CPU_SETSIZE];
    uint32_t n = 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, near) && first_thread(root, near, i))
            cores[n++] = i;
    if (n < ranks)
        return -1;
    return cores[n > ranks ? rank + 1 : rank];
}

void cores_go_near(const char *place, char *text, uint32_t size) {
    cpu_set_t allowed, near;
    int node;
    text[0] = '\0';
    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0 || !cores_near("", place, &allowed, &near, &node))
        return;
    if (sched_setaffinity(0, sizeof(near), &near) < 0)
        snprintf(text, size, "cannot be kept on the cores of NUMA node %d, where its GPU is: %s", node,
                strerror(errno));
    else
        snprintf(text, size, "stays on NUMA node %d, where its GPU is: %d of %d cores", node,
                CPU_COUNT(&near), CPU_COUNT(&allowed));
}

void cores_stay(uint32_t rank, uint32_t ranks, char *text, uint32_t size) {
    cpu_set_t near, one;
    text[0] = '\0';
    if (sched_getaffinity(0, sizeof(near), &near) < 0)
        return;
    const int core = cores_one("", &near, rank, ranks);
    if (core < 0 || CPU_COUNT(&near) == 1)
        return;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    if (sched_setaffinity(0, sizeof(one), &one) < 0)
        snprintf(text, size, "cannot be kept on core %d: %s", core, strerror(errno));
    else
        snprintf(text, size, "stays on core %d", core);
}
