/* machine_checks.c - processor, memory and limits: all of them matter where the CPU computes, some for a GPU too. */
#include "launcher/doctor/checkup.h"

#include "base/sizes.h"

#include <inttypes.h>
#include <string.h>

#define WHERE "machine"

#define HOST_MEMORY_LEAST (1ull << 30) /* coordinator, tokenizer, rings: some hundred MB */

static void check_cpu(struct checkup *c) {
    const struct host *h = &c->host;
    const bool slow = !c->cuda && strcmp(h->isa, "plain") == 0;
    found(&c->findings, WHERE, "machine.cpu", slow ? FOUND_WARNING : FOUND_OK,
            "%s: %u of %u threads usable, %s%s", h->cpu[0] ? h->cpu : "a processor without a name",
            h->threads, h->threads_total, h->isa,
            slow ? ": neither AVX2 nor AVX-512, so the CPU worker is slow" : "");
    if (slow)
        advise(&c->findings,
                "Take a processor with AVX2, or let the virtual machine have the host's (-cpu host).");
    if (h->threads < c->tp && !c->cuda)
        found(&c->findings, WHERE, "machine.threads", FOUND_NOTE, "%u ranks share %u threads", c->tp,
                h->threads);
    if (h->numa_nodes > 1)
        found(&c->findings, WHERE, "machine.numa", FOUND_NOTE,
                "%u NUMA nodes: a CPU rank is fastest with its threads and memory in one (numactl)",
                h->numa_nodes);
}

static void check_memory(struct checkup *c) {
    const struct host *h = &c->host;
    const uint64_t left = host_memory_left(h);
    const bool grouped = h->group_limit && h->group_limit < h->memory_total,
               little = left < HOST_MEMORY_LEAST;
    char group[96] = "";
    if (grouped)
        snprintf(group, sizeof(group), ", of which the control group leaves %s of %s", SIZE_TEXT(left),
                SIZE_TEXT(h->group_limit));
    found(&c->findings, WHERE, "machine.memory", little ? FOUND_WARNING : FOUND_OK,
            "memory %s, %s available%s", SIZE_TEXT(h->memory_total), SIZE_TEXT(h->memory_available), group);
    if (little)
        advise(&c->findings, grouped ? "Raise the limit of the container or unit (MemoryMax=)."
                                     : "End other programs: the coordinator alone wants some hundred MB.");
}

static void check_pages(struct checkup *c) {
    const struct host *h = &c->host;
    const bool never = strcmp(h->transparent, "never") == 0;
    if (h->transparent[0]) {
        found(&c->findings, WHERE, "machine.huge_pages", never && !c->cuda ? FOUND_WARNING : FOUND_OK,
                "transparent huge pages: %s", h->transparent);
        if (never && !c->cuda)
            advise(&c->findings,
                    "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`: weights are "
                    "read faster from huge pages.");
    }
    if (h->huge_pages)
        found(&c->findings, WHERE, "machine.reserved_pages", FOUND_NOTE,
                "%" PRIu64 " huge pages are reserved (%s): shardd does not use them", h->huge_pages,
                SIZE_TEXT(h->huge_pages * h->huge_page_bytes));
}

static void check_limits(struct checkup *c) {
    const struct host *h = &c->host;
    if (h->shm_bytes)
        found(&c->findings, WHERE, "machine.shm", FOUND_OK,
                "/dev/shm has %s free of %s; what shardd shares is not in it", SIZE_TEXT(h->shm_free),
                SIZE_TEXT(h->shm_bytes));
    else
        found(&c->findings, WHERE, "machine.shm", FOUND_NOTE,
                "/dev/shm is not there; what shardd shares is not in it");
    if (h->memlock_bytes == UINT64_MAX)
        found(&c->findings, WHERE, "machine.memlock", FOUND_OK, "no limit to locked memory");
    else
        found(&c->findings, WHERE, "machine.memlock", FOUND_OK,
                "locked memory is limited to %s; shardd locks none, and what CUDA pins does not count",
                SIZE_TEXT(h->memlock_bytes));
}

void check_machine(struct checkup *c) {
    check_cpu(c);
    check_memory(c);
    check_pages(c);
    check_limits(c);
}
