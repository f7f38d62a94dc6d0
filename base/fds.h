/* fds.h - file descriptors beside a message of a Unix socket (SCM_RIGHTS).
 *
 * Called by what sends and receives such messages. A descriptor that is sent stays the sender's; one that came is the
 * receiver's to close, and closed on exec where the message was received with MSG_CMSG_CLOEXEC. */
#pragma once

#include <stdint.h>
#include <sys/socket.h>

#define FDS_MAX 8u /* of a message */

/* Room beside a message. */
union fds_space {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
};

/* Puts n <= FDS_MAX descriptors beside the message h, in `space`, which lives as long as it. */
void fds_attach(struct msghdr *h, union fds_space *space, const int *fds, uint32_t n);
/* Those that came beside h into fds[max]; more than fit are closed. Returns how many are in it. */
uint32_t fds_take(struct msghdr *h, int *fds, uint32_t max);
