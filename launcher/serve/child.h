/* child.h - one process that the supervisor started: its pidfd, its control socket and what it last said.
 *
 * Used by the supervisor's single thread only (PR_SET_PDEATHSIG belongs to the thread that forked). A child gets the
 * control socket as fd 3, workers the communicator's memfd as fd 4 and a socket to their keeper as fd 5, /dev/null as
 * stdin, stderr as stdout, and nothing else. It leads a process group of its own, so that Ctrl-C in a terminal reaches
 * the supervisor alone, and the kernel kills it when the supervisor dies. */
#pragma once

#include "base/error.h"
#include "proto/step/control.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CHILD_FIRST_FD  4 /* of those besides the control socket */
#define CHILD_COMM_FD   4
#define CHILD_KEEPER_FD 5
#define CHILD_FDS_MAX   2

struct child_fds { /* fds[i] becomes CHILD_FIRST_FD + i; they stay the caller's */
    int fds[CHILD_FDS_MAX];
    uint32_t n;
};

struct child {
    char name[48];                /* for people: "worker of rank 0" */
    pid_t pid;                    /* 0 = none */
    int pidfd, control;           /* -1 = none */
    bool ready;                   /* said CONTROL_READY */
    bool killed;                  /* we sent SIGKILL: its death is no news */
    uint32_t end_signal;          /* that it died of, not ours; 0 = none. Set by child_reap() */
    char fault[CONTROL_TEXT_MAX]; /* why it said it cannot go on; "" = it did not */
    uint64_t ping;                /* number of the last ping */
    uint64_t ping_ns;             /* when the unanswered ping was sent; 0 = none is out */
    int exit_code;                /* of the one reaped last; -1 = a signal */
    uint64_t eof_ns;              /* when it closed its control socket; 0 = open */
    uint64_t loaded, to_load;     /* bytes, as last told */
};

void child_init(struct child *c, const char *name);
/* argv[0] is the program's path. On failure nothing is left running. */
int child_spawn(struct child *c, char *const argv[], char *const environment[], struct child_fds fds,
        struct error *e);
/* Sends a message without blocking; false when the child cannot take it (it is dying or frozen). */
bool child_send(struct child *c, const struct control_message *m);
void child_kill(struct child *c);
void child_end(struct child *c); /* kills it and waits until it is reaped */
/* True once the process has ended; what it said before that may still be read. */
bool child_ended(const struct child *c);
/* True once the process has ended: it is reaped, its fds are closed, and text tells how it ended. */
bool child_reap(struct child *c, char *text, size_t size);
static inline bool child_alive(const struct child *c) {
    return c->pid > 0;
}
