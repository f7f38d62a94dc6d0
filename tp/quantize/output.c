/* output.c - the folder that quantize makes: planned as a whole, written in any order, named at the end.
 *
 * All sizes are known before the first weight is read, so the files are made at their full size with their headers;
 * a disk that is too small is found then and not hours later. The folder is called TARGET.part until everything is
 * on the disk, and then renamed: TARGET is there whole or not at all. */
#include "tp/quantize/parts.h"

#include "base/file.h"
#include "base/limits.h"
#include "base/sizes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define OTHER_FILES_BYTES MIB(64)  /* tokenizer, configuration, headers */
#define COPIED_BYTES_MAX  MIB(256) /* of a file that is copied; larger ones are weights of another kind */
#define NAME_SIZE         64u

void quantize_print(struct quantize_text *t, const char *format, ...) {
    va_list ap, again;
    va_start(ap, format);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    if (n < 0)
        t->failed = true;
    if (!t->failed && t->n + (size_t)n + 1 > t->size) {
        size_t size = 2 * t->size + (size_t)n + 256;
        char *grown = realloc(t->data, size);
        t->failed = !grown;
        if (grown) {
            t->data = grown;
            t->size = size;
        }
    }
    if (!t->failed) {
        vsnprintf(t->data + t->n, t->size - t->n, format, again);
        t->n += (size_t)n;
    }
    va_end(again);
}

void quantize_output_init(struct quantize_output *o, const char *target) {
    *o = (struct quantize_output){.target = target, .dir_fd = -1};
}

int quantize_output_add(struct quantize_output *o, const char *name, enum tensor_dtype dtype,
        const uint64_t *dims, uint32_t n_dims, uint32_t *ret, struct error *e) {
    if (o->n == o->size) {
        uint32_t size = o->size * 2 + 64;
        struct quantize_output_tensor *grown = realloc(o->tensors, size * sizeof(*grown));
        if (!grown)
            return error_set(e, -ENOMEM, "out of memory for a list of %u tensors", size);
        o->tensors = grown;
        o->size = size;
    }
    struct quantize_output_tensor *t = &o->tensors[o->n];
    *t = (struct quantize_output_tensor){.dtype = dtype, .n_dims = n_dims};
    if ((size_t)snprintf(t->name, sizeof(t->name), "%s", name) >= sizeof(t->name))
        return error_set(e, -ENAMETOOLONG, "%.100s...: this tensor's name is longer than %zu bytes", name,
                sizeof(t->name) - 1);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        t->dims[i] = dims[i];
        elements *= dims[i];
    }
    t->bytes = elements / 8 * tensor_dtype_bits(dtype) + elements % 8 * tensor_dtype_bits(dtype) / 8;
    o->bytes += t->bytes;
    *ret = o->n++;
    return 0;
}

/* --- the files --- */

static void file_name(const struct quantize_output *o, uint32_t file, char ret[NAME_SIZE]) {
    if (o->n_files == 1)
        snprintf(ret, NAME_SIZE, "model.safetensors");
    else
        snprintf(ret, NAME_SIZE, "model-%05u-of-%05u.safetensors", file + 1, o->n_files);
}

/* "a.weight_packed" and "a.weight_scale" are of one matrix. */
static bool same_module(const char *a, const char *b) {
    const char *end = strrchr(a, '.');
    size_t n = end ? (size_t)(end - a) + 1 : 0;
    return n > 0 && strncmp(a, b, n) == 0 && !strchr(b + n, '.');
}

static int divide(struct quantize_output *o, uint64_t shard_bytes, struct error *e) {
    uint64_t filled = 0;
    for (uint32_t i = 0; i < o->n;) {
        uint64_t more = 0;
        uint32_t end = i;
        do
            more += o->tensors[end++].bytes;
        while (end < o->n && same_module(o->tensors[i].name, o->tensors[end].name));
        if (o->n_files == 0 || (shard_bytes && filled + more > shard_bytes)) {
            o->n_files++;
            filled = 0;
        }
        filled += more;
        for (; i < end; i++)
            o->tensors[i].file = o->n_files - 1;
    }
    if (o->n_files > SAFETENSORS_SHARDS_MAX)
        return error_set(e, -EDOM, "%u files of weights, at most %u are read: raise --shard-size", o->n_files,
                SAFETENSORS_SHARDS_MAX);
    return 0;
}

/* What a tensor is aligned to. */
static size_t unit_of(enum tensor_dtype dtype) {
    const size_t bytes = tensor_dtype_bytes(dtype);
    return bytes ? bytes : 1;
}

/* The header of a file, its length before it; sets the tensors' offsets. Wide dtypes go first: all are aligned. */
static int make_header(struct quantize_output *o, uint32_t file, struct quantize_text *h, uint64_t *ret_bytes,
        struct error *e) {
    uint64_t offset = 0;
    quantize_print(h, "........{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t unit = 8; unit > 0; unit /= 2)
        for (uint32_t i = 0; i < o->n; i++) {
            struct quantize_output_tensor *t = &o->tensors[i];
            if (t->file != file || unit_of(t->dtype) != unit)
                continue;
            quantize_print(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, tensor_dtype_name(t->dtype));
            for (uint32_t k = 0; k < t->n_dims; k++)
                quantize_print(h, "%s%llu", k ? "," : "", (unsigned long long)t->dims[k]);
            t->offset = offset;
            offset += t->bytes;
            quantize_print(h, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->offset,
                    (unsigned long long)offset);
        }
    quantize_print(h, "}");
    while (h->n % 8 != 0 && !h->failed)
        quantize_print(h, " ");
    if (h->failed)
        return error_set(e, -ENOMEM, "out of memory for the header of a file");
    for (unsigned i = 0; i < 8; i++)
        h->data[i] = (char)((uint64_t)(h->n - 8) >> (8 * i));
    for (uint32_t i = 0; i < o->n; i++)
        if (o->tensors[i].file == file)
            o->tensors[i].offset += h->n;
    *ret_bytes = h->n + offset;
    return 0;
}

static int cannot_write(const struct quantize_output *o, const char *name, int code, struct error *e) {
    return error_set(e, code, "%s/%s: cannot write: %s", o->part, name, strerror(-code));
}

static int make_file(struct quantize_output *o, uint32_t file, struct error *e) {
    char name[NAME_SIZE];
    struct quantize_text header = {0};
    uint64_t bytes = 0;
    file_name(o, file, name);
    int r = make_header(o, file, &header, &bytes, e);
    if (r < 0)
        goto done;
    int fd = openat(o->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        r = error_set(e, -errno, "%s/%s: cannot create: %s", o->part, name, strerror(errno));
        goto done;
    }
    o->files[file] = fd;
    r = fallocate(fd, 0, 0, (off_t)bytes) < 0 ? -errno : 0;
    if (r == -EOPNOTSUPP) /* this file system cannot reserve; a write will tell */
        r = ftruncate(fd, (off_t)bytes) < 0 ? -errno : 0;
    if (r == 0)
        r = file_write_all(fd, header.data, header.n);
    if (r < 0)
        cannot_write(o, name, r, e);
done:
    free(header.data);
    return r;
}

/* --- the folder --- */

static int check_target(const char *target, struct error *e) {
    DIR *entries = opendir(target);
    const struct dirent *entry;
    if (!entries && errno == ENOENT)
        return 0;
    if (!entries)
        return error_set(e, -errno, "%s: cannot open this folder: %s", target, strerror(errno));
    int r = 0;
    while (r == 0 && (entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = error_set(e, -EEXIST, "%s: has '%.100s' in it: name a new or an empty folder", target,
                    entry->d_name);
    closedir(entries);
    return r;
}

static int make_folder(struct quantize_output *o, struct error *e) {
    size_t n = strlen(o->target);
    while (n > 1 && o->target[n - 1] == '/')
        n--;
    if ((size_t)snprintf(o->part, sizeof(o->part), "%.*s.part", (int)n, o->target) >= sizeof(o->part))
        return error_set(e, -ENAMETOOLONG, "the target folder's path is too long");
    if (mkdir(o->part, 0777) < 0 && errno == EEXIST)
        return error_set(e, -EEXIST,
                "%s: is there: another run is writing it, or one was killed: remove it when none is",
                o->part);
    o->dir_fd = open(o->part, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->dir_fd < 0)
        return error_set(e, -errno, "%s: cannot make this folder: %s", o->part, strerror(errno));
    return 0;
}

static int check_room(const struct quantize_output *o, struct error *e) {
    struct statvfs fs;
    if (fstatvfs(o->dir_fd, &fs) < 0)
        return error_set(e, -errno, "%s: cannot tell how much room is left: %s", o->part, strerror(errno));
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize, needed = o->bytes + OTHER_FILES_BYTES;
    if (room < needed)
        return error_set(e, -ENOSPC, "%s: needs %s, %s are free on this disk: make room or use another",
                o->target, SIZE_TEXT(needed), SIZE_TEXT(room));
    return 0;
}

int quantize_output_open(struct quantize_output *o, uint64_t shard_bytes, struct error *e) {
    int r = check_target(o->target, e);
    if (r == 0)
        r = divide(o, shard_bytes, e);
    if (r == 0)
        r = make_folder(o, e);
    if (r == 0)
        r = check_room(o, e);
    if (r < 0)
        return r;
    o->files = malloc(o->n_files * sizeof(o->files[0]));
    if (!o->files)
        return error_set(e, -ENOMEM, "out of memory for a list of %u files", o->n_files);
    for (uint32_t i = 0; i < o->n_files; i++)
        o->files[i] = -1;
    for (uint32_t i = 0; i < o->n_files && r == 0; i++)
        r = make_file(o, i, e);
    return r;
}

int quantize_output_write(struct quantize_output *o, uint32_t tensor, uint64_t at, const void *data,
        uint64_t bytes, struct error *e) {
    const struct quantize_output_tensor *t = &o->tensors[tensor];
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(
                o->files[t->file], (const char *)data + done, bytes - done, (off_t)(t->offset + at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            char name[NAME_SIZE];
            file_name(o, t->file, name);
            return cannot_write(o, name, n < 0 ? -errno : -EIO, e);
        }
        done += (uint64_t)n;
    }
    return 0;
}

int quantize_output_file(
        struct quantize_output *o, const char *name, const void *data, size_t bytes, struct error *e) {
    int fd = openat(o->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_set(e, -errno, "%s/%s: cannot create: %s", o->part, name, strerror(errno));
    int r = file_write_all(fd, data, bytes);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    close(fd);
    return r < 0 ? cannot_write(o, name, r, e) : 0;
}

static bool is_copied(const char *name) {
    static const char *const endings[] = {
            ".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".pt", ".pth", ".part"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof(endings) / sizeof(*endings); i++) {
        size_t m = strlen(endings[i]);
        if (n >= m && strcmp(name + n - m, endings[i]) == 0)
            return false;
    }
    return name[0] != '.' && strcmp(name, "config.json") != 0;
}

int quantize_output_copy(struct quantize_output *o, const char *source, struct error *e) {
    DIR *entries = opendir(source);
    const struct dirent *entry;
    int r = entries ? 0 : error_set(e, -errno, "%s: cannot read this folder: %s", source, strerror(errno));
    while (r == 0 && (entry = readdir(entries))) {
        char path[PATH_MAX];
        struct stat st;
        char *data = NULL;
        size_t bytes = 0;
        if (!is_copied(entry->d_name))
            continue;
        r = file_path(source, entry->d_name, path, e);
        if (r < 0 || stat(path, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > COPIED_BYTES_MAX)
            continue; /* a folder, a dangling link */
        r = file_read(path, COPIED_BYTES_MAX, &data, &bytes, e);
        if (r == 0)
            r = quantize_output_file(o, entry->d_name, data, bytes, e);
        free(data);
    }
    if (entries)
        closedir(entries);
    return r;
}

/* --- the end --- */

static int write_index(struct quantize_output *o, struct error *e) {
    struct quantize_text t = {0};
    quantize_print(&t, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
            (unsigned long long)o->bytes);
    for (uint32_t i = 0; i < o->n; i++) {
        char name[NAME_SIZE];
        file_name(o, o->tensors[i].file, name);
        quantize_print(&t, "%s\n    \"%s\": \"%s\"", i ? "," : "", o->tensors[i].name, name);
    }
    quantize_print(&t, "\n  }\n}\n");
    int r = t.failed ? error_set(e, -ENOMEM, "out of memory for the index")
                     : quantize_output_file(o, "model.safetensors.index.json", t.data, t.n, e);
    free(t.data);
    return r;
}

int quantize_output_finish(struct quantize_output *o, struct error *e) {
    int r = o->n_files > 1 ? write_index(o, e) : 0;
    for (uint32_t i = 0; i < o->n_files && r == 0; i++) {
        char name[NAME_SIZE];
        file_name(o, i, name);
        if (fsync(o->files[i]) < 0)
            r = cannot_write(o, name, -errno, e);
    }
    if (r == 0 && fsync(o->dir_fd) < 0)
        r = error_set(e, -errno, "%s: cannot write: %s", o->part, strerror(errno));
    if (r == 0 && rename(o->part, o->target) < 0)
        r = error_set(e, -errno, "%s: cannot rename to %s: %s", o->part, o->target, strerror(errno));
    if (r == 0) {
        close(o->dir_fd);
        o->dir_fd = -1;
    }
    return r;
}

static void remove_folder(struct quantize_output *o) {
    DIR *entries = opendir(o->part);
    const struct dirent *entry;
    while (entries && (entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(o->dir_fd, entry->d_name, 0);
    if (entries)
        closedir(entries);
    rmdir(o->part);
}

void quantize_output_done(struct quantize_output *o) {
    for (uint32_t i = 0; o->files && i < o->n_files; i++)
        if (o->files[i] >= 0)
            close(o->files[i]);
    if (o->dir_fd >= 0) {
        remove_folder(o);
        close(o->dir_fd);
    }
    free(o->files);
    free(o->tensors);
    quantize_output_init(o, NULL);
}
