/* comm_pass.h - descriptors of memory, from every rank of a group to every other one that is another process.
 *
 * Called by comm_inbox.c. A rank takes them on a datagram socket of its own, whose address the kernel chooses among the
 * abstract ones: nothing to clean up in a file system, and what neither /proc nor a tracer's rights are needed for. Who
 * has sent one is told by the kernel, so nobody else's is taken. Anybody on the machine can send there: what fills a
 * queue is taken and dropped, and who finds one full tries again. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

/* Where a rank takes descriptors: told to the others. */
struct pass_address {
    struct sockaddr_un name;
    socklen_t bytes;
};
struct pass_peer { /* another rank of another process; pid 0: not one */
    pid_t pid;
    struct pass_address address;
};

/* *ret_socket is the caller's to close. */
int pass_open(int *ret_socket, struct pass_address *ret, struct error *e);
/* Sends fd, which stays the caller's, to all peers[n], and takes one of each into fds[], which are the caller's to
 * close; -1 where there is no peer, and everywhere on failure. Whoever is told an address sends there at once: who does
 * not come in `seconds` fails it. */
int pass_all(int socket, uint32_t own_rank, int fd, const struct pass_peer *peers, uint32_t n,
        uint32_t seconds, int fds[RANKS_MAX], struct error *e);
