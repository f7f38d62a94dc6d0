/* packed_write.c - see packed.h: finding packed files and making them.
 *
 * Matrices are packed some units of their layout at a time into one buffer, front to back, so that memory stays bounded
 * whatever the size. The temporary file is also the lock: who holds it makes the file, the others wait. */
#include "tp/load/packed.h"

#include "base/file.h"
#include "base/sizes.h"
#include "tp/checkpoint/quant_matrix.h"
#include "tp/load/linears.h"
#include "tp/load/packed_format.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES  (64ull << 20) /* packed at once; a unit is less */
#define LOCK_WAIT_US 200000

/* --- which weights --- */

uint64_t packed_fingerprint(const char *model, uint64_t fingerprint_of_model) {
    static const char *const files[] = {"config.json", "quantize_config.json"};
    uint64_t sums[3] = {fingerprint_of_model, 0, 0};
    for (size_t i = 0; i < 2; i++) {
        char path[PATH_MAX], *text = NULL;
        size_t n;
        if (file_path(model, files[i], path, NULL) == 0 &&
                file_read(path, CONFIG_BYTES_MAX, &text, &n, NULL) == 0)
            sums[i + 1] = packed_sum_of(text, n);
        free(text);
    }
    return packed_sum_of(sums, sizeof(sums));
}

/* --- where --- */

static int join(char ret[PATH_MAX], struct error *e, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
static int join(char ret[PATH_MAX], struct error *e, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(ret, PATH_MAX, format, ap);
    va_end(ap);
    return n > 0 && n < PATH_MAX ? 0 : error_set(e, -ENAMETOOLONG, "%.200s: the path is too long", ret);
}

static const struct k_layout *layout_of(const struct packed_request *q) {
    return q->layout ? q->layout : k_layout_native();
}

static int beside_model(const struct packed_request *q, char ret[PATH_MAX], struct error *e) {
    struct stat st;
    bool folder = stat(q->model, &st) < 0 || S_ISDIR(st.st_mode);
    return join(ret, e, "%s%sshardd-packed-%s.bin", q->model, folder ? "/" : ".", layout_of(q)->name);
}

static int in_cache(const struct packed_request *q, const char *dir, char ret[PATH_MAX], struct error *e) {
    return join(ret, e, "%s/shardd-packed-%s-%016" PRIx64 ".bin", dir, layout_of(q)->name, q->fingerprint);
}

static int users_cache(char ret[PATH_MAX], struct error *e) {
    const char *unit = getenv("CACHE_DIRECTORY"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (unit && unit[0] == '/') /* systemd's CacheDirectory=: the first of a list */
        return join(ret, e, "%.*s", (int)strcspn(unit, ":"), unit);
    if (xdg && xdg[0] == '/')
        return join(ret, e, "%s/shardd", xdg);
    if (home && home[0] == '/')
        return join(ret, e, "%s/.cache/shardd", home);
    return error_set(e, -ENOENT,
            "there is no cache folder: neither HOME nor XDG_CACHE_HOME nor CACHE_DIRECTORY is set");
}

/* Opens the file at path if it serves. The first reason why one does not is kept in *why. */
static bool opens(const struct packed_request *q, const char *path, struct packed **ret, struct error *why) {
    struct error e = {0};
    int r = packed_open(path, layout_of(q), q->fingerprint, ret, &e);
    if (r < 0 && r != -ENOENT && r != -ENOTDIR && why->code == 0)
        *why = e;
    return r == 0;
}

/* Opens the file where one is to be looked for. */
static bool finds(const struct packed_request *q, struct packed **ret, struct error *why) {
    char path[PATH_MAX], cache[PATH_MAX];
    if (q->cache_dir)
        return in_cache(q, q->cache_dir, path, NULL) == 0 && opens(q, path, ret, why);
    if (beside_model(q, path, NULL) == 0 && opens(q, path, ret, why))
        return true;
    return users_cache(cache, NULL) == 0 && in_cache(q, cache, path, NULL) == 0 && opens(q, path, ret, why);
}

/* Where the weights are there in a layout that this worker does not compute with, *why says so. */
static void name_another_layout(const struct packed_request *q, struct error *why) {
    for (uint32_t i = 0; i < K_LAYOUTS && why->code == 0; i++) {
        struct packed_request other = *q;
        struct packed *there = NULL;
        struct error ignored = {0};
        other.layout = k_layout_at(i);
        if (other.layout == layout_of(q) || !finds(&other, &there, &ignored))
            continue;
        error_set(why, -ENOTSUP, "%s: holds layout %s, %s is wanted (`shardd pack --layout %s`)",
                packed_name(there), other.layout->name, layout_of(q)->name, layout_of(q)->name);
        packed_free(there);
    }
}

bool packed_look(const struct packed_request *q, struct packed **ret, struct error *why) {
    struct error unwanted;
    if (!why)
        why = &unwanted;
    *ret = NULL;
    *why = (struct error){0};
    if (finds(q, ret, why))
        return true;
    name_another_layout(q, why);
    return false;
}

/* mkdir -p */
static int make_folders(const char *dir, struct error *e) {
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s", dir);
    for (char *at = path + 1;; at++) {
        char end = *at;
        if (end != '/' && end != '\0')
            continue;
        *at = '\0';
        if (mkdir(path, 0777) < 0 && errno != EEXIST)
            return error_set(e, -errno, "%s: cannot make this folder: %s", path, strerror(errno));
        if (end == '\0')
            return 0;
        *at = end;
    }
}

static bool can_write_beside(const char *path) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = '\0';
    return access(slash ? folder : ".", W_OK) == 0;
}

/* Where the file is to be made. */
static int place_of_new(const struct packed_request *q, char ret[PATH_MAX], struct error *e) {
    char cache[PATH_MAX];
    int r;
    if (!q->cache_dir) {
        r = beside_model(q, ret, e);
        if (r < 0 || can_write_beside(ret))
            return r;
        r = users_cache(cache, e);
        if (r < 0)
            return error_prefix(
                    e, r, "%s cannot be written to; name another folder with --packed-cache", q->model);
    } else
        snprintf(cache, sizeof(cache), "%s", q->cache_dir);
    r = make_folders(cache, e);
    return r < 0 ? r : in_cache(q, cache, ret, e);
}

/* --- what goes into it --- */

struct matrix { /* to be packed */
    const struct tensor *tensor;
    struct k_matrix_view view;
    uint32_t columns;
    const uint32_t *order;
    struct k_tiles tiles;
    struct packed_entry entry;
};

struct writer {
    const struct packed_request *q;
    const struct k_layout *layout;
    struct matrix *matrices; /* [n] in the order in which a step uses them */
    uint32_t n, size;
    const char *path;
    int fd;
    uint64_t data_at, file_bytes, done, total;
    void *buffer; /* PIECE_BYTES, or the largest unit if that is more */
    struct error *e;
};

static int add_linear(struct writer *w, const struct linear *x) {
    for (uint32_t i = 0; i < x->n; i++) {
        if (!x->t[i] || !linear_tiles_serve(x, i, w->q->config))
            continue;
        if (w->n == w->size) {
            uint32_t size = w->size ? 2 * w->size : 256;
            struct matrix *more = realloc(w->matrices, size * sizeof(*more));
            if (!more)
                return error_set(w->e, -ENOMEM, "out of memory for a list of %u matrices", size);
            w->matrices = more;
            w->size = size;
        }
        const struct shard_matrix *m = &x->m[i];
        struct matrix *to = &w->matrices[w->n++];
        *to = (struct matrix){.tensor = x->t[i],
                .view = {.data = m->data,
                        .row_stride = m->columns,
                        .quant = m->quant,
                        .rows = m->rows,
                        .dtype = m->dtype,
                        .row_order = m->row_order},
                .columns = m->columns,
                .order = x->order};
        k_tiles_describe(&to->view, to->columns, &to->tiles);
    }
    return 0;
}

static int add_layer(struct writer *w, const struct layer_tensors *t, bool attention, const char *prefix) {
    struct linear linears[LINEARS_OF_LAYER];
    int r = linears_of_layer(w->q->config, t, attention, prefix, linears, w->e);
    for (int i = 0; i < LINEARS_OF_LAYER && r == 0; i++)
        r = add_linear(w, &linears[i]);
    return r;
}

static int add_model(struct writer *w) {
    const struct model_config *m = w->q->config;
    const struct model_tensors *t = w->q->tensors;
    struct linear x;
    int r = 0;
    for (uint32_t i = 0; i < m->n_layers && r == 0; i++) {
        char prefix[32];
        snprintf(prefix, sizeof(prefix), "layers.%u.", i);
        r = add_layer(w, &t->layers[i], m->is_attention[i], prefix);
    }
    if (r == 0) {
        linear_of_head(m, t->lm_head, &x);
        r = add_linear(w, &x);
    }
    if (r == 0 && t->has_mtp) {
        linear_of_fc(m, t->mtp.fc, &x);
        r = add_linear(w, &x);
        if (r == 0)
            r = add_layer(w, &t->mtp.layer, true, "mtp.layers.0.");
    }
    return r;
}

static uint64_t aligned(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

/* Sizes and places of everything: after this the file's length is known. */
static void lay_out(struct writer *w) {
    uint64_t names = 0;
    for (uint32_t i = 0; i < w->n; i++)
        names += strlen(w->matrices[i].tensor->name) + 1;
    w->data_at =
            aligned(sizeof(struct packed_header) + w->n * sizeof(struct packed_entry) + names, PACKED_DATA);
    w->file_bytes = w->data_at;
    for (uint32_t i = 0; i < w->n; i++) {
        struct matrix *m = &w->matrices[i];
        const struct k_tiles *t = &m->tiles;
        m->entry = (struct packed_entry){.at = aligned(w->file_bytes, PACKED_ALIGN),
                .bytes = w->layout->bytes(t),
                .rows = t->rows,
                .columns = t->columns,
                .group = t->group,
                .dtype = (uint8_t)t->dtype,
                .quantised = t->quantised,
                .format = (uint8_t)t->format,
                .scale = (uint8_t)t->scale,
                .zeros = t->zeros,
                .minimums = t->minimums};
        w->file_bytes = m->entry.at + m->entry.bytes;
        w->total += m->entry.bytes;
    }
}

/* --- writing --- */

static int write_at(struct writer *w, const void *data, uint64_t bytes, uint64_t at) {
    const uint8_t *from = data;
    while (bytes > 0) {
        ssize_t n = pwrite(w->fd, from, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(w->e, n < 0 ? -errno : -EIO, "%s: cannot write: %s", w->path,
                    n < 0 ? strerror(errno) : "nothing was taken");
        from += n;
        at += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

static struct k_layout_source source_of(const struct matrix *m) {
    return (struct k_layout_source){
            .tiles = &m->tiles, .view = &m->view, .order = m->view.quant ? NULL : m->order};
}

/* The units after `first` that fit into the buffer; at least one, and the checksum takes multiples of 64 bytes. */
static uint32_t units_that_fit(const struct writer *w, const struct k_tiles *t, uint32_t first) {
    const uint32_t all = w->layout->units(t);
    const size_t begin = w->layout->unit_at(t, first);
    uint32_t fit = first + 1, too_many = all + 1;
    while (too_many - fit > 1) {
        const uint32_t middle = fit + (too_many - fit) / 2;
        if (w->layout->unit_at(t, middle) - begin <= PIECE_BYTES)
            fit = middle;
        else
            too_many = middle;
    }
    while (fit < all && fit > first + 1 && (w->layout->unit_at(t, fit) - begin) % 64 != 0)
        fit--;
    return fit - first;
}

static int write_matrix(struct writer *w, struct matrix *m) {
    const struct k_layout_source source = source_of(m);
    const uint32_t all = w->layout->units(&m->tiles);
    struct packed_sum sum;
    int r = m->view.quant ? quant_matrix_check(m->tensor, w->e) : 0;
    packed_sum_begin(&sum);
    for (uint32_t first = 0, n; first < all && r == 0; first += n) {
        n = units_that_fit(w, &m->tiles, first);
        const size_t at = w->layout->unit_at(&m->tiles, first),
                     bytes = w->layout->unit_at(&m->tiles, first + n) - at;
        k_layout_pack_units(w->layout, &source, first, n, w->q->threads, w->buffer);
        packed_sum_add(&sum, w->buffer, bytes);
        r = write_at(w, w->buffer, bytes, m->entry.at + at);
        checkpoint_release(w->q->checkpoint);
    }
    m->entry.sum = packed_sum_end(&sum);
    w->done += m->entry.bytes;
    if (r == 0 && w->q->progress)
        w->q->progress(w->q->user, w->done, w->total, m->tensor->name);
    return r;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const struct matrix *const *)a)->tensor->name,
            (*(const struct matrix *const *)b)->tensor->name);
}

/* The header last, in one write: until then the file is none. */
static int write_table(struct writer *w) {
    uint64_t table = w->n * sizeof(struct packed_entry), names = 0;
    const struct matrix **sorted = calloc(w->n + 1u, sizeof(*sorted));
    uint8_t *bytes = calloc(1, w->data_at);
    struct packed_header *h = (struct packed_header *)bytes;
    int r = -ENOMEM;
    if (!sorted || !bytes) {
        error_set(w->e, r, "out of memory for a table of %u matrices", w->n);
        goto done;
    }
    for (uint32_t i = 0; i < w->n; i++)
        sorted[i] = &w->matrices[i];
    qsort(sorted, w->n, sizeof(*sorted), by_name);
    struct packed_entry *entries = (struct packed_entry *)(h + 1);
    char *text = (char *)(entries + w->n);
    for (uint32_t i = 0; i < w->n; i++) {
        size_t n = strlen(sorted[i]->tensor->name) + 1;
        entries[i] = sorted[i]->entry;
        entries[i].name_at = names;
        memcpy(text + names, sorted[i]->tensor->name, n);
        names += n;
    }
    *h = (struct packed_header){.version = PACKED_VERSION,
            .header_bytes = sizeof(*h),
            .fingerprint = w->q->fingerprint,
            .file_bytes = w->file_bytes,
            .data_at = w->data_at,
            .names_bytes = names,
            .n_entries = w->n,
            .entry_bytes = sizeof(struct packed_entry),
            .table_sum = packed_sum_of(entries, table + names)};
    memcpy(h->magic, PACKED_MAGIC, sizeof(h->magic));
    memcpy(h->layout, w->layout->name, strnlen(w->layout->name, sizeof(h->layout) - 1));
    h->header_sum = packed_sum_of(h, offsetof(struct packed_header, header_sum));
    r = write_at(w, bytes, w->data_at, 0);
done:
    free(sorted);
    free(bytes);
    return r;
}

static uint64_t buffer_bytes(const struct writer *w) {
    uint64_t most = PIECE_BYTES;
    for (uint32_t i = 0; i < w->n; i++) {
        uint64_t unit = w->layout->unit_at(&w->matrices[i].tiles, 1);
        most = unit > most ? unit : most;
    }
    return most;
}

/* What the layout cannot hold is refused before anything is written. */
static int check_matrices(const struct writer *w) {
    int r = 0;
    for (uint32_t i = 0; i < w->n && r == 0; i++) {
        const struct k_layout_source source = source_of(&w->matrices[i]);
        r = k_layout_check(w->layout, &source, w->matrices[i].tensor->name, w->e);
    }
    return r;
}

/* The whole file, into w->fd. */
static int write_file(struct writer *w) {
    int r = add_model(w);
    if (r == 0)
        r = check_matrices(w);
    if (r < 0)
        return r;
    lay_out(w);
    if (ftruncate(w->fd, 0) < 0)
        return error_set(w->e, -errno, "%s: cannot empty it: %s", w->path, strerror(errno));
    r = -posix_fallocate(w->fd, 0, (off_t)w->file_bytes); /* a full disk shows now, not after minutes */
    if (r < 0 && r != -EOPNOTSUPP && r != -EINVAL)
        return error_set(w->e, r, "%s: cannot take %s there: %s; name another folder with --packed-cache",
                w->path, SIZE_TEXT(w->file_bytes), strerror(-r));
    if (w->q->note) {
        char text[PATH_MAX + 160];
        snprintf(text, sizeof(text), "packing %s of weights into %s, once: later starts map that file",
                SIZE_TEXT(w->file_bytes), w->path);
        w->q->note(w->q->user, text);
    }
    w->buffer = malloc(buffer_bytes(w));
    if (!w->buffer)
        return error_set(w->e, -ENOMEM, "out of memory for %" PRIu64 " bytes to pack in", buffer_bytes(w));
    r = 0;
    for (uint32_t i = 0; i < w->n && r == 0; i++)
        r = write_matrix(w, &w->matrices[i]);
    if (r == 0)
        r = write_table(w);
    if (r == 0 && fsync(w->fd) < 0)
        r = error_set(w->e, -errno, "%s: cannot write: %s", w->path, strerror(errno));
    return r;
}

/* --- one maker at a time --- */

/* The temporary file, locked; waits for who has it. -EAGAIN: that one has finished, and what is locked is no longer
 * the temporary file. */
static int lock_temporary(const char *path, int *ret, struct error *e) {
    struct stat held, there;
    int r, fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set(e, -errno, "%s: cannot make this file: %s; name another folder with --packed-cache",
                path, strerror(errno));
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            r = error_set(e, -errno, "%s: cannot lock it: %s", path, strerror(errno));
            goto fail;
        }
        usleep(LOCK_WAIT_US);
    }
    if (fstat(fd, &held) == 0 && stat(path, &there) == 0 && held.st_ino == there.st_ino &&
            held.st_dev == there.st_dev) {
        *ret = fd;
        return 0;
    }
    r = -EAGAIN;
fail:
    close(fd);
    return r;
}

static int finish(const char *temporary, const char *path, struct error *e) {
    char folder[PATH_MAX];
    if (rename(temporary, path) < 0)
        return error_set(e, -errno, "%s: cannot rename it to %s: %s", temporary, path, strerror(errno));
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd); /* the file is whole either way; after a power cut it may be the old one */
        close(fd);
    }
    return 0;
}

/* Under the lock: made by another meanwhile, or by us now. */
static int make_locked(
        const struct packed_request *q, const char *temporary, const char *path, int fd, struct error *e) {
    struct packed *other = NULL;
    if (packed_open(path, layout_of(q), q->fingerprint, &other, NULL) == 0) {
        packed_free(other);
        unlink(temporary);
        return 0;
    }
    struct writer w = {.q = q, .layout = layout_of(q), .path = temporary, .fd = fd, .e = e};
    int r = write_file(&w);
    free(w.buffer);
    free(w.matrices);
    if (r == 0)
        r = finish(temporary, path, e);
    if (r < 0)
        unlink(temporary);
    return r;
}

int packed_make(const struct packed_request *q, struct packed **ret, struct error *e) {
    char path[PATH_MAX], temporary[PATH_MAX];
    struct error why;
    int fd = -1, r = 0;
    if (packed_look(q, ret, &why))
        return 0;
    if (why.code && q->note)
        q->note(q->user, why.text);
    r = place_of_new(q, path, e);
    if (r == 0)
        r = join(temporary, e, "%s.part", path);
    if (r < 0)
        return r;
    do
        r = lock_temporary(temporary, &fd, e);
    while (r == -EAGAIN);
    if (r < 0)
        return r;
    r = make_locked(q, temporary, path, fd, e);
    close(fd);
    return r < 0 ? r : packed_open(path, layout_of(q), q->fingerprint, ret, e);
}
