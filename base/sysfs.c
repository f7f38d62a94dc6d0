/* sysfs.c - see sysfs.h. */
#include "base/sysfs.h"

#include <stdio.h>

bool sysfs_pci_path(const char *root, const char *place, const char *name, char *path, size_t size) {
    unsigned domain, bus, device, function;
    if (sscanf(place, "%x:%x:%x.%x", &domain, &bus, &device, &function) != 4)
        return false;
    /* the kernel writes a domain with four digits where they are enough */
    const int n = snprintf(path, size, "%s/sys/bus/pci/devices/%04x:%02x:%02x.%x%s%s", root, domain, bus,
            device, function, *name ? "/" : "", name);
    return n > 0 && (size_t)n < size;
}

bool sysfs_line(const char *path, char *line, size_t size) {
    FILE *f = fopen(path, "re");
    const bool read = f && fgets(line, (int)size, f);
    if (f)
        fclose(f);
    return read;
}
