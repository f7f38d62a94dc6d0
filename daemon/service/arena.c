/* arena.c - see arena.h. */
#include "daemon/service/arena.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN     16u
#define BLOCK_MIN (16u << 10)
#define BLOCK_MAX (1u << 20)

struct arena_block {
    struct arena_block *older;
    _Alignas(ALIGN) char data[];
};

static void *allocator_alloc(void *data, size_t bytes) {
    return arena_alloc(data, bytes);
}

static void allocator_free(void *data, void *memory) {
    (void)data;
    (void)memory; /* arena_done takes it all */
}

void arena_init(struct arena *a, size_t limit, void *first, size_t first_bytes) {
    *a = (struct arena){.limit = limit};
    a->allocator =
            (ProtobufCAllocator){.alloc = allocator_alloc, .free = allocator_free, .allocator_data = a};
    size_t skip = (ALIGN - (size_t)((uintptr_t)first % ALIGN)) % ALIGN;
    if (first && first_bytes > skip) {
        a->next = (char *)first + skip;
        a->left = first_bytes - skip;
    }
}

void arena_done(struct arena *a) {
    while (a->blocks) {
        struct arena_block *older = a->blocks->older;
        free(a->blocks);
        a->blocks = older;
    }
    a->next = NULL;
    a->left = 0;
}

static bool grow(struct arena *a, size_t bytes) {
    size_t size = a->total < BLOCK_MIN ? BLOCK_MIN : a->total;
    if (size > BLOCK_MAX)
        size = BLOCK_MAX;
    if (size < bytes)
        size = bytes;
    if (size > a->limit - a->total)
        size = a->limit - a->total;
    if (size < bytes)
        return false;
    struct arena_block *b = malloc(sizeof(*b) + size);
    if (!b)
        return false;
    b->older = a->blocks;
    a->blocks = b;
    a->next = b->data;
    a->left = size;
    a->total += size;
    return true;
}

void *arena_alloc(struct arena *a, size_t bytes) {
    size_t rounded = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (rounded < bytes || (rounded > a->left && !grow(a, rounded))) {
        a->exhausted = true;
        return NULL;
    }
    void *memory = a->next;
    a->next += rounded;
    a->left -= rounded;
    return memory;
}

void *arena_zalloc(struct arena *a, size_t bytes) {
    void *memory = arena_alloc(a, bytes);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}
