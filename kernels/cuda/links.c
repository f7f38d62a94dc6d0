/* links.c - see links.h. */
#include "kernels/cuda/links.h"

#include "base/sysfs.h"

#include <assert.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOW_MB_S  6000u /* half of what 16 lanes of PCIe 3 carry */
#define LINKS_ROOM 64u   /* of what lies between a pair */

/* --- NVLink --- */

static bool nvlink(const struct nvml *n, const char *place, const char *other) {
    const struct nvml_gpu *a = nvml_gpu_at(n, place), *b = nvml_gpu_at(n, other);
    return a && b && nvml_linked(n, a, b);
}

/* --- /sys --- */

/* Names of the bridges above a device and its own, from its root on: "pci0000:3a/0000:3a:00.0/0000:3b:00.0". */
static bool bridges_of(const char *root, const char *place, char ret[PATH_MAX]) {
    char path[PATH_MAX], whole[PATH_MAX];
    if (!sysfs_pci_path(root, place, "", path, sizeof path) || !realpath(path, whole))
        return false;
    const char *first = strstr(whole, "/pci");
    if (!first)
        return false;
    snprintf(ret, PATH_MAX, "%s", first + 1);
    return true;
}
/* How many names from the root on are the same. */
static uint32_t shared_names(const char *a, const char *b) {
    uint32_t n = 0;
    for (;; n++) {
        const size_t length = strcspn(a, "/");
        if (length == 0 || length != strcspn(b, "/") || strncmp(a, b, length) != 0)
            return n;
        a += length + (a[length] == '/');
        b += length + (b[length] == '/');
    }
}
static int node_of(const char *root, const char *place) {
    char path[PATH_MAX], line[32];
    if (!sysfs_pci_path(root, place, "numa_node", path, sizeof path) || !sysfs_line(path, line, sizeof line))
        return -1;
    const long node = strtol(line, NULL, 10);
    return node < 0 || node > INT_MAX ? -1 : (int)node;
}
/* -1: the IOMMU has none of it. *translated: it stands between the device and memory. */
static long iommu_group(const char *root, const char *place, bool *translated) {
    char path[PATH_MAX], target[PATH_MAX], line[32];
    if (!sysfs_pci_path(root, place, "iommu_group", path, sizeof path))
        return -1;
    const ssize_t n = readlink(path, target, sizeof target - 1);
    if (n <= 0)
        return -1;
    target[n] = '\0';
    const char *slash = strrchr(target, '/');
    const long group = strtol(slash ? slash + 1 : target, NULL, 10);
    snprintf(path, sizeof path, "%s/sys/kernel/iommu_groups/%ld/type", root, group);
    *translated |= sysfs_line(path, line, sizeof line) && strncmp(line, "DMA", 3) == 0;
    return group;
}

void link_look(
        const char *root, const struct nvml *n, const char *place, const char *other, struct link *ret) {
    char a[PATH_MAX], b[PATH_MAX];
    *ret = (struct link){.nodes = {node_of(root, place), node_of(root, other)}};
    const long groups[2] = {
            iommu_group(root, place, &ret->translated), iommu_group(root, other, &ret->translated)};
    if (bridges_of(root, place, a) && bridges_of(root, other, b)) {
        const uint32_t names = shared_names(a, b);
        ret->kind = names == 0 ? LINK_FAR : names == 1 ? LINK_ROOT : LINK_SWITCH;
    }
    ret->redirected = ret->kind == LINK_SWITCH && groups[0] >= 0 && groups[1] >= 0 && groups[0] != groups[1];
    if (nvlink(n, place, other))
        ret->kind = LINK_NVLINK;
}

/* --- in words --- */

static bool between_nodes(const struct link *l) {
    return l->nodes[0] >= 0 && l->nodes[1] >= 0 && l->nodes[0] != l->nodes[1];
}
static void say_link(const struct link *l, char text[LINKS_ROOM]) {
    static const char *const kinds[] = {
            [LINK_UNKNOWN] = "not told by /sys",
            [LINK_NVLINK] = "NVLink",
            [LINK_SWITCH] = "a PCIe switch",
            [LINK_ROOT] = "a PCIe root",
            [LINK_FAR] = "two PCIe roots",
    };
    if (l->kind != LINK_NVLINK && between_nodes(l))
        snprintf(text, LINKS_ROOM, "NUMA nodes %d and %d",
                l->nodes[0] < l->nodes[1] ? l->nodes[0] : l->nodes[1],
                l->nodes[0] < l->nodes[1] ? l->nodes[1] : l->nodes[0]);
    else
        snprintf(text, LINKS_ROOM, "%s", kinds[l->kind]);
}
static const char *cause_of(const struct link_pair *p) {
    const struct link *l = &p->link;
    if (l->kind == LINK_NVLINK)
        return p->state == PAIR_WELL ? "some links may be down: nvidia-smi nvlink -s"
                                     : "NVLink is there: nvidia-smi nvlink -e and Xid in dmesg say more";
    if (l->translated)
        return "the IOMMU translates what they write: iommu=pt on the kernel's command line, or off in the firmware";
    if (l->redirected)
        return "PCIe ACS sends it by the root: off in the bridges (setpci), or in the firmware";
    if (between_nodes(l))
        return p->state == PAIR_WELL
                       ? "it goes from socket to socket: take GPUs of one NUMA node"
                       : "some machines forward nothing between sockets: take GPUs of one NUMA node";
    return p->state == PAIR_WELL    ? "few PCIe lanes, or old ones: shardd doctor shows them"
           : p->state == PAIR_LOSES ? "an IOMMU or PCIe ACS may stand between them (iommu=pt, ACS off)"
                                    : "the cards or the driver cannot: nvidia-smi topo -p2p w";
}
/* What is wrong with a pair; NULL: nothing is known. */
static const char *wrong_with(const struct link_pair *p, uint32_t best_mb_s) {
    return p->state == PAIR_LOSES                                        ? "what is written gets lost"
           : p->state == PAIR_OUT_OF_REACH                               ? "out of reach"
           : p->mb_s && (p->mb_s < SLOW_MB_S || p->mb_s < best_mb_s / 2) ? "slow"
                                                                         : NULL;
}

struct line {
    char *text;
    size_t size, used;
};
static void add(struct line *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct line *l, const char *format, ...) {
    va_list ap;
    if (l->used + 1 >= l->size)
        return;
    va_start(ap, format);
    const int n = vsnprintf(l->text + l->used, l->size - l->used, format, ap);
    va_end(ap);
    l->used += n > 0 ? (size_t)n : 0;
}
static void say_ways(struct line *l, const struct link_pair *pairs, uint32_t n) {
    uint64_t said = 0; /* bits of pairs */
    char way[LINKS_ROOM], other[LINKS_ROOM];
    for (uint32_t i = 0; i < n; i++) {
        if (said >> i & 1)
            continue;
        say_link(&pairs[i].link, way);
        add(l, "%s%s", i ? ", " : "between ranks: ", way);
        for (uint32_t k = i; k < n; k++) {
            say_link(&pairs[k].link, other);
            if (strcmp(way, other) != 0)
                continue;
            said |= UINT64_C(1) << k;
            add(l, " %u-%u", pairs[k].a, pairs[k].b);
            if (pairs[k].mb_s)
                add(l, " (%u.%u GB/s)", pairs[k].mb_s / 1000, pairs[k].mb_s % 1000 / 100);
        }
    }
}
/* Of pairs with NVLink, or of those without: what PCIe gives is not slow because others have more. */
static uint32_t best_of(const struct link_pair *pairs, uint32_t n, bool nvlink) {
    uint32_t best_mb_s = 0;
    for (uint32_t i = 0; i < n; i++)
        if ((pairs[i].link.kind == LINK_NVLINK) == nvlink && pairs[i].mb_s > best_mb_s)
            best_mb_s = pairs[i].mb_s;
    return best_mb_s;
}
static void say_wrongs(struct line *l, const struct link_pair *pairs, uint32_t n) {
    uint64_t said = 0;
    const uint32_t best[] = {best_of(pairs, n, false), best_of(pairs, n, true)};
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t best_mb_s = best[pairs[i].link.kind == LINK_NVLINK];
        const char *wrong = wrong_with(&pairs[i], best_mb_s), *cause = cause_of(&pairs[i]);
        if (!wrong || said >> i & 1)
            continue;
        add(l, "; %s:", wrong);
        for (uint32_t k = i; k < n; k++)
            if (wrong_with(&pairs[k], best[pairs[k].link.kind == LINK_NVLINK]) == wrong &&
                    cause_of(&pairs[k]) == cause) {
                said |= UINT64_C(1) << k;
                add(l, " %u-%u", pairs[k].a, pairs[k].b);
            }
        add(l, " (%s)", cause);
    }
}
void links_text(const struct link_pair *pairs, uint32_t n, char *text, size_t size) {
    struct line l = {text, size, 0};
    assert(size > 0 && n <= 64);
    text[0] = '\0';
    say_ways(&l, pairs, n);
    say_wrongs(&l, pairs, n);
}
