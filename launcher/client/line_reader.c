/* line_reader.c - see line_reader.h. */
#include "launcher/client/line_reader.h"

#include "base/limits.h"
#include "launcher/client/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 65536

/* The first `length` bytes as a line; `used` bytes leave the buffer. */
static int take(struct line_reader *r, size_t length, size_t used, char **ret_line) {
    char *line = malloc(length + 1);
    if (!line)
        return -ENOMEM;
    memcpy(line, r->buffer, length);
    line[length] = '\0';
    memmove(r->buffer, r->buffer + used, r->n - used);
    r->n -= used;
    *ret_line = line;
    return 0;
}

static int wait_for_input(struct line_reader *r) {
    struct pollfd fds[] = {{.fd = r->fd, .events = POLLIN}, {.fd = interrupt_fd(), .events = POLLIN}};
    while (poll(fds, 2, -1) < 0)
        if (errno != EINTR)
            return -errno;
    if (!fds[1].revents)
        return 0;
    r->n = 0;
    return -EINTR;
}

static int fill(struct line_reader *r) {
    if (r->n > REQUEST_BYTES_MAX)
        return -E2BIG;
    if (r->room - r->n < READ_BYTES) {
        char *more = realloc(r->buffer, r->n + READ_BYTES);
        if (!more)
            return -ENOMEM;
        r->buffer = more;
        r->room = r->n + READ_BYTES;
    }
    ssize_t got = read(r->fd, r->buffer + r->n, READ_BYTES);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : -errno;
    r->n += (size_t)got;
    r->ended = got == 0;
    return 0;
}

int line_reader_next(struct line_reader *r, char **ret_line) {
    for (;;) {
        char *newline = r->n ? memchr(r->buffer, '\n', r->n) : NULL;
        if (newline)
            return take(r, (size_t)(newline - r->buffer), (size_t)(newline - r->buffer) + 1, ret_line);
        if (r->ended)
            return r->n ? take(r, r->n, r->n, ret_line) : -ENODATA;
        int rc = wait_for_input(r);
        if (rc == 0)
            rc = fill(r);
        if (rc < 0)
            return rc;
    }
}

void line_reader_done(struct line_reader *r) {
    free(r->buffer);
    *r = (struct line_reader){.fd = r->fd};
}
