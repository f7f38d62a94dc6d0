/* control.c - small messages and file descriptors between the launcher and a child, one SOCK_SEQPACKET record
 * each.
 *
 * The text travels with its length and without the terminator, so a PING is 48 bytes. Descriptors that came
 * with a message we refuse are closed here, so a malformed message leaks nothing. */
#include "proto/step/control.h"

#include "base/fds.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONTROL_MAGIC   0x4c525443u /* "CTRL" */
#define CONTROL_VERSION 1u

struct wire {
    uint32_t magic;
    uint16_t version, kind;
    uint32_t n_fds, text_bytes;
    uint64_t group_epoch, coord_epoch, a, b;
    char text[CONTROL_TEXT_MAX];
};
#define WIRE_HEAD offsetof(struct wire, text)
_Static_assert(offsetof(struct wire, text) == 48, "no padding");
_Static_assert(CONTROL_FDS_MAX == FDS_MAX, "what is beside a message fits in its room");

int control_pair(int ret_fds[2], struct error *e) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return error_set(e, -errno, "cannot create a control socket: %s", strerror(errno));
    ret_fds[0] = fds[0];
    ret_fds[1] = fds[1];
    return 0;
}

void control_close_fds(struct control_message *m) {
    for (uint32_t i = 0; i < m->n_fds && i < CONTROL_FDS_MAX; i++)
        close(m->fds[i]);
    m->n_fds = 0;
}

int control_send(int fd, const struct control_message *m, struct error *e) {
    if (m->kind == 0 || m->kind >= CONTROL_KINDS || m->n_fds > CONTROL_FDS_MAX)
        return error_set(e, -EINVAL, "a control message of kind %u with %u descriptors", m->kind, m->n_fds);
    struct wire w = {
            .magic = CONTROL_MAGIC,
            .version = CONTROL_VERSION,
            .kind = (uint16_t)m->kind,
            .n_fds = m->n_fds,
            .text_bytes = (uint32_t)strnlen(m->text, CONTROL_TEXT_MAX - 1),
            .group_epoch = m->group_epoch,
            .coord_epoch = m->coord_epoch,
            .a = m->a,
            .b = m->b,
    };
    memcpy(w.text, m->text, w.text_bytes);
    struct iovec iov = {.iov_base = &w, .iov_len = WIRE_HEAD + w.text_bytes};
    union fds_space space;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    fds_attach(&h, &space, m->fds, m->n_fds);
    ssize_t n;
    do
        n = sendmsg(fd, &h, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        int code = errno == ECONNRESET ? -EPIPE : -errno;
        return error_set(e, code, "cannot send on the control socket: %s", strerror(errno));
    }
    return 0;
}

static int check_wire(const struct wire *w, size_t bytes, int flags, uint32_t n_fds, struct error *e) {
    if ((flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        return error_set(e, -EBADMSG,
                "a control message was cut: it is too long, or the limit of open files is reached");
    if (bytes < WIRE_HEAD || w->magic != CONTROL_MAGIC)
        return error_set(e, -EBADMSG, "%zu bytes on the control socket are no control message", bytes);
    if (w->version != CONTROL_VERSION)
        return error_set(e, -EBADMSG,
                "control message version %u, this build has %u: install the same version "
                "everywhere",
                w->version, CONTROL_VERSION);
    if (w->kind == 0 || w->kind >= CONTROL_KINDS)
        return error_set(e, -EBADMSG, "unknown control message %u", w->kind);
    if (w->text_bytes >= CONTROL_TEXT_MAX || bytes != WIRE_HEAD + w->text_bytes ||
            memchr(w->text, 0, w->text_bytes) != NULL)
        return error_set(
                e, -EBADMSG, "control message %u: its text of %u bytes is malformed", w->kind, w->text_bytes);
    if (w->n_fds != n_fds)
        return error_set(e, -EBADMSG,
                "control message %u: %u descriptors announced, %u came (is the limit of open "
                "files reached?)",
                w->kind, w->n_fds, n_fds);
    return 0;
}

static ssize_t receive(int fd, bool block, struct msghdr *h) {
    for (bool reset = false;;) {
        ssize_t n = recvmsg(fd, h, MSG_CMSG_CLOEXEC | (block ? 0 : MSG_DONTWAIT));
        /* The peer went without reading all that we sent. The kernel says so once, before the peer's last words. */
        if (n < 0 && errno == ECONNRESET && !reset) {
            reset = true;
            continue;
        }
        if (n >= 0 || (errno != EINTR && !(block && errno == EAGAIN)))
            return n;
        struct pollfd p = {.fd = fd, .events = POLLIN}; /* block asked for on a non-blocking socket */
        if (errno == EAGAIN && poll(&p, 1, /* timeout= */ -1) < 0 && errno != EINTR)
            return -1;
    }
}

int control_receive(int fd, bool block, struct control_message *ret, struct error *e) {
    struct wire w;
    union fds_space space;
    struct iovec iov = {.iov_base = &w, .iov_len = sizeof(w)};
    struct msghdr h = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof(space)};
    ssize_t n = receive(fd, block, &h);
    if (n < 0) {
        int code = errno == ECONNRESET ? -EPIPE : errno == EWOULDBLOCK ? -EAGAIN : -errno;
        return error_set(e, code, "cannot read the control socket: %s", strerror(errno));
    }
    struct control_message m = {0};
    m.n_fds = fds_take(&h, m.fds, CONTROL_FDS_MAX);
    if (n == 0 && m.n_fds == 0) /* an empty record cannot be told from the end; nobody of ours sends one */
        return error_set(e, -EPIPE, "the other end of the control socket is closed");
    int r = check_wire(&w, (size_t)n, h.msg_flags, m.n_fds, e);
    if (r < 0) {
        control_close_fds(&m);
        return r;
    }
    m.kind = w.kind;
    m.group_epoch = w.group_epoch;
    m.coord_epoch = w.coord_epoch;
    m.a = w.a;
    m.b = w.b;
    memcpy(m.text, w.text, w.text_bytes);
    *ret = m;
    return 0;
}
