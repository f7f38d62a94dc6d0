/* host_memory.c - see host_memory.h. */
#include "base/host_memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The number behind the key that a line begins with; false where there is none. */
static bool read_number(const char *root, const char *name, const char *key, uint64_t *ret) {
    char path[PATH_MAX], line[256];
    bool found = false;
    snprintf(path, sizeof path, "%s%s", root, name);
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

void host_memory_group(const char *root, uint64_t *ret_limit, uint64_t *ret_used) {
    uint64_t cache = 0;
    if (!read_number(root, "/sys/fs/cgroup/memory.max", "", ret_limit) ||
            !read_number(root, "/sys/fs/cgroup/memory.current", "", ret_used)) {
        *ret_limit = *ret_used = 0; /* "max" is no number: no limit */
        return;
    }
    read_number(root, "/sys/fs/cgroup/memory.stat", "inactive_file ", &cache);
    *ret_used -= cache < *ret_used ? cache : *ret_used;
}

uint64_t host_memory_free(const char *root) {
    uint64_t kib = 0, limit, used;
    read_number(root, "/proc/meminfo", "MemAvailable:", &kib);
    host_memory_group(root, &limit, &used);
    uint64_t bytes = kib * 1024, left = limit > used ? limit - used : 0;
    return limit > 0 && left < bytes ? left : bytes;
}
