/* sysfs.h - what /sys says of a PCI device, in lines. Called by what chooses cores, and by what says how two GPUs are
 * connected. root is "" for this machine, a folder for a test. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* The path of `name` in the folder of the device at `place` ("00000000:65:00.0", with a domain of any length); name ""
 * is the folder itself. False where place is no address. */
bool sysfs_pci_path(const char *root, const char *place, const char *name, char *path, size_t size);
/* The first line of a file, as far as it fits; false where it cannot be read. */
bool sysfs_line(const char *path, char *line, size_t size);
