/* links.h - what lies between two GPUs of a machine, and what usually stands between two that do not reach each other,
 * or slowly.
 *
 * Called by comm_pairs.c for the log: nothing is decided by it. Facts are NVML's (NVLink) and those of /sys (bridges,
 * NUMA nodes, IOMMU groups); what cannot be read is not known, and no error. */
#pragma once

#include "base/nvml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum link_kind {
    LINK_UNKNOWN,
    LINK_NVLINK, /* a bridge, or a switch that both are behind */
    LINK_SWITCH, /* below one port of one root: a PCIe switch */
    LINK_ROOT,   /* of one root complex */
    LINK_FAR,    /* of two */
};
struct link {
    enum link_kind kind;
    int nodes[2];    /* of NUMA; -1 = not told */
    bool translated; /* an IOMMU translates what one of them writes */
    bool redirected; /* below one switch, and apart for the IOMMU: ACS sends what they write by the root */
};
/* Of the devices at two places ("00000000:65:00.0"). root is "" for this machine, a folder for a test. */
void link_look(
        const char *root, const struct nvml *n, const char *place, const char *other, struct link *ret);

enum pair_state {      /* the worst first */
    PAIR_LOSES,        /* what one wrote the other did not find */
    PAIR_OUT_OF_REACH, /* CUDA says so */
    PAIR_WELL,         /* as far as it was tried */
};
/* Two ranks with devices of their own. */
struct link_pair {
    uint32_t a, b;
    struct link link;
    uint32_t mb_s; /* the slower direction; 0 = not measured */
    enum pair_state state;
};
/* One line: the pairs by what lies between them, then what is wrong with which, and why that usually is. n <= 64; ""
 * where it is 0. */
void links_text(const struct link_pair *pairs, uint32_t n, char *text, size_t size);
