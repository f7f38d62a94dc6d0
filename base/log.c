/* log.c - see log.h. The level and the name are the only process-wide state: set once by main, read by all.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048

static char log_ident[32] = "shardd";
static _Atomic int log_max_level = LOG_LEVEL_INFO;
static _Atomic int log_with_prefix = 0;

void log_open(const char *ident, enum log_level max_level) {
    snprintf(log_ident, sizeof(log_ident), "%s", ident);
    atomic_store(&log_max_level, (int)max_level);
    atomic_store(&log_with_prefix, !isatty(STDERR_FILENO));
}

void log_set_level(enum log_level max_level) {
    atomic_store(&log_max_level, (int)max_level);
}

int log_level_parse(const char *name) {
    static const struct {
        const char *name;
        int level;
    } levels[] = {{"error", 3}, {"warning", 4}, {"notice", 5}, {"info", 6}, {"debug", 7}};
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
        if (strcmp(levels[i].name, name) == 0)
            return levels[i].level;
    return -EINVAL;
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
    char text[LOG_LINE_MAX], line[LOG_LINE_MAX + 64];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n < 0)
        text[0] = '\0';
    int head = atomic_load(&log_with_prefix) ? snprintf(line, sizeof(line), "<%d>%s: ", (int)level, log_ident)
                                             : snprintf(line, sizeof(line), "%s: ", log_ident);
    size_t used = (size_t)head;
    used += escape_controls(line + used, sizeof(line) - used - 1, text);
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* nowhere left to report it */
    errno = saved;
}
