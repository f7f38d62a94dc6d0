/* pci.h - NVIDIA's GPUs on the PCI bus, as /sys shows them with a driver and without one. Called by serve/, which only
 * wants to know whether there is one, and by doctor/. */
#pragma once

#include <stdbool.h>

/* Calls visit for each, in no order, until it returns true: place is its address, "0000:65:00.0", valid during the
 * call. root is "" for this machine, a folder for a test. Returns whether a visit did. */
bool pci_gpus(const char *root, bool (*visit)(void *user, const char *place), void *user);
