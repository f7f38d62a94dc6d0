/* meeting.c - see meeting.h. */
#include "tp/worker/meeting.h"

#include "base/futex.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

#define LOOK_NS (100 * CLOCK_MS) /* an end of the meeting wakes nobody who sleeps on a seat */

struct seat {
    _Atomic uint32_t taken; /* the numbers are there */
    uint64_t numbers[MEETING_NUMBERS];
};
struct meeting {
    _Atomic uint32_t ended;
    struct seat seats[MEETING_ROUNDS][RANKS_MAX];
};

size_t meeting_bytes(void) {
    return (sizeof(struct meeting) + 4095) / 4096 * 4096;
}

static int wait_for(struct meeting *m, struct seat *s, uint32_t rank, struct error *e) {
    while (!atomic_load(&s->taken)) {
        if (atomic_load(&m->ended))
            return error_set(e, -ECANCELED, "rank %u: the group was stopped while its ranks loaded", rank);
        futex_wait(&s->taken, 0, LOOK_NS, /* shared= */ true);
    }
    return 0;
}

int meeting_least(struct meeting *m, enum meeting_round round, uint32_t tp, uint32_t rank, uint64_t *numbers,
        uint32_t n, uint32_t *ret_first, struct error *e) {
    struct seat *seats = m->seats[round];
    uint32_t first = 0;
    assert(n <= MEETING_NUMBERS && rank < tp && tp <= RANKS_MAX);
    for (uint32_t i = 0; i < n; i++)
        seats[rank].numbers[i] = numbers[i];
    atomic_store(&seats[rank].taken, 1);
    futex_wake_all(&seats[rank].taken, /* shared= */ true);
    for (uint32_t r = 0; r < tp; r++) {
        int rc = wait_for(m, &seats[r], rank, e);
        if (rc < 0)
            return rc;
        first = n && seats[r].numbers[0] < seats[first].numbers[0] ? r : first;
        for (uint32_t i = 0; i < n; i++)
            numbers[i] = seats[r].numbers[i] < numbers[i] ? seats[r].numbers[i] : numbers[i];
    }
    if (ret_first)
        *ret_first = first;
    return 0;
}

void meeting_end(struct meeting *m) {
    atomic_store(&m->ended, 1);
}
