/* synth_file.c - an output file: buffered, counted, under a temporary name until it is whole. */
#include "tp/synth/synth_parts.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER_BYTES (4u << 20)

static void temporary_name(const struct synth_file *f, char ret[80]) {
    snprintf(ret, 80, "%s.part", f->name);
}

int synth_file_open(struct synth_file *f, const struct synth_options *options, int dir_fd, const char *name,
        uint64_t *done, uint64_t total, struct error *e) {
    char temporary[80];
    *f = (struct synth_file){.options = options, .dir_fd = dir_fd, .fd = -1, .done = done, .total = total};
    snprintf(f->name, sizeof(f->name), "%s", name);
    temporary_name(f, temporary);
    f->buffer = malloc(BUFFER_BYTES);
    if (!f->buffer)
        return error_set(e, -ENOMEM, "%s: out of memory", name);
    f->fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        int r = error_set(e, -errno, "%s/%s: cannot create: %s", options->dir, temporary, strerror(errno));
        synth_file_abandon(f);
        return r;
    }
    return 0;
}

static int flush(struct synth_file *f, struct error *e) {
    int r = file_write_all(f->fd, f->buffer, f->buffered);
    if (r < 0)
        return error_set(e, r, "%s/%s: cannot write: %s", f->options->dir, f->name, strerror(-r));
    f->buffered = 0;
    if (f->options->progress)
        f->options->progress(f->options->progress_context, f->name, *f->done, f->total);
    return 0;
}

int synth_file_write(struct synth_file *f, const void *data, size_t bytes, struct error *e) {
    const char *from = data;
    *f->done += bytes;
    while (bytes > 0) {
        size_t room = BUFFER_BYTES - f->buffered, n = bytes < room ? bytes : room;
        memcpy(f->buffer + f->buffered, from, n);
        f->buffered += n;
        from += n;
        bytes -= n;
        if (f->buffered == BUFFER_BYTES) {
            int r = flush(f, e);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

int synth_file_close(struct synth_file *f, struct error *e) {
    char temporary[80];
    temporary_name(f, temporary);
    int r = flush(f, e);
    /* Room that is not there is sometimes only noticed here. */
    if (r == 0 && fdatasync(f->fd) < 0)
        r = error_set(e, -errno, "%s/%s: cannot write: %s", f->options->dir, f->name, strerror(errno));
    if (r == 0 && renameat(f->dir_fd, temporary, f->dir_fd, f->name) < 0)
        r = error_set(e, -errno, "%s/%s: cannot rename: %s", f->options->dir, f->name, strerror(errno));
    if (r == 0) {
        close(f->fd);
        f->fd = -1;
    }
    synth_file_abandon(f);
    return r;
}

void synth_file_abandon(struct synth_file *f) {
    if (f->fd >= 0) {
        char temporary[80];
        temporary_name(f, temporary);
        close(f->fd);
        unlinkat(f->dir_fd, temporary, 0);
        f->fd = -1;
    }
    free(f->buffer);
    f->buffer = NULL;
}

/* --- buffers --- */

static bool reserve(struct synth_buffer *b, size_t more) {
    if (b->failed)
        return false;
    if (b->size - b->n >= more)
        return true;
    size_t size = b->size * 2 > b->n + more ? b->size * 2 : b->n + more + 256;
    char *grown = realloc(b->data, size);
    if (!grown) {
        b->failed = true;
        return false;
    }
    b->data = grown;
    b->size = size;
    return true;
}

void synth_append(struct synth_buffer *b, const void *data, size_t bytes) {
    if (bytes == 0 || !reserve(b, bytes))
        return;
    memcpy(b->data + b->n, data, bytes);
    b->n += bytes;
}

void synth_print(struct synth_buffer *b, const char *format, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text))
        b->failed = true;
    else
        synth_append(b, text, (size_t)n);
}
