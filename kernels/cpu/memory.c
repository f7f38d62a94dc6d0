/* memory.c - memory of a context: blocks that are zero, 64-byte aligned and, where it pays, in huge pages.
 *
 * Weights are read once per token and from end to end, so that with small pages every 4 KB would cost a walk through
 * the page tables. Blocks too small to fill huge pages of their own share an arena; what nobody touches costs
 * nothing. One caller at a time per context. */
#include "kernels/cpu/internal.h"

#include "base/host_memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPED_FROM MIB(1)  /* smaller blocks come from the heap */
#define ALONE_FROM  MIB(32) /* these have a mapping of their own */
#define ARENA_BYTES MIB(128)

struct arena { /* at the start of its mapping */
    size_t used;
    uint32_t users; /* blocks, and the context as long as it takes blocks from here */
    uint8_t pad[52];
};
struct block_header {    /* the 64 bytes before a block */
    uint64_t mapped;     /* bytes of its own mapping, which begins here; 0 = none */
    struct arena *arena; /* that it lies in; neither: from the heap */
    uint8_t pad[48];
};
_Static_assert(
        sizeof(struct block_header) == 64 && sizeof(struct arena) == 64, "blocks stay 64-byte aligned");

/* A mapping that begins where a huge page can; what is in front is given back. */
static void *map_whole(size_t bytes) {
    const size_t huge = MIB(2), more = bytes + huge;
    uint8_t *p = mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint8_t *from = (uint8_t *)(((uintptr_t)p + huge - 1) & ~(uintptr_t)(huge - 1));
    if (from > p)
        munmap(p, (size_t)(from - p));
    if (p + more > from + bytes)
        munmap(from + bytes, (size_t)(p + more - (from + bytes)));
    madvise(from, bytes, MADV_HUGEPAGE); /* only speed: a refusal changes nothing */
    return from;
}

static void arena_leave(struct arena *a) {
    if (a && --a->users == 0)
        munmap(a, ARENA_BYTES);
}
static struct block_header *arena_take(struct k_context *c, size_t bytes) {
    struct arena *a = c->arena;
    if (!a || ARENA_BYTES - a->used < bytes) {
        arena_leave(a);
        c->arena = a = map_whole(ARENA_BYTES);
        if (!a)
            return NULL;
        *a = (struct arena){.used = sizeof *a, .users = 1};
    }
    struct block_header *h = (struct block_header *)((uint8_t *)a + a->used);
    a->used += bytes;
    a->users++;
    h->arena = a;
    return h;
}
void memory_leave(struct k_context *c) {
    arena_leave(c->arena);
    c->arena = NULL;
}

void *k_alloc(struct k_context *c, size_t bytes) {
    struct block_header *h;
    size_t whole;
    if (__builtin_add_overflow(bytes, sizeof *h + MIB(2), &whole)) /* room to round it up */
        return NULL;
    whole = (bytes + sizeof *h + 63) & ~(size_t)63;
    if (whole < MAPPED_FROM) {
        h = aligned_alloc(64, whole);
        if (h)
            memset(h, 0, whole);
    } else if (whole < ALONE_FROM) {
        h = arena_take(c, whole);
    } else {
        whole = (whole + MIB(2) - 1) & ~(MIB(2) - 1);
        h = map_whole(whole);
        if (h)
            h->mapped = whole;
    }
    return h ? h + 1 : NULL;
}
void k_free(struct k_context *c, void *p) {
    (void)c;
    if (!p)
        return;
    struct block_header *h = (struct block_header *)p - 1;
    if (h->mapped)
        munmap(h, h->mapped);
    else if (h->arena)
        arena_leave(h->arena);
    else
        free(h);
}
/* Weights that are mapped from a packed file are in the page cache anyway. */
static int keep_nothing(struct error *e) {
    return error_set(e, -ENOTSUP, "a CPU keeps no weights: it maps them from a packed file");
}
int k_keep_begin(struct k_context *c, uint64_t bytes, struct error *e) {
    (void)c, (void)bytes;
    return keep_nothing(e);
}
int k_keep_adopt(struct k_context *c, uint64_t bytes, int fd, uint64_t sum, struct error *e) {
    (void)c, (void)bytes, (void)fd, (void)sum;
    return keep_nothing(e);
}
int k_keep_end(struct k_context *c, struct k_kept *ret, struct error *e) {
    (void)c, (void)ret;
    return keep_nothing(e);
}

void *k_host_alloc(struct k_context *c, size_t bytes) {
    return k_alloc(c, bytes);
}
void k_host_free(struct k_context *c, void *p) {
    k_free(c, p);
}

uint32_t k_step_rows(void) {
    return 512;
}
uint32_t k_drafts_max(void) {
    return DRAFT_MAX;
}
bool k_memory_shared(const struct k_context *c) {
    (void)c;
    return true;
}

uint64_t k_memory_free(const struct k_context *c) {
    (void)c;
    return host_memory_free("");
}
