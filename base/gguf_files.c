/* gguf_files.c - finds the GGUF files that a model path means. See gguf.h. */
#include "base/gguf.h"

#include "base/limits.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX       ".gguf"
#define DIGITS       5u                            /* of a part's number and of the count */
#define SPLIT_SUFFIX (1 + DIGITS + 4 + DIGITS + 5) /* "-00001-of-00003.gguf" */
#define SPLIT_FORMAT "%.*s-%05u-of-%05u" SUFFIX

static bool has_suffix(const char *name) {
    size_t n = strlen(name);
    return n > strlen(SUFFIX) && strcmp(name + n - strlen(SUFFIX), SUFFIX) == 0;
}

static bool read_digits(const char *text, uint32_t *ret) {
    *ret = 0;
    for (unsigned i = 0; i < DIGITS; i++) {
        if (!isdigit((unsigned char)text[i]))
            return false;
        *ret = *ret * 10 + (uint32_t)(text[i] - '0');
    }
    return true;
}

/* Is it a part of a split set? Then *ret_stem is the length of what comes before the part's number. */
static bool is_part(const char *name, size_t *ret_stem, uint32_t *ret_number, uint32_t *ret_count) {
    size_t n = strlen(name);
    if (n <= SPLIT_SUFFIX || !has_suffix(name))
        return false;
    const char *at = name + n - SPLIT_SUFFIX;
    *ret_stem = n - SPLIT_SUFFIX;
    return at[0] == '-' && strncmp(at + 1 + DIGITS, "-of-", 4) == 0 && read_digits(at + 1, ret_number) &&
           read_digits(at + 5 + DIGITS, ret_count) && *ret_number >= 1 && *ret_number <= *ret_count;
}

static bool begins_with_magic(const char *path) {
    char magic[4] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return false;
    bool is = read(fd, magic, sizeof(magic)) == (ssize_t)sizeof(magic) && memcmp(magic, "GGUF", 4) == 0;
    close(fd);
    return is;
}

static int too_long(const char *path, struct error *e) {
    return error_set(e, -ENAMETOOLONG, "%.200s: the path is too long", path);
}

static int locate_file(const char *path, struct gguf_files *ret, struct error *e) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t stem = 0;
    uint32_t number = 0, count = 1;
    int folder = slash == path ? 1 : slash ? (int)(slash - path) : 0;
    int n = folder ? snprintf(ret->folder, PATH_MAX, "%.*s", folder, path)
                   : snprintf(ret->folder, PATH_MAX, ".");
    if (n < 0 || n >= PATH_MAX)
        return too_long(path, e);
    ret->n = 1;
    if (is_part(name, &stem, &number, &count)) {
        if (count > GGUF_PARTS_MAX)
            return error_set(
                    e, -E2BIG, "%s: is one of %u parts, at most %u are read", path, count, GGUF_PARTS_MAX);
        ret->n = count;
        n = snprintf(ret->first, PATH_MAX, SPLIT_FORMAT, (int)((size_t)(name - path) + stem), path, 1, count);
    } else {
        n = snprintf(ret->first, PATH_MAX, "%s", path);
    }
    return n < 0 || n >= PATH_MAX ? too_long(path, e) : 1;
}

static bool is_there(const char *folder, const char *name) {
    char path[PATH_MAX];
    struct stat st;
    return file_path(folder, name, path, NULL) == 0 && stat(path, &st) == 0;
}

static int locate_in_folder(const char *folder, struct gguf_files *ret, struct error *e) {
    char found[NAME_MAX + 1] = "", later[NAME_MAX + 1] = "", path[PATH_MAX];
    const struct dirent *entry;
    DIR *entries = opendir(folder);
    int r = 0;
    while (entries && r == 0 && (entry = readdir(entries))) {
        const char *name = entry->d_name;
        size_t stem = 0;
        uint32_t number = 1, count = 1;
        if (!has_suffix(name) || strncmp(name, "mmproj", 6) == 0)
            continue;
        if (is_part(name, &stem, &number, &count) && number != 1) {
            snprintf(later, sizeof(later), "%s", name);
            continue;
        }
        if (found[0])
            r = error_set(e, -EINVAL,
                    "%s: holds several GGUF models, %.100s and %.100s among them: give the path of one file",
                    folder, strcmp(found, name) < 0 ? found : name, strcmp(found, name) < 0 ? name : found);
        snprintf(found, sizeof(found), "%s", name);
    }
    if (entries)
        closedir(entries);
    if (!found[0]) /* a set without its first file: whoever opens that says so */
        snprintf(found, sizeof(found), "%s", later);
    if (r == 0 && found[0]) {
        r = file_path(folder, found, path, e);
        r = r < 0 ? r : locate_file(path, ret, e);
    }
    return r;
}

int gguf_locate(const char *path, struct gguf_files *ret, struct error *e) {
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    if (S_ISREG(st.st_mode))
        return has_suffix(path) || begins_with_magic(path) ? locate_file(path, ret, e) : 0;
    if (!S_ISDIR(st.st_mode) || is_there(path, "model.safetensors") ||
            is_there(path, "model.safetensors.index.json"))
        return 0;
    return locate_in_folder(path, ret, e);
}

int gguf_part_path(const struct gguf_files *f, uint32_t i, char ret[PATH_MAX], struct error *e) {
    size_t n = strlen(f->first);
    int length =
            f->n == 1 ? snprintf(ret, PATH_MAX, "%s", f->first)
                      : snprintf(ret, PATH_MAX, SPLIT_FORMAT, (int)(n - SPLIT_SUFFIX), f->first, i + 1, f->n);
    return length < 0 || length >= PATH_MAX ? too_long(f->first, e) : 0;
}
