/* flight.h - records that are on their way to the ranks, and what comes back. Engine thread only.
 *
 * flight_next() and flight_watch() say what happened; what follows from it (a group that is given up, a
 * geometry that is taken) is the loop's to decide. */
#pragma once

#include "daemon/engine/state.h"

enum flight_event {
    FLIGHT_NONE,    /* nothing (more) has come */
    FLIGHT_RETIRED, /* every rank has answered a plan; its tokens are handed out */
    FLIGHT_PONG,    /* every rank has answered a PING or STOP */
    FLIGHT_READY,   /* every rank has answered RESET */
    FLIGHT_FAULT,   /* a rank answered wrongly or not at all: the group is of no more use */
};

/* Whose rows were being computed when a group died. A rank computes the records in order and publishes the one it
 * has begun (step_ring_progress), in memory that outlives it; so what it was at is known to the step. */
enum blame {
    BLAME_NOBODY,    /* a restart, a load, a ring that is no good */
    BLAME_EXECUTING, /* what `rank` had begun and not answered; rank out of range: what any of them had */
    BLAME_ANSWERED,  /* the oldest record: a rank answered it wrongly */
};
struct death {
    enum blame blame;
    uint32_t rank;
    bool from_outside; /* a signal that nobody's rows raise (SIGKILL, SIGTERM): it says less about them */
};

struct flight_report {
    uint32_t n_prompt_rows;                     /* RETIRED */
    uint64_t compute_ns;                        /* RETIRED: of the slowest rank */
    struct death death;                         /* FAULT */
    char text[STEP_FAULT_TEXT_MAX + 1];         /* FAULT: for people */
    struct step_geometry geometries[RANKS_MAX]; /* READY: [n_ranks] */
};

/* The next free record; it counts only once it is committed. */
struct flight *flight_begin(struct engine *g, enum step_type type);
/* 0, or negative for a ring that takes no more: it is damaged, since it has room for all that may be in flight. */
int flight_commit(struct engine *g, struct flight *f, uint64_t now);
int flight_send_bare(
        struct engine *g, enum step_type type, uint64_t now); /* begin and commit; -EAGAIN: no room */
/* Takes the answers to the oldest record, if all ranks have given them. Call it until FLIGHT_NONE. */
enum flight_event flight_next(struct engine *g, uint64_t now, struct flight_report *ret);
/* FLIGHT_FAULT when a rank that owes an answer does not move any more, else FLIGHT_NONE. */
enum flight_event flight_watch(struct engine *g, uint64_t now, struct flight_report *ret);
/* Marks the sequences that had rows in what was being computed (sequence.blamed). Returns how many. Answers that
 * were not taken are lost: call it last. */
uint32_t flight_blame(struct engine *g, const struct death *death);
void flight_forget(struct engine *g); /* the group is gone: nothing is on its way any more */
