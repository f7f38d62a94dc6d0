/* worker_rank.h - the thread of one rank in a worker process, as worker.c sees it.
 *
 * The main thread hands it rings and asks it to stop; the thread loads, executes and reports through atomics
 * and an eventfd. A new ring takes effect when everything that was committed to the old one has been
 * executed: all ranks have seen the same records then, so none waits for another in a collective. */
#pragma once

#include "proto/step/ring.h"
#include "tp/worker/rank.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum worker_rank_state {
    WORKER_RANK_LOADING,
    WORKER_RANK_READY,
    WORKER_RANK_FAILED,  /* e says why; the thread is gone */
    WORKER_RANK_STOPPED, /* the thread is gone */
};

struct worker_rank {
    struct rank_options options;
    int event_fd; /* shared by all ranks of the process: written when state changes */
    pthread_t thread;
    bool started;

    _Atomic uint32_t state; /* enum worker_rank_state */
    _Atomic uint64_t bytes_done, bytes_total;
    _Atomic uint64_t dropped; /* records of another epoch */
    /* As of step_exec.h, when the last answer was handed out. */
    _Atomic uint64_t host_ns;
    _Atomic uint32_t graph_nodes;
    _Atomic bool stop;           /* finish what is committed, then end */
    _Atomic bool end_of_service; /* a STOP record came */
    char ready_text[640];        /* valid once READY */
    struct error e;              /* valid once FAILED */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct rank *rank;           /* published under lock, for rank_abort() */
    struct step_ring *ring;      /* in use by the thread */
    struct step_ring *next_ring; /* replaces it */
    uint64_t begun;              /* the last step that was; the thread's alone, as are those below */
    uint64_t at_step;            /* where the device was when it was published last; UINT64_MAX = elsewhere */
    uint32_t at_layer;
};

int worker_rank_start(
        struct worker_rank *w, const struct rank_options *options, int event_fd, struct error *e);
/* Takes ownership of ring. */
void worker_rank_channel(struct worker_rank *w, struct step_ring *ring);
void worker_rank_stop(struct worker_rank *w);
void worker_rank_abort(
        struct worker_rank *w); /* gives up waiting for other ranks; the thread fails or stops */
/* Joins the thread, which must have ended or been told to stop, and releases everything. */
void worker_rank_done(struct worker_rank *w);
