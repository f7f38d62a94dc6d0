/* comm_pass.c - see comm_pass.h. */
#include "kernels/cuda/comm_pass.h"

#include "base/clock.h"
#include "base/fds.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#define TAKEN_AT_ONCE 64u /* messages */
#define RETRY_MS      5u  /* nothing tells when another's queue has room */

int pass_open(int *ret_socket, struct pass_address *ret, struct error *e) {
    const struct sockaddr_un any = {.sun_family = AF_UNIX};
    const int on = 1, s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    *ret = (struct pass_address){.bytes = sizeof ret->name};
    if (s < 0 || setsockopt(s, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0 ||
            bind(s, (const struct sockaddr *)&any, sizeof any.sun_family) < 0 ||
            getsockname(s, (struct sockaddr *)&ret->name, &ret->bytes) < 0) {
        const int code = errno;
        if (s >= 0)
            close(s);
        return error_set(e, -code, "no socket to pass descriptors of memory: %s", strerror(code));
    }
    *ret_socket = s;
    return 0;
}

/* -EAGAIN: the peer's queue is full. */
static int send_to(int socket, uint32_t own_rank, int fd, const struct pass_peer *peer) {
    struct iovec iov = {.iov_base = &own_rank, .iov_len = sizeof own_rank};
    struct msghdr h = {.msg_name = (void *)(uintptr_t)&peer->address.name,
            .msg_namelen = peer->address.bytes,
            .msg_iov = &iov,
            .msg_iovlen = 1};
    union fds_space space;
    fds_attach(&h, &space, &fd, 1);
    while (sendmsg(socket, &h, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* Who the kernel says has sent a message, of our own user; 0 = nobody known here. */
static pid_t sender_of(struct msghdr *h) {
    struct ucred who = {0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS &&
                c->cmsg_len >= CMSG_LEN(sizeof who))
            memcpy(&who, CMSG_DATA(c), sizeof who);
    return who.uid == geteuid() ? who.pid : 0;
}
/* Puts the next message's descriptor into fds[] where a peer has sent it that had not; others' is closed. -EAGAIN:
 * there is none now. */
static int take_next(int socket, const struct pass_peer *peers, uint32_t n, int *fds) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } space;
    uint32_t rank = n;
    struct iovec iov = {.iov_base = &rank, .iov_len = sizeof rank};
    struct msghdr h = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space};
    int fd = -1;
    const ssize_t bytes = recvmsg(socket, &h, MSG_CMSG_CLOEXEC);
    if (bytes < 0)
        return errno == EINTR ? 0 : -errno;
    const pid_t sender = sender_of(&h);
    fds_take(&h, &fd, 1);
    if (fd >= 0 && bytes == sizeof rank && rank < n && sender && peers[rank].pid == sender && fds[rank] < 0)
        fds[rank] = fd;
    else if (fd >= 0)
        close(fd);
    return 0;
}
static uint32_t first_missing(const struct pass_peer *peers, uint32_t n, const int *fds) {
    uint32_t r = 0;
    while (r < n && (!peers[r].pid || fds[r] >= 0))
        r++;
    return r;
}
static uint32_t first_unsent(const struct pass_peer *peers, uint32_t n, const bool *sent) {
    uint32_t r = 0;
    while (r < n && (!peers[r].pid || sent[r]))
        r++;
    return r;
}
/* Sends to whom has room and takes what has come, neither of which waits: a stranger can fill anybody's queue, and only
 * who goes on taking makes room for others in his. */
static int pass_some(int socket, uint32_t own_rank, int fd, const struct pass_peer *peers, uint32_t n,
        bool *sent, int *fds, struct error *e) {
    int rc = 0;
    for (uint32_t r = 0; r < n; r++) {
        if (!peers[r].pid || sent[r])
            continue;
        rc = send_to(socket, own_rank, fd, &peers[r]);
        if (rc < 0 && rc != -EAGAIN)
            return error_set(e, rc, "rank %u cannot pass memory to rank %u: %s", own_rank, r, strerror(-rc));
        sent[r] = rc == 0;
    }
    rc = 0;
    for (uint32_t i = 0; i < TAKEN_AT_ONCE && rc == 0; i++)
        rc = take_next(socket, peers, n, fds);
    if (rc < 0 && rc != -EAGAIN)
        return error_set(e, rc, "rank %u cannot take memory of others: %s", own_rank, strerror(-rc));
    return 0;
}
static int pass_until(int socket, uint32_t own_rank, int fd, const struct pass_peer *peers, uint32_t n,
        uint64_t end, int *fds, struct error *e) {
    bool sent[RANKS_MAX] = {false};
    for (;;) {
        const int rc = pass_some(socket, own_rank, fd, peers, n, sent, fds, e);
        const uint32_t unsent = first_unsent(peers, n, sent), missing = first_missing(peers, n, fds);
        const uint64_t now = clock_ns();
        struct pollfd p = {.fd = socket, .events = POLLIN};
        if (rc < 0 || (unsent == n && missing == n))
            return rc;
        if (now >= end && missing < n)
            return error_set(
                    e, -ETIMEDOUT, "rank %u was passed no memory by rank %u in time", own_rank, missing);
        if (now >= end)
            return error_set(e, -ETIMEDOUT, "rank %u does not take the memory of rank %u", unsent, own_rank);
        const uint64_t left = (end - now) / CLOCK_MS + 1;
        poll(&p, 1,
                (int)(unsent < n && left > RETRY_MS ? RETRY_MS : left)); /* whatever it says, all is tried */
    }
}
int pass_all(int socket, uint32_t own_rank, int fd, const struct pass_peer *peers, uint32_t n,
        uint32_t seconds, int fds[RANKS_MAX], struct error *e) {
    const uint64_t end = clock_ns() + seconds * 1000 * CLOCK_MS;
    assert(n <= RANKS_MAX);
    for (uint32_t r = 0; r < RANKS_MAX; r++)
        fds[r] = -1;
    const int rc = pass_until(socket, own_rank, fd, peers, n, end, fds, e);
    for (uint32_t r = 0; r < n && rc < 0; r++) {
        if (fds[r] >= 0)
            close(fds[r]);
        fds[r] = -1;
    }
    return rc;
}
