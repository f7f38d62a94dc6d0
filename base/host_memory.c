/* host_memory.c - see host_memory.h. */
#include "base/host_memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static bool read_number(const char *path, const char *key, uint64_t *ret) {
    char line[256];
    bool found = false;
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    while (!found && fgets(line, sizeof line, f)) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) == 0)
            found = sscanf(line + n, "%" SCNu64, ret) == 1;
    }
    fclose(f);
    return found;
}

uint64_t host_memory_free(void) {
    uint64_t kib = 0, limit, used;
    read_number("/proc/meminfo", "MemAvailable:", &kib);
    uint64_t bytes = kib * 1024;
    if (read_number("/sys/fs/cgroup/memory.max", "", &limit) &&
            read_number("/sys/fs/cgroup/memory.current", "", &used)) {
        uint64_t left = limit > used ? limit - used : 0;
        bytes = left < bytes ? left : bytes;
    }
    return bytes;
}
