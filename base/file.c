/* file.c - see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int file_path(const char *dir, const char *name, char ret[PATH_MAX], struct error *e) {
    int n = snprintf(ret, PATH_MAX, "%s/%s", dir, name);
    if (n < 0 || n >= PATH_MAX)
        return error_set(
                e, -ENAMETOOLONG, "%.200s/%.200s: the path is longer than %d bytes", dir, name, PATH_MAX - 1);
    return 0;
}

/* An open descriptor of a regular file, and its size. */
static int open_regular(const char *path, uint64_t *ret_bytes, struct error *e) {
    struct stat st;
    /* O_NONBLOCK: opening a FIFO must not hang; it means nothing for regular files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return error_set(e, -errno, "%s: cannot open: %s", path, strerror(errno));
    int r = 0;
    if (fstat(fd, &st) < 0)
        r = error_set(e, -errno, "%s: cannot stat: %s", path, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        r = error_set(e, -EISDIR, "%s: is a folder, not a file", path);
    else if (!S_ISREG(st.st_mode))
        r = error_set(e, -EINVAL, "%s: is not a regular file", path);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_bytes = (uint64_t)st.st_size;
    return fd;
}

int file_read(const char *path, size_t bytes_max, char **ret, size_t *ret_bytes, struct error *e) {
    uint64_t size = 0;
    char *data = NULL;
    size_t n = 0;
    int fd = open_regular(path, &size, e), r;
    if (fd < 0)
        return fd;
    if (size > bytes_max) {
        r = error_set(e, -EFBIG, "%s: has %llu bytes, at most %zu are read", path, (unsigned long long)size,
                bytes_max);
        goto fail;
    }
    data = malloc((size_t)size + 1);
    if (!data) {
        r = error_set(e, -ENOMEM, "%s: out of memory for %llu bytes", path, (unsigned long long)size);
        goto fail;
    }
    while (n < size) {
        ssize_t got = read(fd, data + n, (size_t)size - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            r = error_set(e, -errno, "%s: cannot read: %s", path, strerror(errno));
            goto fail;
        }
        if (got == 0)
            break; /* it shrank meanwhile: what is there is what we read */
        n += (size_t)got;
    }
    data[n] = '\0';
    close(fd);
    *ret = data;
    *ret_bytes = n;
    return 0;
fail:
    free(data);
    close(fd);
    return r;
}

int file_map(const char *path, struct file_map *ret, struct error *e) {
    uint64_t size = 0;
    int fd = open_regular(path, &size, e);
    if (fd < 0)
        return fd;
    void *data = NULL;
    if (size > 0) {
        data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            int r = error_set(e, -errno, "%s: cannot map %llu bytes: %s", path, (unsigned long long)size,
                    strerror(errno));
            close(fd);
            return r;
        }
    }
    close(fd);
    *ret = (struct file_map){.data = data, .bytes = size};
    return 0;
}

void file_map_scattered(const struct file_map *m, bool scattered) {
    if (m->data)
        madvise((void *)(uintptr_t)m->data, (size_t)m->bytes, scattered ? MADV_RANDOM : MADV_NORMAL);
}

void file_map_release(const struct file_map *m) {
    if (m->data) /* private, never written: nothing is lost */
        madvise((void *)(uintptr_t)m->data, (size_t)m->bytes, MADV_DONTNEED);
}

void file_unmap(struct file_map *m) {
    if (m->data)
        munmap((void *)(uintptr_t)m->data, (size_t)m->bytes);
    *m = (struct file_map){0};
}

int file_write_all(int fd, const void *data, size_t bytes) {
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = write(fd, from, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        from += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int sync_folder_of(const char *path) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof(folder))
        return -ENAMETOOLONG;
    memcpy(folder, path, n);
    folder[n] = '\0';
    int fd = open(slash ? (n > 0 ? folder : "/") : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fsync(fd) < 0 && errno != EINVAL ? -errno : 0; /* EINVAL: this file system cannot, and need not */
    close(fd);
    return r;
}

int file_replace(const char *path, const void *data, size_t bytes, mode_t mode, struct error *e) {
    char temporary[PATH_MAX];
    int n = snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
    if (n < 0 || (size_t)n >= sizeof(temporary))
        return error_set(e, -ENAMETOOLONG, "%.400s: the path is too long", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return error_set(e, -errno, "%s: cannot create a file beside it: %s", path, strerror(errno));
    int r = file_write_all(fd, data, bytes);
    if (r == 0 && fchmod(fd, mode) < 0)
        r = -errno;
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0) {
        unlink(temporary);
        return error_set(e, r, "%s: cannot write: %s", path, strerror(-r));
    }
    r = sync_folder_of(path);
    if (r < 0)
        return error_set(e, r, "%s: cannot sync its folder: %s", path, strerror(-r));
    return 0;
}
