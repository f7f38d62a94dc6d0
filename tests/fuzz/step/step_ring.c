/* step_ring.c - a peer writes what it likes into the shared words and frames: every answer is allowed, no
 * read outside. */
#include "proto/step/ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile uint64_t sink; /* so that no read is optimised away */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define WORDS      4096u /* shared words; the plan ring begins after them */
#define PLAN_BYTES (16u << 20)

struct patch { /* one write of the peer */
    uint16_t at;
    uint8_t where, length;
    uint64_t value;
};

static void apply(uint8_t *raw, const struct patch *p) {
    size_t base = p->where % 3 == 0 ? 0 : p->where % 3 == 1 ? WORDS : WORDS + (size_t)PLAN_BYTES;
    size_t n = p->length % 8 + 1;
    size_t at = p->at % (WORDS - 8);
    memcpy(raw + base + (p->where & 0x80 ? at & ~(size_t)7 : at), &p->value, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct step_ring *coordinator, *rank;
    struct step_completion c = {.type = STEP_TYPE_PLAN, .step = 1};
    const struct step_completion *answer;
    const void *body;
    void *space;
    uint32_t bytes;
    int fd;
    if (size < sizeof(struct patch) || step_ring_create(1, 1, 1, &fd, NULL) < 0)
        return 0;
    if (step_ring_attach(fd, STEP_RING_COORDINATOR, &coordinator, NULL) < 0 ||
            step_ring_attach(fd, 0, &rank, NULL) < 0)
        abort();
    uint8_t *raw = mmap(NULL, WORDS + PLAN_BYTES + (1u << 20), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (raw == MAP_FAILED)
        abort();
    for (; size >= sizeof(struct patch); data += sizeof(struct patch), size -= sizeof(struct patch)) {
        struct patch p;
        memcpy(&p, data, sizeof(p));
        if (step_ring_reserve(coordinator, p.at, &space) == 0)
            step_ring_commit(coordinator, p.at);
        if (step_ring_complete(rank, &c, NULL, 0) == 0)
            sink++;
        apply(raw, &p);
        if (step_ring_next(rank, &body, &bytes) == 0) {
            for (uint32_t i = 0; i < bytes; i++)
                sink += ((const uint8_t *)body)[i];
            step_ring_release(rank);
        }
        if (step_ring_completion(coordinator, 0, &answer, &body) == 0) {
            sink += answer->checksum;
            step_ring_completion_release(coordinator, 0);
        }
    }
    step_ring_free(rank);
    if (step_ring_attach(fd, 0, &rank, NULL) == 0)
        step_ring_free(rank);
    step_ring_free(coordinator);
    munmap(raw, WORDS + PLAN_BYTES + (1u << 20));
    close(fd);
    return 0;
}
