/* log.c - see log.h. The level and the name are the only process-wide state: set once by main, read by all. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048
#define LOG_HEAD_MAX 96 /* time, level and name */

enum log_style { LOG_PLAIN, LOG_JOURNAL, LOG_TIMED };

static char log_ident[32] = "shardd";
static _Atomic int log_max_level = LOG_LEVEL_INFO;
static _Atomic int log_style = LOG_PLAIN;

/* systemd says which file its journal is: a stderr that was redirected since is another one. */
static bool is_journal(int fd) {
    const char *journal = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    char end;
    struct stat st;
    return journal && sscanf(journal, "%llu:%llu%c", &device, &inode, &end) == 2 && fstat(fd, &st) == 0 &&
           st.st_dev == device && st.st_ino == inode;
}

void log_open(const char *ident, enum log_level max_level) {
    snprintf(log_ident, sizeof(log_ident), "%s", ident);
    atomic_store(&log_max_level, (int)max_level);
    atomic_store(&log_style, is_journal(STDERR_FILENO) ? LOG_JOURNAL
                             : isatty(STDERR_FILENO)   ? LOG_PLAIN
                                                       : LOG_TIMED);
}

void log_set_level(enum log_level max_level) {
    atomic_store(&log_max_level, (int)max_level);
}

static const char *const level_names[] = {[LOG_LEVEL_ERROR] = "error",
        [LOG_LEVEL_WARNING] = "warning",
        [LOG_LEVEL_NOTICE] = "notice",
        [LOG_LEVEL_INFO] = "info",
        [LOG_LEVEL_DEBUG] = "debug"};

int log_level_parse(const char *name) {
    for (int level = LOG_LEVEL_ERROR; level <= LOG_LEVEL_DEBUG; level++)
        if (strcmp(level_names[level], name) == 0)
            return level;
    return -EINVAL;
}

/* What stands before the text. Returns its length. */
static size_t write_head(char *to, size_t size, enum log_level level) {
    int style = atomic_load(&log_style), n;
    if (style == LOG_TIMED) {
        struct timespec t;
        struct tm utc;
        char day[32] = "";
        clock_gettime(CLOCK_REALTIME, &t);
        if (gmtime_r(&t.tv_sec, &utc))
            strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &utc);
        n = snprintf(to, size, "%s.%03ldZ %s %s: ", day, t.tv_nsec / 1000000, level_names[level], log_ident);
    } else if (style == LOG_JOURNAL) {
        n = snprintf(to, size, "<%d>%s: ", (int)level, log_ident);
    } else {
        n = snprintf(to, size, "%s: ", log_ident);
    }
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

/* Copies text, turning control bytes into \xNN. Returns the length written; never past size. */
static size_t escape_controls(char *out, size_t size, const char *text) {
    size_t n = 0;
    for (; *text && n + 5 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c != 0x7f)
            out[n++] = (char)c;
        else
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", c);
    }
    return n;
}

void log_message(enum log_level level, const char *format, ...) {
    if ((int)level > atomic_load(&log_max_level))
        return;
    int saved = errno;
    char text[LOG_LINE_MAX], line[LOG_LINE_MAX + LOG_HEAD_MAX];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n < 0)
        text[0] = '\0';
    size_t used = write_head(line, LOG_HEAD_MAX, level);
    used += escape_controls(line + used, sizeof(line) - used - 1, text);
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nowhere left to report it */
    errno = saved;
}
