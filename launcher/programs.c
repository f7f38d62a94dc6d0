/* programs.c - see programs.h. */
#include "launcher/programs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int program_self(char ret_path[PATH_MAX], struct error *e) {
    ssize_t n = readlink("/proc/self/exe", ret_path, PATH_MAX - 1);
    if (n < 0)
        return error_set(
                e, -errno, "cannot find out where this program is (/proc/self/exe): %s", strerror(errno));
    ret_path[n] = '\0';
    return 0;
}

static bool found_in(const char *dir, const char *below, const char *name, char path[PATH_MAX]) {
    int n = snprintf(path, PATH_MAX, "%s%s/%s", dir, below, name);
    return n > 0 && n < PATH_MAX && access(path, X_OK) == 0;
}

int program_find(const char *name, const char *libexec_dir, char ret_path[PATH_MAX], struct error *e) {
    if (libexec_dir) {
        if (found_in(libexec_dir, "", name, ret_path))
            return 0;
        return error_set(e, -ENOENT, "%s is not in %s; check --libexec-dir", name, libexec_dir);
    }
    char self[PATH_MAX];
    int rc = program_self(self, e);
    if (rc < 0)
        return rc;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    if (found_in(self, "", name, ret_path) || found_in(self, "/../libexec/shardd", name, ret_path))
        return 0;
    return error_set(e, -ENOENT,
            "%s is neither in %s nor in %s/../libexec/shardd; name its folder with --libexec-dir", name, self,
            self);
}
