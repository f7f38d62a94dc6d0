/* fds.c - see fds.h. */
#include "base/fds.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

void fds_attach(struct msghdr *h, union fds_space *space, const int *fds, uint32_t n) {
    assert(n <= FDS_MAX);
    if (n == 0)
        return;
    memset(space, 0, sizeof(*space));
    h->msg_control = space;
    h->msg_controllen = CMSG_SPACE(n * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(h);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
}

uint32_t fds_take(struct msghdr *h, int *fds, uint32_t max) {
    uint32_t n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c != NULL; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(0))
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (n < max)
                fds[n++] = fd;
            else
                close(fd);
        }
    }
    return n;
}
