/* line_reader.h - lines from a descriptor, where waiting for one can be interrupted (interrupt.h). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct line_reader {
    int fd;
    char *buffer; /* owned: what was read and not yet returned */
    size_t n, room;
    bool ended;
};

/* The next line without its newline: malloc'ed, the caller's. 0; -ENODATA at the end; -EINTR when interrupted
 * (what was typed of the line is dropped); -E2BIG for a line above REQUEST_BYTES_MAX; -ENOMEM; or read's
 * errno. */
int line_reader_next(struct line_reader *r, char **ret_line);
void line_reader_done(struct line_reader *r);
