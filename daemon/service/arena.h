/* arena.h - a bump allocator for one message, with a limit.
 *
 * An unpacked request can be thirty times its size on the wire (a repeated field of empty messages), so
 * unpacking is given only so much. Everything goes at once with arena_done(). Not for sharing between
 * threads. */
#pragma once

#include "base/limits.h"

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

struct arena_block;
struct arena {
    ProtobufCAllocator allocator; /* for protobuf-c; its free does nothing */
    struct arena_block *blocks;
    char *next; /* free part of the newest block */
    size_t left;
    size_t total, limit;
    bool exhausted; /* something was refused, by the limit or for want of memory */
};

/* first: memory to begin with, NULL for none (on the caller's stack for small messages). */
void arena_init(struct arena *a, size_t limit, void *first, size_t first_bytes);
void arena_done(struct arena *a);
void *arena_alloc(struct arena *a, size_t bytes); /* aligned for anything; NULL when the limit is reached */
void *arena_zalloc(struct arena *a, size_t bytes);
