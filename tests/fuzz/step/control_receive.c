/* control_receive.c - hostile bytes, with and without descriptors, on a control socket: a message or a
 * refusal, no leak. A leaked descriptor runs the process out of them within seconds, which control_pair then
 * reports. */
#include "proto/step/control.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int s[2];
    struct control_message m;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(16 * sizeof(int))];
    } space = {0};
    if (size < 1 || size > 4096)
        return 0;
    if (control_pair(s, NULL) < 0)
        abort();
    unsigned n_fds = data[0] % 16;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)(data + 1), .iov_len = size - 1};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds > 0) {
        h.msg_control = &space;
        h.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(c) + i * sizeof(int), &s[0], sizeof(int));
    }
    if (sendmsg(s[0], &h, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 &&
            control_receive(s[1], /* block= */ false, &m, NULL) == 0) {
        if (memchr(m.text, 0, sizeof(m.text)) == NULL || m.n_fds > CONTROL_FDS_MAX)
            abort();
        control_close_fds(&m);
    }
    close(s[0]);
    close(s[1]);
    return 0;
}
