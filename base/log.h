/* log.h - one line per event on stderr, with the level in a form systemd understands.
 *
 * Only programs (launcher, coordinator and worker mains, and the places where they decide) log; libraries
 * return errors. What stands before "shardd-worker[0]: text" depends on what stderr is:
 *
 *   the journal (JOURNAL_STREAM names it)   "<6>"                              systemd takes it for the level
 *   a terminal                              nothing
 *   a file or a pipe                        "2026-01-31T23:59:59.123Z info "   UTC, with milliseconds
 *
 * Lines of several threads never interleave (one write(2) each). Control bytes in the text are
 * escaped, so that what a client sent cannot forge a line. */
#pragma once

#include "base/error.h"

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_NOTICE = 5,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

/* ident is copied (at most 31 bytes) and shown in each line. Call once at the start of main. */
void log_open(const char *ident, enum log_level max_level);
void log_set_level(enum log_level max_level);
/* "error" "warning" "notice" "info" "debug" -> level, or -EINVAL. */
int log_level_parse(const char *name);
void log_message(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_message(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_message(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...)  log_message(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...)    log_message(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_message(LOG_LEVEL_DEBUG, __VA_ARGS__)
