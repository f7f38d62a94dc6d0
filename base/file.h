/* file.h - whole files in and out: bounded reads, read-only mappings, writes that replace a file at once.
 *
 * Called at start-up by everyone who reads a model folder and by the tools that write one. Only regular files
 * are read (symlinks are followed: a downloaded model folder is often made of them). Descriptors are
 * close-on-exec and closed before return. Sentences begin with the path. */
#pragma once

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* dir/name; -ENAMETOOLONG. */
int file_path(const char *dir, const char *name, char ret[PATH_MAX], struct error *e);

/* Reads a file of at most bytes_max bytes. *ret is malloc'ed (free()) and has a NUL after the last byte,
 * which *ret_bytes does not count. -EFBIG: larger; -EINVAL: not a regular file; or open's and read's errno. */
int file_read(const char *path, size_t bytes_max, char **ret, size_t *ret_bytes, struct error *e);

/* A file mapped privately and read-only. Whoever truncates it while it is mapped makes an access beyond the
 * new end raise SIGBUS: sizes are checked when it is opened and cannot be checked later, so model files must
 * not be edited in place while they are served (replacing them by rename is safe: the mapping keeps the old
 * file). */
struct file_map {
    const void *data; /* NULL if the file is empty */
    uint64_t bytes;
};
int file_map(const char *path, struct file_map *ret, struct error *e);
/* Lets go of the pages that this process has touched; they come back from the page cache when they are wanted. What
 * has been used up is then no longer counted as this process's memory. */
void file_map_release(const struct file_map *m);
/* Reads single pages from now on where they are touched, without what lies around them; or as usual again. */
void file_map_scattered(const struct file_map *m, bool scattered);
void file_unmap(struct file_map *m); /* sets data to NULL; a zeroed struct is fine */

/* Writes all bytes, through interruptions and short writes. 0 or write's errno. */
int file_write_all(int fd, const void *data, size_t bytes);

/* Writes path so that a reader sees the old content or the new, never a part: a temporary file beside it,
 * fsync, rename, fsync of the folder. The file gets exactly this mode, whatever the umask. */
int file_replace(const char *path, const void *data, size_t bytes, mode_t mode, struct error *e);
