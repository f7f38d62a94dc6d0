/* quantize_text.c - files of text as files of ids: runs shardd-tokenize, which is installed beside this program.
 * Part of shardd-checkpoint; called by quantize_main.c before a run. */
#include "tp/tools/quantize_verb.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILE_BYTES_MAX MIB(256)

extern char **environ;

/* Does its first line give ids? */
static int has_ids(const char *path, bool *ret, struct error *e) {
    char *text = NULL;
    size_t bytes = 0;
    int r = file_read(path, FILE_BYTES_MAX, &text, &bytes, e);
    if (r < 0)
        return r;
    size_t n = strspn(text, " \t\r\n");
    text[n + strcspn(text + n, "\n")] = '\0';
    *ret = text[n] == '{' && (strstr(text + n, "\"ids\"") || strstr(text + n, "\"prompt_ids\""));
    free(text);
    return 0;
}

static int program_path(char ret[PATH_MAX], struct error *e) {
    ssize_t n = readlink("/proc/self/exe", ret, PATH_MAX - 1);
    if (n < 0)
        return error_set(e, -errno, "/proc/self/exe: %s", strerror(errno));
    ret[n] = '\0';
    char *slash = strrchr(ret, '/');
    size_t room = PATH_MAX - (size_t)(slash + 1 - ret);
    if ((size_t)snprintf(slash + 1, room, "shardd-tokenize") >= room)
        return error_set(e, -ENAMETOOLONG, "%s: too long", ret);
    return access(ret, X_OK) == 0
                   ? 0
                   : error_set(e, -ENOENT, "%s: is not there: install it, or give a file of token ids", ret);
}

/* What the program writes goes to fd. It says itself what is wrong with the file. */
static int tokenize(const char *model, const char *path, int fd, struct error *e) {
    char program[PATH_MAX];
    posix_spawn_file_actions_t actions;
    pid_t child;
    int status = 0, r = program_path(program, e);
    if (r < 0)
        return r;
    char *argv[] = {program, (char *)(uintptr_t)model, (char *)(uintptr_t)path, NULL};
    posix_spawn_file_actions_init(&actions);
    r = -posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
    if (r == 0)
        r = -posix_spawn(&child, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r < 0)
        return error_set(e, r, "cannot run %s: %s", program, strerror(-r));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set(e, -EINVAL, "%s: its text could not be made token ids", path);
    return 0;
}

int quantize_ids_of(
        const char *model, const char **path, char ret_path[QUANTIZE_FD_PATH_MAX], struct error *e) {
    bool ids = false;
    if (!*path)
        return 0;
    int r = has_ids(*path, &ids, e);
    if (r < 0 || ids)
        return r;
    int fd = memfd_create("shardd-ids", MFD_CLOEXEC); /* open until the program ends: its path is used */
    if (fd < 0)
        return error_set(e, -errno, "cannot keep token ids in memory: %s", strerror(errno));
    r = tokenize(model, *path, fd, e);
    if (r < 0) {
        close(fd);
        return r;
    }
    snprintf(ret_path, QUANTIZE_FD_PATH_MAX, "/proc/self/fd/%d", fd);
    *path = ret_path;
    return 0;
}
