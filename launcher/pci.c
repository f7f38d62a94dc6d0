/* pci.c - see pci.h. */
#include "launcher/pci.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#define DEVICES       "/sys/bus/pci/devices"
#define VENDOR_NVIDIA 0x10deu
#define CLASS_DISPLAY 0x03u /* 3D controllers too */

/* "0x10de"; 0 where it cannot be read. */
static unsigned long number(const char *root, const char *place, const char *name) {
    char path[PATH_MAX], line[32] = "";
    snprintf(path, sizeof(path), "%s" DEVICES "/%.64s/%s", root, place, name);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (!fgets(line, sizeof(line), f))
        line[0] = '\0';
    fclose(f);
    return strtoul(line, NULL, 16);
}

bool pci_gpus(const char *root, bool (*visit)(void *user, const char *place), void *user) {
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s" DEVICES, root);
    DIR *d = opendir(path);
    bool ended = false;
    for (struct dirent *at; d && !ended && (at = readdir(d));)
        ended = at->d_name[0] != '.' && number(root, at->d_name, "vendor") == VENDOR_NVIDIA &&
                number(root, at->d_name, "class") >> 16 == CLASS_DISPLAY && visit(user, at->d_name);
    if (d)
        closedir(d);
    return ended;
}
