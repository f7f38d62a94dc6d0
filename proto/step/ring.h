/* ring.h - the shared-memory channel between one coordinator and the ranks of one group, on one host.
 *
 * One memfd, made by the launcher for each (group_epoch, coord_epoch), mapped by the coordinator and by every
 * rank. It holds a ring of plan records (one writer, all ranks read the same bytes: a record is committed by
 * one release store, so it reaches all of them or none), and per rank a ring of completions and a progress
 * word. Waiting spins briefly, then sleeps on a futex in the shared words (works across processes). Sizes are
 * validated against the memfd's size and sealed limits at attach: a peer that scribbles can make a record
 * malformed, which step_decode refuses, but never make the other side read outside the mapping. */
#pragma once

#include "proto/step/step.h"

#include <stdbool.h>

struct step_ring;

/* Creates a sealed memfd (F_SEAL_GROW|SHRINK) for n_ranks ranks; *ret_fd is O_CLOEXEC and the caller's. */
int step_ring_create(
        uint32_t n_ranks, uint64_t group_epoch, uint64_t coord_epoch, int *ret_fd, struct error *e);

/* Maps fd (which may be closed afterwards). rank = STEP_RING_COORDINATOR, 0..n_ranks-1, or STEP_RING_OBSERVER
 * for who only reads progress and epochs (the launcher) or kicks. -EBADMSG for a memfd that is not such a
 * ring: size, seals, magic, version. One thread at a time uses a step_ring, except for the kicks and for
 * reading progress. */
#define STEP_RING_COORDINATOR UINT32_MAX
#define STEP_RING_OBSERVER    (UINT32_MAX - 1)
int step_ring_attach(int fd, uint32_t rank, struct step_ring **ret, struct error *e);
struct step_ring *step_ring_free(struct step_ring *r); /* unmaps; NULL ok */
uint32_t step_ring_ranks(const struct step_ring *r);
uint64_t step_ring_group_epoch(const struct step_ring *r);
uint64_t step_ring_coord_epoch(const struct step_ring *r);

/* What comes out of the ring (records, completions) is copied to private memory first: a peer that writes to
 * the mapping afterwards changes nothing that was checked. -EBADMSG = the peer wrote nonsense into the shared
 * words; the channel is of no more use. -EINVAL = not this side's function. */

/* Coordinator. Space for a record of `bytes` in the ring, contiguous and 64-byte aligned; -EAGAIN when the
 * slowest rank has not yet read enough. -EMSGSIZE above STEP_RECORD_MAX. The record becomes visible at
 * commit, which may take fewer bytes than were reserved. */
int step_ring_reserve(struct step_ring *r, uint32_t bytes, void **ret_record);
void step_ring_commit(struct step_ring *r, uint32_t bytes);
/* Rank. The next record (stays valid until release), or -EAGAIN. */
int step_ring_next(struct step_ring *r, const void **ret_record, uint32_t *ret_bytes);
void step_ring_release(struct step_ring *r);

/* Rank: appends one completion (header + body). -EAGAIN when the coordinator is behind. bytes,
 * magic, protocol, rank and the epochs of *c are filled in. */
int step_ring_complete(
        struct step_ring *r, const struct step_completion *c, const void *body, uint32_t body_bytes);
/* Coordinator: the next completion of a rank, or -EAGAIN. Bytes are checked against the ring; valid until
 * release. */
int step_ring_completion(
        struct step_ring *r, uint32_t rank, const struct step_completion **ret, const void **ret_body);
void step_ring_completion_release(struct step_ring *r, uint32_t rank);

/* Sleeps until there may be something new for this side (a record, or a completion of any rank), until
 * timeout_ns has passed (0 = do not sleep), or until step_ring_kick() from any thread or process. 0 or
 * -ETIMEDOUT. */
int step_ring_wait(struct step_ring *r, uint64_t timeout_ns);
void step_ring_kick(struct step_ring *r);     /* wakes the coordinator side */
void step_ring_kick_all(struct step_ring *r); /* wakes both sides */

/* Progress of a rank, for the watchdog: written by the rank as it goes, read by the launcher or the
 * coordinator. */
struct step_progress {
    uint64_t step;
    uint32_t layer, operation;
    uint64_t changes; /* counts updates */
    bool busy;        /* work is pending */
};
void step_ring_progress(struct step_ring *r, uint64_t step, uint32_t layer, uint32_t operation, bool busy);
void step_ring_progress_read(const struct step_ring *r, uint32_t rank, struct step_progress *ret);
