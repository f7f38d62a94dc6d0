/* packed.c - see packed.h: opening, looking up, verifying. Everything in the file is checked before it is believed. */
#include "tp/load/packed.h"

#include "tp/load/packed_format.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_PAGE  ((uint64_t)PACKED_DATA)
#define ADVICE     "delete the file, or make it again with `shardd pack`"
#define POPULATE   22 /* MADV_POPULATE_READ: Linux 5.14; older headers lack the name */
#define FETCH_STEP (64ull << 20)

struct packed {
    char path[PATH_MAX];
    uint8_t *reserved; /* address space that holds the mapping at a multiple of HUGE_PAGE */
    uint64_t reserved_bytes;
    const uint8_t *data; /* the file */
    uint64_t bytes;
    const struct k_layout *layout;
    const struct packed_entry *entries;
    const char *names;
    struct k_tiles *tiles; /* [n] */
    uint32_t n;
};

struct packed *packed_free(struct packed *p) {
    if (!p)
        return NULL;
    if (p->reserved)
        munmap(p->reserved, p->reserved_bytes);
    free(p->tiles);
    free(p);
    return NULL;
}

const char *packed_name(const struct packed *p) {
    return p->path;
}
uint64_t packed_bytes(const struct packed *p) {
    return p->bytes;
}
uint32_t packed_matrices(const struct packed *p) {
    return p->n;
}

/* --- opening --- */

static int damaged(const struct packed *p, const char *what, struct error *e) {
    return error_set(e, -EBADMSG, "%s: %s; " ADVICE, p->path, what);
}

static int map_file(struct packed *p, struct error *e) {
    struct stat st;
    int r = 0, fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return error_set(e, -errno, "%s: cannot open: %s", p->path, strerror(errno));
    if (fstat(fd, &st) < 0)
        r = error_set(e, -errno, "%s: cannot stat: %s", p->path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        r = error_set(e, -EINVAL, "%s: is not a regular file", p->path);
    else if (st.st_size < (off_t)sizeof(struct packed_header))
        r = damaged(p, "is cut short: not even a header is there", e);
    if (r < 0)
        goto done;
    p->bytes = (uint64_t)st.st_size;
    p->reserved_bytes = p->bytes + HUGE_PAGE;
    p->reserved =
            mmap(NULL, p->reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->reserved == MAP_FAILED) {
        p->reserved = NULL;
        r = error_set(e, -errno, "%s: no address space for %" PRIu64 " bytes", p->path, p->bytes);
        goto done;
    }
    void *at = (void *)(((uintptr_t)p->reserved + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (mmap(at, p->bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        r = error_set(e, -errno, "%s: cannot map %" PRIu64 " bytes: %s", p->path, p->bytes, strerror(errno));
    else
        madvise(at, p->bytes, MADV_HUGEPAGE); /* only speed: a refusal changes nothing */
    p->data = at;
done:
    close(fd);
    return r;
}

static int check_header(const struct packed *p, uint64_t fingerprint, struct error *e) {
    const struct packed_header *h = (const struct packed_header *)p->data;
    if (memcmp(h->magic, PACKED_MAGIC, sizeof(h->magic)) != 0)
        return damaged(p, "is not a packed file of shardd", e);
    if (h->version != PACKED_VERSION)
        return error_set(e, -ENOTSUP, "%s: is of version %u of packed files, this program reads %u; " ADVICE,
                p->path, h->version, PACKED_VERSION);
    if (h->header_bytes != sizeof(*h) ||
            packed_sum_of(h, offsetof(struct packed_header, header_sum)) != h->header_sum)
        return damaged(p, "its header is damaged", e);
    if (strncmp(h->layout, p->layout->name, sizeof(h->layout)) != 0)
        return error_set(e, -ENOTSUP, "%s: holds layout %.*s, %s is wanted; " ADVICE, p->path,
                (int)strnlen(h->layout, sizeof(h->layout)), h->layout, p->layout->name);
    if (h->file_bytes != p->bytes)
        return error_set(e, -EBADMSG, "%s: is cut short: %" PRIu64 " bytes of %" PRIu64 "; " ADVICE, p->path,
                p->bytes, h->file_bytes);
    if (h->fingerprint != fingerprint)
        return error_set(e, -ESTALE,
                "%s: was made from other weights (fingerprint %016" PRIx64 ", the model's is %016" PRIx64
                "); " ADVICE,
                p->path, h->fingerprint, fingerprint);
    uint64_t table = (uint64_t)h->n_entries * sizeof(struct packed_entry), end;
    if (h->entry_bytes != sizeof(struct packed_entry) || h->n_entries > SAFETENSORS_TENSORS_MAX ||
            __builtin_add_overflow(sizeof(*h) + table, h->names_bytes, &end) || end > h->data_at ||
            h->data_at > p->bytes || h->data_at % PACKED_DATA != 0)
        return damaged(p, "its table does not fit into it", e);
    if (packed_sum_of(h + 1, table + h->names_bytes) != h->table_sum)
        return damaged(p, "its table is damaged", e);
    return 0;
}

static int check_entry(const struct packed *p, uint32_t i, uint64_t names_bytes, struct error *e) {
    const struct packed_entry *t = &p->entries[i];
    const struct packed_header *h = (const struct packed_header *)p->data;
    uint64_t end;
    if (t->name_at >= names_bytes || !memchr(p->names + t->name_at, '\0', names_bytes - t->name_at) ||
            (i > 0 && strcmp(p->names + p->entries[i - 1].name_at, p->names + t->name_at) >= 0))
        return damaged(p, "the names in its table are not in order", e);
    if (t->rows == 0 || t->rows > MODEL_DIM_MAX || t->columns == 0 || t->columns > MODEL_DIM_MAX ||
            t->columns % K_LEAVES != 0 || t->dtype > K_F16 || t->quantised > 1 || t->format > QUANT_FP8 ||
            t->scale > QUANT_SCALE_F16 || t->zeros > 1 || t->minimums > 1)
        return damaged(p, "its table holds sizes or types that do not exist", e);
    if (t->quantised && (t->group == 0 || t->group > t->columns || (t->group % 16 && t->group != t->columns)))
        return damaged(p, "its table holds groups that do not exist", e);
    struct k_tiles tiles = {.rows = t->rows,
            .columns = t->columns,
            .dtype = (enum k_dtype)t->dtype,
            .quantised = t->quantised,
            .format = (enum quant_format)t->format,
            .scale = (enum quant_scale)t->scale,
            .group = t->group,
            .zeros = t->zeros,
            .minimums = t->minimums};
    if (t->at < h->data_at || t->at % PACKED_ALIGN != 0 || __builtin_add_overflow(t->at, t->bytes, &end) ||
            end > p->bytes || p->layout->check(&tiles, NULL) < 0 || t->bytes != p->layout->bytes(&tiles))
        return damaged(p, "a matrix of its table does not lie in it", e);
    tiles.data = p->data + t->at;
    p->tiles[i] = tiles;
    return 0;
}

static int read_table(struct packed *p, struct error *e) {
    const struct packed_header *h = (const struct packed_header *)p->data;
    p->n = h->n_entries;
    p->entries = (const struct packed_entry *)(h + 1);
    p->names = (const char *)(p->entries + p->n);
    p->tiles = calloc(p->n + 1u, sizeof(*p->tiles));
    if (!p->tiles)
        return error_set(e, -ENOMEM, "%s: out of memory for a table of %u matrices", p->path, p->n);
    for (uint32_t i = 0; i < p->n; i++) {
        int r = check_entry(p, i, h->names_bytes, e);
        if (r < 0)
            return r;
    }
    return 0;
}

int packed_open(const char *path, const struct k_layout *layout, uint64_t fingerprint, struct packed **ret,
        struct error *e) {
    struct packed *p = calloc(1, sizeof(*p));
    if (!p)
        return error_set(e, -ENOMEM, "%s: out of memory", path);
    snprintf(p->path, sizeof(p->path), "%s", path);
    p->layout = layout;
    int r = map_file(p, e);
    if (r == 0)
        r = check_header(p, fingerprint, e);
    if (r == 0)
        r = read_table(p, e);
    if (r < 0) {
        packed_free(p);
        return r;
    }
    *ret = p;
    return 0;
}

const struct k_tiles *packed_find(const struct packed *p, const char *name) {
    uint32_t low = 0, high = p->n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(name, p->names + p->entries[middle].name_at);
        if (order == 0)
            return &p->tiles[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* --- reading all of it --- */

int packed_verify(const struct packed *p, packed_progress *progress, void *user, struct error *e) {
    uint64_t done = 0, total = 0;
    for (uint32_t i = 0; i < p->n; i++)
        total += p->entries[i].bytes;
    for (uint32_t i = 0; i < p->n; i++) {
        const struct packed_entry *t = &p->entries[i];
        const char *name = p->names + t->name_at;
        if (packed_sum_of(p->data + t->at, t->bytes) != t->sum)
            return error_set(
                    e, -EBADMSG, "%s: %s: its tiles are damaged (wrong checksum); " ADVICE, p->path, name);
        done += t->bytes;
        if (progress)
            progress(user, done, total, name);
    }
    return 0;
}

static void fetch(const uint8_t *from, uint64_t bytes) {
    static const uint64_t page = 4096;
    uint8_t *begin = (uint8_t *)((uintptr_t)from & ~(uintptr_t)(page - 1));
    for (uint64_t left = bytes + (uint64_t)(from - begin); left > 0;) {
        uint64_t step = left < FETCH_STEP ? left : FETCH_STEP;
        if (madvise(begin, step, POPULATE) < 0) {
            volatile uint8_t sum = 0; /* an older kernel: touching the pages does the same, more slowly */
            for (uint64_t i = 0; i < step; i += page)
                sum = (uint8_t)(sum + begin[i]);
        }
        begin += step;
        left -= step;
    }
}

uint64_t packed_fetch(const struct k_matrix_view *v, uint32_t columns, uint32_t leaves) {
    if (!v->tiles)
        return 0;
    const struct k_tiles *t = v->tiles;
    const struct k_layout *layout = k_layout_native();
    uint64_t strips = (t->rows + 15) / 16, block = layout->bytes(t) / K_LEAVES / strips;
    const void *from;
    size_t bytes;
    for (uint32_t i = 0; layout->part(v, columns, leaves, i, &from, &bytes); i++)
        fetch(from, bytes);
    return (v->rows + 15ull) / 16 * block * leaves;
}
