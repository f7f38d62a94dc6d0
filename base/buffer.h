/* buffer.h - growing arrays of bytes and of token ids; header only.
 *
 * A zeroed struct is an empty buffer; the owner frees data with free(). Sizes double, so appending is linear over all;
 * a failed growth leaves what was there. */
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct byte_buffer {
    char *data;
    size_t n, size;
};

/* Room for more bytes after n. */
static inline int byte_buffer_reserve(struct byte_buffer *b, size_t more) {
    size_t need, size = b->size ? b->size : 64;
    if (__builtin_add_overflow(b->n, more, &need) || need > SIZE_MAX / 2)
        return -ENOMEM;
    if (need <= b->size)
        return 0;
    while (size < need)
        size *= 2;
    char *data = realloc(b->data, size);
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->size = size;
    return 0;
}

static inline int byte_buffer_add(struct byte_buffer *b, const void *data, size_t bytes) {
    int r = byte_buffer_reserve(b, bytes);
    if (r < 0)
        return r;
    if (bytes)
        memcpy(b->data + b->n, data, bytes);
    b->n += bytes;
    return 0;
}

static inline int byte_buffer_text(struct byte_buffer *b, const char *text) {
    return byte_buffer_add(b, text, strlen(text));
}

struct id_buffer {
    uint32_t *data;
    size_t n, size;
};

static inline int id_buffer_add(struct id_buffer *b, uint32_t id) {
    if (b->n == b->size) {
        size_t size = b->size ? b->size * 2 : 64;
        uint32_t *data = reallocarray(b->data, size, sizeof(*data));
        if (!data)
            return -ENOMEM;
        b->data = data;
        b->size = size;
    }
    b->data[b->n++] = id;
    return 0;
}
