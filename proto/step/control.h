/* control.h - the control socket between the launcher and each of its children (SOCK_SEQPACKET pair, fd 3).
 *
 * Small fixed messages, file descriptors beside them by SCM_RIGHTS. The launcher speaks first; a child that
 * reads end-of-file on it exits: the launcher is gone. Every message names the epochs it belongs to. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define CONTROL_FD       3 /* of a child, set up before exec */
#define CONTROL_FDS_MAX  8
#define CONTROL_TEXT_MAX 512

enum control_kind {
    CONTROL_CHANNEL =
            1, /* launcher -> child: epochs and the step ring's memfd (1 fd). Replaces an older channel */
    CONTROL_LISTENERS, /* launcher -> coordinator: n listening sockets (fds), text = their names, one per line */
    CONTROL_READY,     /* child -> launcher: weights loaded / serving. text = one line for people */
    CONTROL_LOADING,    /* child -> launcher: a = done, b = total (bytes), text = what */
    CONTROL_FAULT,      /* child -> launcher: cannot go on; text = why. The child exits after it, unless a is
                        * CONTROL_FAULT_STAYS: the coordinator answers, but serves no more */
    CONTROL_PING,       /* launcher -> child, a = number */
    CONTROL_PONG,       /* child -> launcher, same a */
    CONTROL_STOP,       /* launcher -> child: drain and exit; a = grace in ms */
    CONTROL_GROUP_LOST, /* launcher -> coordinator: a = dead rank, b = the signal it died of (0: none, or it was
                         * hung); a new CHANNEL follows when the group is back */
    CONTROL_STUCK, /* coordinator -> launcher: a = rank that makes no progress or answered wrongly; text =
                    * why. The launcher restarts the rank group (GROUP_LOST and a CHANNEL follow) */
    /* A keeper of weights (tp/worker/keeper.h); a = rank: */
    CONTROL_LINK, /* launcher -> keeper: a socket to the worker that is started (1 fd), instead of an older one;
                   * a = number. PONG follows */
    CONTROL_TAKE, /* worker -> keeper: text = manifest of the weights it wants. KEPT follows */
    CONTROL_KEPT, /* keeper -> worker: their memory (1 fd) and b = their sum, or none */
    CONTROL_PUT,  /* worker -> keeper: memory to keep (1 fd), b = sum, text = manifest */
    CONTROL_KINDS,
};

#define CONTROL_FAULT_STAYS 1u

struct control_message {
    uint32_t kind;
    uint32_t n_fds;
    uint64_t group_epoch, coord_epoch;
    uint64_t a, b;
    char text[CONTROL_TEXT_MAX];
    int fds[CONTROL_FDS_MAX]; /* received ones are O_CLOEXEC and the receiver's to close */
};

/* Sends m->fds[0..n_fds) beside the message; they stay the caller's. Never raises SIGPIPE. -EPIPE: the peer
 * is gone; -EAGAIN: a non-blocking socket is full. */
int control_send(int fd, const struct control_message *m, struct error *e);
/* One message. *ret is set only on success; the fds of a refused message are closed. 0; -EAGAIN when none
 * waits (non-blocking); -EPIPE at end-of-file; -EBADMSG for a malformed one. */
int control_receive(int fd, bool block, struct control_message *ret, struct error *e);
/* A SOCK_SEQPACKET pair, both ends O_CLOEXEC. */
int control_pair(int ret_fds[2], struct error *e);
void control_close_fds(struct control_message *m); /* closes fds[0..n_fds) and sets n_fds = 0 */
